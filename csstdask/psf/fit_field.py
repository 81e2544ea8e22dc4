"""A fit of principal PSFs to the stars of a detector: what they say together, and each alone, and how well it is known.

Everything is linear and Gaussian but for a star's flux and place, about which the fit is linearised anew in each round.
What noise a pixel has is that of the light fitted to it (`csstdask.psf.noise`).
One star leans on what simulated telescopes look like; a thousand lean on themselves.

With the amounts ``c_i`` of star `i` (`csstdask.psf.basis`), its pixels are ``flux (mean + images c_i)`` seen from
its place, on a constant sky. Flux, sky and place are its own and are eliminated first (Schur complement); what is left
is quadratic in ``c_i``, with curvature ``H_i``. Of the field's amounts ``C``, ``c_i = polynomials_i C + own_i``, the
own parts are eliminated next, by ``(1 + H_i own)^-1 H_i``, and `C` follows from one system with as many unknowns as
there are polynomials times images. Both posteriors are then exact, at the last linearisation.

What is expected of `C` is first what telescopes have in the mean. Once each star has been fitted alone, the wavefront
of their mean PSF is retrieved (`csstdask.psf.phase_retrieval`), which tells also what no principal image can; in the
round after, the wavefront of the whole field says what is expected of `C`: linearised once, about the likeliest.

What is left that images cannot tell is an error of one PSF that all stars share: that of a thousand does not average.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter

from csstdask.numerics.linear import solve_with_ridge
from csstdask.psf.basis import PsfBasis
from csstdask.psf.noise import expected_variance
from csstdask.psf.phase_retrieval import PhaseRetrieval
from csstdask.psf.pixels import Renderer, interpolation_matrix, render_with_slopes, to_render_layout
from csstdask.psf.wavefront import FourierOptics, Wavefront

log = logging.getLogger("csstdask")

Float = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

#: How far a star may lie from where it is said to lie, one sigma, where nobody says [pixel].
POSITION_SIGMA = 0.02
#: Phases at which stars see PSFs that differ: two samples a pixel along each axis tell them.
_PHASES = 4
#: A pixel so far from what is fitted is another's, in units of its noise and of a share of the light within a
#: pixel: first from the mean PSF, which is only roughly right, then from the star's own.
_FURTHEST, _FIRST_SHARE, _SHARE, _NEAR = 5.0, 1.0, 0.01, 3
#: Pixels above such a share of a star's brightest tell its first flux, by their median.
_CORE = 0.2
#: Stars with so much more scatter than noise, or such a share of pixels of others, take no part in the field.
_WORST, _MOST = 3.0, 0.1
#: Rows and columns along the edge of what is fitted, for a first sky.
_RIM = 3
#: A place moves by so much in a round at most [pixel].
_FURTHEST_STEP = 0.5
#: Edge of what is fitted of a stamp [pixel], and stars that are rendered at once.
_FITTED, _BATCH = 24, 64


@dataclass(frozen=True)
class FieldFit:
    """What the stars of a detector say of its PSF.

    Amounts are those of `PsfBasis`; `n` stars, `k` images, `p` polynomials.
    """

    psfs: PsfBasis
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


def fit_field(
    psfs: PsfBasis,
    pixels: Pixels,
    variance: Pixels,
    x: Float,
    y: Float,
    polynomials: Float,
    place: float = POSITION_SIGMA,
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
    light = np.where(usable, pixels, 0).astype(np.float32)[window]
    given = np.where(usable, variance, np.inf).astype(np.float32)[window]
    fit = _Fit(psfs, _Stars(light, given, x, y, polynomials, place))
    shared &= optics is None or not optics.certain
    # Each star alone: none can lead the others astray before it is judged.
    fit.alone()
    good = fit.judge(shared=shared)
    # All together. The wavefront that they show by now tells what images cannot.
    said, wavefront = fit.said(good), None
    settled = fit.together(psfs.prior.given(*said).mean)
    retrieval = None if optics is None or not good.any() else PhaseRetrieval(optics, psfs)
    if retrieval is not None:
        start = retrieval.search(*said)
        fit.psfs = psfs.told_by(retrieval.optics.image(start))
    good = fit.judge(shared=shared)
    # As the wavefront of the whole field expects, if optics explain these stars.
    said = fit.said(good)
    if retrieval is not None:
        expected, wavefront = retrieval.prior(*said, int(good.sum()), start)
    else:
        expected = psfs.prior.given(*said)
    fit.together(expected.mean)
    if retrieval is not None and wavefront is not None:
        fit.psfs = psfs.told_by(retrieval.optics.image(wavefront))
    elif retrieval is not None:  # what a wavefront that was not there has led to is forgotten
        fit.psfs, fit.state = psfs, settled
    good = fit.judge(shared=shared)
    # Once more about what that led to.
    final = expected.prior.given(*fit.said(good))
    state = fit.together(final.mean)
    if fit.stars.seen.any() and not good.any():
        log.warning("none of %d stars looks like one: their PSFs are what was believed before", len(pixels))
    return FieldFit(
        fit.psfs,
        final.mean.reshape(-1, len(psfs)),
        final.covariance,
        state.amounts,
        fit.spread(final.covariance),
        state.flux,
        state.x - x,
        state.y - y,
        fit.chi2(),
        good,
        wavefront,
    )


@dataclass(frozen=True)
class _Stars:
    """The stars of one detector."""

    pixels: Pixels
    """(n, size, size)"""
    variance: Pixels
    """(n, size, size) By noise, as it was given; inf where nothing is known."""
    x: Float
    """(n,) Offset from the middle of pixel ``[size // 2, size // 2]`` [pixel]."""
    y: Float
    polynomials: Float
    """(n, p)"""
    place: float
    """How far a star may lie from there, one sigma [pixel]."""

    @property
    def seen(self) -> Mask:
        """(n,) Whether a star has a pixel that is known."""
        return np.asarray(np.isfinite(self.variance).any(axis=(1, 2)))


@dataclass(frozen=True)
class _State:
    """What is believed of each star."""

    amounts: Float
    """(n, k)"""
    flux: Float
    sky: Float
    x: Float
    y: Float


class _Fit:
    """What is believed of stars, and how each of their pixels is weighed, round by round.

    A round begins with `alone` or `said`, which linearise about what is believed by then; `together` and `spread` are
    of that linearisation.
    """

    def __init__(self, psfs: PsfBasis, stars: _Stars) -> None:
        n, self.size = stars.pixels.shape[:2]
        self.stars, self.psfs = stars, psfs
        self.state = _State(np.zeros((n, len(psfs))), np.zeros(n), np.zeros(n), stars.x, stars.y)
        #: Of a star by itself (n, size, size): what images cannot tell is noise, too. Zero in pixels of others.
        self.own = 1 / stars.variance
        #: Among all stars (n, size, size): what images cannot tell is an error that they share.
        self.weight = self.own
        self.state = self._first_flux()
        self.judge(_FIRST_SHARE, shared=False)
        self.state = self._better_flux()

    @property
    def psfs(self) -> PsfBasis:
        """Those that stars are looked at through."""
        return self._psfs

    @psfs.setter
    def psfs(self, psfs: PsfBasis) -> None:
        self._psfs = psfs
        self._renderer = Renderer(np.concatenate([psfs.mean[None], psfs.images]), self.size)

    def alone(self) -> None:
        """Believe each star's own pixels, and what telescopes look like in the mean."""
        self._linearise()
        prior = np.einsum("np,pab->nab", self.stars.polynomials**2, self.psfs.field) + np.diag(self.psfs.own)
        right = self._slope + np.einsum("nab,nb->na", self._curvature, self.state.amounts)
        self._move(np.linalg.solve(self._curvature + np.linalg.inv(prior), right[..., None])[..., 0])

    def said(self, good: Mask) -> tuple[Float, Float]:
        """Return what stars say of the field's amounts: curvature (p k, p k), and that times the amounts (p k,)."""
        self._linearise()
        k, place = len(self.psfs), self.stars.polynomials[good]
        curvature, slope = self._curvature[good], self._slope[good]
        # What a star says of the polynomials, its own part being unknown.
        blunted = np.linalg.inv(np.eye(k) + curvature * self.psfs.own)
        curved = blunted @ curvature
        right = np.einsum("nab,nb->na", blunted, slope) + np.einsum("nab,nb->na", curved, self.state.amounts[good])
        normal = np.einsum("npq,nab->paqb", place[:, :, None] * place[:, None, :], curved, optimize=True)
        normal = normal.reshape(2 * (place.shape[1] * k,))
        return (normal + normal.T) / 2, (place.T @ right).ravel()

    def together(self, field: Float) -> _State:
        """Believe what a field (p k,) expects of stars, beside their own pixels, and return it."""
        expected = self.stars.polynomials @ field.reshape(-1, len(self.psfs))
        step = self._slope - np.einsum("nab,nb->na", self._curvature, expected - self.state.amounts)
        self._move(expected + np.einsum("nab,nb->na", self._own_spread(), step))
        return self.state

    def spread(self, covariance: Float) -> Float:
        """Return the covariances of stars' amounts (n, k, k): the field's (p k, p k) and their own."""
        place, k = self.stars.polynomials, len(self.psfs)
        own = self._own_spread()
        kept = np.eye(k) - own @ self._curvature
        blocks = covariance.reshape(2 * (place.shape[1], k))
        of_field = np.einsum("np,paqb,nq->nab", place, blocks, place, optimize=True)
        return np.asarray(own + kept @ of_field @ kept.transpose(0, 2, 1))

    def judge(self, share: float = _SHARE, *, shared: bool) -> Mask:
        """Weigh pixels, those of others not at all, and return which stars look like one (n,).

        What stars know of a pixel of their PSF together, u = sum of flux^2 / variance, leaves open what images cannot
        tell of it: u / (1 + u beyond), for each phase at which they see it.
        """
        light, left = self._light()
        known = 1 / expected_variance(self.stars.variance, left, self.stars.pixels - left)
        unsure = np.empty_like(known)
        beyond = Renderer(np.sqrt(self.psfs.beyond)[None], self.size)
        for some in self._batches():
            flux = self.state.flux[some, None, None]
            unsure[some] = known[some] * (flux * beyond(self.state.y[some], self.state.x[some])[:, 0]) ** 2
        own = known / (1 + unsure)
        outlying = _outlying(light, left, own, share)
        self.own = np.where(outlying, 0, own)
        chi2, others = _chi2(left, self.own), outlying.mean(axis=(1, 2))
        usual = float(np.median(chi2[self.stars.seen])) if self.stars.seen.any() else 1.0
        good = self.stars.seen & (chi2 < _WORST * max(1.0, usual)) & (others < _MOST)
        if shared:
            unsure = np.maximum(unsure, unsure[good].sum(axis=0) / _PHASES)
        self.weight = np.where(outlying, 0, known / (1 + unsure))
        return good

    def chi2(self) -> Float:
        """Return chi^2 a degree of freedom of each star (n,), NaN of those without a pixel."""
        light, left = self._light()
        own = np.where(_outlying(light, left, self.own, _SHARE), 0, self.own)
        return np.where(self.stars.seen, _chi2(left, own), np.nan)

    def _light(self) -> tuple[Float, Float]:
        """Return the light of stars on their pixels, and what is left of these beside it and the sky."""
        light = np.empty(self.stars.pixels.shape)
        for some in self._batches():
            along_y, along_x = (interpolation_matrix(place[some], self.size) for place in (self.state.y, self.state.x))
            plain = along_y @ self.psfs.at(self.state.amounts[some]) @ along_x.transpose(0, 2, 1)
            light[some] = self.state.flux[some, None, None] * plain
        return light, self.stars.pixels - light - self.state.sky[:, None, None]

    def _batches(self) -> Iterator[slice]:
        return (slice(first, first + _BATCH) for first in range(0, max(len(self.stars.pixels), 1), _BATCH))

    def _mean_psf(self) -> Pixels:
        """Return the mean PSF as each star sees it (n, size, size)."""
        seen = Renderer(self.psfs.mean[None], self.size)
        return np.concatenate([seen(self.state.y[some], self.state.x[some])[:, 0] for some in self._batches()])

    def _first_flux(self) -> _State:
        """Return flux and sky by the mean PSF, as medians: single pixels may hold anything."""
        plain, known = self._mean_psf(), self.weight > 0
        rim = np.ones((self.size, self.size), dtype=bool)
        rim[_RIM:-_RIM, _RIM:-_RIM] = False
        sky = _median(self.stars.pixels, known & rim)
        core = known & (plain > _CORE * plain.max(axis=(1, 2), keepdims=True))
        ratio = (self.stars.pixels - sky[:, None, None]) / np.where(core, plain, 1)
        return replace(self.state, flux=np.maximum(_median(ratio, core), 0), sky=sky)

    def _better_flux(self) -> _State:
        """Return flux and sky by the mean PSF, as weighted least squares have them."""
        plain, n = self._mean_psf(), len(self.stars.pixels)
        design = np.stack([plain, np.ones_like(plain)], axis=1).reshape(n, 2, self.size**2).astype(float)
        weighted = design * self.weight.reshape(n, 1, self.size**2)
        right = weighted @ self.stars.pixels.reshape(n, self.size**2, 1)
        flux, sky = solve_with_ridge(weighted @ design.transpose(0, 2, 1), right)[..., 0].T
        return replace(self.state, flux=flux, sky=sky)

    def _linearise(self) -> None:
        """See how stars' pixels follow amounts, about what is believed; flux, sky and place are eliminated."""
        parts = zip(*(self._linearised(some) for some in self._batches()), strict=True)
        self._curvature, self._slope, self._following, self._moved = (np.concatenate(part) for part in parts)

    def _linearised(self, some: slice) -> tuple[Float, Float, Float, Float]:
        """Return of a batch curvature (n, k, k) and slope (n, k) in the amounts.

        And how flux, sky and place follow these (n, 4, k), and what else they are moved by (n, 4).
        """
        stars, size, k = self.stars, self.size, len(self.psfs)
        amounts, flux, sky, x, y = (
            part[some] for part in (self.state.amounts, self.state.flux, self.state.sky, self.state.x, self.state.y)
        )
        seen = self._renderer(y, x)
        n, flat = len(seen), size**2
        images = seen[:, 1:].reshape(n, k, flat)
        plain = seen[:, 0] + (amounts.astype(np.float32)[:, None] @ images).reshape(n, size, size)
        _, moved_x, moved_y = render_with_slopes(to_render_layout(self.psfs.at(amounts), size), y, x, size)
        scale = flux.astype(np.float32)[:, None, None]
        root = np.sqrt(self.weight[some]).reshape(n, 1, flat)
        own = np.stack([plain, np.ones_like(plain), scale * moved_x, scale * moved_y], axis=1)
        own = own.reshape(n, 4, flat) * root
        free = scale * images * root
        left = stars.pixels[some] - scale * plain - sky.astype(np.float32)[:, None, None]
        left = left.reshape(n, 1, flat) * root
        own_own, own_free, own_left, free_free, free_left = (
            (a @ b.transpose(0, 2, 1)).astype(float)
            for a, b in ((own, own), (own, free), (own, left), (free, free), (free, left))
        )
        # Places are held to where they were said to lie, wherever they are by now.
        known = stars.place**-2
        own_own += np.diag([0.0, 0.0, known, known])
        own_left[:, 2, 0] -= (x - stars.x[some]) * known
        own_left[:, 3, 0] -= (y - stars.y[some]) * known
        following, moved = solve_with_ridge(own_own, own_free), solve_with_ridge(own_own, own_left)
        of_free = own_free.transpose(0, 2, 1)
        return free_free - of_free @ following, (free_left - of_free @ moved)[..., 0], following, moved[..., 0]

    def _own_spread(self) -> Float:
        """Return what is unsure of stars' amounts (n, k, k), were the field known."""
        return np.asarray(np.linalg.inv(self._curvature + np.diag(1 / self.psfs.own)), dtype=np.float64)

    def _move(self, amounts: Float) -> None:
        """Believe amounts, and what flux, sky and place follow from them."""
        state = self.state
        step = self._moved - np.einsum("nak,nk->na", self._following, amounts - state.amounts)
        dx, dy = np.clip(step[:, 2:], -_FURTHEST_STEP, _FURTHEST_STEP).T
        self.state = _State(amounts, state.flux + step[:, 0], state.sky + step[:, 1], state.x + dx, state.y + dy)


def _outlying(light: Float, left: Float, weight: Pixels | Float, share: float) -> Mask:
    """Return which pixels are another's (n, size, size): far from what is fitted."""
    near = maximum_filter(np.abs(light), (1, _NEAR, _NEAR))
    return np.asarray(left**2 * weight > _FURTHEST**2 * (1 + (share * near) ** 2 * weight))


def _chi2(left: Float, weight: Pixels | Float) -> Float:
    """Return chi^2 a degree of freedom of each star (n,), over pixels that have a weight."""
    used = weight > 0
    pull2 = np.where(used, left**2 * weight, 0)
    return np.asarray(pull2.sum(axis=(1, 2)) / np.maximum(used.sum(axis=(1, 2)) - 4, 1), dtype=np.float64)


def _median(values: Pixels | Float, which: Mask) -> Float:
    """Return the median of each plane over some of its pixels, 0 where there are none."""
    n, rows, columns = values.shape
    found = np.ma.median(np.ma.masked_array(values, ~which).reshape(n, rows * columns), axis=1)
    return np.asarray(np.ma.filled(found, 0), dtype=np.float64)
