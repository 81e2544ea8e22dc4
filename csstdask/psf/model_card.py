"""Read the card of a PSF model: its kind, and the detectors and bands that it supports."""

from __future__ import annotations

from csstdask.core.errors import InputError
from csstdask.instrument import load_instrument
from csstdask.nn.card import ModelCard
from csstdask.nn.models import EMPIRICAL


def model_kind(card: ModelCard) -> str:
    """Return the kind of a model: ``principal``, ``psfnet``, or ``empirical``, which has no weights.

    Raises
    ------
    InputError
        If it is of another kind.
    """
    kind = str(card.architecture.get("kind", EMPIRICAL))
    if kind not in (known := ("principal", "psfnet", EMPIRICAL)):
        raise InputError(card.name, f"a model of kind {kind}", f"one of {', '.join(known)}")
    return kind


def supports_detector(card: ModelCard, detector: int) -> bool:
    """Return whether a model, of any kind, supports a detector."""
    kind = model_kind(card)
    if kind == EMPIRICAL:
        return True
    return detector in (card.architecture["detectors"] if kind == "psfnet" else bands_of(card))


def check_detector(card: ModelCard, detector: int) -> None:
    """Raise ValueError if a model of fields does not support a detector; InputError if it has no fields."""
    if model_kind(card) != EMPIRICAL:
        band_of(card, detector)


def band_of(card: ModelCard, detector: int) -> str:
    """Return the band of a detector of the model's instrument.

    Raises
    ------
    ValueError
        If there is no such detector, or the model does not support its band.
    """
    known = bands_of(card)
    if detector not in known:
        raise ValueError(f"detector: found {detector}; wanted one of {', '.join(map(str, sorted(known)))}")
    return known[detector]


def bands_of(card: ModelCard) -> dict[int, str]:
    """Return the band of each detector that a model of kind ``principal`` supports; InputError for other kinds."""
    if (kind := model_kind(card)) != "principal":
        raise InputError(card.name, f"a model of kind {kind}", "one of kind principal, which fits fields")
    instrument = load_instrument(card.architecture["instrument"])
    return {one.id: str(one.band) for one in instrument.detectors if one.band in card.architecture["bands"]}


def detector_shape(card: ModelCard) -> tuple[int, int]:
    """Return the shape (y, x) of the detectors of the model's instrument; InputError if it has none."""
    instrument = load_instrument(card.architecture["instrument"])
    if instrument.shape is None:
        raise InputError(card.name, f"{instrument.name}, whose detectors have no size", "an instrument with a shape")
    return instrument.shape
