"""Stamps: square cut-outs of a frame round chosen places, and which of them decides a pixel.

A stamp of `size` pixels (even) round a place holds rows and columns ``c - size/2`` to ``c + size/2 - 1`` of its middle
pixel ``c = floor(place + 0.5)``. Where stamps overlap, a pixel belongs to the nearest place; of two that are equally
near to the one that comes first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from csstdask.arrays.namespace import namespace_of

#: How many places are asked for, so that the first of several equally near ones is found.
_NEAREST = 4


def centre_pixels(place: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int64]:
    """Return the middle pixel of each stamp along an axis."""
    return np.floor(np.asarray(place, dtype=np.float64) + 0.5).astype(np.int64)


def cut_stamps(
    frame: Any, y: npt.NDArray[np.int64], x: npt.NDArray[np.int64], size: int, fill: float | bool = 0
) -> Any:
    """Cut stamps out of a frame.

    Parameters
    ----------
    frame : array (ny, nx)
    y, x : int64 arrays (n,)
        Middle pixels.
    size : int
        Even [pixel].
    fill : float or bool
        What lies beyond the frame.

    Returns
    -------
    array (n, size, size)
        In the frame's own library.
    """
    xp = namespace_of(frame)
    steps = xp.arange(size) - size // 2
    rows, columns = xp.asarray(y)[:, None] + steps, xp.asarray(x)[:, None] + steps
    inside_y = (rows >= 0) & (rows < frame.shape[0])
    inside_x = (columns >= 0) & (columns < frame.shape[1])
    rows, columns = rows.clip(0, frame.shape[0] - 1), columns.clip(0, frame.shape[1] - 1)
    stamps = frame[rows[:, :, None], columns[:, None, :]]
    stamps[~(inside_y[:, :, None] & inside_x[:, None, :])] = fill
    return stamps


def nearest_stamp(
    pixel_y: npt.NDArray[np.int64],
    pixel_x: npt.NDArray[np.int64],
    y: npt.NDArray[np.floating[Any]],
    x: npt.NDArray[np.floating[Any]],
    size: int,
) -> npt.NDArray[np.int64]:
    """Return the place that each pixel belongs to.

    Parameters
    ----------
    pixel_y, pixel_x : int64 arrays (n,)
    y, x : float arrays (m,)
        Places, as measured: not rounded, so that hardly two are equally near.
    size : int
        Of their stamps [pixel].

    Returns
    -------
    int64 array (n,)
        -1 where the nearest place's stamp does not hold the pixel.
    """
    nobody = np.full(len(pixel_y), -1, dtype=np.int64)
    if not len(y) or not len(pixel_y):
        return nobody
    count = min(_NEAREST, len(y))
    pixels = np.stack([pixel_y, pixel_x], axis=1).astype(np.float64)
    distance, which = cKDTree(np.stack([y, x], axis=1)).query(pixels, k=range(1, count + 1))
    first = np.where(distance == distance[:, :1], which, len(y)).min(axis=1).astype(np.int64)
    dy, dx = pixel_y - centre_pixels(y)[first], pixel_x - centre_pixels(x)[first]
    half = size // 2
    held = (dy >= -half) & (dy < half) & (dx >= -half) & (dx < half)
    return np.where(held, first, nobody)
