"""Score cosmic-ray masks against truth: precision and recall by pixel and event, curves, calibration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.morphology import dilate, label_components

Bool = npt.NDArray[np.bool_]
Float = npt.NDArray[np.float32]

_SEED = 1999
#: Side of the blocks that are resampled for intervals [pixel], and number of bootstrap samples.
_BLOCK, _RESAMPLES = 64, 400
#: Bins of a precision-recall curve, and largest absolute logit.
_BINS, _MAX_LOGIT = 2000, 20.0
#: Pixels with a larger absolute logit are certain, and not used in the calibration.
_MAX_UNCERTAIN_LOGIT = 7.0
#: Limits of the fraction of hit pixels of a frame.
_DENSITY_LIMITS = (1e-4, 0.5)


#: Charge above which a pixel counts for recall [e-]: the read noise (CSST rejection paper, section 4.1).
RECALL_CHARGE = 5.0
#: Visible pixels stand this far above their noise [sigma].
VISIBLE_SIGMA = 3.0


def visible_pixels(charge: npt.NDArray[Any], noise: npt.NDArray[Any], min_charge: float = RECALL_CHARGE) -> Bool:
    """Return the pixels whose charge is above three sigma of their noise, and above a smallest charge.

    Parameters
    ----------
    charge : array (y, x)
        Charge of cosmic rays [e-].
    noise : array (y, x)
        1 sigma of the pixel without cosmic rays [e-].
    min_charge : float
        Smallest charge [e-].

    Examples
    --------
    >>> visible_pixels(np.array([4.0, 20.0, 40.0]), np.array([1.0, 10.0, 10.0])).tolist()
    [False, False, True]
    """
    return np.asarray((charge > min_charge) & (charge > VISIBLE_SIGMA * noise))


@dataclass(frozen=True)
class DetectionCase:
    """A frame with known cosmic rays; all arrays have the shape (y, x)."""

    data: Float
    """Pixels [e-]."""
    error: Float | None
    """1 sigma of the pixels [e-]."""
    ignore: Bool
    """Pixels that methods ignore."""
    hit: Bool
    """Pixels that a method should find."""
    faint: Bool
    """Pixels with less charge: they count as true if they are found, and not as missed otherwise."""
    use: Bool
    """Pixels that are scored."""
    visible: Bool
    """Hit pixels above 3 sigma of their noise."""
    charge: Float
    """Charge of cosmic rays [e-]."""


@dataclass(frozen=True)
class Score:
    """Scores of the pixels of several frames, with 68 % bootstrap intervals."""

    precision: float
    recall: float
    f1: float
    precision_interval: tuple[float, float]
    recall_interval: tuple[float, float]
    recall_visible: float
    precision_without_skirt: float
    """Precision without the neighbours of hit pixels."""
    events_found: float
    """Fraction of events (8-connected hit pixels) of which at least half of the charge is found."""


def score(cases: Sequence[DetectionCase], found: Sequence[Bool]) -> Score:
    """Score masks against the truth of their frames.

    The intervals are bootstrapped over blocks of 64 x 64 pixels, because neighbouring pixels are not independent.

    Parameters
    ----------
    cases : sequence of DetectionCase
        Frames with known cosmic rays.
    found : sequence of bool arrays (y, x)
        Mask of each frame.
    """
    counts = np.concatenate([_block_counts(case, mask) for case, mask in zip(cases, found, strict=True)])
    rng = np.random.default_rng(_SEED)
    draws = [counts[rng.integers(0, len(counts), len(counts))].sum(axis=0) for _ in range(_RESAMPLES)]
    intervals = np.quantile([_rates(draw)[:2] for draw in draws], [0.16, 0.84], axis=0)
    precision, recall, visible, clean = _rates(counts.sum(axis=0))
    parts = [_events_found(case, mask) for case, mask in zip(cases, found, strict=True)]
    total = max(1, sum(n for _, n in parts))
    return Score(
        precision,
        recall,
        2 * precision * recall / max(1e-9, precision + recall),
        (float(intervals[0, 0]), float(intervals[1, 0])),
        (float(intervals[0, 1]), float(intervals[1, 1])),
        visible,
        clean,
        sum(n for n, _ in parts) / total,
    )


def _block_counts(case: DetectionCase, mask: Bool) -> npt.NDArray[np.int64]:
    """Return counts (block, 7): hits found, true, false, missed, visible, visible found, false off the borders."""
    border = dilate(case.hit) & ~case.hit
    use = case.use
    has_charge = case.hit | case.faint
    maps = (
        mask & case.hit & use,
        mask & has_charge & use,
        mask & ~has_charge & use,
        ~mask & case.hit & use,
        case.visible & use,
        mask & case.visible & use,
        mask & ~has_charge & ~border & use,
    )
    rows, columns = (np.arange(0, length, _BLOCK) for length in mask.shape)
    summed = [np.add.reduceat(np.add.reduceat(part.astype(np.int64), rows, 0), columns, 1) for part in maps]
    return np.stack(summed, axis=-1).reshape(-1, len(maps))


def _rates(counts: npt.NDArray[np.int64]) -> tuple[float, float, float, float]:
    found, true, false, missed, visible, visible_found, off_border = (float(value) for value in counts)
    return (
        true / max(1.0, true + false),
        found / max(1.0, found + missed),
        visible_found / max(1.0, visible),
        true / max(1.0, true + off_border),
    )


def _events_found(case: DetectionCase, mask: Bool) -> tuple[int, int]:
    scored = case.hit & case.use
    parts, n = label_components(scored)
    charge = np.bincount(parts[scored], weights=case.charge[scored], minlength=n + 1)[1:]
    found = np.bincount(parts[scored & mask], weights=case.charge[scored & mask], minlength=n + 1)[1:]
    return int((found >= 0.5 * charge).sum()), n


def precision_and_recall(cases: Sequence[DetectionCase], found: Iterable[Bool]) -> tuple[float, float]:
    """Return precision and recall over the pixels of all frames."""
    counts = sum(_block_counts(case, mask).sum(axis=0) for case, mask in zip(cases, found, strict=True))
    precision, recall, _, _ = _rates(np.asarray(counts))
    return precision, recall


def f1_score(cases: Sequence[DetectionCase], found: Iterable[Bool]) -> float:
    """Return the F1 score, the harmonic mean of precision and recall, over the pixels of all frames."""
    precision, recall = precision_and_recall(cases, found)
    return 2 * precision * recall / max(1e-9, precision + recall)


def precision_recall(
    logit: npt.NDArray[np.float32], hit: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return a precision-recall curve.

    Parameters
    ----------
    logit : float32 array (n,)
        Output of a network.
    hit : bool array (n,)
        Truth.

    Returns
    -------
    thresholds, precision, recall : float64 arrays (bin,)
        Thresholds on the logit in descending order, and the values at each.
    """
    edges = np.linspace(-_MAX_LOGIT, _MAX_LOGIT, _BINS + 1)
    inside = np.clip(logit, -_MAX_LOGIT, _MAX_LOGIT)
    true = np.histogram(inside[hit], edges)[0][::-1].cumsum()
    false = np.histogram(inside[~hit], edges)[0][::-1].cumsum()
    precision = true / np.maximum(1, true + false)
    return edges[:-1][::-1], precision, true / max(1, int(hit.sum()))


