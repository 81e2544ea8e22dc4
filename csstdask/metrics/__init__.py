"""Measures of quality: pure functions on arrays, used by training, evaluation and reports."""
