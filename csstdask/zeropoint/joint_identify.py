"""Which detections of many units are the same star."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Int32 = npt.NDArray[np.int32]

DEGREES_PER_ARCSEC = 1 / 3600.0
LEAST_ZONE = 0.5 * DEGREES_PER_ARCSEC
"""Least height of a zone of declination [deg]."""
ROUNDING = 1e-7
"""Positions are sorted by a number in which right ascensions are rounded to this [deg]; windows are wider by it."""


def identify_stars(
    ra: npt.ArrayLike, dec: npt.ArrayLike, reference: npt.ArrayLike, unit: npt.ArrayLike, *, radius: float = 1.0
) -> Int32:
    """Return labels of stars: detections of one star have the same label.

    Detections with the same row of the reference are one star. Others are joined by position: those of different units
    within `radius` of each other, and what they are joined to in turn. Where that would join two detections of
    one unit, pairs are joined in the order of their distances instead, as long as each star has at most one
    detection in a unit. Which detections are joined does not depend on their order.

    Parameters
    ----------
    ra, dec : array-like (n,)
        Positions [deg]; a detection without a position is a star by itself.
    reference : array-like of int (n,)
        Row of the reference catalogue; -1 for none.
    unit : array-like of int (n,)
        Unit of each detection.
    radius : float
        [arcsec].

    Returns
    -------
    int32 array (n,)
        Labels from 0: first the stars of the reference, in its order.

    Examples
    --------
    >>> ra, dec = [10.0, 10.0001, 359.99999, 0.00001, 50.0], [0.0, 0.0, 0.0, 0.0, 0.0]
    >>> identify_stars(ra, dec, [-1, -1, -1, -1, 7], [0, 1, 0, 1, 0]).tolist()
    [2, 2, 1, 1, 0]
    """
    ra = np.mod(np.ascontiguousarray(ra, dtype=np.float64), 360.0)
    dec = np.ascontiguousarray(dec, dtype=np.float64)
    reference = np.asarray(reference, dtype=np.int64)
    unit = np.ascontiguousarray(unit, dtype=np.int32)
    labels = np.full(len(ra), -1, dtype=np.int32)
    listed = reference >= 0
    names, found = np.unique(reference[listed], return_inverse=True)
    labels[listed] = found
    del found
    placed = ~listed & np.isfinite(ra) & np.isfinite(dec)
    height = max(radius * DEGREES_PER_ARCSEC, LEAST_ZONE)
    index = np.flatnonzero(placed).astype(np.int32)
    zone = np.floor((dec[index] + 90) / height).astype(np.int32)
    order = np.argsort(zone * 400.0 + ra[index], kind="stable")
    index, zone = index[order], zone[order]
    del order
    root = _join_neighbours(ra[index], dec[index], unit[index], zone, np.deg2rad(radius * DEGREES_PER_ARCSEC))
    n = _number_stars(root, index, unit, ra, dec, np.deg2rad(radius * DEGREES_PER_ARCSEC), len(names), labels)
    alone = labels < 0
    labels[alone] = n + np.arange(np.count_nonzero(alone), dtype=np.int32)
    return labels


@njit(cache=True, nogil=True)
def _haversine(ra: float, dec: float, other_ra: float, other_dec: float) -> float:  # pragma: no cover
    """Return sin^2 of half the angle between two positions [deg]."""
    of_dec = np.sin(np.deg2rad(other_dec - dec) / 2)
    of_ra = np.sin(np.deg2rad(other_ra - ra) / 2)
    return float(of_dec * of_dec + np.cos(np.deg2rad(dec)) * np.cos(np.deg2rad(other_dec)) * of_ra * of_ra)


@njit(cache=True, nogil=True)
def _root(parent: Any, i: int) -> Any:  # pragma: no cover
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(cache=True, nogil=True)
def _first_from(ra: Any, low: int, high: int, least: float) -> Any:  # pragma: no cover
    """Return the first row from low to high whose right ascension is not below `least`."""
    while low < high:
        middle = (low + high) // 2
        if ra[middle] < least:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True, nogil=True)
def _join_neighbours(ra: Any, dec: Any, unit: Any, zone: Any, radius: float) -> Any:  # pragma: no cover
    """Return a representative of the component of each row; rows are sorted by zone and right ascension."""
    n = len(ra)
    parent = np.arange(n).astype(np.int32)
    limit = np.sin(radius / 2) ** 2
    low, high = 0, 0  # the rows of this zone
    while low < n:
        high = low
        while high < n and zone[high] == zone[low]:
            high += 1
        end = high
        while end < n and zone[end] == zone[low] + 1:
            end += 1
        for i in range(low, high):
            largest = min(abs(dec[i]) + np.rad2deg(radius), 90.0)
            narrow = np.cos(np.deg2rad(largest))
            ratio = np.sin(radius / 2) / narrow if narrow > 0 else 2.0
            width = np.rad2deg(2 * np.arcsin(ratio)) + ROUNDING if ratio < 1 else 180.0
            for shift in (-360.0, 0.0, 360.0):
                least, most = ra[i] + shift - width, ra[i] + shift + width
                if most < 0.0 or least >= 360.0:
                    continue
                for begin, stop in ((low, high), (high, end)):
                    j = max(_first_from(ra, begin, stop, least - ROUNDING), i + 1)
                    while j < stop and ra[j] <= most + ROUNDING:
                        if unit[j] != unit[i] and _haversine(ra[i], dec[i], ra[j], dec[j]) <= limit:
                            a, b = _root(parent, i), _root(parent, j)
                            if a != b:
                                parent[max(a, b)] = min(a, b)
                        j += 1
        low = high
    for i in range(n):
        parent[i] = _root(parent, i)
    return parent


@njit(cache=True, nogil=True)
def _number_stars(
    root: Any, index: Any, unit: Any, ra: Any, dec: Any, radius: float, first: int, labels: Any
) -> Any:  # pragma: no cover
    """Label components from `first` on, divide those with two detections in a unit; return the next number."""
    n = len(root)
    size = np.zeros(n + 1, dtype=np.int32)
    for i in range(n):
        size[root[i] + 1] += 1
    for i in range(n):
        size[i + 1] += size[i]
    member = np.empty(n, dtype=np.int32)
    filled = size[:-1].copy()
    for i in range(n):
        member[filled[root[i]]] = index[i]
        filled[root[i]] += 1
    number = first
    for c in range(n):
        low, high = size[c], size[c + 1]
        if low == high:
            continue
        _sort_members(member, low, high, unit, ra, dec)
        repeated = False
        for a in range(low + 1, high):
            repeated = repeated or unit[member[a]] == unit[member[a - 1]]
        if repeated:
            number = _divide(member[low:high], unit, ra, dec, radius, number, labels)
        else:
            for a in range(low, high):
                labels[member[a]] = number
            number += 1
    return number


@njit(cache=True, nogil=True)
def _sort_members(member: Any, low: int, high: int, unit: Any, ra: Any, dec: Any) -> None:  # pragma: no cover
    """Sort the rows of one component by unit and position."""
    for i in range(low + 1, high):
        k = member[i]
        j = i - 1
        while j >= low:
            o = member[j]
            if unit[o] < unit[k] or (unit[o] == unit[k] and (ra[o] < ra[k] or (ra[o] == ra[k] and dec[o] <= dec[k]))):
                break
            member[j + 1] = o
            j -= 1
        member[j + 1] = k


@njit(cache=True, nogil=True)
def _divide(
    member: Any, unit: Any, ra: Any, dec: Any, radius: float, number: int, labels: Any
) -> Any:  # pragma: no cover
    """Join pairs in the order of their distances unless a star would have two detections in a unit."""
    m = len(member)
    limit = np.sin(radius / 2) ** 2
    n_pairs = 0
    for a in range(m):
        for b in range(a + 1, m):
            i, j = member[a], member[b]
            if unit[i] != unit[j] and _haversine(ra[i], dec[i], ra[j], dec[j]) <= limit:
                n_pairs += 1
    distance = np.empty(n_pairs)
    pair = np.empty((n_pairs, 2), dtype=np.int32)
    n_pairs = 0
    for a in range(m):
        for b in range(a + 1, m):
            i, j = member[a], member[b]
            apart = _haversine(ra[i], dec[i], ra[j], dec[j])
            if unit[i] != unit[j] and apart <= limit:
                distance[n_pairs] = apart
                pair[n_pairs, 0], pair[n_pairs, 1] = a, b
                n_pairs += 1
    star = np.arange(m)
    following = np.full(m, -1)  # the next member of the same star
    for p in np.argsort(distance, kind="mergesort"):
        one, two = star[pair[p, 0]], star[pair[p, 1]]
        if one == two:
            continue
        apart_units = True
        a = one
        while a >= 0 and apart_units:
            b = two
            while b >= 0:
                if unit[member[a]] == unit[member[b]]:
                    apart_units = False
                    break
                b = following[b]
            a = following[a]
        if not apart_units:
            continue
        keep, drop = min(one, two), max(one, two)
        a = keep
        while following[a] >= 0:
            a = following[a]
        following[a] = drop
        while drop >= 0:
            star[drop] = keep
            drop = following[drop]
    for a in range(m):
        if star[a] == a:
            b = a
            while b >= 0:
                labels[member[b]] = number
                b = following[b]
            number += 1
    return number
