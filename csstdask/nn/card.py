"""Model cards: the name, origin, settings and measured quality of a network or a classical method.

A card is a JSON file. The weights of a network lie next to it as safetensors, and the card holds their SHA-256; a
classical method has a card without weights. The detection threshold is part of the card, because it is only valid for
the weights for which it was chosen.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import field
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, ValidationError
from pydantic.dataclasses import dataclass

from csstdask.core.atomic_io import sha256_file, write_atomic
from csstdask.core.errors import InputError

WEIGHTS_SUFFIX = ".safetensors"
_WANTED = "a card that `csstdask train` wrote"


def _iso_date(text: str) -> str:
    date.fromisoformat(text)
    return text


class Validity(BaseModel):
    """Content of a card's ``valid``: the data for which a model was made. An absent key sets no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    detectors: list[StrictInt] = Field(default_factory=list, description="detector ids")
    since: Annotated[str, AfterValidator(_iso_date)] = Field("", alias="from", description="first date, ISO")
    until: Annotated[str, AfterValidator(_iso_date)] = Field("", description="first date that is excluded, ISO")
    conditions: dict[str, tuple[float, float]] = Field(
        default_factory=dict, description="[lowest, highest] condition of a frame in the training, by name"
    )


class _Part(BaseModel):
    """Keys that a network needs in one part of its card; others are allowed."""

    model_config = ConfigDict(extra="allow")


class _DetectionCalibration(_Part):
    scale: float
    offset: float


class _DetectionInputs(_Part):
    channels: list[str]
    box: int


class _Detector(_Part):
    threshold: float
    calibration: _DetectionCalibration
    normalisation: _DetectionInputs


class _RepairCalibration(_Part):
    sky: float
    source: float


class _RepairInputs(_Part):
    size: int


class _Repairer(_Part):
    calibration: _RepairCalibration
    normalisation: _RepairInputs


class _Kind(_Part):
    kind: str


class _NetworkOfKind(_Part):
    architecture: _Kind


#: What the card of a network must hold, by its task.
_REQUIRED: dict[str, type[_Part]] = {
    "cosmicray": _Detector,
    "inpaint": _Repairer,
    "psf": _NetworkOfKind,
    "sed": _NetworkOfKind,
    "zeropoint": _NetworkOfKind,
}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ModelCard:
    """Description of one network or classical method."""

    name: str
    task: str
    version: str
    method: str
    """What the method is, in words, with its source."""
    licence: str
    trained_on: str
    sha256: str
    """SHA-256 of a network's weights, or of a classical method's card."""
    threshold: float | None = None
    """Probability from which a pixel counts as hit by a cosmic ray."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Parameters of a classical method."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """Arguments of a network's class."""
    normalisation: dict[str, Any] = field(default_factory=dict)
    """How the input channels of a network are made."""
    calibration: dict[str, Any] = field(default_factory=dict)
    """Numbers that were fitted after the training.

    *Detection*: ``scale`` and ``offset`` turn the output of a network into the logit of the probability that a pixel
    holds more charge than ``hit_above`` (1 e- by default); ``int8_offset`` corrects the shift by rounding to eight
    bits; ``prior`` and ``density`` rescale probabilities to another density of cosmic rays.

    *Repair*: factors on the variance, on the ``sky`` and on a ``source``, and the ``correlation`` between the errors of
    the repaired pixels of a source, beyond their own noise (0 by default).
    """
    ranges: dict[str, list[float]] = field(default_factory=dict)
    """[lowest, highest] output of each layer, for inference in eight bits."""
    disagreement: dict[str, float] = field(default_factory=dict)
    """Fraction of the detected pixels that ``bfloat16`` and ``int8`` change, as a ratio to those of float32."""
    metrics: dict[str, Any] = field(default_factory=dict)
    valid: dict[str, Any] = field(default_factory=dict)
    """Data for which the model was made: ``detectors`` (ids), ``from`` and ``until`` (ISO dates, the last exclusive),
    and ``conditions`` of a frame ([lowest, highest], by name). An absent key sets no limit."""
    expects: dict[str, Any] = field(default_factory=dict)
    """Statistics of the training data, for `csstdask.metrics.drift`: ``rate`` ([lowest, highest] events/cm^2/s),
    ``log_charge`` and ``log_length`` (quantiles at evenly spaced probabilities from 0 to 1, of log10 of e- and
    pixels)."""
    weights: Path | None = None
    """File with the weights of a network."""

    def summary(self) -> dict[str, Any]:
        """Return the fields that ``csstdask models`` lists."""
        keys = ("name", "task", "version", "sha256", "licence", "trained_on", "metrics")
        return {key: getattr(self, key) for key in keys}

    @property
    def identity(self) -> str:
        """Return the SHA-256 of the numbers and weights that decide a result; metrics and texts do not count."""
        keys = ("name", "parameters", "architecture", "normalisation", "calibration", "ranges")
        decisive = {key: getattr(self, key) for key in keys} | {"weights": self.sha256 if self.weights else None}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def read_card(path: Path) -> ModelCard:
    """Read a model card; weights are looked for next to it, and not opened.

    Raises
    ------
    InputError
        If the file is not a card, lacks a key that its task needs, or its weights are absent.
    """
    try:
        raw = path.read_bytes()
        fields = {"sha256": hashlib.sha256(raw).hexdigest(), **json.loads(raw)}
        card = ModelCard(**fields)
        Validity(**card.valid)
    except ValidationError as error:
        raise InputError(path, f"no readable model card ({_describe(error)})", _WANTED) from None
    except (OSError, ValueError, TypeError) as error:
        raise InputError(path, f"no readable model card ({error})", _WANTED) from None
    if not card.architecture:
        return card
    _check_network(path, card)
    weights = path.with_suffix(WEIGHTS_SUFFIX)
    if not weights.is_file():
        raise InputError(weights, "no such file", f"the weights of {path.name}")
    return ModelCard(**fields | {"weights": weights})


