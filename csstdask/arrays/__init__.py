"""Kernels on one frame: NumPy or CuPy arrays in, the same kind out."""
