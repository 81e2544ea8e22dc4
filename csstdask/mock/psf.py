"""The PSF of a mock telescope, exact at any position and time.

`PsfModel.effective` is the truth of PSF evaluations: the effective PSF of a star of given colour. PSFs for rendering
are in `csstdask.mock.scene_psf`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.moments import adaptive_moments
from csstdask.instrument import Instrument
from csstdask.mock.optics import CORE, Blur, Sampling, effective_psf, sampling_for
from csstdask.mock.recipe_tables import Optics
from csstdask.mock.wavefront import Wavefront
from csstdask.optics.blackbody import photon_rate, sample_band
from csstdask.optics.pupil import Pupil, cutoff_frequency

Float = npt.NDArray[np.float64]

SUB_BANDS = 4
"""Number of wavelengths per filter."""
_BATCH_SIZE = 8
"""Number of PSFs computed at a time, which takes some hundred MiB."""
_N_ITERATIONS = 4
"""Iterations of the search for a blur; each reduces the error about tenfold."""


def sub_band_wavelengths(limits: tuple[float, float]) -> Float:
    """Return the central wavelengths of the parts of a filter (SUB_BANDS,) [nm].

    Examples
    --------
    >>> [float(one) for one in sub_band_wavelengths((400.0, 480.0))]
    [410.0, 430.0, 450.0, 470.0]
    """
    return sample_band(limits, SUB_BANDS)


def sub_band_weights(limits: tuple[float, float], temperature: npt.ArrayLike) -> Float:
    """Return the fraction of the photons of black bodies in each part of a filter (n, SUB_BANDS)."""
    rate = np.atleast_2d(photon_rate(sub_band_wavelengths(limits), np.atleast_1d(temperature)))
    return rate / rate.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class OpticalState:
    """State of a telescope during one exposure."""

    epoch: float = 0.0
    """Time after launch [yr]."""
    enlarge: float = 0.0
    """Relative growth of the PSF size R by a Gaussian blur, at the centre of the detector."""
    jitter: float = 1.0
    """Factor on the jitter of that epoch."""


AT_LAUNCH = OpticalState()


@dataclass(frozen=True)
class EffectivePsf:
    """Effective PSFs of n sources."""

    image: npt.NDArray[np.float32]
    """Images (n, size, size), centred on ``[size // 2, size // 2]``, each with sum 1."""
    outside: npt.NDArray[np.float32]
    """Fraction of the light outside the image (n,)."""


class PsfModel:
    """PSF of a telescope.

    Parameters
    ----------
    settings : Optics
        Table of the recipe.
    instrument : Instrument
        Camera with geometry, telescope and bands.
    xp : module
        NumPy or CuPy.

    Examples
    --------
    >>> from csstdask.instrument import load_instrument
    >>> psf = PsfModel(Optics(), load_instrument("csst")).effective(8, [4608.0], [4616.0])
    >>> psf.image.shape
    (1, 64, 64)
    """

    def __init__(self, settings: Optics, instrument: Instrument, xp: ModuleType = np) -> None:
        if instrument.geometry is None or instrument.telescope is None:
            raise ValueError(f"instrument {instrument.name} has no geometry or telescope")
        self.settings = settings
        self.wavefront = Wavefront(settings, instrument)
        self.instrument = instrument
        self._scale = instrument.geometry.pixel_scale
        self._pupil = Pupil(instrument.telescope.diameter, instrument.telescope.obscuration, self._scale)
        self._xp = xp

    def limits(self, detector: int) -> tuple[float, float]:
        """Return the passband of a detector [nm]."""
        return self.instrument.bands[str(self.instrument.detector(detector).band)].wavelength

    def sampling(self, detector: int, state: OpticalState = AT_LAUNCH) -> Sampling:
        """Return the sampling of the PSFs of a detector."""
        shortest = sub_band_wavelengths(self.limits(detector))[0]
        return sampling_for(cutoff_frequency(shortest, self._pupil.diameter, self._scale), self.blur(state))

    def blur(self, state: OpticalState) -> Blur:
        """Return jitter and diffusion during an exposure."""
        covariance = self.wavefront.jitter_covariance(state.epoch) * (state.jitter / self._scale) ** 2
        return Blur(covariance, self.settings.jitter_shape == "line", self.settings.diffusion)

    def cores(
        self, detector: int, x: npt.ArrayLike, y: npt.ArrayLike, part: int, state: OpticalState = AT_LAUNCH
    ) -> Any:
        """Return images of the monochromatic PSF in one part of the filter.

        Parameters
        ----------
        detector : int
            Detector id.
        x, y : array-like (n,)
            Zero-based positions on the complete detector [pixel].
        part : int
            Part of the filter, 0 to SUB_BANDS - 1.
        state : OpticalState
            State of the telescope.

        Returns
        -------
        float32 array (n, CORE * fine, CORE * fine)
        """
        extra = self._extra_variance(detector, state) if state.enlarge else 0.0
        return self._blurred(detector, x, y, part, state, extra)

    def _blurred(
        self, detector: int, x: npt.ArrayLike, y: npt.ArrayLike, part: int, state: OpticalState, variance: float
    ) -> Any:
        """Return images of the PSF convolved with a Gaussian of given variance [pixel^2]."""
        blur = self.blur(state)
        blur = replace(blur, diffusion=float(np.sqrt(blur.diffusion**2 + variance)))
        coefficients = self.wavefront.coefficients(detector, x, y, state.epoch)
        orders = tuple(int(order) for order in self.wavefront.orders)
        wavelength = float(sub_band_wavelengths(self.limits(detector))[part])
        batches = [
            effective_psf(
                coefficients[first : first + _BATCH_SIZE],
                orders,
                wavelength,
                pupil=self._pupil,
                blur=blur,
                fine=self.sampling(detector, state).fine,
                ripples=self.wavefront.ripples(),
                xp=self._xp,
            )
            for first in range(0, len(coefficients), _BATCH_SIZE)
        ]
        return self._xp.concatenate(batches)

    @lru_cache(maxsize=64)  # noqa: B019  a model lives as long as its process
    def _extra_variance(self, detector: int, state: OpticalState) -> float:
        """Return the variance of the Gaussian blur that increases R by a given fraction [pixel^2].

        Sizes with adaptive weights do not add in quadrature, so the variance is found by iteration.
        """
        ny, nx = self.instrument.shape or (0, 0)
        fine, middle = self.sampling(detector, state).fine, SUB_BANDS // 2

        def size(variance: float) -> float:
            core = self._blurred(detector, [nx / 2], [ny / 2], middle, state, variance)
            return float(adaptive_moments(core, start=0.8 * fine).sigma[0]) / fine

        initial = size(0.0)
        variance = initial**2 * ((1 + state.enlarge) ** 2 - 1)
        for _ in range(_N_ITERATIONS):
            variance *= state.enlarge / (size(variance) / initial - 1)
        return variance

    def polychromatic_cores(
        self, detector: int, x: Float, y: Float, weights: Float, state: OpticalState = AT_LAUNCH
    ) -> Any:
        """Return images of the PSF for sources with given fractions of light in the parts of the filter (n, parts)."""
        total: Any = 0.0
        for part in range(SUB_BANDS):
            share = self._xp.asarray(weights[:, part, None, None], dtype=np.float32)
            total = total + share * self.cores(detector, x, y, part, state)
        return total

    def effective(
        self,
        detector: int,
        x: npt.ArrayLike,
        y: npt.ArrayLike,
        *,
        temperature: npt.ArrayLike = 5800.0,
        state: OpticalState = AT_LAUNCH,
        sampling: int = 2,
        size: int = 64,
    ) -> EffectivePsf:
        """Return exact effective PSFs, with the native pixel included.

        Parameters
        ----------
        detector : int
            Detector id.
        x, y : array-like (n,)
            Zero-based positions on the complete detector [pixel].
        temperature : array-like
            Temperature of the black bodies [K].
        state : OpticalState
            State of the telescope.
        sampling : int
            Samples per native pixel: 1, 2, or another divisor of `sampling(detector, state).fine`.
        size : int
            Side length of the image [samples].

        Raises
        ------
        ValueError
            If the sampling is not a divisor, or the image is larger than the core.

        Notes
        -----
        The samples are values of the effective PSF, not integrals over half pixels: the native pixel is included once,
        as in PSFEx.
        """
        fine = self.sampling(detector, state).fine
        if fine % sampling:
            raise ValueError(f"sampling: found {sampling}; wanted a divisor of {fine}")
        if size / sampling > CORE:
            raise ValueError(f"size: found {size} at {sampling} a pixel; wanted at most {CORE * sampling}")
        x, y = np.atleast_1d(np.asarray(x, dtype=np.float64)), np.atleast_1d(np.asarray(y, dtype=np.float64))
        heat = np.broadcast_to(np.asarray(temperature, dtype=np.float64), x.shape)
        weights = sub_band_weights(self.limits(detector), heat)
        parts = []
        for first in range(0, len(x), _BATCH_SIZE):
            batch = slice(first, first + _BATCH_SIZE)
            core = self.polychromatic_cores(detector, x[batch], y[batch], weights[batch], state)
            step = fine // sampling
            low = CORE * fine // 2 - size // 2 * step
            parts.append(core[:, low : low + size * step : step, low : low + size * step : step])
        image = self._xp.concatenate(parts)
        inside = image.sum(axis=(1, 2)) / sampling**2
        return EffectivePsf(
            (image / image.sum(axis=(1, 2), keepdims=True)).astype(np.float32), (1 - inside).astype(np.float32)
        )


def energy_radius(core: npt.NDArray[np.float32], fine: int, share: float = 0.8) -> float:
    """Return the radius that encloses a fraction of the light [native pixel].

    Parameters
    ----------
    core : float32 array (CORE * fine, CORE * fine)
        Image of the PSF.
    fine : int
        Samples per native pixel.
    share : float
        Fraction of all light, including that outside the core.
    """
    axis = (np.arange(core.shape[0]) - core.shape[0] // 2) / fine
    radius = np.hypot(axis[:, None], axis[None, :]).ravel()
    order = np.argsort(radius)
    enclosed = np.cumsum(core.ravel()[order].astype(np.float64)) / fine**2
    return float(np.interp(share, enclosed, radius[order]))
