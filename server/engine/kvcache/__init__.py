"""Keys and values of the sequences that are being decoded."""
