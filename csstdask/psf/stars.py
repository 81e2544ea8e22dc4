"""Stars seen through a PSF that is known: what each of their pixels holds, also where nobody could see it.

A star's image has a flux, a place, a sky of its own, and differs from the field's PSF as far as stars do, by colour,
and as the field is not known. All of it is fitted to the pixels that are left, with what is known of the field as
prior, so that what is said of the others has a variance (`csstdask.psf.fit` has the model). What noise a pixel has is
that of the light fitted to it (`csstdask.psf.noise`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter

from csstdask.psf.field import PsfField, nodes
from csstdask.psf.noise import expected_variance
from csstdask.psf.pixels import Renderer, interpolation, phase_of
from csstdask.psf.principal import PrincipalPsfs

Float = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

#: Edge of what is fitted of a stamp [pixel].
FITTED = 24
_BATCH = 64
#: A combination of principal images that is known to such a share of the PSF is not fitted.
_DECIDED = 3e-4
#: In each round of linearisation a pixel so far from what is fitted is another's, in units of its noise and of a share
#: of the light within a pixel; places move by so much at most [pixel].
_FURTHEST, _SHARES, _NEAR, _FURTHEST_STEP = 5.0, (1.0, 0.1, 0.03, 0.01, 0.01), 3, 0.5
#: Pixels so near to a star tell whether it is one [pixel].
_WITHIN = 5.0
#: Of what is solved for, beside what pixels say of it.
_RIDGE = 1e-12


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
    """(n,) What is left of it."""
    x_offset: Float
    """(n,) Of a star from the place that it was said to have [pixel]."""
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
    place: float = 0.5,
    rigid: bool = False,
    tolerance: float = 0.0,
) -> StarFit:
    """Fit stars of a field whose PSF is known.

    Parameters
    ----------
    field : PsfField
    pixels, variance : float32 arrays (n, y, x)
        Stamps of stars; variance is inf where nothing is known.
    x, y : float64 arrays (n,)
        Places in the field [pixel]; a stamp's pixel ``[size // 2, size // 2]`` is ``[floor(y + 0.5), floor(x + 0.5)]``.
    place : float
        How well places are known, one sigma [pixel].
    rigid : bool
        All have the field's PSF as it is, and only a flux, a sky and a place of their own.
    tolerance : float
        Share of the light on a pixel to which a PSF is known at best: variances have it, and chi^2 forgives it.
    """
    middle, half = pixels.shape[-1] // 2, FITTED // 2
    window = (slice(None), *2 * (slice(middle - half, middle + half),))
    free = _Freedom.of(field, rigid=rigid)
    parts = [
        _fit(field, free, pixels[window][some], variance[window][some], x[some], y[some], place, tolerance)
        for some in (slice(first, first + _BATCH) for first in range(0, len(pixels), _BATCH))
    ]
    if not parts:
        empty, none = np.empty((0, FITTED, FITTED), np.float32), np.empty(0)
        return StarFit(empty, empty, *6 * (none,))
    return StarFit(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


@dataclass(frozen=True)
class _Freedom:
    """What stars may still be, once their field is known: few of the principal images are left undecided."""

    seen: Renderer
    """Of r combinations of principal images."""
    to_amounts: Float
    """(r, k)"""
    from_amounts: Float
    """(k, r)"""

    @classmethod
    def of(cls, field: PsfField, *, rigid: bool) -> _Freedom:
        """Decide by what is undecided at the field's nodes, the same for all of its stars."""
        psfs = field.psfs
        y, x = (place.ravel() for place in np.meshgrid(*(nodes(length) for length in field.shape), indexing="ij"))
        _, spread = field.amounts_at(x, y)
        flat = psfs.images.reshape(len(psfs), -1)
        size = np.sqrt((flat.astype(float) ** 2).sum(axis=1))
        values, vectors = np.linalg.eigh(size[:, None] * spread.mean(axis=0) * size)
        least = np.inf if rigid else (_DECIDED * np.linalg.norm(psfs.mean)) ** 2
        kept = vectors[:, values > least]
        to_amounts = kept.T / size
        images = (to_amounts.astype(np.float32) @ flat).reshape(-1, *psfs.mean.shape)
        return cls(Renderer(images, FITTED), to_amounts, size[:, None] * kept)

    def prior(self, spread: Float, place: float) -> Float:
        """Return inverse covariances (n, r + 4, r + 4) of amounts, flux, sky, x and y, by those of all amounts."""
        r = self.seen.k
        prior = np.zeros((len(spread), r + 4, r + 4))
        if r:
            prior[:, :r, :r] = np.linalg.inv(self.from_amounts.T @ spread @ self.from_amounts)
        prior[:, [r + 2, r + 3], [r + 2, r + 3]] = place**-2
        return prior


@dataclass
class _State:
    """What is believed of each star."""

    amounts: Float
    """(n, r) Of what is left undecided."""
    flux: Float
    sky: Float
    x: Float
    y: Float

    def move(self, step: Float) -> None:
        self.amounts = self.amounts + step[:, :-4]
        self.flux, self.sky = self.flux + step[:, -4], self.sky + step[:, -3]
        self.x, self.y = (
            old + np.clip(change, -_FURTHEST_STEP, _FURTHEST_STEP)
            for old, change in ((self.x, step[:, -2]), (self.y, step[:, -1]))
        )


