"""Numerical methods that several sciences share, on plain arrays."""
