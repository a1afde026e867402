"""What the server tells of itself: Prometheus metrics, the live speed-up, OpenTelemetry traces."""
