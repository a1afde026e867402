"""Patches: what they are fitted on, how they are fitted, and the stage that keeps them."""
