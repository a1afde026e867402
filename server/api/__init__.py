"""OpenAI's interface: requests in, answers, streams and errors out."""
