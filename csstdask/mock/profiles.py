"""Fourier transforms of galaxy profiles: exponential disk, Gaussian, de Vaucouleurs bulge.

The argument is the angular frequency times the half-light radius; transforms are 1 at zero.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft
from scipy.special import gamma, gammaincinv

_DISK_HALF_LIGHT = 1.67834699
"""Half-light radius of an exponential disk [scale length]."""
_GAUSSIAN_HALF_LIGHT = 1.17741002
"""Half-light radius of a Gaussian [sigma]."""
_LOG_RADII = (-30.0, 12.0, 16384)
"""Natural log of the first and last radius of the Hankel transform, and number of radii."""


def disk_spectrum(k: Any) -> Any:
    """Return the transform of an exponential disk, (1 + k^2 h^2)^(-3/2) with the scale length h.

    Examples
    --------
    >>> disk_spectrum(0.0)
    1.0
    """
    base = 1 + (k * (1 / _DISK_HALF_LIGHT)) ** 2
    return 1 / (base * base**0.5)


def gaussian_spectrum(k: Any, xp: ModuleType = np) -> Any:
    """Return the transform of a Gaussian."""
    return xp.exp(-0.5 * (k * (1 / _GAUSSIAN_HALF_LIGHT)) ** 2)


def sersic_spectrum(n: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the transform of a Sersic profile, by a fast Hankel transform.

    Parameters
    ----------
    n : float
        Sersic index.

    Returns
    -------
    log_k : float64 array
        Natural log of the frequency, evenly spaced.
    spectrum : float64 array
        Transform at these frequencies.
    """
    b = gammaincinv(2 * n, 0.5)
    log_r, step = np.linspace(*_LOG_RADII, retstep=True)
    r = np.exp(log_r)
    offset = fft.fhtoffset(step, mu=0)
    total = 2 * np.pi * n * gamma(2 * n) / b ** (2 * n)
    transformed = fft.fht(np.exp(-b * r ** (1 / n)) * r, step, mu=0, offset=offset)
    log_k = offset - log_r[::-1]
    return log_k, np.asarray(2 * np.pi * transformed / np.exp(log_k) / total)


@lru_cache(maxsize=1)
def _bulge_table() -> tuple[npt.NDArray[np.float32], float, float]:
    """Return the transform of a bulge, and the first value and step of log k."""
    log_k, value = sersic_spectrum(4.0)
    return value.astype(np.float32), float(log_k[0]), float(log_k[1] - log_k[0])


def bulge_spectrum(k: Any, xp: ModuleType = np) -> Any:
    """Return the transform of a de Vaucouleurs bulge (n = 4), interpolated in log k."""
    table, low, step = _bulge_table()
    values = xp.asarray(table)
    position = (xp.log(xp.maximum(k, 1e-5)) - low) * np.float32(1 / step)
    position = xp.clip(position, 0, len(values) - 2)
    left = position.astype(np.int32)
    weight = position - left
    return values[left] * (1 - weight) + values[left + 1] * weight
