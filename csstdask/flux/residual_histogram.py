"""Histograms of residuals, from which medians follow: unlike medians, they add exactly over groups of stars.

Bins of z = |residual| / quoted error are 16 for each factor of two of z + 1/2: the exponent of a float32 and the first
four bits of its fraction are the number of the bin.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]

N_BINS = 320
"""Number of bins: 20 factors of two, z up to 2^19."""
BIN_SHIFT = 19
"""Bits of a float32 that lie below the number of the bin."""
FIRST_BIN = 126 << 4
"""Number of the bin of z = 0, where z + 1/2 = 2^-1."""
MAX_RESIDUAL = 5e5
"""Residuals above this are counted as this [quoted errors]."""


def bin_edges() -> Float:
    """Return the edges of the bins in quoted errors, float64 array (N_BINS + 1,).

    Examples
    --------
    >>> bin_edges()[:3].tolist(), len(bin_edges())
    ([0.0, 0.03125, 0.0625], 321)
    """
    bits = (np.arange(FIRST_BIN, FIRST_BIN + N_BINS + 1) << BIN_SHIFT).astype(np.int32)
    return bits.view(np.float32).astype(np.float64) - 0.5


def histogram_quantile(histogram: npt.ArrayLike, rank: npt.ArrayLike) -> Float:
    """Return the residual below which a number of entries lies, linearly interpolated within its bin.

    Parameters
    ----------
    histogram : array-like (..., N_BINS)
        Counts.
    rank : array-like (...)
        Number of entries below the quantile.

    Returns
    -------
    float64 array (...)
        Residuals [quoted errors].

    Examples
    --------
    >>> counts = np.zeros(N_BINS, dtype=int)
    >>> counts[:2] = 10
    >>> float(histogram_quantile(counts, 15))
    0.046875
    """
    histogram = np.asarray(histogram)
    cumulative = np.cumsum(histogram, axis=-1)
    wanted = np.asarray(np.minimum(np.asarray(rank, dtype=np.float64), cumulative[..., -1]))
    index = np.minimum((cumulative < wanted[..., None]).sum(axis=-1), N_BINS - 1)
    inside = np.take_along_axis(histogram, index[..., None], -1)[..., 0]
    before = np.take_along_axis(cumulative, index[..., None], -1)[..., 0] - inside
    edges = bin_edges()
    share = np.where(inside > 0, (wanted - before) / np.maximum(inside, 1), 0.0)
    return edges[index] + share * (edges[index + 1] - edges[index])
