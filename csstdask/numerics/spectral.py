"""Interpolation of spectra."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicSpline


def interpolate_spectrum(wavelength: npt.ArrayLike, flux: npt.ArrayLike, at: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Interpolate spectra at other wavelengths by cubic splines in log wavelength.

    This is the only definition of a spectrum between its samples: mock frames and predicted counts use it alike.

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
        NaN outside of `wavelength`: nothing is extrapolated.

    Examples
    --------
    >>> float(interpolate_spectrum([1000.0, 2000.0, 4000.0, 8000.0], [0.0, 1.0, 2.0, 3.0], 2828.42712474619).round(6))
    1.5
    """
    grid, wanted = np.asarray(wavelength, dtype=np.float64), np.asarray(at, dtype=np.float64)
    values = CubicSpline(np.log(grid), np.asarray(flux, dtype=np.float64), axis=-1)(np.log(wanted))
    inside = (wanted >= grid[0]) & (wanted <= grid[-1])
    return np.where(inside, values, np.nan)


def interpolate_spectra(wavelength: npt.ArrayLike, flux: npt.ArrayLike, at: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Interpolate spectra at wavelengths of their own; `interpolate_spectrum` for many spectra at once.

    Parameters
    ----------
    wavelength : array-like (m,)
        Ascending [Angstrom], common to all spectra.
    flux : array-like (n, m)
        Samples.
    at : array-like (n, k)
        Wavelengths for each spectrum [Angstrom].

    Returns
    -------
    float64 array (n, k)
        NaN outside of `wavelength`.

    Examples
    --------
    >>> interpolate_spectra([1e3, 2e3, 4e3, 8e3], [[0, 1, 2, 3], [3, 2, 1, 0]], [[4e3], [2e3]]).round(6).tolist()
    [[2.0], [2.0]]
    """
    grid, wanted = np.asarray(wavelength, dtype=np.float64), np.asarray(at, dtype=np.float64)
    if not wanted.size:
        return np.zeros(wanted.shape)
    spline = CubicSpline(np.log(grid), np.asarray(flux, dtype=np.float64), axis=-1)
    inside = (wanted >= grid[0]) & (wanted <= grid[-1])
    log = np.log(np.where(inside, wanted, grid[0]))
    piece = np.clip(np.searchsorted(spline.x, log, side="right") - 1, 0, len(grid) - 2)
    step = log - spline.x[piece]
    values = np.zeros(wanted.shape)
    for power in range(spline.c.shape[0]):
        values = values * step + np.take_along_axis(spline.c[power].T, piece, axis=-1)
    return np.where(inside, values, np.nan)
