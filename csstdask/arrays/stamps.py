"""Stamps: square cut-outs of a frame around positions, and the assignment of pixels to stamps.

A stamp of `size` pixels (even) around a position has the centre pixel ``c = floor(position + 0.5)`` and holds rows and
columns ``c - size/2`` to ``c + size/2 - 1``. Where stamps overlap, a pixel belongs to the nearest position, and of
equally near ones to the first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from csstdask.arrays.namespace import namespace_of

#: Number of nearest positions that are compared, to find the first of equally near ones.
_N_NEAREST = 4


def centre_pixels(position: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int64]:
    """Return the centre pixel of each stamp along an axis."""
    return np.floor(np.asarray(position, dtype=np.float64) + 0.5).astype(np.int64)


def cut_stamps(
    frame: Any, y: npt.NDArray[np.int64], x: npt.NDArray[np.int64], size: int, fill: float | bool = 0
) -> Any:
    """Cut stamps out of a frame.

    Parameters
    ----------
    frame : array (ny, nx)
    y, x : int64 arrays (n,)
        Centre pixels.
    size : int
        Size of a stamp, even [pixel].
    fill : float or bool
        Value of pixels outside the frame.

    Returns
    -------
    array (n, size, size)
        Stamps, in the array library of the frame.
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


def border_mask(size: int, width: int) -> npt.NDArray[np.bool_]:
    """Return the pixels of a stamp within a distance of its edges, which show the sky.

    Parameters
    ----------
    size : int
        Width of the stamp [pixel].
    width : int
        Width of the border [pixel].

    Examples
    --------
    >>> int(border_mask(4, 1).sum())
    12
    """
    border = np.ones((size, size), dtype=bool)
    border[width:-width, width:-width] = False
    return border


def sky_from_border(stamps: npt.NDArray[Any], mask: npt.NDArray[np.bool_], width: int) -> npt.NDArray[np.float64]:
    """Estimate the sky of each stamp by the median of its border.

    Parameters
    ----------
    stamps : array (n, y, x)
    mask : bool array (n, y, x)
        True = ignore.
    width : int
        Width of the border [pixel].

    Returns
    -------
    float64 array (n,)
        0 for a stamp without a usable pixel on its border.

    Examples
    --------
    >>> sky_from_border(np.full((1, 4, 4), 7.0), np.zeros((1, 4, 4), bool), 1).tolist()
    [7.0]
    """
    border = border_mask(stamps.shape[-1], width)
    median = np.ma.median(np.ma.masked_array(stamps[:, border], mask[:, border]), axis=1)
    return np.asarray(np.ma.filled(median, 0.0), dtype=np.float64)


def nearest_stamp(
    pixel_y: npt.NDArray[np.int64],
    pixel_x: npt.NDArray[np.int64],
    y: npt.NDArray[np.floating[Any]],
    x: npt.NDArray[np.floating[Any]],
    size: int,
) -> npt.NDArray[np.int64]:
    """Return the index of the position that each pixel belongs to.

    Parameters
    ----------
    pixel_y, pixel_x : int64 arrays (n,)
    y, x : float arrays (m,)
        Positions, not rounded [pixel].
    size : int
        Size of the stamps [pixel].

    Returns
    -------
    int64 array (n,)
        Index of the position; -1 where the stamp of the nearest one does not hold the pixel.
    """
    none = np.full(len(pixel_y), -1, dtype=np.int64)
    if not len(y) or not len(pixel_y):
        return none
    count = min(_N_NEAREST, len(y))
    pixels = np.stack([pixel_y, pixel_x], axis=1).astype(np.float64)
    distance, which = cKDTree(np.stack([y, x], axis=1)).query(pixels, k=range(1, count + 1))
    first = np.where(distance == distance[:, :1], which, len(y)).min(axis=1).astype(np.int64)
    dy, dx = pixel_y - centre_pixels(y)[first], pixel_x - centre_pixels(x)[first]
    half = size // 2
    inside = (dy >= -half) & (dy < half) & (dx >= -half) & (dx < half)
    return np.where(inside, first, none)
