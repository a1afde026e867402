"""The worth of a mask: the cost of its passes, and its drafts replayed on text that the model itself wrote."""
