"""The PSF of a detector, at any place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.psf_grid import N_NODES, OVERSAMPLED_SIZE, node_positions
from csstdask.psf.basis import BASIS_SIZE, OVERSAMPLING, PsfBasis, polynomials
from csstdask.psf.wavefront import Wavefront

Float = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]

#: Degree of the polynomials through the nodes.
_DEGREE = N_NODES - 1
_BATCH = 128


@dataclass(frozen=True)
class PsfField:
    """The PSF of a detector, at any place."""

    detector: int
    shape: tuple[int, int]
    """Of the detector (y, x) [pixel]."""
    basis: PsfBasis
    """Of the band; what no image can tell of this telescope is in the mean, where a wavefront tells it."""
    coefficients: Float
    """(p, k) Of each polynomial and principal image."""
    covariance: Float
    """(p k, p k)"""
    wavefront: Wavefront | None = None
    """What the stars show of it, where optics explain their PSFs."""
    n_stars: int | None = None
    """Number of stars that it rests on; None if unknown."""
    misfit: float = 1.0
    """How badly stars look like it: Q of `csstdask.psf.misfit`. Covariances contain it already."""
    model: str = ""
    """Name of the model that it was fitted with."""

    def widened(self, misfit: float) -> PsfField:
        """Return the field with sigmas multiplied by ``sqrt(max(1, misfit))``."""
        factor = max(1.0, misfit) if np.isfinite(misfit) else 1.0
        basis = replace(
            self.basis,
            intrinsic_scatter=self.basis.intrinsic_scatter * factor,
            truncation_variance=self.basis.truncation_variance * np.float32(factor),
        )
        return replace(self, basis=basis, covariance=self.covariance * factor, misfit=misfit)

    def __call__(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Images, Images]:
        """Return the PSF at places, and its sigma.

        Parameters
        ----------
        x, y : array-like (n,)
            On the whole detector, zero-based [pixel].

        Returns
        -------
        image, sigma : float32 arrays (n, 64, 64)
            As those of `csstdask.psf.reconstruct`; sigma is that of a star's own PSF there, its colour unknown.
        """
        return oversampled(self.basis, *self.coefficients_at(x, y))

    def coefficients_at(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Float, Float]:
        """Return amounts (n, k) that are expected of stars at places, and their covariances (n, k, k)."""
        place = self._polynomials(x, y)
        k, count = len(self.basis), place.shape[1]
        blocks = self.covariance.reshape(count, k, count, k)
        spread = np.einsum("np,paqb,nq->nab", place, blocks, place, optimize=True) + np.diag(
            self.basis.intrinsic_scatter
        )
        return place @ self.coefficients, spread

    def oversampled_at(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Images:
        """Return the PSF at places, four samples a native pixel, float32 (n, SIDE, SIDE): light a native pixel."""
        return self.basis.compose(self._polynomials(x, y) @ self.coefficients)

    def profile(self) -> Float:
        """Return the light on a pixel so many pixels from a star, 0, 1, ..., for the mean of `psfs`."""
        steps = (np.arange(BASIS_SIZE) - BASIS_SIZE // 2) / OVERSAMPLING
        distance = np.hypot(steps[:, None], steps).ravel()
        rings = np.rint(distance).astype(int)
        light = np.bincount(rings, self.basis.mean.ravel()) / np.bincount(rings)
        return np.asarray(light[: BASIS_SIZE // OVERSAMPLING // 2])

    def _polynomials(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Float:
        across, down = (np.atleast_1d(np.asarray(place, dtype=np.float64)) for place in (x, y))
        return polynomials(*to_unit_square(across, down, self.shape), self.basis.degree)


def interpolate_nodes(images: npt.NDArray[Any], u: Float, v: Float) -> npt.NDArray[np.floating[Any]]:
    """Return images (n, ...) at places u, v (n,) between -1 and 1, from those (NODES, NODES, ...) at a field's nodes.

    Amounts of principal images are polynomials of the place, of the fourth degree at most; but for what makes each sum
    to one, to some 1e-4, so are the images.
    """
    axis = (node_positions(2) + 0.5) - 1
    at_v, at_u = (part.ravel() for part in np.meshgrid(axis, axis, indexing="ij"))
    weight = polynomials(u, v, _DEGREE) @ np.linalg.pinv(polynomials(at_u, at_v, _DEGREE))
    return np.tensordot(weight, images.reshape(N_NODES**2, *images.shape[2:]), axes=1)


def to_unit_square(x: Float, y: Float, shape: tuple[int, int]) -> tuple[Float, Float]:
    """Return places on a detector as numbers between -1 and 1."""
    return (x + 0.5) / shape[1] * 2 - 1, (y + 0.5) / shape[0] * 2 - 1


def check_positions(x: Float, y: Float, shape: tuple[int, int]) -> None:
    """Raise ValueError if a place is off a detector of a shape (y, x)."""
    for name, places, length in (("x", x, shape[1]), ("y", y, shape[0])):
        off = (places < -0.5) | (places > length - 0.5)
        if off.any():
            raise ValueError(f"{name}: found {places[off][0]:g}; wanted a place on the detector, 0 to {length - 1}")


def oversampled(psfs: PsfBasis, amounts: Float, spread: Float) -> tuple[Images, Images]:
    """Return PSFs at half-pixel sampling, each of unit sum, and their sigmas.

    Parameters
    ----------
    psfs : PrincipalPsfs
    amounts : float64 array (n, k)
    spread : float64 array (n, k, k)
        Covariances of the amounts.

    Returns
    -------
    image, sigma : float32 arrays (n, 64, 64)
    """
    middle, half = BASIS_SIZE // 2, OVERSAMPLED_SIZE // 2
    step = OVERSAMPLING // 2
    window = slice(middle - half * step, middle + half * step, step)
    mean, images = psfs.mean[window, window], psfs.images[:, window, window]
    flat = images.reshape(len(images), -1)
    n = len(amounts)
    image = np.empty((n, OVERSAMPLED_SIZE, OVERSAMPLED_SIZE), np.float32)
    sigma = np.empty_like(image)
    for first in range(0, n, _BATCH):
        some = slice(first, first + _BATCH)
        whole = mean.ravel() + amounts[some].astype(np.float32) @ flat
        total = whole.sum(axis=1, keepdims=True)
        image[some] = (whole / total).reshape(-1, OVERSAMPLED_SIZE, OVERSAMPLED_SIZE)
        # Of a sum that is held at one: d(image) = (images - image sum(images)) / total.
        share = flat.sum(axis=1)
        root = np.linalg.cholesky(spread[some] + 1e-12 * np.eye(len(flat))).transpose(0, 2, 1).astype(np.float32)
        change = root @ flat - (root @ share)[..., None] * image[some].reshape(len(root), 1, -1)
        variance = (change**2).sum(axis=1) + psfs.truncation_variance[window, window].ravel()
        sigma[some] = (np.sqrt(variance) / total).reshape(-1, OVERSAMPLED_SIZE, OVERSAMPLED_SIZE)
    return image, sigma
