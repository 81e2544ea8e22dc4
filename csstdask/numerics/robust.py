"""Robust location, scale and weights of residuals.

The scale of every median absolute deviation (MAD) in csstdask is that of `mad_scale`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]

NORMAL_MAD = 0.6744897501960817
"""Median of |z| for a standard normal z: sigma = MAD / this."""
HUBER_CUTOFF = 1.345
"""|z| from which Huber weights fall; 95 % efficient for normal errors."""
TUKEY_CUTOFF = 4.685
"""|z| at which Tukey weights reach 0; 95 % efficient for normal errors."""


def nan_median(values: npt.ArrayLike, axis: int | tuple[int, ...] | None = None, *, keepdims: bool = False) -> Float:
    """Return the median of all values that are not NaN; NaN without a warning if there are none."""
    values = np.asarray(values, dtype=np.float64)
    axes = tuple(range(values.ndim)) if axis is None else np.atleast_1d(np.asarray(axis)) % values.ndim
    last = np.moveaxis(values, tuple(axes), tuple(range(-len(axes), 0)))
    kept = last.shape[: values.ndim - len(axes)]
    ordered = np.sort(last.reshape(*kept, math.prod(last.shape[len(kept) :])), axis=-1)
    count = np.isfinite(ordered).sum(axis=-1)
    low, high = np.maximum(count - 1, 0) // 2, count // 2
    if ordered.shape[-1] == 0:
        middle = np.full(count.shape, np.nan)
    else:
        picked = [
            np.take_along_axis(ordered, np.minimum(k, ordered.shape[-1] - 1)[..., None], -1)[..., 0]
            for k in (low, high)
        ]
        middle = np.where(count > 0, (picked[0] + picked[1]) / 2, np.nan)
    return np.asarray(np.expand_dims(middle, tuple(axes)) if keepdims else middle)


def mad_scale(
    values: npt.ArrayLike, axis: int | None = None, *, center: npt.ArrayLike | None = None, floor: float = 0.0
) -> Float:
    """Return the standard deviation estimated from the median absolute deviation, MAD / 0.6745.

    Parameters
    ----------
    values : array-like
        Values; NaN are ignored.
    axis : int, optional
        Axis to reduce; by default all.
    center : array-like, optional
        Centre of the deviations, which broadcasts with `values`; by default the median.
    floor : float
        Smallest scale, so that a scale of 0, when most residuals are equal, does not reject all others. Also the result
        without any value.

    Examples
    --------
    >>> float(mad_scale([1.0, 2.0, 3.0, 4.0, 100.0]).round(4))
    1.4826
    """
    values = np.asarray(values, dtype=np.float64)
    middle = nan_median(values, axis, keepdims=True) if center is None else np.asarray(center)
    scale = nan_median(np.abs(values - middle), axis) / NORMAL_MAD
    return np.maximum(np.nan_to_num(scale, nan=floor), floor)


def huber_weights(z: npt.ArrayLike, cutoff: npt.ArrayLike = HUBER_CUTOFF) -> Float:
    """Return Huber weights: 1 for abs(z) <= cutoff, cutoff / abs(z) above."""
    size = np.abs(np.asarray(z, dtype=np.float64))
    return np.asarray(cutoff) / np.maximum(size, cutoff)


def tukey_weights(z: npt.ArrayLike, cutoff: npt.ArrayLike = TUKEY_CUTOFF) -> Float:
    """Return Tukey's biweight: (1 - (z / cutoff)^2)^2, 0 above the cutoff."""
    t = np.asarray(z, dtype=np.float64) / np.asarray(cutoff)
    return np.where(np.abs(t) < 1, (1 - t * t) ** 2, 0.0)


def min_kept_points(n_points: npt.ArrayLike, n_parameters: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the number of points a robust fit must keep: half of all, and three more than its parameters.

    Examples
    --------
    >>> int(min_kept_points(400, 6)), int(min_kept_points(10, 6)), int(min_kept_points(5, 6))
    (200, 9, 5)
    """
    n = np.asarray(n_points, dtype=np.int64)
    return np.minimum(np.maximum((n + 1) // 2, np.asarray(n_parameters, dtype=np.int64) + 3), n)


def robust_linear_fit(
    terms: npt.ArrayLike, values: npt.ArrayLike, variance: npt.ArrayLike, *, floor: float = 1.0, n_steps: int = 8
) -> tuple[Float, Float]:
    """Fit a linear model by iteratively reweighted least squares: Huber weights, then Tukey's.

    Parameters
    ----------
    terms : array-like (point, term)
        Design matrix.
    values, variance : array-like (point,)
        Measurements and their variances; points that are not finite or whose variance is not positive are ignored.
    floor : float
        Smallest scale of the residuals, in units of their errors.
    n_steps : int
        Number of reweightings.

    Returns
    -------
    coefficients : float64 array (term,)
        Coefficients; 0 without a usable point.
    weights : float64 array (point,)
        Final robust weights; 0 for ignored points. At least half of the points, and three more than the terms, keep a
        positive weight.
    """
    terms, values, variance = (np.asarray(one, dtype=np.float64) for one in (terms, values, variance))
    usable = np.isfinite(values) & np.isfinite(variance) & (variance > 0) & np.isfinite(terms).all(axis=1)
    weights = np.zeros(len(values))
    weights[usable] = 1.0
    coefficients: Float = np.zeros(terms.shape[1])
    if not usable.any():
        return coefficients, weights
    design, target, sigma = terms[usable], values[usable], np.sqrt(variance[usable])
    kept = np.ones(len(target))
    fewest = int(min_kept_points(len(target), terms.shape[1]))
    for step in range(n_steps + 1):
        root = np.sqrt(kept) / sigma
        coefficients = np.asarray(
            np.linalg.lstsq(design * root[:, None], target * root, rcond=None)[0], dtype=np.float64
        )
        if step == n_steps:
            break
        z = (target - design @ coefficients) / sigma
        z = np.abs(z) / mad_scale(z, center=0.0, floor=floor)
        reach = 1.1 * np.partition(z, fewest - 1)[fewest - 1]
        kept = huber_weights(z) if step < n_steps // 2 else tukey_weights(z, max(TUKEY_CUTOFF, float(reach)))
    weights[usable] = kept
    return coefficients, weights
