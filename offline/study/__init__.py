"""Checks of a calibration: its score, its search, its budget."""
