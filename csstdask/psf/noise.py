"""Remove from pixel variances the part that follows the noise of the pixel itself.

A variance computed from a pixel's own counts is too small where noise lowers the pixel and too large where it raises
it. With such weights a sky is fitted about one photoelectron per pixel too low, and the flux of a faint star on it too
high. The fitted light is the expected number of counts, so the contribution of the noise can be removed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.float32]

#: Pixels that deviate by more than this from the fit do not show how variances follow counts [sigma].
_MAX_PULL = 5.0
#: Smallest number of pixels from which the dependence on the counts of a star is estimated.
_MIN_PIXELS = 20
#: Relative eigenvalue below which a direction of the least-squares problem is unconstrained.
_MIN_EIGENVALUE = 1e-10


def expected_variance(variance: Pixels, residual: npt.NDArray[Any], fitted: npt.NDArray[Any]) -> Pixels:
    """Return the variance that pixels would have at their fitted values.

    The slope of variance with residual is estimated for each star by least squares, together with its slope with the
    fitted value. It is 0 for variances that are constant or were computed from an expectation.

    Parameters
    ----------
    variance : float32 array (n, y, x)
        Given pixel variance, inf where unknown.
    residual : array (n, y, x)
        Pixels minus fitted values.
    fitted : array (n, y, x)
        Fitted values, sky included, in the unit of the residuals.

    Returns
    -------
    float32 array (n, y, x)
        Not smaller than the smallest given variance of a star; inf where unknown.

    Examples
    --------
    >>> residual = np.random.default_rng(1).normal(0, 10, (1, 24, 24))
    >>> of_counts = (100 + residual).astype(np.float32)  # a flat sky of 100 e-
    >>> bool(expected_variance(of_counts, residual, np.full_like(residual, 100)).std() < 0.1 * of_counts.std())
    True
    """
    n, pixels = len(variance), variance.shape[1] * variance.shape[2]
    known = np.isfinite(variance) & (variance > 0)
    use = (known & (np.abs(residual) < _MAX_PULL * np.sqrt(variance))).reshape(n, 1, pixels)
    values = np.where(use, variance.reshape(n, 1, pixels), 1).astype(np.float64)
    columns = [np.ones_like(values[:, 0]), fitted.reshape(n, pixels), residual.reshape(n, pixels)]
    design = np.where(use, np.stack(columns, axis=1) / values, 0)
    norms = np.maximum(np.linalg.norm(design, axis=2, keepdims=True), np.finfo(float).tiny)
    design /= norms
    gram = design @ design.transpose(0, 2, 1)
    inverse = np.linalg.pinv(gram, _MIN_EIGENVALUE, hermitian=True)
    solution = inverse @ design.sum(axis=2, keepdims=True) / norms
    enough = use.sum(axis=2, keepdims=True) >= _MIN_PIXELS
    slope = np.where(enough, np.maximum(solution[:, 2:], 0), 0)
    smallest = np.where(known, variance, np.inf).min(axis=(1, 2), keepdims=True)
    return np.where(known, np.maximum(variance - slope * residual, smallest), np.inf).astype(np.float32)
