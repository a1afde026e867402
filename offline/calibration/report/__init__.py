"""The report of a calibration: a page with a table and pictures."""
