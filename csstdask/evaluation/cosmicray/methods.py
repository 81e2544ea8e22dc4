"""The methods that are compared: networks by their cards, L.A.Cosmic tuned, deepCR's own published weights."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from csstdask.core.errors import InputError
from csstdask.cosmicray.deepcr import convert
from csstdask.cosmicray.detect import detect, rescale_to_rate
from csstdask.cosmicray.lacosmic import lacosmic
from csstdask.cosmicray.preprocess import prepare_frame
from csstdask.metrics.detection import Bool, DetectionCase, Float, f1_score, precision_and_recall
from csstdask.nn.device import Precision
from csstdask.nn.models import find_card

Detector = Callable[[DetectionCase], Bool]
#: Parameters that L.A.Cosmic was tuned to, by the digest of the frames it was tuned on.
Tuned = dict[str, dict[str, Any]]

_RANGES: dict[str, tuple[Any, ...]] = {
    "sigclip": (3.0, 3.75, 4.5, 5.5, 6.5, 8.0, 10.0, 13.0),
    "sigfrac": (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8),
    "objlim": (0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0),
    "sepmed": (True, False),
}
_START: dict[str, Any] = {"sigclip": 4.5, "sigfrac": 0.3, "objlim": 3.0, "sepmed": True}
#: To be raised when what L.A.Cosmic is given of a frame changes.
_NUMERICS_VERSION = 1
_FIXED = {"niter": 4, "cleantype": "meanmask", "fsmode": "median"}
_THRESHOLDS = (*(round(0.02 * step, 2) for step in range(1, 50)), 0.99)


@dataclass(frozen=True)
class Method:
    """One method, as a worker can make use of it."""

    name: str
    card: str | None = None
    """Of a network."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Of L.A.Cosmic."""
    threshold: float = 0.5
    precision: Precision = "float32"

    @property
    def hit_threshold(self) -> float:
        """Return the charge above which a pixel was a hit in the training of the network [e-]."""
        calibration = {} if self.card is None else find_card("cosmicray", self.card).calibration
        return calibration.get("hit_above", 1.0)

    def probability(self, case: DetectionCase) -> Float:
        """Return the probability of each pixel of a frame; of L.A.Cosmic 0 or 1."""
        if self.card is None:
            return lacosmic_detector(self.parameters)(case).astype(np.float32)
        found = detect(case.data, case.error, case.ignore, model=self.card, precision=self.precision)
        return np.asarray(found.probability)

    def rescaled(self, probability: Float, case: DetectionCase) -> Float | None:
        """Return probabilities for the frame's own density of cosmic rays; None of a method that knows none."""
        if self.card is None or not find_card("cosmicray", self.card).calibration.get("prior"):
            return None
        return np.asarray(rescale_to_rate(probability, find_card("cosmicray", self.card), case.ignore, "frame"))


def network_method(model: str, name: str | None = None, precision: Precision = "float32") -> Method:
    """Return a network as a method, at its card's threshold."""
    return Method(name or find_card("cosmicray", model).name, model, {}, card_threshold(model), precision)


def published_deepcr_method(folder: Path, precision: Precision = "float32") -> Method | None:
    """Return deepCR with its published weights for ACS/WFC, converted into a folder; None where it is not installed."""
    found = importlib.util.find_spec("learned_models")
    if found is None or not found.submodule_search_locations:
        return None
    weights = Path(next(iter(found.submodule_search_locations))) / "mask" / "ACS-WFC.pth"
    return network_method(
        str(convert(weights, folder, name="deepcr-acs-wfc")), "deepCR, published ACS/WFC weights", precision
    )


def network_probability(case: DetectionCase, model: str) -> Float:
    """Return a network's probabilities on one frame."""
    return np.asarray(detect(case.data, case.error, case.ignore, model=model).probability)


def lacosmic_detector(parameters: dict[str, Any]) -> Detector:
    """Return L.A.Cosmic with given parameters."""

    def find(case: DetectionCase) -> Bool:
        view = prepare_frame(case.data, case.error, case.ignore)
        return lacosmic(view, _FIXED | parameters) & ~case.ignore

    return find


def tune_lacosmic(cases: Sequence[DetectionCase], tuned: Tuned) -> dict[str, Any]:
    """Return the parameters with the best F1: each in turn over its range, until none moves.

    Parameters
    ----------
    cases : sequence of Case
    tuned : dict
        What is known already, by the frames' digest; what is found is added. Tuning takes minutes a set of frames.

    Returns
    -------
    dict
        ``sigclip``, ``sigfrac``, ``objlim`` and ``sepmed``.
    """
    digest = _digest(cases)
    if digest not in tuned:
        tuned[digest] = _tune(cases)
    return tuned[digest]


def _digest(cases: Sequence[DetectionCase]) -> str:
    """Return what decides the outcome of tuning: pixels, truth, what is tried, and whose code it is."""
    whole = hashlib.sha256(repr((_NUMERICS_VERSION, _RANGES, _START, _FIXED, version("astroscrappy"))).encode())
    for case in cases:
        for plane in (case.data, case.error, case.ignore, case.hit, case.faint, case.use):
            if plane is None:
                whole.update(b"none")
            else:
                whole.update(f"{plane.shape} {plane.dtype}".encode() + np.ascontiguousarray(plane).tobytes())
    return whole.hexdigest()


def _tune(cases: Sequence[DetectionCase]) -> dict[str, Any]:
    tried: dict[tuple[Any, ...], float] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:

        def quality(parameters: dict[str, Any]) -> float:
            key = tuple(parameters.values())
            if key not in tried:
                tried[key] = f1_score(cases, list(pool.map(lacosmic_detector(parameters), cases)))
            return tried[key]

        best, before = dict(_START), None
        while best != before:
            before = dict(best)
            for name, values in _RANGES.items():
                best = max((best | {name: value} for value in values), key=quality)
    return best


def parameters_at_limit(parameters: dict[str, Any]) -> list[str]:
    """Return the parameters whose best value is the first or last of its range: there may be better ones beyond."""
    ranges = {name: values for name, values in _RANGES.items() if len(values) > 2}
    return [name for name, values in ranges.items() if parameters[name] in {values[0], values[-1]}]


def best_threshold_against(cases: Sequence[DetectionCase], model: str, parameters: dict[str, Any]) -> float:
    """Return the threshold at which a network is most clearly better than L.A.Cosmic in precision and recall alike."""
    probabilities = [network_probability(case, model) for case in cases]
    classical = precision_and_recall(cases, [lacosmic_detector(parameters)(case) for case in cases])

    def lead(cut: float) -> float:
        ours = precision_and_recall(cases, [probability >= cut for probability in probabilities])
        return min(ours[0] - classical[0], ours[1] - classical[1])

    return max(_THRESHOLDS, key=lead)


def card_threshold(model: str) -> float:
    """Return the threshold of a network's card; InputError if there is no such network."""
    try:
        card = find_card("cosmicray", model)
    except ValueError as error:
        raise InputError("--model", str(error), "a network's name, or its card") from None
    if not card.architecture or card.threshold is None:
        raise InputError("--model", f"{card.name}, a classical method", "a network: they are compared with L.A.Cosmic")
    return card.threshold
