"""What stands above a prediction: seeds and what they grow into, and repeats that are no accident."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_propagation

#: Structuring element that joins pixels which touch at a corner.
EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=int)

Mask = npt.NDArray[np.bool_]


def hysteresis_threshold(seed: Mask, candidate: Mask) -> Mask:
    """Return the seeds and all candidates that hang together with one, corners included."""
    return np.asarray(binary_propagation(seed & candidate, structure=EIGHT_NEIGHBOURS, mask=candidate), dtype=bool)


def min_recurrences(shares: Sequence[float], accidents: float = 1e-4) -> int:
    """Return in how many exposures a pixel must be hit before it is no accident.

    Parameters
    ----------
    shares : sequence of float
        Of each exposure's pixels that are hit, anywhere.
    accidents : float
        Share of pixels that may be hit so often by chance.

    Returns
    -------
    int
        From 2 up; one more than there are exposures where no number is certain enough.
    """
    chance = np.ones(1)  # of each number of hits, exposure after exposure
    for share in shares:
        chance = np.convolve(chance, [1 - share, share])
    at_least = np.cumsum(chance[::-1])[::-1]
    rare = np.flatnonzero(at_least < accidents)
    return max(2, int(rare[0])) if len(rare) else len(shares) + 1
