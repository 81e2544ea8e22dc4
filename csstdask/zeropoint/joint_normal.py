"""Normal equations between units after the magnitudes of the stars are eliminated.

Star s with observations m_i of precision w_i (i in s, of units u(i)) and a reference magnitude r of precision p (0
without one) adds

    sum_i w_i (m_i + z_u(i) - M)^2 + p (r - M)^2

to the objective. Minimised over its magnitude M this is a quadratic form of the zero points z with the matrix and the
right-hand side

    A = diag(w) - w w^T / (p + sum w),        b = w (M0 - m),        M0 = (p r + sum w m) / (p + sum w).

The error of a reference magnitude is thus common to all observations of the star. A has an element for each pair of
units with a common star; its rows add up to the precision that reference magnitudes contribute, so that without any the
sum of all zero points is left free.

The zero points have the prior z_u = e + g + s_u, with a free exposure term e, terms g ~ N(0, sigma_g^2) of the detector
and of the detector in an epoch, and s_u ~ N(0, sigma_u^2). With incidence matrices X (unit, exposure) and G (unit,
term), and K = diag(sigma_u^-2), the matrix of all unknowns (z, e, g) is

    [ A + K     -K X       -K G                            ]
    [ -X^T K    X^T K X    X^T K G                         ]
    [ -G^T K    G^T K X    G^T K G + diag(sigma_g^-2)      ]

and its inverse is their covariance. Where all magnitudes of a unit share an error c_u ~ N(0, tau_u^2), stars measure
the level y_u = z_u + c_u: A and b are of y, and the zero point z_u is a further unknown with the term
(y_u - z_u)^2 / tau_u^2. A component of exposures without reference stars leaves one direction free: all
its z and e together. A term of the first exposure's e fixes it; differences of zero points do not depend on that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from numba import njit

from csstdask.zeropoint.joint_observations import StarRows
from csstdask.zeropoint.joint_robust import Precision

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

PAIRS_AT_ONCE = 4_000_000
"""Pairs of units made unique in one step: 32 MB."""


@dataclass(frozen=True)
class Overlaps:
    """Pairs of units with a common star, by first unit."""

    start: Int
    """(unit + 1,) First pair of each unit."""
    second: Int
    """(pair,) The other unit, of a larger number; ascending."""

    @property
    def first(self) -> Int:
        """(pair,) The unit of the smaller number."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))


@dataclass(frozen=True)
class StarEquations:
    """A and b of all stars."""

    pair: Float
    """(pair,) Elements of A off the diagonal: not positive."""
    from_reference: Float
    """(unit,) Sum of each row of A: the precision that reference magnitudes contribute; not negative."""
    vector: Float
    """(unit,) b."""


@dataclass(frozen=True)
class PriorTerms:
    """The prior of the zero points: which exposure and which terms each unit has."""

    exposure: Int
    """(unit,) Number of its exposure."""
    terms: Int
    """(unit, k) Numbers of its terms: that of its detector in an epoch, and that of its detector if there are any."""
    n_exposures: int
    term_sigma: Float
    """(term,) 1 sigma of each term [mag]."""
    unit_sigma: Float
    """(unit,) 1 sigma of what each unit has alone [mag]."""
    shared_sigma: Float
    """(unit,) 1 sigma of the error that all magnitudes of a unit share [mag]; 0: none."""
    pin: float
    """1 sigma with which the first exposure of a component without reference stars is held [mag]."""

    @property
    def n_units(self) -> int:
        """Number of units."""
        return len(self.exposure)

    @property
    def n_terms(self) -> int:
        """Number of terms of detectors."""
        return len(self.term_sigma)

    @property
    def shared(self) -> Int:
        """Units whose magnitudes share an error."""
        return np.flatnonzero(self.shared_sigma > 0).astype(np.int64)

    @property
    def zero_point(self) -> Int:
        """(unit,) Number of the unknown that is the zero point: the level itself, or one after all other unknowns."""
        number = np.arange(self.n_units, dtype=np.int64)
        shared = self.shared
        number[shared] = self.n_units + self.n_exposures + self.n_terms + np.arange(len(shared))
        return number

    @property
    def design(self) -> sp.csr_array:
        """(prior, unknown) Linear forms of the unknowns that are 0 +- `sigma`.

        First what each unit has alone, z - e - g; then the errors that magnitudes of a unit share, y - z.
        """
        n, k, shared, zero_point = self.n_units, self.terms.shape[1], self.shared, self.zero_point
        first = n + self.n_exposures
        columns = np.column_stack([zero_point, n + self.exposure, first + self.terms])
        of_shared = np.column_stack([shared, zero_point[shared]])
        values = np.concatenate([np.tile([1.0, -1.0] + [-1.0] * k, n), np.tile([1.0, -1.0], len(shared))])
        start = np.concatenate([(2 + k) * np.arange(n), (2 + k) * n + 2 * np.arange(len(shared) + 1)])
        shape = (n + len(shared), first + self.n_terms + len(shared))
        return sp.csr_array((values, np.concatenate([columns.ravel(), of_shared.ravel()]), start), shape=shape)

    @property
    def sigma(self) -> Float:
        """(prior,) 1 sigma of the forms of `design` [mag]."""
        return np.concatenate([self.unit_sigma, self.shared_sigma[self.shared]])


