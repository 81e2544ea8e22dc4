"""Fit shifts of spectra along the dispersion to predicted spectra.

The counts are modelled as c(X) = (a_0 + a_1 t + a_2 t^2 + a_3 t^3) m(X - shift) with the predicted counts m; t runs
from -1 to 1 over the usable columns. In the linearised model, the shift is one more coefficient, of -a_0 dm/dX. Smooth
spectra hardly constrain it, so each shift is combined with the smooth shift of the frame, weighted by their variances.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.numerics.linear import invert_symmetric
from csstdask.numerics.robust import huber_weights, mad_scale, robust_linear_fit

Float = npt.NDArray[np.float64]

N_POLYNOMIAL = 4
"""Terms of the multiplicative polynomial."""
_MIN_COLUMNS = 30
"""Usable columns that a star needs for a measured shift."""
_ITERATIONS = 3
"""Linearisations of the shift."""
_MODEL_ERROR = 0.01
"""Relative error of predicted spectra that the polynomial leaves."""
_MIN_SCATTER = 0.005
"""Smallest scatter of true shifts about that of the frame [pixel]."""
_MAX_DEVIATION = 3.0
"""Largest deviation of a star's shift from that of the frame during the iteration [pixel]."""
_MIN_PLANE_STARS = 30
"""Stars from which the shift of a frame is a plane over the field rather than a constant."""


@dataclass(frozen=True)
class Shifts:
    """Shifts along x of n spectra."""

    measured: Float
    """(n,) Shift of each star alone [pixel]; NaN = not measurable."""
    measured_sigma: Float
    """(n,) 1 sigma; inf = not measurable."""
    shift: Float
    """(n,) Shift of each star combined with that of the frame [pixel]."""
    sigma: Float
    """(n,) 1 sigma of `shift`."""
    common: Float
    """(n,) Smooth shift of the frame at each star [pixel]."""


def no_shifts(n: int) -> Shifts:
    """Return the result for n stars without predicted spectra: no shift was measured."""
    unknown = np.full(n, np.inf)
    return Shifts(np.full(n, np.nan), unknown, np.zeros(n), unknown, np.zeros(n))