def average_precision(precision: npt.NDArray[np.float64], recall: npt.NDArray[np.float64]) -> float:
    """Return the area under a precision-recall curve.

    Examples
    --------
    >>> average_precision(np.array([1.0, 0.5]), np.array([0.5, 1.0]))
    0.75
    """
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def fit_calibration(
    logit: npt.NDArray[np.float32],
    hit: npt.NDArray[np.bool_],
    density: npt.NDArray[np.float32] | None = None,
    steps: int = 50,
) -> dict[str, float]:
    """Fit the calibration of the logits of a network (Platt 1999).

    The calibrated logit is ``scale * logit + offset + prior * (logit(density) - logit(reference))``. The reference is
    the mean density of the examples. The weight of the density is fitted because a network that sees part of a frame
    already knows part of its density. The parameters maximise the logistic likelihood of the uncertain pixels, by
    Newton's method.

    Parameters
    ----------
    logit : float32 array (n,)
        Output of the network.
    hit : bool array (n,)
        Truth.
    density : float32 array (n,), optional
        Fraction of hit pixels in the frame of each pixel.
    steps : int
        Largest number of iterations.

    Returns
    -------
    dict
        ``scale`` and ``offset``; with `density` also ``prior`` and ``density``, the reference.
    """
    uncertain = np.abs(logit) < _MAX_UNCERTAIN_LOGIT
    x, y = logit[uncertain].astype(np.float64), hit[uncertain].astype(np.float64)
    columns = [x, np.ones_like(x)]
    reference = 0.0
    if density is not None:
        inside = np.clip(density, *_DENSITY_LIMITS)
        reference = float(inside.mean())
        columns.append(log_odds(inside[uncertain].astype(np.float64)) - float(log_odds(reference)))
    design = np.stack(columns, axis=1)
    parameters = np.eye(1, design.shape[1])[0]
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(design @ parameters, -40, 40)))
        gradient = design.T @ (y - p)
        curvature = (design * (p * (1 - p))[:, None]).T @ design
        step = np.linalg.solve(curvature + 1e-9 * np.eye(len(parameters)), gradient)
        parameters += np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-9:
            break
    names = ("scale", "offset", "prior")
    fitted = {name: float(value) for name, value in zip(names, parameters, strict=False)}
    return fitted if density is None else fitted | {"density": reference}


def log_odds(probability: Any) -> Any:
    """Return the log odds of a probability."""
    return np.log(probability / (1 - probability))
