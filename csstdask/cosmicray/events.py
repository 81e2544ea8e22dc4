"""Events: what a cosmic-ray mask and the charge under it say about each cosmic ray.

An event is a set of hit pixels that touch, corners included. Its shape is that of its charge: centroid and second
moments are weighted with the pixels' charge, so that a bright track's skirt does not make it wide. Along the axis of
the largest second moment a parabola tells how far an event bends. All sums are taken for all events at once, for a
detector holds 200,000 of them.

Cosmic rays that cross count as one event.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.morphology import label_components

Bool = npt.NDArray[np.bool_]
Float = npt.NDArray[np.float64]

KINDS = ("point", "track", "worm")
#: What a pixel's own size adds to a second moment [pixel^2].
_PIXEL = 1 / 12
#: A track is longer than this [pixel], and this much longer than it is wide once its bend is taken off.
_SHORTEST_TRACK, _LEAST_ELONGATION = 3.0, 2.0
#: A worm bends by this [pixel], by this share of its length, and by so many sigma; fewer pixels always lie on a curve.
_LEAST_BEND, _LEAST_BEND_SHARE, _BEND_SIGMA, _LEAST_PIXELS = 0.7, 0.06, 4.0, 6
#: No bend is measured along an axis that is shorter than a pixel [pixel^4].
_LEAST_SPREAD = 1e-3


def measure_events(
    hit: Bool, height: npt.NDArray[Any], variance: npt.NDArray[Any], *, source: Bool | None = None
) -> dict[str, npt.NDArray[Any]]:
    r"""Measure each cosmic ray of a mask.

    Parameters
    ----------
    hit : bool array (y, x)
        Pixels that cosmic rays have hit.
    height : float array (y, x)
        Data less what the pixel would have held without a cosmic ray [e-]; read in hit pixels alone.
    variance : float array (y, x)
        Of that difference [e-^2]. Where it is not finite nobody knows the height: the pixel counts in ``n_pixels``
        and in what an event touches, and in nothing else.
    source : bool array (y, x), optional
        Pixels of stars and galaxies.

    Returns
    -------
    dict of arrays (n,)
        Sorted by y, then x, of the centroid.

        ``id`` : int32, from 0.
        ``x``, ``y`` : centroid of the positive charge [pixel], zero-based; of the pixels where no charge is known.
        ``n_pixels`` : int32.
        ``charge``, ``charge_err`` : sum and its 1 sigma [e-]; NaN where no pixel's height is known.
        ``peak`` : of the highest pixel [e-].
        ``length``, ``width`` : of an even line with the second moment along the longest axis, and across it:
        :math:`\sqrt{12 (\lambda - 1/12)}`, 1/12 being a pixel's own [pixel]. A worm's bend counts in its width.
        ``angle`` : of the longest axis, from +x towards +y [deg], in [0, 180).
        ``kind`` : str, ``track`` if longer than 3 pixels and twice as long as wide about a parabola along the axis;
        ``worm`` if moreover the parabola's sagitta is above 0.7 pixel, 6 % of the length and 4 sigma; else ``point``.
        ``touches_source``, ``touches_edge`` : bool, whether any pixel lies on a source, or on the frame's edge.

    Notes
    -----
    ``charge_err`` takes the pixels' errors as independent. Where repairs share donors they are not, and it is low
    for large events.

    A frame's edge cuts tracks: lengths of events that touch it are lower limits.
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
    shape = _shapes(event, x, y, above, n)
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


def _shapes(
    event: npt.NDArray[Any], x: npt.NDArray[Any], y: npt.NDArray[Any], above: Float, n: int
) -> dict[str, npt.NDArray[Any]]:
    """Return centroid, axes, and the parabola along the longest axis, of each event."""
    weight = np.maximum(above, 0.0)
    # Where no pixel holds known, positive charge, all of them count alike.
    weight = np.where(np.bincount(event, weight, n)[event] > 0, weight, 1.0)
    weight /= np.bincount(event, weight, n)[event]

    def mean(values: Float) -> Float:
        return np.asarray(np.bincount(event, weight * values, n), dtype=np.float64)

    # From a pixel of the event: sums of small numbers, not differences of large ones.
    first = np.zeros((2, n))
    first[:, event] = x, y
    dx, dy = x - first[0, event], y - first[1, event]
    x_mean, y_mean = mean(dx), mean(dy)
    dx, dy = dx - x_mean[event], dy - y_mean[event]
    xx, xy, yy = mean(dx * dx), mean(dx * dy), mean(dy * dy)
    angle = 0.5 * np.arctan2(2 * xy, xx - yy)
    cos, sin = np.cos(angle)[event], np.sin(angle)[event]
    along, aside = dx * cos + dy * sin, dy * cos - dx * sin
    spread = np.hypot(0.5 * (xx - yy), xy)
    large, small = 0.5 * (xx + yy) + spread, np.maximum(0.5 * (xx + yy) - spread, 0.0)
    length, width = _line(large), _line(small)
    # On its axes an event has neither a mean nor a slope: what is left of u^2 beside 1 and u gives the curvature.
    third, fourth = mean(along**3), mean(along**4)
    curved = np.maximum(fourth - large**2 - third**2 / np.maximum(large, _PIXEL), 0.0)
    bends = curved > _LEAST_SPREAD
    curvature = np.where(bends, mean(aside * along**2) / np.where(bends, curved, 1.0), 0.0)
    residual = np.maximum(small - curvature**2 * curved, 0.0)
    return {
        "x": first[0] + x_mean,
        "y": first[1] + y_mean,
        "angle": np.degrees(angle) % 180 % 180,  # twice: -1e-15 % 180 is 180
        "length": length,
        "width": width,
        "sagitta": np.abs(curvature) * length**2 / 4,
        "sagitta_variance": length**4 / 16 * np.maximum(residual, _PIXEL) / np.where(bends, curved, np.inf),
        "width_on_curve": _line(residual),
    }


def _line(moment: Float) -> Float:
    """Return how long an even line with this second moment is [pixel]."""
    return np.sqrt(12 * np.maximum(moment - _PIXEL, 0.0))


def _kinds(shape: dict[str, npt.NDArray[Any]], n_pixels: npt.NDArray[Any]) -> npt.NDArray[np.object_]:
    length, sagitta = shape["length"], shape["sagitta"]
    track = (length > _SHORTEST_TRACK) & (length > _LEAST_ELONGATION * shape["width_on_curve"])
    error = np.sqrt(shape["sagitta_variance"] / np.maximum(1, n_pixels))
    worm = track & (sagitta > np.maximum(_LEAST_BEND, _LEAST_BEND_SHARE * length)) & (n_pixels >= _LEAST_PIXELS)
    worm &= sagitta > _BEND_SIGMA * error
    return np.array(KINDS, dtype=object)[track.astype(int) + worm]
