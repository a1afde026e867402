"""The search for masks, and the verdict on which of them are better than chance."""
