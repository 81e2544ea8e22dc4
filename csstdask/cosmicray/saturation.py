"""Separation of saturated pixels of cosmic rays from those of saturated stars.

Saturated pixels are unusable and therefore ignored, which would leave the core of a bright cosmic ray in the image.
Stars differ from cosmic rays in one respect: their light falls off with the PSF of the telescope, so that there is
light on all sides just outside their saturated pixels, while the charge of a cosmic ray ends within a pixel on both
sides of its track.

Eight straight lines start at each saturated pixel and leave its group of connected saturated pixels. A group belongs to
a *star* if, for one of its pixels, light continues outside the group on at least `SIDES` of the eight lines: two pixels
after the last saturated one, the image is still above `LIGHT` of the saturation level and above 5 sigma of the noise. A
bleed trail belongs to its star because it touches it. All other groups are candidates for detection.

Tracks that cross, or that lie next to each other, can surround a group with light that is not that of a star. Groups
are therefore classified again after detection, with lines that pass over hit pixels (`join_enclosed`).

In candidate groups, pixels that are flagged or touch an event are hit, and so is the whole group if these are at least
half of it. All other saturated pixels stay ignored: stars, bleed trails, hot pixels.

The numbers follow from geometry. A PSF 1.5 pixels wide at half maximum, sharper than those of the cameras here, has 4 %
of its central pixel's light two pixels further along a row, and 1 % along a diagonal; a wider one has more. Charge that
diffuses by 0.5 pixel in a CCD leaves 0.2 % there. `LIGHT` lies between them. A track that crosses a pixel leaves it on
two sides, two tracks on four; hence more than four sides.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Bool = npt.NDArray[np.bool_]
Int = npt.NDArray[np.int64]

#: Smallest number of the eight sides on which the light of a star continues.
SIDES = 5
#: Smallest light of a star two pixels outside, as a fraction of the saturation level.
LIGHT = 0.005
#: Smallest significance of that light [sigma of the sky].
SIGNIFICANCE = 5.0
#: Distance from the last saturated pixel at which the light is measured [pixel].
DISTANCE = 2
#: Largest number of repeated classifications; in each, events may have grown around further groups.
_MAX_ROUNDS = 3
#: Length of a line [pixel]; larger groups are not cosmic rays.
_MAX_LENGTH = 64
_DIRECTIONS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))


def find_candidates(height: Any, noise: Any, saturated: Bool, unusable: Bool) -> Bool:
    """Return the saturated pixels that may belong to cosmic rays.

    Parameters
    ----------
    height : float array (y, x)
        Height above the sky [e-].
    noise : float array (y, x)
        1 sigma of the sky [e-].
    saturated : bool array (y, x)
        Pixels that are only unusable because they are saturated.
    unusable : bool array (y, x)
        Pixels that are unusable for other reasons; lines pass over them.

    Returns
    -------
    bool array (y, x)
        Complete 8-connected groups of `saturated`.
    """
    may_be = np.zeros_like(saturated)
    rows, columns = np.nonzero(saturated)
    if not len(rows):
        return may_be
    group = _groups(rows, columns, saturated.shape[1])
    level = np.full(group.max() + 1, np.inf)
    np.minimum.at(level, group, height[rows, columns])
    bright = np.zeros(len(rows), dtype=np.int64)
    for dy, dx in _DIRECTIONS:
        bright += _light_beyond(height, noise, saturated, unusable, rows, columns, dy, dx, LIGHT * level[group])
    star = np.zeros(len(level), dtype=bool)
    star[group[bright >= SIDES]] = True
    star |= ~(level > 0)  # flagged but not bright: its light cannot be classified
    may_be[rows, columns] = ~star[group]
    return may_be


def join_candidates(hit: Bool, candidate: Bool) -> Bool:
    """Return the hit pixels together with the candidates that belong to their events."""
    rows, columns = np.nonzero(candidate)
    if not len(rows):
        return hit
    touching = np.zeros(len(rows), dtype=bool)
    for dy, dx in ((0, 0), *_DIRECTIONS):
        y, x = np.clip(rows + dy, 0, hit.shape[0] - 1), np.clip(columns + dx, 0, hit.shape[1] - 1)
        touching |= hit[y, x]
    group = _groups(rows, columns, hit.shape[1])
    whole = np.bincount(group, touching) >= 0.5 * np.bincount(group)
    found = hit.copy()
    chosen = touching | whole[group]
    found[rows[chosen], columns[chosen]] = True
    return found


def join_enclosed(height: Any, noise: Any, hit: Bool, saturated: Bool, candidate: Bool, unusable: Bool) -> Bool:
    """Return hit pixels, with the saturated ones that lie inside detected events.

    Parameters
    ----------
    height, noise, saturated, unusable
        As in `find_candidates`.
    hit : bool array (y, x)
        Pixels flagged by detection.
    candidate : bool array (y, x)
        Result of `find_candidates`.
    """
    found = join_candidates(hit, candidate)
    for _ in range(_MAX_ROUNDS):
        others = saturated & ~candidate & ~found
        before = found
        if others.any():
            found = join_candidates(found, find_candidates(height, noise, others, unusable | found))
        if np.array_equal(before, found):
            break
    return found


def _light_beyond(
    height: Any, noise: Any, saturated: Bool, unusable: Bool, rows: Int, columns: Int, dy: int, dx: int, least: Any
) -> Bool:
    """Return whether light continues in one direction, `DISTANCE` pixels after the last saturated one.

    The result is True at the edge of the frame and for lines longer than `_MAX_LENGTH`, so that groups that cannot be
    classified stay ignored.
    """
    ny, nx = saturated.shape
    found = np.ones(len(rows), dtype=bool)
    walking = np.arange(len(rows))
    passed = np.zeros(len(rows), dtype=np.int64)
    y, x = rows.copy(), columns.copy()
    for _ in range(_MAX_LENGTH):
        y[walking] += dy
        x[walking] += dx
        walking = walking[(y[walking] >= 0) & (y[walking] < ny) & (x[walking] >= 0) & (x[walking] < nx)]
        if not len(walking):
            break
        at = y[walking], x[walking]
        passed[walking] = np.where(saturated[at], 0, passed[walking] + 1)
        end = (passed[walking] >= DISTANCE) & ~unusable[at]
        done = walking[end]
        at = y[done], x[done]
        found[done] = height[at] > np.maximum(least[done], SIGNIFICANCE * noise[at])
        walking = walking[~end]
    return found


def _groups(rows: Int, columns: Int, width: int) -> Int:
    """Return the number of the 8-connected group of each pixel, for pixels in row-major order."""
    pixel = rows * width + columns
    pairs = []
    for dy, dx in _DIRECTIONS[:4]:
        inside = (columns + dx >= 0) & (columns + dx < width)
        neighbour = pixel + dy * width + dx
        at = np.minimum(np.searchsorted(pixel, neighbour), len(pixel) - 1)
        pairs.append(np.flatnonzero(inside & (pixel[at] == neighbour)))
        pairs.append(at[pairs[-1]])
    first, second = np.concatenate(pairs[::2]), np.concatenate(pairs[1::2])
    graph = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(len(pixel), len(pixel)))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)
