"""Group the observations of the joint solve by star, in an order that does not depend on that of the input.

Sums of floating-point numbers depend on their order. Stars are therefore sorted by a hash of their observations, and
the observations of a star by unit, magnitude and variance: neither the order of the rows nor the labels of the stars
change a bit of the result.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from csstdask.zeropoint.photometry import MAX_ERROR, MAX_MAGNITUDE, MIN_MAGNITUDE

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]

MAX_VARIANCE = MAX_ERROR**2
"""Larger variances are sentinels [mag^2]."""


@dataclass(frozen=True)
class GroupedObservations:
    """Observations grouped by star.

    Only stars that constrain a zero point are kept: those with two observations, or with one and a reference.

    Examples
    --------
    >>> magnitude, no_reference = [20.1, 20.0, 19.0], np.full(8, np.nan)
    >>> grouped = group_by_star([1, 0, 0], [7, 7, 3], magnitude, [1e-4, 1e-4, 1e-4], no_reference, np.ones(8))
    >>> grouped.start.tolist(), grouped.unit.tolist(), grouped.magnitude.tolist()
    ([0, 2], [0, 1], [20.0, 20.1])
    """

    start: Int
    """(star + 1,) First observation of each star."""
    unit: Int32
    """(n,) Unit of each observation."""
    magnitude: Float
    """(n,) Magnitude [mag]."""
    variance: Float
    """(n,) Quoted variance [mag^2]."""
    reference: Float
    """(star,) Reference magnitude; NaN without one."""
    reference_variance: Float
    """(star,) Its variance [mag^2]; inf without a reference magnitude."""
    label: Int = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """(star,) Label of each star in the input."""

    @property
    def n_stars(self) -> int:
        """Number of stars."""
        return len(self.reference)


def group_by_star(
    unit: npt.ArrayLike,
    star: npt.ArrayLike,
    magnitude: npt.ArrayLike,
    variance: npt.ArrayLike,
    reference: npt.ArrayLike,
    reference_variance: npt.ArrayLike,
    *,
    reference_floor: float = 0.0,
    position: npt.ArrayLike | None = None,
) -> GroupedObservations:
    """Group usable observations by star, in canonical order.

    Observations whose magnitude or error is missing or a sentinel, or whose variance is negative, are dropped.
    Identical observations (same unit, star, magnitude and variance) count once.

    Parameters
    ----------
    unit, star : array-like of int (n,)
        Unit and star of each observation.
    magnitude, variance : array-like (n,)
        Magnitude [mag] and quoted variance [mag^2].
    reference, reference_variance : array-like (label,)
        Reference magnitude of each star label [mag] and its variance [mag^2]; NaN, a sentinel or inf for none.
    reference_floor : float
        Smallest error of a reference magnitude [mag].
    position : array-like of int, optional
        New number of each unit; by default units keep their numbers.

    Returns
    -------
    GroupedObservations
        Usable observations, with the new numbers of the units.
    """
    unit = np.ascontiguousarray(unit, dtype=np.int32)
    star = np.ascontiguousarray(star, dtype=np.int32)
    magnitude = np.ascontiguousarray(magnitude, dtype=np.float64)
    variance = np.ascontiguousarray(variance, dtype=np.float64)
    reference = np.asarray(reference, dtype=np.float64)
    reference_variance = np.asarray(reference_variance, dtype=np.float64)
    n_units = int(unit.max(initial=-1)) + 1
    number = np.arange(n_units, dtype=np.int32) if position is None else np.asarray(position, dtype=np.int32)
    # Comparisons with NaN are False.
    known = (reference > MIN_MAGNITUDE) & (reference < MAX_MAGNITUDE) & (reference_variance >= 0)
    known &= reference_variance <= MAX_VARIANCE
    reference = np.where(known, reference, np.nan)
    reference_variance = np.where(known, np.maximum(reference_variance, reference_floor**2), np.inf)
    bits = (magnitude.view(np.uint64), variance.view(np.uint64))
    count, key = _count(unit, star, magnitude, variance, *bits, number, len(reference))
    _add_reference(key, known, reference.view(np.uint64), reference_variance.view(np.uint64))
    kept = np.flatnonzero((count > 0) & (count + known >= 2))
    kept = kept[np.argsort(key[kept], kind="stable")]
    rank = np.full(len(reference), -1, dtype=np.int32)
    rank[kept] = np.arange(len(kept), dtype=np.int32)
    start = np.concatenate([[0], np.cumsum(count[kept], dtype=np.int64)])
    n = int(start[-1])
    columns = (np.empty(n, dtype=np.int32), np.empty(n), np.empty(n))
    _fill(unit, star, magnitude, variance, number, rank, start, *columns)
    size = _sort_each(start, known[kept], *columns)
    constraining = size > 0
    kept = kept[constraining]
    used = int(size.sum())
    return GroupedObservations(
        start=np.concatenate([[0], np.cumsum(size[constraining])]),
        unit=columns[0][:used],
        magnitude=columns[1][:used],
        variance=columns[2][:used],
        reference=reference[kept],
        reference_variance=reference_variance[kept],
        label=kept,
    )


@njit(cache=True, nogil=True)
def _mix_bits(value: Any) -> Any:  # pragma: no cover
    """Return a 64-bit hash of a 64-bit number (the finaliser of SplitMix64)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(cache=True, nogil=True)
