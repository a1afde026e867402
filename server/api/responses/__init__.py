"""POST /v1/responses: its body, its answers, its events."""
