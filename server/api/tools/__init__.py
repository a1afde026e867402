"""Tools that a model may call: what requests say of them, and what answers call."""
