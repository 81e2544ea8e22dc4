"""Instrumental magnitudes, aperture corrections, and masks of unusable magnitudes and errors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]

MIN_MAGNITUDE = -40.0
"""Smaller magnitudes are sentinels (-9999, -99) [mag]."""
MAX_MAGNITUDE = 40.0
"""Larger magnitudes are sentinels (99, 99.99, 130) [mag]."""
MAX_ERROR = 5.0
"""Larger errors of magnitudes are sentinels (9.99, 99) [mag]."""
MAGNITUDE_PER_RELATIVE_ERROR = 2.5 / np.log(10)
"""Error of a magnitude over the relative error of its flux [mag]."""
_SUBPIXELS = 9
"""Samples of an aperture along each axis of a half pixel."""


def mask_bad_magnitudes(magnitude: npt.ArrayLike) -> Float:
    """Replace sentinels and non-finite magnitudes by NaN.

    Examples
    --------
    >>> mask_bad_magnitudes([17.2, 99.0, -9999.0, 130.0]).tolist()
    [17.2, nan, nan, nan]
    """
    values = np.array(magnitude, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        values[~((values > MIN_MAGNITUDE) & (values < MAX_MAGNITUDE))] = np.nan
    return values


def mask_bad_errors(error: npt.ArrayLike) -> Float:
    """Replace zero, negative, sentinel and non-finite errors of magnitudes by NaN (unknown).

    Examples
    --------
    >>> mask_bad_errors([0.02, 0.0, -9999.0, 99.0]).tolist()
    [0.02, nan, nan, nan]
    """
    values = np.array(error, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        values[~((values > 0) & (values < MAX_ERROR))] = np.nan
    return values


def fill_unknown_errors(error: npt.ArrayLike) -> Float:
    """Replace unknown errors of magnitudes by the median of the known ones.

    A catalogue writes 0 or a sentinel where it has no error: such a star is not infinitely precise. If no error is
    known at all, 0 is returned: the scatter that a fit estimates then includes the errors.

    Examples
    --------
    >>> fill_unknown_errors([0.02, 0.0, 0.04]).tolist()
    [0.02, 0.03, 0.04]
    """
    values = mask_bad_errors(error)
    unknown = np.isnan(values)
    if unknown.any():
        values[unknown] = np.median(values[~unknown]) if not unknown.all() else 0.0
    return values


def instrumental_magnitude(rate: npt.ArrayLike, rate_err: npt.ArrayLike) -> tuple[Float, Float]:
    """Convert fluxes to instrumental magnitudes.

    Parameters
    ----------
    rate, rate_err : array-like
        Fluxes and their 1-sigma errors [electron s-1].

    Returns
    -------
    magnitude, error : float64 array
        -2.5 log10(rate) and 1.0857 rate_err / rate [mag]; NaN for fluxes that are not positive.

    Examples
    --------
    >>> [round(float(value), 6) for value in instrumental_magnitude(100.0, 1.0)]
    [-5.0, 0.010857]
    """
    flux, error = np.asarray(rate, dtype=np.float64), np.asarray(rate_err, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        positive = np.where(flux > 0, flux, np.nan)
        return -2.5 * np.log10(positive), MAGNITUDE_PER_RELATIVE_ERROR * error / positive


def aperture_correction(psf: npt.ArrayLike, radius: float) -> Float:
    """Return the correction of magnitudes from a circular aperture to the total light of a star.

    Parameters
    ----------
    psf : array-like (..., n, n)
        Effective PSF, native pixel included, at half-pixel sampling, centred on ``[n // 2, n // 2]``. Its sum is the
        total light.
    radius : float
        Radius of the aperture [pixel].

    Returns
    -------
    float64 array (...)
        Correction to add, 2.5 log10 of the fraction of light in the aperture [mag], at most 0; NaN where the PSF is
        unknown. Aperture sums weight pixels by the fraction of their area inside. Averaged over positions within a
        pixel, that is the effective PSF times the aperture convolved with a pixel.

    Examples
    --------
    >>> point = np.zeros((64, 64))
    >>> point[32, 32] = 1.0
    >>> float(aperture_correction(point, 4.0))
    0.0
    """
    image = np.asarray(psf, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        fraction = (image * _aperture(image.shape[-1], radius)).sum(axis=(-2, -1)) / image.sum(axis=(-2, -1))
        return np.asarray(2.5 * np.log10(np.where(fraction > 0, fraction, np.nan)))


def light_outside_box(half_width: float, wavelength: float, diameter: float, obscuration: float = 0.0) -> float:
    """Return the fraction of a star's light that diffraction scatters outside a square box.

    A PSF that is measured in a box does not include this light. The fraction of an Airy pattern outside a radius r is
    J_0(v)^2 + J_1(v)^2 with v = pi r D / wavelength (Born & Wolf, Principles of Optics, section 8.5.2). Far from the
    core it is 2 / (pi v). It grows with the length of the pupil's edges over its area, by 1 / (1 - obscuration). Over
    the edge of a square, the mean of 1 / r is sin(pi/4) / (pi/4) over its half-width.

    Parameters
    ----------
    half_width : float
        Half-width of the box [arcsec].
    wavelength : float
        Wavelength [nm].
    diameter : float
        Diameter of the pupil [m].
    obscuration : float
        Diameter of the central obscuration over that of the pupil.

    Examples
    --------
    >>> round(light_outside_box(1.184, 755.0, 2.0), 4)
    0.012
    """
    resolution = np.degrees(wavelength * 1e-9 / diameter) * 3600
    mean_inverse = np.sin(np.pi / 4) / (np.pi / 4) / half_width
    return float(2 / np.pi**2 * resolution / (1 - obscuration) * mean_inverse)


def _aperture(size: int, radius: float) -> Float:
    """Return the fraction of a pixel inside an aperture, (size, size), for pixels centred on a half-pixel grid."""
    # A native pixel, two samples wide, around each point of the grid.
    fine = (np.arange(2 * _SUBPIXELS) + 0.5) / (2 * _SUBPIXELS) - 0.5
    position = (np.arange(size) - size // 2) / 2
    points = position[:, None] + fine
    inside = np.hypot(points[:, None, :, None], points[None, :, None, :]) < radius
    return np.asarray(inside.mean(axis=(2, 3)))
