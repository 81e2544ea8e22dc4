"""Flux calibration of slitless spectra."""
