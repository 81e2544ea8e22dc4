"""Scores of cosmic-ray masks: precision and recall by pixel and by event, curves, calibration."""

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
#: Size of the blocks that are resampled [pixel], and how often.
_BLOCK, _RESAMPLES = 64, 400
_BINS = 2000
#: Logits beyond this are as good as certain.
_LARGEST_LOGIT = 20.0
_CLEAR_LOGIT = 7.0
#: Of hit pixels, what a frame may have.
_DENSITIES = (1e-4, 0.5)


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
    """One frame to detect on, and what is true of it."""

    data: Float
    """[e-]"""
    error: Float | None
    ignore: Bool
    hit: Bool
    """What a method should find."""
    faint: Bool
    """Holds some charge, too little to be asked for: found, it counts as right."""
    use: Bool
    """Where it is scored."""
    visible: Bool
    """Of `hit`: what stands above 3 sigma of its own noise."""
    charge: Float
    """Of cosmic rays [e-]."""


@dataclass(frozen=True)
class Score:
    """Precision and recall over the pixels of several frames, with 68 % intervals."""

    precision: float
    recall: float
    f1: float
    precision_interval: tuple[float, float]
    recall_interval: tuple[float, float]
    recall_visible: float
    precision_without_skirt: float
    """Neighbours of a true pixel counted neither way."""
    events_found: float
    """Share of events (8-connected parts of the truth) of which at least half of the charge is found."""


def score(cases: Sequence[DetectionCase], found: Sequence[Bool]) -> Score:
    """Score masks against the truth of their frames, pixels pooled."""
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
    """Count found, right, false, missed, visible, visible and found, false off the skirt, in blocks of pixels."""
    skirt = dilate(case.hit) & ~case.hit
    use = case.use
    right = case.hit | case.faint
    maps = (
        mask & case.hit & use,
        mask & right & use,
        mask & ~right & use,
        ~mask & case.hit & use,
        case.visible & use,
        mask & case.visible & use,
        mask & ~right & ~skirt & use,
    )
    rows, columns = (np.arange(0, length, _BLOCK) for length in mask.shape)
    summed = [np.add.reduceat(np.add.reduceat(part.astype(np.int64), rows, 0), columns, 1) for part in maps]
    return np.stack(summed, axis=-1).reshape(-1, len(maps))


def _rates(counts: npt.NDArray[np.int64]) -> tuple[float, float, float, float]:
    found, right, false, missed, visible, seen, off_skirt = (float(value) for value in counts)
    return (
        right / max(1.0, right + false),
        found / max(1.0, found + missed),
        seen / max(1.0, visible),
        right / max(1.0, right + off_skirt),
    )


def _events_found(case: DetectionCase, mask: Bool) -> tuple[int, int]:
    scored = case.hit & case.use
    parts, n = label_components(scored)
    charge = np.bincount(parts[scored], weights=case.charge[scored], minlength=n + 1)[1:]
    found = np.bincount(parts[scored & mask], weights=case.charge[scored & mask], minlength=n + 1)[1:]
    return int((found >= 0.5 * charge).sum()), n


def precision_and_recall(cases: Sequence[DetectionCase], found: Iterable[Bool]) -> tuple[float, float]:
    """Return precision and recall, pixels pooled."""
    counts = sum(_block_counts(case, mask).sum(axis=0) for case, mask in zip(cases, found, strict=True))
    precision, recall, _, _ = _rates(np.asarray(counts))
    return precision, recall


def f1_score(cases: Sequence[DetectionCase], found: Iterable[Bool]) -> float:
    """Return the harmonic mean of precision and recall, pixels pooled."""
    precision, recall = precision_and_recall(cases, found)
    return 2 * precision * recall / max(1e-9, precision + recall)


def precision_recall(
    logit: npt.NDArray[np.float32], hit: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return thresholds on the logit, falling, with precision and recall at each."""
    edges = np.linspace(-_LARGEST_LOGIT, _LARGEST_LOGIT, _BINS + 1)
    inside = np.clip(logit, -_LARGEST_LOGIT, _LARGEST_LOGIT)
    true = np.histogram(inside[hit], edges)[0][::-1].cumsum()
    false = np.histogram(inside[~hit], edges)[0][::-1].cumsum()
    precision = true / np.maximum(1, true + false)
    return edges[:-1][::-1], precision, true / max(1, int(hit.sum()))


def average_precision(precision: npt.NDArray[np.float64], recall: npt.NDArray[np.float64]) -> float:
    """Return the area under a precision-recall curve."""
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def fit_calibration(
    logit: npt.NDArray[np.float32],
    hit: npt.NDArray[np.bool_],
    density: npt.NDArray[np.float32] | None = None,
    steps: int = 50,
) -> dict[str, float]:
    """Return what makes of a network's output the logit of a frequency of hits (Platt 1999).

    ``scale * logit + offset + prior * (logit(density) - logit(reference))``: how much a frame's density of cosmic
    rays moves a probability is fitted too, for a network that sees part of the frame knows part of it already. The
    reference is the examples' mean density. Newton's method on the logistic likelihood of the pixels that are in
    doubt; where all is clear there is nothing to fit.

    Parameters
    ----------
    logit : float32 array (n,)
    hit : bool array (n,)
    density : float32 array (n,), optional
        Share of hit pixels in the frame that each pixel is of.

    Returns
    -------
    dict
        ``scale`` and ``offset``; with `density` also ``prior`` and ``density``, the reference.
    """
    doubtful = np.abs(logit) < _CLEAR_LOGIT
    x, y = logit[doubtful].astype(np.float64), hit[doubtful].astype(np.float64)
    columns = [x, np.ones_like(x)]
    reference = 0.0
    if density is not None:
        inside = np.clip(density, *_DENSITIES)
        reference = float(inside.mean())
        columns.append(log_odds(inside[doubtful].astype(np.float64)) - float(log_odds(reference)))
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
    """Return log odds."""
    return np.log(probability / (1 - probability))
