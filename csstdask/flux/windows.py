"""Windows of pixels along the traces of stars, and the profile in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError
from csstdask.flux.profile import CrossProfile
from csstdask.flux.traces import Traces
from csstdask.flux.window_kernels import copy_windows

Float = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Int = npt.NDArray[np.int64]

HALF_ROWS = 12
"""Rows of a window on each side of the trace."""


@dataclass(frozen=True)
class Frame:
    """One frame in the layout of the kernels: native byte order, contiguous."""

    data: Single
    """(y, x) Electrons above the sky."""
    error: Single
    """(y, x) 1 sigma [e-]."""
    mask: Bool
    """(y, x) True = unusable."""


@dataclass(frozen=True)
class Windows:
    """Pixels along the traces of n stars."""

    data: Single
    """(n, column, row) Electrons above the sky; 0 where unusable."""
    variance: Single
    """(n, column, row) Squared errors [e-^2]; 1 where unusable."""
    usable: Bool
    """(n, column, row)"""
    first_row: Int
    """(n, column) Row of the frame that row 0 of the window is."""

    def take(self, rows: slice | Int) -> Windows:
        """Select stars by slice or index."""
        return Windows(self.data[rows], self.variance[rows], self.usable[rows], self.first_row[rows])


@dataclass(frozen=True)
class WindowProfile:
    """The profile across the trace in the windows of n stars."""

    distance: Float
    """(n, column) Distance of row 0 of the windows from the trace [pixel]."""
    pixels: Single
    """(n, column, row) Share of a column's light in each pixel."""

    def take(self, rows: slice | Int) -> WindowProfile:
        """Select stars by slice or index."""
        return WindowProfile(self.distance[rows], self.pixels[rows])

    @property
    def row_distance(self) -> Float:
        """(n, column, row) Distance of every row from the trace [pixel]."""
        return np.asarray(self.distance[..., None] + np.arange(self.pixels.shape[2]))


def check_frame(data: npt.ArrayLike, error: npt.ArrayLike, mask: npt.ArrayLike | None) -> Frame:
    """Return a frame in the layout of the kernels.

    Raises
    ------
    InputError
        If shapes differ.
    """
    image = np.ascontiguousarray(data, dtype=np.float32)
    if image.ndim != 2:
        raise InputError("data", f"{image.ndim} dimensions", "a frame (y, x)")
    sigma = np.ascontiguousarray(error, dtype=np.float32)
    bad = np.zeros(image.shape, dtype=bool) if mask is None else np.ascontiguousarray(mask, dtype=bool)
    for name, one in (("error", sigma), ("mask", bad)):
        if one.shape != image.shape:
            raise InputError(name, f"shape {one.shape}", f"that of the frame, {image.shape}")
    return Frame(image, sigma, bad)


def cut_windows(frame: Frame, traces: Traces) -> Windows:
    """Copy the pixels along some traces out of a frame."""
    first_row = first_rows(traces)
    n, m = traces.column.shape
    size = (n, m, 2 * HALF_ROWS + 1)
    data, sigma, bad = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, bool)
    column = np.ascontiguousarray(traces.column[:, 0])
    for source, out, fill in ((frame.data, data, 0.0), (frame.error, sigma, -1.0), (frame.mask, bad, 1.0)):
        copy_windows(source, column, first_row, fill, out)
    usable = ~bad & np.isfinite(data) & np.isfinite(sigma) & (sigma > 0)
    data[~usable] = 0.0
    sigma[~usable] = 1.0
    return Windows(data, sigma * sigma, usable, first_row)


def first_rows(traces: Traces) -> Int:
    """Return the first row of every column of the windows; a fitted offset of the traces does not move them."""
    return np.floor(traces.row + 0.5).astype(np.int64) - HALF_ROWS


def window_profile(traces: Traces, profile: CrossProfile, offset: Float) -> WindowProfile:
    """Return the profile in the windows of stars whose traces lie `offset` (n,) [pixel] above their nominal rows."""
    distance = first_rows(traces) - traces.row - offset[:, None]
    return WindowProfile(distance, profile.pixels(-distance, traces.wavelength, 2 * HALF_ROWS + 1))
