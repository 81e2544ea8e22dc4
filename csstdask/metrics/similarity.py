"""Measure the structural similarity of two images or curves.

The definition is that of Wang et al. (2004, IEEE Trans. Image Process. 13, 600), with uniform windows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import uniform_filter

#: The constants K1 and K2 of the paper: fractions of the span that stabilise the ratios.
_K1, _K2 = 0.01, 0.03


def structural_similarity(
    first: npt.NDArray[np.floating[Any]], second: npt.NDArray[np.floating[Any]], *, span: float, window: int = 7
) -> float:
    """Return the structural similarity of two arrays.

    Parameters
    ----------
    first, second : float arrays of one shape
        Arrays with any number of axes, each at least `window` long.
    span : float
        Difference of the highest and the lowest possible value.
    window : int
        Side of the uniform window [element], odd. Only windows inside the arrays are averaged.

    Returns
    -------
    float
        1 for equal arrays, smaller otherwise.

    Raises
    ------
    ValueError
        If the shapes differ, the window is even or larger than an axis, or the span is not positive.

    Examples
    --------
    >>> image = np.arange(64.0).reshape(8, 8)
    >>> structural_similarity(image, image, span=64.0)
    1.0
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
    c1, c2 = (_K1 * span) ** 2, (_K2 * span) ** 2
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    denominator = (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    return float(np.mean(numerator / denominator))
