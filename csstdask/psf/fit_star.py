"""Predict the pixels of stars, including masked ones, from a PSF field.

Each star has its own flux, position and sky, and its image deviates from the field's PSF by its colour and by the error
of the field. All of these are fitted to the unmasked pixels, with the uncertainty of the field as prior
(`csstdask.psf.fit_field` has the model), so that predictions have a variance. The noise of a pixel is that of the light
fitted to it (`csstdask.psf.noise`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter

from csstdask.arrays.psf_grid import node_positions
from csstdask.numerics.linear import invert_with_ridge
from csstdask.psf.field import PsfField
from csstdask.psf.noise import expected_variance
from csstdask.psf.pixels import Renderer, render_with_slopes, subpixel_offset, to_render_layout

Float = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

#: Edge of what is fitted of a stamp [pixel].
FIT_BOX = 24
#: Stars that are fitted together.
_BATCH = 64
#: A combination of principal images that is known to this share of the PSF is not fitted.
_DECIDED = 3e-4
#: Outliers deviate from the fit by more than this, in units of their noise...
_OUTLIER_SIGMA = 5.0
#: ...and of a share of the light within this many pixels, smaller in each round of linearisation.
_OUTLIER_SHARES, _NEAR = (1.0, 0.1, 0.03, 0.01, 0.01), 3
#: Largest step of a position in one round [pixel].
_LARGEST_STEP = 0.5
#: A star that has moved by more than this is rendered again; until then its image is extrapolated linearly, which is
#: good to 1e-5 of the peak [pixel].
_EXTRAPOLATED = 0.004
#: Positions in a pixel, along each axis, at which derivatives with respect to the amounts are rendered. They steer the
#: fit, and extrapolate images between renderings, so that stars can share them.
_PHASES = 32
#: Rendered positions that are kept at most: 100 MB.
_MOST_VIEWS = 2048
#: Radius of the pixels whose chi^2 decides whether a source is a star [pixel].
_WITHIN = 5.0


@dataclass(frozen=True)
class StarFit:
    """What pixels of n stars are expected to hold."""

    light: Pixels
    """(n, FITTED, FITTED), in the unit of what was fitted, on the star's sky."""
    variance: Pixels
    """(n, FITTED, FITTED) Of the expectation; a pixel's own noise is not in it."""
    flux: Float
    """(n,)"""
    sky: Float
    """(n,) Residual sky."""
    x_offset: Float
    """(n,) Fitted minus given position [pixel]."""
    y_offset: Float
    chi2: Float
    """(n,) A degree of freedom, of the pixels near the star, those of others as well; inf where there are too few."""
    degrees: Float
    """(n,) Of freedom."""


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
    """Fit stars of a field whose PSF is known.

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
    middle, half = pixels.shape[-1] // 2, FIT_BOX // 2
    window = (slice(None), *2 * (slice(middle - half, middle + half),))
    free = _Freedom.of(field, rigid=rigid)
    parts = [
        _fit(field, free, pixels[window][some], variance[window][some], x[some], y[some], position_sigma, tolerance)
        for some in (slice(first, first + _BATCH) for first in range(0, len(pixels), _BATCH))
    ]
    if not parts:
        empty, none = np.empty((0, FIT_BOX, FIT_BOX), np.float32), np.empty(0)
        return StarFit(empty, empty, *6 * (none,))
    return StarFit(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


class _SharedViews:
    """Images rendered at the nearest of `_PHASES` positions in a pixel, each once, on demand."""

    def __init__(self, images: Pixels) -> None:
        self._render = Renderer(images, FIT_BOX)
        self._known: dict[tuple[int, int], Pixels] = {}

    def __call__(self, y: Float, x: Float) -> Pixels:
        """Return images (n, r, FITTED, FITTED) for stars at offsets y, x [pixel]."""
        positions = np.rint(np.stack([y, x], axis=1) * _PHASES).astype(int)
        keys = [(row, column) for row, column in positions.tolist()]
        if len(self._known) > _MOST_VIEWS:
            self._known.clear()
        new = list(dict.fromkeys(key for key in keys if key not in self._known))
        rendered = self._render(*(np.array(new, dtype=float).reshape(-1, 2).T / _PHASES))
        self._known.update(zip(new, rendered, strict=True))
        return np.stack([self._known[key] for key in keys])


@dataclass(frozen=True)
class _Freedom:
    """The combinations of principal images that remain uncertain once the field is known."""

    mean: Pixels
    """(samples,) The mean PSF, laid out for `render_with_slopes`, as all images here are."""
    all_images: Pixels
    """(k, samples) All principal images."""
    images: Pixels
    """(r, samples) The uncertain combinations."""
    layout: tuple[int, ...]
    """Shape of one image."""
    seen: _SharedViews
    """The uncertain combinations as stars see them."""
    to_amounts: Float
    """(r, k)"""
    from_amounts: Float
    """(k, r)"""

    @classmethod
    def of(cls, field: PsfField, *, rigid: bool) -> _Freedom:
        """Choose them by the uncertainty at the field's nodes, the same for all of its stars."""
        psfs = field.psfs
        y, x = (
            axis.ravel() for axis in np.meshgrid(*(node_positions(length) for length in field.shape), indexing="ij")
        )
        _, spread = field.amounts_at(x, y)
        flat = psfs.images.reshape(len(psfs), -1)
        size = np.sqrt((flat.astype(float) ** 2).sum(axis=1))
        values, vectors = np.linalg.eigh(size[:, None] * spread.mean(axis=0) * size)
        least = np.inf if rigid else (_DECIDED * np.linalg.norm(psfs.mean)) ** 2
        kept = vectors[:, values > least]
        to_amounts = kept.T / size
        images = (to_amounts.astype(np.float32) @ flat).reshape(-1, *psfs.mean.shape)
        layout = to_render_layout(psfs.mean[None], FIT_BOX).shape[1:]
        mean, every, uncertain = (
            to_render_layout(part, FIT_BOX).reshape(len(part), prod(layout))
            for part in (psfs.mean[None], psfs.images, images)
        )
        return cls(mean[0], every, uncertain, layout, _SharedViews(images), to_amounts, size[:, None] * kept)

    def prior(self, spread: Float, position_sigma: float) -> Float:
        """Return inverse covariances (n, r + 4, r + 4) of amounts, flux, sky, x and y, from those of all amounts."""
        r = len(self.images)
        prior = np.zeros((len(spread), r + 4, r + 4))
        if r:
            prior[:, :r, :r] = np.linalg.inv(self.from_amounts.T @ spread @ self.from_amounts)
        prior[:, [r + 2, r + 3], [r + 2, r + 3]] = position_sigma**-2
        return prior


