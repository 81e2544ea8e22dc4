"""Flux calibration of slitless spectra: extraction, and the flat over position and wavelength."""

from csstdask.flux.flat import Flat, fit_flat

__all__ = ["Flat", "fit_flat"]
