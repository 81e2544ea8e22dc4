"""Copy windows along traces out of a frame, add the light of stars to a frame, and smooth counts: compiled loops."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_SMOOTHING_COLUMNS = 4
"""Columns on each side over which counts are smoothed for their variance."""


@njit(cache=True, nogil=True)
def add_windows(frame: Any, first_column: Any, first_row: Any, counts: Any, profile: Any) -> None:  # pragma: no cover
    """Add counts times profile of n stars to a frame.

    Parameters
    ----------
    frame : float32 array (y, x)
        Changed in place [e-].
    first_column : int array (n,)
        Column of the frame where each window starts.
    first_row : int array (n, column)
        Row of the frame where each column of a window starts.
    counts : float64 array (n, column)
        Only positive counts are added [e-].
    profile : float32 array (n, column, row)
        Share of the counts in each row.
    """
    ny, nx = frame.shape
    for i in range(counts.shape[0]):
        for j in range(counts.shape[1]):
            x = first_column[i] + j
            if x < 0 or x >= nx or not counts[i, j] > 0:
                continue
            for k in range(profile.shape[2]):
                y = first_row[i, j] + k
                if 0 <= y < ny:
                    frame[y, x] += counts[i, j] * profile[i, j, k]


@njit(cache=True, nogil=True)
def copy_windows(frame: Any, first_column: Any, first_row: Any, fill: float, out: Any) -> None:  # pragma: no cover
    """Copy windows from a frame into `out` (n, column, row); pixels off the frame get the value `fill`."""
    ny, nx = frame.shape
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            x = first_column[i] + j
            for k in range(out.shape[2]):
                y = first_row[i, j] + k
                out[i, j, k] = frame[y, x] if 0 <= x < nx and 0 <= y < ny else fill


@njit(cache=True, nogil=True)
def smooth_columns(counts: Any, out: Any) -> None:  # pragma: no cover
    """Write the running mean of the running median of the finite counts, not negative."""
    n = len(counts)
    medians = np.empty(n)
    buffer = np.empty(2 * _SMOOTHING_COLUMNS + 1)
    for j in range(n):
        m = 0
        for i in range(max(0, j - _SMOOTHING_COLUMNS), min(n, j + _SMOOTHING_COLUMNS + 1)):
            if np.isfinite(counts[i]):
                buffer[m] = counts[i]
                m += 1
        medians[j] = np.median(buffer[:m]) if m else 0.0
    for j in range(n):
        out[j] = max(0.0, medians[max(0, j - 1) : min(n, j + 2)].mean())
