"""The PSF of a detector at any position: coefficients of a basis as polynomials of the position."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.psf_grid import N_NODES, OVERSAMPLED_SIZE, node_positions
from csstdask.numerics.polynomials import normalised_coordinate
from csstdask.psf.basis import BASIS_SIZE, OVERSAMPLING, PsfBasis, polynomials
from csstdask.psf.wavefront import Wavefront

Float = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]

#: Degree of the polynomials through the nodes.
_DEGREE = N_NODES - 1
#: Number of PSFs that are computed at once, which bounds the memory.
_BATCH_SIZE = 128
#: Variance added to coefficients, so that rounding does not make their covariance indefinite.
_MIN_VARIANCE = 1e-12


@dataclass(frozen=True, eq=False)
class PsfField:
    """The PSF of a detector at any position."""

    detector: int
    shape: tuple[int, int]
    """Shape of the detector (y, x) [pixel]."""
    basis: PsfBasis
    """Basis of the band; conditioned on the wavefront where one was found."""
    coefficients: Float
    """(p, k) Coefficients of each polynomial and image."""
    covariance: Float
    """(p k, p k) Covariance of `coefficients`."""
    wavefront: Wavefront | None = None
    """Wavefront that the stars show, where optics explain their PSFs."""
    n_stars: int | None = None
    """Number of stars in the fit; None if unknown."""
    misfit: float = 1.0
    """Q of `csstdask.psf.misfit`. Covariances include it already."""
    model: str = ""
    """Name of the model of the fit."""

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
        """Return the PSF and its uncertainty at positions on the detector.

        Parameters
        ----------
        x, y : array-like (n,)
            Zero-based positions on the whole detector [pixel].

        Returns
        -------
        image, sigma : float32 arrays (n, 64, 64)
            As returned by `csstdask.psf.reconstruct`; sigma is that of the PSF of a star of unknown colour.
        """
        return oversampled(self.basis, *self.coefficients_at(x, y))

    def coefficients_at(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Float, Float]:
        """Return the expected coefficients (n, k) of stars at positions, and their covariances (n, k, k)."""
        terms = self._polynomials(x, y)
        k, count = len(self.basis), terms.shape[1]
        blocks = self.covariance.reshape(count, k, count, k)
        of_field = np.einsum("np,paqb,nq->nab", terms, blocks, terms, optimize=True)
        return terms @ self.coefficients, of_field + np.diag(self.basis.intrinsic_scatter)

    def oversampled_at(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Images:
        """Return the PSF at positions, float32 (n, BASIS_SIZE, BASIS_SIZE): four samples and light per native pixel."""
        return self.basis.compose(self._polynomials(x, y) @ self.coefficients)

    def profile(self) -> Float:
        """Return the mean radial profile of the basis: light on a pixel at distances 0, 1, 2, ... [pixel]."""
        steps = (np.arange(BASIS_SIZE) - BASIS_SIZE // 2) / OVERSAMPLING
        distance = np.hypot(steps[:, None], steps).ravel()
        rings = np.rint(distance).astype(int)
        light = np.bincount(rings, self.basis.mean.ravel()) / np.bincount(rings)
        return np.asarray(light[: BASIS_SIZE // OVERSAMPLING // 2])

    def _polynomials(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Float:
        columns, rows = (np.atleast_1d(np.asarray(position, dtype=np.float64)) for position in (x, y))
        return polynomials(*to_unit_square(columns, rows, self.shape), self.basis.degree)


def interpolate_nodes(images: npt.NDArray[Any], u: Float, v: Float) -> npt.NDArray[np.floating[Any]]:
    """Interpolate images stored at the nodes of a field.

    Coefficients are polynomials of the position of degree four at most. So are the images, but for their normalisation,
    to about 1e-4.

    Parameters
    ----------
    images : array (N_NODES, N_NODES, ...)
        Images at the nodes, by row and column.
    u, v : float64 arrays (n,)
        Positions between -1 and 1.

    Returns
    -------
    array (n, ...)
    """
    axis = (node_positions(2) + 0.5) - 1
    at_v, at_u = (part.ravel() for part in np.meshgrid(axis, axis, indexing="ij"))
    weight = polynomials(u, v, _DEGREE) @ np.linalg.pinv(polynomials(at_u, at_v, _DEGREE))
    return np.tensordot(weight, images.reshape(N_NODES**2, *images.shape[2:]), axes=1)


def to_unit_square(x: Float, y: Float, shape: tuple[int, int]) -> tuple[Float, Float]:
    """Return positions on a detector as numbers between -1 and 1 at its edges.

    Examples
    --------
    >>> to_unit_square(np.array([-0.5, 99.5]), np.array([49.5, 49.5]), (100, 100))
    (array([-1.,  1.]), array([0., 0.]))
    """
    return normalised_coordinate(x, shape[1]), normalised_coordinate(y, shape[0])


def check_positions(x: Float, y: Float, shape: tuple[int, int]) -> None:
    """Raise ValueError if a position is off a detector of a shape (y, x)."""
    for name, positions, length in (("x", x, shape[1]), ("y", y, shape[0])):
        off = (positions < -0.5) | (positions > length - 0.5)
        if off.any():
            raise ValueError(
                f"{name}: found {positions[off][0]:g}; wanted a position on the detector, 0 to {length - 1}"
            )


def oversampled(basis: PsfBasis, coefficients: Float, covariance: Float) -> tuple[Images, Images]:
    """Return PSFs at half-pixel sampling, each of unit sum, and their uncertainty.

    Parameters
    ----------
    basis : PsfBasis
    coefficients : float64 array (n, k)
    covariance : float64 array (n, k, k)
        Covariances of the coefficients.

    Returns
    -------
    image, sigma : float32 arrays (n, 64, 64)
        Sigma includes what the basis cannot represent.
    """
    middle, half = BASIS_SIZE // 2, OVERSAMPLED_SIZE // 2
    step = OVERSAMPLING // 2
    window = slice(middle - half * step, middle + half * step, step)
    mean, images = basis.mean[window, window], basis.images[:, window, window]
    flat = images.reshape(len(images), -1)
    sums = flat.sum(axis=1)
    n = len(coefficients)
    image = np.empty((n, OVERSAMPLED_SIZE, OVERSAMPLED_SIZE), np.float32)
    sigma = np.empty_like(image)
    for first in range(0, n, _BATCH_SIZE):
        batch = slice(first, first + _BATCH_SIZE)
        unscaled = mean.ravel() + coefficients[batch].astype(np.float32) @ flat
        total = unscaled.sum(axis=1, keepdims=True)
        image[batch] = (unscaled / total).reshape(-1, OVERSAMPLED_SIZE, OVERSAMPLED_SIZE)
        # Derivative of an image whose sum is held at one: (images - image sum(images)) / total.
        root = np.linalg.cholesky(covariance[batch] + _MIN_VARIANCE * np.eye(len(flat)))
        root = root.transpose(0, 2, 1).astype(np.float32)
        change = root @ flat - (root @ sums)[..., None] * image[batch].reshape(len(root), 1, -1)
        variance = (change**2).sum(axis=1) + basis.truncation_variance[window, window].ravel()
        sigma[batch] = (np.sqrt(variance) / total).reshape(-1, OVERSAMPLED_SIZE, OVERSAMPLED_SIZE)
    return image, sigma
