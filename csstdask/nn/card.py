"""Model cards: what a method or network is called, where it comes from, and the settings it was judged with.

A card is a JSON file. A network's weights lie beside it as safetensors and the card holds their SHA-256; a
classical method has a card like a network has. The threshold lives in the card, never apart from the weights
it was chosen for.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from csstdask.core.atomic_io import sha256_file, write_atomic
from csstdask.core.errors import InputError

WEIGHTS_SUFFIX = ".safetensors"
#: What a network's card must say, by its task.
_NEEDS = {
    "cosmicray": {"calibration": {"scale", "offset"}, "normalisation": {"channels", "box"}},
    "inpaint": {"calibration": {"sky", "source"}, "normalisation": {"size"}},
    "psf": {"architecture": {"kind"}},
    "sed": {"architecture": {"kind"}},
    "zeropoint": {"architecture": {"kind"}},
}


@dataclass(frozen=True)
class ModelCard:
    """One model or method."""

    name: str
    task: str
    version: str
    method: str
    """In words, with its source."""
    licence: str
    trained_on: str
    sha256: str
    """Of a network's weights; of a classical method's card."""
    threshold: float | None = None
    """Probability from which a pixel counts as hit."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Of a classical method."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """Of a network: the arguments of its class."""
    normalisation: dict[str, Any] = field(default_factory=dict)
    """How a network's input channels are made."""
    calibration: dict[str, float] = field(default_factory=dict)
    """Of detection: ``scale`` and ``offset`` that turn a network's output into the logit of the probability that a
    pixel holds more charge than ``hit_above`` (1 e- where a card does not say), ``int8_offset``, added to the output in
    eight bits, whose rounding shifts it, and ``prior`` with ``density``, for other densities of cosmic rays. Of repair:
    what the variance is multiplied with, on ``sky`` and on a ``source``, and the ``correlation`` of what
    repaired pixels of a source are wrong by, beyond their own noise, 0 where a card does not say."""
    ranges: dict[str, list[float]] = field(default_factory=dict)
    """How far the outputs of a network's layers go, [lowest, highest], for inference in eight bits."""
    metrics: dict[str, Any] = field(default_factory=dict)
    valid: dict[str, Any] = field(default_factory=dict)
    """For which data it was made: ``detectors`` (ids), ``from`` and ``until`` (ISO dates, the last exclusive); what
    is absent is open."""
    expects: dict[str, Any] = field(default_factory=dict)
    """What it saw in training, for `csstdask.metrics.drift`: ``rate`` ([lowest, highest] events/cm^2/s),
    ``log_charge`` and ``log_length`` (quantiles at evenly spaced shares, from 0 to 1, of log10 of e- and pixels)."""
    weights: Path | None = None
    """Where a network's weights lie."""

    def summary(self) -> dict[str, Any]:
        """Return what ``csstdask models`` tells of it."""
        keys = ("name", "task", "version", "sha256", "licence", "trained_on", "metrics")
        return {key: getattr(self, key) for key in keys}

    @property
    def identity(self) -> str:
        """Return the SHA-256 of all that decides a result: metrics and texts may be corrected, numbers may not."""
        keys = ("name", "parameters", "architecture", "normalisation", "calibration", "ranges")
        decisive = {key: getattr(self, key) for key in keys} | {"weights": self.sha256 if self.weights else None}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def read_card(path: Path) -> ModelCard:
    """Read a model card; a network's weights are looked for beside it, and not opened.

    Raises
    ------
    InputError
        If it is no card, or the weights it speaks of are not there.
    """
    wanted = "a card that `csstdask train` wrote"
    try:
        raw = path.read_bytes()
        fields = {"sha256": hashlib.sha256(raw).hexdigest(), **json.loads(raw)}
        card = ModelCard(**fields)
        _check_valid(card.valid)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(path, f"no readable model card ({error})", wanted) from None
    if not card.architecture:
        return card
    needs = _NEEDS.get(card.task, {})
    absent = {key for part, keys in needs.items() for key in keys - set(getattr(card, part))}
    if card.task == "cosmicray" and card.threshold is None:
        absent |= {"a threshold"}
    if absent:
        raise InputError(path, f"a card without {', '.join(sorted(absent))}", wanted)
    weights = path.with_suffix(WEIGHTS_SUFFIX)
    if not weights.is_file():
        raise InputError(weights, "no such file", f"the weights of {path.name}")
    return ModelCard(**fields | {"weights": weights})


def _check_valid(valid: dict[str, Any]) -> None:
    """Raise ValueError unless a card's `valid` can be understood."""
    if unknown := set(valid) - {"detectors", "from", "until"}:
        raise ValueError(f"valid: found {', '.join(sorted(unknown))}; wanted detectors, from, until")
    if not all(isinstance(detector, int) for detector in valid.get("detectors", [])):
        raise ValueError(f"valid: found detectors {valid['detectors']}; wanted ids")
    for key in ("from", "until"):
        if key in valid:
            date.fromisoformat(valid[key])


def write_card(path: Path, card: ModelCard) -> None:
    """Write a network's card."""
    keys = (
        "name", "task", "version", "method", "licence", "trained_on", "sha256", "threshold", "architecture",
        "normalisation", "calibration", "ranges", "metrics", "valid", "expects",
    )  # fmt: skip
    text = json.dumps({key: getattr(card, key) for key in keys}, indent=2)
    write_atomic(path, f"{text}\n".encode())


def _is_whole(copy: Path, card: ModelCard) -> bool:
    """Tell whether a copy of a model is there, and is that model."""
    try:
        same = read_card(copy).identity == card.identity
        return same and (card.weights is None or sha256_file(copy.with_suffix(WEIGHTS_SUFFIX)) == card.sha256)
    except InputError:
        return False


def copy_model(card: ModelCard, path: Path, folder: Path) -> Path:
    """Copy a card and its weights into a folder, under the identity of the model; return the copy's card.

    Weights first, then the card: a card that is there has its weights. A copy that is damaged is made again.
    """
    copy = folder / f"{card.name}-{card.identity[:16]}.json"
    if copy.resolve() != path.resolve() and not _is_whole(copy, card):
        if card.weights is not None:
            write_atomic(copy.with_suffix(WEIGHTS_SUFFIX), card.weights.read_bytes())
        write_atomic(copy, path.read_bytes())
    return copy
