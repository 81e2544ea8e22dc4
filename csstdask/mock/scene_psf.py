"""PSFs for rendering: transforms for many sources at once, exact, interpolated or constant.

For scenes the PSF is computed at Chebyshev nodes of the frame, reduced to a few principal images, and interpolated by
polynomials. Because the wavefront is smooth, a few nodes suffice; a test requires an accuracy of 110 dB.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev
from scipy import fft

from csstdask.instrument import Instrument
from csstdask.mock.optics import CORE, Sampling
from csstdask.mock.psf import AT_LAUNCH, SUB_BANDS, OpticalState, PsfModel

Float = npt.NDArray[np.float64]

_MIN_SINGULAR_VALUE = 1e-5
"""Principal images with a smaller relative singular value are left out."""


class ScenePsf(Protocol):
    """Interface of a PSF for rendering."""

    sampling: Sampling

    def cores(self, x: Float, y: Float, weights: Float) -> Any:
        """Return images (n, CORE * fine, CORE * fine) for sources at frame positions, with sub-band weights."""
        ...

    def spectra(self, x: Float, y: Float, weights: Float) -> Any:
        """Return the transforms of the images, as `spectra_of` does."""
        ...


def spectra_of(cores: Any, sampling: Sampling, size: int = CORE, xp: ModuleType = np) -> Any:
    """Return the transforms of PSF images, with the source at the origin.

    Parameters
    ----------
    cores : float32 array (n, CORE * fine, CORE * fine)
    sampling : Sampling
    size : int
        Side length of the rendered stamp, at least CORE [pixel].

    Returns
    -------
    complex64 array (n, size * folds, size * folds // 2 + 1)
        Element ``[0, 0]`` is the fraction of the light in the core.
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


@dataclass(frozen=True)
class Window:
    """Position of a frame on its detector, with the same centre."""

    shape: tuple[int, int]
    x: float
    """Column of the first pixel of the frame on the detector [pixel]."""
    y: float
    """Row of the first pixel of the frame on the detector [pixel]."""

    @classmethod
    def of(cls, shape: tuple[int, int], instrument: Instrument) -> Window:
        """Return the window of a frame of shape (y, x) at the centre of a detector."""
        ny, nx = instrument.shape or shape
        return cls(shape, (nx - shape[1]) / 2, (ny - shape[0]) / 2)


class ExactPsf:
    """PSFs computed at the position of each source, for PSF data sets."""

    def __init__(self, model: PsfModel, detector: int, window: Window, state: OpticalState = AT_LAUNCH) -> None:
        self.sampling = model.sampling(detector, state)
        self._model, self._detector, self._window = model, detector, window
        self._state = state

    def cores(self, x: Float, y: Float, weights: Float) -> Any:
        """Return images for sources at frame positions."""
        on_detector = (x + self._window.x, y + self._window.y)
        return self._model.polychromatic_cores(self._detector, *on_detector, weights, self._state)

    def spectra(self, x: Float, y: Float, weights: Float) -> Any:
        """Return the transforms of the images."""
        return spectra_of(self.cores(x, y, weights), self.sampling)


class InterpolatedPsf:
    """PSFs of a frame interpolated between nodes, for scenes.

    Parameters
    ----------
    model : PsfModel
        Exact PSF.
    detector : int
        Detector id.
    window : Window
        Position of the frame on the detector.
    state : OpticalState
        State of the telescope.
    nodes : int, optional
        Number of nodes along each axis; default: enough for 90 dB.
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
        nodes = nodes or n_chebyshev_nodes(window)
        axis = chebyshev.chebpts1(nodes)
        ny, nx = window.shape
        x = window.x + (axis + 1) / 2 * nx - 0.5
        y = window.y + (axis + 1) / 2 * ny - 0.5
        grid_y, grid_x = (part.ravel() for part in np.meshgrid(y, x, indexing="ij"))
        images = xp.stack([model.cores(detector, grid_x, grid_y, k, state) for k in range(SUB_BANDS)])
        side = images.shape[-1]
        flat = images.reshape(SUB_BANDS * nodes * nodes, side * side)
        # Principal images from the small Gram matrix. The mean is not subtracted: it is one of them.
        gram = flat.astype(xp.float64) @ flat.T.astype(xp.float64)
        values, vectors = xp.linalg.eigh(gram)
        strong = values > _MIN_SINGULAR_VALUE**2 * values[-1]
        scale = xp.sqrt(values[strong])
        self._images = ((vectors[:, strong] / scale).T.astype(np.float32) @ flat).reshape(-1, side, side)
        at_nodes = (vectors[:, strong] * scale).reshape(SUB_BANDS, nodes, nodes, -1)
        to_polynomial = xp.asarray(np.linalg.inv(chebyshev.chebvander(axis, nodes - 1)))
        self._coefficients = xp.einsum("iy,jx,syxk->sijk", to_polynomial, to_polynomial, at_nodes)
        self._spectra = spectra_of(self._images, self.sampling, xp=xp)

    def _image_coefficients(self, x: Float, y: Float, weights: Float) -> Any:
        """Return the coefficients of the principal images for each source (n, k)."""
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
        flat = self._image_coefficients(x, y, weights) @ self._images.reshape(n_images, -1)
        return flat.reshape(-1, side, side)

    def spectra(self, x: Float, y: Float, weights: Float) -> Any:
        """Return the transforms of the images, mixed as real numbers because the coefficients are real."""
        shape = self._spectra.shape
        parts = self._spectra.reshape(shape[0], -1).view(np.float32)
        mixed = self._image_coefficients(x, y, weights) @ parts
        return mixed.view(np.complex64).reshape(-1, *shape[1:])


class FixedPsf:
    """One constant PSF for a scene, given by an image.

    Parameters
    ----------
    core : float32 array (CORE * fine, CORE * fine)
        Image of the PSF, from `csstdask.mock.optics.effective_psf`.
    sampling : Sampling
    """

    def __init__(self, core: npt.NDArray[np.float32], sampling: Sampling) -> None:
        self.sampling = sampling
        self._core = core[None]
        self._spectrum = spectra_of(self._core, sampling)

    def cores(self, x: Float, y: Float, weights: Float) -> Any:  # noqa: ARG002
        """Return the same image for each source."""
        return np.broadcast_to(self._core, (len(x), *self._core.shape[1:]))

    def spectra(self, x: Float, y: Float, weights: Float) -> Any:  # noqa: ARG002
        """Return the same transform for each source."""
        return np.repeat(self._spectrum, len(x), axis=0)


def n_chebyshev_nodes(window: Window) -> int:
    """Return the number of Chebyshev nodes per axis for an accuracy of 90 dB.

    Examples
    --------
    >>> n_chebyshev_nodes(Window((9232, 9216), 0.0, 0.0))
    7
    """
    return int(np.clip(np.ceil(2 + max(window.shape) / 1900), 3, 7))
