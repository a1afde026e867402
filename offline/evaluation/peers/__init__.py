"""Other programs that are measured in the same run."""