def _usable(magnitude: Any, variance: Any) -> Any:  # pragma: no cover
    """Return whether magnitude and variance are numbers and no sentinels."""
    return MIN_MAGNITUDE < magnitude < MAX_MAGNITUDE and 0.0 <= variance <= MAX_VARIANCE


@njit(cache=True, nogil=True)
def _count(
    unit: Any, star: Any, magnitude: Any, variance: Any, bits: Any, variance_bits: Any, number: Any, n_labels: int
) -> Any:  # pragma: no cover
    """Count the usable observations of each star, and add up their hashes."""
    count = np.zeros(n_labels, dtype=np.int64)
    key = np.zeros(n_labels, dtype=np.uint64)
    for i in range(len(star)):
        if _usable(magnitude[i], variance[i]):
            s = star[i]
            count[s] += 1
            key[s] += _mix_bits(
                _mix_bits(_mix_bits(np.uint64(number[unit[i]]) + np.uint64(1)) ^ bits[i]) ^ variance_bits[i]
            )
    return count, key


@njit(cache=True, nogil=True)
def _add_reference(key: Any, known: Any, bits: Any, variance_bits: Any) -> None:  # pragma: no cover
    """Add the hashes of reference magnitudes to those of the observations."""
    for s in range(len(key)):
        if known[s]:
            key[s] += _mix_bits(_mix_bits(bits[s]) ^ variance_bits[s])


@njit(cache=True, nogil=True)
def _fill(
    unit: Any,
    star: Any,
    magnitude: Any,
    variance: Any,
    number: Any,
    rank: Any,
    start: Any,
    to_unit: Any,
    to_magnitude: Any,
    to_variance: Any,
) -> None:  # pragma: no cover
    """Copy the observations of each star to consecutive rows."""
    filled = start[:-1].copy()
    for i in range(len(star)):
        if _usable(magnitude[i], variance[i]) and rank[star[i]] >= 0:
            at = filled[rank[star[i]]]
            filled[rank[star[i]]] += 1
            to_unit[at] = number[unit[i]]
            to_magnitude[at] = magnitude[i]
            to_variance[at] = variance[i]


@njit(cache=True, nogil=True)
def _sort_each(start: Any, known: Any, unit: Any, magnitude: Any, variance: Any) -> Any:  # pragma: no cover
    """Sort the observations of each star, drop repeated ones and close the gaps.

    Returns the number of observations of each star; 0 without a second observation or a reference.
    """
    size = np.zeros(len(known), dtype=np.int64)
    end = 0
    for s in range(len(known)):
        low, high = start[s], start[s + 1]
        for i in range(low + 1, high):
            u, m, v = unit[i], magnitude[i], variance[i]
            j = i - 1
            while j >= low and (
                unit[j] > u or (unit[j] == u and (magnitude[j] > m or (magnitude[j] == m and variance[j] > v)))
            ):
                unit[j + 1], magnitude[j + 1], variance[j + 1] = unit[j], magnitude[j], variance[j]
                j -= 1
            unit[j + 1], magnitude[j + 1], variance[j + 1] = u, m, v
        first = end
        for i in range(low, high):
            repeated = (
                end > first
                and unit[end - 1] == unit[i]
                and magnitude[end - 1] == magnitude[i]
                and variance[end - 1] == variance[i]
            )
            if not repeated:
                unit[end], magnitude[end], variance[end] = unit[i], magnitude[i], variance[i]
                end += 1
        if end - first + known[s] < 2:
            end = first
        size[s] = end - first
    return size
