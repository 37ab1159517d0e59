"""The kernels of attention with relative positions, and their launches."""
