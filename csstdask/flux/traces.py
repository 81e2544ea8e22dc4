"""Where the columns of first-order spectra lie on a frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.instrument.dispersion import Dispersion

Float = npt.NDArray[np.float64]


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
