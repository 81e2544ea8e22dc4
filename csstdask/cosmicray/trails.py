"""Trails of satellites: found over the whole frame, and released from the mask of cosmic rays.

A detection network sees too little of a frame to distinguish a satellite from a long cosmic ray. Here the lines that
`csstdask.cosmicray.line_search` finds in a binned frame are followed in its pixels. Medians along 32 pixels of a line
remove stars, galaxies and cosmic rays, so that what remains across the line is the profile of the trail. A line is a
trail if it is lit over a length that no cosmic ray has. Its gaps may be as long as half of the lit parts: satellites
tumble and flash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from scipy.ndimage import map_coordinates
from scipy.special import bdtrc

from csstdask.arrays.mesh import Mesh
from csstdask.arrays.morphology import hysteresis_threshold
from csstdask.core.warnings import suppress_warnings
from csstdask.cosmicray.line_search import BinnedFrame, bin_frame, find_segments
from csstdask.numerics.robust import mad_scale

Bool = npt.NDArray[np.bool_]
Float = npt.NDArray[np.float64]

#: Length of the pieces of a line over which medians are taken [pixel].
PIECE = 32
#: Largest distance of a profile from its line [pixel].
HALF_WIDTH = 24
#: Distance from which a profile shows the sky on both sides [pixel].
_SKY_DISTANCE = 17
#: Smallest height of a lit piece [sigma of the pieces of the sky].
_LIT_SIGMA = 5.0
#: Weight of a dark piece relative to a lit one, in the choice of the ends of a trail.
_DARK_WEIGHT = 0.5
#: Smallest number of lit pieces of a trail: longer than any cosmic ray.
MIN_PIECES = 9
#: Smallest number of lit pieces in the strip in which a line was found.
_MIN_STRIP_PIECES = 4
#: Largest probability that stars light as many pieces of a run by chance; many lines and runs are tried.
_MAX_CHANCE = 1e-8
#: Distances from the line in which its centre is measured: of the pieces of a strip, and of a whole line [pixel].
_WINDOW, _FINE_WINDOW = 20, 8
#: Largest scatter of the pieces of a trail about a straight line [pixel].
_MAX_SCATTER = 1.5
#: A line along an axis of the frame that is narrower than this is a row or a column of the detector [pixel].
_MIN_AXIS_WIDTH = 1.8
#: Smallest excess over the trail of a cosmic ray that crosses it [sigma].
_KEEP_SIGMA = 3.5
#: Excess from which connected hits are part of that cosmic ray [sigma].
_GROW_SIGMA = 0.5
#: Error of the height of a trail, as a fraction: its profiles are interpolated.
_TRAIL_ERROR = 0.05
#: Lines that are followed in one frame at most.
_MAX_LINES = 60
#: Distance of a line from another one, at both ends, within which it is the same [pixel].
_SAME = 40.0
#: The same for lines that are no trails [pixel].
_NEAR = 12.0


@dataclass(frozen=True)
class Trail:
    """A straight trail of a satellite.

    Positions are zero-based.
    """

    x: tuple[float, float]
    """x of both ends [pixel]."""
    y: tuple[float, float]
    """y of both ends [pixel]."""
    width: float
    """Full width at half maximum across [pixel]."""
    profile: Float
    """(pieces, 2 HALF_WIDTH + 1) Height across the trail, of each piece [e-]."""
    reach: int
    """Distance from the line within which there is light [pixel]."""

    @property
    def length(self) -> float:
        """Return the length [pixel]."""
        return float(np.hypot(self.x[1] - self.x[0], self.y[1] - self.y[0]))

    @property
    def angle(self) -> float:
        """Return the position angle, from +x towards +y, in [0, 180) [deg]."""
        return float(np.degrees(np.arctan2(self.y[1] - self.y[0], self.x[1] - self.x[0])) % 180 % 180)

    def touches_edge(self, shape: tuple[int, int]) -> bool:
        """Return whether an end lies at the edge of a frame of a shape (y, x)."""
        limits = ((self.x, shape[1]), (self.y, shape[0]))
        return any(not 1 <= at <= size - 2 for ends, size in limits for at in ends)


@dataclass(frozen=True)
class _Line:
    """A line through a frame: position at its start, direction and length [pixel]."""

    x: float
    y: float
    cos: float
    sin: float
    length: float

    @classmethod
    def between(cls, x0: float, y0: float, x1: float, y1: float) -> _Line:
        length = float(np.hypot(x1 - x0, y1 - y0))
        return cls(x0, y0, (x1 - x0) / length, (y1 - y0) / length, length)

    def at(self, along: Any, across: Any = 0.0) -> tuple[Any, Any]:
        """Return x and y of a position along and across the line."""
        return self.x + along * self.cos - across * self.sin, self.y + along * self.sin + across * self.cos

    def shifted(self, start: float, slope: float) -> _Line:
        """Return the line with its start moved across, and turned by a slope."""
        return _Line.between(*self.at(0.0, start), *self.at(self.length, start + slope * self.length))

    def within(self, shape: tuple[int, ...]) -> _Line | None:
        """Return the line from edge to edge of a frame; None if it misses the frame."""
        low, high = -np.inf, np.inf
        for position, direction, size in ((self.x, self.cos, shape[1]), (self.y, self.sin, shape[0])):
            if abs(direction) < 1e-9:
                if not -0.5 <= position <= size - 0.5:
                    return None
                continue
            ends = sorted(((-0.5 - position) / direction, (size - 0.5 - position) / direction))
            low, high = max(low, ends[0]), min(high, ends[1])
        if not high - low > PIECE:
            return None
        return _Line.between(*self.at(low), *self.at(high))


def find_trails(data: npt.NDArray[Any], ignore: Bool, mesh: Mesh) -> list[Trail]:
    """Find the trails of satellites in a frame.

    Parameters
    ----------
    data : float array (y, x)
        [e-], sky included.
    ignore : bool array (y, x)
        Pixels to leave out.
    mesh : Mesh
        Background and noise [e-].

    Returns
    -------
    list of Trail
        Brightest line first; empty if the sky is unknown, or the frame is smaller than a trail.

    Examples
    --------
    >>> from csstdask.arrays.background import estimate_background
    >>> rng = np.random.default_rng(1)
    >>> y, x = np.mgrid[:512, :512]
    >>> light = 60 * np.exp(-0.5 * ((y - 100 - 0.5 * x) * np.cos(np.arctan(0.5)) / 1.5) ** 2)
    >>> frame = (rng.normal(100, 5, (512, 512)) + light).astype("float32")
    >>> (trail,) = find_trails(frame, np.zeros(frame.shape, bool), estimate_background(frame))
    >>> round(trail.angle, 1), round(trail.width)
    (26.6, 4)
    """
    if not np.isfinite(mesh.background).all() or not (mesh.noise > 0).any():
        return []
    binned = bin_frame(data, ignore, mesh)
    segments = find_segments(binned)
    trails: list[Trail] = []
    dropped: list[_Line] = []
    for segment in segments:
        line = _Line.between(*segment[:4])
        known = [_line_of(one) for one in trails]
        if any(_is_same(line, one, _NEAR) for one in dropped) or any(_is_same(line, one, _SAME) for one in known):
            continue
        dropped.append(line)
        trail = _follow(line, data, ignore, binned, trails)
        if trail is not None and not any(_is_same(_line_of(trail), _line_of(one), _SAME) for one in trails):
            trails.append(trail)
        if len(dropped) >= _MAX_LINES:
            break
    return trails


def _line_of(trail: Trail) -> _Line:
    return _Line.between(trail.x[0], trail.y[0], trail.x[1], trail.y[1])


def _is_same(line: _Line, other: _Line, distance: float) -> bool:
    """Return whether a line lies along a part of another one."""
    for along in (0.0, line.length):
        x, y = line.at(along)
        u = (x - other.x) * other.cos + (y - other.y) * other.sin
        across = (y - other.y) * other.cos - (x - other.x) * other.sin
        if abs(across) > distance or not -line.length <= u <= other.length + line.length:
            return False
    return True


def _follow(
    line: _Line, data: npt.NDArray[Any], ignore: Bool, binned: BinnedFrame, known: Sequence[Trail]
) -> Trail | None:
    """Follow a line of a strip through the frame; None unless it is a trail that is not yet known."""
    nearest: _Line | None = _fitted(line, _profiles(line, data, ignore, binned), _WINDOW)
    if nearest is None or any(_is_same(nearest, _line_of(one), _SAME) for one in known):
        return None
    if _lit(_profiles(nearest, data, ignore, binned))[0].sum() < _MIN_STRIP_PIECES:
        return None  # most lines end here, at the cost of a strip
    for window in (_FINE_WINDOW, _FINE_WINDOW):
        whole = None if nearest is None else nearest.within(data.shape)
        nearest = None if whole is None else _fitted(whole, _profiles(whole, data, ignore, binned), window)
    whole = None if nearest is None else nearest.within(data.shape)
    if whole is None:
        return None
    profiles = _profiles(whole, data, ignore, binned)
    lit, chance = _lit(profiles)
    first, last = _longest_run(lit)
    n = int(lit[first:last].sum())
    if n < MIN_PIECES or bdtrc(n - 1, last - first, chance) > _MAX_CHANCE:
        return None
    if _scatter(profiles[first:last], lit[first:last]) > _MAX_SCATTER:
        return None
    with suppress_warnings():
        mean = np.nan_to_num(np.nanmean(profiles[first:last][lit[first:last]], axis=0))
    width = _full_width(mean)
    if width < _MIN_AXIS_WIDTH and min(abs(whole.cos), abs(whole.sin)) * (last - first) * PIECE < 1:
        return None
    x, y = zip(whole.at(first * PIECE), whole.at(min(last * PIECE, whole.length)), strict=True)
    noise = _noise_along(whole, first, last, binned)
    return Trail(x, y, width, profiles[first:last] * noise[:, None], _reach(mean, width))


def _noise_along(line: _Line, first: int, last: int, binned: BinnedFrame) -> Float:
    """Return the noise of the sky in the middle of the pieces of a line [e-]."""
    x, y = line.at((np.arange(first, last) + 0.5) * PIECE)
    ny, nx = binned.noise.shape
    row, column = (np.clip(np.rint(at) // binned.box, 0, n - 1).astype(int) for at, n in ((y, ny), (x, nx)))
    return np.asarray(binned.noise[row, column], dtype=np.float64)


def _profiles(line: _Line, data: npt.NDArray[Any], ignore: Bool, binned: BinnedFrame) -> Float:
    """Return the median significance across the pieces of a line, relative to the sky on both sides of it."""
    pieces = max(1, int(np.ceil(line.length / PIECE)))
    profiles = np.full((pieces, 2 * HALF_WIDTH + 1), np.nan)
    _sample(
        data, ignore, binned.background, binned.noise, binned.box, line.x, line.y, line.cos, line.sin, line.length,
        profiles,
    )  # fmt: skip
    sky = np.concatenate([profiles[:, : HALF_WIDTH - _SKY_DISTANCE], profiles[:, HALF_WIDTH + _SKY_DISTANCE + 1 :]], 1)
    with suppress_warnings():
        return profiles - np.nan_to_num(np.nanmedian(sky, axis=1, keepdims=True))


@numba.njit(nogil=True, cache=True)
def _sample(
    data: Any, ignore: Any, background: Any, noise: Any, box: int,
    x0: float, y0: float, cos: float, sin: float, length: float, profiles: Any,
) -> None:  # fmt: skip
    """Take medians of the pixels nearest to positions a pixel apart along and across a line."""
    ny, nx = data.shape
    values = np.empty(PIECE, dtype=np.float64)
    for piece in range(profiles.shape[0]):
        for column in range(profiles.shape[1]):
            across = column - HALF_WIDTH
            n = 0
            for step in range(PIECE):
                along = piece * PIECE + step + 0.5
                if along > length:
                    break
                x = int(np.rint(x0 + along * cos - across * sin))
                y = int(np.rint(y0 + along * sin + across * cos))
                if x < 0 or y < 0 or x >= nx or y >= ny or ignore[y, x]:
                    continue
                scale = noise[y // box, x // box]
                if scale > 0:
                    values[n] = (data[y, x] - background[y // box, x // box]) / scale
                    n += 1
            if n >= PIECE // 4:
                profiles[piece, column] = np.median(values[:n])


def _lit(profiles: Float) -> tuple[Bool, float]:
    """Return which pieces are brighter in the middle than the scatter of the sky explains, and a chance.

    The chance is the fraction of pieces of the sky on both sides that are as bright: in crowded fields, stars light
    many.
    """
    with suppress_warnings():
        middle, *sides = (
            np.nanmean(profiles[:, HALF_WIDTH + at - 1 : HALF_WIDTH + at + 2], axis=1)
            for at in (0, -_SKY_DISTANCE - 3, _SKY_DISTANCE + 3)
        )
    sky = np.nan_to_num(np.concatenate(sides))
    limit = _LIT_SIGMA * float(mad_scale(sky, center=0.0, floor=1e-3))
    return np.nan_to_num(middle) > limit, (1.0 + (sky > limit).sum()) / (2.0 + len(sky))


def _centres(profiles: Float, window: int) -> Float:
    """Return the distance of the brightest smoothed pixel of each piece from the line, and refine it by a parabola."""
    part = np.nan_to_num(profiles[:, HALF_WIDTH - window : HALF_WIDTH + window + 1])
    padded = np.pad(part, ((0, 0), (2, 2)))
    n = part.shape[1]
    smooth = np.sum([weight * padded[:, shift : shift + n] for shift, weight in enumerate((1, 2, 3, 2, 1))], axis=0)
    peak = np.clip(np.argmax(smooth, axis=1), 1, n - 2)
    rows = np.arange(len(part))
    below, at, above = (smooth[rows, peak + shift] for shift in (-1, 0, 1))
    curvature = below - 2 * at + above
    offset = np.where(curvature < 0, 0.5 * (below - above) / np.where(curvature < 0, curvature, 1), 0)
    return np.asarray(peak - window + np.clip(offset, -1, 1), dtype=np.float64)


def _fitted(line: _Line, profiles: Float, window: int) -> _Line | None:
    """Fit the position and direction of a line to the centres of its pieces; None with fewer than 3 that agree."""
    centre = _centres(profiles, window)
    significance = np.nan_to_num(profiles)[
        np.arange(len(centre)), np.clip(np.rint(centre).astype(int) + HALF_WIDTH, 0, 2 * HALF_WIDTH)
    ]
    bright = significance > 3 * float(mad_scale(profiles, center=0.0, floor=1e-3))
    if bright.sum() < 3:
        return None
    along = np.asarray((np.flatnonzero(bright) + 0.5) * PIECE, dtype=np.float64)
    start, slope = _robust_line(along, centre[bright], np.minimum(significance[bright], 10.0))
    return line.shifted(start, slope)


def _robust_line(along: Float, across: Float, weight: Float) -> tuple[float, float]:
    """Return offset and slope of the line that passes close to most points: the best pair, then least squares."""
    first, second = np.triu_indices(len(along), 1)
    if len(first) > 4000:  # enough pairs for any line
        chosen = np.random.default_rng(0).choice(len(first), 4000, replace=False)
        first, second = first[chosen], second[chosen]
    slope = (across[second] - across[first]) / (along[second] - along[first])
    start = across[first] - slope * along[first]
    deviation = np.abs(across[None, :] - start[:, None] - slope[:, None] * along[None, :])
    best = int(np.argmax((weight * (deviation < 1.5)).sum(axis=1)))
    near = deviation[best] < 2.5
    fit = np.polyfit(along[near], across[near], 1, w=weight[near]) if near.sum() > 2 else (slope[best], start[best])
    return float(fit[1]), float(fit[0])


def _scatter(profiles: Float, lit: Bool) -> float:
    """Return the scatter of the centres of lit pieces about their line [pixel]."""
    return float(mad_scale(_centres(profiles[lit], _FINE_WINDOW), center=0.0)) if lit.any() else np.inf


def _longest_run(lit: Bool) -> tuple[int, int]:
    """Return the range of pieces with the largest sum, 1 for a lit piece and ``-_DARK_WEIGHT`` for a dark one.

    Examples
    --------
    >>> _longest_run(np.array([0, 1, 0, 1, 1, 0, 0, 0, 0, 1], bool))
    (1, 5)
    """
    total = np.concatenate([[0.0], np.cumsum(np.where(lit, 1.0, -_DARK_WEIGHT))])
    lowest = np.minimum.accumulate(total)
    last = int(np.argmax(total - lowest))
    return int(np.flatnonzero(total[: last + 1] == lowest[last])[-1]), last


def _full_width(profile: Float) -> float:
    """Return the full width at half maximum of a profile, its centre in the middle [pixel]."""
    half = profile[HALF_WIDTH] / 2
    width = 0.0
    for side in (profile[HALF_WIDTH:], profile[HALF_WIDTH::-1]):
        below = np.flatnonzero(side < half)
        if len(below) == 0:
            return float(2 * HALF_WIDTH)
        end = int(below[0])
        width += end - 1 + (side[end - 1] - half) / max(side[end - 1] - side[end], 1e-9)
    return float(width)


def _reach(profile: Float, width: float) -> int:
    """Return the distance at which a profile has dropped to a fiftieth of its height or a fifth of the noise.

    It is at most one and a half times the full width: 3.5 standard deviations of a Gaussian.
    """
    limit = max(profile[HALF_WIDTH] / 50, 0.2)
    reach = 0
    for side in (profile[HALF_WIDTH:], profile[HALF_WIDTH::-1]):
        below = np.flatnonzero(side < limit)
        reach = max(reach, int(below[0]) if len(below) else HALF_WIDTH)
    return int(min(reach, np.ceil(1.5 * width)))


@dataclass(frozen=True)
class _Inside:
    """Positions of pixels in a trail."""

    index: npt.NDArray[np.intp]
    """Which of the pixels lie in it."""
    light: Float
    """Height of the trail there [e-]."""


def _inside(trail: Trail, y: npt.NDArray[Any], x: npt.NDArray[Any]) -> _Inside:
    """Return which of some pixels lie in a trail, and its height there."""
    line = _line_of(trail)
    along = (x - line.x) * line.cos + (y - line.y) * line.sin
    across = (y - line.y) * line.cos - (x - line.x) * line.sin
    index = np.flatnonzero((np.abs(across) <= trail.reach) & (along >= -PIECE) & (along <= line.length + PIECE))
    pieces = len(trail.profile)
    profile = np.nan_to_num(trail.profile)
    u = np.clip(along[index] / PIECE - 0.5, 0, pieces - 1)
    v = np.clip(across[index] + HALF_WIDTH, 0, 2 * HALF_WIDTH)
    i, j = np.minimum(u.astype(int), max(pieces - 2, 0)), np.minimum(v.astype(int), 2 * HALF_WIDTH - 1)
    du, dv, following = u - i, v - j, np.minimum(i + 1, pieces - 1)
    light = (1 - du) * ((1 - dv) * profile[i, j] + dv * profile[i, j + 1])
    light += du * ((1 - dv) * profile[following, j] + dv * profile[following, j + 1])
    return _Inside(index, np.maximum(light, 0.0))


def trail_pixels(trails: Sequence[Trail], shape: tuple[int, int]) -> Bool:
    """Return the pixels (y, x) of a frame in which there is light of a trail."""
    mask = np.zeros(shape, dtype=bool)
    for trail in trails:
        line = _line_of(trail)
        along = np.arange(0.0, line.length, 0.5)[:, None]
        across = np.arange(-trail.reach, trail.reach + 0.5, 0.5)[None, :]
        x, y = (np.rint(at).astype(int) for at in line.at(along, across))
        inside = (x >= 0) & (y >= 0) & (x < shape[1]) & (y < shape[0])
        mask[y[inside], x[inside]] = True
    return mask


def release_trails(hit: Bool, trails: Sequence[Trail], data: npt.NDArray[Any], mesh: Mesh) -> Bool:
    """Release the light of satellites from a mask of cosmic rays.

    A cosmic ray that crosses a trail has a pixel that exceeds it by 3.5 sigma. It keeps that pixel, and the hits
    connected with it that exceed the trail by half a sigma.

    Parameters
    ----------
    hit : bool array (y, x)
        Detected pixels.
    trails : sequence of Trail
    data : float array (y, x)
        [e-], sky included.
    mesh : Mesh
        Background and noise [e-].

    Returns
    -------
    bool array (y, x)
        The remaining hits; `hit` itself if none lies on a trail.
    """
    y, x = np.nonzero(hit) if trails else (np.empty(0, int), np.empty(0, int))
    inside, light = np.zeros(len(y), dtype=bool), np.zeros(len(y))
    for trail in trails:
        index, height = _light_of(trail, y, x)
        inside[index] = True
        light[index] += height
    if not inside.any():
        return hit
    y, x, light = y[inside], x[inside], light[inside]
    sky, noise = _sky_at(mesh, y, x)
    excess = data[y, x] - sky - light
    sigma = np.sqrt(noise**2 + light + (_TRAIL_ERROR * light) ** 2)
    seed, candidate = np.zeros_like(hit), np.zeros_like(hit)
    seed[y, x] = excess > _KEEP_SIGMA * sigma
    candidate[y, x] = excess > _GROW_SIGMA * sigma
    remaining = hit.copy()
    remaining[y, x] = False
    return remaining | hysteresis_threshold(seed, candidate)


def _light_of(trail: Trail, y: npt.NDArray[Any], x: npt.NDArray[Any]) -> tuple[npt.NDArray[np.intp], Float]:
    """Return which of some pixels lie in a trail, and its height there [e-]."""
    line = _line_of(trail)
    along = (x - line.x) * line.cos + (y - line.y) * line.sin
    across = (y - line.y) * line.cos - (x - line.x) * line.sin
    index = np.flatnonzero((np.abs(across) <= trail.reach) & (along >= -PIECE) & (along <= line.length + PIECE))
    piece = np.clip(along[index] / PIECE - 0.5, 0, len(trail.profile) - 1)
    column = across[index] + HALF_WIDTH
    light = map_coordinates(np.nan_to_num(trail.profile), [piece, column], order=1, mode="nearest")
    return index, np.maximum(light, 0.0)


def _sky_at(mesh: Mesh, rows: npt.NDArray[Any], columns: npt.NDArray[Any]) -> tuple[Float, Float]:
    """Return background and noise of single pixels [e-]."""
    sky, noise = np.empty(len(rows)), np.empty(len(rows))
    for row in np.unique(rows):  # row-major order: the pixels of a row are adjacent
        here = slice(*np.searchsorted(rows, [row, row + 1]))
        one = slice(int(row), int(row) + 1)
        sky[here] = mesh.background_at(one)[0, columns[here]]
        noise[here] = mesh.noise_at(one)[0, columns[here]]
    return sky, noise
