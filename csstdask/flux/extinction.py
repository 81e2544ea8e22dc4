"""Interstellar extinction, and SEDs of reddened stars."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csstdask.flux.spectral_grids import REFERENCE_RANGE

Float = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]

R_V = 3.1
"""A(V) / E(B - V) of the diffuse interstellar medium."""


def extinction_curve(wavelength: npt.ArrayLike, r_v: float = R_V) -> Float:
    """Return A(wavelength) / A(V).

    Cardelli, Clayton & Mathis (1989, ApJ 345, 245), with the optical part of O'Donnell (1994, ApJ 422, 158).

    Parameters
    ----------
    wavelength : array-like
        Wavelengths from 1250 to 33000 A.
    r_v : float
        A(V) / E(B - V).

    Examples
    --------
    >>> bool(abs(extinction_curve(5494.5) - 1) < 0.01)
    True
    """
    x = 1e4 / np.asarray(wavelength, dtype=float)
    y = x - 1.82
    a_optical = np.polyval([-0.505, 1.647, -0.827, -1.718, 1.137, 0.701, -0.609, 0.104, 1.0], y)
    b_optical = np.polyval([3.347, -10.805, 5.491, 11.102, -7.985, -3.989, 2.908, 1.952, 0.0], y)
    a_uv = 1.752 - 0.316 * x - 0.104 / ((x - 4.67) ** 2 + 0.341)
    b_uv = -3.090 + 1.825 * x + 1.206 / ((x - 4.62) ** 2 + 0.263)
    conditions = [x < 1.1, x < 3.3]
    a = np.select(conditions, [0.574 * x**1.61, a_optical], a_uv)
    b = np.select(conditions, [-0.527 * x**1.61, b_optical], b_uv)
    return np.asarray(a + b / r_v)


def log_attenuation(wavelength: npt.ArrayLike) -> Float:
    """Return -d ln(flux) / d E(B - V) = 0.4 ln(10) R_V A(wavelength) / A(V)."""
    return 0.4 * np.log(10) * R_V * extinction_curve(wavelength)


def redden(
    wavelength: npt.ArrayLike, mean: Single, sigma: Single, modes: Single, ebv: npt.ArrayLike, ebv_error: npt.ArrayLike
) -> tuple[Single, Single, Single]:
    """Redden SEDs that are relative to their mean flux in 5526-5586 A, by the law of `extinction_curve`.

    Parameters
    ----------
    wavelength : array-like (m,)
        Wavelengths [A], with samples in 5526-5586 A.
    mean, sigma : float32 arrays (n, m)
        SEDs and their 1-sigma errors.
    modes : float32 array (n, rank, m)
        Errors that are each fully correlated over wavelength.
    ebv, ebv_error : array-like (n,)
        E(B - V) and its error [mag].

    Returns
    -------
    mean, sigma, modes : float32 arrays
        SEDs of the reddened stars; the error of E(B - V) is one more mode.
    """
    grid = np.asarray(wavelength, dtype=float)
    curve = log_attenuation(grid)
    curve = curve - curve[(grid >= REFERENCE_RANGE[0]) & (grid <= REFERENCE_RANGE[1])].mean()
    factor = np.exp(-np.asarray(ebv)[:, None] * curve).astype(np.float32)
    mean = mean * factor
    ebv_mode = (np.asarray(ebv_error)[:, None] * curve).astype(np.float32) * mean
    modes = np.concatenate([modes * factor[:, None], ebv_mode[:, None]], axis=1)
    return mean, np.hypot(sigma * factor, ebv_mode), modes
