"""Zernike polynomials in Noll's order, each of unit root mean square over the unit disk (Noll 1976, JOSA 66, 207)."""

from __future__ import annotations

from math import factorial

import numpy as np
import numpy.typing as npt


def noll_to_zernike(j: int) -> tuple[int, int]:
    """Return the radial degree n and the azimuthal frequency m of a Noll index.

    Parameters
    ----------
    j : int
        Noll index, from 1.

    Examples
    --------
    >>> noll_to_zernike(4), noll_to_zernike(7), noll_to_zernike(11)
    ((2, 0), (3, -1), (4, 0))
    """
    n = 0
    first = 1
    while j >= first + n + 1:
        first += n + 1
        n += 1
    position = j - first
    m = 2 * ((position + 1) // 2) if n % 2 == 0 else 2 * (position // 2) + 1
    return n, m if j % 2 == 0 else -m


def zernike(j: int, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Evaluate a Zernike polynomial at points of the unit disk.

    Parameters
    ----------
    j : int
        Noll index, from 1: 1 is piston, 4 defocus, 5 and 6 astigmatism, 7 and 8 coma, 11 spherical aberration.
    x, y : float64 arrays of one shape
        Coordinates in units of the radius.

    Returns
    -------
    float64 array
        Values, of the shape of `x`.

    Examples
    --------
    >>> edge = np.array([0.0, 1.0])
    >>> zernike(4, edge, np.zeros(2)).round(3).tolist()  # defocus: sqrt(3) (2 r^2 - 1)
    [-1.732, 1.732]
    """
    n, m = noll_to_zernike(j)
    rho, theta = np.hypot(x, y), np.arctan2(y, x)
    order = abs(m)
    radial = np.zeros_like(rho)
    for k in range((n - order) // 2 + 1):
        weight = (-1) ** k * factorial(n - k)
        weight //= factorial(k) * factorial((n + order) // 2 - k) * factorial((n - order) // 2 - k)
        radial += weight * rho ** (n - 2 * k)
    if m == 0:
        return np.sqrt(n + 1) * radial
    return np.sqrt(2 * (n + 1)) * radial * (np.cos(order * theta) if m > 0 else np.sin(order * theta))
