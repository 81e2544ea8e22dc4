"""Count pixels by class, region and probability, and derive detection rates at any threshold.

One small array per frame and method is sufficient for precision, recall, regions and all thresholds, so frames need not
be kept. Definitions follow two papers. Precision counts any charge as true, recall the pixels above 5 e- (CSST
rejection paper, section 4.1). Regions are the pixels above k times the root mean square of the background in the clean
image (deepCR assessment paper, section 5.1).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.morphology import dilate, label_components
from csstdask.metrics.detection import RECALL_CHARGE, Bool, Float, visible_pixels

#: Numbers of pixels: (class, region level, bin of the probability).
Counts = npt.NDArray[np.int64]

#: Heights above the sky at which regions begin, in units of the root mean square of the sky.
LEVELS = (3, 5, 10, 20, 40, 80, 160)
#: Classes of pixels: without charge of a cosmic ray, and not next to a pixel with charge.
BACKGROUND = 0
#: Without charge, next to a pixel with charge.
BORDER = 1
#: At most 1 e-, the smallest charge that is a hit in training.
FAINT = 2
#: At most 5 e-, the smallest charge that counts for recall.
WEAK = 3
#: More than 5 e-, but not above 3 sigma of the pixel's noise.
HIDDEN = 4
#: More than 5 e-, and above 3 sigma of the pixel's noise.
VISIBLE = 5
#: Smallest charge that is a hit in training [e-].
_HIT_CHARGE = 1.0
#: First class that is a hit, by the charge above which a pixel was a hit in the training of a network [e-].
_FIRST_HIT_CLASS = {0.0: FAINT, _HIT_CHARGE: WEAK, RECALL_CHARGE: HIDDEN}
#: Number of bins of the logit of a probability, and largest absolute logit.
_BINS, _MAX_LOGIT = 240, 12.0
#: Probabilities are clipped to this distance from 0 and 1.
_MIN_PROBABILITY = 1e-7
#: Connected pixels above the first level that form a region; fewer are noise.
_MIN_REGION_SIZE = 3


def classify_pixels(charge: Float, noise: Float) -> npt.NDArray[np.int8]:
    """Return the class of each pixel, `BACKGROUND` to `VISIBLE`.

    Parameters
    ----------
    charge : float32 array (y, x)
        Charge of cosmic rays [e-].
    noise : float32 array (y, x)
        1 sigma of the pixel without cosmic rays [e-].
    """
    has_charge = charge > 0
    classes = np.where(dilate(has_charge), BORDER, BACKGROUND).astype(np.int8)
    classes[has_charge] = FAINT
    classes[charge > _HIT_CHARGE] = WEAK
    classes[charge > RECALL_CHARGE] = HIDDEN
    classes[visible_pixels(charge, noise)] = VISIBLE
    return classes


def label_regions(clean: Float, sky: float, rms: float) -> npt.NDArray[np.int8]:
    """Return the highest region of each pixel: 0 outside all regions, else the number of its level.

    Region n consists of the pixels above ``LEVELS[n - 1]``; single bright pixels of the sky are not a region.

    Parameters
    ----------
    clean : float32 array (y, x)
        Frame without cosmic rays [e-].
    sky, rms : float
        Background of the frame, and its root mean square [e-].
    """
    regions = np.zeros(clean.shape, dtype=np.int8)
    for number, level in enumerate(LEVELS, start=1):
        above = clean - sky > level * rms
        if number == 1:
            parts, _ = label_components(above)
            sizes = np.bincount(parts.ravel())
            sizes[0] = 0
            above = sizes[parts] >= _MIN_REGION_SIZE
        regions[above & (regions == number - 1)] = number
    return regions


def count_pixels(classes: npt.NDArray[np.int8], regions: npt.NDArray[np.int8], use: Bool, probability: Float) -> Counts:
    """Count the pixels of each class, region and bin of the probability.

    Parameters
    ----------
    classes, regions : int8 arrays (y, x)
        As `classify_pixels` and `label_regions` return them.
    use : bool array (y, x)
        Pixels that are counted.
    probability : float32 array (y, x)
        Probability that a pixel is hit.
    """
    bins = np.clip(_bin_position(probability[use]), 0, _BINS - 1).astype(np.int64)
    flat = (classes[use].astype(np.int64) * (len(LEVELS) + 1) + regions[use]) * _BINS + bins
    shape = (VISIBLE + 1, len(LEVELS) + 1, _BINS)
    return np.bincount(flat, minlength=int(np.prod(shape))).reshape(shape)


def _bin_position(probability: Any) -> Any:
    """Return the position of probabilities on the axis of bins."""
    clipped = np.clip(probability, _MIN_PROBABILITY, 1 - _MIN_PROBABILITY)
    return (np.log(clipped / (1 - clipped)) + _MAX_LOGIT) * (_BINS / (2 * _MAX_LOGIT))


def threshold_bin(threshold: float) -> int:
    """Return the first bin that lies above a threshold on the probability."""
    return int(np.clip(np.ceil(float(_bin_position(threshold)) - 1e-6), 0, _BINS - 1))


def quantise_threshold(threshold: float) -> float:
    """Return the threshold at the lower edge of the first bin above it: masks and counts then agree.

    Examples
    --------
    >>> quantise_threshold(0.5)
    0.5
    >>> round(quantise_threshold(0.51), 4)
    0.525
    """
    return bin_probability(threshold_bin(threshold))


def bin_probability(index: int) -> float:
    """Return the probability at the lower edge of a bin."""
    return float(1 / (1 + np.exp(_MAX_LOGIT - index * (2 * _MAX_LOGIT / _BINS))))


def bin_centres() -> npt.NDArray[np.float64]:
    """Return the probability at the centre of each bin."""
    return np.asarray(1 / (1 + np.exp(_MAX_LOGIT - (np.arange(_BINS) + 0.5) * (2 * _MAX_LOGIT / _BINS))))


def detection_rates(counts: Counts, *, level: int = 0, reweight: float = 1.0) -> dict[str, npt.NDArray[np.float64]]:
    """Return precision and recall as functions of the threshold.

    Parameters
    ----------
    counts : int64 array (class, region, bin)
        As `count_pixels` returns it.
    level : int
        Lowest region that is counted: 0 for the whole frame, else the number of a level.
    reweight : float
        Factor on pixels with charge in the precision. For recipes with cosmic rays on purpose on sources, it is the
        density of cosmic rays in the field over that in the region.

    Returns
    -------
    dict of float64 arrays (bin,)
        ``precision``; ``precision_off_skirt``, without pixels next to a pixel with charge; ``recall`` of pixels above
        5 e-; ``recall_visible`` of visible pixels; ``missed_visible``, a number of pixels.
    """
    inside = counts[:, level:].sum(axis=1)
    found = inside[:, ::-1].cumsum(axis=1)[:, ::-1].astype(np.float64)  # above the lower edge of each bin
    true = reweight * found[FAINT:].sum(axis=0)
    above_recall_charge, visible = found[HIDDEN:].sum(axis=0), found[VISIBLE]
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "precision": true / (true + found[BACKGROUND] + found[BORDER]),
            "precision_off_skirt": true / (true + found[BACKGROUND]),
            "recall": above_recall_charge / above_recall_charge[0],
            "recall_visible": visible / visible[0],
            "missed_visible": visible[0] - visible,
        }


def at_threshold(curves: dict[str, npt.NDArray[np.float64]], threshold: float) -> dict[str, float]:
    """Return the values of `detection_rates` at one threshold on the probability."""
    index = threshold_bin(threshold)
    return {name: float(values[index]) for name, values in curves.items()}


def threshold_at_precision(curves: dict[str, npt.NDArray[np.float64]], precision: float) -> float | None:
    """Return the lowest threshold with at least the given precision; None if there is none."""
    sufficient = np.flatnonzero(curves["precision"] >= precision)
    return bin_probability(int(sufficient[0])) if len(sufficient) else None


def visible_fraction(counts: Counts) -> float:
    """Return the fraction of the pixels above 5 e- that are visible."""
    return float(counts[VISIBLE].sum() / max(1, counts[HIDDEN:].sum()))


def reliability(counts: Counts, *, hit_threshold: float = 1.0, level: int = 0, bins: int = 15) -> dict[str, Any]:
    """Compare probabilities with the frequency of hits, for pixels with 0.02 < p < 0.98.

    Parameters
    ----------
    counts : int64 array (class, region, bin)
        As `count_pixels` returns it.
    hit_threshold : float
        0, 1 or 5: charge above which a pixel was a hit in the training of the network [e-].
    level : int
        As for `detection_rates`.
    bins : int
        Number of bins, of about equal count.

    Returns
    -------
    dict
        ``ece``, the expected calibration error (mean distance of frequency and probability, weighted by pixels);
        ``slope`` of the frequency as a function of the probability; ``n`` pixels; and the points ``probability``,
        ``frequency`` and ``count``.

    Raises
    ------
    ValueError
        If the charge is another.
    """
    if hit_threshold not in _FIRST_HIT_CLASS:
        wanted = ", ".join(map(str, _FIRST_HIT_CLASS))
        raise ValueError(f"hit_threshold: found {hit_threshold}; wanted one of {wanted}")
    inside = counts[:, level:].sum(axis=1)
    p = bin_centres()
    uncertain = (p > 0.02) & (p < 0.98)
    total = inside.sum(axis=0)[uncertain].astype(float)
    hit = inside[_FIRST_HIT_CLASS[hit_threshold] :].sum(axis=0)[uncertain].astype(float)
    p = p[uncertain]
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
