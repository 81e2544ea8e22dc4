"""Flux calibration of slitless spectra: SEDs, extraction, and the flat over position and wavelength."""

from csstdask.flux.extract import extract_spectrum
from csstdask.flux.flat import Flat, fit_flat
from csstdask.flux.sed import predict_sed

__all__ = ["Flat", "extract_spectrum", "fit_flat", "predict_sed"]
