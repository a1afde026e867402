"""Drafts from what was answered before: the counts, and who may see whose."""
