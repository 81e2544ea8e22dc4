"""What an aperture makes of a wavefront: Fourier optics, seen as principal PSFs are sampled.

A PSF is the squared transform of its pupil, blurred by charge, jitter and drift, and by the pixel. It is worked out as
its spectrum, at the few frequencies that the aperture passes.
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

#: Of the polynomials of a place that Zernike coefficients are.
DEGREE = 2
#: Drifts a cycle below which the slope of a sinc is told by its first term.
_SMALL = 1e-4


@dataclass(frozen=True)
class Wavefront:
    """The wavefront over a detector, as its stars show it.

    Attributes
    ----------
    orders : tuple of int
        Noll indices.
    coefficients, sigma : float64 arrays (p, order)
        Of each polynomial of the place and Zernike polynomial, and one sigma [nm].
    blur : float64 array (5,)
        What else widens the PSF, the pixel aside: a Gaussian's covariance x x, y y and x y [pixel^2], and how far a
        star drifts evenly during an exposure, in x and y [pixel].
    """

    orders: tuple[int, ...]
    coefficients: Float
    sigma: Float
    blur: Float

    def at(self, u: Float, v: Float) -> Float:
        """Return Zernike coefficients (n, order) at places between -1 and 1 on the detector [nm]."""
        return polynomials(u, v, DEGREE) @ self.coefficients

    def rms(self, u: Float, v: Float) -> Float:
        """Return the root mean square over the unit disk at places between -1 and 1 on the detector (n,) [nm]."""
        return np.asarray(np.linalg.norm(self.at(u, v), axis=1))


@dataclass(frozen=True)
class FourierOptics:
    """The optics of a band: an aperture, seen at one wavelength.

    Attributes
    ----------
    pupil : (float, float, float)
        Diameter [m], obscuration, pixel scale [arcsec].
    wavelength : float
        At which the band is seen [nm].
    certain : bool
        Whether this is all that there is, of lower orders: then evidence is not asked, and stars share no error.
    """

    pupil: Pupil
    wavelength: float
    certain: bool = False

    @classmethod
    def of(cls, instrument: Instrument, band: str) -> FourierOptics | None:
        """Return the optics of a band, None if the instrument tells of none."""
        if instrument.telescope is None or instrument.geometry is None:
            return None
        telescope = instrument.telescope
        pupil = Pupil(telescope.diameter, telescope.obscuration, instrument.geometry.pixel_scale)
        wavelength = mean_wavelength(instrument.bands[band].wavelength, REFERENCE_TEMPERATURE)
        return cls(pupil, float(wavelength))

    @cached_property
    def frequencies(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Float, Float]:
        """Rows and columns (m,) of a half spectrum that light reaches, and frequencies x and y (m,) [cycles/pixel].

        Images are sampled as principal PSFs are; what these samples cannot hold is left out.
        """
        fy, fx = np.fft.fftfreq(BASIS_SIZE, 1 / OVERSAMPLING)[:, None], np.arange(BASIS_SIZE // 2) / BASIS_PIXELS
        highest = cutoff_frequency(self.wavelength, self.pupil.diameter, self.pupil.pixel_scale)
        rows, columns = np.nonzero((np.hypot(fx, fy) < highest) & (np.abs(fy) < OVERSAMPLING / 2))
        return rows, columns, fx[columns], fy[rows, 0]

    def spectra(self, orders: tuple[int, ...], coefficients: Float) -> npt.NDArray[np.complex64]:
        """Return the spectrum of the optical image, and how it changes with each coefficient.

        Parameters
        ----------
        orders : tuple of int
            Noll indices.
        coefficients : float64 array (order,)
            [nm]

        Returns
        -------
        complex64 array (1 + order, frequency)
            At `frequencies`; the image's first, of unit light.

        Notes
        -----
        Image = |FT of the pupil function|^2 (Goodman, Introduction to Fourier Optics, ch. 6).
        """
        highest = cutoff_frequency(self.wavelength, self.pupil.diameter, self.pupil.pixel_scale)
        # As few samples as fold no frequency onto one that is wanted.
        n = BASIS_PIXELS * int(np.ceil(min(2 * highest, highest + OVERSAMPLING / 2)))
        points = sample_pupil(self.wavelength, self.pupil, BASIS_PIXELS)
        basis = sample_zernikes(orders, self.wavelength, self.pupil, BASIS_PIXELS)
        wave = 2j * np.pi / self.wavelength
        passed = (points.transmission * np.exp(wave * (coefficients @ basis))).astype(np.complex64)[None]
        amplitude = transform_pupil(np.concatenate([passed, np.complex64(wave) * basis * passed]), points, n)
        intensity = amplitude[0].real * amplitude.real + amplitude[0].imag * amplitude.imag
        intensity[1:] *= 2
        spectrum = fft.rfft2(intensity)
        kept_rows, kept_columns, _, _ = self.frequencies
        kept_rows = np.where(kept_rows < BASIS_SIZE // 2, kept_rows, kept_rows + n - BASIS_SIZE)
        return spectrum[:, kept_rows, kept_columns] / spectrum[0, 0, 0].real

    def image(self, wavefront: Wavefront) -> Float:
        """Return the effective PSF that a wavefront makes in the middle of its detector (SIDE, SIDE).

        Values are those of `PrincipalPsfs`: light a native pixel.
        """
        rows, columns, fx, fy = self.frequencies
        coefficients = wavefront.at(np.zeros(1), np.zeros(1))[0]
        transfer, _ = blur_transfer(fx, fy, wavefront.blur)
        spectrum = np.zeros((BASIS_SIZE, BASIS_SIZE // 2 + 1), dtype=np.complex128)
        spectrum[rows, columns] = self.spectra(wavefront.orders, coefficients)[0] * transfer
        return np.fft.fftshift(fft.irfft2(spectrum, s=(BASIS_SIZE, BASIS_SIZE))) * OVERSAMPLING**2


def blur_transfer(fx: Float, fy: Float, blur: Float) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the transfer of blur and pixel at frequencies (n,), and how it changes with the blur (5, n)."""
    quadratic = -2 * np.pi**2 * np.stack([fx**2, fy**2, 2 * fx * fy])
    drift = blur[3] * fx + blur[4] * fy
    drifted = drift_transfer(fx, fy, blur[3], blur[4])
    small = np.abs(drift) < _SMALL
    slope = np.where(small, -(np.pi**2) / 3 * drift, (np.cos(np.pi * drift) - drifted) / np.where(small, 1, drift))
    rest = gaussian_transfer(fx, fy, blur[0], blur[1], blur[2]) * pixel_transfer(fx, fy)
    change = np.concatenate([quadratic * drifted, np.stack([fx * slope, fy * slope])]) * rest
    return (drifted * rest).astype(np.float32), change.astype(np.float32)
