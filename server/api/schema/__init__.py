"""What requests may say: the bodies of OpenAI's endpoints, as this server honours them."""
