"""A basis for the PSFs of a band: a mean image, principal images, and a prior for their coefficients.

The PSFs of one band form a smooth family. Optics differ between telescopes and drift with time, but about fifty
principal images represent the family to a few parts in 10^5 of the peak. Over a detector, the coefficients of these
images are low-order polynomials of the position. The covariances of the polynomial terms, learnt from simulated
telescopes, are the prior of a fit to stars (`csstdask.psf.fit_field`). So is the scatter of a single star about the
polynomials, which is mostly due to its colour.

Images are samples of the effective PSF (optics, jitter, charge diffusion and native pixel), four per native pixel. The
aperture passes no frequency above ``D / lambda`` and blur removes most of the rest, so that files can store fewer
samples without loss.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save
from scipy import fft
from scipy.linalg import block_diag

from csstdask.core.atomic_io import sha256_file
from csstdask.core.errors import InputError
from csstdask.nn.card import ModelCard
from csstdask.numerics.gaussian import GaussianPrior
from csstdask.numerics.polynomials import legendre_values, term_degrees

Float = npt.NDArray[np.float64]

#: Samples per native pixel.
OVERSAMPLING = 4
#: Width of an image [native pixel]: a stamp, its star anywhere in a pixel, and the reach of interpolation.
BASIS_PIXELS = 40
#: Width of an image [sample].
BASIS_SIZE = OVERSAMPLING * BASIS_PIXELS
#: Number of images that files store in half precision; the following, weaker ones are stored in eight bits.
_HALF_PRECISION_IMAGES = 16
#: Largest stored value of an image in eight bits.
_INT8_MAX = 127
#: Share of the truncation variance that remains once the wavefront has predicted what images cannot represent. Twelve
#: telescopes in g have 0.25, eight in NUV 0.6, mostly those with polishing ripples.
_UNPREDICTED_TRUNCATION = np.float32(0.4)
#: Number of polynomial terms that are multiplied with the colour of a star: those of degree 0 and 1.
COLOUR_TERMS = 3


@dataclass(frozen=True, eq=False)
class PsfBasis:
    """Principal images of the PSFs of a band, with k images, and the prior of their coefficients.

    The PSF of a star at a position is ``mean + sum_k c_k images_k`` with
    ``c_k = sum_p field_pk polynomial_p(position) + deviation_k``. The deviation of a star is mostly due to its colour;
    where the colour is known (`with_known_colour`), colour times the lowest polynomials become terms of the field.
    """

    mean: npt.NDArray[np.float32]
    """(BASIS_SIZE, BASIS_SIZE) The source is at ``[BASIS_SIZE // 2, BASIS_SIZE // 2]``; light per native pixel."""
    images: npt.NDArray[np.float32]
    """(k, BASIS_SIZE, BASIS_SIZE) Scaled so that coefficients are of the order of one."""
    field_covariance: Float
    """(p, k, k) Prior covariance of the coefficients of each polynomial term."""
    intrinsic_scatter: Float
    """(k,) Variance of the deviation of a star from the polynomials."""
    colour_covariance: Float
    """(q, k, k) Prior covariance of the coefficients of colour times each of the q lowest terms."""
    intrinsic_scatter_given_colour: Float
    """(k,) Variance of the deviation of a star of known colour."""
    degree: int
    """Degree of the polynomials."""
    truncation_variance: npt.NDArray[np.float32]
    """(BASIS_SIZE, BASIS_SIZE) Variance of what the images cannot represent, from telescopes not used in training."""

    def __len__(self) -> int:
        return len(self.images)

    def with_known_colour(self) -> PsfBasis:
        """Return the basis for stars of known colour: the field has q more terms."""
        return self._with_colour

    @cached_property
    def _with_colour(self) -> PsfBasis:
        return replace(
            self,
            field_covariance=np.concatenate([self.field_covariance, self.colour_covariance]),
            intrinsic_scatter=self.intrinsic_scatter_given_colour,
        )

    @cached_property
    def prior(self) -> GaussianPrior:
        """Prior of the p k coefficients of a field, over all telescopes."""
        covariance = block_diag(*self.field_covariance)
        return GaussianPrior(np.zeros(len(covariance)), covariance)

    @cached_property
    def gram(self) -> Float:
        """(k, k) Products of images: rounding in files makes them slightly non-orthogonal."""
        flat = self.images.reshape(len(self), -1).astype(np.float64)
        return np.asarray(flat @ flat.T)

    def project(self, images: npt.NDArray[np.floating[Any]]) -> Float:
        """Return the least-squares coefficients (n, k) of images (n, BASIS_SIZE, BASIS_SIZE)."""
        products = images.reshape(len(images), -1).astype(np.float64) @ self.images.reshape(len(self), -1).T
        return np.asarray(np.linalg.solve(self.gram, products.T).T)

    def compose(self, coefficients: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
        """Return the PSFs (n, BASIS_SIZE, BASIS_SIZE) of coefficients (n, k)."""
        flat = coefficients.astype(np.float32) @ self.images.reshape(len(self), -1)
        return np.asarray(self.mean + flat.reshape(-1, BASIS_SIZE, BASIS_SIZE))

    def conditioned_on(self, image: npt.NDArray[np.floating[Any]]) -> PsfBasis:
        """Return the basis of one telescope, given a prediction (BASIS_SIZE, BASIS_SIZE) of its PSF.

        The part of the prediction that the images cannot represent is added to the mean. `_UNPREDICTED_TRUNCATION` of
        the truncation variance remains.
        """
        missed = image - self.compose(self.project((image - self.mean)[None]))[0]
        mean = self.mean + missed.astype(np.float32)
        return replace(self, mean=mean, truncation_variance=_UNPREDICTED_TRUNCATION * self.truncation_variance)


def polynomial_degrees(degree: int) -> list[tuple[int, int]]:
    """Return the degrees in x and y of each polynomial of total degree at most `degree`.

    Examples
    --------
    >>> polynomial_degrees(1)
    [(0, 0), (1, 0), (0, 1)]
    """
    return [(int(p), int(q)) for p, q in term_degrees(degree)]


def polynomials(u: Float, v: Float, degree: int) -> Float:
    """Return products of Legendre polynomials (n, p) at positions u, v (n,) between -1 and 1.

    Examples
    --------
    >>> polynomials(np.array([0.5]), np.array([-1.0]), 1).tolist()
    [[1.0, 0.5, -1.0]]
    """
    degrees = term_degrees(degree)
    return legendre_values(u, degree)[:, degrees[:, 0]] * legendre_values(v, degree)[:, degrees[:, 1]]


def append_colour_terms(terms: Float, colour: Float) -> Float:
    """Return polynomials (n, p + q) of stars of known colour (n,), from those of their positions (n, p)."""
    return np.concatenate([terms, colour[:, None] * terms[:, :COLOUR_TERMS]], axis=1)


def estimate_fwhm(image: npt.NDArray[np.float32]) -> float:
    """Return the full width at half maximum of a PSF [native pixel].

    It is the diameter of the disk whose area is that of the samples above half the peak.
    """
    return float(2 * np.sqrt((image > image.max() / 2).sum() / np.pi) / OVERSAMPLING)


def resample(images: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    """Resample band-limited images (n, y, x) to another even number of samples per side.

    The centre stays at ``side // 2``; frequencies that `side` samples cannot represent are lost.
    """
    old_side = images.shape[-1]
    if old_side == side:
        return images
    spectrum = fft.rfft2(np.fft.ifftshift(images, axes=(-2, -1)))
    half = min(old_side, side) // 2
    out = np.zeros((*images.shape[:-2], side, side // 2 + 1), dtype=spectrum.dtype)
    for rows in (slice(0, half), slice(-half + 1, None)):
        out[..., rows, :half] = spectrum[..., rows, :half]
    image = fft.irfft2(out, s=(side, side)) * (side / old_side) ** 2
    return np.fft.fftshift(image, axes=(-2, -1)).astype(np.float32)


def write_basis(bands: dict[str, tuple[PsfBasis, int]]) -> bytes:
    """Encode the bases of bands as safetensors.

    Parameters
    ----------
    bands : dict
        Basis of each band, and the number of samples per native pixel to store.
    """
    tensors: dict[str, npt.NDArray[Any]] = {}
    for band, (basis, samples) in bands.items():
        side = BASIS_PIXELS * samples
        images = resample(basis.images, side)
        weak = images[_HALF_PRECISION_IMAGES:]
        step = np.abs(weak).max(axis=(1, 2), initial=0) / _INT8_MAX
        scatter = np.stack([basis.intrinsic_scatter, basis.intrinsic_scatter_given_colour])
        tensors[f"{band}.mean"] = resample(basis.mean, side)
        tensors[f"{band}.images"] = images[:_HALF_PRECISION_IMAGES].astype(np.float16)
        tensors[f"{band}.weak_images"] = np.rint(weak / step[:, None, None]).astype(np.int8)
        tensors[f"{band}.weak_steps"] = step.astype(np.float32)
        tensors[f"{band}.field_root"] = np.linalg.cholesky(basis.field_covariance).astype(np.float16)
        tensors[f"{band}.colour_root"] = np.linalg.cholesky(basis.colour_covariance).astype(np.float16)
        tensors[f"{band}.own"] = scatter.astype(np.float32)
        tensors[f"{band}.beyond"] = resample(np.sqrt(basis.truncation_variance), side).astype(np.float16)
    return save({name: np.ascontiguousarray(value) for name, value in tensors.items()})


def load_basis(card: ModelCard, band: str) -> PsfBasis:
    """Return the basis of a band from the weights of a card, read once per process.

    Raises
    ------
    InputError
        If the weights are not those of the card, or the card does not support the band.
    """
    if band not in card.architecture["bands"]:
        known = ", ".join(card.architecture["bands"])
        raise InputError(card.name, f"band {band}", f"one of the bands that it was trained on: {known}")
    return _load_verified(Path(str(card.weights)), card.sha256, band, int(card.architecture["degree"]))


@cache
def _load_verified(path: Path, sha256: str, band: str, degree: int) -> PsfBasis:
    found = sha256_file(path)
    if found != sha256:
        raise InputError(path, f"SHA-256 {found[:12]}", f"{sha256[:12]}, as its card says")
    try:
        return read_basis(path, band, degree)
    except KeyError as error:
        raise InputError(path, f"no tensor {error}", "weights as their card has them") from None


def read_basis(path: Path, band: str, degree: int) -> PsfBasis:
    """Return the basis of a band from a file of `write_basis`; KeyError if a tensor is absent."""
    tensors = load_file(path)
    names = ("mean", "images", "weak_images", "weak_steps", "field_root", "colour_root", "own", "beyond")
    mean, strong, weak, step, *roots, scatter, truncation = (tensors[f"{band}.{name}"] for name in names)
    images = np.concatenate([strong.astype(np.float32), weak * step[:, None, None]])
    field, colour = (root.astype(float) @ root.astype(float).transpose(0, 2, 1) for root in roots)
    return PsfBasis(
        mean=resample(mean, BASIS_SIZE),
        images=resample(images, BASIS_SIZE),
        field_covariance=field,
        intrinsic_scatter=scatter[0].astype(float),
        colour_covariance=colour,
        intrinsic_scatter_given_colour=scatter[1].astype(float),
        degree=degree,
        truncation_variance=resample(truncation.astype(np.float32), BASIS_SIZE) ** 2,
    )
