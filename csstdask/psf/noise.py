"""What noise pixels were to have, of variances that follow the photons which came.

A variance made of a pixel's own counts makes much of pixels that noise lowers and little of those that it raises: with
such weights a sky comes out about one photoelectron a pixel too low, and the flux of a faint star on it too high. What
is fitted tells how much light was expected, so what the noise added to the variance can be taken out of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.float32]

#: A pixel so far from what is fitted, in units of its noise, says nothing of how variances follow counts.
_FURTHEST = 5.0
#: Pixels of a star that tell it at least.
_FEWEST = 20
#: A direction that is told so little of, beside the others, is not told at all.
_UNTOLD = 1e-10


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
    n, pixels = len(variance), variance.shape[1] * variance.shape[2]
    known = np.isfinite(variance) & (variance > 0)
    told = (known & (np.abs(left) < _FURTHEST * np.sqrt(variance))).reshape(n, 1, pixels)
    seen = np.where(told, variance.reshape(n, 1, pixels), 1).astype(np.float64)
    columns = np.stack([np.ones_like(seen[:, 0]), fitted.reshape(n, pixels), left.reshape(n, pixels)], axis=1)
    design = np.where(told, columns / seen, 0)
    norms = np.maximum(np.linalg.norm(design, axis=2, keepdims=True), np.finfo(float).tiny)
    design /= norms
    gram = design @ design.transpose(0, 2, 1)
    solved = np.linalg.pinv(gram, _UNTOLD, hermitian=True) @ design.sum(axis=2, keepdims=True) / norms
    enough = told.sum(axis=2, keepdims=True) >= _FEWEST
    slope = np.where(enough, np.maximum(solved[:, 2:], 0), 0)
    least = np.where(known, variance, np.inf).min(axis=(1, 2), keepdims=True)
    return np.where(known, np.maximum(variance - slope * left, least), np.inf).astype(np.float32)
