"""Deposit charge along the paths of particles, in whole electrons.

A cosmic ray is a path of points through the silicon. Diffusion spreads the charge of each point over the nearby pixels.
The electrons of an event are then distributed over these pixels with one multinomial draw, so that deposits are
integers and "above 0 e-" is well defined.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]

_SIGMAS = 4.5
"""Distance from a path up to which charge is computed [sigma of the diffusion]."""
_WINDOW = 512
"""Side length of the window of an event; charge outside is lost, but no event is that long [pixel]."""


@dataclass(frozen=True)
class Paths:
    """Events as ragged arrays: event ``i`` has the points ``offset[i]:offset[i + 1]``."""

    offset: npt.NDArray[np.int64]
    x: Float
    """Zero-based position along x [pixel]."""
    y: Float
    """Zero-based position along y [pixel]."""
    share: Float
    """Charge of each point relative to the other points of the event."""
    sigma: Float
    """Charge diffusion, 1 sigma [pixel]."""
    electrons: npt.NDArray[np.int64]
    """Electrons of each event."""


@numba.njit(cache=True)
def _normal_cdf(z: float) -> float:
    """Return the standard normal CDF (Abramowitz & Stegun 7.1.26, to 2e-7)."""
    a = abs(z) * 0.7071067811865476
    t = 1.0 / (1.0 + 0.3275911 * a)
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = 0.5 * poly * np.exp(-a * a)
    return tail if z < 0 else 1.0 - tail


@numba.njit(cache=True)
def _distribute_charge(
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
    """Distribute the electrons of all events over the pixels of `image`; count those outside in `lost`."""
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
                columns[i + reach] = _normal_cdf(low + 1.0 / spread) - _normal_cdf(low)
            for j in range(-reach, reach + 1):
                row = cy + j - top
                if row < 0 or row >= _WINDOW:
                    continue
                low = (cy + j - 0.5 - y[point]) / spread
                in_row = share[point] * (_normal_cdf(low + 1.0 / spread) - _normal_cdf(low))
                for i in range(-reach, reach + 1):
                    column = cx + i - left
                    amount = in_row * columns[i + reach]
                    if column < 0 or column >= _WINDOW or amount <= 0.0:
                        continue
                    if window[row, column] == 0.0:
                        touched[count] = row * _WINDOW + column
                        count += 1
                    window[row, column] += amount
        remaining = electrons[event]
        for k in range(count):
            row, column = touched[k] // _WINDOW, touched[k] % _WINDOW
            amount = window[row, column]
            window[row, column] = 0.0
            if remaining <= 0 or total <= 0.0:
                continue
            chance = min(1.0, amount / total)
            here = rng.binomial(remaining, chance)
            total -= amount
            remaining -= here
            py, px = row + top, column + left
            if 0 <= py < ny and 0 <= px < nx:
                image[py, px] += here
            else:
                lost[0] += here
        lost[0] += remaining


def deposit(rng: np.random.Generator, paths: Paths, image: npt.NDArray[np.int32]) -> int:
    """Add the charge of events to an image.

    Parameters
    ----------
    rng : numpy.random.Generator
        Random stream.
    paths : Paths
        Paths with ``sigma`` above 0 and at most 6 pixels.
    image : int32 array (y, x)
        Charge, added in place [e-].

    Returns
    -------
    int
        Electrons outside the image.

    Examples
    --------
    >>> one, point = np.array([0, 1]), np.array([8.0])
    >>> paths = Paths(one, point, point, np.ones(1), np.array([0.3]), np.array([1000]))
    >>> image = np.zeros((16, 16), dtype=np.int32)
    >>> lost = deposit(np.random.default_rng(1), paths, image)
    >>> int(image.sum()) + lost
    1000
    """
    lost = np.zeros(1, dtype=np.int64)
    _distribute_charge(rng, paths.offset, paths.x, paths.y, paths.share, paths.sigma, paths.electrons, image, lost)
    return int(lost[0])
