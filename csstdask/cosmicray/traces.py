"""Rejection of false detections on spectra of slitless frames, which are narrow but smooth along the row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csstdask.core.warnings import suppress_warnings

HALF_WINDOW = 4
"""Number of neighbours on each side along the row whose median estimates the spectrum at a pixel."""
TRACE_SIGMA = 2.0
"""Smallest median of a pixel on a trace [sigma of the sky]."""
EXCESS_SIGMA = 3.0
"""Smallest height of a cosmic ray above that median [sigma of the pixel]."""
CONTINUED = 0.5
"""Smallest flux at an end of a long run of flagged pixels that belongs to a spectrum, relative to the run's flux."""

Float = npt.NDArray[np.float64]


def release_traces(
    height: npt.NDArray[np.floating],
    error: npt.NDArray[np.floating],
    noise: npt.NDArray[np.floating],
    hit: npt.NDArray[np.bool_],
    mask: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:
    """Return detections without those on smooth spectra.

    Spectra run along x and change little over a few columns. A flagged pixel on a trace only stays flagged if it is
    significantly above the median of its unflagged neighbours in the row. In runs of flagged pixels that are too long
    for such neighbours the flagged ones are used, provided that the light continues at an end of the run: the light of
    a cosmic ray along the row does not.

    Parameters
    ----------
    height : array (y, x)
        Height above the sky [e-].
    error : array (y, x)
        1 sigma of a pixel [e-].
    noise : array (y, x)
        1 sigma of the sky [e-].
    hit : bool array (y, x)
        Detections.
    mask : bool array (y, x)
        Pixels to ignore.

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
    level = _median(height, ~(hit | mask), rows, columns[:, None] + offsets)
    inside_run = np.isnan(level)
    if inside_run.any():
        level[inside_run] = _level_in_runs(height, hit, mask, rows[inside_run], columns[inside_run])
    on_trace = level > TRACE_SIGMA * noise[rows, columns]
    released = on_trace & (height[rows, columns] - level < EXCESS_SIGMA * error[rows, columns])
    kept = hit.copy()
    kept[rows[released], columns[released]] = False
    return kept


def _median(
    height: npt.NDArray[np.floating],
    usable: npt.NDArray[np.bool_],
    rows: npt.NDArray[np.intp],
    around: npt.NDArray[np.intp],
) -> Float:
    """Return the median over columns (n, k) of the usable pixels of rows (n,); NaN if there are none."""
    inside = (around >= 0) & (around < height.shape[1])
    around = np.clip(around, 0, height.shape[1] - 1)
    chosen = np.where(inside & usable[rows[:, None], around], height[rows[:, None], around], np.nan)
    with suppress_warnings():
        return np.asarray(np.nanmedian(chosen, axis=1), dtype=np.float64)


def _level_in_runs(
    height: npt.NDArray[np.floating],
    hit: npt.NDArray[np.bool_],
    mask: npt.NDArray[np.bool_],
    rows: npt.NDArray[np.intp],
    columns: npt.NDArray[np.intp],
) -> Float:
    """Return the median around pixels in long runs, flagged ones included; NaN if no light continues at an end."""
    n = hit.shape[1]
    blocked = np.pad(hit | mask, ((0, 0), (1, 1)))
    position = np.arange(n + 2)
    before = np.maximum.accumulate(np.where(blocked, -1, position), axis=1)[rows, columns + 1] - 1
    after = np.minimum.accumulate(np.where(blocked, n + 2, position)[:, ::-1], axis=1)[:, ::-1][rows, columns + 1] - 1
    free, reach = ~(hit | mask), np.arange(HALF_WINDOW)
    ends = np.fmax(
        _median(height, free, rows, before[:, None] - reach), _median(height, free, rows, after[:, None] + reach)
    )
    local = _median(height, ~mask, rows, columns[:, None] + np.arange(-HALF_WINDOW, HALF_WINDOW + 1))
    with np.errstate(invalid="ignore"):
        return np.where(ends > CONTINUED * local, local, np.nan)
