"""Normal equations between units after the magnitudes of the stars are eliminated.

Star s with observations m_i of precision w_i (in units u(i)) and a reference magnitude r of precision p (0 without
one) adds

    sum_i w_i (m_i + z_u(i) - M)^2 + p (r - M)^2

to the objective. Minimised over the magnitude M, this is a quadratic form of the zero points z with the matrix and the
right-hand side

    A = diag(w) - w w^T / (p + sum w),        b = w (M0 - m),        M0 = (p r + sum w m) / (p + sum w).

The error of a reference magnitude is thus common to all observations of the star. A has an element for each pair of
units with a common star. Its rows add up to the precision that reference magnitudes contribute; without any, the sum of
all zero points is undetermined.

The zero points have the prior z_u = e + g + s_u, with a free exposure term e, terms g ~ N(0, sigma_g^2) of the detector
and of the detector in an epoch, and s_u ~ N(0, sigma_u^2). With incidence matrices X (unit, exposure) and G (unit,
term), and K = diag(sigma_u^-2), the matrix of all unknowns (z, e, g) is

    [ A + K     -K X       -K G                            ]
    [ -X^T K    X^T K X    X^T K G                         ]
    [ -G^T K    G^T K X    G^T K G + diag(sigma_g^-2)      ]

and its inverse is their covariance. Where all magnitudes of a unit share an error c_u ~ N(0, tau_u^2), stars measure
the level y_u = z_u + c_u: A and b are of y, and the zero point z_u is a further unknown with the term
(y_u - z_u)^2 / tau_u^2. A component of exposures without reference stars leaves one direction undetermined: all its z
and e together. A prior on e of its first exposure fixes it; differences of zero points do not depend on that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from numba import njit

from csstdask.zeropoint.joint.observations import GroupedObservations
from csstdask.zeropoint.joint.prior_terms import PriorTerms
from csstdask.zeropoint.joint.robust import Precision

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

MAX_PAIRS_PER_BATCH = 4_000_000
"""Pairs of units that are made unique in one step: 32 MB."""


@dataclass(frozen=True)
class Overlaps:
    """Pairs of units with a common star, sorted by first unit."""

    start: Int
    """(unit + 1,) First pair of each unit."""
    second: Int
    """(pair,) The unit with the larger number; ascending for each first unit."""

    @property
    def first(self) -> Int:
        """(pair,) The unit with the smaller number."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))


@dataclass(frozen=True)
class StarEquations:
    """Matrix A and right-hand side b of all stars; see the description of the module."""

    pair: Float
    """(pair,) Elements of A off the diagonal: not positive."""
    from_reference: Float
    """(unit,) Sum of each row of A, the precision that reference magnitudes contribute: not negative."""
    vector: Float
    """(unit,) Right-hand side b."""


def find_overlaps(grouped: GroupedObservations, n_units: int, *, batch_size: int = MAX_PAIRS_PER_BATCH) -> Overlaps:
    """Return the pairs of units that have stars in common.

    Parameters
    ----------
    grouped : GroupedObservations
        Observations, grouped by star.
    n_units : int
        Number of units.
    batch_size : int
        Pairs that are made unique in one step; it limits the memory.
    """
    codes: Int = np.empty(0, dtype=np.int64)
    s = 0
    while s < grouped.n_stars:
        size, end = _pairs_until(grouped.start, s, batch_size)
        codes = np.union1d(codes, _pairs(grouped.start, grouped.unit, s, end, size, n_units))
        s = end
    first, second = codes // max(n_units, 1), codes % max(n_units, 1)
    start = np.concatenate([[0], np.cumsum(np.bincount(first, minlength=n_units))]).astype(np.int64)
    return Overlaps(start, second.astype(np.int64))


def star_equations(grouped: GroupedObservations, precision: Precision, pairs: Overlaps) -> StarEquations:
    """Add up the normal equations of all stars, in the order of the stars."""
    n_units = len(pairs.start) - 1
    pair, from_reference, vector = np.zeros(len(pairs.second)), np.zeros(n_units), np.zeros(n_units)
    _add_stars(
        grouped.start, grouped.unit, grouped.magnitude, grouped.reference, precision.observation, precision.reference,
        pairs.start, pairs.second, pair, from_reference, vector,
    )  # fmt: skip
    return StarEquations(pair, from_reference, vector)


def precision_matrix(stars: StarEquations, pairs: Overlaps, prior: PriorTerms, free: npt.ArrayLike) -> sp.csc_array:
    """Return the matrix of the normal equations of (y, e, g) and of the zero points that differ from y.

    Parameters
    ----------
    stars : StarEquations
        Normal equations of the stars.
    pairs : Overlaps
        Pairs of units with common stars: the elements of A off the diagonal.
    prior : PriorTerms
        The prior of the zero points.
    free : array-like of int
        One exposure of each component without reference stars.

    Returns
    -------
    sparse array (unknown, unknown)
        Symmetric positive definite matrix.
    """
    n = prior.n_units
    first, second = pairs.first, pairs.second
    total = stars.from_reference - np.bincount(first, stars.pair, n) - np.bincount(second, stars.pair, n)
    index = np.arange(n)
    diagonal = np.concatenate([total, np.zeros(prior.n_exposures), prior.term_sigma**-2, np.zeros(len(prior.shared))])
    diagonal[n + np.asarray(free, dtype=np.int64)] = prior.pin**-2
    every = np.arange(len(diagonal))
    values = np.concatenate([stars.pair, stars.pair, diagonal])
    indices = (np.concatenate([index[first], second, every]), np.concatenate([second, index[first], every]))
    matrix = sp.coo_array((values, indices), shape=(len(diagonal), len(diagonal))).tocsc()
    weighted = sp.diags_array(1 / prior.sigma) @ prior.design
    return (matrix + (weighted.T @ weighted).tocsc()).tocsc()


@njit(cache=True, nogil=True)
def _pairs_until(start: Any, s: int, limit: int) -> Any:  # pragma: no cover
    """Return the number of pairs of stars s to end - 1, and end, for a limit on the number of pairs."""
    size = 0
    while s < len(start) - 1:
        n = start[s + 1] - start[s]
        n_pairs = n * (n - 1) // 2
        if size > 0 and size + n_pairs > limit:
            break
        size += n_pairs
        s += 1
    return size, s


@njit(cache=True, nogil=True)
def _pairs(start: Any, unit: Any, s: int, end: int, size: int, n_units: int) -> Any:  # pragma: no cover
    """Return the code first * n_units + second of each pair of different units; the units of a star ascend."""
    codes = np.empty(size, dtype=np.int64)
    n = 0
    for star in range(s, end):
        for i in range(start[star], start[star + 1]):
            for j in range(i + 1, start[star + 1]):
                if unit[i] != unit[j]:
                    codes[n] = np.int64(unit[i]) * n_units + unit[j]
                    n += 1
    return codes[:n]


@njit(cache=True, nogil=True)
def _add_stars(
    start: Any,
    unit: Any,
    magnitude: Any,
    reference: Any,
    precision: Any,
    reference_precision: Any,
    pair_start: Any,
    second: Any,
    pair: Any,
    from_reference: Any,
    vector: Any,
) -> None:  # pragma: no cover
    """Add the normal equations of all stars to `pair`, `from_reference` and `vector`."""
    for s in range(len(start) - 1):
        low, high = start[s], start[s + 1]
        p = reference_precision[s]
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