def _check_network(path: Path, card: ModelCard) -> None:
    """Raise InputError if the card of a network lacks what its task needs."""
    if card.task not in _REQUIRED:
        return
    parts = ("threshold", "architecture", "calibration", "normalisation")
    try:
        _REQUIRED[card.task](**{part: getattr(card, part) for part in parts})
    except ValidationError as error:
        absent = [item for item in error.errors() if item["type"] == "missing" or item["input"] is None]
        if not absent:
            raise InputError(path, f"a card with {_describe(error)}", _WANTED) from None
        names = sorted("a threshold" if item["loc"] == ("threshold",) else str(item["loc"][-1]) for item in absent)
        raise InputError(path, f"a card without {', '.join(names)}", _WANTED) from None


def _describe(error: ValidationError) -> str:
    """Return the keys that are wrong, each with the reason, in one line."""
    return "; ".join(f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors())


def write_card(path: Path, card: ModelCard) -> None:
    """Write the card of a network."""
    keys = (
        "name", "task", "version", "method", "licence", "trained_on", "sha256", "threshold", "architecture",
        "normalisation", "calibration", "ranges", "disagreement", "metrics", "valid", "expects",
    )  # fmt: skip
    text = json.dumps({key: getattr(card, key) for key in keys}, indent=2)
    write_atomic(path, f"{text}\n".encode())


def copy_model(card: ModelCard, path: Path, folder: Path) -> Path:
    """Copy a card and its weights into a folder, under the identity of the model; return the path of the new card.

    The weights are written before the card, so that a card in the folder always has its weights. A damaged copy is
    replaced.
    """
    copy = folder / f"{card.name}-{card.identity[:16]}.json"
    if copy.resolve() != path.resolve() and not _is_intact(copy, card):
        if card.weights is not None:
            write_atomic(copy.with_suffix(WEIGHTS_SUFFIX), card.weights.read_bytes())
        write_atomic(copy, path.read_bytes())
    return copy


def _is_intact(copy: Path, card: ModelCard) -> bool:
    """Return whether a copy of a model exists and holds that model."""
    try:
        same = read_card(copy).identity == card.identity
        return same and (card.weights is None or sha256_file(copy.with_suffix(WEIGHTS_SUFFIX)) == card.sha256)
    except InputError:
        return False
