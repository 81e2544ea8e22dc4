"""Structural similarity of two images, or of two curves.

After Wang et al. (2004, IEEE Trans. Image Process. 13, 600), with uniform windows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import uniform_filter

#: Shares of the span below which a mean and a deviation count for nothing.
_MEAN_SHARE, _DEVIATION_SHARE = 0.01, 0.03


def structural_similarity(
    first: npt.NDArray[np.floating[Any]], second: npt.NDArray[np.floating[Any]], *, span: float, window: int = 7
) -> float:
    """Return the structural similarity of two arrays.

    Parameters
    ----------
    first, second : float arrays of one shape
        With any number of axes, each of at least `window`.
    span : float
        Between the lowest and the highest value that is possible.
    window : int
        Odd; sides of the uniform window [element]. Only windows that lie inside count.

    Returns
    -------
    float
        1 for equal arrays.

    Raises
    ------
    ValueError
        If shapes differ, the window is even or larger than an axis, or the span is not positive.
    """
    a, b = (np.asarray(one, dtype=np.float64) for one in (first, second))
    if a.shape != b.shape or not a.ndim:
        raise ValueError(f"structural_similarity: found shapes {a.shape} and {b.shape}; wanted two of one shape")
    if window % 2 == 0 or window > min(a.shape):
        raise ValueError(f"window: found {window}; wanted an odd number, at most {min(a.shape)}")
    if not span > 0:
        raise ValueError(f"span: found {span}; wanted a positive number")
    inside = tuple(slice(window // 2, length - window // 2) for length in a.shape)
    unbiased = window**a.ndim / (window**a.ndim - 1)

    def mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(uniform_filter(values, window)[inside])

    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = unbiased * (mean(a * a) - mean_a**2), unbiased * (mean(b * b) - mean_b**2)
    covariance = unbiased * (mean(a * b) - mean_a * mean_b)
    light, spread = (_MEAN_SHARE * span) ** 2, (_DEVIATION_SHARE * span) ** 2
    alike = (2 * mean_a * mean_b + light) * (2 * covariance + spread)
    return float(np.mean(alike / ((mean_a**2 + mean_b**2 + light) * (variance_a + variance_b + spread))))
