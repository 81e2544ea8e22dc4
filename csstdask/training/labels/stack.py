"""Median of a stack of exposures."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: Variance of the median of many Gaussian values over that of their mean.
MEDIAN_VARIANCE = np.pi / 2


def nan_median(stack: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the median over the first axis without NaN, and NaN without a warning where all are NaN.

    Parameters
    ----------
    stack : float32 array (exposure, ...)
        Stack, sorted in place: NumPy's nanmedian takes several times as long.

    Examples
    --------
    >>> nan_median(np.array([[1, np.nan], [5, np.nan], [np.nan, np.nan]], dtype=np.float32))
    array([ 3., nan], dtype=float32)
    """
    stack.sort(axis=0)  # NaN are last
    count = np.isfinite(stack).sum(axis=0)
    lower = np.take_along_axis(stack, np.maximum((count - 1) // 2, 0)[None], axis=0)[0]
    upper = np.take_along_axis(stack, np.minimum(count // 2, len(stack) - 1)[None], axis=0)[0]
    return np.where(count > 0, (lower + upper) / 2, np.float32(np.nan)).astype(np.float32)
