"""A threshold at which a network is ahead of another, detector by detector.

Noise, sky and width of stars differ between bands: a threshold may lead by much on one detector and not at all on
another. Precision and recall are those of the CSST rejection paper: whatever holds charge is right, what holds more
than 5 e- is asked for.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from csstdask.cosmicray.known import KnownFrame, KnownUnits
from csstdask.cosmicray.unet import probability
from csstdask.cosmicray.view import view_frame
from csstdask.nn.card import ModelCard

Rates = npt.NDArray[np.float64]

#: Thresholds that are tried, and the charge that is asked for [e-].
THRESHOLDS = np.linspace(0.02, 0.98, 193)
_ASKED = 5.0


def ahead_of(rival: ModelCard, card: ModelCard, units: KnownUnits) -> ModelCard:
    """Return a card with the threshold at which the smallest lead of any detector, in precision or recall, is largest.

    Parameters
    ----------
    rival : ModelCard
        Of the network to be ahead of, at its own threshold.
    card : ModelCard
    units : KnownUnits
        None that either learnt from.

    Returns
    -------
    ModelCard
        Its metrics are those of all these units, and ``smallest_lead``: negative where it is behind on some detector.
    """
    ours, theirs = (_counts(one, units) for one in (card, rival))
    at = int(np.argmin(abs(THRESHOLDS - (rival.threshold or 0.5))))
    leads = [
        np.minimum(*(mine - other[at] for mine, other in zip(rates(ours[one]), rates(theirs[one]), strict=True)))
        for one in ours
    ]
    smallest = np.min(leads, axis=0)
    best = int(np.argmax(smallest))
    precision, recall = (float(rate[best]) for rate in rates(np.sum(list(ours.values()), axis=0)))
    metrics = {
        "data": f"validation split of {units.path.name}; any charge is right, more than {_ASKED:g} e- is asked for",
        "precision": round(precision, 4),
        "recall": round(recall, 4),
        "smallest_lead": round(float(smallest[best]), 4),
        "ahead_of": f"{rival.name} {rival.version}, on each detector",
    }
    return replace(card, threshold=float(THRESHOLDS[best]), metrics=card.metrics | metrics)


def rates(counts: Rates) -> tuple[Rates, Rates]:
    """Return precision and recall at each threshold, of counts (4, threshold) as `count` gives them."""
    found, right, recalled, asked = counts
    return right / np.maximum(found, 1), recalled / np.maximum(asked, 1)


def count(probabilities: npt.NDArray[np.floating], frame: KnownFrame) -> Rates:
    """Return how many pixels are found at each threshold, rightly so, among those asked for, and how many are asked."""
    use = ~frame.ignore & ~frame.unknown
    likely, charge = probabilities[use], frame.charge[use]
    asked = charge > _ASKED
    parts = [_at_least(likely[some]) for some in (slice(None), charge > 0, asked)]
    return np.stack([*parts, np.full(len(THRESHOLDS), asked.sum(), dtype=float)])


def _at_least(values: npt.NDArray[np.floating]) -> Rates:
    return len(values) - np.searchsorted(np.sort(values), THRESHOLDS).astype(float)


def _counts(card: ModelCard, units: KnownUnits) -> dict[int, Rates]:
    """Return the counts of each detector."""
    total: dict[int, Rates] = {}
    for index in range(len(units)):
        frame, detector = units.read(index), units.facts(index).detector
        view = view_frame(frame.data, frame.error, frame.ignore, box=card.normalisation["box"])
        total[detector] = total.get(detector, 0.0) + count(np.asarray(probability(view, card)), frame)
    return total
