"""The offline tools: they calibrate a model before it is served, and measure what that brings."""
