"""Profile of a spectrum across its trace: two Gaussians with a common centre, integrated over pixels.

P_r = sum_g share_g [Phi((r + 1/2 - y) / s_g) - Phi((r - 1/2 - y) / s_g)], with widths s_g(wavelength) = s_g
(wavelength / reference)^exponent. It sums to 1 over all rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Float = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]

_HUBER_SIGMA = 3.0
"""Residual beyond which the cost grows linearly [sigma]."""
_STEP_SIZE = 1e-3
"""Step of a parameter for its numerical derivative."""
_MAX_STEPS = 25
"""Largest number of Gauss-Newton steps."""


@dataclass(frozen=True)
class CrossProfile:
    """Parameters of the profile across a trace."""

    core: float = 1.0
    """Standard deviation of the core at `reference` [pixel]."""
    wing: float = 2.4
    """Standard deviation of the wings at `reference` [pixel]."""
    share: float = 0.15
    """Share of the light in the wings."""
    exponent: float = 0.3
    """Power of the wavelength by which both widths grow."""
    reference: float = 5500.0
    """Reference wavelength of the widths [Angstrom]."""

    def widths(self, wavelength: npt.ArrayLike) -> tuple[Float, Float]:
        """Return the standard deviations of core and wings [pixel] at some wavelengths [Angstrom]."""
        with np.errstate(invalid="ignore"):
            growth = (np.asarray(wavelength, dtype=np.float64) / self.reference) ** self.exponent
        growth = np.where(np.isfinite(growth) & (growth > 0), growth, 1.0)
        return self.core * growth, self.wing * growth

    def pixels(self, center: npt.ArrayLike, wavelength: npt.ArrayLike, n_rows: int) -> Single:
        """Return the share of the light in rows 0 to n_rows - 1 of some columns.

        Parameters
        ----------
        center : array-like (...)
            Row of the trace in the window [pixel].
        wavelength : array-like (...)
            Wavelengths [Angstrom].
        n_rows : int
            Number of rows.

        Returns
        -------
        float32 array (..., n_rows)
        """
        center, wavelength = np.broadcast_arrays(np.asarray(center, dtype=np.float64), wavelength)
        core, wing = self.widths(wavelength)
        out = np.empty((center.size, n_rows), dtype=np.float32)
        _profile_pixels(np.ascontiguousarray(center).ravel(), core.ravel(), wing.ravel(), self.share, out)
        return out.reshape(*center.shape, n_rows)


@njit(cache=True, nogil=True)
def _profile_pixels(center: Any, core: Any, wing: Any, share: float, out: Any) -> None:  # pragma: no cover
    """Write differences of the cumulative profile at the edges of the rows."""
    half = math.sqrt(0.5)
    for i in range(len(center)):
        below = 0.0
        for k in range(out.shape[1] + 1):
            d = (k - 0.5 - center[i]) * half
            above = 0.5 * ((1 - share) * math.erf(d / core[i]) + share * math.erf(d / wing[i]))
            if k > 0:
                out[i, k - 1] = above - below
            below = above


def fit_profile(
    data: npt.ArrayLike,
    variance: npt.ArrayLike,
    center: npt.ArrayLike,
    wavelength: npt.ArrayLike,
    start: CrossProfile,
) -> tuple[CrossProfile, float]:
    """Fit the profile and a common offset along y to columns of bright, isolated spectra.

    Amplitude and background of each column are eliminated; residuals beyond 3 sigma count linearly. Weak priors on
    the shape parameters constrain what a few faint stars do not.

    Parameters
    ----------
    data, variance : array-like (column, row)
        Pixels [e-] and their variances [e-^2]; inf = ignored.
    center : array-like (column,)
        Expected row of the trace in the window [pixel].
    wavelength : array-like (column,)
        Wavelengths [Angstrom].
    start : CrossProfile
        First guess, and the centre of the priors.

    Returns
    -------
    profile : CrossProfile
        Fitted profile.
    offset : float
        Distance of the traces above `center` [pixel].
    """
    data, variance = np.asarray(data, dtype=np.float64), np.asarray(variance, dtype=np.float64)
    center, wavelength = np.asarray(center, dtype=np.float64), np.asarray(wavelength, dtype=np.float64)
    root = np.where(np.isfinite(data) & np.isfinite(variance) & (variance > 0), 1 / np.sqrt(variance), 0.0)
    data = np.where(root > 0, data, 0.0) * root
    norm = np.maximum((root**2).sum(axis=1), 1e-300)

    def profile_of(parameters: Float) -> CrossProfile:
        core, ratio, share, exponent = parameters[1:]
        width = start.core * math.exp(core)
        wing = width * (1 + math.exp(ratio))
        return CrossProfile(width, wing, 1 / (1 + math.exp(-share)), exponent, start.reference)

    first = np.array(
        [0.0, 0.0, math.log(start.wing / start.core - 1), math.log(start.share / (1 - start.share)), start.exponent]
    )
    prior = np.array([np.inf, 0.5, 0.7, 1.0, 0.3])

    def residuals(parameters: Float) -> Float:
        shape = profile_of(parameters).pixels(center + parameters[0], wavelength, data.shape[1]) * root
        # remove the background, then the amplitude
        flat = root / np.sqrt(norm)[:, None]
        shape = shape - (shape * flat).sum(axis=1, keepdims=True) * flat
        residual = data - (data * flat).sum(axis=1, keepdims=True) * flat
        power = np.maximum((shape * shape).sum(axis=1, keepdims=True), 1e-300)
        residual = residual - (residual * shape).sum(axis=1, keepdims=True) / power * shape
        return np.concatenate([residual.ravel(), (parameters - first) / prior])

    found = _least_squares(residuals, first, n_free=len(first))
    if not np.all(np.isfinite(found)) or abs(found[0]) > data.shape[1] / 4:
        return start, 0.0
    return profile_of(found), float(found[0])


def _least_squares(residuals: Callable[[Float], Float], start: Float, *, n_free: int) -> Float:
    """Minimise the sum of Huber's function of residuals by damped Gauss-Newton steps."""

    def cost_of(residual: Float) -> tuple[Float, float]:
        size = np.abs(residual)
        weight = np.minimum(1.0, _HUBER_SIGMA / np.maximum(size, _HUBER_SIGMA))
        return weight, float(
            np.sum(np.where(size < _HUBER_SIGMA, residual**2, _HUBER_SIGMA * (2 * size - _HUBER_SIGMA)))
        )

    at, damping = start.copy(), 1e-3
    residual = residuals(at)
    weight, cost = cost_of(residual)
    for _ in range(_MAX_STEPS):
        slopes = np.empty((n_free, len(residual)))
        for k in range(n_free):
            stepped = at.copy()
            stepped[k] += _STEP_SIZE
            slopes[k] = (residuals(stepped) - residual) / _STEP_SIZE
        # sums without BLAS, whose bits would depend on its threads
        weighted = slopes * weight
        normal, gradient = np.einsum("ik,jk->ij", weighted, slopes), np.einsum("ik,k->i", weighted, residual)
        for _ in range(6):
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -gradient)
            new_residual = residuals(at + step)
            new_weight, new_cost = cost_of(new_residual)
            if new_cost <= cost:
                break
            damping *= 10
        else:
            return at
        gain = cost - new_cost
        at, residual, weight, cost, damping = at + step, new_residual, new_weight, new_cost, damping / 10
        if np.abs(step).max() < 1e-6 or gain < 1e-6 * (1e-6 + cost):
            break
    return at
