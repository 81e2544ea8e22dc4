"""Zernike polynomials in Noll's order, each of unit root mean square over the unit disk (Noll 1976, JOSA 66, 207)."""

from __future__ import annotations

from math import factorial

import numpy as np
import numpy.typing as npt


def noll_to_zernike(j: int) -> tuple[int, int]:
    """Return the radial degree n and the azimuthal frequency m of the polynomial with Noll index j (from 1)."""
    n = 0
    first = 1
    while j >= first + n + 1:
        first += n + 1
        n += 1
    position = j - first
    m = 2 * ((position + 1) // 2) if n % 2 == 0 else 2 * (position // 2) + 1
    return n, m if j % 2 == 0 else -m


def zernike(j: int, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the polynomial with Noll index j at points of the unit disk.

    Parameters
    ----------
    j : int
        From 1: piston; 4 is defocus, 5 and 6 astigmatism, 7 and 8 coma, 11 spherical aberration.
    x, y : float64 arrays of one shape
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
