"""Spectra of slitless frames: bright and narrow as cosmic rays are, but smooth along the row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

HALF_WINDOW = 4
"""Neighbours to each side along the row whose median is what a spectrum holds at a pixel."""
TRACE_SIGMA = 2.0
"""A pixel is on a trace where that median is above the sky by this many sigma of the sky."""
EXCESS_SIGMA = 3.0
"""A cosmic ray on a trace stands above that median by this many sigma of the pixel."""


def release_traces(
    height: npt.NDArray[np.floating],
    error: npt.NDArray[np.floating],
    noise: npt.NDArray[np.floating],
    hit: npt.NDArray[np.bool_],
    mask: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:
    """Return detections without those that are pixels of spectra.

    Spectra run along x, and change little over a few columns. A flagged pixel on a trace stays flagged only where it
    stands above the median of its neighbours in the row.

    Parameters
    ----------
    height : array (y, x)
        Above the sky [e-].
    error : array (y, x)
        1 sigma of a pixel [e-].
    noise : array (y, x)
        1 sigma of the sky [e-].
    hit : bool array (y, x)
        Detections.
    mask : bool array (y, x)
        Pixels that take no part.

    Returns
    -------
    bool array (y, x)

    Examples
    --------
    >>> height = np.zeros((3, 20)); height[1] = 100.0; height[1, 15] = 300.0
    >>> hit = np.zeros((3, 20), bool); hit[1, [5, 15]] = True
    >>> error, mask = np.full((3, 20), 10.0), np.zeros((3, 20), bool)
    >>> release_traces(height, error, error, hit, mask)[1].nonzero()[0].tolist()
    [15]
    """
    rows, columns = np.nonzero(hit)
    if not len(rows):
        return hit
    offsets = np.r_[-HALF_WINDOW:0, 1 : HALF_WINDOW + 1]
    around = columns[:, None] + offsets
    inside = (around >= 0) & (around < hit.shape[1])
    around = np.clip(around, 0, hit.shape[1] - 1)
    usable = inside & ~hit[rows[:, None], around] & ~mask[rows[:, None], around]
    known = usable.any(axis=1)
    rows, columns, around, usable = rows[known], columns[known], around[known], usable[known]
    level = np.nanmedian(np.where(usable, height[rows[:, None], around], np.nan), axis=1)
    on_trace = level > TRACE_SIGMA * noise[rows, columns]
    excess = height[rows, columns] - level
    released = on_trace & (excess < EXCESS_SIGMA * error[rows, columns])
    kept = hit.copy()
    kept[rows[released], columns[released]] = False
    return kept
