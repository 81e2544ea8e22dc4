"""Predicted counts of the stars of a frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError
from csstdask.numerics.spectral import SpectrumSplines, interpolate_spectrum

Float = npt.NDArray[np.float64]
Sensitivity = Callable[[npt.ArrayLike], npt.ArrayLike]

_STEP = 5.0
"""Step of the integral over the spectrum of a zeroth order [Angstrom]."""


@dataclass(frozen=True)
class PredictedSpectra:
    """Predicted spectra of stars, and the nominal sensitivity.

    Counts per column are flux(wavelength) sensitivity(wavelength) |d wavelength / dx| exptime.
    """

    wavelength: Float
    """(m,) Ascending wavelengths [Angstrom]."""
    flux: Float
    """(n, m) Flux densities at the resolution of the grating, pixel included [erg s-1 cm-2 A-1]; NaN rows = unknown."""
    sensitivity: Sensitivity
    """Nominal sensitivity of the first order as a function of wavelength [(e-/s/A) / (erg/s/cm2/A)]."""
    exptime: float
    """Exposure time [s]."""
    zeroth_sensitivity: Sensitivity | None = None
    """Nominal sensitivity of the zeroth order; None if unknown."""

    def __post_init__(self) -> None:
        if np.ndim(self.flux) != 2 or np.shape(self.flux)[1] != len(self.wavelength):
            raise InputError("predicted.flux", f"shape {np.shape(self.flux)}", f"(star, {len(self.wavelength)})")
        if not self.exptime > 0:
            raise InputError("predicted.exptime", f"{self.exptime}", "a positive number of seconds")

    def counts(self, wavelength: npt.ArrayLike, angstrom_per_pixel: npt.ArrayLike) -> Float:
        """Return the counts in columns (n, column) [e-]; NaN where the spectrum is unknown, 0 outside the band."""
        wavelength = np.asarray(wavelength, dtype=np.float64)
        values = self._splines(wavelength)
        values[~np.isfinite(self.flux).all(axis=1)] = np.nan
        throughput = np.asarray(self.sensitivity(wavelength), dtype=np.float64)
        light = values * throughput * np.abs(np.asarray(angstrom_per_pixel)) * self.exptime
        return np.where(np.isfinite(throughput) & (throughput > 0), light, np.where(np.isfinite(values), 0.0, np.nan))

    @cached_property
    def _splines(self) -> SpectrumSplines:
        flux = np.asarray(self.flux, dtype=np.float64)
        return SpectrumSplines(self.wavelength, np.where(np.isfinite(flux).all(axis=1, keepdims=True), flux, 0.0))

    def zeroth_counts(self, limits: tuple[float, float]) -> Float:
        """Return the counts in zeroth orders (n,) [e-], over a range of wavelengths [Angstrom]; NaN = unknown."""
        n = len(self.flux)
        if self.zeroth_sensitivity is None:
            return np.full(n, np.nan)
        at = np.arange(max(limits[0], self.wavelength[0]) + _STEP / 2, min(limits[1], self.wavelength[-1]), _STEP)
        if not len(at):
            return np.zeros(n)
        response = np.nan_to_num(np.asarray(self.zeroth_sensitivity(at), dtype=np.float64)) * _STEP * self.exptime
        flux = np.asarray(self.flux, dtype=np.float64)
        known = np.isfinite(flux.sum(axis=1))
        flux = np.where(known[:, None], flux, 0.0)
        values = np.nan_to_num(interpolate_spectrum(self.wavelength, flux, at))
        return np.where(known, (values * response).sum(axis=1), np.nan)
