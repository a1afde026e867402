"""The model: its files, its weights, and one forward pass on kernels or torch."""
