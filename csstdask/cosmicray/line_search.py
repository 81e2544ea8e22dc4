"""Search for straight lines over a whole frame: a discrete Radon transform in strips of a binned frame.

The frame is averaged in boxes, each average clipped, so that no star or cosmic ray weighs more than a few boxes. The
transform adds the boxes along all lines that cross a strip of 64 or of 256 boxes, by doubling (Brady 1998, SIAM J.
Comput. 27, 107), in time proportional to the number of boxes. Four orientations of the frame give the lines within 45
degrees of either axis, with slopes of either sign.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter

from csstdask.arrays.mesh import Mesh, interpolate
from csstdask.numerics.robust import mad_scale

Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

#: Heights of strips, powers of 2: of parts of trails, and of faint trails in crowded fields [box].
SHORT, LONG = 64, 256
#: Sizes of a box: that of large frames, and of frames whose longer side is at most `LARGE` [pixel].
LARGE_BOX, SMALL_BOX = 8, 4
#: Longer side from which a frame is large [pixel].
LARGE = 4700
#: Largest height of a pixel in the average of its box [sigma].
_CLIP_PIXEL = 2.0
#: Largest deviation of a box from the median of all [sigma].
_CLIP_BOX = 2.0
#: Smallest sum along a line of a strip [sigma of all lines].
_MIN_SIGMA = 3.8
#: Distance within which only the best line of a strip is kept, in slope and offset [box].
_SEPARATION = 5
#: Number of values from which the scale of a transform is estimated.
_SAMPLE = 200_000


@dataclass(frozen=True)
class BinnedFrame:
    """A frame in units of its noise, averaged in boxes."""

    significance: Float
    """(y, x) Mean significance of the usable pixels of a box; 0 without any."""
    background: Float
    """(y, x) Background at the centre of a box [e-]."""
    noise: Float
    """(y, x) Noise at the centre of a box [e-]."""
    box: int
    """Side of a box [pixel]."""


def bin_frame(data: npt.NDArray[Any], ignore: Bool, mesh: Mesh) -> BinnedFrame:
    """Average the significance of the pixels of a frame in boxes.

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
    BinnedFrame
        Boxes at the upper ends of the axes may be incomplete.
    """
    box = LARGE_BOX if max(data.shape) > LARGE else SMALL_BOX
    ny, nx = (-(-length // box) for length in data.shape)
    # The mesh covers the frame, and the boxes a little more: less than a box.
    background = np.ascontiguousarray(interpolate(mesh.background, (ny, nx)), dtype=np.float32)
    noise = np.ascontiguousarray(interpolate(mesh.noise, (ny, nx), beyond="hold"), dtype=np.float32)
    significance = np.zeros((ny, nx), dtype=np.float32)
    _average(data, ignore, background, noise, box, np.float32(_CLIP_PIXEL), significance)
    return BinnedFrame(significance, background, noise, box)


@numba.njit(nogil=True, cache=True)
def _average(
    data: Any, ignore: Any, background: Any, noise: Any, box: int, clip: np.float32, significance: Any
) -> None:
    ny, nx = data.shape
    total = np.zeros(significance.shape[1], dtype=np.float32)
    number = np.zeros(significance.shape[1], dtype=np.int32)
    for row in range(significance.shape[0]):
        total[:] = 0
        number[:] = 0
        for y in range(row * box, min((row + 1) * box, ny)):
            for column in range(significance.shape[1]):
                level, scale = background[row, column], noise[row, column]
                if not scale > 0:
                    continue
                for x in range(column * box, min((column + 1) * box, nx)):
                    if not ignore[y, x]:
                        total[column] += min(max((data[y, x] - level) / scale, -clip), clip)
                        number[column] += 1
        for column in range(significance.shape[1]):
            if number[column] > 0:
                significance[row, column] = total[column] / number[column]


def find_segments(binned: BinnedFrame) -> npt.NDArray[np.float64]:
    """Return the lines of the strips of a frame that are brighter than the rest of it.

    Parameters
    ----------
    binned : BinnedFrame

    Returns
    -------
    float64 array (n, 5)
        x and y of one end, of the other end [pixel], and the sum along the line [sigma]; highest sum first. The ends
        may lie outside the frame.
    """
    boxes = _clipped(binned.significance)
    if min(boxes.shape) < SHORT // 2:
        return np.empty((0, 5))
    found = []
    for transposed in (False, True):
        for mirrored in (False, True):
            plane = boxes.T if transposed else boxes
            plane = plane[:, ::-1] if mirrored else plane
            strips = transform_strips(np.ascontiguousarray(plane))
            ends = np.concatenate([_brightest(sums, plane.shape[0]) for sums in strips])
            if mirrored:
                ends[:, [0, 2]] = plane.shape[1] - 1 - ends[:, [0, 2]]
            if transposed:
                ends = ends[:, [1, 0, 3, 2, 4]]
            found.append(ends)
    segments = np.concatenate(found)
    segments[:, :4] = (segments[:, :4] + 0.5) * binned.box - 0.5
    return segments[np.argsort(-segments[:, 4], kind="stable")]


def _clipped(significance: Float) -> Float:
    """Return boxes relative to their median, in units of their scatter, clipped."""
    centre = np.float32(np.median(significance))
    scale = np.float32(mad_scale(significance, center=float(centre)))
    if not scale > 0:
        return np.zeros_like(significance)
    return np.clip((significance - centre) / scale, -_CLIP_BOX, _CLIP_BOX).astype(np.float32)


def transform_strips(boxes: Float) -> Iterator[Float]:
    """Yield the sums along the lines of all short strips, then those of all long ones.

    Parameters
    ----------
    boxes : float32 array (y, x)

    Yields
    ------
    float32 array (n_strips, height, x + LONG)
        Element ``[i, s, j]`` is the sum along the line that begins in column ``j - LONG`` of the first row of strip i
        and ends s columns further in its last row. Boxes outside the frame count as 0.

    Examples
    --------
    >>> short, long = transform_strips(np.eye(64, dtype=np.float32))
    >>> short.shape, float(short[0, 63, LONG]), float(short.max())
    ((4, 64, 320), 64.0, 64.0)
    """
    ny, nx = boxes.shape
    n = -(-ny // LONG)
    sums = np.zeros((n * LONG, 1, nx + LONG), dtype=np.float32)
    sums[:ny, 0, LONG:] = boxes
    while sums.shape[1] < LONG:
        doubled = np.empty((sums.shape[0] // 2, sums.shape[1] * 2, sums.shape[2]), dtype=np.float32)
        _double(sums, doubled)
        sums = doubled
        if sums.shape[1] in (SHORT, LONG):
            yield sums


@numba.njit(nogil=True, cache=True)
def _double(sums: Any, doubled: Any) -> None:
    """Join pairs of strips: a line of slope s continues in the second one where it has left the first."""
    width = sums.shape[2]
    for strip in range(doubled.shape[0]):
        for slope in range(doubled.shape[1]):
            half, shift = slope // 2, (slope + 1) // 2
            for x in range(width - shift):
                doubled[strip, slope, x] = sums[2 * strip, half, x] + sums[2 * strip + 1, half, x + shift]
            for x in range(width - shift, width):
                doubled[strip, slope, x] = sums[2 * strip, half, x]


def _brightest(sums: Float, n_rows: int) -> npt.NDArray[np.float64]:
    """Return the ends [box] and sums of the lines that are local maxima far above all others."""
    values = _complete(sums, n_rows)
    centre = float(np.median(values))
    scale = float(mad_scale(values, center=centre))
    if not scale > 0:
        return np.empty((0, 5))
    limit = centre + _MIN_SIGMA * scale
    strip, slope, x = np.nonzero(sums > limit)
    if len(strip) == 0:
        return np.empty((0, 5))
    # Only strips with a bright line are filtered.
    peaks = np.zeros(len(strip), dtype=bool)
    for index in np.unique(strip):
        highest = maximum_filter(sums[index], _SEPARATION, mode="constant", cval=-np.inf)
        here = strip == index
        peaks[here] = sums[index][slope[here], x[here]] >= highest[slope[here], x[here]]
    strip, slope, x = strip[peaks], slope[peaks], x[peaks]
    first, rows = x - LONG, sums.shape[1]
    height = (sums[strip, slope, x] - centre) / scale
    return np.column_stack([first, strip * rows, first + slope, (strip + 1) * rows - 1, height]).astype(np.float64)


def _complete(sums: Float, n_rows: int) -> Float:
    """Return a sample of the sums along lines that cross their strip inside the frame; of all lines if none does."""
    rows = sums.shape[1]
    strips = sums[: max(1, n_rows // rows)]
    first, slope = np.arange(LONG, sums.shape[2]), np.arange(rows)
    inside = first[None, :] + slope[:, None] < sums.shape[2]
    values = strips[:, :, LONG:][:, inside] if inside.any() else strips.reshape(len(strips), -1)
    return np.asarray(values.reshape(-1)[:: max(1, values.size // _SAMPLE)])
