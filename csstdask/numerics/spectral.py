"""Interpolation of spectra."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicSpline


def interpolate_spectrum(wavelength: npt.ArrayLike, flux: npt.ArrayLike, at: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Interpolate spectra at other wavelengths by cubic splines in log wavelength.

    This is the only interpolation of spectra in csstdask; mock frames and predicted counts both use it.

    Parameters
    ----------
    wavelength : array-like (n,)
        Ascending [Angstrom].
    flux : array-like (..., n)
        Samples.
    at : array-like (m,)
        Wavelengths [Angstrom].

    Returns
    -------
    float64 array (..., m)
        Interpolated spectra; NaN outside the range of `wavelength`.

    Examples
    --------
    >>> float(interpolate_spectrum([1000.0, 2000.0, 4000.0, 8000.0], [0.0, 1.0, 2.0, 3.0], 2828.42712474619).round(6))
    1.5
    """
    grid, wanted = np.asarray(wavelength, dtype=np.float64), np.asarray(at, dtype=np.float64)
    values = CubicSpline(np.log(grid), np.asarray(flux, dtype=np.float64), axis=-1)(np.log(wanted))
    inside = (wanted >= grid[0]) & (wanted <= grid[-1])
    return np.where(inside, values, np.nan)


class SpectrumSplines:
    """Interpolation of many spectra, each at different wavelengths, with splines that are computed once.

    Parameters
    ----------
    wavelength : array-like (m,)
        Ascending [Angstrom], common to all spectra.
    flux : array-like (n, m)
        Samples.

    Examples
    --------
    >>> splines = SpectrumSplines([1e3, 2e3, 4e3, 8e3], [[0, 1, 2, 3], [3, 2, 1, 0]])
    >>> splines([[4e3], [2e3]]).round(6).tolist()
    [[2.0], [2.0]]
    """

    def __init__(self, wavelength: npt.ArrayLike, flux: npt.ArrayLike) -> None:
        self.wavelength = np.asarray(wavelength, dtype=np.float64)
        spline = CubicSpline(np.log(self.wavelength), np.asarray(flux, dtype=np.float64), axis=-1)
        self._knots = spline.x
        self._powers = np.ascontiguousarray(np.moveaxis(spline.c, -1, 0).swapaxes(1, 2))  # (n, piece, power)

    def __call__(self, at: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the spectra at wavelengths (n, k) [Angstrom]; NaN outside the range of the samples."""
        wanted = np.asarray(at, dtype=np.float64)
        inside = (wanted >= self.wavelength[0]) & (wanted <= self.wavelength[-1])
        log = np.log(np.where(inside, wanted, self.wavelength[0]))
        piece = np.clip(np.searchsorted(self._knots, log, side="right") - 1, 0, len(self._knots) - 2)
        step = log - self._knots[piece]
        row = np.arange(len(wanted))[:, None]
        coefficients = self._powers[row, piece]
        values = np.zeros(wanted.shape)
        for power in range(coefficients.shape[-1]):
            values = values * step + coefficients[..., power]
        return np.where(inside, values, np.nan)
