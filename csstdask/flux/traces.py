"""Positions and wavelengths of the columns of first-order spectra on a frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.instrument.dispersion import Dispersion

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Traces:
    """Columns of n spectra, padded to a common number."""

    column: npt.NDArray[np.int64]
    """(n, column) Column of the frame; it may be off the frame."""
    wavelength: Float
    """(n, column) Wavelength at the centre of the column [Angstrom]."""
    angstrom_per_pixel: Float
    """(n, column) |d wavelength / dx| [Angstrom/pixel]."""
    row: Float
    """(n, column) Row of the trace [pixel]."""
    inside: npt.NDArray[np.bool_]
    """(n, column) Columns within the wavelength limits of the order."""

    @property
    def off_frame(self) -> npt.NDArray[np.bool_]:
        """(n,) Spectra of stars without a position, or far off the frame."""
        return np.asarray(self.column[:, 0] < _FAR_COLUMN)

    def take(self, rows: slice | npt.NDArray[np.int64]) -> Traces:
        """Select spectra by slice or index."""
        return Traces(
            self.column[rows], self.wavelength[rows], self.angstrom_per_pixel[rows], self.row[rows], self.inside[rows]
        )


PAD = 8
"""Columns beyond the wavelength limits of an order whose light falls on other spectra [pixel]."""
_UNKNOWN_COLUMN = -1_000_000
"""Column given to spectra of stars without a position: off every frame."""
_FAR_COLUMN = -100_000
"""Spectra that start left of this column are nowhere near a frame."""


def find_traces(dispersion: Dispersion, x: npt.ArrayLike, y: npt.ArrayLike) -> Traces:
    """Return columns, wavelengths and rows of the first-order spectra of some stars.

    Parameters
    ----------
    dispersion : Dispersion
        Dispersion relation of the order.
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
    column = np.where(known[:, None], column, _UNKNOWN_COLUMN)
    return Traces(column, wavelength, per_pixel, np.where(np.isfinite(row), row, 0.0), inside)
