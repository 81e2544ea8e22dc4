"""Flux densities of stars from a magnitude and the shape of their spectrum."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csstdask.numerics.spectral import interpolate_spectrum

Float = npt.NDArray[np.float64]

AB_FLUX = 3.6307805e-20
"""Flux density of magnitude 0 in the AB system [erg s-1 cm-2 Hz-1]."""
LIGHT_SPEED = 2.99792458e18
"""Speed of light [Angstrom/s]."""
_N_SAMPLES = 400
"""Samples of the integral over a band."""


def flux_from_magnitude(
    mag: npt.ArrayLike,
    mag_err: npt.ArrayLike,
    limits: tuple[float, float],
    wavelength: npt.ArrayLike,
    shape: npt.ArrayLike,
) -> tuple[Float, Float]:
    """Return the flux densities of stars with given magnitudes and spectral shapes.

    The band is a top hat that counts photons: the magnitude is that of the mean
    f_nu = int f_lambda lambda d(lambda) / int (c / lambda) d(lambda). For real bands this is an approximation, which
    catalogues with ``flux_5556`` do not need.

    Parameters
    ----------
    mag, mag_err : array-like (star,)
        AB magnitudes and their 1-sigma errors.
    limits : (float, float)
        First and last wavelength of the band [Angstrom].
    wavelength : array-like (n,)
        Wavelengths of the spectra [Angstrom].
    shape : array-like (star, n)
        Spectra, relative to their mean flux density in 5526-5586 Angstrom.

    Returns
    -------
    flux, flux_err : float64 arrays (star,)
        Mean flux density in 5526-5586 Angstrom [erg s-1 cm-2 A-1] and its error; NaN where the spectrum does not
        cover the band.

    Examples
    --------
    >>> wavelength = np.linspace(4000, 7000, 301)
    >>> flux, error = flux_from_magnitude([20.0], [0.01], (5526, 5586), wavelength, np.ones((1, 301)))
    >>> print(f"{flux[0]:.4g} {error[0] / flux[0]:.4g}")
    3.526e-17 0.00921
    """
    mean = band_flux_density(limits, wavelength, shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        flux = AB_FLUX * 10 ** (-0.4 * np.asarray(mag, dtype=np.float64)) / mean
    flux = np.where(flux > 0, flux, np.nan)
    return flux, flux * np.asarray(mag_err, dtype=np.float64) * np.log(10) / 2.5


def band_flux_density(limits: tuple[float, float], wavelength: npt.ArrayLike, spectra: npt.ArrayLike) -> Float:
    """Return the mean f_nu of spectra in a top-hat band that counts photons.

    Parameters
    ----------
    limits : (float, float)
        First and last wavelength of the band [Angstrom].
    wavelength : array-like (n,)
        Wavelengths of the spectra [Angstrom].
    spectra : array-like (..., n)
        f_lambda, in any unit per Angstrom.

    Returns
    -------
    float64 array (...)
        f_nu, in that unit times Angstrom per Hz; NaN where the spectra do not cover the band.
    """
    at = np.linspace(*limits, _N_SAMPLES)
    values = interpolate_spectrum(wavelength, spectra, at)
    return np.asarray(np.trapezoid(values * at, at, axis=-1) / np.trapezoid(LIGHT_SPEED / at, at))
