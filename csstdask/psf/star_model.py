"""The model of the pixels of stars, its derivatives, and weighted least squares on them.

The pixels of a star hold ``flux (mean + sum_k c_k images_k)``, interpolated to its sub-pixel position, plus a constant
sky. The parameters of a star are, in this order, the coefficients ``c`` (k), flux, sky, x and y. A fit alternates
between `StarModel.linearise` and a solution of `NormalEquations`; every step returns new values and changes none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter

from csstdask.numerics.linear import invert_with_ridge, solve_with_ridge
from csstdask.psf.basis import PsfBasis
from csstdask.psf.pixels import Renderer, render_each, render_with_slopes, to_render_layout

Float = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
#: Renders images (n, k, size, size) for stars at offsets y, x [pixel].
RenderImages = Callable[[Float, Float], Pixels]

#: Width of the central box of a stamp that is fitted [pixel].
FIT_BOX = 24
#: Number of parameters besides the coefficients: flux, sky, x and y.
STAR_TERMS = 4
#: Number of stars that are rendered at once, which bounds the memory.
BATCH_SIZE = 64
#: Pixels that deviate by more than this from the model are outliers [sigma].
OUTLIER_SIGMA = 5.0
#: Width of the box whose brightest model pixel scales the error of the model [pixel].
MODEL_ERROR_BOX = 3
#: Largest change of a position in one round [pixel].
MAX_POSITION_STEP = 0.5
#: Distance up to which images are extrapolated with their derivatives, good to 1e-5 of the peak [pixel].
MAX_EXTRAPOLATION = 0.004


def batches(n: int) -> Iterator[slice]:
    """Yield slices of at most `BATCH_SIZE` that cover n stars; one empty slice for no star.

    Examples
    --------
    >>> list(batches(100))
    [slice(0, 64, None), slice(64, 128, None)]
    """
    return (slice(first, first + BATCH_SIZE) for first in range(0, max(n, 1), BATCH_SIZE))


def central_box(stamp_size: int, size: int) -> tuple[slice, slice, slice]:
    """Return the index of the central box of stamps (n, y, x), no larger than the stamps.

    Examples
    --------
    >>> central_box(32, 24)[1:]
    (slice(4, 28, None), slice(4, 28, None))
    """
    middle, half = stamp_size // 2, min(size, stamp_size) // 2
    window = slice(middle - half, middle + half)
    return slice(None), window, window


@dataclass(frozen=True, eq=False)
class StarStamps:
    """The central pixels of n stars, and what is given about their positions."""

    pixels: Pixels
    """(n, size, size) 0 where unusable."""
    variance: Pixels
    """(n, size, size) inf where unusable."""
    x: Float
    """(n,) Given offset from the centre of pixel ``[size // 2, size // 2]`` [pixel]."""
    y: Float
    position_sigma: float
    """1 sigma of the given offsets, along each axis [pixel]."""

    @classmethod
    def crop(
        cls, pixels: Pixels, variance: Pixels, x: Float, y: Float, *, position_sigma: float, size: int = FIT_BOX
    ) -> StarStamps:
        """Crop stamps (n, y, x) to their central box."""
        box = central_box(pixels.shape[-1], size)
        pixels, variance = pixels[box], variance[box]
        usable = np.isfinite(variance) & (variance > 0) & np.isfinite(pixels)
        return cls(
            np.where(usable, pixels, 0).astype(np.float32),
            np.where(usable, variance, np.inf).astype(np.float32),
            x,
            y,
            position_sigma,
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, which: slice) -> StarStamps:
        return StarStamps(self.pixels[which], self.variance[which], self.x[which], self.y[which], self.position_sigma)

    @property
    def usable(self) -> Mask:
        """(n, size, size) Pixels with a known variance."""
        return np.isfinite(self.variance)


@dataclass(frozen=True, eq=False)
class StarParameters:
    """Parameters of n stars."""

    coefficients: Float
    """(n, k) Coefficients of the images."""
    flux: Float
    """(n,)"""
    sky: Float
    """(n,) Constant under the star."""
    x: Float
    """(n,) Offset from the centre of pixel ``[size // 2, size // 2]`` [pixel]."""
    y: Float

    def __getitem__(self, which: slice | npt.NDArray[Any]) -> StarParameters:
        return StarParameters(self.coefficients[which], self.flux[which], self.sky[which], self.x[which], self.y[which])

    def moved(self, step: Float) -> StarParameters:
        """Return the parameters after a step (n, k + 4), with positions moving by `MAX_POSITION_STEP` at most."""
        dx, dy = np.clip(step[:, -2:], -MAX_POSITION_STEP, MAX_POSITION_STEP).T
        return StarParameters(
            self.coefficients + step[:, :-STAR_TERMS],
            self.flux + step[:, -4],
            self.sky + step[:, -3],
            self.x + dx,
            self.y + dy,
        )


@dataclass(frozen=True, eq=False)
class Linearisation:
    """Images of n stars of unit flux, and their derivatives."""

    image: Pixels
    """(n, size, size)"""
    by_x: Pixels
    """(n, size, size) [1/pixel]"""
    by_y: Pixels
    by_coefficients: Pixels
    """(n, k, size, size)"""
    anchor: StarParameters
    """Parameters at which images were rendered; from there they are extrapolated."""
    anchor_image: Pixels
    """(n, size, size)"""

    def design(self, flux: Float) -> Pixels:
        """Return the derivatives of pixels by all parameters, (n, k + 4, size * size), for stars of a flux (n,)."""
        scale = flux.astype(np.float32)[:, None, None]
        own = np.stack([self.image, np.ones_like(self.image), scale * self.by_x, scale * self.by_y], axis=1)
        design = np.concatenate([scale[:, None] * self.by_coefficients, own], axis=1)
        return design.reshape(*design.shape[:2], self.image.shape[1] * self.image.shape[2])


@dataclass(frozen=True, eq=False)
class StarModel:
    """Images of stars as a function of position and coefficients."""

    mean: Pixels
    """(1 or n, ...) Mean PSF, of all stars or of each, as `to_render_layout` returns it."""
    images: Pixels
    """(k, ...) Images that the coefficients multiply, in the same layout."""
    render_images: RenderImages
    """Renders `images` at the pixels of stars."""
    size: int
    """Width of the stamps [pixel]."""

    @classmethod
    def of_basis(cls, basis: PsfBasis, size: int) -> StarModel:
        """Return the model of stars whose coefficients are those of a basis."""
        mean, images = (to_render_layout(part, size) for part in (basis.mean[None], basis.images))
        return cls(mean, images, Renderer(basis.images, size), size)

    def __getitem__(self, which: slice | npt.NDArray[Any]) -> StarModel:
        mean = self.mean if len(self.mean) == 1 else self.mean[which]
        return StarModel(mean, self.images, self.render_images, self.size)

    def oversampled(self, coefficients: Float) -> Pixels:
        """Return the oversampled PSFs of stars (n, ...) of coefficients (n, k), in the layout of `mean`."""
        layout = self.mean.shape[1:]
        change = coefficients.astype(np.float32) @ self.images.reshape(len(self.images), prod(layout))
        return np.asarray(self.mean + change.reshape(-1, *layout))

    def render(self, parameters: StarParameters) -> Pixels:
        """Return the images of stars of unit flux, (n, size, size)."""
        out = np.empty((len(parameters.flux), self.size, self.size), np.float32)
        for batch in batches(len(out)):
            some = parameters[batch]
            out[batch] = render_each(self[batch].oversampled(some.coefficients), some.y, some.x, self.size)
        return out

    def linearise(self, parameters: StarParameters, previous: Linearisation | None = None) -> Linearisation:
        """Return the images of stars and their derivatives.

        Parameters
        ----------
        parameters : StarParameters
        previous : Linearisation, optional
            An earlier one of the same stars. Those that have moved by less than `MAX_EXTRAPOLATION` since it was
            rendered are not rendered again, but extrapolated.
        """
        by_coefficients = self.render_images(parameters.y, parameters.x)
        if previous is None:
            rendered = _render_with_slopes(self, parameters)
            return Linearisation(rendered[0], rendered[1], rendered[2], by_coefficients, parameters, rendered[0])
        old = previous.anchor
        moved = np.hypot(parameters.x - old.x, parameters.y - old.y) > MAX_EXTRAPOLATION
        rendered = np.stack([previous.anchor_image, previous.by_x, previous.by_y])
        which = np.flatnonzero(moved)
        rendered[:, which] = _render_with_slopes(self[which], parameters[which])
        anchor = StarParameters(
            np.where(moved[:, None], parameters.coefficients, old.coefficients),
            parameters.flux,
            parameters.sky,
            np.where(moved, parameters.x, old.x),
            np.where(moved, parameters.y, old.y),
        )
        dx, dy = (parameters.x - anchor.x).astype(np.float32), (parameters.y - anchor.y).astype(np.float32)
        shift = dx[:, None, None] * rendered[1] + dy[:, None, None] * rendered[2]
        change = (parameters.coefficients - anchor.coefficients).astype(np.float32)
        image = rendered[0] + shift + np.einsum("nk,nkyx->nyx", change, by_coefficients)
        return Linearisation(image, rendered[1], rendered[2], by_coefficients, anchor, rendered[0])


def _render_with_slopes(model: StarModel, parameters: StarParameters) -> Pixels:
    """Return images of unit flux and their derivatives by x and y, (3, n, size, size)."""
    return render_with_slopes(model.oversampled(parameters.coefficients), parameters.y, parameters.x, model.size)


def truncation_sigma(basis: PsfBasis, parameters: StarParameters, size: int) -> Pixels:
    """Return 1 sigma of what a basis cannot represent of the images of stars of unit flux, (n, size, size)."""
    render = Renderer(np.sqrt(basis.truncation_variance)[None], size)
    parts = [render(parameters.y[batch], parameters.x[batch])[:, 0] for batch in batches(len(parameters.flux))]
    return np.concatenate(parts)


def find_outliers(
    residual: npt.NDArray[Any], weight: npt.NDArray[Any], light: npt.NDArray[Any], model_error: float
) -> Mask:
    """Return the pixels that belong to other sources or cosmic rays.

    A pixel is an outlier where ``|residual| > 5 sqrt(1 / weight + (model_error near)^2)`` with the largest light `near`
    within a box of 3 pixels: an error of the PSF or of the position is proportional to the light next to a pixel.

    Parameters
    ----------
    residual : array (n, y, x)
        Pixels minus model.
    weight : array (n, y, x)
        Inverse variance.
    light : array (n, y, x)
        Fitted light of the star, without sky.
    model_error : float
        Relative error of the model.

    Examples
    --------
    >>> residual, light = np.zeros((1, 3, 3)), np.ones((1, 3, 3))
    >>> residual[0, 1, 1] = 6.0
    >>> bool(find_outliers(residual, np.ones((1, 3, 3)), light, 0.01)[0, 1, 1])
    True
    >>> bool(find_outliers(residual, np.ones((1, 3, 3)), light, 1.0)[0, 1, 1])
    False
    """
    near = maximum_filter(np.abs(light), (1, MODEL_ERROR_BOX, MODEL_ERROR_BOX))
    return np.asarray(residual**2 * weight > OUTLIER_SIGMA**2 * (1 + (model_error * near) ** 2 * weight))


def initial_flux(image: Pixels, pixels: npt.NDArray[Any], usable: Mask, *, min_share: float) -> Float:
    """Estimate fluxes by the median of pixel over image, which single bad pixels do not change.

    Parameters
    ----------
    image : float32 array (n, y, x)
        Images of stars of unit flux.
    pixels : array (n, y, x)
        Their pixels, sky subtracted.
    usable : bool array (n, y, x)
    min_share : float
        Pixels enter whose image exceeds this share of its peak.

    Returns
    -------
    float64 array (n,)
        Not negative; 0 without a pixel.
    """
    core = usable & (image > min_share * image.max(axis=(1, 2), keepdims=True))
    ratio = np.ma.masked_array(pixels / np.where(core, image, 1), ~core)
    median = np.ma.median(ratio.reshape(len(pixels), pixels.shape[1] * pixels.shape[2]), axis=1)
    return np.maximum(np.asarray(np.ma.filled(median, 0), dtype=np.float64), 0)


@dataclass(frozen=True, eq=False)
class NormalEquations:
    """Normal equations ``matrix step = right`` of n stars with a parameters each."""

    matrix: Float
    """(n, a, a)"""
    right: Float
    """(n, a)"""

    @classmethod
    def of(cls, design: Pixels, residual: npt.NDArray[Any], weight: npt.NDArray[Any]) -> NormalEquations:
        """Build them from a weighted least-squares problem.

        Parameters
        ----------
        design : float32 array (n, a, size * size)
            Derivatives of the pixels by the parameters.
        residual, weight : arrays (n, size, size)
            Pixels minus model, and their weights.
        """
        n = len(design)
        root = np.sqrt(weight).reshape(n, 1, design.shape[2])
        weighted = design * root
        scaled_residual = residual.reshape(root.shape) * root
        matrix = (weighted @ weighted.transpose(0, 2, 1)).astype(np.float64)
        right = (weighted @ scaled_residual.transpose(0, 2, 1))[..., 0].astype(np.float64)
        return cls(matrix, right)

    def with_prior(self, precision: Float, deviation: Float) -> NormalEquations:
        """Add a Gaussian prior.

        Parameters
        ----------
        precision : float64 array (n, a, a)
            Inverse covariance.
        deviation : float64 array (n, a)
            Current parameters minus the mean of the prior.
        """
        pull = np.einsum("nab,nb->na", precision, deviation)
        return NormalEquations(self.matrix + precision, self.right - pull)

    def eliminate(self, count: int) -> ReducedEquations:
        """Eliminate the last `count` parameters (Schur complement)."""
        kept, gone = slice(None, -count), slice(-count, None)
        block, cross = self.matrix[:, gone, gone], self.matrix[:, gone, kept]
        gain = solve_with_ridge(block, cross)
        step = solve_with_ridge(block, self.right[:, gone, None])
        cross = cross.transpose(0, 2, 1)
        slope = self.right[:, kept] - (cross @ step)[..., 0]
        return ReducedEquations(self.matrix[:, kept, kept] - cross @ gain, slope, gain, step[..., 0])

    def solve(self) -> tuple[Float, Float]:
        """Return the step (n, a), and the covariance (n, a, a) of the parameters."""
        covariance = invert_with_ridge(self.matrix)
        return np.einsum("nab,nb->na", covariance, self.right), covariance


@dataclass(frozen=True, eq=False)
class ReducedEquations:
    """Normal equations of the k coefficients of n stars, other parameters eliminated."""

    curvature: Float
    """(n, k, k)"""
    slope: Float
    """(n, k)"""
    gain: Float
    """(n, m, k) Change of the eliminated parameters per change of the coefficients, times -1."""
    step: Float
    """(n, m) Step of the eliminated parameters for fixed coefficients."""

    def full_step(self, change: Float) -> Float:
        """Return the step of all parameters (n, k + m) for a change of the coefficients (n, k)."""
        return np.concatenate([change, self.step - np.einsum("nmk,nk->nm", self.gain, change)], axis=1)
