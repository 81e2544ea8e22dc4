"""A fit of principal PSFs to the stars of a detector: what they say together, and each alone, and how well it is known.

Everything is linear and Gaussian but for a star's flux and place, about which the fit is linearised anew in each round.
One star leans on what simulated telescopes look like; a thousand lean on themselves.

With the amounts ``c_i`` of star `i` (`csstdask.psf.principal`), its pixels are ``flux (mean + images c_i)`` seen from
its place, on a constant sky. Flux, sky and place are its own and are eliminated first (Schur complement); what is left
is quadratic in ``c_i``, with curvature ``H_i``. Of the field's amounts ``C``, ``c_i = polynomials_i C + own_i``, the
own parts are eliminated next, by ``(1 + H_i own)^-1 H_i``, and `C` follows from one system with as many unknowns as
there are polynomials times images. Both posteriors are then exact, at the last linearisation.

What is expected of `C` is first what telescopes have in the mean. Once stars have settled, the wavefront of their mean
PSF is retrieved (`csstdask.psf.phase_retrieval`), which tells also what no principal image can; in the round after, the
wavefront of the whole field says what is expected of `C`: linearised once, about the likeliest.

What is left that images cannot tell is an error of one PSF that all stars share: that of a thousand does not average.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter

from csstdask.psf.optics import FourierOptics, Wavefront
from csstdask.psf.phase_retrieval import PhaseRetrieval
from csstdask.psf.pixels import Renderer, interpolation
from csstdask.psf.principal import PrincipalPsfs

log = logging.getLogger("csstdask")

Float = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

#: How far a star may lie from where it is said to lie, one sigma, where nobody says [pixel].
PLACE = 0.02
#: Round of linearisation in which stars are settled enough to show a wavefront. In those before each star stands alone:
#: none can lead the others astray before it is judged.
_SETTLED = 1
#: Rounds: in the next the wavefront is the prior, and one more settles stars with it. All but the last judge pixels and
#: stars anew.
_ROUNDS = _SETTLED + 3
#: Phases at which stars see PSFs that differ: two samples a pixel along each axis tell them.
_PHASES = 4
#: A pixel so far from what is fitted is another's, in units of its noise and of a share of the light within a
#: pixel: first from the mean PSF, which is only roughly right, then from the star's own.
_FURTHEST, _FIRST_SHARE, _SHARE, _NEAR = 5.0, 1.0, 0.01, 3
#: Pixels above such a share of a star's brightest tell its first flux, by their median.
_CORE = 0.2
#: Stars with so much more scatter than noise, or such a share of pixels of others, take no part in the field.
_WORST, _MOST = 3.0, 0.1
#: Of what is solved for, beside what stars say of it.
_RIDGE = 1e-12
#: Rows and columns along the edge of what is fitted, for a first sky.
_RIM = 3
#: Edge of what is fitted of a stamp [pixel], and stars that are rendered at once.
_FITTED, _BATCH = 24, 64


@dataclass(frozen=True)
class FieldFit:
    """What the stars of a detector say of its PSF.

    Amounts are those of `PrincipalPsfs`; `n` stars, `k` images, `p` polynomials.
    """

    psfs: PrincipalPsfs
    """Those that were given; what no image can tell of this telescope is in the mean, where a wavefront tells it."""
    field: Float
    """(p, k) Amounts of each polynomial."""
    covariance: Float
    """(p k, p k) Theirs."""
    amounts: Float
    """(n, k) Of each star."""
    spread: Float
    """(n, k, k) Their covariances."""
    flux: Float
    """(n,)"""
    x_offset: Float
    """(n,) Of a star from the place that it was said to have [pixel]."""
    y_offset: Float
    chi2: Float
    """(n,) A degree of freedom; NaN of stars without a pixel."""
    used: Mask
    """(n,) Whether a star took part in the field."""
    wavefront: Wavefront | None = None
    """What the stars show of it, where optics explain their PSFs."""


@dataclass
class _Stars:
    """The stars of one detector as the fit sees them."""

    pixels: Pixels
    """(n, size, size)"""
    known: Pixels
    """(n, size, size) Inverse variance by noise, zero where nothing is known."""
    own: Pixels
    """(n, size, size) Of a star by itself: what images cannot tell is noise, too. Zero in pixels of others."""
    weight: Pixels
    """(n, size, size) Among all stars: what images cannot tell is an error that they share."""
    x: Float
    """(n,) Offset from the middle of pixel ``[size // 2, size // 2]`` [pixel]."""
    y: Float
    polynomials: Float
    """(n, p)"""
    place: float
    """How far a star may lie from there, one sigma [pixel]."""


@dataclass
class _State:
    """What is believed of each star."""

    amounts: Float
    flux: Float
    sky: Float
    x: Float
    y: Float


def fit_field(
    psfs: PrincipalPsfs,
    pixels: Pixels,
    variance: Pixels,
    x: Float,
    y: Float,
    polynomials: Float,
    place: float = PLACE,
    optics: FourierOptics | None = None,
    *,
    shared: bool = True,
) -> FieldFit:
    """Fit the PSF of one detector to its stars.

    Parameters
    ----------
    psfs : PrincipalPsfs
        Of the detector's band.
    pixels : float32 array (n, y, x)
        Stamps of stars, of any flux.
    variance : float32 array (n, y, x)
        Of each pixel, inf where nothing is known.
    x, y : float64 array (n,)
        Offset of each star from the middle of pixel ``[size // 2, size // 2]`` [pixel].
    polynomials : float64 array (n, p)
        At each star's place on the detector.
    place : float
        How well places are known, one sigma [pixel].
    optics : FourierOptics, optional
        Of the band: the wavefront that stars show, if any is good by the second round, then says how their PSF may
        change over the detector, and what images cannot tell of it.
    shared : bool
        Whether what images cannot tell is the same in all stars, as where one telescope differs from those learnt from.
        Where optics are certain it never is.

    Returns
    -------
    FieldFit
    """
    middle, half = pixels.shape[-1] // 2, min(_FITTED, pixels.shape[-1]) // 2
    window = (slice(None), *2 * (slice(middle - half, middle + half),))
    usable = np.isfinite(variance) & (variance > 0) & np.isfinite(pixels)
    known = np.where(usable, 1 / np.where(usable, variance, 1), 0).astype(np.float32)[window]
    light = np.where(usable, pixels, 0).astype(np.float32)[window]
    stars = _Stars(light, known, known, known, x, y, polynomials, place)
    n, k = len(pixels), len(psfs)
    state = _State(np.zeros((n, k)), np.zeros(n), np.zeros(n), x.copy(), y.copy())
    seen = (known > 0).any(axis=(1, 2))
    _first_flux(psfs, stars, state)
    _judge(psfs, stars, state, _FIRST_SHARE, shared=False)
    _better_flux(psfs, stars, state)
    learnt, prior, wavefront = psfs, psfs.prior(), None
    retrieval = None if optics is None else PhaseRetrieval(optics, learnt, prior)
    shared &= optics is None or not optics.certain
    starts: tuple[Wavefront, ...] = ()
    good = np.zeros(n, dtype=bool)
    renderer = _renderer(psfs, stars)
    for number in range(_ROUNDS):
        curvature, slope, eliminated = _normal_equations(psfs, renderer, stars, state)
        if number < _SETTLED:
            amounts = _alone(psfs, stars.polynomials, curvature, slope, state.amounts)
        else:
            said = _of_field(psfs, stars.polynomials, curvature, slope, state.amounts, good)
            if retrieval is not None and number == _SETTLED and good.any():
                starts = retrieval.search(*said, int(good.sum()))
                wavefront = starts[-1]
            elif retrieval is not None and number == _SETTLED + 1 and starts:
                prior, wavefront = retrieval.prior(*said, starts)
            solved, covariance = prior.posterior(*said)
            field = solved.reshape(-1, k)
            amounts, own = _solve_stars(psfs, stars.polynomials @ field, curvature, slope, state.amounts)
        _update(state, eliminated, amounts)
        if number == _SETTLED:
            settled = deepcopy(state)
        elif starts and wavefront is None and number == _SETTLED + 1:
            state = settled  # what a wavefront that was not there has led to is forgotten
        if retrieval is not None and number in (_SETTLED, _SETTLED + 1):
            psfs = learnt if wavefront is None else learnt.told_by(retrieval.optics.image(wavefront))
            renderer = _renderer(psfs, stars)
        if number < _ROUNDS - 1:
            good = _judge(psfs, stars, state, _SHARE, shared=shared)
    chi2, _ = _residuals(psfs, stars, state, _SHARE)
    if seen.any() and not good.any():
        log.warning("none of %d stars looks like one: their PSFs are what was believed before", len(pixels))
    chi2 = np.where(seen, chi2, np.nan)
    spread = _spread(stars.polynomials, covariance, curvature, own)
    return FieldFit(
        psfs, field, covariance, amounts, spread, state.flux, state.x - x, state.y - y, chi2, good, wavefront
    )


def _first_flux(psfs: PrincipalPsfs, stars: _Stars, state: _State) -> None:
    """Set flux and sky by the mean PSF, as medians: single pixels may hold anything."""
    size = stars.pixels.shape[-1]
    rim = np.ones((size, size), dtype=bool)
    rim[_RIM:-_RIM, _RIM:-_RIM] = False
    for some, seen in _seen(Renderer(psfs.mean[None], size), stars, state):
        plain, known = seen[:, 0], stars.weight[some] > 0
        sky = _median(stars.pixels[some], known & rim)
        core = known & (plain > _CORE * plain.max(axis=(1, 2), keepdims=True))
        ratio = (stars.pixels[some] - sky[:, None, None]) / np.where(core, plain, 1)
        state.flux[some], state.sky[some] = np.maximum(_median(ratio, core), 0), sky


def _better_flux(psfs: PrincipalPsfs, stars: _Stars, state: _State) -> None:
    """Set flux and sky by the mean PSF, as weighted least squares have it."""
    for some, seen in _seen(Renderer(psfs.mean[None], stars.pixels.shape[-1]), stars, state):
        count = len(seen)
        design = np.stack([seen[:, 0], np.ones_like(seen[:, 0])], axis=1).reshape(count, 2, -1).astype(float)
        weight = stars.weight[some].reshape(count, 1, -1)
        right = (design * weight) @ stars.pixels[some].reshape(count, -1, 1)
        normal = np.asarray((design * weight) @ design.transpose(0, 2, 1), dtype=np.float64)
        state.flux[some], state.sky[some] = _solve(normal, np.asarray(right, dtype=np.float64))[..., 0].T


def _median(values: Pixels | Float, which: Mask) -> Float:
    """Return the median of each plane over some of its pixels, 0 where there are none."""
    found = np.ma.median(np.ma.masked_array(values, ~which).reshape(len(values), -1), axis=1)
    return np.asarray(np.ma.filled(found, 0), dtype=np.float64)


def _renderer(psfs: PrincipalPsfs, stars: _Stars) -> Renderer:
    """Return what renders the mean and the images for these stars."""
    return Renderer(np.concatenate([psfs.mean[None], psfs.images]), stars.pixels.shape[-1])


def _judge(psfs: PrincipalPsfs, stars: _Stars, state: _State, share: float, *, shared: bool) -> Mask:
    """Weigh pixels, those of others not at all, and return which stars look like one (n,).

    What stars know of a pixel of their PSF together, u = sum of flux^2 / variance, leaves open what images cannot tell
    of it: u / (1 + u beyond), for each phase at which they see it.
    """
    unsure = np.empty_like(stars.known)
    for some, beyond in _seen(Renderer(np.sqrt(psfs.beyond)[None], stars.pixels.shape[-1]), stars, state):
        unsure[some] = stars.known[some] * (state.flux[some, None, None] * beyond[:, 0]) ** 2
    stars.own = stars.known / (1 + unsure)
    chi2, outlying = _residuals(psfs, stars, state, share)
    seen = (stars.known > 0).any(axis=(1, 2))
    usual = float(np.median(chi2[seen])) if seen.any() else 1.0
    others = (outlying & (stars.known > 0)).mean(axis=(1, 2))
    good = seen & (chi2 < _WORST * max(1.0, usual)) & (others < _MOST)
    stars.own = np.where(outlying, 0, stars.own)
    if shared:
        unsure = np.maximum(unsure, unsure[good].sum(axis=0) / _PHASES)
    stars.weight = np.where(outlying, 0, stars.known / (1 + unsure))
    return good


def _solve(matrix: Float, right: Float) -> Float:
    """Solve small systems (n, a, a), each unknown of a scale of its own, some of them known nothing about."""
    scale = 1 / np.sqrt(np.maximum(np.einsum("naa->na", matrix), 1e-30))
    scaled = matrix * scale[:, :, None] * scale[:, None, :] + _RIDGE * np.eye(matrix.shape[-1])
    return np.asarray(scale[:, :, None] * np.linalg.solve(scaled, scale[:, :, None] * right))


def _seen(renderer: Renderer, stars: _Stars, state: _State) -> Iterator[tuple[slice, Pixels]]:
    """Yield batches of stars: which, and images as they see them (n, k, size, size)."""
    for first in range(0, len(stars.pixels), _BATCH):
        some = slice(first, first + _BATCH)
        yield some, renderer(state.y[some], state.x[some])


#: Of a batch of stars: how flux, sky and place follow amounts (n, 4, k), and what they are moved by else (n, 4).
_Eliminated = tuple[slice, Float, Float]


def _normal_equations(
    psfs: PrincipalPsfs, renderer: Renderer, stars: _Stars, state: _State
) -> tuple[Float, Float, list[_Eliminated]]:
    """Return curvature (n, k, k) and slope (n, k) in the amounts about the state, flux, sky and place eliminated."""
    n, k, size = len(stars.pixels), len(psfs), stars.pixels.shape[-1]
    curvature, slope = np.empty((n, k, k)), np.empty((n, k))
    eliminated: list[_Eliminated] = []
    known = stars.place**-2
    prior = np.diag([0.0, 0.0, known, known])
    for some, seen in _seen(renderer, stars, state):
        count = len(seen)
        along_y, along_x = interpolation(state.y[some], size), interpolation(state.x[some], size)
        amounts, flux = state.amounts[some].astype(np.float32), state.flux[some].astype(np.float32)
        plain = seen[:, 0] + (amounts[:, None] @ seen[:, 1:].reshape(count, k, -1)).reshape(count, size, size)
        whole = psfs.at(amounts)
        moved_x = along_y @ whole @ interpolation(state.x[some], size, slope=True).transpose(0, 2, 1)
        moved_y = interpolation(state.y[some], size, slope=True) @ whole @ along_x.transpose(0, 2, 1)
        scale = flux[:, None, None]
        own = np.stack([plain, np.ones_like(plain), scale * moved_x, scale * moved_y], axis=1).reshape(count, 4, -1)
        free = (scale[:, None] * seen[:, 1:]).reshape(count, k, -1)
        root = np.sqrt(stars.weight[some]).reshape(count, 1, -1)
        left = stars.pixels[some] - scale * plain - state.sky[some].astype(np.float32)[:, None, None]
        own, free, rest = own * root, free * root, left.reshape(count, 1, -1) * root
        own_own = (own @ own.transpose(0, 2, 1)).astype(float) + prior
        own_free, own_rest = (
            (own @ free.transpose(0, 2, 1)).astype(float),
            (own @ rest.transpose(0, 2, 1)).astype(float),
        )
        # The prior holds places to where they were said to lie, wherever the state has them by now.
        own_rest[:, 2, 0] -= (state.x[some] - stars.x[some]) * known
        own_rest[:, 3, 0] -= (state.y[some] - stars.y[some]) * known
        to_free, to_rest = _solve(own_own, own_free), _solve(own_own, own_rest)
        curvature[some] = (free @ free.transpose(0, 2, 1)).astype(float) - own_free.transpose(0, 2, 1) @ to_free
        slope[some] = ((free @ rest.transpose(0, 2, 1)).astype(float) - own_free.transpose(0, 2, 1) @ to_rest)[..., 0]
        eliminated.append((some, to_free, to_rest[..., 0]))
    return curvature, slope, eliminated


def _alone(psfs: PrincipalPsfs, polynomials: Float, curvature: Float, slope: Float, about: Float) -> Float:
    """Return the amounts of each star (n, k) as it alone tells them."""
    prior = np.einsum("np,pab->nab", polynomials**2, psfs.field) + np.diag(psfs.own)
    right = slope + np.einsum("nab,nb->na", curvature, about)
    return np.asarray(np.linalg.solve(curvature + np.linalg.inv(prior), right[..., None])[..., 0])


def _of_field(
    psfs: PrincipalPsfs, polynomials: Float, curvature: Float, slope: Float, about: Float, good: Mask
) -> tuple[Float, Float]:
    """Return what stars say of the field's amounts: curvature (p k, p k), and that times the amounts (p k,)."""
    k, count = len(psfs), polynomials.shape[1]
    # What a star says of the polynomials, its own part being unknown.
    blunted = np.linalg.inv(np.eye(k) + curvature[good] * psfs.own[None, None, :])
    curved = blunted @ curvature[good]
    right = np.einsum("nab,nb->na", blunted, slope[good]) + np.einsum("nab,nb->na", curved, about[good])
    place = polynomials[good]
    normal = np.einsum("npq,nab->paqb", place[:, :, None] * place[:, None, :], curved, optimize=True)
    normal = normal.reshape(count * k, count * k)
    return (normal + normal.T) / 2, (place.T @ right).ravel()


def _solve_stars(
    psfs: PrincipalPsfs, expected: Float, curvature: Float, slope: Float, about: Float
) -> tuple[Float, Float]:
    """Return the amounts of each star (n, k) about those that the field expects, and what is left unsure (n, k, k)."""
    own = np.asarray(np.linalg.inv(curvature + np.diag(1 / psfs.own)), dtype=np.float64)
    step = slope - np.einsum("nab,nb->na", curvature, expected - about)
    return expected + np.einsum("nab,nb->na", own, step), own


def _spread(polynomials: Float, covariance: Float, curvature: Float, own: Float) -> Float:
    """Return the covariances of stars' amounts (n, k, k): the field's and their own."""
    k, count = own.shape[-1], polynomials.shape[1]
    kept = np.eye(k) - own @ curvature
    blocks = covariance.reshape(count, k, count, k)
    of_field = np.einsum("np,paqb,nq->nab", polynomials, blocks, polynomials, optimize=True)
    return np.asarray(own + kept @ of_field @ kept.transpose(0, 2, 1))


def _update(state: _State, eliminated: list[_Eliminated], amounts: Float) -> None:
    """Move to what was solved for, flux, sky and place included."""
    change = amounts - state.amounts
    for some, to_free, to_rest in eliminated:
        step = to_rest - np.einsum("nak,nk->na", to_free, change[some])
        state.flux[some] += step[:, 0]
        state.sky[some] += step[:, 1]
        state.x[some] += np.clip(step[:, 2], -0.5, 0.5)
        state.y[some] += np.clip(step[:, 3], -0.5, 0.5)
    state.amounts = amounts


def _residuals(psfs: PrincipalPsfs, stars: _Stars, state: _State, share: float) -> tuple[Float, Mask]:
    """Return chi^2 a degree of freedom of each star, and pixels that are far from what is fitted."""
    n = len(stars.pixels)
    chi2, outlying = np.empty(n), np.zeros(stars.pixels.shape, dtype=bool)
    size = stars.pixels.shape[-1]
    for first in range(0, n, _BATCH):
        some = slice(first, first + _BATCH)
        whole = psfs.at(state.amounts[some])
        plain = interpolation(state.y[some], size) @ whole @ interpolation(state.x[some], size).transpose(0, 2, 1)
        light = state.flux[some, None, None] * plain
        left = stars.pixels[some] - light - state.sky[some, None, None]
        weight = stars.own[some].astype(float)
        pull2 = left**2 * weight
        near = maximum_filter(np.abs(light), (1, _NEAR, _NEAR))
        outlying[some] = pull2 > _FURTHEST**2 * (1 + (share * near) ** 2 * weight)
        usable = (weight > 0) & ~outlying[some]
        chi2[some] = (pull2 * usable).sum(axis=(1, 2)) / np.maximum(usable.sum(axis=(1, 2)) - 4, 1)
    return chi2, outlying
