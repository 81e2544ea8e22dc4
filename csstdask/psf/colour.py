"""The colour of a star: where within a filter its light lies.

Diffraction scales with the wavelength, so two stars at one position have different PSFs if their spectra differ within
the band. Most of this difference is described by one number, the mean wavelength of the photons in the filter.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csstdask.optics.blackbody import mean_wavelength

Float = npt.NDArray[np.float64]

#: Effective temperature of a star of colour 0, the middle of the stars that PSF models are trained on [K].
REFERENCE_TEMPERATURE = 6200.0


def colour_from_temperature(temperature: npt.ArrayLike, limits: tuple[float, float]) -> Float:
    """Return the colour of stars in a filter.

    The colour is the mean wavelength of the photons of a black body minus that of a star of `REFERENCE_TEMPERATURE`, in
    units of half the width of the filter: positive for cool stars.

    Parameters
    ----------
    temperature : array-like (n,)
        Effective temperature [K].
    limits : (float, float)
        Shortest and longest wavelength of the filter [nm].

    Examples
    --------
    >>> colour_from_temperature([3500.0, 6200.0, 10000.0], (550.0, 690.0)).round(3).tolist()
    [0.104, 0.0, -0.048]
    """
    blue, red = limits
    temperatures = np.append(np.asarray(temperature, dtype=np.float64), REFERENCE_TEMPERATURE)
    mean = mean_wavelength(limits, temperatures) * 2 / (red - blue)
    return np.asarray(mean[:-1] - mean[-1])
