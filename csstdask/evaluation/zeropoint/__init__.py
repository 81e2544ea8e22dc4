"""Evaluate photometric zero points."""
