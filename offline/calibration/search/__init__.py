"""Finding masks, and telling what was found from chance."""
