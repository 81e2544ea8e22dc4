"""Fixtures of PSF tests."""

from psf_night import psf_model, psf_recipe, psf_stars, psfs  # noqa: F401
