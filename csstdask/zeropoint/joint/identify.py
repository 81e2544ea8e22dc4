"""Identify detections of the same star in many units."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from csstdask.core.constants import DEG_PER_ARCSEC
from csstdask.zeropoint.joint.components import find_root

Int32 = npt.NDArray[np.int32]

MIN_ZONE_HEIGHT = 0.5 * DEG_PER_ARCSEC
"""Smallest height of a zone of declination [deg]."""
ROUNDING = 1e-7
"""Accuracy of right ascensions in the sort key [deg]; search windows are wider by it."""


def identify_stars(
    ra: npt.ArrayLike, dec: npt.ArrayLike, reference: npt.ArrayLike, unit: npt.ArrayLike, *, radius: float = 1.0
) -> Int32:
    """Label detections so that those of one star have the same label.

    Detections with the same row of the reference catalogue are one star. Others are joined by position (friends of
    friends): detections of different units within `radius` of each other. Where that would join two detections of one
    unit, pairs are joined in the order of their distances instead, as long as each star has at most one detection in a
    unit. The result does not depend on the order of the detections.

    Parameters
    ----------
    ra, dec : array-like (n,)
        Positions [deg]; a detection without a position is a separate star.
    reference : array-like of int (n,)
        Row of the reference catalogue; -1 for none.
    unit : array-like of int (n,)
        Unit of each detection.
    radius : float
        Largest distance of two detections that are joined [arcsec].

    Returns
    -------
    int32 array (n,)
        Labels from 0: first the stars of the reference catalogue, in its order.

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
    in_reference = reference >= 0
    reference_rows, label = np.unique(reference[in_reference], return_inverse=True)
    labels[in_reference] = label
    del label
    has_position = ~in_reference & np.isfinite(ra) & np.isfinite(dec)
    height = max(radius * DEG_PER_ARCSEC, MIN_ZONE_HEIGHT)
    index = np.flatnonzero(has_position).astype(np.int32)
    zone = np.floor((dec[index] + 90) / height).astype(np.int32)
    order = np.argsort(zone * 400.0 + ra[index], kind="stable")
    index, zone = index[order], zone[order]
    del order
    radius_rad = np.deg2rad(radius * DEG_PER_ARCSEC)
    root = _join_neighbours(ra[index], dec[index], unit[index], zone, radius_rad)
    n = _number_stars(root, index, unit, ra, dec, radius_rad, len(reference_rows), labels)
    unlabelled = labels < 0
    labels[unlabelled] = n + np.arange(np.count_nonzero(unlabelled), dtype=np.int32)
    return labels


@njit(cache=True, nogil=True)
def _haversine(ra: float, dec: float, other_ra: float, other_dec: float) -> float:  # pragma: no cover
    """Return sin^2 of half the angle between two positions [deg]."""
    sin_dec = np.sin(np.deg2rad(other_dec - dec) / 2)
    sin_ra = np.sin(np.deg2rad(other_ra - ra) / 2)
    return float(sin_dec * sin_dec + np.cos(np.deg2rad(dec)) * np.cos(np.deg2rad(other_dec)) * sin_ra * sin_ra)


@njit(cache=True, nogil=True)
def _first_from(ra: Any, low: int, high: int, minimum: float) -> Any:  # pragma: no cover
    """Return the first row from low to high whose right ascension is not below a minimum."""
    while low < high:
        middle = (low + high) // 2
        if ra[middle] < minimum:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True, nogil=True)
def _join_neighbours(ra: Any, dec: Any, unit: Any, zone: Any, radius: float) -> Any:  # pragma: no cover
    """Return a representative of the group of each row; rows are sorted by zone and right ascension."""
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
            max_dec = min(abs(dec[i]) + np.rad2deg(radius), 90.0)
            cos_dec = np.cos(np.deg2rad(max_dec))
            ratio = np.sin(radius / 2) / cos_dec if cos_dec > 0 else 2.0
            width = np.rad2deg(2 * np.arcsin(ratio)) + ROUNDING if ratio < 1 else 180.0
            for shift in (-360.0, 0.0, 360.0):
                minimum, maximum = ra[i] + shift - width, ra[i] + shift + width
                if maximum < 0.0 or minimum >= 360.0:
                    continue
                for begin, stop in ((low, high), (high, end)):
                    j = max(_first_from(ra, begin, stop, minimum - ROUNDING), i + 1)
                    while j < stop and ra[j] <= maximum + ROUNDING:
                        if unit[j] != unit[i] and _haversine(ra[i], dec[i], ra[j], dec[j]) <= limit:
                            a, b = find_root(parent, i), find_root(parent, j)
                            if a != b:
                                parent[max(a, b)] = min(a, b)
                        j += 1
        low = high
    for i in range(n):
        parent[i] = find_root(parent, i)
    return parent


@njit(cache=True, nogil=True)
def _number_stars(
    root: Any, index: Any, unit: Any, ra: Any, dec: Any, radius: float, first: int, labels: Any
) -> Any:  # pragma: no cover
    """Label groups from `first` on, split those with two detections in a unit; return the next number."""
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
            number = _split_group(member[low:high], unit, ra, dec, radius, number, labels)
        else:
            for a in range(low, high):
                labels[member[a]] = number
            number += 1
    return number


@njit(cache=True, nogil=True)
def _sort_members(member: Any, low: int, high: int, unit: Any, ra: Any, dec: Any) -> None:  # pragma: no cover
    """Sort the rows of one group by unit and position."""
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
def _close_pairs(member: Any, unit: Any, ra: Any, dec: Any, limit: float) -> Any:  # pragma: no cover
    """Return the distances (haversine) and members of pairs of different units within a limit."""
    m = len(member)
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
            separation = _haversine(ra[i], dec[i], ra[j], dec[j])
            if unit[i] != unit[j] and separation <= limit:
                distance[n_pairs] = separation
                pair[n_pairs, 0], pair[n_pairs, 1] = a, b
                n_pairs += 1
    return distance, pair


@njit(cache=True, nogil=True)
def _share_a_unit(one: int, two: int, next_member: Any, member: Any, unit: Any) -> bool:  # pragma: no cover
    """Return whether two stars, as linked lists of members, have detections in the same unit."""
    a = one
    while a >= 0:
        b = two
        while b >= 0:
            if unit[member[a]] == unit[member[b]]:
                return True
            b = next_member[b]
        a = next_member[a]
    return False


@njit(cache=True, nogil=True)
def _split_group(
    member: Any, unit: Any, ra: Any, dec: Any, radius: float, number: int, labels: Any
) -> Any:  # pragma: no cover
    """Label one group: join pairs by distance unless a star would have two detections in a unit."""
    m = len(member)
    distance, pair = _close_pairs(member, unit, ra, dec, np.sin(radius / 2) ** 2)
    star = np.arange(m)
    next_member = np.full(m, -1)  # the next member of the same star
    for p in np.argsort(distance, kind="mergesort"):
        one, two = star[pair[p, 0]], star[pair[p, 1]]
        if one == two:
            continue
        if _share_a_unit(one, two, next_member, member, unit):
            continue
        keep, drop = min(one, two), max(one, two)
        a = keep
        while next_member[a] >= 0:
            a = next_member[a]
        next_member[a] = drop
        while drop >= 0:
            star[drop] = keep
            drop = next_member[drop]
    for a in range(m):
        if star[a] == a:
            b = a
            while b >= 0:
                labels[member[b]] = number
                b = next_member[b]
            number += 1
    return number
