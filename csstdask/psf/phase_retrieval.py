"""The wavefront that the stars of a detector show, and what it says of how their PSF changes over the detector.

What is learnt of telescopes in the mean (`csstdask.psf.basis`) expects of each polynomial on its own how much of it
there is. But the terms of one telescope belong together: a PSF is the squared transform of its pupil, and over a single
detector the wavefront in that pupil changes by little more than a plane. So the stars' mean PSF tells the wavefront
in its middle, by phase retrieval (Gonsalves 1982, Opt. Eng. 21, 829; Krist & Burrows 1995, Appl. Opt. 34,
4951); and that tells the few directions in which the PSF can change from there. Ellipticity, a product of aberrations,
cannot be told so by anything linear.

The unknowns are Zernike coefficients as quadratic polynomials of the place, a Gaussian blur, and a drift.
Levenberg's and Marquardt's way leads from a few random starts to the wavefront of the mean PSF, and from there to that
of the whole field. Amounts of principal PSFs linearised about it, with an error of this model, are then a prior as good
as any other, and the stars' pixels have the last word. Which error, and whether optics are believed at all, is what
makes the data most likely (the evidence): of stars that no aperture explains, nothing changes.

Even orders might all have the other sign, as stars in focus do not tell it: the detector's mean defocus is said to be
positive. Where that is nearly none, the sign is chance.

How much wavefronts and blurs vary is set to what sixty mock telescopes have (`csstdask.mock.random_telescopes`),
generously; what optics may miss, to what the fields of twelve that principal PSFs had not learnt from wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft

from csstdask.numerics.gaussian import GaussianPosterior, GaussianPrior
from csstdask.optics.zernike import noll_to_zernike
from csstdask.psf.basis import BASIS_SIZE, OVERSAMPLING, PsfBasis, polynomial_degrees, polynomials
from csstdask.psf.wavefront import DEGREE, FourierOptics, Wavefront, blur_transfer

Float = npt.NDArray[np.float64]

#: Noll indices that are looked for: the lower ones, and where these leave much of the mean PSF, up to the last.
_FIRST, _LASTS = 4, (11, 22)
#: What they leave of it, squares in units of the error a principal image, where that is much; and how many stars tell
#: whether that is a wavefront's.
_MUCH, _MANY = 1.0, 10
#: Places along each axis at which optics are computed: they tell cubics.
_NODES = 4
#: Expected of a coefficient of radial order one [nm]; of order n it is an n-th. Of what it changes by over half a
#: detector, as a share: defocus (detectors are tipped), the others, and of their bending.
_WAVEFRONT, _TIP, _SLOPE, _BEND = 75.0, 0.5, 0.2, 0.05
#: Of a blur: a Gaussian's covariance x x, y y, x y [pixel^2], and how far a star drifts in x and y [pixel]: what is
#: expected, one sigma of it, and the least variance.
_BLUR, _BLUR_SIGMA, _LEAST_BLUR = (0.25, 0.25, 0.0, 0.0, 0.0), (0.15, 0.15, 0.05, 0.8, 0.8), 0.02
_BLURS = len(_BLUR)
#: The correlation of a blur's x and y at most.
_ALIGNED = 0.9
#: Share of what telescopes differ by that this model may miss, in the mean PSF and in how it changes, by choice: a
#: descent begins with much, as with little there are more valleys than one.
_MISSED, _FLOOR = ((0.5, 0.3), (0.5, 0.1), (0.5, 0.02), (0.15, 0.02)), 1e-8
#: Random starts at most, how far they reach, and how alike two ends are that end the search.
_STARTS, _REACH, _ALIKE = 8, 0.6, 0.01
#: Steps of a descent at most, the gain that is worth no further one, and the first damping.
_STEPS, _LITTLE, _DAMPING = 14, 0.5, 1e-2


class _Point(NamedTuple):
    """Unknowns, and what optics make of them."""

    unknowns: Float
    coefficients: Float
    """(a,)"""
    change: Float
    """(a, unknown)"""


@dataclass(frozen=True)
class _Goal:
    """What unknowns are to explain: a quadratic of amounts, and what is expected of the unknowns themselves."""

    weight: Float
    """(a, a)"""
    pull: Float
    """(a,) `weight` times the amounts that are wanted."""
    mean: Float
    """(unknown,)"""
    sigma: Float

    def cost(self, point: _Point) -> float:
        strange = ((point.unknowns - self.mean) / self.sigma) ** 2
        explained = self.weight @ point.coefficients - 2 * self.pull
        return float(point.coefficients @ explained + strange.sum())

    def descend(self, model: Callable[[Float], _Point], point: _Point) -> tuple[_Point, float]:
        """Return unknowns that explain most, from a start, and their cost (Levenberg and Marquardt)."""
        cost, damping = self.cost(point), _DAMPING
        for _ in range(_STEPS):
            curved = point.change.T @ self.weight @ point.change + np.diag(self.sigma**-2)
            slope = point.change.T @ (self.pull - self.weight @ point.coefficients)
            slope -= (point.unknowns - self.mean) / self.sigma**2
            further = point.unknowns + np.linalg.solve(curved + damping * np.diag(np.diag(curved)), slope)
            there = model(_possible(further))
            gain = cost - (cost_there := self.cost(there))
            damping *= 0.1 if gain > 0 else 10
            if gain > 0:
                point, cost = there, cost_there
                if gain < _LITTLE:
                    break
        return point, cost


def _possible(unknowns: Float) -> Float:
    """Return unknowns with a blur that a Gaussian can have."""
    xx, yy, xy = np.arange(3) - _BLURS
    unknowns[[xx, yy]] = np.maximum(unknowns[[xx, yy]], _LEAST_BLUR)
    most = _ALIGNED * np.sqrt(unknowns[xx] * unknowns[yy])
    unknowns[xy] = np.clip(unknowns[xy], -most, most)
    return unknowns


class PhaseRetrieval:
    """The wavefront of a detector's stars, and what is expected of their PSFs by it.

    Parameters
    ----------
    optics : FourierOptics
    psfs : PrincipalPsfs
        Of the band; their own prior is what is expected without optics.
    """

    def __init__(self, optics: FourierOptics, psfs: PsfBasis) -> None:
        self.optics, self.basis, self.broad = optics, psfs, psfs.prior
        self.project, self.at_mean = _projection(optics, psfs)

    def search(self, normal: Float, right: Float) -> Wavefront:
        """Return the wavefront of the lower orders that is behind a detector's mean PSF.

        Parameters
        ----------
        normal : float64 array (a, a)
            Of the field's amounts, polynomial by polynomial, as stars alone tell them: their curvature.
        right : float64 array (a,)
            `normal` times the amounts.

        Returns
        -------
        Wavefront
            It does not change over the detector yet; `sigma` is what was expected before.
        """
        return _Orders(self, _LASTS[0], normal, right).search(None)

    def prior(
        self, normal: Float, right: Float, stars: int, start: Wavefront
    ) -> tuple[GaussianPosterior, Wavefront | None]:
        """Return what is expected of the amounts of a detector's field by the wavefront that its stars show.

        Parameters
        ----------
        normal, right
            As `search` takes them, of stars that have settled.
        stars : int
            How many they are.
        start : Wavefront
            What `search` found.

        Returns
        -------
        GaussianPosterior
            By the likeliest prior, `prior`: without optics that of `psfs`.
        Wavefront or None
            What the stars show, None where `broad` is the likeliest.

        Notes
        -----
        More orders are looked for where the lower leave much of the mean PSF, and not before stars have settled: the
        noise of faint ones that are fitted alone looks like them.

        The prior is linearised about the likeliest wavefront, which these stars have shown: a fit with it is unsure as
        if no other valley were possible.
        """
        lower = _Orders(self, _LASTS[0], normal, right)
        found = lower.over_the_field(start)
        surest, shown = found[-1]
        if self.optics.certain:
            return surest.given(normal, right), shown
        if stars >= _MANY and lower.left_by(shown) > _MUCH * len(self.basis):
            higher = _Orders(self, _LASTS[1], normal, right)
            found += higher.over_the_field(higher.search(start))
        candidates = [(prior.given(normal, right), shown) for prior, shown in [(self.broad, None), *found]]
        return max(candidates, key=lambda one: one[0].evidence)


class _Orders:
    """A retrieval with the orders up to a `last` one; the other parameters are those of `PhaseRetrieval.search`."""

    def __init__(self, retrieval: PhaseRetrieval, last: int, normal: Float, right: Float) -> None:
        self.orders, self.normal, self.right = tuple(range(_FIRST, last + 1)), normal, right
        self.optics, self.broad, self.k = retrieval.optics, retrieval.broad, len(retrieval.basis)
        self.degree, self.project, self.at_mean = retrieval.basis.degree, retrieval.project, retrieval.at_mean
        sigma = _WAVEFRONT / np.array([noll_to_zernike(order)[0] for order in self.orders])
        defocus = np.array(self.orders) == _FIRST
        shares = {0: np.ones(len(self.orders)), 1: np.where(defocus, _TIP, _SLOPE), 2: np.full(len(self.orders), _BEND)}
        self.sigma = np.stack([shares[sum(powers)] * sigma for powers in polynomial_degrees(DEGREE)])

    @cached_property
    def of_mean(self) -> tuple[Float, Float]:
        """The mean PSF's amounts (k,) and how well they are known (k, k), the inverse of a covariance.

        Nothing is expected of it but what optics say: the other polynomials are as they may be.
        """
        k = self.k
        unknown = self.broad.covariance.copy()
        unknown[:k, :k] *= 1e6
        found = GaussianPrior(self.broad.mean, unknown).given(self.normal, self.right)
        missed = (_MISSED[0][0] ** 2) * np.diag(np.diag(self.broad.covariance)[:k])
        return found.mean[:k], np.asarray(np.linalg.inv(found.covariance[:k, :k] + missed), dtype=np.float64)

    def left_by(self, wavefront: Wavefront) -> float:
        """Return how much of the mean PSF a wavefront leaves: squares in units of its error."""
        wanted, weight = self.of_mean
        left = wanted - self._at_once(np.append(wavefront.coefficients[0], wavefront.blur)).coefficients
        return float(left @ weight @ left)

    def search(self, start: Wavefront | None) -> Wavefront:
        """Return the wavefront of the mean PSF, from a start and from random ones."""
        wanted, weight = self.of_mean
        mean, sigma = np.append(0 * self.sigma[0], _BLUR), np.append(self.sigma[0], _BLUR_SIGMA)
        goal = _Goal(weight, weight @ wanted, mean, sigma)
        rng = np.random.default_rng(0)
        ends: list[tuple[_Point, float]] = []
        for number in range(_STARTS):
            begin = mean + _REACH * sigma * np.append(rng.normal(size=len(self.orders)), [0, 0, 0, *rng.normal(size=2)])
            if number == 0 and start is not None:
                begin[: len(start.orders)], begin[-_BLURS:] = start.coefficients[0], start.blur
            ends.append(goal.descend(self._at_once, self._at_once(begin)))
            costs = np.sort([cost for _, cost in ends])
            if number and costs[1] - costs[0] < _ALIKE * self.k:
                break
        best, _ = min(ends, key=lambda end: end[1])
        coefficients = np.zeros_like(self.sigma)
        coefficients[0] = best.unknowns[:-_BLURS]
        return Wavefront(self.orders, coefficients, self.sigma, best.unknowns[-_BLURS:])

    def over_the_field(self, start: Wavefront) -> list[tuple[GaussianPrior, Wavefront]]:
        """Return priors with less and less error, each with the wavefront of the whole field, from that of its mean."""
        errors = [self._missed(*shares) for shares in (*_MISSED, *([(0.0, 0.0)] if self.optics.certain else []))]
        mean = np.append(np.zeros(self.sigma.size), _BLUR)
        sigma = np.append(self.sigma.ravel(), _BLUR_SIGMA)
        point = self._over_field(np.append(start.coefficients.ravel(), start.blur))
        goals = []
        for error in errors:
            blunted = np.linalg.inv(np.eye(len(error)) + self.normal @ error)
            weight = blunted @ self.normal
            goals.append(_Goal((weight + weight.T) / 2, blunted @ self.right, mean, sigma))
            point, _ = goals[-1].descend(self._over_field, point)
        expected = point.coefficients + point.change @ (mean - point.unknowns)
        of_optics = (point.change * sigma**2) @ point.change.T
        priors = [GaussianPrior(expected, error + of_optics) for error in errors]
        return list(zip(priors, [self._wavefront(point, goal) for goal in goals], strict=True))

    def _wavefront(self, point: _Point, goal: _Goal) -> Wavefront:
        """Return the wavefront of some unknowns, as sure of it as what is to be explained allows."""
        spread = np.linalg.inv(point.change.T @ goal.weight @ point.change + np.diag(goal.sigma**-2))
        coefficients = point.unknowns[:-_BLURS].reshape(self.sigma.shape)
        even = np.array([noll_to_zernike(order)[0] % 2 == 0 for order in self.orders])
        if coefficients[0, 0] < 0:
            coefficients = np.where(even, -coefficients, coefficients)
        unsure = np.sqrt(np.diag(spread)[:-_BLURS]).reshape(self.sigma.shape)
        return Wavefront(self.orders, coefficients, unsure, point.unknowns[-_BLURS:])

    def _missed(self, of_mean: float, of_changes: float) -> Float:
        """Return the covariance of what this model may miss: of stars' colours, which it does not know, everything."""
        k, terms = self.k, len(polynomial_degrees(self.degree))
        shares = np.repeat([of_mean, *[of_changes] * (terms - 1)], k)
        shares = np.append(shares, np.ones(len(self.normal) - len(shares)))
        return self.broad.covariance * shares * shares[:, None] + _FLOOR * np.eye(len(shares))

    def _at_once(self, unknowns: Float) -> _Point:
        """Return the amounts (k,) at one place, and how they change."""
        _, _, fx, fy = self.optics.frequencies
        spectra = self.optics.spectra(self.orders, unknowns[:-_BLURS])
        transfer, change = blur_transfer(fx, fy, unknowns[-_BLURS:])
        seen = np.concatenate([spectra * transfer, spectra[0] * change])
        amounts = (seen.view(np.float32) @ self.project).astype(float).T
        return _Point(unknowns, amounts[:, 0] - self.at_mean, amounts[:, 1:])

    def _over_field(self, unknowns: Float) -> _Point:
        """Return the amounts of polynomials, and how they change: of those at nodes, polynomials through them."""
        axis, weight = np.polynomial.legendre.leggauss(_NODES)
        v, u = (part.ravel() for part in np.meshgrid(axis, axis, indexing="ij"))
        places = polynomials(u, v, DEGREE)
        coefficients = places @ unknowns[:-_BLURS].reshape(self.sigma.shape)
        here = [self._at_once(np.append(one, unknowns[-_BLURS:])) for one in coefficients]
        amounts, slopes = np.stack([one.coefficients for one in here]), np.stack([one.change for one in here])
        of_zernikes = np.einsum("nt,nkz->nktz", places, slopes[..., :-_BLURS]).reshape(len(places), self.k, -1)
        slopes = np.concatenate([of_zernikes, slopes[..., -_BLURS:]], axis=2)
        root = np.sqrt(np.outer(weight, weight).ravel())
        to_terms = np.linalg.pinv(polynomials(u, v, min(self.degree, _NODES - 1)) * root[:, None]) * root
        field, change = to_terms @ amounts, np.tensordot(to_terms, slopes, 1)
        pad = [(0, len(self.normal) // self.k - len(to_terms)), (0, 0)]
        return _Point(
            unknowns, np.pad(field, pad).ravel(), np.pad(change, [*pad, (0, 0)]).reshape(len(self.normal), -1)
        )


@lru_cache(maxsize=16)
def _projection(optics: FourierOptics, psfs: PsfBasis) -> tuple[npt.NDArray[np.float32], Float]:
    """Return what takes spectra, real and imaginary parts in turn, to amounts (2 frequency, k), and the mean's (k,)."""
    k = len(psfs)
    flat = psfs.images.reshape(k, -1).astype(np.float64)
    middle = np.fft.ifftshift(np.linalg.solve(psfs.gram, flat).reshape(k, BASIS_SIZE, BASIS_SIZE), axes=(-2, -1))
    rows, columns, _, _ = optics.frequencies
    # Parseval: a product of images is one of spectra, the half that is not kept the other's conjugate.
    spectrum = fft.rfft2(middle)[:, rows, columns] * np.where(columns > 0, 2, 1) / BASIS_SIZE**2 * OVERSAMPLING**2
    parts = np.stack([spectrum.real, spectrum.imag], axis=-1).reshape(k, -1)
    return np.ascontiguousarray(parts.T.astype(np.float32)), psfs.project(psfs.mean[None])[0]
