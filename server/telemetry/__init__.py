"""Observation of the running server: Prometheus metrics, the live speed-up, OpenTelemetry traces."""
