"""The PSF of a wavefront: Fourier optics, sampled as the PSF basis is.

A PSF is the squared Fourier transform of the pupil function, blurred by charge diffusion, jitter, drift and the native
pixel. Its spectrum is computed at the few frequencies that the aperture passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import fft

from csstdask.instrument import Instrument
from csstdask.optics.blackbody import mean_wavelength
from csstdask.optics.fourier import drift_transfer, gaussian_transfer, pixel_transfer, transform_pupil
from csstdask.optics.pupil import Pupil, cutoff_frequency, sample_pupil, sample_zernikes
from csstdask.psf.basis import BASIS_PIXELS, BASIS_SIZE, OVERSAMPLING, polynomials
from csstdask.psf.colour import REFERENCE_TEMPERATURE

Float = npt.NDArray[np.float64]

#: Degree of the polynomials of the position that describe Zernike coefficients.
DEGREE = 2
#: Drift times frequency below which the derivative of a sinc is computed from its series [cycles].
_SERIES_LIMIT = 1e-4


@dataclass(frozen=True, eq=False)
class Wavefront:
    """The wavefront over a detector, retrieved from its stars.

    Attributes
    ----------
    orders : tuple of int
        Noll indices.
    coefficients, sigma : float64 arrays (p, order)
        Zernike coefficients of each polynomial of the position, and 1 sigma [nm].
    blur : float64 array (5,)
        Blur besides the native pixel: covariance xx, yy and xy of a Gaussian [pixel^2], and uniform drift of a star
        during the exposure, in x and y [pixel].
    """

    orders: tuple[int, ...]
    coefficients: Float
    sigma: Float
    blur: Float

    def at(self, u: Float, v: Float) -> Float:
        """Return Zernike coefficients (n, order) at positions (n,) between -1 and 1 on the detector [nm]."""
        return polynomials(u, v, DEGREE) @ self.coefficients

    def rms(self, u: Float, v: Float) -> Float:
        """Return the root mean square over the pupil (n,) at positions between -1 and 1 on the detector [nm]."""
        return np.asarray(np.linalg.norm(self.at(u, v), axis=1))


@dataclass(frozen=True)
class FourierOptics:
    """The optics of a band: an aperture and one wavelength.

    Attributes
    ----------
    pupil : Pupil
    wavelength : float
        Effective wavelength of the band [nm].
    certain : bool
        Whether the true optics have no other errors than the lower Zernike orders. The prior of the wavefront is then
        used whatever its evidence, and stars have no common truncation error.
    """

    pupil: Pupil
    wavelength: float
    certain: bool = False

    @classmethod
    def of(cls, instrument: Instrument, band: str) -> FourierOptics | None:
        """Return the optics of a band; None if the instrument has no telescope or geometry."""
        if instrument.telescope is None or instrument.geometry is None:
            return None
        telescope = instrument.telescope
        pupil = Pupil(telescope.diameter, telescope.obscuration, instrument.geometry.pixel_scale)
        wavelength = mean_wavelength(instrument.bands[band].wavelength, REFERENCE_TEMPERATURE)
        return cls(pupil, float(wavelength))

    @property
    def cutoff(self) -> float:
        """Highest frequency that the aperture passes [cycles/pixel]."""
        return cutoff_frequency(self.wavelength, self.pupil.diameter, self.pupil.pixel_scale)

    @cached_property
    def frequencies(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Float, Float]:
        """Rows and columns (m,) of a half spectrum that the aperture passes, and their frequencies x and y (m,).

        Frequencies are in cycles per pixel. Those that the sampling of the basis cannot represent are left out.
        """
        fy = np.fft.fftfreq(BASIS_SIZE, 1 / OVERSAMPLING)[:, None]
        fx = np.arange(BASIS_SIZE // 2) / BASIS_PIXELS
        rows, columns = np.nonzero((np.hypot(fx, fy) < self.cutoff) & (np.abs(fy) < OVERSAMPLING / 2))
        return rows, columns, fx[columns], fy[rows, 0]

    def spectra(self, orders: tuple[int, ...], coefficients: Float) -> npt.NDArray[np.complex64]:
        """Return the spectrum of the optical image, and its derivatives by the Zernike coefficients.

        Parameters
        ----------
        orders : tuple of int
            Noll indices.
        coefficients : float64 array (order,)
            Zernike coefficients [nm].

        Returns
        -------
        complex64 array (1 + order, frequency)
            At `frequencies`: the spectrum of the image, of unit sum, then its derivatives [1/nm].

        Notes
        -----
        Image = |FT of the pupil function|^2 (Goodman, Introduction to Fourier Optics, ch. 6).
        """
        # The smallest size at which no frequency is aliased onto one that is kept.
        size = BASIS_PIXELS * int(np.ceil(min(2 * self.cutoff, self.cutoff + OVERSAMPLING / 2)))
        points = sample_pupil(self.wavelength, self.pupil, BASIS_PIXELS)
        modes = sample_zernikes(orders, self.wavelength, self.pupil, BASIS_PIXELS)
        wave = 2j * np.pi / self.wavelength
        passed = (points.transmission * np.exp(wave * (coefficients @ modes))).astype(np.complex64)[None]
        amplitude = transform_pupil(np.concatenate([passed, np.complex64(wave) * modes * passed]), points, size)
        intensity = amplitude[0].real * amplitude.real + amplitude[0].imag * amplitude.imag
        intensity[1:] *= 2
        spectrum = fft.rfft2(intensity)
        rows, columns, _, _ = self.frequencies
        rows = np.where(rows < BASIS_SIZE // 2, rows, rows + size - BASIS_SIZE)
        return spectrum[:, rows, columns] / spectrum[0, 0, 0].real

    def image(self, wavefront: Wavefront) -> Float:
        """Return the effective PSF (BASIS_SIZE, BASIS_SIZE) of a wavefront at the centre of its detector.

        Values are light per native pixel, as in a `csstdask.psf.basis.PsfBasis`.
        """
        rows, columns, fx, fy = self.frequencies
        coefficients = wavefront.at(np.zeros(1), np.zeros(1))[0]
        transfer, _ = blur_transfer(fx, fy, wavefront.blur)
        spectrum = np.zeros((BASIS_SIZE, BASIS_SIZE // 2 + 1), dtype=np.complex128)
        spectrum[rows, columns] = self.spectra(wavefront.orders, coefficients)[0] * transfer
        return np.fft.fftshift(fft.irfft2(spectrum, s=(BASIS_SIZE, BASIS_SIZE))) * OVERSAMPLING**2


def blur_transfer(fx: Float, fy: Float, blur: Float) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the transfer function of blur and native pixel, and its derivatives by the blur.

    Parameters
    ----------
    fx, fy : float64 arrays (n,)
        Frequencies [cycles/pixel].
    blur : float64 array (5,)
        As in `Wavefront`.

    Returns
    -------
    transfer : float32 array (n,)
    derivatives : float32 array (5, n)
    """
    quadratic = -2 * np.pi**2 * np.stack([fx**2, fy**2, 2 * fx * fy])
    drift = blur[3] * fx + blur[4] * fy
    of_drift = drift_transfer(fx, fy, blur[3], blur[4])
    small = np.abs(drift) < _SERIES_LIMIT
    exact = (np.cos(np.pi * drift) - of_drift) / np.where(small, 1, drift)
    slope = np.where(small, -(np.pi**2) / 3 * drift, exact)
    rest = gaussian_transfer(fx, fy, blur[0], blur[1], blur[2]) * pixel_transfer(fx, fy)
    derivatives = np.concatenate([quadratic * of_drift, np.stack([fx * slope, fy * slope])]) * rest
    return (of_drift * rest).astype(np.float32), derivatives.astype(np.float32)
