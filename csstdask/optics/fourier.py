"""Fourier optics: from the light that passes a pupil to the spectrum of its image, and what blurs the image.

An image is the squared modulus of the Fourier transform of the pupil function (Goodman, Introduction to Fourier Optics,
chapter 6). It contains no frequency above the cut-off ``D / lambda``, so a finite spectrum holds all of it. Jitter,
charge diffusion and the native pixel multiply this spectrum by transfer functions. Frequencies are in cycles per
native pixel.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft

from csstdask.optics.pupil import PupilSamples

Float = npt.NDArray[np.float64]


def gaussian_transfer(fx: Float, fy: Float, xx: float, yy: float, xy: float = 0.0) -> Float:
    """Return the transfer function of a Gaussian blur.

    Parameters
    ----------
    fx, fy : float64 arrays
        Frequencies [cycles / pixel]; broadcast.
    xx, yy, xy : float
        Covariance of the Gaussian [pixel^2].

    Examples
    --------
    >>> gaussian_transfer(np.array([0.0, 0.5]), np.zeros(2), 0.25, 0.25).round(3).tolist()
    [1.0, 0.291]
    """
    return np.exp(-2 * np.pi**2 * (xx * fx**2 + 2 * xy * fx * fy + yy * fy**2))


def drift_transfer(fx: Float, fy: Float, dx: float, dy: float) -> Float:
    """Return the transfer function of a uniform drift by dx, dy during an exposure [pixel].

    Examples
    --------
    >>> drift_transfer(np.array([0.5]), np.array([0.0]), 1.0, 0.0).round(3).tolist()
    [0.637]
    """
    return np.sinc(dx * fx + dy * fy)


def pixel_transfer(fx: Float, fy: Float) -> Float:
    """Return the transfer function of the native pixel.

    Examples
    --------
    >>> pixel_transfer(np.array([0.0, 1.0]), np.zeros(2)).round(3).tolist()
    [1.0, 0.0]
    """
    return np.sinc(fx) * np.sinc(fy)


def transform_pupil(passed: Any, points: PupilSamples, size: int, xp: ModuleType = np) -> Any:
    """Return the complex amplitude of images, the Fourier transform of pupil functions.

    Parameters
    ----------
    passed : complex array (n, point)
        Pupil function at the points of a pupil. NumPy or CuPy.
    points : PupilSamples
    size : int
        Samples along the edge of the image.
    xp : module
        NumPy or CuPy.

    Returns
    -------
    complex64 array (n, size, size)
        In the layout of a discrete Fourier transform, centre at ``[0, 0]``, up to a phase and a constant factor.
    """
    pupil = xp.zeros((len(passed), size, size), dtype=np.complex64)
    pupil[:, points.rows, points.columns] = passed
    if xp is np:
        return fft.ifft2(pupil, overwrite_x=True)
    return xp.fft.ifft2(pupil)
