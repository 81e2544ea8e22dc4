"""Saturated pixels of cosmic rays, told apart from those of saturated stars.

Saturated pixels are unusable, so they are ignored, and the core of a bright cosmic ray would stay in the image. A star
that saturates is different in one respect: its light falls off with the telescope's PSF, so that just outside its
saturated pixels there is light on all sides, whereas the charge of a cosmic ray ends within a pixel on both sides of
its track.

From each saturated pixel, eight straight lines leave its group of saturated pixels. A group is a *star's* if, for some
pixel of it, light continues beyond the group on at least `SIDES` of the eight lines: two pixels beyond the last
saturated one, the image is still above `LIGHT` of the saturation level and above five sigma of the noise. A bleed trail
belongs to its star because it touches it. All other groups are candidates, and detection looks at them.

Tracks that cross, or lie side by side, may surround a group with light that is not a star's. So groups are judged again
once detection has flagged pixels: lines then pass over what is hit (`join_enclosed`).

Of both kinds, pixels that are flagged or touch an event are hit; so is the whole group if they are at least half of it.
All other saturated pixels stay ignored: stars, bleed trails, hot pixels.

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

#: Sides of eight on which a star's light continues, and its share of the saturation level two pixels further out.
SIDES, LIGHT = 5, 0.005
#: Significance of that light [sigma of the sky].
SIGNIFICANCE = 5.0
#: How far beyond the last saturated pixel light is looked for [pixel].
BEYOND = 2
#: How often groups are judged again at most: each time events may have grown round others.
_ROUNDS = 3
#: Half length of a line [pixel]: what is larger is no cosmic ray.
_REACH = 64
_DIRECTIONS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))


def find_candidates(height: Any, noise: Any, saturated: Bool, unusable: Bool) -> Bool:
    """Return the saturated pixels that may belong to cosmic rays.

    Parameters
    ----------
    height : float array (y, x)
        Above the sky [e-].
    noise : float array (y, x)
        1 sigma of the sky [e-].
    saturated : bool array (y, x)
        Pixels that are unusable because they are saturated, and for no other reason.
    unusable : bool array (y, x)
        Pixels that are unusable for other reasons. Nothing is known of the light there: a line passes over them.

    Returns
    -------
    bool array (y, x)
        Whole groups (eight neighbours) of `saturated`.
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
    star |= ~(level > 0)  # flagged, but not bright: not to be judged by its light
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
    """Return hit pixels, with saturated ones that turn out to lie in events once these are known.

    Parameters
    ----------
    height, noise, saturated, unusable
        As `find_candidates` takes them.
    hit : bool array (y, x)
        Flagged by detection.
    candidate : bool array (y, x)
        What `find_candidates` has returned.
    """
    found = join_candidates(hit, candidate)
    for _ in range(_ROUNDS):
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
    """Return whether light continues in one direction, `BEYOND` pixels after the last saturated one.

    At the edge of the frame, and where a line does not end within `_REACH`, the answer is yes: what cannot be judged
    is left as it is.
    """
    ny, nx = saturated.shape
    found = np.ones(len(rows), dtype=bool)
    walking = np.arange(len(rows))
    passed = np.zeros(len(rows), dtype=np.int64)
    y, x = rows.copy(), columns.copy()
    for _ in range(_REACH):
        y[walking] += dy
        x[walking] += dx
        walking = walking[(y[walking] >= 0) & (y[walking] < ny) & (x[walking] >= 0) & (x[walking] < nx)]
        if not len(walking):
            break
        at = y[walking], x[walking]
        passed[walking] = np.where(saturated[at], 0, passed[walking] + 1)
        end = (passed[walking] >= BEYOND) & ~unusable[at]
        done = walking[end]
        at = y[done], x[done]
        found[done] = height[at] > np.maximum(least[done], SIGNIFICANCE * noise[at])
        walking = walking[~end]
    return found


def _groups(rows: Int, columns: Int, width: int) -> Int:
    """Return the number of the connected group of each pixel; pixels are in row-major order."""
    place = rows * width + columns
    pairs = []
    for dy, dx in _DIRECTIONS[:4]:
        inside = (columns + dx >= 0) & (columns + dx < width)
        wanted = place + dy * width + dx
        at = np.minimum(np.searchsorted(place, wanted), len(place) - 1)
        pairs.append(np.flatnonzero(inside & (place[at] == wanted)))
        pairs.append(at[pairs[-1]])
    first, second = np.concatenate(pairs[::2]), np.concatenate(pairs[1::2])
    graph = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(len(place), len(place)))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)
