"""From pieces of text to OpenAI's answers, whole or as chunks of a stream."""
