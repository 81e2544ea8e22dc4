"""What noise pixels were to have, of variances that follow the photons which came.

A variance made of a pixel's own counts makes much of pixels that noise lowers and little of those that it raises:
whatever is fitted with such weights is too faint, and its sky too low, by about a count a pixel. What is fitted tells
how much light was expected, so what the noise added to the variance can be taken out of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.float32]

#: A pixel so far from what is fitted, in units of its noise, says nothing of how variances follow counts.
_FURTHEST = 5.0


def expected_variance(variance: Pixels, left: npt.NDArray[Any], fitted: npt.NDArray[Any]) -> Pixels:
    """Return the variance of pixels, had they held what is fitted to them.

    How far variances follow what is ``left`` is read from them, star by star, by least squares, beside how they follow
    what is fitted: not at all where they were made of an expectation, or are constant.

    Parameters
    ----------
    variance : float32 array (n, y, x)
        Of each pixel, inf where nothing is known.
    left : array (n, y, x)
        Of the pixels, after what is fitted was taken away.
    fitted : array (n, y, x)
        In the same unit.

    Returns
    -------
    float32 array (n, y, x)
        No less than the smallest of the variances given for a star.
    """
    n = len(variance)
    known = np.isfinite(variance) & (variance > 0)
    told = (known & (left**2 < _FURTHEST**2 * variance)).reshape(n, 1, -1)
    seen = np.where(told, variance.reshape(n, 1, -1), 1).astype(np.float64)
    columns = np.stack([np.ones_like(left), fitted, left], axis=1).reshape(n, 3, -1)
    design = np.where(told, columns / seen, 0)
    solved = np.linalg.pinv(design @ design.transpose(0, 2, 1)) @ design.sum(axis=2, keepdims=True)
    slope = np.maximum(solved[:, 2:], 0).astype(np.float32)
    least = np.where(known, variance, np.inf).min(axis=(1, 2), keepdims=True)
    return np.where(known, np.maximum(variance - slope * left, least), np.inf).astype(np.float32)
