"""Principal PSFs: what the PSFs of a band may look like, as a mean, a few dozen images, and how much of each to expect.

PSFs of one band form a smooth family: optics differ from telescope to telescope and drift with time, but some fifty
principal images hold all of it to a few parts in 10^5 of the peak. Over a detector their amounts are low polynomials of
position. What is expected of these, learnt from simulated telescopes, is the prior of a fit to stars
(`csstdask.psf.fit_field`); so is how far a single star strays from the polynomial, by its colour.

Images are samples of the effective PSF (optics, jitter, diffusion, native pixel), four a native pixel. An aperture
passes no frequency beyond ``D / lambda``, and blur takes most of what is left: fewer samples hold all of it, and files
keep as few as do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.polynomial import legendre
from safetensors.numpy import load_file, save
from scipy import fft
from scipy.linalg import block_diag, solve_triangular

from csstdask.core.atomic_io import sha256_file
from csstdask.core.errors import InputError
from csstdask.nn.card import ModelCard

Float = npt.NDArray[np.float64]

#: Samples a native pixel, and native pixels along an image's edge: a stamp's, its star anywhere in a pixel, and what
#: interpolation reaches beyond.
OVERSAMPLING, BASIS_PIXELS = 4, 40
BASIS_SIZE = OVERSAMPLING * BASIS_PIXELS
#: Images that are kept in half precision; those that tell less are kept in eight bits.
_STRONG = 16
_LEVELS = 127
#: Of the variance of what images cannot tell, what is left where optics tell it: of twelve telescopes in g 0.25, of
#: eight in NUV 0.6, most of it of those with polishing ripples.
_UNTOLD = np.float32(0.4)
#: Polynomials that are multiplied with a star's colour at most: those of degree 0 and 1.
COLOUR_TERMS = 3


@dataclass(frozen=True)
class Prior:
    """What is expected of the amounts of a field, polynomial by polynomial: a Gaussian."""

    mean: Float
    """(p k,)"""
    covariance: Float
    """(p k, p k)"""

    def given(self, normal: Float, right: Float) -> Posterior:
        """Return what follows from this prior and the stars.

        Parameters
        ----------
        normal : float64 array (p k, p k)
            Curvature of the likelihood of the stars.
        right : float64 array (p k,)
            `normal` times the maximum-likelihood amounts of the stars.
        """
        return Posterior(self, normal, right)

    @cached_property
    def root(self) -> Float:
        """(p k, p k) Cholesky factor of the covariance."""
        return np.asarray(np.linalg.cholesky(self.covariance), dtype=np.float64)


@dataclass(frozen=True)
class Posterior:
    """A prior and the likelihood of stars; mean, covariance and evidence share one factorisation."""

    prior: Prior
    normal: Float
    right: Float

    @cached_property
    def mean(self) -> Float:
        """(p k,) The likeliest amounts."""
        step = solve_triangular(self._triangle, self._half, lower=True, trans="T")
        return np.asarray(self.prior.mean + self.prior.root @ step, dtype=np.float64)

    @cached_property
    def covariance(self) -> Float:
        """(p k, p k) Of the amounts."""
        half = solve_triangular(self._triangle, self.prior.root.T, lower=True)
        return np.asarray(half.T @ half, dtype=np.float64)

    @cached_property
    def evidence(self) -> float:
        """The natural logarithm of the probability of the stars by this prior, but for a constant of the stars."""
        mean = self.prior.mean
        at_mean = float(mean @ self.right - mean @ self.normal @ mean / 2)
        return at_mean + float(self._half @ self._half) / 2 - float(np.log(np.diag(self._triangle)).sum())

    @cached_property
    def _triangle(self) -> Float:
        """(p k, p k) Cholesky factor of ``1 + root' normal root``."""
        root = self.prior.root
        return np.asarray(np.linalg.cholesky(np.eye(len(root)) + root.T @ self.normal @ root), dtype=np.float64)

    @cached_property
    def _half(self) -> Float:
        slope = self.prior.root.T @ (self.right - self.normal @ self.prior.mean)
        return np.asarray(solve_triangular(self._triangle, slope, lower=True), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class PsfBasis:
    """The PSFs of a band, and what is expected of them over a detector.

    The PSF of a star at a place is ``mean + sum over k of amount_k images_k``, and
    ``amount_k = sum over p of field_pk polynomial_p(place) + own_k``. What is a star's own is for the most part due to
    its colour; where that is known (`of_known_colour`), it goes into the field, as colour times the lowest polynomials.
    """

    mean: npt.NDArray[np.float32]
    """(SIDE, SIDE), the source at ``[SIDE // 2, SIDE // 2]``; values of the effective PSF a native pixel."""
    images: npt.NDArray[np.float32]
    """(k, SIDE, SIDE), scaled so that amounts are of the order of one."""
    field: Float
    """(p, k, k) Covariances of the amounts that belong to each polynomial."""
    own: Float
    """(k,) Variances of what is a star's own."""
    colour_field: Float
    """(q, k, k) Covariances of the amounts that belong to a star's colour times each of the q lowest polynomials."""
    own_beside_colour: Float
    """(k,) Variances of what is a star's own where its colour is known."""
    degree: int
    """Of the polynomials."""
    beyond: npt.NDArray[np.float32]
    """(SIDE, SIDE) Variance of what the images cannot tell, of telescopes that they were not learnt from."""

    def __len__(self) -> int:
        return len(self.images)

    def of_known_colour(self) -> PsfBasis:
        """Return what is expected of stars whose colour is known: fields have q terms more."""
        return self._with_colour

    @cached_property
    def _with_colour(self) -> PsfBasis:
        return replace(self, field=np.concatenate([self.field, self.colour_field]), own=self.own_beside_colour)

    @cached_property
    def prior(self) -> Prior:
        """What is expected of a field by telescopes in the mean: the same for all frames of a band."""
        covariance = block_diag(*self.field)
        return Prior(np.zeros(len(covariance)), covariance)

    @cached_property
    def gram(self) -> Float:
        """(k, k) Products of images: as they are stored, they are not quite orthogonal."""
        flat = self.images.reshape(len(self), -1).astype(np.float64)
        return np.asarray(flat @ flat.T)

    def amounts_of(self, images: npt.NDArray[np.floating[Any]]) -> Float:
        """Return how much of each principal image is in images (n, SIDE, SIDE), by least squares (n, k)."""
        products = images.reshape(len(images), -1).astype(np.float64) @ self.images.reshape(len(self), -1).T
        return np.asarray(np.linalg.solve(self.gram, products.T).T)

    def told_by(self, image: npt.NDArray[np.floating[Any]]) -> PsfBasis:
        """Return the same for the telescope that a PSF (SIDE, SIDE) is of: what no image can tell of it is the mean's.

        What of that is still unknown is taken for `_UNTOLD` of the variance.
        """
        missed = image - self.at(self.amounts_of((image - self.mean)[None]))[0]
        mean = self.mean + missed.astype(np.float32)
        return replace(self, mean=mean, beyond=_UNTOLD * self.beyond)

    def at(self, amounts: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
        """Return PSFs (n, SIDE, SIDE) of some amounts (n, k)."""
        flat = amounts.astype(np.float32) @ self.images.reshape(len(self), -1)
        return np.asarray(self.mean + flat.reshape(-1, BASIS_SIZE, BASIS_SIZE))


def polynomial_degrees(degree: int) -> list[tuple[int, int]]:
    """Return the degrees in x and y of each polynomial, of all whose sum is at most `degree`."""
    return [(p, q) for total in range(degree + 1) for p in range(total, -1, -1) for q in (total - p,)]


def polynomials(u: Float, v: Float, degree: int) -> Float:
    """Return products of Legendre polynomials (n, p) at places u, v (n,) between -1 and 1."""
    in_u, in_v = legendre.legvander(u, degree), legendre.legvander(v, degree)
    return np.stack([in_u[:, p] * in_v[:, q] for p, q in polynomial_degrees(degree)], axis=1)


def append_colour_terms(places: Float, colour: Float) -> Float:
    """Return polynomials (n, p + q) of stars of known colour (n,), from those of their places (n, p)."""
    return np.concatenate([places, colour[:, None] * places[:, :COLOUR_TERMS]], axis=1)


def estimate_fwhm(image: npt.NDArray[np.float32]) -> float:
    """Return a PSF's full width at half maximum [native pixel]: of the disk as large as what is above half its peak."""
    return float(2 * np.sqrt((image > image.max() / 2).sum() / np.pi) / OVERSAMPLING)


def resample(images: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    """Return band-limited images (n, y, x) with another even number of samples along their edges.

    The middle stays at ``side // 2``; frequencies that `side` samples cannot hold are lost.
    """
    found = images.shape[-1]
    if found == side:
        return images
    spectrum = fft.rfft2(np.fft.ifftshift(images, axes=(-2, -1)))
    half = min(found, side) // 2
    out = np.zeros((*images.shape[:-2], side, side // 2 + 1), dtype=spectrum.dtype)
    for rows in (slice(0, half), slice(-half + 1, None)):
        out[..., rows, :half] = spectrum[..., rows, :half]
    image = fft.irfft2(out, s=(side, side)) * (side / found) ** 2
    return np.fft.fftshift(image, axes=(-2, -1)).astype(np.float32)


def write_basis(bands: dict[str, tuple[PsfBasis, int]]) -> bytes:
    """Return the principal PSFs of bands as safetensors, images with so many samples a pixel, and in few bits."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    for band, (psfs, samples) in bands.items():
        tensors[f"{band}.mean"] = resample(psfs.mean, BASIS_PIXELS * samples)
        images = resample(psfs.images, BASIS_PIXELS * samples)
        weak = images[_STRONG:]
        step = np.abs(weak).max(axis=(1, 2), initial=0) / _LEVELS
        tensors[f"{band}.images"] = images[:_STRONG].astype(np.float16)
        tensors[f"{band}.weak_images"] = np.rint(weak / step[:, None, None]).astype(np.int8)
        tensors[f"{band}.weak_steps"] = step.astype(np.float32)
        tensors[f"{band}.field_root"] = np.linalg.cholesky(psfs.field).astype(np.float16)
        tensors[f"{band}.colour_root"] = np.linalg.cholesky(psfs.colour_field).astype(np.float16)
        tensors[f"{band}.own"] = np.stack([psfs.own, psfs.own_beside_colour]).astype(np.float32)
        tensors[f"{band}.beyond"] = resample(np.sqrt(psfs.beyond), BASIS_PIXELS * samples).astype(np.float16)
    return save({name: np.ascontiguousarray(value) for name, value in tensors.items()})


def load_basis(card: ModelCard, band: str) -> PsfBasis:
    """Return a card's principal PSFs of a band, read once a process.

    Raises
    ------
    InputError
        If the weights are not those of the card, or know nothing of the band.
    """
    if band not in card.architecture["bands"]:
        known = ", ".join(card.architecture["bands"])
        raise InputError(card.name, f"band {band}", f"one that it learnt: {known}")
    return _checked(Path(str(card.weights)), card.sha256, band, int(card.architecture["degree"]))


@cache
def _checked(path: Path, sha256: str, band: str, degree: int) -> PsfBasis:
    found = sha256_file(path)
    if found != sha256:
        raise InputError(path, f"SHA-256 {found[:12]}", f"{sha256[:12]}, as its card says")
    try:
        return read_basis(path, band, degree)
    except KeyError as error:
        raise InputError(path, f"no tensor {error}", "weights as their card has them") from None


def read_basis(path: Path, band: str, degree: int) -> PsfBasis:
    """Return the principal PSFs of a band, as `write_basis` wrote them; KeyError if a tensor is absent."""
    tensors = load_file(path)
    names = ("mean", "images", "weak_images", "weak_steps", "field_root", "colour_root", "own", "beyond")
    mean, strong, weak, step, *roots, own, beyond = (tensors[f"{band}.{name}"] for name in names)
    images = np.concatenate([strong.astype(np.float32), weak * step[:, None, None]])
    field, colour_field = (root.astype(float) @ root.astype(float).transpose(0, 2, 1) for root in roots)
    return PsfBasis(
        mean=resample(mean, BASIS_SIZE),
        images=resample(images, BASIS_SIZE),
        field=field,
        own=own[0].astype(float),
        colour_field=colour_field,
        own_beside_colour=own[1].astype(float),
        degree=degree,
        beyond=resample(beyond.astype(np.float32), BASIS_SIZE) ** 2,
    )
