"""Weights of few bits: what they are, and how they are made from numbers."""
