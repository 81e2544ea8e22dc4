"""Profile of a rectified spectrum across its trace."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from csstdask.numerics.polynomials import legendre_values
from csstdask.numerics.robust import huber_weights, mad_scale, nan_median

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

_PROFILE_DEGREES = (0, 1, 2, 4, 6, 8, 10)
"""Degrees that are tried for the change of the profile along x."""
_MAX_COEFFICIENTS = 150
"""Largest number of coefficients of a profile."""


def fit_stamp_profile(data: Float, variance: Float, good: Bool, counts: Float, distance: Float, box: Float) -> Float:
    """Fit the profile of a stamp: cubic B-splines of the distance from the trace that change slowly along x.

    The degree of the change along x is the one with the best Bayesian information criterion.

    Parameters
    ----------
    data, variance : float64 arrays (y, x)
        Pixels without background, and their variance.
    good : bool array (y, x)
        Pixels to fit.
    counts : float64 array (x,)
        Smoothed counts of each column.
    distance : float64 array (y, x)
        Distance from the trace [pixel].
    box : float64 array (y, x)
        Share of each pixel that lies within the half width.

    Returns
    -------
    float64 array (y, x)
        Normalised to sum(box * profile) = 1 in each column.
    """
    inner = box > 0
    splines = _spline_basis(distance, inner)
    n_columns = data.shape[1]
    t = np.linspace(-1, 1, n_columns) if n_columns > 1 else np.zeros(1)
    column = np.nonzero(inner)[1]
    weight, light, target = np.where(good, 1 / variance, 0.0)[inner], counts[column], data[inner]
    curvature = np.diff(np.eye(splines.shape[1]), 2, axis=0)
    shape, best, n_worse = np.zeros(len(target)), np.inf, 0
    for degree in _PROFILE_DEGREES:
        n_coefficients = splines.shape[1] * (degree + 1)
        if degree and (degree * 10 > n_columns or n_coefficients > _MAX_COEFFICIENTS or n_worse > 1):
            break
        along = legendre_values(t, degree)[column]
        design = (splines[:, :, None] * along[:, None, :]).reshape(len(target), -1)
        penalty: Float = np.kron(curvature.T @ curvature, np.eye(degree + 1)).astype(np.float64)
        fitted, misfit = _fit_robustly(design * light[:, None], target, weight, penalty)
        n_used = int(np.count_nonzero(weight))
        criterion = n_used * math.log(max(misfit, 1e-300)) + design.shape[1] * math.log(max(n_used, 1))
        n_worse = 0 if criterion < best else n_worse + 1
        if criterion < best:
            shape, best = design @ fitted, criterion
    profile = np.zeros(data.shape)
    profile[inner] = np.maximum(shape, 0.0)
    return _normalise_profile(profile, box)


def _spline_basis(distance: Float, inner: Bool) -> Float:
    """Return cubic B-splines of the distance at the inner pixels (pixel, spline).

    Knots are one pixel apart, or half a pixel where the trace crosses rows and samples the profile more finely.
    """
    from scipy.interpolate import BSpline  # noqa: PLC0415  slow to import

    low, high = float(distance[inner].min()), float(distance[inner].max())
    spacing = 1.0 if float(np.ptp(distance[0])) < 0.25 else 0.5
    n_pieces = max(int(np.ceil((high - low) / spacing)), 1)
    knots = low + spacing * np.arange(-3, n_pieces + 4)
    return np.asarray(BSpline.design_matrix(np.clip(distance[inner], low, high), knots, 3, extrapolate=True).toarray())


def _normalise_profile(profile: Float, box: Float) -> Float:
    """Scale a profile to sum(box * profile) = 1 in each column; a column without light gets a uniform one."""
    total = (box * profile).sum(axis=0)
    uniform = box / np.maximum(box.sum(axis=0) * 1.0, 1e-30)
    uniform_total = (box * uniform).sum(axis=0)
    return np.where(
        total > 1e-3, profile / np.where(total > 1e-3, total, 1.0), uniform / np.maximum(uniform_total, 1e-30)
    )


def smooth_counts(counts: Float, half_width: int = 3) -> Float:
    """Return the running median of counts (x,), not negative."""
    padded = np.pad(np.where(np.isfinite(counts), counts, np.nan), half_width, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half_width + 1)
    return np.maximum(np.nan_to_num(nan_median(windows, axis=1)), 0.0)


def _fit_robustly(basis: Float, target: Float, weight: Float, penalty: Float) -> tuple[Float, float]:
    """Return coefficients of a weak-ridge fit with Huber weights, and the mean weighted square of its residuals."""
    robust = np.ones(len(target))
    coefficients, misfit = np.zeros(basis.shape[1]), np.inf
    for _ in range(3):
        normal = (basis * (weight * robust)[:, None]).T @ basis
        size = np.trace(normal) / len(normal)
        if not size > 0:
            break
        normal = normal + size * (1e-6 * penalty + 1e-9 * np.eye(len(normal)))
        coefficients = np.linalg.solve(normal, basis.T @ (weight * robust * target))
        z = np.abs(target - basis @ coefficients) * np.sqrt(weight)
        scale = float(mad_scale(np.where(weight > 0, z, np.nan), center=0.0, floor=1e-30))
        robust = huber_weights(z / scale, 2.0)
        misfit = float(np.sum(robust * z**2) / max(np.count_nonzero(weight), 1))
    return coefficients, misfit
