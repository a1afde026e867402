"""Between text and token ids: tokenizer, chat template, stop strings, forms of tool calls."""
