"""Instrumental magnitudes, aperture corrections, and which magnitudes and errors of a table can be used."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]

MIN_MAGNITUDE = -40.0
"""Magnitudes below are sentinels (-9999, -99) [mag]."""
MAX_MAGNITUDE = 40.0
"""Magnitudes above are sentinels (99, 99.99, 130) [mag]."""
LARGEST_ERROR = 5.0
"""Errors of magnitudes above are sentinels (9.99, 99) [mag]."""
POGSON = 2.5 / np.log(10)
"""Error of a magnitude over relative error of its flux."""
_SUBPIXELS = 9
"""Points along each axis of a half pixel at which an aperture is sampled."""


def mask_bad_magnitudes(magnitude: npt.ArrayLike) -> Float:
    """Return magnitudes with NaN in place of sentinels and of values that are not finite.

    Examples
    --------
    >>> usable_magnitude([17.2, 99.0, -9999.0, 130.0]).tolist()
    [17.2, nan, nan, nan]
    """
    values = np.array(magnitude, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        values[~((values > MIN_MAGNITUDE) & (values < MAX_MAGNITUDE))] = np.nan
    return values


def mask_bad_errors(error: npt.ArrayLike) -> Float:
    """Return errors of magnitudes; NaN, which means unknown, for zero, negative and sentinel values.

    Examples
    --------
    >>> usable_error([0.02, 0.0, -9999.0, 99.0]).tolist()
    [0.02, nan, nan, nan]
    """
    values = np.array(error, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        values[~((values > 0) & (values < LARGEST_ERROR))] = np.nan
    return values


def fill_unknown_errors(error: npt.ArrayLike) -> Float:
    """Return errors of magnitudes, with the median of the known ones where a value is unknown.

    A catalogue writes 0 or a sentinel where it has no error: such a star is not infinitely precise. Where no error is
    known at all, 0 is returned: the scatter that a fit estimates then stands for the errors.
    """
    values = mask_bad_errors(error)
    unknown = np.isnan(values)
    if unknown.any():
        values[unknown] = np.median(values[~unknown]) if not unknown.all() else 0.0
    return values


def instrumental_magnitude(rate: npt.ArrayLike, rate_err: npt.ArrayLike) -> tuple[Float, Float]:
    """Return instrumental magnitudes and errors of fluxes.

    Parameters
    ----------
    rate, rate_err : array-like
        Flux and its 1-sigma error [electron s-1].

    Returns
    -------
    magnitude, error : float64 array
        -2.5 log10(rate) and 1.0857 rate_err / rate [mag]; NaN where the flux is not positive.

    Examples
    --------
    >>> [float(one) for one in instrumental_magnitude(100.0, 1.0)]
    [-5.0, 0.010857362047581296]
    """
    flux, error = np.asarray(rate, dtype=np.float64), np.asarray(rate_err, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        positive = np.where(flux > 0, flux, np.nan)
        return -2.5 * np.log10(positive), POGSON * error / positive


def aperture_correction(psf: npt.ArrayLike, radius: float) -> Float:
    """Return what to add to magnitudes in a circular aperture for the total light of a star.

    Parameters
    ----------
    psf : array-like (..., n, n)
        Effective PSF, native pixel included, at half-pixel sampling, centred on ``[n // 2, n // 2]``. Its sum is the
        total light.
    radius : float
        Of the aperture [pixel].

    Returns
    -------
    float64 array (...)
        2.5 log10 of the share of light in the aperture [mag], at most 0; NaN where the PSF is unknown. Aperture sums
        weight pixels by the share of their area inside; averaged over positions within a pixel, that is the effective
        PSF times the aperture convolved with a pixel.

    Examples
    --------
    >>> point = np.zeros((64, 64))
    >>> point[32, 32] = 1.0
    >>> float(aperture_correction(point, 4.0))
    0.0
    """
    image = np.asarray(psf, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (image * _aperture(image.shape[-1], radius)).sum(axis=(-2, -1)) / image.sum(axis=(-2, -1))
        return np.asarray(2.5 * np.log10(np.where(share > 0, share, np.nan)))


def light_outside_box(half_width: float, wavelength: float, diameter: float, obscuration: float = 0.0) -> float:
    """Return the share of a star's light that diffraction sends beyond a square box around it.

    A PSF that was measured in a box knows nothing of it. The share of an Airy pattern beyond a radius r is
    J_0(v)^2 + J_1(v)^2 with v = pi r D / wavelength (Born & Wolf, Principles of Optics, section 8.5.2), which is
    2 / (pi v) far from the core, and grows with the length of the pupil's edges over its area, by
    1 / (1 - obscuration). Over the edge of a square the mean of 1 / r is sin(pi/4) / (pi/4) over its half-width.

    Parameters
    ----------
    half_width : float
        Of the box [arcsec].
    wavelength : float
        [nm]
    diameter : float
        Of the pupil [m].
    obscuration : float
        Diameter of the central obscuration over that of the pupil.

    Examples
    --------
    >>> round(light_beyond(1.184, 755.0, 2.0), 4)
    0.012
    """
    resolution = np.degrees(wavelength * 1e-9 / diameter) * 3600
    mean_inverse = np.sin(np.pi / 4) / (np.pi / 4) / half_width
    return float(2 / np.pi**2 * resolution / (1 - obscuration) * mean_inverse)


def _aperture(size: int, radius: float) -> Float:
    """Return the share of a pixel inside an aperture, (size, size), for pixels centred on a half-pixel grid."""
    # A native pixel, two samples wide, around each point of the grid.
    fine = (np.arange(2 * _SUBPIXELS) + 0.5) / (2 * _SUBPIXELS) - 0.5
    position = (np.arange(size) - size // 2) / 2
    points = position[:, None] + fine
    inside = np.hypot(points[:, None, :, None], points[None, :, None, :]) < radius
    return np.asarray(inside.mean(axis=(2, 3)))
