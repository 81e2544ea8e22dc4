"""Photons of black bodies in a filter: their rate and mean wavelength."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]

#: Second radiation constant h c / k [nm K].
SECOND_RADIATION_CONSTANT = 1.438776877e7
#: Wavelengths at which a filter is integrated for its mean wavelength.
_MEAN_SAMPLES = 33


def sample_band(limits: tuple[float, float], count: int) -> Float:
    """Return the centres of equal parts of a filter [nm].

    Parameters
    ----------
    limits : (float, float)
        Shortest and longest wavelength of the filter [nm].
    count : int
        Number of parts.

    Examples
    --------
    >>> sample_band((500.0, 600.0), 2).tolist()
    [525.0, 575.0]
    """
    blue, red = limits
    return blue + (red - blue) * (np.arange(count) + 0.5) / count


def photon_rate(wavelength: npt.ArrayLike, temperature: npt.ArrayLike) -> Float:
    """Return the photons that black bodies emit per unit of wavelength, up to a constant factor.

    Parameters
    ----------
    wavelength : array-like (..., m)
        [nm]
    temperature : array-like (..., n)
        [K]

    Returns
    -------
    float64 array, the shape of `temperature` followed by that of `wavelength`
        ``wavelength^-4 / (exp(h c / (wavelength k temperature)) - 1)``, Planck's law over the photon energy.

    Examples
    --------
    >>> blue, red = photon_rate([450.0, 900.0], 3500.0)
    >>> bool(red > blue)
    True
    """
    length = np.asarray(wavelength, dtype=np.float64)
    exponent = SECOND_RADIATION_CONSTANT / np.multiply.outer(np.asarray(temperature, dtype=np.float64), length)
    return np.asarray(length**-4.0 / np.expm1(exponent)) * 1e12


def mean_wavelength(limits: tuple[float, float], temperature: npt.ArrayLike) -> Float:
    """Return the mean wavelength of the photons of black bodies in a filter [nm].

    Parameters
    ----------
    limits : (float, float)
        Shortest and longest wavelength of the filter [nm].
    temperature : array-like
        [K]

    Returns
    -------
    float64 array, of the shape of `temperature`

    Examples
    --------
    >>> mean_wavelength((550.0, 690.0), [3500.0, 10000.0]).round(1).tolist()
    [626.9, 616.3]
    """
    wavelength = sample_band(limits, _MEAN_SAMPLES)
    photons = photon_rate(wavelength, temperature)
    return np.asarray(photons @ wavelength / photons.sum(axis=-1))