@dataclass
class _State:
    """Current estimates of each star."""

    amounts: Float
    """(n, r) Of the uncertain combinations."""
    flux: Float
    sky: Float
    x: Float
    y: Float

    def move(self, step: Float) -> None:
        self.amounts = self.amounts + step[:, :-4]
        self.flux, self.sky = self.flux + step[:, -4], self.sky + step[:, -3]
        self.x, self.y = (
            old + np.clip(change, -_LARGEST_STEP, _LARGEST_STEP)
            for old, change in ((self.x, step[:, -2]), (self.y, step[:, -1]))
        )


class _View:
    """Images of stars, and how they change; rendered again only for stars that have moved."""

    def __init__(self, expected: Float, free: _Freedom, state: _State) -> None:
        n = len(state.flux)
        self._expected, self._free = free.mean + expected.astype(np.float32) @ free.all_images, free
        self._x, self._y, self._amounts = np.full(n, np.inf), np.full(n, np.inf), np.zeros_like(state.amounts)
        #: (3, n, y, x) Images of unit flux, and their change with x and y [1/pixel].
        self._rendered = np.empty((3, n, FIT_BOX, FIT_BOX), np.float32)
        #: (n, r, y, x) Change with the amounts.
        self._seen = np.empty((n, len(free.images), FIT_BOX, FIT_BOX), np.float32)

    def image(self, state: _State, *, exact: bool = False) -> Pixels:
        """Return images of unit flux (n, y, x); `exact`: without extrapolation."""
        self._seen = self._free.seen(state.y, state.x)
        moved = exact | (np.hypot(state.x - self._x, state.y - self._y) > _EXTRAPOLATED)
        self._render(state, np.flatnonzero(moved))
        dx, dy = ((now - then).astype(np.float32) for now, then in ((state.x, self._x), (state.y, self._y)))
        change = (state.amounts - self._amounts).astype(np.float32)
        image, slope_x, slope_y = self._rendered
        moved_by = dx[:, None, None] * slope_x + dy[:, None, None] * slope_y
        return np.asarray(image + moved_by + np.einsum("nr,nryx->nyx", change, self._seen))

    def design(self, state: _State, image: Pixels) -> Pixels:
        """Return how pixels follow amounts, flux, sky, x and y: (n, r + 4, y x)."""
        flux = state.flux.astype(np.float32)[:, None, None, None]
        own = image[:, None], np.ones_like(image)[:, None], flux * self._rendered[1:].transpose(1, 0, 2, 3)
        return np.concatenate([flux * self._seen, *own], axis=1).reshape(len(image), -1, FIT_BOX * FIT_BOX)

    def _render(self, state: _State, some: npt.NDArray[np.int64]) -> None:
        """Render the images of some stars at their current positions."""
        x, y, amounts = state.x[some], state.y[some], state.amounts[some]
        self._x[some], self._y[some], self._amounts[some] = x, y, amounts
        whole = self._expected[some] + amounts.astype(np.float32) @ self._free.images
        whole = whole.reshape(-1, *self._free.layout)
        self._rendered[:, some] = render_with_slopes(whole, y, x, FIT_BOX)


