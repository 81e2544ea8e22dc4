"""Evaluate SED prediction."""
