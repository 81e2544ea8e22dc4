"""Predict the pixels of stars, including masked ones, from a PSF field.

Each star has its own flux, position and sky, and its image deviates from the field's PSF by its colour and by the error
of the field. All of these are fitted to the unmasked pixels, with the uncertainty of the field as prior
(`csstdask.psf.fit_field` describes the model), so that predictions have a variance. The noise of a pixel is that of the
light fitted to it (`csstdask.psf.noise`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.psf_grid import node_positions
from csstdask.psf.field import PsfField
from csstdask.psf.noise import expected_variance
from csstdask.psf.pixels import Renderer, subpixel_offset, to_render_layout
from csstdask.psf.star_model import (
    BATCH_SIZE,
    FIT_BOX,
    OUTLIER_SIGMA,
    STAR_TERMS,
    Linearisation,
    NormalEquations,
    StarModel,
    StarParameters,
    StarStamps,
    find_outliers,
    initial_flux,
    truncation_sigma,
)

Float = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.float32]

#: Combinations of principal images whose uncertainty is below this share of the PSF are not fitted.
_MIN_UNCERTAINTY = 3e-4
#: Relative error of the model in each round of linearisation, for the rejection of outliers.
_MODEL_ERRORS = (1.0, 0.1, 0.03, 0.01, 0.01)
#: Share of a star's peak above which pixels enter the first estimate of its flux.
_MIN_CORE_SHARE = 0.05
#: Sub-pixel phases along each axis at which derivatives by the coefficients are rendered. They steer the fit and
#: extrapolate images between renderings, so that stars can share them.
_PHASES = 32
#: Largest number of phases whose images are kept: 100 MB.
_MAX_CACHED_PHASES = 2048
#: Radius of the pixels whose chi^2 decides whether a source is a star [pixel].
_CHI2_RADIUS = 5.0


@dataclass(frozen=True, eq=False)
class StarFit:
    """Predicted pixels of n stars."""

    light: Pixels
    """(n, FIT_BOX, FIT_BOX) Star and sky, in the unit of the fitted pixels."""
    variance: Pixels
    """(n, FIT_BOX, FIT_BOX) Variance of the prediction, without the noise of the pixel itself."""
    flux: Float
    """(n,)"""
    sky: Float
    """(n,) Residual sky."""
    x_offset: Float
    """(n,) Fitted minus given position [pixel]."""
    y_offset: Float
    chi2: Float
    """(n,) Chi^2 per degree of freedom of the pixels near the star, outliers included; inf without freedom."""
    degrees: Float
    """(n,) Degrees of freedom of `chi2`."""


@dataclass(frozen=True, eq=False)
class LinearFit:
    """Result of `fit_model`."""

    parameters: StarParameters
    covariance: Float
    """(n, k + 4, k + 4) Covariance of the parameters, in the order of `csstdask.psf.star_model`."""
    lines: Linearisation
    """Images and derivatives at the parameters."""
    weight: npt.NDArray[Any]
    """(n, size, size) Inverse variance of the pixels in the last round, of outliers as well."""


def fit_model(
    model: StarModel,
    stamps: StarStamps,
    start: StarParameters,
    precision: Float,
    *,
    model_variance: npt.NDArray[Any] | float = 0.0,
    model_errors: tuple[float | None, ...] = _MODEL_ERRORS,
) -> LinearFit:
    """Fit the parameters of stars to their pixels, by repeated linearisation.

    Parameters
    ----------
    model : StarModel
    stamps : StarStamps
    start : StarParameters
        First estimate. Coefficients and positions are also the mean of the prior.
    precision : float64 array (n, k + 4, k + 4)
        Inverse covariance of the prior.
    model_variance : array (n, size, size) or float
        Variance of the error of the model, added to that of the pixels.
    model_errors : tuple of float or None
        Relative error of the model in each round, for the rejection of outliers; None: no rejection.
    """
    parameters, lines = start, None
    for model_error in model_errors:
        lines = model.linearise(parameters, lines)
        light = parameters.flux.astype(np.float32)[:, None, None] * lines.image
        residual = stamps.pixels - light - parameters.sky.astype(np.float32)[:, None, None]
        noise = expected_variance(stamps.variance, residual, stamps.pixels - residual)
        weight = 1 / (noise + model_variance)
        outliers = False if model_error is None else find_outliers(residual, weight, light, model_error)
        equations = NormalEquations.of(lines.design(parameters.flux), residual, np.where(outliers, 0, weight))
        step, covariance = equations.with_prior(precision, _deviation(parameters, start)).solve()
        parameters = parameters.moved(step)
    return LinearFit(parameters, covariance, model.linearise(parameters), weight)


def _deviation(parameters: StarParameters, start: StarParameters) -> Float:
    """Return parameters minus the mean of their prior; flux and sky have none."""
    deviation = np.zeros((len(parameters.flux), parameters.coefficients.shape[1] + STAR_TERMS))
    deviation[:, :-STAR_TERMS] = parameters.coefficients - start.coefficients
    deviation[:, -2], deviation[:, -1] = parameters.x - start.x, parameters.y - start.y
    return deviation


def fit_stars(
    field: PsfField,
    pixels: Pixels,
    variance: Pixels,
    x: Float,
    y: Float,
    *,
    position_sigma: float = 0.5,
    rigid: bool = False,
    tolerance: float = 0.0,
) -> StarFit:
    """Fit stars whose PSF field is known.

    Parameters
    ----------
    field : PsfField
    pixels, variance : float32 arrays (n, y, x)
        Stamps of stars; variance is inf where unknown.
    x, y : float64 arrays (n,)
        Positions in the field [pixel]; a stamp's pixel ``[size // 2, size // 2]`` is
        ``[floor(y + 0.5), floor(x + 0.5)]``.
    position_sigma : float
        1 sigma of the given positions [pixel].
    rigid : bool
        Fit flux, sky and position only; the PSF is the field's.
    tolerance : float
        Relative accuracy of any PSF, as a share of the light on a pixel: added to variances, and allowed for in chi^2.
    """
    offsets = subpixel_offset(x), subpixel_offset(y)
    stamps = StarStamps.crop(pixels, variance, *offsets, position_sigma=position_sigma)
    free = _FreeImages.of(field, rigid=rigid)
    parts = [
        _fit_batch(field, free, stamps[batch], x[batch], y[batch], tolerance)
        for batch in (slice(first, first + BATCH_SIZE) for first in range(0, len(pixels), BATCH_SIZE))
    ]
    if not parts:
        empty, none = np.empty((0, FIT_BOX, FIT_BOX), np.float32), np.empty(0)
        return StarFit(empty, empty, *6 * (none,))
    names = StarFit.__dataclass_fields__
    return StarFit(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _fit_batch(field: PsfField, free: _FreeImages, stamps: StarStamps, x: Float, y: Float, tolerance: float) -> StarFit:
    """Fit a batch of stars at positions x, y (n,) in the field."""
    n = len(stamps)
    expected, covariance = field.coefficients_at(x, y)
    model = free.model(expected)
    none = np.zeros(n)
    unit = StarParameters(np.zeros((n, len(free.images))), none, none, stamps.x, stamps.y)
    image = model.render(unit)
    flux = initial_flux(image, stamps.pixels, stamps.usable, min_share=_MIN_CORE_SHARE)

    def model_variance(parameters: StarParameters, image: Pixels) -> Pixels:
        # No pixel is weighted beyond the accuracy of the basis, or of any PSF.
        sigma = truncation_sigma(field.basis, parameters, FIT_BOX)
        flux = parameters.flux[:, None, None].astype(np.float32)
        return np.asarray(flux**2 * (sigma**2 + (np.float32(tolerance) * image) ** 2))

    start = StarParameters(unit.coefficients, flux, none, stamps.x, stamps.y)
    fit = fit_model(
        model,
        stamps,
        start,
        free.precision(covariance, stamps.position_sigma),
        model_variance=model_variance(start, image),
    )
    found, image = fit.parameters, fit.lines.image
    design = fit.lines.design(found.flux)
    light = found.flux[:, None, None] * image
    light_variance = ((fit.covariance @ design) * design).sum(axis=1).reshape(light.shape)
    sigma = truncation_sigma(field.basis, found, FIT_BOX)
    light_variance += (sigma**2 + (tolerance * image) ** 2) * found.flux[:, None, None] ** 2
    sky = found.sky[:, None, None]
    chi2, degrees = _core_chi2(stamps, stamps.pixels - light - sky, fit.weight)
    with np.errstate(over="ignore"):  # of a star without a usable pixel
        stored_variance = light_variance.astype(np.float32)
    return StarFit(
        light=(light + sky).astype(np.float32),
        variance=stored_variance,
        flux=found.flux,
        sky=found.sky,
        x_offset=found.x - stamps.x,
        y_offset=found.y - stamps.y,
        chi2=chi2,
        degrees=degrees,
    )


class _PhaseCache:
    """Images rendered at the nearest of `_PHASES` sub-pixel phases, each phase once, on demand."""

    def __init__(self, images: Pixels) -> None:
        self._render = Renderer(images, FIT_BOX)
        self._rendered: dict[tuple[int, int], Pixels] = {}

    def __call__(self, y: Float, x: Float) -> Pixels:
        """Return images (n, r, FIT_BOX, FIT_BOX) for stars at offsets y, x [pixel]."""
        phases = np.rint(np.stack([y, x], axis=1) * _PHASES).astype(int)
        keys = [(row, column) for row, column in phases.tolist()]
        if len(self._rendered) > _MAX_CACHED_PHASES:
            self._rendered.clear()
        new = list(dict.fromkeys(key for key in keys if key not in self._rendered))
        rendered = self._render(*(np.array(new, dtype=float).reshape(-1, 2).T / _PHASES))
        self._rendered.update(zip(new, rendered, strict=True))
        return np.stack([self._rendered[key] for key in keys])


@dataclass(frozen=True, eq=False)
class _FreeImages:
    """The r combinations of principal images that remain uncertain once the field is known."""

    field_model: StarModel
    """All k images of the basis."""
    images: Pixels
    """(r, ...) The uncertain combinations, in the layout of `field_model`."""
    render_images: _PhaseCache
    from_coefficients: Float
    """(k, r) Transforms coefficients of the basis to those of the combinations."""

    @classmethod
    def of(cls, field: PsfField, *, rigid: bool) -> _FreeImages:
        """Choose them by the uncertainty at the nodes of a field, the same for all of its stars."""
        basis = field.basis
        y, x = np.meshgrid(*(node_positions(length) for length in field.shape), indexing="ij")
        _, covariance = field.coefficients_at(x.ravel(), y.ravel())
        flat = basis.images.reshape(len(basis), -1)
        norm = np.sqrt((flat.astype(float) ** 2).sum(axis=1))
        values, vectors = np.linalg.eigh(norm[:, None] * covariance.mean(axis=0) * norm)
        threshold = np.inf if rigid else (_MIN_UNCERTAINTY * np.linalg.norm(basis.mean)) ** 2
        kept = vectors[:, values > threshold]
        images = ((kept.T / norm).astype(np.float32) @ flat).reshape(-1, *basis.mean.shape)
        field_model = StarModel.of_basis(basis, FIT_BOX)
        return cls(field_model, to_render_layout(images, FIT_BOX), _PhaseCache(images), norm[:, None] * kept)

    def model(self, coefficients: Float) -> StarModel:
        """Return the model of stars whose field has coefficients (n, k)."""
        return StarModel(self.field_model.oversampled(coefficients), self.images, self.render_images, FIT_BOX)

    def precision(self, covariance: Float, position_sigma: float) -> Float:
        """Return the inverse covariances (n, r + 4, r + 4) of the prior, given those of all coefficients (n, k, k)."""
        r = len(self.images)
        precision = np.zeros((len(covariance), r + STAR_TERMS, r + STAR_TERMS))
        if r:
            precision[:, :r, :r] = np.linalg.inv(self.from_coefficients.T @ covariance @ self.from_coefficients)
        precision[:, [r + 2, r + 3], [r + 2, r + 3]] = position_sigma**-2
        return precision


def _core_chi2(stamps: StarStamps, residual: Float, weight: npt.NDArray[Any]) -> tuple[Float, Float]:
    """Return chi^2 per degree of freedom of the pixels near stars, and the degrees of freedom."""
    steps = np.arange(FIT_BOX) - FIT_BOX // 2
    dy = steps[None, :, None] - stamps.y[:, None, None]
    dx = steps[None, None, :] - stamps.x[:, None, None]
    use = (weight > 0) & (np.hypot(dy, dx) < _CHI2_RADIUS)
    pull2 = np.minimum(residual**2 * weight, OUTLIER_SIGMA**2)
    degrees = use.sum(axis=(1, 2)) - float(STAR_TERMS)
    chi2 = np.where(degrees > 0, (pull2 * use).sum(axis=(1, 2)) / np.maximum(degrees, 1), np.inf)
    return chi2, degrees
