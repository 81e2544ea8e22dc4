"""Masks of pixels: 8-neighbour dilation, connected components, hysteresis threshold, and recurrence by chance.

Two pixels are neighbours if they share an edge or a corner, everywhere in csstdask: a cosmic ray that runs diagonally
is one event.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_dilation, binary_propagation, label

from csstdask.numerics.probability import poisson_binomial

#: Structuring element of the 8-neighbourhood.
EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=int)

Mask = npt.NDArray[np.bool_]


def dilate(mask: npt.NDArray[Any], iterations: int = 1) -> Mask:
    """Return a mask grown by its 8-neighbourhood, `iterations` times.

    Examples
    --------
    >>> int(dilate(np.pad([[True]], 2)).sum()), int(dilate(np.pad([[True]], 2), 2).sum())
    (9, 25)
    """
    return np.asarray(binary_dilation(mask, EIGHT_NEIGHBOURS, iterations), dtype=bool)


def label_components(mask: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int32], int]:
    """Return the 8-connected components of a mask, numbered.

    Returns
    -------
    labels : int array (y, x)
        0 outside the mask, 1 to n inside, in row-major order of the first pixels.
    n : int
        Number of components.

    Examples
    --------
    >>> labels, n = label_components(np.array([[True, False, False], [False, True, False]]))
    >>> n, labels.tolist()
    (1, [[1, 0, 0], [0, 1, 0]])
    """
    labels, n = label(mask, EIGHT_NEIGHBOURS)
    return labels, int(n)


def hysteresis_threshold(seed: Mask, candidate: Mask) -> Mask:
    """Return the candidates that are 8-connected to a seed (Canny 1986, IEEE PAMI 8, 679).

    Parameters
    ----------
    seed : bool array (y, x)
        Pixels above the high threshold.
    candidate : bool array (y, x)
        Pixels above the low threshold; a seed that is not a candidate does not count.

    Examples
    --------
    >>> significance = np.array([[6.0, 4.0, 0.0, 4.0]])
    >>> hysteresis_threshold(significance > 5, significance > 3).tolist()
    [[True, True, False, False]]
    """
    return np.asarray(binary_propagation(seed & candidate, structure=EIGHT_NEIGHBOURS, mask=candidate), dtype=bool)


def min_recurrences(fractions: Sequence[float], false_fraction: float = 1e-4) -> int:
    """Return the number of exposures with a hit from which a pixel is unlikely to recur by chance.

    Independent exposures hit a pixel a Poisson-binomial number of times
    (`csstdask.numerics.probability.poisson_binomial`).

    Parameters
    ----------
    fractions : sequence of float
        Fraction of the pixels of each exposure that are hit.
    false_fraction : float
        Fraction of all pixels that may recur so often by chance.

    Returns
    -------
    int
        At least 2; one more than there are exposures if no number is certain enough.

    Examples
    --------
    >>> min_recurrences([0.01] * 6)
    3
    """
    at_least = np.cumsum(poisson_binomial(fractions)[::-1])[::-1]
    rare = np.flatnonzero(at_least < false_fraction)
    return max(2, int(rare[0])) if len(rare) else len(fractions) + 1
