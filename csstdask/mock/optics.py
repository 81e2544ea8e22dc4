"""From a wavefront to the effective point spread function, by Fourier optics, many at a time.

The effective PSF is the light of a point source in a native pixel, as a function of where the pixel lies:
optics, jitter, charge diffusion and the pixel itself. An aperture lets no spatial frequency pass beyond D / lambda,
so a sampling finer than half of that holds all of it; what follows from the samples (a shift, another sampling)
is then exact, and no interpolation between pixels is ever made.

This is written here, and not left to GalSim's `OpticalPSF`, because it gives hundreds of PSFs in one transform,
on NumPy or CuPy arrays, with exact sampling; a test holds it to GalSim's result.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft

from csstdask.mock.wavefront import Ripples
from csstdask.optics.fourier import drift_transfer, gaussian_transfer, pixel_transfer, transform_pupil
from csstdask.optics.pupil import ARCSEC, Pupil, cutoff_frequency, sample_pupil, sample_zernikes

Float = npt.NDArray[np.float64]

#: Native pixels along the edge of a PSF's core; beyond it there are only the wings.
CORE = 64
#: Native pixels along the edge of the transform: twice as far as light is kept, or nearly.
_FIELD = 96
#: Between these radii [pixel] the core fades out and the wings fade in.
FADE = (24.0, 31.5)
#: Of a PSF's spectrum, at zero 1: what may be left out.
_NOTHING = 2e-5


@dataclass(frozen=True)
class Sampling:
    """How finely PSFs of a wavelength band are sampled."""

    fine: int
    """Samples a native pixel of a PSF's image; even, so that half pixels are among them, and at least 4."""
    folds: int
    """The least number of samples a pixel that holds all frequencies: what rendering needs."""


@dataclass(frozen=True)
class Blur:
    """What widens the optical image, as transfer functions."""

    jitter: npt.NDArray[np.float64]
    """Covariance of the line of sight, x and y [pixel^2]."""
    line: bool
    """Whether the jitter is a steady drift along the longer axis, and no Gaussian."""
    diffusion: float
    """One sigma [pixel]."""

    def transfer(self, fx: Float, fy: Float) -> Float:
        """Return the transfer at frequencies, that of the native pixel included [cycles / pixel]."""
        diffusion = gaussian_transfer(fx, fy, self.diffusion**2, self.diffusion**2)
        if self.line:
            values, vectors = np.linalg.eigh(self.jitter)
            along = vectors[:, 1] * np.sqrt(12 * values[1])  # a uniform drift of that variance
            jitter = drift_transfer(fx, fy, along[0], along[1])
        else:
            (xx, xy), (_, yy) = self.jitter
            jitter = gaussian_transfer(fx, fy, xx, yy, xy)
        return np.asarray(diffusion * jitter * pixel_transfer(fx, fy))


def sampling_for(highest: float, blur: Blur) -> Sampling:
    """Return the sampling that holds all of a PSF.

    Parameters
    ----------
    highest : float
        The aperture's cut-off [cycles / pixel].
    blur : Blur
        Jitter and diffusion let little of the highest frequencies through: what is below `_NOTHING` is not kept.
    """
    frequency = np.arange(0, highest + 0.05, 0.05)
    turn = np.linspace(0, np.pi, 24, endpoint=False)
    passed = abs(blur.transfer(np.outer(np.cos(turn), frequency), np.outer(np.sin(turn), frequency))).max(axis=0)
    place = np.minimum(frequency / highest, 1)
    # Of an unaberrated aperture; aberrations only lower it (Goodman, eq. 6-31).
    passed *= 2 / np.pi * (np.arccos(place) - place * np.sqrt(1 - place**2))
    last = frequency[np.flatnonzero(passed > _NOTHING)[-1]]
    folds = int(np.ceil(2 * last * 1.02))  # fading the core out widens the spectrum by a hair
    return Sampling(fine=max(4, folds + folds % 2), folds=folds)


def fade(fine: int) -> npt.NDArray[np.float32]:
    """Return the window of a PSF's core: 1 inside, 0 at its edge (y, x), `fine` samples a pixel."""
    axis = (np.arange(CORE * fine) - CORE * fine // 2) / fine
    radius = np.hypot(axis[:, None], axis[None, :])
    along = np.clip((radius - FADE[0]) / (FADE[1] - FADE[0]), 0, 1)
    return (0.5 + 0.5 * np.cos(np.pi * along)).astype(np.float32)


def wing_light(wavelength: float, diameter: float, obscuration: float, pixel_scale: float) -> float:
    """Return the share of the light beyond the core, in the wings of an open aperture.

    Far out the Airy pattern's mean is lambda / (pi^3 D r^3) (from 1 - EE(r) = 2 lambda / (pi^2 D r)); a central
    obscuration adds its own edge and takes its own area.
    """
    radius = np.linspace(*FADE, 257)
    along = (radius - FADE[0]) / (FADE[1] - FADE[0])
    fading = np.trapezoid((0.5 - 0.5 * np.cos(np.pi * along)) / radius**2, radius) + 1 / FADE[1]
    return float(2 / np.pi**2 * wavelength * 1e-9 / (diameter * (1 - obscuration) * pixel_scale * ARCSEC) * fading)


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
    """Return cores of effective PSFs at one wavelength.

    Parameters
    ----------
    coefficients : float64 array (n, order)
        Of the wavefront [nm].
    orders : tuple of int
        Their Noll indices.
    wavelength : float
        [nm]
    pupil : (float, float, float)
        Diameter [m], obscuration, pixel scale [arcsec].
    blur : Blur
    fine : int
        Samples a native pixel.
    ripples : Ripples, optional
    xp : module
        NumPy or CuPy.

    Returns
    -------
    float32 array (n, CORE * fine, CORE * fine)
        Share of the light in a native pixel centred at each sample; the source is at
        ``[CORE * fine // 2, CORE * fine // 2]``. The window of `fade` has been applied.

    Notes
    -----
    Image = |FT of the pupil function|^2 (Goodman, Introduction to Fourier Optics, ch. 6), times the transfer
    functions of jitter, diffusion and pixel.
    """
    points = sample_pupil(wavelength, pupil, _FIELD)
    highest = cutoff_frequency(wavelength, pupil[0], pupil[2])
    # The aperture's own frequencies must not fold onto each other, even those that the blur then takes away.
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
    # The transform has folded the light beyond its field back into it: the share of the wings is known better.
    share = 1 - wing_light(wavelength, *pupil)
    core *= np.float32(share * fine**2) / core.sum(axis=(1, 2), keepdims=True)
    return core.astype(np.float32)
