"""The aperture of a telescope, sampled for Fourier optics: transmission and Zernike polynomials."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from csstdask.core.constants import RAD_PER_ARCSEC
from csstdask.optics.zernike import zernike


class Pupil(NamedTuple):
    """A circular aperture with a central obscuration, and the camera behind it."""

    diameter: float
    """[m]"""
    obscuration: float
    """Diameter of the obscuration over that of the aperture."""
    pixel_scale: float
    """[arcsec]"""


@dataclass(frozen=True, eq=False)
class PupilSamples:
    """Points of a pupil that pass light, on the grid whose Fourier transform is an image."""

    rows: npt.NDArray[np.intp]
    """(n,) Row of each point, from the first row of the pupil: a shift of the pupil does not change the image."""
    columns: npt.NDArray[np.intp]
    """(n,) Column of each point."""
    x: npt.NDArray[np.float64]
    """(n,) Coordinate from the centre, in units of the radius of the pupil."""
    y: npt.NDArray[np.float64]
    transmission: npt.NDArray[np.float64]
    """(n,) 0 to 1: edges are one sample wide, because steps would scatter light."""


def cutoff_frequency(wavelength: float, diameter: float, pixel_scale: float) -> float:
    """Return the highest spatial frequency that an aperture passes, D / lambda [cycles / pixel].

    Parameters
    ----------
    wavelength : float
        [nm]
    diameter : float
        [m]
    pixel_scale : float
        [arcsec]

    Examples
    --------
    >>> round(cutoff_frequency(620.0, 2.0, 0.074), 3)
    1.157
    """
    return diameter / (wavelength * 1e-9) * pixel_scale * RAD_PER_ARCSEC


@lru_cache(maxsize=32)
def sample_pupil(wavelength: float, pupil: Pupil, image_pixels: int) -> PupilSamples:
    """Sample a pupil so that its Fourier transform is an image of a given extent.

    Parameters
    ----------
    wavelength : float
        [nm]
    pupil : Pupil
    image_pixels : int
        Extent of the image [native pixel].

    Examples
    --------
    >>> points = sample_pupil(620.0, Pupil(2.0, 0.0, 0.074), 40)
    >>> bool(np.hypot(points.x, points.y).max() < 1.05)
    True
    """
    diameter, obscuration, pixel_scale = pupil
    step = wavelength * 1e-9 / (image_pixels * pixel_scale * RAD_PER_ARCSEC)  # in the pupil [m]
    radius = diameter / 2 / step
    half = int(np.ceil(radius)) + 1
    axis = np.arange(-half, half + 1, dtype=np.float64)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    distance = np.hypot(x, y)
    transmission = np.clip(radius - distance + 0.5, 0, 1)
    if obscuration > 0:
        transmission *= np.clip(distance - radius * obscuration + 0.5, 0, 1)
    rows, columns = np.nonzero(transmission)
    inside = rows, columns
    return PupilSamples(rows, columns, x[inside] / radius, y[inside] / radius, transmission[inside])


@lru_cache(maxsize=32)
def sample_zernikes(
    orders: tuple[int, ...], wavelength: float, pupil: Pupil, image_pixels: int
) -> npt.NDArray[np.float32]:
    """Evaluate Zernike polynomials on the points of `sample_pupil`.

    Parameters
    ----------
    orders : tuple of int
        Noll indices.
    wavelength, pupil, image_pixels
        As for `sample_pupil`.

    Returns
    -------
    float32 array (order, n)
    """
    points = sample_pupil(wavelength, pupil, image_pixels)
    return np.stack([zernike(order, points.x, points.y) for order in orders]).astype(np.float32)
