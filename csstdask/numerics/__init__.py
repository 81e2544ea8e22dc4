"""Numerical methods on plain arrays that several sciences share."""
