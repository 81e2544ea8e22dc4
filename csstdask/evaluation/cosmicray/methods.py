"""Define the methods that are compared: networks, tuned L.A.Cosmic, and deepCR with its published weights."""

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
from csstdask.nn.models import find_card
from csstdask.nn.precision import Precision

Detector = Callable[[DetectionCase], Bool]
#: Tuned parameters of L.A.Cosmic, by the digest of the frames that they were tuned on.
Tuned = dict[str, dict[str, Any]]

#: Values of the parameters of L.A.Cosmic that tuning tries.
SEARCH_RANGES: dict[str, tuple[Any, ...]] = {
    "sigclip": (3.0, 3.75, 4.5, 5.5, 6.5, 8.0, 10.0, 13.0),
    "sigfrac": (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8),
    "objlim": (0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0),
    "sepmed": (True, False),
}
#: Parameters at which tuning starts.
_START: dict[str, Any] = {"sigclip": 4.5, "sigfrac": 0.3, "objlim": 3.0, "sepmed": True}
#: Version of the preparation of frames for L.A.Cosmic: raised when it changes, so that tuning is repeated.
_NUMERICS_VERSION = 1
#: Parameters of L.A.Cosmic that are not tuned.
_FIXED = {"niter": 4, "cleantype": "meanmask", "fsmode": "median"}
#: Thresholds that `best_threshold_against` tries.
_THRESHOLDS = (*(round(0.02 * step, 2) for step in range(1, 50)), 0.99)


@dataclass(frozen=True)
class Method:
    """A detection method in a form that is sent to workers."""

    name: str
    card: str | None = None
    """Name or path of the card of a network; None: L.A.Cosmic."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Parameters of L.A.Cosmic."""
    threshold: float = 0.5
    precision: Precision = "float32"

    @property
    def hit_threshold(self) -> float:
        """Return the charge above which a pixel was a hit in the training of the network [e-]."""
        calibration = {} if self.card is None else find_card("cosmicray", self.card).calibration
        return calibration.get("hit_above", 1.0)

    def probability(self, case: DetectionCase) -> Float:
        """Return the probability that each pixel is hit; for L.A.Cosmic 0 or 1."""
        if self.card is None:
            return lacosmic_detector(self.parameters)(case).astype(np.float32)
        found = detect(case.data, case.error, case.ignore, model=self.card, precision=self.precision)
        return np.asarray(found.probability)

    def rescaled(self, probability: Float, case: DetectionCase) -> Float | None:
        """Return probabilities for the density of cosmic rays of the frame; None if the card has no calibration."""
        if self.card is None or not find_card("cosmicray", self.card).calibration.get("prior"):
            return None
        return np.asarray(rescale_to_rate(probability, find_card("cosmicray", self.card), case.ignore, "frame"))


def network_method(model: str, name: str | None = None, precision: Precision = "float32") -> Method:
    """Return a network as a method, at the threshold of its card."""
    return Method(name or find_card("cosmicray", model).name, model, {}, card_threshold(model), precision)


def published_deepcr_method(folder: Path, precision: Precision = "float32") -> Method | None:
    """Return deepCR with its published weights for ACS/WFC, converted into a folder; None if it is not installed."""
    found = importlib.util.find_spec("learned_models")
    if found is None or not found.submodule_search_locations:
        return None
    weights = Path(next(iter(found.submodule_search_locations))) / "mask" / "ACS-WFC.pth"
    return network_method(
        str(convert(weights, folder, name="deepcr-acs-wfc")), "deepCR, published ACS/WFC weights", precision
    )


def network_probability(case: DetectionCase, model: str) -> Float:
    """Return the probabilities of a network for one frame."""
    return np.asarray(detect(case.data, case.error, case.ignore, model=model, precision="float32").probability)


def lacosmic_detector(parameters: dict[str, Any]) -> Detector:
    """Return a function that applies L.A.Cosmic with the given parameters."""

    def find(case: DetectionCase) -> Bool:
        view = prepare_frame(case.data, case.error, case.ignore)
        return lacosmic(view, _FIXED | parameters) & ~case.ignore

    return find


def tune_lacosmic(cases: Sequence[DetectionCase], tuned: Tuned) -> dict[str, Any]:
    """Return the parameters of L.A.Cosmic with the best F1 score, by coordinate descent.

    Parameters
    ----------
    cases : sequence of DetectionCase
        Frames with known cosmic rays.
    tuned : dict
        Stored parameters by the digest of the frames; new ones are added. Tuning takes minutes per set of frames.

    Returns
    -------
    dict
        ``sigclip``, ``sigfrac``, ``objlim`` and ``sepmed``.
    """
    digest = _digest(cases)
    if digest not in tuned:
        tuned[digest] = search_parameters(cases)
    return tuned[digest]


def _digest(cases: Sequence[DetectionCase]) -> str:
    """Return a digest of everything that decides the result: frames, truth, tried values, and package version."""
    whole = hashlib.sha256(repr((_NUMERICS_VERSION, SEARCH_RANGES, _START, _FIXED, version("astroscrappy"))).encode())
    for case in cases:
        for plane in (case.data, case.error, case.ignore, case.hit, case.faint, case.use):
            if plane is None:
                whole.update(b"none")
            else:
                whole.update(f"{plane.shape} {plane.dtype}".encode() + np.ascontiguousarray(plane).tobytes())
    return whole.hexdigest()


def search_parameters(cases: Sequence[DetectionCase]) -> dict[str, Any]:
    """Vary one parameter of L.A.Cosmic after the other until the F1 score does not improve."""
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
            for name, values in SEARCH_RANGES.items():
                best = max((best | {name: value} for value in values), key=quality)
    return best


def parameters_at_limit(parameters: dict[str, Any]) -> list[str]:
    """Return the parameters whose best value is at a limit of its range, beyond which there may be better ones."""
    ranges = {name: values for name, values in SEARCH_RANGES.items() if len(values) > 2}
    return [name for name, values in ranges.items() if parameters[name] in {values[0], values[-1]}]


def best_threshold_against(cases: Sequence[DetectionCase], model: str, parameters: dict[str, Any]) -> float:
    """Return the threshold at which the smaller lead over L.A.Cosmic in precision and recall is largest."""
    probabilities = [network_probability(case, model) for case in cases]
    classical = precision_and_recall(cases, [lacosmic_detector(parameters)(case) for case in cases])

    def lead(cut: float) -> float:
        ours = precision_and_recall(cases, [probability >= cut for probability in probabilities])
        return min(ours[0] - classical[0], ours[1] - classical[1])

    return max(_THRESHOLDS, key=lead)


def card_threshold(model: str) -> float:
    """Return the threshold of the card of a network; raise InputError if there is no such network."""
    try:
        card = find_card("cosmicray", model)
    except ValueError as error:
        raise InputError("--model", str(error), "the name of a network, or its card") from None
    if not card.architecture or card.threshold is None:
        raise InputError("--model", f"{card.name}, a classical method", "a network: they are compared with L.A.Cosmic")
    return card.threshold
