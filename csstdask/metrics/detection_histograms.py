"""Pixels counted by what is true of them, where they lie and how probable a method found them.

One small array a frame and method holds all that precision, recall, regions and thresholds need: frames are looked at
once and forgotten. Definitions are those of the two papers: precision counts any charge as right, recall what holds
more than 5 e- (CSST rejection paper, section 4.1); regions are the pixels that stand above k times the background's
root mean square in the clean image (deepCR assessment paper, section 5.1).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.morphology import dilate, label_components
from csstdask.metrics.detection import Bool, Float

Counts = npt.NDArray[np.int64]

#: Heights above the sky at which regions begin, in units of its root mean square.
LEVELS = (3, 5, 10, 20, 40, 80, 160)
#: What is true of a pixel: without charge and not next to any; without, next to a pixel with charge; up to what
#: training calls hit; above; above the read noise, hidden in the pixel's own noise; above three times that.
FAR, SKIRT, TRACE, FAINT, HIDDEN, VISIBLE = range(6)
_HIT_ABOVE, _ASKED_ABOVE, _VISIBLE_SIGMA = 1.0, 5.0, 3.0
#: What is hit for a network, by the charge above which it was taught so [e-].
_FIRST_HIT = {0.0: TRACE, _HIT_ABOVE: FAINT, _ASKED_ABOVE: HIDDEN}
#: Bins of the logit of a probability, and how far they go.
_BINS, _LARGEST = 240, 12.0
#: A region of fewer connected pixels is noise.
_LEAST_REGION = 3


def truth_of(charge: Float, own_noise: Float) -> npt.NDArray[np.int8]:
    """Return what is true of each pixel: `FAR` to `VISIBLE`.

    Parameters
    ----------
    charge : float32 array (y, x)
        Of cosmic rays [e-].
    own_noise : float32 array (y, x)
        1 sigma of the clean pixel [e-].
    """
    held = charge > 0
    truth = np.where(dilate(held), SKIRT, FAR).astype(np.int8)
    truth[held] = TRACE
    truth[charge > _HIT_ABOVE] = FAINT
    asked = charge > _ASKED_ABOVE
    truth[asked] = HIDDEN
    truth[asked & (charge > _VISIBLE_SIGMA * own_noise)] = VISIBLE
    return truth


def regions_of(clean: Float, sky: float, rms: float) -> npt.NDArray[np.int8]:
    """Return how many of `LEVELS` the connected region reaches that a pixel is in.

    Parameters
    ----------
    clean : float32 array (y, x)
        The frame without cosmic rays [e-].
    sky, rms : float
        Its background and the root mean square of that [e-].
    """
    level = np.zeros(clean.shape, dtype=np.int8)
    for number, k in enumerate(LEVELS, start=1):
        above = clean - sky > k * rms
        if number == 1:
            parts, _ = label_components(above)
            sizes = np.bincount(parts.ravel())
            sizes[0] = 0
            above = sizes[parts] >= _LEAST_REGION
        level[above & (level == number - 1)] = number
    return level


def tally(truth: npt.NDArray[np.int8], region: npt.NDArray[np.int8], use: Bool, probability: Float) -> Counts:
    """Count pixels: (truth, region, bin of the logit)."""
    inside = np.clip(probability[use], 1e-7, 1 - 1e-7)
    place = np.clip((np.log(inside / (1 - inside)) + _LARGEST) * (_BINS / (2 * _LARGEST)), 0, _BINS - 1)
    flat = (truth[use].astype(np.int64) * (len(LEVELS) + 1) + region[use]) * _BINS + place.astype(np.int64)
    shape = (VISIBLE + 1, len(LEVELS) + 1, _BINS)
    return np.bincount(flat, minlength=int(np.prod(shape))).reshape(shape)


def bin_of(threshold: float) -> int:
    """Return the first bin that lies above a threshold on the probability."""
    inside = min(max(threshold, 1e-7), 1 - 1e-7)
    place = (np.log(inside / (1 - inside)) + _LARGEST) * (_BINS / (2 * _LARGEST))
    return int(np.clip(np.ceil(place - 1e-6), 0, _BINS - 1))


def snapped(threshold: float) -> float:
    """Return the beginning of the first bin above a threshold: what masks and counts agree on."""
    return probability_of_bin(bin_of(threshold))


def probability_of_bin(index: int) -> float:
    """Return the probability at which a bin begins."""
    return float(1 / (1 + np.exp(_LARGEST - index * (2 * _LARGEST / _BINS))))


def probabilities() -> npt.NDArray[np.float64]:
    """Return the probability in the middle of each bin."""
    return np.asarray(1 / (1 + np.exp(_LARGEST - (np.arange(_BINS) + 0.5) * (2 * _LARGEST / _BINS))))


def rates(counts: Counts, *, level: int = 0, reweight: float = 1.0) -> dict[str, npt.NDArray[np.float64]]:
    """Return precision and recall at every threshold, of the region from a level on.

    Parameters
    ----------
    counts : int64 array (truth, region, bin)
    level : int
        0 for the whole frame, else the number of the level in `LEVELS` that the region begins with.
    reweight : float
        Factor on the pixels with charge in precision: where cosmic rays were dropped on purpose, the density of the
        field over that in the region.

    Returns
    -------
    dict of float64 arrays (bin,)
        ``precision``, ``precision_off_skirt``, ``recall``, ``recall_visible``; ``missed_visible``, a count.
    """
    inside = counts[:, level:].sum(axis=1)
    found = inside[:, ::-1].cumsum(axis=1)[:, ::-1].astype(np.float64)  # from each bin on
    right = reweight * found[TRACE:].sum(axis=0)
    false_far, false_skirt = found[FAR], found[SKIRT]
    asked, visible = found[HIDDEN:].sum(axis=0), found[VISIBLE]
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "precision": right / (right + false_far + false_skirt),
            "precision_off_skirt": right / (right + false_far),
            "recall": asked / asked[0],
            "recall_visible": visible / visible[0],
            "missed_visible": visible[0] - visible,
        }


def at(curves: dict[str, npt.NDArray[np.float64]], index: int) -> dict[str, float]:
    """Return what curves say at one threshold."""
    return {name: float(values[index]) for name, values in curves.items()}


def bin_with_precision(
    curves: dict[str, npt.NDArray[np.float64]], wanted: float, kind: str = "precision"
) -> int | None:
    """Return the lowest threshold with at least some precision; None if there is none."""
    enough = np.flatnonzero(curves[kind] >= wanted)
    return int(enough[0]) if len(enough) else None


def share_visible(counts: Counts) -> float:
    """Return which share of the pixels above 5 e- stand above three sigma of their own noise."""
    asked, visible = counts[HIDDEN:].sum(), counts[VISIBLE].sum()
    return float(visible / max(1, asked))


def reliability(counts: Counts, *, hit_above: float = 1.0, level: int = 0, bins: int = 15) -> dict[str, Any]:
    """Return how frequencies of hits follow probabilities, over pixels in doubt (0.02 < p < 0.98).

    Parameters
    ----------
    counts : int64 array (truth, region, bin)
    hit_above : float
        0, 1 or 5: the charge above which the probabilities say that a pixel is hit [e-].
    level : int
        As in `rates`.
    bins : int
        Of equal count.

    Returns
    -------
    dict
        ``ece`` (mean distance of frequency from probability, weighted by pixels), ``slope`` of frequency against
        probability, ``n``, and the points ``probability``, ``frequency``, ``count``.
    """
    if hit_above not in _FIRST_HIT:
        raise ValueError(f"hit_above: found {hit_above}; wanted one of {', '.join(map(str, _FIRST_HIT))}")
    inside = counts[:, level:].sum(axis=1)
    p = probabilities()
    doubtful = (p > 0.02) & (p < 0.98)
    total = inside.sum(axis=0)[doubtful].astype(float)
    hit = inside[_FIRST_HIT[hit_above] :].sum(axis=0)[doubtful].astype(float)
    p = p[doubtful]
    n = total.sum()
    if n < bins:
        return {"ece": None, "slope": None, "n": int(n)}
    part = np.minimum((np.cumsum(total) - total / 2) / n * bins, bins - 1).astype(int)
    weight = np.bincount(part, total, bins)
    filled = weight > 0
    mean_p = np.bincount(part, total * p, bins)[filled] / weight[filled]
    frequency = np.bincount(part, hit, bins)[filled] / weight[filled]
    weight = weight[filled]
    ece = float((np.abs(frequency - mean_p) * weight).sum() / n)
    centred = mean_p - np.average(mean_p, weights=weight)
    slope = float((weight * centred * frequency).sum() / (weight * centred**2).sum())
    points = {"probability": mean_p.tolist(), "frequency": frequency.tolist(), "count": weight.tolist()}
    return {"ece": ece, "slope": slope, "n": int(n), **points}
