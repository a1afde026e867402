"""llama.cpp's model files: their bytes, and what they say of shape, tokenizer and weights in Hugging Face terms."""
