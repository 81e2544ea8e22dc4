"""Evaluate PSF reconstruction."""
