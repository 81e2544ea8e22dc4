"""Pixels round the traces of stars, and the profile in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError
from csstdask.flux.extraction_kernels import cut
from csstdask.flux.profile import CrossProfile
from csstdask.flux.traces import Traces

Float = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Int = npt.NDArray[np.int64]

HALF_ROWS = 12
"""Rows of a window on each side of the trace."""


@dataclass(frozen=True)
class Frame:
    """A frame as kernels take it: native, contiguous."""

    height: Single
    error: Single
    mask: Bool


@dataclass(frozen=True)
class Windows:
    """Pixels round the traces of some stars (star, column, row)."""

    data: Single
    squared: Single
    usable: Bool
    first_row: Int


@dataclass(frozen=True)
class Shape:
    """The profile in the windows of all stars."""

    distance: Float
    """(star, column) Of row 0 of the windows from the trace [pixel]."""
    pixels: Single
    """(star, column, row)"""


def check_frame(height: npt.ArrayLike, error: npt.ArrayLike, mask: npt.ArrayLike | None) -> Frame:
    """Return a frame as kernels take it; InputError if shapes differ."""
    image = np.ascontiguousarray(height, dtype=np.float32)
    if image.ndim != 2:
        raise InputError("height", f"{image.ndim} dimensions", "a frame (y, x)")
    sigma = np.ascontiguousarray(error, dtype=np.float32)
    bad = np.zeros(image.shape, dtype=bool) if mask is None else np.ascontiguousarray(mask, dtype=bool)
    for name, one in (("error", sigma), ("mask", bad)):
        if one.shape != image.shape:
            raise InputError(name, f"shape {one.shape}", f"that of the frame, {image.shape}")
    return Frame(image, sigma, bad)


def cut_windows(frame: Frame, traces: Traces, first_row: Int) -> Windows:
    """Return the pixels round some traces, from given first rows."""
    n, m = traces.column.shape
    size = (n, m, 2 * HALF_ROWS + 1)
    data, sigma, bad = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, bool)
    column = np.ascontiguousarray(traces.column[:, 0])
    for source, out, fill in ((frame.height, data, 0.0), (frame.error, sigma, -1.0), (frame.mask, bad, 1.0)):
        cut(source, column, first_row, fill, out)
    usable = ~bad & np.isfinite(data) & np.isfinite(sigma) & (sigma > 0)
    data[~usable] = 0.0
    sigma[~usable] = 1.0
    return Windows(data, sigma * sigma, usable, first_row)


def first_rows(traces: Traces) -> Int:
    """Return the first rows of the windows; the offset of the traces does not move them."""
    return np.floor(traces.row + 0.5).astype(np.int64) - HALF_ROWS


def shape_of(traces: Traces, profile: CrossProfile, offset: Float) -> Shape:
    """Return the profile in the windows of all stars."""
    distance = first_rows(traces) - traces.row - offset[:, None]
    return Shape(distance, profile.pixels(-distance, traces.wavelength, 2 * HALF_ROWS + 1))
