"""Counts that the stars of a frame are expected to give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from csstdask.errors import InputError
from csstdask.instrument.dispersion import Dispersion
from csstdask.numerics.spectral import SpectrumSplines, interpolate_spectrum

Float = npt.NDArray[np.float64]
Sensitivity = Callable[[npt.ArrayLike], npt.ArrayLike]

_STEP = 5.0
"""Of the integral over an undispersed spectrum [Angstrom]."""


@dataclass(frozen=True)
class PredictedLight:
    """Spectra of stars and the nominal sensitivity.

    Counts per column are flux(wavelength) sensitivity(wavelength) |d wavelength / dx| exptime.
    """

    wavelength: Float
    """(m,) Ascending [Angstrom]."""
    flux: Float
    """(n, m) [erg s-1 cm-2 A-1] at the resolution of the grating, pixel included; NaN rows = unknown."""
    sensitivity: Sensitivity
    """Nominal, of the first order, as a function of wavelength [(e-/s/A) / (erg/s/cm2/A)]."""
    exptime: float
    """[s]"""
    zeroth_sensitivity: Sensitivity | None = None
    """Nominal, of the zeroth order; None if it is unknown."""

    def __post_init__(self) -> None:
        if np.ndim(self.flux) != 2 or np.shape(self.flux)[1] != len(self.wavelength):
            raise InputError("predicted.flux", f"shape {np.shape(self.flux)}", f"(star, {len(self.wavelength)})")
        if not self.exptime > 0:
            raise InputError("predicted.exptime", f"{self.exptime}", "a positive number of seconds")

    def counts(self, wavelength: npt.ArrayLike, angstrom_per_pixel: npt.ArrayLike) -> Float:
        """Return the counts in columns (n, column) [e-]; NaN where the spectrum is unknown, 0 beyond the band."""
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
        """Return the counts in zeroth orders (n,) [e-], over some range of wavelengths [Angstrom]; 0 if unknown."""
        n = len(self.flux)
        if self.zeroth_sensitivity is None:
            return np.zeros(n)
        at = np.arange(max(limits[0], self.wavelength[0]) + _STEP / 2, min(limits[1], self.wavelength[-1]), _STEP)
        if not len(at):
            return np.zeros(n)
        response = np.nan_to_num(np.asarray(self.zeroth_sensitivity(at), dtype=np.float64)) * _STEP * self.exptime
        flux = np.nan_to_num(np.asarray(self.flux, dtype=np.float64))
        values = np.nan_to_num(interpolate_spectrum(self.wavelength, flux, at))
        return np.asarray((values * response).sum(axis=1))


@dataclass(frozen=True)
class Traces:
    """Where the columns of n spectra lie, padded to a common number of columns."""

    column: npt.NDArray[np.int64]
    """(n, column) Index in the frame; it may be off it."""
    wavelength: Float
    """(n, column) [Angstrom]"""
    angstrom_per_pixel: Float
    """(n, column) |d wavelength / dx|"""
    row: Float
    """(n, column) Row of the trace [pixel]."""
    inside: npt.NDArray[np.bool_]
    """(n, column) Within the wavelength limits of the order."""

    def take(self, rows: slice | npt.NDArray[np.int64]) -> Traces:
        """Return some of the spectra."""
        return Traces(
            self.column[rows], self.wavelength[rows], self.angstrom_per_pixel[rows], self.row[rows], self.inside[rows]
        )


PAD = 8
"""Columns beyond the wavelength limits of an order, whose light falls on other spectra [pixel]."""
_FAR = -1_000_000
"""Column of spectra without a position: off every frame."""


def find_traces(dispersion: Dispersion, x: npt.ArrayLike, y: npt.ArrayLike) -> Traces:
    """Return the columns, wavelengths and rows of the first-order spectra of some stars.

    Parameters
    ----------
    dispersion : Dispersion
        Of an order with dispersion.
    x, y : array-like (n,)
        Positions without the grating, zero-based [pixel]. They may be off the frame; NaN gives a spectrum off it.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    known = np.isfinite(x) & np.isfinite(y)
    at_x, at_y = np.where(known, x, 0.0)[:, None], np.where(known, y, 0.0)[:, None]
    limits = np.array(dispersion.limits)
    ends = dispersion.position(at_x, at_y, limits)[0]
    first = np.ceil(ends.min(axis=1)).astype(np.int64) - PAD
    last = np.floor(ends.max(axis=1)).astype(np.int64) + PAD
    column = first[:, None] + np.arange(int((last - first).max(initial=0)) + 1)
    wavelength = dispersion.wavelength(at_x, at_y, column)
    row = dispersion.position(at_x, at_y, wavelength)[1]
    per_pixel = np.abs(dispersion.angstrom_per_pixel(at_x, at_y, wavelength))
    inside = (wavelength >= limits[0]) & (wavelength <= limits[1]) & known[:, None]
    column = np.where(known[:, None], column, _FAR)
    return Traces(column, wavelength, per_pixel, np.where(np.isfinite(row), row, 0.0), inside)
