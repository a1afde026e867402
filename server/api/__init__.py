"""The HTTP side: OpenAI's requests in, its answers, streams and errors out."""
