"""Charge along paths, in whole electrons.

A cosmic ray is a path of points through the silicon. Each point hands a share of the event's charge to the pixels
round it, spread by diffusion; the event's electrons, a whole number, are then dealt to the pixels at random
(multinomially). So every deposit is a whole number, and "more than 0 e-" means something.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]

#: Charge is followed so many sigma from a path.
_SIGMAS = 4.5
#: Pixels along the edge of the window that an event is gathered in; what leaves it is lost, as nothing is so long.
_WINDOW = 512


@dataclass(frozen=True)
class Paths:
    """Events as ragged arrays: event ``i`` has the points ``offset[i]:offset[i + 1]``."""

    offset: npt.NDArray[np.int64]
    x: Float
    """Zero-based [pixel]."""
    y: Float
    share: Float
    """Of the event's charge; any scale."""
    sigma: Float
    """Of the diffusion [pixel]."""
    electrons: npt.NDArray[np.int64]
    """Of each event."""


@numba.njit(cache=True)
def _below(z: float) -> float:
    """Return the share of a Gaussian below z sigma (Abramowitz & Stegun 7.1.26, to 2e-7)."""
    a = abs(z) * 0.7071067811865476
    t = 1.0 / (1.0 + 0.3275911 * a)
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = 0.5 * poly * np.exp(-a * a)
    return tail if z < 0 else 1.0 - tail


@numba.njit(cache=True)
def _deal(
    rng: np.random.Generator,
    offset: npt.NDArray[np.int64],
    x: Float,
    y: Float,
    share: Float,
    sigma: Float,
    electrons: npt.NDArray[np.int64],
    image: npt.NDArray[np.int32],
    lost: npt.NDArray[np.int64],
) -> None:
    ny, nx = image.shape
    window = np.zeros((_WINDOW, _WINDOW))
    touched = np.empty(_WINDOW * _WINDOW, dtype=np.int64)
    columns = np.empty(64)
    for event in range(len(offset) - 1):
        first, last = offset[event], offset[event + 1]
        if first == last:
            continue
        top = int(np.floor(y[first])) - _WINDOW // 2
        left = int(np.floor(x[first])) - _WINDOW // 2
        count = 0
        total = 0.0
        for point in range(first, last):
            spread = sigma[point]
            reach = int(np.ceil(_SIGMAS * spread + 0.5))
            cx, cy = int(np.rint(x[point])), int(np.rint(y[point]))
            total += share[point]
            for i in range(-reach, reach + 1):
                low = (cx + i - 0.5 - x[point]) / spread
                columns[i + reach] = _below(low + 1.0 / spread) - _below(low)
            for j in range(-reach, reach + 1):
                row = cy + j - top
                if row < 0 or row >= _WINDOW:
                    continue
                low = (cy + j - 0.5 - y[point]) / spread
                in_row = share[point] * (_below(low + 1.0 / spread) - _below(low))
                for i in range(-reach, reach + 1):
                    column = cx + i - left
                    amount = in_row * columns[i + reach]
                    if column < 0 or column >= _WINDOW or amount <= 0.0:
                        continue
                    if window[row, column] == 0.0:
                        touched[count] = row * _WINDOW + column
                        count += 1
                    window[row, column] += amount
        left_over = electrons[event]
        for k in range(count):
            row, column = touched[k] // _WINDOW, touched[k] % _WINDOW
            amount = window[row, column]
            window[row, column] = 0.0
            if left_over <= 0 or total <= 0.0:
                continue
            chance = min(1.0, amount / total)
            here = rng.binomial(left_over, chance)
            total -= amount
            left_over -= here
            py, px = row + top, column + left
            if 0 <= py < ny and 0 <= px < nx:
                image[py, px] += here
            else:
                lost[0] += here
        lost[0] += left_over


def deposit(rng: np.random.Generator, paths: Paths, image: npt.NDArray[np.int32]) -> int:
    """Add the charge of events to an image.

    Parameters
    ----------
    rng : numpy.random.Generator
    paths : Paths
        With ``sigma`` above 0 and at most 6 pixels.
    image : int32 array (y, x)
        Added to, in place [e-].

    Returns
    -------
    int
        Electrons that fell beside the image.
    """
    lost = np.zeros(1, dtype=np.int64)
    _deal(rng, paths.offset, paths.x, paths.y, paths.share, paths.sigma, paths.electrons, image, lost)
    return int(lost[0])
