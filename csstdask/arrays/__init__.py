"""Kernels on single frames and stamps, for NumPy and CuPy arrays."""
