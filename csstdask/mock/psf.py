"""The point spread function model of a mock telescope, exact anywhere.

`PsfModel.effective` is the truth of the PSF work: the effective PSF of a star of given colour at any place and
time. What a renderer makes of it is in `csstdask.mock.scene_psf`.
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

#: Parts of a filter, each with a wavelength of its own.
SUB_BANDS = 4
#: PSFs computed at once: some hundred MiB.
_BATCH = 8
#: To find the Gaussian that enlarges a PSF by a given share: each makes the error some ten times smaller.
_TRIALS = 4


def sub_band_wavelengths(limits: tuple[float, float]) -> Float:
    """Return the middle wavelengths of the parts of a filter [nm]."""
    return sample_band(limits, SUB_BANDS)


def sub_band_weights(limits: tuple[float, float], temperature: npt.ArrayLike) -> Float:
    """Return the share of a black body's photons in each part of a filter (n, SUB_BANDS)."""
    rate = np.atleast_2d(photon_rate(sub_band_wavelengths(limits), np.atleast_1d(temperature)))
    return rate / rate.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class OpticalState:
    """What differs between exposures of one telescope."""

    epoch: float = 0.0
    """Years after launch."""
    enlarge: float = 0.0
    """Growth of R = sigma by a Gaussian blur, relative, at the detector's middle."""
    jitter: float = 1.0
    """Factor on the jitter of that time."""


AT_LAUNCH = OpticalState()


@dataclass(frozen=True)
class EffectivePsf:
    """Effective PSFs of n sources."""

    image: npt.NDArray[np.float32]
    """(n, size, size), centred at ``[size // 2, size // 2]``, each summing to 1."""
    outside: npt.NDArray[np.float32]
    """(n,) Share of the light beyond the image."""


class PsfModel:
    """A telescope's PSF.

    Parameters
    ----------
    settings : Optics
    instrument : Instrument
        With geometry, telescope and bands.
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
        """Return where a detector's filter is open [nm]."""
        return self.instrument.bands[str(self.instrument.detector(detector).band)].wavelength

    def sampling(self, detector: int, state: OpticalState = AT_LAUNCH) -> Sampling:
        """Return how finely the PSFs of a detector are sampled."""
        shortest = sub_band_wavelengths(self.limits(detector))[0]
        return sampling_for(cutoff_frequency(shortest, self._pupil.diameter, self._scale), self.blur(state))

    def blur(self, state: OpticalState) -> Blur:
        """Return jitter and diffusion of an exposure."""
        covariance = self.wavefront.jitter_covariance(state.epoch) * (state.jitter / self._scale) ** 2
        return Blur(covariance, self.settings.jitter_shape == "line", self.settings.diffusion)

    def cores(
        self, detector: int, x: npt.ArrayLike, y: npt.ArrayLike, part: int, state: OpticalState = AT_LAUNCH
    ) -> Any:
        """Return images of the PSF in one part of the filter.

        Parameters
        ----------
        detector : int
            Its id.
        x, y : array-like (n,)
            Zero-based positions on the whole detector [pixel].
        part : int
            Of the filter, 0 to SUB_BANDS - 1.
        state : OpticalState

        Returns
        -------
        float32 array (n, CORE * fine, CORE * fine)
        """
        extra = self._extra_variance(detector, state) if state.enlarge else 0.0
        return self._blurred(detector, x, y, part, state, extra)

    def _blurred(
        self, detector: int, x: npt.ArrayLike, y: npt.ArrayLike, part: int, state: OpticalState, variance: float
    ) -> Any:
        """Return images of the PSF with a Gaussian of some more variance [pixel^2]."""
        blur = self.blur(state)
        blur = replace(blur, diffusion=float(np.sqrt(blur.diffusion**2 + variance)))
        coefficients = self.wavefront.coefficients(detector, x, y, state.epoch)
        orders = tuple(int(order) for order in self.wavefront.orders)
        wavelength = float(sub_band_wavelengths(self.limits(detector))[part])
        batches = [
            effective_psf(
                coefficients[first : first + _BATCH],
                orders,
                wavelength,
                pupil=self._pupil,
                blur=blur,
                fine=self.sampling(detector, state).fine,
                ripples=self.wavefront.ripples(),
                xp=self._xp,
            )
            for first in range(0, len(coefficients), _BATCH)
        ]
        return self._xp.concatenate(batches)

    @lru_cache(maxsize=64)  # noqa: B019  a model lives as long as its process
    def _extra_variance(self, detector: int, state: OpticalState) -> float:
        """Return the variance of the Gaussian that makes the PSF's R grow by a share [pixel^2].

        Sizes under an adaptive weight do not add in quadrature: the variance is found by trial.
        """
        ny, nx = self.instrument.shape or (0, 0)
        fine, middle = self.sampling(detector, state).fine, SUB_BANDS // 2

        def size(variance: float) -> float:
            core = self._blurred(detector, [nx / 2], [ny / 2], middle, state, variance)
            return float(adaptive_moments(core, start=0.8 * fine).sigma[0]) / fine

        plain = size(0.0)
        variance = plain**2 * ((1 + state.enlarge) ** 2 - 1)
        for _ in range(_TRIALS):
            variance *= state.enlarge / (size(variance) / plain - 1)
        return variance

    def mixed(self, detector: int, x: Float, y: Float, weights: Float, state: OpticalState = AT_LAUNCH) -> Any:
        """Return images of the PSF for sources with shares of their light in the parts of the filter (n, parts)."""
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
        """Return effective PSFs: native pixel included, exact at each position.

        Parameters
        ----------
        detector : int
            Its id.
        x, y : array-like (n,)
            Zero-based positions on the whole detector [pixel].
        temperature : array-like
            Of the sources' black bodies [K].
        state : OpticalState
        sampling : int
            Samples a native pixel: 1, 2, or another divisor of `sampling(detector, state).fine`.
        size : int
            Edge of the image [samples].

        Raises
        ------
        ValueError
            If the model has no such samples, or the image would reach into the faded edge of the core.

        Notes
        -----
        The samples are values of the effective PSF, not its integrals over half pixels: the native pixel is in
        it once. This is also what PSFEx models.
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
        for first in range(0, len(x), _BATCH):
            some = slice(first, first + _BATCH)
            core = self.mixed(detector, x[some], y[some], weights[some], state)
            step = fine // sampling
            low = CORE * fine // 2 - size // 2 * step
            parts.append(core[:, low : low + size * step : step, low : low + size * step : step])
        image = self._xp.concatenate(parts)
        inside = image.sum(axis=(1, 2)) / sampling**2
        return EffectivePsf(
            (image / image.sum(axis=(1, 2), keepdims=True)).astype(np.float32), (1 - inside).astype(np.float32)
        )


def energy_radius(core: npt.NDArray[np.float32], fine: int, share: float = 0.8) -> float:
    """Return the radius that encloses a share of the light [native pixel].

    Parameters
    ----------
    core : float32 array (CORE * fine, CORE * fine)
    fine : int
        Samples a native pixel.
    share : float
        Of all light, that outside the core included.
    """
    axis = (np.arange(core.shape[0]) - core.shape[0] // 2) / fine
    radius = np.hypot(axis[:, None], axis[None, :]).ravel()
    order = np.argsort(radius)
    enclosed = np.cumsum(core.ravel()[order].astype(np.float64)) / fine**2
    return float(np.interp(share, enclosed, radius[order]))
