"""Table of cosmic-ray events: position, charge, shape and kind of each.

An event is an 8-connected set of hit pixels; cosmic rays that cross count as one. Centroid and second moments are
weighted with the charge of the pixels, so that the faint border of a bright track does not widen it. A parabola along
the axis of the largest second moment measures the curvature. All sums are computed for all events at once, because a
detector holds up to 200,000 of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.morphology import label_components

Bool = npt.NDArray[np.bool_]
Float = npt.NDArray[np.float64]

KINDS = ("point", "track", "worm")
#: Second moment of a uniform pixel [pixel^2].
_PIXEL_MOMENT = 1 / 12
#: Smallest length of a track [pixel].
_MIN_TRACK_LENGTH = 3.0
#: Smallest ratio of length and width of a track, after its curvature is removed.
_MIN_ELONGATION = 2.0
#: Smallest sagitta of a worm [pixel].
_MIN_SAGITTA = 0.7
#: Smallest sagitta of a worm, as a fraction of its length.
_MIN_SAGITTA_FRACTION = 0.06
#: Smallest significance of the sagitta of a worm.
_SAGITTA_SIGMA = 4.0
#: Smallest number of pixels of a worm: fewer always lie on some curve.
_MIN_WORM_PIXELS = 6
#: Smallest spread along the axis for a measurement of curvature [pixel^4].
_MIN_SPREAD = 1e-3


def measure_events(
    hit: Bool, height: npt.NDArray[Any], variance: npt.NDArray[Any], *, source: Bool | None = None
) -> dict[str, npt.NDArray[Any]]:
    r"""Measure each cosmic-ray event of a mask.

    Parameters
    ----------
    hit : bool array (y, x)
        Pixels that cosmic rays have hit.
    height : float array (y, x)
        Data minus the value without a cosmic ray [e-]; only used in hit pixels.
    variance : float array (y, x)
        Variance of that difference [e-^2]. A pixel whose variance is not finite has an unknown height: it only counts
        in ``n_pixels``, ``touches_source`` and ``touches_edge``.
    source : bool array (y, x), optional
        Pixels of stars and galaxies.

    Returns
    -------
    dict of arrays (n,)
        Sorted by y, then x, of the centroid.

        ``id`` : int32, from 0.
        ``x``, ``y`` : zero-based centroid of the positive charge [pixel]; of the pixels if no charge is known.
        ``n_pixels`` : int32.
        ``charge``, ``charge_err`` : sum and its 1 sigma [e-]; NaN if no height is known.
        ``peak`` : height of the highest pixel [e-].
        ``length``, ``width`` : size of a uniform line with the second moment :math:`\lambda` along and across the major
        axis, :math:`\sqrt{12 (\lambda - 1/12)}`, where 1/12 is that of a pixel [pixel]. The width of a worm includes
        its curvature.
        ``angle`` : position angle of the major axis, from +x towards +y [deg], in [0, 180).
        ``kind`` : str, ``track`` if longer than 3 pixels and twice as long as wide about a parabola along the axis;
        ``worm`` if moreover the parabola's sagitta is above 0.7 pixel, 6 % of the length and 4 sigma; else ``point``.
        ``touches_source``, ``touches_edge`` : bool, whether any pixel lies on a source, or on the edge of the frame.

    Notes
    -----
    ``charge_err`` assumes independent errors of the pixels. Repairs that share donors are correlated, so that it is too
    small for large events. The lengths of events that touch the edge of the frame are lower limits.
    """
    parts, n = label_components(hit)
    y, x = np.nonzero(hit)
    event = parts[y, x] - 1
    known = np.isfinite(variance[y, x]) & np.isfinite(height[y, x])
    above = np.where(known, height[y, x], 0.0).astype(np.float64)
    uncertain = np.where(known, variance[y, x], 0.0).astype(np.float64)
    n_pixels = np.bincount(event, minlength=n)
    nothing = np.bincount(event, known, n) == 0
    peak = np.full(n, -np.inf)
    np.maximum.at(peak, event[known], above[known])
    shape = component_shapes(event, x, y, above, n)
    table: dict[str, npt.NDArray[Any]] = {
        "x": shape["x"],
        "y": shape["y"],
        "n_pixels": n_pixels.astype(np.int32),
        "charge": np.where(nothing, np.nan, np.bincount(event, above, n)),
        "charge_err": np.where(nothing, np.nan, np.sqrt(np.bincount(event, uncertain, n))),
        "peak": np.where(nothing, np.nan, peak),
        "length": shape["length"],
        "width": shape["width"],
        "angle": shape["angle"],
        "kind": _kinds(shape, n_pixels),
        "touches_source": _touches(event, n, np.zeros(len(y), bool) if source is None else source[y, x]),
        "touches_edge": _touches(event, n, _at_edge(y, x, hit.shape)),
    }
    order = np.lexsort((table["x"], table["y"]))
    return {"id": np.arange(n, dtype=np.int32)} | {name: values[order] for name, values in table.items()}


def _touches(event: npt.NDArray[Any], n: int, marked: Bool) -> Bool:
    return np.bincount(event[marked], minlength=n) > 0


def _at_edge(y: npt.NDArray[Any], x: npt.NDArray[Any], shape: tuple[int, ...]) -> Bool:
    return (y == 0) | (x == 0) | (y == shape[0] - 1) | (x == shape[1] - 1)


def component_shapes(
    event: npt.NDArray[Any], x: npt.NDArray[Any], y: npt.NDArray[Any], above: Float, n: int
) -> dict[str, npt.NDArray[Any]]:
    """Return the centroid, the axes and the parabola along the major axis of each event."""
    weight = np.maximum(above, 0.0)
    # Without any known, positive charge all pixels have the same weight.
    weight = np.where(np.bincount(event, weight, n)[event] > 0, weight, 1.0)
    weight /= np.bincount(event, weight, n)[event]

    def mean(values: Float) -> Float:
        return np.asarray(np.bincount(event, weight * values, n), dtype=np.float64)

    # Relative to a pixel of the event, to avoid differences of large numbers.
    first = np.zeros((2, n))
    first[:, event] = x, y
    dx, dy = x - first[0, event], y - first[1, event]
    x_mean, y_mean = mean(dx), mean(dy)
    dx, dy = dx - x_mean[event], dy - y_mean[event]
    xx, xy, yy = mean(dx * dx), mean(dx * dy), mean(dy * dy)
    angle = 0.5 * np.arctan2(2 * xy, xx - yy)
    cos, sin = np.cos(angle)[event], np.sin(angle)[event]
    along, across = dx * cos + dy * sin, dy * cos - dx * sin
    spread = np.hypot(0.5 * (xx - yy), xy)
    large, small = 0.5 * (xx + yy) + spread, np.maximum(0.5 * (xx + yy) - spread, 0.0)
    length, width = _line_length(large), _line_length(small)
    # In its principal axes an event has no mean and no slope: the part of u^2 orthogonal to 1 and u is the curvature.
    third, fourth = mean(along**3), mean(along**4)
    curved = np.maximum(fourth - large**2 - third**2 / np.maximum(large, _PIXEL_MOMENT), 0.0)
    bends = curved > _MIN_SPREAD
    curvature = np.where(bends, mean(across * along**2) / np.where(bends, curved, 1.0), 0.0)
    residual = np.maximum(small - curvature**2 * curved, 0.0)
    return {
        "x": first[0] + x_mean,
        "y": first[1] + y_mean,
        "angle": np.degrees(angle) % 180 % 180,  # twice: -1e-15 % 180 is 180
        "length": length,
        "width": width,
        "sagitta": np.abs(curvature) * length**2 / 4,
        "sagitta_variance": length**4 / 16 * np.maximum(residual, _PIXEL_MOMENT) / np.where(bends, curved, np.inf),
        "width_on_curve": _line_length(residual),
    }


def _line_length(moment: Float) -> Float:
    """Return the length of a uniform line with a second moment [pixel]."""
    return np.sqrt(12 * np.maximum(moment - _PIXEL_MOMENT, 0.0))


def _kinds(shape: dict[str, npt.NDArray[Any]], n_pixels: npt.NDArray[Any]) -> npt.NDArray[np.object_]:
    length, sagitta = shape["length"], shape["sagitta"]
    track = (length > _MIN_TRACK_LENGTH) & (length > _MIN_ELONGATION * shape["width_on_curve"])
    error = np.sqrt(shape["sagitta_variance"] / np.maximum(1, n_pixels))
    worm = track & (sagitta > np.maximum(_MIN_SAGITTA, _MIN_SAGITTA_FRACTION * length)) & (n_pixels >= _MIN_WORM_PIXELS)
    worm &= sagitta > _SAGITTA_SIGMA * error
    return np.array(KINDS, dtype=object)[track.astype(int) + worm]
