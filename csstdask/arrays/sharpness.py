"""Sharpness of the stars of a frame, measured before its cosmic rays are known.

In a Gaussian image of standard deviation ``s`` the logarithm of the height is a parabola, whose second difference is
``-1 / s^2`` wherever in its pixel the centre lies. The sharpness ``1 / s`` of a local maximum therefore follows from
its neighbours alone. A star has the same sharpness along both axes and the diagonals, and all stars of a frame agree;
most cosmic rays are elongated, end abruptly, or are single pixels whose neighbours are lost in the noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.mesh import Mesh
from csstdask.arrays.namespace import to_host

#: Smallest height of a maximum, and of each of its eight neighbours [sigma of the sky].
_PEAK_SIGMA, _NEIGHBOUR_SIGMA = 50.0, 3.0
#: Largest relative difference of the sharpness along the axes, and along the diagonals.
_MAX_ELONGATION = 0.25
#: Smallest number of maxima: fewer do not determine the sharpness of the frame.
_MIN_MAXIMA = 8
#: Largest relative width of the shortest interval with half of the values: stars agree, other things do not.
_MAX_SPREAD = 0.25
#: Largest number of windows along each axis, and their size [pixel].
_WINDOWS, _SIZE = 8, 256
#: Largest sharpness: beyond it, an image is a single pixel [1/pixel].
MAX_SHARPNESS = 2.5


def star_sharpness(data: Any, mask: Any, mesh: Mesh) -> float:
    """Return the sharpness of the stars of a frame: the mean of the shortest interval with half of the local maxima.

    Parameters
    ----------
    data : array (y, x)
        Frame, in any unit.
    mask : bool array (y, x) or None
        True = ignore.
    mesh : Mesh
        Background and noise of the frame.

    Returns
    -------
    float
        Inverse of the standard deviation of the stars [1/pixel], 2.35 divided by their full width at half maximum in
        pixels; 0 if it cannot be measured.
    """
    found = []
    for rows in _spans(data.shape[0]):
        for columns in _spans(data.shape[1]):
            height = to_host(data[rows, columns] - mesh.background_at(rows, columns))
            noise = to_host(mesh.noise_at(rows, columns))
            usable = None if mask is None else ~to_host(mask[rows, columns])
            found.append(_sharpness_of_maxima(height, noise, usable))
    return _common_value(np.sort(np.concatenate(found)))


def _common_value(ordered: npt.NDArray[np.float64]) -> float:
    """Return the value on which half of some ordered values agree; 0 if they do not, or are too few."""
    if len(ordered) < _MIN_MAXIMA:
        return 0.0
    half = (len(ordered) + 1) // 2
    widths = ordered[half - 1 :] - ordered[: len(ordered) - half + 1]
    first = int(np.argmin(widths))
    value = float(ordered[first : first + half].mean())
    return value if widths[first] < _MAX_SPREAD * value else 0.0


def _spans(length: int) -> list[slice]:
    """Return windows along an axis, evenly spread; all of it where it is short."""
    if length <= _WINDOWS * _SIZE:
        return [slice(0, length)]
    return [slice(round(start), round(start) + _SIZE) for start in np.linspace(0, length - _SIZE, _WINDOWS)]


def _sharpness_of_maxima(
    height: npt.NDArray[np.float32], noise: npt.NDArray[np.float32], usable: npt.NDArray[np.bool_] | None
) -> npt.NDArray[np.float64]:
    """Return the sharpness of each round, significant local maximum of a window."""
    ny, nx = height.shape
    if min(ny, nx) < 3:
        return np.zeros(0)
    bright = height[1:-1, 1:-1] > _PEAK_SIGMA * noise[1:-1, 1:-1]
    y, x = (index + 1 for index in np.nonzero(bright))
    steps = np.arange(-1, 2)
    box = height[y[:, None, None] + steps[:, None], x[:, None, None] + steps].astype(np.float64)
    centre = box[:, 1, 1]
    good = (centre >= box.max(axis=(1, 2))) & (box.min(axis=(1, 2)) > _NEIGHBOUR_SIGMA * noise[y, x])
    if usable is not None:
        good &= usable[y[:, None, None] + steps[:, None], x[:, None, None] + steps].all(axis=(1, 2))
    level = np.log(box[good])
    peak = level[:, 1, 1]
    along_x = 2 * peak - level[:, 1, 0] - level[:, 1, 2]
    along_y = 2 * peak - level[:, 0, 1] - level[:, 2, 1]
    rising = 2 * peak - level[:, 0, 0] - level[:, 2, 2]
    falling = 2 * peak - level[:, 0, 2] - level[:, 2, 0]
    mean = 0.5 * (along_x + along_y)
    is_round = (np.abs(along_x - along_y) < 2 * _MAX_ELONGATION * mean) & (
        np.abs(rising - falling) < _MAX_ELONGATION * (rising + falling)
    )
    return np.sqrt(np.minimum(mean[is_round], MAX_SHARPNESS**2))
