"""What calibration found, as a page with pictures."""
