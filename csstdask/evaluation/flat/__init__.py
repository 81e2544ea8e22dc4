"""Evaluate flat-field cubes."""
