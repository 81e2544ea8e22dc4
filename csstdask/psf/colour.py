"""A star's colour, as a PSF knows it: where within a filter its light lies.

Diffraction scales with the wavelength: two stars at one place have different PSFs where their spectra differ within the
band. One number tells most of it, the mean wavelength of a star's photons in the filter.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]

#: Planck constant times light's speed over Boltzmann's constant [nm K].
_SECOND_RADIATION = 1.438776877e7
#: Of a star of colour nought [K]: the middle of those that PSFs are learnt from.
REFERENCE_TEMPERATURE = 6200.0
#: Wavelengths at which a filter is looked at.
_SAMPLES = 33


def colour_from_temperature(temperature: npt.ArrayLike, limits: tuple[float, float]) -> Float:
    """Return the mean wavelength of black bodies' photons in a filter, beside a usual star's, in halves of its width.

    Parameters
    ----------
    temperature : array-like (n,)
        Effective [K].
    limits : (float, float)
        Of the filter [nm].
    """
    blue, red = limits
    heat = np.append(np.asarray(temperature, dtype=np.float64), REFERENCE_TEMPERATURE)
    mean = mean_wavelength(limits, heat) * 2 / (red - blue)
    return np.asarray(mean[:-1] - mean[-1])


def mean_wavelength(limits: tuple[float, float], temperature: npt.ArrayLike = REFERENCE_TEMPERATURE) -> Float:
    """Return the mean wavelength of black bodies' photons in a filter [nm].

    Parameters
    ----------
    limits : (float, float)
        Of the filter [nm].
    temperature : array-like
        Effective [K].
    """
    blue, red = limits
    wavelength = blue + (red - blue) * (np.arange(_SAMPLES) + 0.5) / _SAMPLES
    heat = np.asarray(temperature, dtype=np.float64)[..., None]
    photons = wavelength**-4 / np.expm1(_SECOND_RADIATION / (wavelength * heat))
    return np.asarray(photons @ wavelength / photons.sum(axis=-1))