def find_overlaps(rows: StarRows, n_units: int) -> Overlaps:
    """Return the pairs of units that have stars in common."""
    found: Int = np.empty(0, dtype=np.int64)
    s = 0
    while s < rows.n_stars:
        size, end = _pairs_until(rows.start, s, PAIRS_AT_ONCE)
        found = np.union1d(found, _pairs(rows.start, rows.unit, s, end, size, n_units))
        s = end
    first, second = found // max(n_units, 1), found % max(n_units, 1)
    start = np.concatenate([[0], np.cumsum(np.bincount(first, minlength=n_units))]).astype(np.int64)
    return Overlaps(start, second.astype(np.int64))


def star_equations(rows: StarRows, precision: Precision, pairs: Overlaps) -> StarEquations:
    """Return the normal equations of all stars, added up in the order of the stars."""
    n_units = len(pairs.start) - 1
    pair, from_reference, vector = np.zeros(len(pairs.second)), np.zeros(n_units), np.zeros(n_units)
    _add_stars(
        rows.start, rows.unit, rows.magnitude, rows.reference, precision.observation, precision.reference,
        pairs.start, pairs.second, pair, from_reference, vector,
    )  # fmt: skip
    return StarEquations(pair, from_reference, vector)


def precision_matrix(stars: StarEquations, pairs: Overlaps, prior: PriorTerms, free: npt.ArrayLike) -> sp.csc_array:
    """Return the matrix of the normal equations of (y, e, g), and of the zero points that differ from y.

    Parameters
    ----------
    stars : StarEquations
        Equations of the stars.
    pairs : Overlaps
        Which elements they have.
    prior : PriorTerms
        The prior of the zero points.
    free : array-like of int
        One exposure of each component without reference stars.
    """
    n = prior.n_units
    first, second = pairs.first, pairs.second
    total = stars.from_reference - np.bincount(first, stars.pair, n) - np.bincount(second, stars.pair, n)
    index = np.arange(n)
    of_terms = [np.zeros(prior.n_exposures), prior.term_sigma**-2, np.zeros(len(prior.shared))]
    diagonal = np.concatenate([total, *of_terms])
    diagonal[n + np.asarray(free, dtype=np.int64)] = prior.pin**-2
    everything = np.arange(len(diagonal))
    values = np.concatenate([stars.pair, stars.pair, diagonal])
    places = (np.concatenate([index[first], second, everything]), np.concatenate([second, index[first], everything]))
    matrix = sp.coo_array((values, places), shape=(len(diagonal), len(diagonal))).tocsc()
    weighted = sp.diags_array(1 / prior.sigma) @ prior.design
    return (matrix + (weighted.T @ weighted).tocsc()).tocsc()


@njit(cache=True, nogil=True)
def _pairs_until(start: Any, s: int, most: int) -> Any:  # pragma: no cover
    """Return the number of pairs of stars s to end - 1, and end."""
    size = 0
    while s < len(start) - 1:
        n = start[s + 1] - start[s]
        more = n * (n - 1) // 2
        if size > 0 and size + more > most:
            break
        size += more
        s += 1
    return size, s


@njit(cache=True, nogil=True)
def _pairs(start: Any, unit: Any, s: int, end: int, size: int, n_units: int) -> Any:  # pragma: no cover
    """Return first * n_units + second of each pair of different units; the units of a star are in order."""
    found = np.empty(size, dtype=np.int64)
    n = 0
    for star in range(s, end):
        for i in range(start[star], start[star + 1]):
            for j in range(i + 1, start[star + 1]):
                if unit[i] != unit[j]:
                    found[n] = np.int64(unit[i]) * n_units + unit[j]
                    n += 1
    return found[:n]


@njit(cache=True, nogil=True)
def _add_stars(
    start: Any,
    unit: Any,
    magnitude: Any,
    reference: Any,
    precision: Any,
    of_reference: Any,
    pair_start: Any,
    second: Any,
    pair: Any,
    from_reference: Any,
    vector: Any,
) -> None:  # pragma: no cover
    for s in range(len(start) - 1):
        low, high = start[s], start[s + 1]
        p = of_reference[s]
        total = p
        mean = p * reference[s] if p > 0.0 else 0.0
        for i in range(low, high):
            total += precision[i]
            mean += precision[i] * magnitude[i]
        if not total > 0.0:
            continue
        mean /= total
        for i in range(low, high):
            w = precision[i]
            if w == 0.0:
                continue
            u = unit[i]
            vector[u] += w * (mean - magnitude[i])
            from_reference[u] += w * p / total
            left = pair_start[u]
            end = pair_start[u + 1]
            for j in range(i + 1, high):
                other = unit[j]
                if other == u:
                    continue
                right = end
                while left < right:
                    middle = (left + right) // 2
                    if second[middle] < other:
                        left = middle + 1
                    else:
                        right = middle
                pair[left] -= w * precision[j] / total
