"""Background and noise of a frame on a mesh of boxes, and the sky of stamps.

The pixels of each box are clipped at 3 sigma about their median until nothing changes. The background is the mode
estimate of SExtractor, ``2.5 median - 1.5 mean``, or the median where median and mean disagree (Bertin & Arnouts 1996,
A&A Suppl. 117, 393). The noise is the clipped standard deviation, corrected for the clipping of a Gaussian, and at
least that of rounding (`csstdask.arrays.quantisation`). A 3 x 3 median over the mesh removes boxes that a bright source
fills. `csstdask.arrays.mesh` interpolates both to pixels.

The method suits a sky that varies on scales of a box or more. On the host, boxes are clipped in a histogram whose bins
are finer than a thousandth of the noise, in two passes over the pixels; on a GPU they are sorted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from csstdask.arrays.mesh import Mesh, mesh_shape
from csstdask.arrays.namespace import namespace_of
from csstdask.arrays.quantisation import ROUNDING_SIGMA, quantisation_step

#: Clipping limit about the median [standard deviation].
CLIP_SIGMA = 3.0
#: Largest number of clipping iterations.
_ITERATIONS = 8
#: Standard deviation of a unit Gaussian clipped at +-3 sigma.
_CLIPPED_SIGMA = 0.98658
#: Number of bins of the histogram of a box.
_BINS = 8192
#: Half width of the histogram [standard deviation of the sample].
_HALF_WIDTH = 8.0
#: Pixels of the sample that sets the range of the histogram.
_SAMPLE = 512
#: Standard deviation below which the bins are too coarse [bin].
_MIN_SIGMA_BINS = 100
#: Rounding explains a box without noise if the noise of rounding is at least this fraction of the typical noise.
_MIN_ROUNDING_FRACTION = 0.1
#: Smallest fraction of good pixels of a box that is used.
_MIN_GOOD_FRACTION = 0.05


def _edges(length: int, boxes: int) -> list[int]:
    return [round(index * length / boxes) for index in range(boxes + 1)]


def estimate_background(data: Any, mask: Any = None, *, box: int = 128) -> Mesh:
    """Estimate background and noise on a mesh of boxes.

    Parameters
    ----------
    data : array (y, x)
        Frame, in any unit; pixels that are not finite are ignored.
    mask : bool array (y, x), optional
        True = ignore.
    box : int
        Approximate size of a box [pixel].

    Returns
    -------
    Mesh
    """
    xp = namespace_of(data)
    shape = (int(data.shape[0]), int(data.shape[1]))
    rows, columns = mesh_shape(shape, box)
    level = xp.full((rows, columns), np.nan, dtype=np.float32)
    sigma = xp.full((rows, columns), np.nan, dtype=np.float32)
    y_edges, x_edges = _edges(shape[0], rows), _edges(shape[1], columns)
    clipped = _clip_histogram if xp is np else _clip_sorted
    for row in range(rows):
        for column in range(columns):
            window = (slice(y_edges[row], y_edges[row + 1]), slice(x_edges[column], x_edges[column + 1]))
            values = data[window]
            good = xp.isfinite(values)
            if mask is not None:
                good &= ~mask[window]
            values = values[good]
            area = good.size
            if values.size >= max(5, _MIN_GOOD_FRACTION * area):
                median, mean, spread = clipped(xp, values)
                mode = 2.5 * median - 1.5 * mean if abs(mean - median) < 0.3 * spread else median
                level[row, column], sigma[row, column] = mode, spread / _CLIPPED_SIGMA
    floor = np.float32(ROUNDING_SIGMA * quantisation_step(data, mask))
    sigma = _with_floor(xp, sigma, floor)
    return Mesh(_fill_and_smooth(xp, level, _pad_with_slope), _fill_and_smooth(xp, sigma, _pad_with_edge), shape)


def _with_floor(xp: Any, sigma: Any, floor: np.float32) -> Any:
    """Return the noise of boxes, at least that of rounding; NaN where rounding cannot explain that it is 0."""
    measured = sigma[sigma > 0]
    usual = float(xp.median(measured)) if measured.size else 0.0
    silent = sigma == 0
    if usual and floor < _MIN_ROUNDING_FRACTION * usual:
        # Such a box holds padding or a constant: its noise is unknown and must not spread to neighbours.
        return xp.where(silent, np.nan, sigma)
    return xp.where(silent, floor, xp.maximum(sigma, floor))  # NaN stay NaN


def _clip_sorted(xp: Any, values: Any) -> tuple[Any, Any, Any]:
    """Return median, mean and standard deviation after clipping about the median, by sorting."""
    ordered = xp.sort(values.astype(np.float64))
    low, high = 0, int(ordered.size)
    for _ in range(_ITERATIONS):
        kept = ordered[low:high]
        median = 0.5 * (kept[(kept.size - 1) // 2] + kept[kept.size // 2])
        spread = kept.std()
        new_low, new_high = (
            int(edge)
            for edge in xp.searchsorted(
                ordered,
                xp.stack([xp.asarray(median - CLIP_SIGMA * spread), xp.asarray(median + CLIP_SIGMA * spread)]),
            )
        )
        new_low, new_high = max(low, new_low), min(high, max(new_high, new_low + 1))
        if spread == 0 or (new_low, new_high) == (low, high):
            break
        low, high = new_low, new_high
    kept = ordered[low:high]
    return 0.5 * (kept[(kept.size - 1) // 2] + kept[kept.size // 2]), kept.mean(), kept.std()


def _clip_histogram(xp: Any, values: Any) -> tuple[float, float, float]:
    """Return median, mean and standard deviation after clipping, from a histogram if there are enough pixels."""
    # An odd stride: one that divides a row would always sample the same columns.
    sample = np.sort(values[:: max(1, values.size // _SAMPLE) | 1].astype(np.float64))
    low, middle, high = (float(sample[int(share * (sample.size - 1))]) for share in (0.16, 0.5, 0.84))
    width = max(middle - low, high - middle)
    if values.size < 4 * _SAMPLE or width == 0:
        median, mean, spread = _clip_sorted(xp, values)
        return float(median), float(mean), float(spread)
    # Pixels outside the histogram would be clipped anyway, so they are left out from the start.
    bin_width = 2 * _HALF_WIDTH * width / _BINS
    median, mean, spread = _clip_bins(values, middle - _HALF_WIDTH * width, bin_width)
    if spread < _MIN_SIGMA_BINS * bin_width:  # most of the box is a source, and the sky is a few bins
        median, mean, spread = (float(value) for value in _clip_sorted(xp, values))
    return median, mean, spread


@numba.njit(nogil=True, cache=True)
def _clip_bins(values: npt.NDArray[Any], start: float, width: float) -> tuple[float, float, float]:
    """Clip a histogram about its median, in whole bins; each bin is represented by the mean of its pixels."""
    count = np.zeros(_BINS)
    total = np.zeros(_BINS)
    square = np.zeros(_BINS)
    for value in values:
        position = (value - start) / width
        if 0 <= position < _BINS:
            bin_ = int(position)
            above = value - start
            count[bin_] += 1
            total[bin_] += above
            square[bin_] += above * above
    low, high = 0, _BINS
    median = mean = spread = 0.0
    for _ in range(_ITERATIONS + 1):
        n, first, second = count[low:high].sum(), total[low:high].sum(), square[low:high].sum()
        mean = first / n
        spread = np.sqrt(max(0.0, second / n - mean * mean))
        reached, bin_ = 0.0, low
        while reached + count[bin_] <= n / 2:
            reached += count[bin_]
            bin_ += 1
        median = total[bin_] / count[bin_]
        new_low = max(low, int(np.floor((median - CLIP_SIGMA * spread) / width + 0.5)))
        new_high = min(high, max(new_low + 1, int(np.floor((median + CLIP_SIGMA * spread) / width + 0.5))))
        if (new_low, new_high) == (low, high):
            break
        low, high = new_low, new_high
    return median + start, mean + start, spread


def _fill_and_smooth(xp: Any, mesh: Any, pad: Callable[[Any, Any], Any]) -> Any:
    """Fill empty boxes from their neighbours, and take the 3 x 3 median over the mesh."""
    if not bool(xp.isfinite(mesh).any()):
        return mesh
    while not bool(xp.isfinite(mesh).all()):
        padded = xp.pad(mesh, 1, constant_values=np.nan)
        mesh = xp.where(xp.isfinite(mesh), mesh, _median_of_nine(xp, padded))
    return _median_of_nine(xp, pad(xp, mesh)).astype(np.float32)


def _pad_with_edge(xp: Any, mesh: Any) -> Any:
    """Pad a mesh by one box on each side with the edge values."""
    return xp.pad(mesh, 1, mode="edge")


def _pad_with_slope(xp: Any, mesh: Any) -> Any:
    """Pad a mesh by one box on each side by linear extrapolation, so that a gradient keeps its slope at the edge."""
    for axis in (0, 1):
        widths = [(1, 1) if axis == other else (0, 0) for other in (0, 1)]
        if mesh.shape[axis] > 1:
            mesh = xp.pad(mesh, widths, mode="reflect", reflect_type="odd")
        else:
            mesh = xp.pad(mesh, widths, mode="edge")
    return mesh


def _nanmedian(xp: Any, stack: Any) -> Any:
    """Return the median over the first axis, ignoring NaN; NaN without a warning where all are NaN."""
    ordered = xp.sort(stack, axis=0)  # NaN go last
    count = xp.isfinite(stack).sum(axis=0)
    lower = xp.take_along_axis(ordered, xp.maximum((count - 1) // 2, 0)[None], axis=0)[0]
    upper = xp.take_along_axis(ordered, xp.minimum(count // 2, stack.shape[0] - 1)[None], axis=0)[0]
    return xp.where(count > 0, 0.5 * (lower + upper), np.nan)


def _median_of_nine(xp: Any, padded: Any) -> Any:
    """Return the median of each box and its eight neighbours, for a mesh padded by one box."""
    rows, columns = padded.shape[0] - 2, padded.shape[1] - 2
    return _nanmedian(xp, xp.stack([padded[dy : dy + rows, dx : dx + columns] for dy in range(3) for dx in range(3)]))
