"""Evaluations of networks and methods against others, on the same data."""