def _fit(
    field: PsfField,
    free: _Freedom,
    pixels: Pixels,
    variance: Pixels,
    x: Float,
    y: Float,
    position_sigma: float,
    tolerance: float,
) -> tuple[Any, ...]:
    """Fit a batch of stars; return the attributes of `StarFit` in their order."""
    n, r = len(pixels), len(free.images)
    expected, spread = field.amounts_at(x, y)
    prior = free.prior(spread, position_sigma)
    at_x, at_y = subpixel_offset(x), subpixel_offset(y)
    state = _State(np.zeros((n, r)), np.zeros(n), np.zeros(n), at_x.copy(), at_y.copy())
    known = np.isfinite(variance) & (variance > 0)
    given = np.where(known, variance, np.inf).astype(np.float32)
    values = np.where(known, pixels, 0).astype(np.float32)
    view = _View(expected, free, state)
    image = view.image(state)
    state.flux = _first_flux(image, values, known)
    # No pixel is trusted beyond the accuracy of the principal images, or of any PSF.
    beyond = Renderer(np.sqrt(field.psfs.beyond)[None], FIT_BOX)
    flux = state.flux[:, None, None].astype(np.float32)
    model_variance = flux**2 * (beyond(state.y, state.x)[:, 0] ** 2 + (np.float32(tolerance) * image) ** 2)
    for share in _OUTLIER_SHARES:
        image = view.image(state)
        light = state.flux.astype(np.float32)[:, None, None] * image
        residual = values - light - state.sky.astype(np.float32)[:, None, None]
        trusted = 1 / (expected_variance(given, residual, values - residual) + model_variance)
        near = maximum_filter(np.abs(light), (1, _NEAR, _NEAR))
        outlying = residual**2 * trusted > _OUTLIER_SIGMA**2 * (1 + (share * near) ** 2 * trusted)
        weight = np.where(outlying, 0, trusted)
        design = view.design(state, image)
        weighted = design * weight.reshape(n, 1, -1)
        normal = (weighted @ design.transpose(0, 2, 1)).astype(float) + prior
        away = np.zeros((n, r + 4))
        away[:, :r], away[:, r + 2], away[:, r + 3] = state.amounts, state.x - at_x, state.y - at_y
        right = (weighted @ residual.reshape(n, -1, 1))[..., 0] - np.einsum("nab,nb->na", prior, away)
        covariance = invert_with_ridge(normal)
        state.move(np.einsum("nab,nb->na", covariance, right))
    image = view.image(state, exact=True)
    design = view.design(state, image)
    light = state.flux[:, None, None] * image
    light_variance = ((covariance @ design) * design).sum(axis=1).reshape(light.shape)
    model_variance = beyond(state.y, state.x)[:, 0] ** 2 + (tolerance * image) ** 2
    light_variance += model_variance * state.flux[:, None, None] ** 2
    chi2, degrees = _chi2(values - light - state.sky[:, None, None], trusted, at_x, at_y)
    whole = (light + state.sky[:, None, None]).astype(np.float32)
    with np.errstate(over="ignore"):  # of a star without a pixel
        stored_variance = light_variance.astype(np.float32)
    return whole, stored_variance, state.flux, state.sky, state.x - at_x, state.y - at_y, chi2, degrees


def _first_flux(plain: Pixels, pixels: Pixels, known: Mask) -> Float:
    """Return fluxes as medians over the pixels that hold most of a star's light."""
    core = known & (plain > 0.05 * plain.max(axis=(1, 2), keepdims=True))
    ratio = np.ma.masked_array(pixels / np.where(core, plain, 1), ~core)
    found = np.ma.median(ratio.reshape(len(plain), -1), axis=1)
    return np.maximum(np.asarray(np.ma.filled(found, 0), dtype=np.float64), 0)


def _chi2(residual: Any, weight: Any, x: Float, y: Float) -> tuple[Float, Float]:
    """Return chi^2 per degree of freedom of the pixels near stars, and the degrees of freedom."""
    steps = np.arange(FIT_BOX) - FIT_BOX // 2
    distance = np.hypot(steps[None, :, None] - y[:, None, None], steps[None, None, :] - x[:, None, None])
    use = (weight > 0) & (distance < _WITHIN)
    pull2 = np.minimum(residual**2 * weight, _OUTLIER_SIGMA**2)
    degrees = use.sum(axis=(1, 2)) - 4.0
    chi2 = np.where(degrees > 0, (pull2 * use).sum(axis=(1, 2)) / np.maximum(degrees, 1), np.inf)
    return chi2, degrees
