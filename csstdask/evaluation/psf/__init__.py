"""Evaluation of PSF reconstruction."""
