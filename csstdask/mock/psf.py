"""The point spread function model of a mock telescope: exact anywhere, and interpolated where many are wanted.

`PsfModel.effective` is the truth of the PSF work: the effective PSF of a star of given colour at any place and
time. For scenes with thousands of sources the same PSFs are computed at Chebyshev nodes of the frame, reduced to
a few principal images, and interpolated by polynomials: the wavefront is smooth, so this converges within a
handful of nodes (a test holds it to 90 dB). Both are handed on as spectra, which is what a renderer shifts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev
from scipy import fft

from csstdask.arrays.moments import adaptive_moments
from csstdask.instrument import Instrument
from csstdask.mock.optics import CORE, Blur, Sampling, cutoff, effective_psf, fade, sampling_for
from csstdask.mock.recipe import Optics
from csstdask.mock.wavefront import Wavefront

Float = npt.NDArray[np.float64]

#: Parts of a filter, each with a wavelength of its own.
SUB_BANDS = 4
#: PSFs computed at once: some hundred MiB.
_BATCH = 8
#: Principal images below this share of the strongest are left out.
_NEGLIGIBLE = 1e-5
#: To find the Gaussian that enlarges a PSF by a given share: each makes the error some ten times smaller.
_TRIALS = 4
_PLANCK = 1.438776877e7  # h c / k [nm K]


def sub_band_wavelengths(limits: tuple[float, float]) -> Float:
    """Return the middle wavelengths of the parts of a filter [nm]."""
    low, high = limits
    return low + (high - low) * (np.arange(SUB_BANDS) + 0.5) / SUB_BANDS


def photon_rate(wavelength: npt.ArrayLike, temperature: npt.ArrayLike) -> Float:
    """Return the photons a black body sends, a unit of wavelength, up to a factor (temperature, wavelength).

    Parameters
    ----------
    wavelength : array-like
        [nm]
    temperature : array-like
        [K]
    """
    length = np.asarray(wavelength, dtype=np.float64)
    exponent = _PLANCK / np.multiply.outer(np.asarray(temperature, dtype=np.float64), length)
    return np.asarray(length**-4.0 / np.expm1(exponent)) * 1e12


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


class ScenePsf(Protocol):
    """What a renderer asks of a PSF."""

    sampling: Sampling

    def cores(self, x: Float, y: Float, weights: Float) -> Any:
        """Return images (n, CORE * fine, CORE * fine) for sources at frame positions with sub-band weights."""
        ...

    def spectra(self, x: Float, y: Float, weights: Float) -> Any:
        """Return `spectra_of` the cores."""
        ...


def spectra_of(cores: Any, sampling: Sampling, size: int = CORE, xp: ModuleType = np) -> Any:
    """Return the spectra of PSF images, with the source at the origin.

    Parameters
    ----------
    cores : float32 array (n, CORE * fine, CORE * fine)
    sampling : Sampling
    size : int
        Native pixels along the edge of the stamp that is to be rendered, at least CORE.

    Returns
    -------
    complex64 array (n, size * folds, size * folds // 2 + 1)
        ``[0, 0]`` is the share of the light in the core.
    """
    transform: Any = fft if xp is np else xp.fft
    fine, pad = sampling.fine, (size - CORE) * sampling.fine // 2
    padded = xp.pad(cores, ((0, 0), (pad, pad), (pad, pad)))
    full = transform.rfft2(xp.fft.ifftshift(padded, axes=(1, 2))) / np.float32(fine**2)
    half = size * sampling.folds // 2
    if sampling.folds == fine:
        return full.astype(xp.complex64)
    rows = np.r_[0:half, size * fine - half : size * fine]
    return full[:, rows, : half + 1].astype(xp.complex64)


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
        self._pupil = (instrument.telescope.diameter, instrument.telescope.obscuration, self._scale)
        self._xp = xp

    def limits(self, detector: int) -> tuple[float, float]:
        """Return where a detector's filter is open [nm]."""
        return self.instrument.bands[str(self.instrument.detector(detector).band)].wavelength

    def sampling(self, detector: int, state: OpticalState = AT_LAUNCH) -> Sampling:
        """Return how finely the PSFs of a detector are sampled."""
        shortest = sub_band_wavelengths(self.limits(detector))[0]
        return sampling_for(cutoff(shortest, self._pupil[0], self._scale), self.blur(state))

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


@dataclass(frozen=True)
class Window:
    """Where a frame lies on its detector: its middle is the detector's."""

    shape: tuple[int, int]
    x: float
    """Of the frame's first pixel on the detector [pixel]."""
    y: float

    @classmethod
    def of(cls, shape: tuple[int, int], instrument: Instrument) -> Window:
        """Return the window of a frame (y, x) that is a detector's middle."""
        ny, nx = instrument.shape or shape
        return cls(shape, (nx - shape[1]) / 2, (ny - shape[0]) / 2)


class ExactPsf:
    """PSFs computed for each source, at its place: for PSF data sets."""

    def __init__(self, model: PsfModel, detector: int, window: Window, state: OpticalState = AT_LAUNCH) -> None:
        self.sampling = model.sampling(detector, state)
        self._model, self._detector, self._window = model, detector, window
        self._state = state

    def cores(self, x: Float, y: Float, weights: Float) -> Any:
        """Return images for sources at frame positions."""
        on_detector = (x + self._window.x, y + self._window.y)
        return self._model.mixed(self._detector, *on_detector, weights, self._state)

    def spectra(self, x: Float, y: Float, weights: Float) -> Any:
        """Return their spectra."""
        return spectra_of(self.cores(x, y, weights), self.sampling)


class InterpolatedPsf:
    """PSFs of a frame, from a grid of nodes: for scenes.

    Parameters
    ----------
    model : PsfModel
    detector : int
    window : Window
        The frame on the detector.
    state : OpticalState
    nodes : int, optional
        Along each axis; by default more on larger frames, enough for 90 dB.
    """

    def __init__(
        self,
        model: PsfModel,
        detector: int,
        window: Window,
        state: OpticalState = AT_LAUNCH,
        *,
        nodes: int | None = None,
        xp: ModuleType = np,
    ) -> None:
        self.sampling = model.sampling(detector, state)
        self._window, self._xp = window, xp
        nodes = nodes or nodes_for(window)
        axis = chebyshev.chebpts1(nodes)
        ny, nx = window.shape
        x = window.x + (axis + 1) / 2 * nx - 0.5
        y = window.y + (axis + 1) / 2 * ny - 0.5
        grid_y, grid_x = (part.ravel() for part in np.meshgrid(y, x, indexing="ij"))
        images = xp.stack([model.cores(detector, grid_x, grid_y, k, state) for k in range(SUB_BANDS)])
        side = images.shape[-1]
        flat = images.reshape(SUB_BANDS * nodes * nodes, side * side)
        # Principal images by way of the small Gram matrix; no mean is taken out, for it is one of them.
        gram = flat.astype(xp.float64) @ flat.T.astype(xp.float64)
        values, vectors = xp.linalg.eigh(gram)
        strong = values > _NEGLIGIBLE**2 * values[-1]
        scale = xp.sqrt(values[strong])
        self._images = ((vectors[:, strong] / scale).T.astype(np.float32) @ flat).reshape(-1, side, side)
        at_nodes = (vectors[:, strong] * scale).reshape(SUB_BANDS, nodes, nodes, -1)
        to_polynomial = xp.asarray(np.linalg.inv(chebyshev.chebvander(axis, nodes - 1)))
        self._coefficients = xp.einsum("iy,jx,syxk->sijk", to_polynomial, to_polynomial, at_nodes)
        self._spectra = spectra_of(self._images, self.sampling, xp=xp)

    def _strength(self, x: Float, y: Float, weights: Float) -> Any:
        """Return how much of each principal image sources have (n, k)."""
        xp, (ny, nx) = self._xp, self._window.shape
        degree = self._coefficients.shape[1] - 1
        # A source beyond the edge has the PSF of the edge.
        in_x = chebyshev.chebvander(np.clip((np.asarray(x) + 0.5) / nx * 2 - 1, -1, 1), degree)
        in_y = chebyshev.chebvander(np.clip((np.asarray(y) + 0.5) / ny * 2 - 1, -1, 1), degree)
        arrays = (xp.asarray(part) for part in (weights, in_y, in_x))
        return xp.einsum("ns,ni,nj,sijk->nk", *arrays, self._coefficients, optimize=True).astype(np.float32)

    def cores(self, x: Float, y: Float, weights: Float) -> Any:
        """Return images for sources at frame positions."""
        n_images, side, _ = self._images.shape
        flat = self._strength(x, y, weights) @ self._images.reshape(n_images, -1)
        return flat.reshape(-1, side, side)

    def spectra(self, x: Float, y: Float, weights: Float) -> Any:
        """Return their spectra: mixed as real numbers, for the strengths are."""
        shape = self._spectra.shape
        parts = self._spectra.reshape(shape[0], -1).view(np.float32)
        mixed = self._strength(x, y, weights) @ parts
        return mixed.view(np.complex64).reshape(-1, *shape[1:])


class FixedPsf:
    """One PSF for a whole scene, from an image: for skies of no particular telescope.

    Parameters
    ----------
    core : float32 array (CORE * fine, CORE * fine)
        As `effective_psf` gives it.
    sampling : Sampling
    """

    def __init__(self, core: npt.NDArray[np.float32], sampling: Sampling) -> None:
        self.sampling = sampling
        self._core = core[None]
        self._spectrum = spectra_of(self._core, sampling)

    def cores(self, x: Float, y: Float, weights: Float) -> Any:  # noqa: ARG002
        """Return the image for each source."""
        return np.broadcast_to(self._core, (len(x), *self._core.shape[1:]))

    def spectra(self, x: Float, y: Float, weights: Float) -> Any:  # noqa: ARG002
        """Return its spectrum for each source."""
        return np.repeat(self._spectrum, len(x), axis=0)


def nodes_for(window: Window) -> int:
    """Return how many Chebyshev nodes an axis of a frame needs for 90 dB."""
    return int(np.clip(np.ceil(2 + max(window.shape) / 1900), 3, 7))


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


__all__ = [
    "EffectivePsf",
    "ExactPsf",
    "FixedPsf",
    "InterpolatedPsf",
    "OpticalState",
    "PsfModel",
    "ScenePsf",
    "Window",
    "energy_radius",
    "fade",
    "sub_band_weights",
]
