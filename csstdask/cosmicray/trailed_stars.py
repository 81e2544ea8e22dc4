"""Trailed stars: the stars of an exposure during which the telescope has drifted are parallel streaks of one length.

A single streak with the width of the PSF looks like a long cosmic ray. All stars of an exposure share the direction and
the length of the drift, however, and cosmic rays share neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.mesh import Mesh
from csstdask.arrays.morphology import label_components
from csstdask.cosmicray.events import component_shapes

Bool = npt.NDArray[np.bool_]
Float = npt.NDArray[np.float64]

#: Largest side of the central window in which the drift is measured [pixel].
_WINDOW = 2048
#: Height from which a pixel belongs to a source [sigma].
_SOURCE_SIGMA = 3.0
#: Smallest number of pixels of a source that shows the drift.
_MIN_PIXELS = 30
#: Smallest number of such sources.
_MIN_SOURCES = 10
#: Smallest mean resultant length R of their n doubled position angles, and smallest n R^2: by chance, random angles
#: exceed it with a probability of exp(-n R^2) (Rayleigh test).
_MIN_ALIGNMENT, _MIN_RAYLEIGH = 0.6, 8.0
#: Sources within this angle of the mean direction give the drift [deg].
_ALIGNED = 15.0
#: Smallest median ratio of length and width of these sources.
_MIN_ELONGATION = 2.0
#: Lengths of trailed stars relative to that of the drift: faint ones are shorter, bright ones longer.
_LENGTHS = (0.4, 1.6)
#: Smallest width of a trailed star relative to that of the sources that show the drift.
_MIN_WIDTH = 0.25
#: Largest deviation of the direction of a trailed star: fixed, and of its ends across the drift [deg], [pixel].
_MAX_DEVIATION, _MAX_SHIFT = 5.0, 1.0
#: Smallest number of pixels of a blend of stars, relative to that of hits on one of them.
_BLEND = 1.5
#: Smallest excess over a trailed star of a cosmic ray on it [sigma].
_KEEP_SIGMA = 5.0
#: Error of the height of a trailed star, as a fraction: drifts are not uniform.
_STAR_ERROR = 0.3


@dataclass(frozen=True)
class Drift:
    """The common shape of the trailed stars of an exposure."""

    angle: float
    """Position angle, from +x towards +y, in [0, 180) [deg]."""
    length: float
    """Median length of bright sources [pixel]."""
    width: float
    """Their median width [pixel]."""


@dataclass(frozen=True)
class TrailedStars:
    """Trailed stars that a mask of cosmic rays has covered in part: one element per star, all float64."""

    x: Float
    """Centroid [pixel]."""
    y: Float
    """Centroid [pixel]."""
    length: Float
    """Length of a uniform line with the same second moment [pixel]."""
    width: Float
    """Width of such a line [pixel]."""
    angle: Float
    """Position angle, from +x towards +y, in [0, 180) [deg]."""
    n_pixels: npt.NDArray[np.int32]
    """Number of pixels above 3 sigma."""


def find_drift(data: npt.NDArray[Any], ignore: Bool, mesh: Mesh) -> Drift | None:
    """Find the drift of an exposure from the bright sources in the middle of a frame.

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
    Drift or None
        None unless at least 10 sources of 30 pixels or more are mostly parallel, and those that are, in the median,
        twice as long as wide.

    Examples
    --------
    >>> from csstdask.arrays.background import estimate_background
    >>> rng = np.random.default_rng(1)
    >>> frame = rng.normal(100, 5, (256, 256)).astype("float32")
    >>> for star in range(16):
    ...     y, x = 20 + 60 * (star // 4), 20 + 55 * (star % 4)
    ...     frame[y : y + 3, x : x + 18] += 200
    >>> drift = find_drift(frame, np.zeros(frame.shape, bool), estimate_background(frame))
    >>> round(drift.angle) % 180, round(drift.length)
    (0, 18)
    """
    if not np.isfinite(mesh.background).all() or not (mesh.noise > 0).any():
        return None
    rows, columns = (slice(max(0, (n - _WINDOW) // 2), max(0, (n - _WINDOW) // 2) + _WINDOW) for n in data.shape)
    height = data[rows, columns] - mesh.background_at(rows, columns)
    source = (height > _SOURCE_SIGMA * mesh.noise_at(rows, columns)) & ~ignore[rows, columns]
    parts = _measure(source, height)
    shape, large = parts.shape, parts.n_pixels >= _MIN_PIXELS
    if large.sum() < _MIN_SOURCES:
        return None
    length, width, angle = (shape[name][large] for name in ("length", "width", "angle"))
    alignment, mean = _mean_direction(angle)
    aligned = _deviation(angle, mean) < _ALIGNED
    significant = alignment > _MIN_ALIGNMENT and len(angle) * alignment**2 > _MIN_RAYLEIGH
    if not significant or np.median(length[aligned] / np.maximum(width[aligned], 1.0)) < _MIN_ELONGATION:
        return None
    return Drift(
        _mean_direction(angle[aligned])[1], float(np.median(length[aligned])), float(np.median(width[aligned]))
    )


def _mean_direction(angle: Float) -> tuple[float, float]:
    """Return the mean resultant length of doubled position angles, and their mean in [0, 180) [deg]."""
    mean = np.exp(2j * np.radians(angle)).mean()
    return float(abs(mean)), float(np.degrees(np.angle(mean)) / 2 % 180 % 180)


def _deviation(angle: Float, direction: float) -> Float:
    """Return the angles between lines of position angles and a direction, in [0, 90] [deg]."""
    return np.asarray(np.abs((angle - direction + 90) % 180 - 90))


@dataclass(frozen=True)
class _Components:
    """Connected components of a mask."""

    shape: dict[str, Float]
    """Centroid, length, width and angle of each component."""
    n_pixels: npt.NDArray[np.intp]
    """Number of pixels of each component."""
    y: npt.NDArray[np.intp]
    """Row of each pixel."""
    x: npt.NDArray[np.intp]
    """Column of each pixel."""
    component: npt.NDArray[np.int32]
    """Component of each pixel."""


def _measure(source: Bool, height: npt.NDArray[Any]) -> _Components:
    """Measure the components of a mask, weighted with their light."""
    labels, n = label_components(source)
    y, x = np.nonzero(source)
    component = labels[y, x] - 1
    shape = component_shapes(component, x, y, height[y, x].astype(np.float64), n)
    return _Components(shape, np.bincount(component, minlength=n), y, x, component)


def release_trailed_stars(
    hit: Bool, drift: Drift, data: npt.NDArray[Any], ignore: Bool, mesh: Mesh
) -> tuple[Bool, TrailedStars]:
    """Release the hits that lie on trailed stars and do not stand out from them.

    Parameters
    ----------
    hit : bool array (y, x)
        Detected pixels.
    drift : Drift
    data : float array (y, x)
        [e-], sky included.
    ignore : bool array (y, x)
        Pixels to leave out.
    mesh : Mesh
        Background and noise [e-].

    Returns
    -------
    hit : bool array (y, x)
        The remaining hits.
    stars : TrailedStars
        Stars from which hits were released.
    """
    height = data - mesh.background_at()
    noise = mesh.noise_at()
    source = ((height > _SOURCE_SIGMA * noise) | hit) & ~ignore
    remaining, found = hit.copy(), []
    whole = _measure(source, height)
    found.append(_release(remaining, whole, _matches(whole.shape, drift), source, height, noise, drift))
    # Where stars overlap, the hits along each of them have its shape. Those that are most of their source are tracks.
    parts = _measure(remaining, height)
    size = np.zeros(hit.shape, dtype=np.int32)
    size[whole.y, whole.x] = whole.n_pixels[whole.component]
    blended = np.zeros(len(parts.n_pixels), dtype=bool)
    blended[parts.component] = size[parts.y, parts.x] > _BLEND * parts.n_pixels[parts.component]
    found.append(_release(remaining, parts, _matches(parts.shape, drift) & blended, source, height, noise, drift))
    return remaining, TrailedStars(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _release(
    remaining: Bool, parts: _Components, trailed: Bool, source: Bool, height: npt.NDArray[Any],
    noise: npt.NDArray[Any], drift: Drift,
) -> tuple[npt.NDArray[Any], ...]:  # fmt: skip
    """Release the hits on trailed components, in place, and return the columns of those that lost any."""
    at = np.flatnonzero(trailed[parts.component] & remaining[parts.y, parts.x])
    rows, columns = parts.y[at], parts.x[at]
    light = _along(height, source, rows, columns, drift)
    sigma = np.sqrt(noise[rows, columns] ** 2 + light + (_STAR_ERROR * light) ** 2)
    lost = height[rows, columns] - light <= _KEEP_SIGMA * sigma
    remaining[rows[lost], columns[lost]] = False
    one = np.unique(parts.component[at[lost]])
    shape = (parts.shape[name][one] for name in ("x", "y", "length", "width", "angle"))
    return *shape, parts.n_pixels[one].astype(np.int32)


def _matches(shape: dict[str, Float], drift: Drift) -> Bool:
    """Return which components have the direction, length and width of a trailed star."""
    deviation = _deviation(shape["angle"], drift.angle)
    allowed = _MAX_DEVIATION + np.degrees(_MAX_SHIFT / np.maximum(shape["length"] / 2, 1.0))
    relative = shape["length"] / drift.length
    matches = (deviation < allowed) & (relative > _LENGTHS[0]) & (relative < _LENGTHS[1])
    return np.asarray(matches & (shape["width"] > _MIN_WIDTH * drift.width))


def _along(height: npt.NDArray[Any], source: Bool, rows: Any, columns: Any, drift: Drift) -> Float:
    """Return the median of the source along the drift, over the length of the drift about each pixel [e-]."""
    step = np.arange(-int(drift.length / 2), int(drift.length / 2) + 1)
    angle = np.radians(drift.angle)
    y = np.clip(np.rint(rows[:, None] + step * np.sin(angle)).astype(int), 0, height.shape[0] - 1)
    x = np.clip(np.rint(columns[:, None] + step * np.cos(angle)).astype(int), 0, height.shape[1] - 1)
    values = np.where(source[y, x], height[y, x], np.nan).astype(np.float64)
    return np.maximum(np.nanmedian(values, axis=1), 0.0) if len(rows) else np.empty(0)
