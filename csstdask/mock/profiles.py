"""Spectra of galaxy profiles: how much of a spatial frequency an exponential disk or a de Vaucouleurs bulge holds.

All take the frequency times the half-light radius, [rad / pixel] x [pixel], and are 1 at zero.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft
from scipy.special import gamma, gammaincinv

#: An exponential disk holds half of its light within so many scale lengths.
_DISK = 1.67834699
#: A Gaussian, within so many sigma.
_GAUSSIAN = 1.17741002
#: Natural log of the radius, first and last, and number of radii.
_TABLE = (-30.0, 12.0, 16384)


def disk_spectrum(k: Any) -> Any:
    """Return the spectrum of an exponential disk: (1 + k^2 h^2)^(-3/2) of the scale length h."""
    base = 1 + (k * (1 / _DISK)) ** 2
    return 1 / (base * base**0.5)


def gaussian_spectrum(k: Any, xp: ModuleType = np) -> Any:
    """Return the spectrum of a Gaussian."""
    return xp.exp(-0.5 * (k * (1 / _GAUSSIAN)) ** 2)


def sersic_spectrum(n: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return log k, evenly spaced, and the spectrum of a Sersic profile there, by a fast Hankel transform.

    Parameters
    ----------
    n : float
        Sersic index.
    """
    b = gammaincinv(2 * n, 0.5)
    log_r, step = np.linspace(*_TABLE, retstep=True)
    r = np.exp(log_r)
    offset = fft.fhtoffset(step, mu=0)
    total = 2 * np.pi * n * gamma(2 * n) / b ** (2 * n)
    transformed = fft.fht(np.exp(-b * r ** (1 / n)) * r, step, mu=0, offset=offset)
    log_k = offset - log_r[::-1]
    return log_k, np.asarray(2 * np.pi * transformed / np.exp(log_k) / total)


@lru_cache(maxsize=1)
def _bulge_table() -> tuple[npt.NDArray[np.float32], float, float]:
    log_k, value = sersic_spectrum(4.0)
    return value.astype(np.float32), float(log_k[0]), float(log_k[1] - log_k[0])


def bulge_spectrum(k: Any, xp: ModuleType = np) -> Any:
    """Return the spectrum of a de Vaucouleurs bulge (n = 4), interpolated in a table over log k."""
    table, low, step = _bulge_table()
    values = xp.asarray(table)
    place = (xp.log(xp.maximum(k, 1e-5)) - low) * np.float32(1 / step)
    place = xp.clip(place, 0, len(values) - 2)
    left = place.astype(np.int32)
    share = place - left
    return values[left] * (1 - share) + values[left + 1] * share