def fit_shifts(
    counts: npt.ArrayLike,
    sigma: npt.ArrayLike,
    predicted: Callable[[Float], Float],
    u: npt.ArrayLike,
    v: npt.ArrayLike,
) -> Shifts:
    """Fit the shift of every spectrum, and of the frame.

    Parameters
    ----------
    counts, sigma : array-like (n, column)
        Extracted counts and their errors; NaN and inf are ignored.
    predicted : callable
        Function of shifts (n,) [pixel] that returns the predicted counts (n, column) of shifted spectra.
    u, v : array-like (n,)
        Positions of the stars, -1 to 1 across the frame.

    Returns
    -------
    Shifts
    """
    counts, sigma = np.asarray(counts, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    n = len(counts)
    shift, error = np.zeros(n), np.full(n, np.inf)
    start = np.zeros(n)
    for _ in range(_ITERATIONS):
        model = predicted(start)
        slope = (predicted(start + 0.25) - predicted(start - 0.25)) / 0.5
        usable = np.isfinite(counts) & np.isfinite(sigma) & np.isfinite(model) & np.isfinite(slope) & (sigma > 0)
        usable &= model > 0
        enough = usable.sum(axis=1) >= _MIN_COLUMNS
        powers = _normalised_columns(usable)[:, None] ** np.arange(N_POLYNOMIAL)[:, None]
        model, slope = np.where(usable, model, 0.0), np.where(usable, slope, 0.0)
        root = np.where(usable, 1 / np.sqrt(sigma**2 + (_MODEL_ERROR * model) ** 2), 0.0)
        target = np.where(usable, counts, 0.0) * root
        design = np.concatenate([model[:, None] * powers, slope[:, None]], axis=1) * root[:, None]
        coefficients, inverse = _robust_solutions(design, target, root > 0, enough)
        amplitude = coefficients[:, 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            correction = coefficients[:, -1] / amplitude
            error = np.sqrt(inverse[:, -1, -1]) / np.abs(amplitude)
        valid = enough & (amplitude > 0) & np.isfinite(correction) & np.isfinite(error)
        shift = np.where(valid, start + correction, np.nan)
        error = np.where(valid, error, np.inf)
        typical = np.nanmedian(shift[error < 0.5]) if np.any(error < 0.5) else 0.0
        start = np.where(
            valid & (error < 1), np.clip(shift, typical - _MAX_DEVIATION, typical + _MAX_DEVIATION), typical
        )
    return _combine(shift, error, np.asarray(u, dtype=np.float64), np.asarray(v, dtype=np.float64))


def _normalised_columns(usable: npt.NDArray[np.bool_]) -> Float:
    """Return -1 to 1 over the usable columns of each star (n, column)."""
    m = usable.shape[1]
    first, last = np.argmax(usable, axis=1), m - 1 - np.argmax(usable[:, ::-1], axis=1)
    half = np.maximum(last - first, 1) / 2
    return np.clip((np.arange(m) - first[:, None]) / half[:, None] - 1, -1, 1)


def _robust_solutions(
    design: Float, target: Float, usable: npt.NDArray[np.bool_], enough: npt.NDArray[np.bool_]
) -> tuple[Float, Float]:
    """Return coefficients and covariances of the stars, fitted with Huber weights and scaled by the residuals."""
    n, p, m = design.shape
    weight = np.ones((n, m))
    coefficients, inverse, scale = np.zeros((n, p)), np.zeros((n, p, p)), np.ones(n)
    for _ in range(3):
        weighted = design * weight[:, None]
        normal = weighted @ weighted.swapaxes(1, 2)
        normal = np.where(enough[:, None, None], normal, np.eye(p))
        normal += 1e-9 * np.eye(p) * np.diagonal(normal, axis1=1, axis2=2)[:, None, :]
        normal += 1e-300 * np.eye(p)
        inverse = invert_symmetric(normal)
        coefficients = (inverse @ (weighted @ (target * weight)[..., None]))[..., 0]
        residual = target - (design * coefficients[..., None]).sum(axis=1)
        scale = mad_scale(np.where(usable, residual, np.nan), axis=1, center=0.0, floor=1.0)
        weight = np.sqrt(huber_weights(residual / scale[:, None], 2.0))
    return coefficients, inverse * (scale**2)[:, None, None]


def _combine(shift: Float, error: Float, u: Float, v: Float) -> Shifts:
    """Combine the shift of each star with the smooth shift of the frame."""
    n = len(shift)
    measured = np.isfinite(shift) & np.isfinite(error)
    if not measured.any():
        return Shifts(shift, error, np.zeros(n), np.full(n, np.inf), np.zeros(n))
    plane = np.count_nonzero(measured & (error < 0.3)) >= _MIN_PLANE_STARS
    terms = np.stack([np.ones(n), u, v], axis=1) if plane else np.ones((n, 1))
    terms = np.where(np.isfinite(terms), terms, 0.0)
    scatter = _MIN_SCATTER
    for _ in range(3):
        variance = error**2 + scatter**2
        coefficients, weights = robust_linear_fit(terms, shift, variance)
        residual = shift - terms @ coefficients
        kept = measured & (weights > 0)
        # excess over the errors, of the better half of the stars
        precise = measured & (error <= np.median(error[measured]))
        excess = mad_scale(residual[precise], center=0.0) ** 2 - np.median(error[precise] ** 2)
        scatter = max(_MIN_SCATTER, math.sqrt(max(float(excess), 0.0))) if precise.sum() > 5 else scatter
    common = terms @ coefficients
    power = np.where(kept, 1 / (error**2 + scatter**2), 0.0)
    inverse = np.linalg.pinv((terms * power[:, None]).T @ terms)
    common_variance = np.einsum("ni,ij,nj->n", terms, inverse, terms) + scatter**2
    with np.errstate(divide="ignore", invalid="ignore"):
        own_weight = np.where(kept, 1 / error**2, 0.0)  # outliers have the shift of the frame
    combined = (np.where(kept, shift, 0.0) * own_weight + common / common_variance) / (own_weight + 1 / common_variance)
    return Shifts(shift, error, combined, np.sqrt(1 / (own_weight + 1 / common_variance)), common)
