"""Shifts of spectra along the dispersion, by comparison with predicted spectra.

Counts c(X) = (a_0 + a_1 t + a_2 t^2 + a_3 t^3) m(X - shift) with the predicted counts m; t runs from -1 to 1 over the
usable columns. Linearised, the shift is one more coefficient, of -a_0 dm/dX. Its error depends on the star: smooth
spectra hardly constrain it. Each is therefore combined with the smooth shift of the frame, by their variances.
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
_LEAST_COLUMNS = 30
"""Columns of a star from which its shift is measured."""
_STEPS = 3
_MODEL_ERROR = 0.01
"""Relative error of predicted spectra after the polynomial."""
_LEAST_SCATTER = 0.005
"""Scatter of true shifts about the frame's that is always allowed for [pixel]."""
_WIDEST = 3.0
"""Largest shift of a star from the frame's [pixel]."""
_PLANE_STARS = 30
"""Stars from which the shift of a frame is a plane over the field rather than a constant."""


@dataclass(frozen=True)
class Shifts:
    """Shifts along x of n spectra."""

    measured: Float
    """(n,) Of each star alone [pixel]; NaN = not measurable."""
    measured_sigma: Float
    """(n,) 1 sigma; inf = not measurable."""
    shift: Float
    """(n,) Combined with the frame's [pixel]."""
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
        Takes shifts (n,) [pixel], returns predicted counts (n, column) of spectra moved by them.
    u, v : array-like (n,)
        Positions, -1 to 1 across the frame.
    """
    counts, sigma = np.asarray(counts, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    n = len(counts)
    shift, error = np.zeros(n), np.full(n, np.inf)
    start = np.zeros(n)
    for _ in range(_STEPS):
        model = predicted(start)
        slope = (predicted(start + 0.25) - predicted(start - 0.25)) / 0.5
        usable = np.isfinite(counts) & np.isfinite(sigma) & np.isfinite(model) & np.isfinite(slope) & (sigma > 0)
        usable &= model > 0
        enough = usable.sum(axis=1) >= _LEAST_COLUMNS
        powers = _unit_columns(usable)[:, None] ** np.arange(N_POLYNOMIAL)[:, None]
        model, slope = np.where(usable, model, 0.0), np.where(usable, slope, 0.0)
        root = np.where(usable, 1 / np.sqrt(sigma**2 + (_MODEL_ERROR * model) ** 2), 0.0)
        target = np.where(usable, counts, 0.0) * root
        design = np.concatenate([model[:, None] * powers, slope[:, None]], axis=1) * root[:, None]
        coefficients, inverse = _robust_solutions(design, target, root > 0, enough)
        amplitude = coefficients[:, 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            moved = coefficients[:, -1] / amplitude
            error = np.sqrt(inverse[:, -1, -1]) / np.abs(amplitude)
        fine = enough & (amplitude > 0) & np.isfinite(moved) & np.isfinite(error)
        shift = np.where(fine, start + moved, np.nan)
        error = np.where(fine, error, np.inf)
        usual = np.nanmedian(shift[error < 0.5]) if np.any(error < 0.5) else 0.0
        start = np.where(fine & (error < 1), np.clip(shift, usual - _WIDEST, usual + _WIDEST), usual)
    return _combine(shift, error, np.asarray(u, dtype=np.float64), np.asarray(v, dtype=np.float64))


def _unit_columns(usable: npt.NDArray[np.bool_]) -> Float:
    """Return -1 to 1 over the usable columns of each star (n, column)."""
    m = usable.shape[1]
    first, last = np.argmax(usable, axis=1), m - 1 - np.argmax(usable[:, ::-1], axis=1)
    half = np.maximum(last - first, 1) / 2
    return np.clip((np.arange(m) - first[:, None]) / half[:, None] - 1, -1, 1)


def _robust_solutions(
    design: Float, target: Float, usable: npt.NDArray[np.bool_], enough: npt.NDArray[np.bool_]
) -> tuple[Float, Float]:
    """Return coefficients and covariances of the stars, with Huber weights; errors grow with the residuals."""
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
        rest = target - (design * coefficients[..., None]).sum(axis=1)
        scale = mad_scale(np.where(usable, rest, np.nan), axis=1, center=0.0, floor=1.0)
        weight = np.sqrt(huber_weights(rest / scale[:, None], 2.0))
    return coefficients, inverse * (scale**2)[:, None, None]


def _combine(shift: Float, error: Float, u: Float, v: Float) -> Shifts:
    """Combine each star's shift with the smooth one of the frame."""
    n = len(shift)
    measured = np.isfinite(shift) & np.isfinite(error)
    if not measured.any():
        return Shifts(shift, error, np.zeros(n), np.full(n, np.inf), np.zeros(n))
    plane = np.count_nonzero(measured & (error < 0.3)) >= _PLANE_STARS
    terms = np.stack([np.ones(n), u, v], axis=1) if plane else np.ones((n, 1))
    terms = np.where(np.isfinite(terms), terms, 0.0)
    scatter = _LEAST_SCATTER
    for _ in range(3):
        variance = error**2 + scatter**2
        coefficients, weights = robust_linear_fit(terms, shift, variance)
        rest = shift - terms @ coefficients
        kept = measured & (weights > 0)
        # excess over the errors, of the better half of the stars
        best = measured & (error <= np.median(error[measured]))
        excess = mad_scale(rest[best], center=0.0) ** 2 - np.median(error[best] ** 2)
        scatter = max(_LEAST_SCATTER, math.sqrt(max(float(excess), 0.0))) if best.sum() > 5 else scatter
    common = terms @ coefficients
    power = np.where(kept, 1 / (error**2 + scatter**2), 0.0)
    inverse = np.linalg.pinv((terms * power[:, None]).T @ terms)
    of_common = np.einsum("ni,ij,nj->n", terms, inverse, terms) + scatter**2
    with np.errstate(divide="ignore", invalid="ignore"):
        alone = np.where(kept, 1 / error**2, 0.0)  # outliers have the shift of the frame
    joint = (np.where(kept, shift, 0.0) * alone + common / of_common) / (alone + 1 / of_common)
    return Shifts(shift, error, joint, np.sqrt(1 / (alone + 1 / of_common)), common)
