"""What happens before serving: calibration of a model, and measurements of what it brings."""
