"""A telescope's aperture, as Fourier optics samples it: what passes, and the Zernike polynomials over it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from csstdask.optics.zernike import zernike

#: Diameter [m], obscuration (diameter / diameter), and pixel scale [arcsec] of the camera behind it.
Pupil = tuple[float, float, float]

ARCSEC = np.pi / 180 / 3600


def cutoff_frequency(wavelength: float, diameter: float, pixel_scale: float) -> float:
    """Return the highest spatial frequency that an aperture passes [cycles / pixel].

    Parameters
    ----------
    wavelength : float
        [nm]
    diameter : float
        [m]
    pixel_scale : float
        [arcsec]
    """
    return diameter / (wavelength * 1e-9) * pixel_scale * ARCSEC


@lru_cache(maxsize=32)
def sample_pupil(
    wavelength: float, pupil: Pupil, field: int
) -> tuple[
    npt.NDArray[np.intp],
    npt.NDArray[np.intp],
    npt.NDArray[np.float64],
    npt.NDArray[np.float64],
    npt.NDArray[np.float64],
]:
    """Return the samples of a pupil whose transform is an image.

    Parameters
    ----------
    wavelength : float
        [nm]
    pupil : (float, float, float)
        Diameter [m], obscuration, pixel scale [arcsec].
    field : int
        Native pixels along the edge of the image.

    Returns
    -------
    rows, columns : int arrays (n,)
        Where they lie, zero in the pupil's middle.
    x, y : float64 arrays (n,)
        In radii of the pupil.
    openness : float64 array (n,)
        0 to 1: the edge is soft by one sample, or its steps would scatter light.
    """
    diameter, obscuration, pixel_scale = pupil
    step = wavelength * 1e-9 / (field * pixel_scale * ARCSEC)  # in the pupil [m]
    radius = diameter / 2 / step
    half = int(np.ceil(radius)) + 1
    axis = np.arange(-half, half + 1, dtype=np.float64)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    distance = np.hypot(x, y)
    openness = np.clip(radius - distance + 0.5, 0, 1)
    if obscuration > 0:
        openness *= np.clip(distance - radius * obscuration + 0.5, 0, 1)
    rows, columns = np.nonzero(openness)
    inside = openness[rows, columns]
    return rows, columns, x[rows, columns] / radius, y[rows, columns] / radius, inside


@lru_cache(maxsize=32)
def sample_zernikes(orders: tuple[int, ...], wavelength: float, pupil: Pupil, field: int) -> npt.NDArray[np.float32]:
    """Return Zernike polynomials (order, n) of Noll indices `orders` on the `sample_pupil` of a pupil."""
    _, _, x, y, _ = sample_pupil(wavelength, pupil, field)
    return np.stack([zernike(order, x, y) for order in orders]).astype(np.float32)
