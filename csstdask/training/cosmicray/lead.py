"""A threshold at which a network is ahead of another, detector by detector.

Noise, sky and width of stars differ between bands: a threshold may lead by much on one detector and not at all on
another. Precision and recall are those of the CSST rejection paper: whatever holds charge is right, what holds more
than 5 e- is asked for.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError
from csstdask.cosmicray.preprocess import prepare_frame
from csstdask.cosmicray.unet import hit_probability
from csstdask.datasets.labelled_units import LabelledFrame, LabelledUnits
from csstdask.nn.card import ModelCard

Rates = npt.NDArray[np.float64]

#: Thresholds that are tried, and the charge that is asked for [e-].
THRESHOLDS = np.linspace(0.02, 0.98, 193)
_ASKED = 5.0


def ahead_of(rival: ModelCard, card: ModelCard, units: LabelledUnits) -> ModelCard:
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

    Raises
    ------
    InputError
        If the units hold nothing that is asked for.
    """
    ours = _counts(card, units, THRESHOLDS)
    theirs = _counts(rival, units, np.array([rival.threshold or 0.5]))
    leads = [
        np.minimum(*(mine - other for mine, other in zip(rates(ours[one]), rates(theirs[one]), strict=True)))
        for one in ours
        if ours[one][3].any()
    ]
    if not leads:
        raise InputError(units.path, "no cosmic ray that is asked for", f"units with charge above {_ASKED:g} e-")
    smallest = np.min(leads, axis=0)
    best = int(np.argmax(smallest))
    precision, recall = (float(rate[best]) for rate in rates(np.sum(list(ours.values()), axis=0)))
    metrics = {
        "data": f"validation split of {units.path.name}, on which the threshold was chosen; any charge is right, "
        f"more than {_ASKED:g} e- is asked for",
        "precision": round(precision, 4),
        "recall": round(recall, 4),
        "smallest_lead": round(float(smallest[best]), 4),
        "ahead_of": f"{rival.name} {rival.version}, on each detector",
    }
    kept = {key: card.metrics[key] for key in ("epochs",) if key in card.metrics}
    return replace(card, threshold=float(THRESHOLDS[best]), metrics=metrics | kept)


def rates(counts: Rates) -> tuple[Rates, Rates]:
    """Return precision and recall at each threshold, of counts (4, threshold) as `count` gives them."""
    found, right, recalled, asked = counts
    return right / np.maximum(found, 1), recalled / np.maximum(asked, 1)


def count(probabilities: npt.NDArray[np.floating], frame: LabelledFrame, thresholds: Rates) -> Rates:
    """Return how many pixels are found at each threshold, rightly so, among those asked for, and how many are asked."""
    use = ~frame.ignore & ~frame.unknown
    likely, charge = probabilities[use], frame.charge[use]
    asked = charge > _ASKED
    parts = [_at_least(likely[some], thresholds) for some in (slice(None), charge > 0, asked)]
    return np.stack([*parts, np.full(len(thresholds), asked.sum(), dtype=float)])


def _at_least(values: npt.NDArray[np.floating], thresholds: Rates) -> Rates:
    return len(values) - np.searchsorted(np.sort(values), thresholds).astype(float)


def _counts(card: ModelCard, units: LabelledUnits, thresholds: Rates) -> dict[int, Rates]:
    """Return the counts of each detector."""
    total: dict[int, Rates] = {}
    for index in range(len(units)):
        frame, detector = units.read(index), units.metadata(index).detector
        view = prepare_frame(frame.data, frame.error, frame.ignore, box=card.normalisation["box"])
        total[detector] = total.get(detector, 0.0) + count(np.asarray(hit_probability(view, card)), frame, thresholds)
    return total
