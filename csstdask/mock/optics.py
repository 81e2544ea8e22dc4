"""Effective point spread functions from wavefronts, by Fourier optics.

The effective PSF is the fraction of the light of a point source in a native pixel, as a function of the position of the
pixel. It includes optics, jitter, charge diffusion and the pixel. An aperture passes no spatial frequency beyond
D / lambda, so samples finer than half of the inverse contain all of it: shifts and resampling are exact.

The module computes hundreds of PSFs in one transform, on NumPy or CuPy arrays. A test compares it with GalSim's
`OpticalPSF`.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft

from csstdask.core.constants import RAD_PER_ARCSEC
from csstdask.mock.wavefront import Ripples
from csstdask.optics.fourier import drift_transfer, gaussian_transfer, pixel_transfer, transform_pupil
from csstdask.optics.pupil import Pupil, cutoff_frequency, sample_pupil, sample_zernikes

Float = npt.NDArray[np.float64]

CORE = 64
"""Side length of the core of a PSF; outside there are only wings [native pixel]."""
_FIELD = 96
"""Side length of the Fourier transform [native pixel]."""
FADE = (24.0, 31.5)
"""Radii between which the core fades out and the wings fade in [native pixel]."""
_MIN_TRANSFER = 2e-5
"""Transfer below which spatial frequencies are neglected."""


@dataclass(frozen=True)
class Sampling:
    """Sampling of the PSFs of a wavelength band."""

    fine: int
    """Samples per native pixel of a PSF image; even, so that half pixels are included, and at least 4."""
    folds: int
    """Smallest number of samples per native pixel that contains all frequencies, as needed for rendering."""


@dataclass(frozen=True)
class Blur:
    """Jitter, charge diffusion and native pixel, as transfer functions."""

    jitter: npt.NDArray[np.float64]
    """Covariance of the line of sight in x and y (2, 2) [pixel^2]."""
    line: bool
    """Whether the jitter is a uniform drift along the major axis instead of a Gaussian."""
    diffusion: float
    """Charge diffusion, 1 sigma [pixel]."""

    def transfer(self, fx: Float, fy: Float) -> Float:
        """Return the transfer at frequencies [cycles/pixel], including that of the native pixel.

        Examples
        --------
        >>> float(Blur(np.zeros((2, 2)), line=False, diffusion=0.25).transfer(np.array(0.0), np.array(0.0)))
        1.0
        """
        diffusion = gaussian_transfer(fx, fy, self.diffusion**2, self.diffusion**2)
        if self.line:
            values, vectors = np.linalg.eigh(self.jitter)
            along = vectors[:, 1] * np.sqrt(12 * values[1])  # length of a uniform drift with this variance
            jitter = drift_transfer(fx, fy, along[0], along[1])
        else:
            (xx, xy), (_, yy) = self.jitter
            jitter = gaussian_transfer(fx, fy, xx, yy, xy)
        return np.asarray(diffusion * jitter * pixel_transfer(fx, fy))


def sampling_for(highest: float, blur: Blur) -> Sampling:
    """Return the sampling that contains all significant frequencies of a PSF.

    Parameters
    ----------
    highest : float
        Cut-off frequency of the aperture [cycles/pixel].
    blur : Blur
        Jitter, diffusion and pixel, which suppress the highest frequencies.
    """
    frequency = np.arange(0, highest + 0.05, 0.05)
    direction = np.linspace(0, np.pi, 24, endpoint=False)
    passed = abs(blur.transfer(np.outer(np.cos(direction), frequency), np.outer(np.sin(direction), frequency))).max(
        axis=0
    )
    relative = np.minimum(frequency / highest, 1)
    # Transfer of an unaberrated aperture; aberrations only reduce it (Goodman, eq. 6-31).
    passed *= 2 / np.pi * (np.arccos(relative) - relative * np.sqrt(1 - relative**2))
    last = frequency[np.flatnonzero(passed > _MIN_TRANSFER)[-1]]
    folds = int(np.ceil(2 * last * 1.02))  # the window of the core widens the spectrum slightly
    return Sampling(fine=max(4, folds + folds % 2), folds=folds)


def fade(fine: int) -> npt.NDArray[np.float32]:
    """Return the window of the core of a PSF (y, x): 1 inside, 0 at the edge, with `fine` samples per pixel."""
    axis = (np.arange(CORE * fine) - CORE * fine // 2) / fine
    radius = np.hypot(axis[:, None], axis[None, :])
    along = np.clip((radius - FADE[0]) / (FADE[1] - FADE[0]), 0, 1)
    return (0.5 + 0.5 * np.cos(np.pi * along)).astype(np.float32)


def wing_light(wavelength: float, diameter: float, obscuration: float, pixel_scale: float) -> float:
    """Return the fraction of the light outside the core, in the wings of an aperture.

    At large radii the mean of the Airy pattern is lambda / (pi^3 D r^3), from 1 - EE(r) = 2 lambda / (pi^2 D r). A
    central obscuration adds its edge and removes its area.

    Parameters
    ----------
    wavelength : float
        Wavelength [nm].
    diameter : float
        Diameter of the pupil [m].
    obscuration : float
        Diameter of the central obscuration relative to the pupil.
    pixel_scale : float
        Pixel scale [arcsec/pixel].

    Examples
    --------
    >>> round(wing_light(600.0, 2.0, 0.0, 0.074), 4)
    0.0061
    """
    radius = np.linspace(*FADE, 257)
    along = (radius - FADE[0]) / (FADE[1] - FADE[0])
    fading = np.trapezoid((0.5 - 0.5 * np.cos(np.pi * along)) / radius**2, radius) + 1 / FADE[1]
    return float(
        2 / np.pi**2 * wavelength * 1e-9 / (diameter * (1 - obscuration) * pixel_scale * RAD_PER_ARCSEC) * fading
    )


def effective_psf(
    coefficients: Float,
    orders: tuple[int, ...],
    wavelength: float,
    *,
    pupil: Pupil,
    blur: Blur,
    fine: int,
    ripples: Ripples | None = None,
    xp: ModuleType = np,
) -> npt.NDArray[np.float32]:
    """Return the cores of effective PSFs at one wavelength.

    Parameters
    ----------
    coefficients : float64 array (n, order)
        Zernike coefficients of the wavefront, rms [nm].
    orders : tuple of int
        Noll indices of the coefficients.
    wavelength : float
        Wavelength [nm].
    pupil : Pupil
        Diameter, obscuration and pixel scale.
    blur : Blur
        Jitter, diffusion and pixel.
    fine : int
        Samples per native pixel.
    ripples : Ripples, optional
        Mid-frequency wavefront errors.
    xp : module
        NumPy or CuPy.

    Returns
    -------
    float32 array (n, CORE * fine, CORE * fine)
        Fraction of the light in a native pixel centred on each sample; the source is at
        ``[CORE * fine // 2, CORE * fine // 2]``. The window of `fade` is applied.

    Notes
    -----
    Image = |FT of the pupil function|^2 (Goodman, Introduction to Fourier Optics, ch. 6), times the transfer
    functions of jitter, diffusion and pixel.
    """
    points = sample_pupil(wavelength, pupil, _FIELD)
    highest = cutoff_frequency(wavelength, pupil[0], pupil[2])
    # Frequencies of the aperture must not alias, even those that the blur removes later.
    finest = max(fine, 2 * int(np.ceil(highest)))
    n, wanted = _FIELD * finest, _FIELD * fine
    basis = xp.asarray(sample_zernikes(orders, wavelength, pupil, _FIELD))
    path = xp.asarray(coefficients, dtype=np.float32) @ basis
    if ripples is not None:
        path = path + xp.asarray(ripples.path_difference(points.x, points.y), dtype=np.float32)
    phase = path * np.float32(2 * np.pi / wavelength)
    passed = xp.asarray(points.transmission, dtype=np.float32) * xp.exp(1j * phase)
    intensity = xp.abs(transform_pupil(passed, points, n, xp)) ** 2
    rows_kept = np.r_[: wanted // 2, n - wanted // 2 : n]
    frequency = np.fft.fftfreq(n, 1 / finest).astype(np.float64)[rows_kept]
    along_x = np.arange(wanted // 2 + 1, dtype=np.float64) / _FIELD
    transfer = blur.transfer(along_x[None, :], frequency[:, None])
    transform: Any = fft if xp is np else xp.fft
    spectrum = transform.rfft2(intensity)[:, rows_kept, : wanted // 2 + 1]
    spectrum *= xp.asarray(transfer, dtype=np.float32) / spectrum[:, :1, :1].real
    image = transform.irfft2(spectrum, s=(wanted, wanted)) * np.float32(fine**2)
    keep = np.r_[-CORE * fine // 2 : CORE * fine // 2]
    core = image[:, keep[:, None] % wanted, keep[None, :] % wanted] * xp.asarray(fade(fine))
    # The transform aliases light from outside its field, so the total is set from the fraction in the wings.
    share = 1 - wing_light(wavelength, *pupil)
    core *= np.float32(share * fine**2) / core.sum(axis=(1, 2), keepdims=True)
    return core.astype(np.float32)
