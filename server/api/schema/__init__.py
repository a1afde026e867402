"""Bodies of requests to OpenAI's endpoints: their fields and types, and the values that are refused."""
