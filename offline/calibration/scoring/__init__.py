"""What a mask is worth: the cost of passes, and drafts replayed on the model's own text."""