def _fit(
    field: PsfField,
    free: _Freedom,
    pixels: Pixels,
    variance: Pixels,
    x: Float,
    y: Float,
    place: float,
    tolerance: float,
) -> tuple[Any, ...]:
    """Fit a batch of stars; what `StarFit` has, in its order."""
    n, r = len(pixels), free.seen.k
    expected, spread = field.amounts_at(x, y)
    prior = free.prior(spread, place)
    at_x, at_y = phase_of(x), phase_of(y)
    state = _State(np.zeros((n, r)), np.zeros(n), np.zeros(n), at_x.copy(), at_y.copy())
    known = np.isfinite(variance) & (variance > 0)
    given = np.where(known, variance, np.inf).astype(np.float32)
    values = np.where(known, pixels, 0).astype(np.float32)
    image, design = _seen(field.psfs, expected, free, state)
    state.flux = _first_flux(image, values, known)
    # Pixels are trusted no more than principal images, or any PSF, can tell them.
    flux = state.flux[:, None, None].astype(np.float32)
    unsure = flux**2 * (_beyond(field.psfs, state) + (np.float32(tolerance) * image) ** 2)
    for share in _SHARES:
        image, design = _seen(field.psfs, expected, free, state)
        light = state.flux[:, None, None] * image
        left = values - light - state.sky[:, None, None]
        trusted = (1 / (expected_variance(given, left, values - left) + unsure)).astype(np.float32)
        near = maximum_filter(np.abs(light), (1, _NEAR, _NEAR))
        outlying = left**2 * trusted > _FURTHEST**2 * (1 + (share * near) ** 2 * trusted)
        weight = np.where(outlying, 0, trusted)
        weighted = design * weight.reshape(n, 1, -1)
        normal = (weighted @ design.transpose(0, 2, 1)).astype(float) + prior
        away = np.zeros((n, r + 4))
        away[:, :r], away[:, r + 2], away[:, r + 3] = state.amounts, state.x - at_x, state.y - at_y
        right = (weighted @ left.reshape(n, -1, 1).astype(np.float32))[..., 0] - np.einsum("nab,nb->na", prior, away)
        covariance = _inverse(normal)
        state.move(np.einsum("nab,nb->na", covariance, right))
    image, design = _seen(field.psfs, expected, free, state)
    light = state.flux[:, None, None] * image
    told = ((covariance @ design) * design).sum(axis=1).reshape(light.shape)
    told += (_beyond(field.psfs, state) + (tolerance * image) ** 2) * state.flux[:, None, None] ** 2
    left = values - light - state.sky[:, None, None]
    chi2, degrees = _chi2(left, trusted, at_x, at_y)
    whole = (light + state.sky[:, None, None]).astype(np.float32)
    with np.errstate(over="ignore"):  # of a star without a pixel
        spread_of_light = told.astype(np.float32)
    return whole, spread_of_light, state.flux, state.sky, state.x - at_x, state.y - at_y, chi2, degrees


def _inverse(matrix: Float) -> Float:
    """Return inverses (n, a, a), each unknown of a scale of its own, some of them known nothing about."""
    scale = 1 / np.sqrt(np.maximum(np.einsum("naa->na", matrix), 1e-30))
    scaled = matrix * scale[:, :, None] * scale[:, None, :] + _RIDGE * np.eye(matrix.shape[-1])
    return np.asarray(scale[:, :, None] * np.linalg.inv(scaled) * scale[:, None, :])


def _seen(psfs: PrincipalPsfs, expected: Float, free: _Freedom, state: _State) -> tuple[Pixels, Pixels]:
    """Return images of unit flux (n, y, x), and how pixels follow amounts, flux, sky, x and y: (n, r + 4, y x)."""
    n = len(state.flux)
    along_y, along_x = interpolation(state.y, FITTED), interpolation(state.x, FITTED)
    slope_y, slope_x = interpolation(state.y, FITTED, slope=True), interpolation(state.x, FITTED, slope=True)
    flux = state.flux.astype(np.float32)[:, None, None]
    whole = psfs.at(expected + state.amounts @ free.to_amounts)
    rows = whole @ along_x.transpose(0, 2, 1)
    image = along_y @ rows
    own = [image, np.ones_like(image), flux * (along_y @ whole @ slope_x.transpose(0, 2, 1)), flux * (slope_y @ rows)]
    images = flux[:, None] * free.seen(state.y, state.x)
    return image, np.concatenate([images, np.stack(own, axis=1)], axis=1).reshape(n, -1, FITTED * FITTED)


def _beyond(psfs: PrincipalPsfs, state: _State) -> Pixels:
    """Return the variance, for a unit of flux, of what no principal image tells (n, y, x)."""
    return np.asarray(Renderer(np.sqrt(psfs.beyond)[None], FITTED)(state.y, state.x)[:, 0] ** 2)


def _first_flux(plain: Pixels, pixels: Pixels, known: Mask) -> Float:
    """Return fluxes by the pixels that the brightest share of a star's light falls on, as medians."""
    core = known & (plain > 0.05 * plain.max(axis=(1, 2), keepdims=True))
    ratio = np.ma.masked_array(pixels / np.where(core, plain, 1), ~core)
    found = np.ma.median(ratio.reshape(len(plain), -1), axis=1)
    return np.maximum(np.asarray(np.ma.filled(found, 0), dtype=np.float64), 0)


def _chi2(left: Any, weight: Any, x: Float, y: Float) -> tuple[Float, Float]:
    """Return chi^2 a degree of freedom over pixels near stars, and how many there are."""
    steps = np.arange(FITTED) - FITTED // 2
    distance = np.hypot(steps[None, :, None] - y[:, None, None], steps[None, None, :] - x[:, None, None])
    use = (weight > 0) & (distance < _WITHIN)
    pull2 = np.minimum(left**2 * weight, _FURTHEST**2)
    degrees = use.sum(axis=(1, 2)) - 4.0
    chi2 = np.where(degrees > 0, (pull2 * use).sum(axis=(1, 2)) / np.maximum(degrees, 1), np.inf)
    return chi2, degrees
