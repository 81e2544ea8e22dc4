"""The weights that a training goes on from: those of one network, or of two that are set beside each other.

A network that looks closely (``close``) may begin as two that were trained apart: what it says of a pixel is then the
mean of their calibrated logits. Two that miss different pixels miss fewer together, and learn on from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from safetensors.torch import load_file
from torch import Tensor

from csstdask.core.errors import InputError
from csstdask.nn.blocks import UNet
from csstdask.nn.card import ModelCard
from csstdask.nn.models import find_card
from csstdask.training.cosmicray.config import DetectionTrainingConfig

_WANTED = "a network of the same architecture; `fine` and `close` may be absent from it"
_WANTED_CLOSE = "a network without a stem whose channels are `close`"
#: Where an image enters, of which the close look may have seen fewer channels than the rest.
_ENTRANCE = "down.0.convolutions.0.weight"
#: Where the close look's channels come after all others.
_JOINT = "fine.settle.convolutions.0.weight"


def load_initial_weights(config: DetectionTrainingConfig, network: UNet) -> None:
    """Give a network the weights that its training's settings say it goes on from, if they say so.

    What the card of `start_from` has not stays as it is.

    Raises
    ------
    InputError
        If a card has no weights, those of another architecture or for other channels, or if `close_from` would take
        the place of a close look that the card of `start_from` has.
    """
    if config.start_from is None:
        return
    card = find_card("cosmicray", config.start_from)
    weights = _weights_of(card, "start_from", _WANTED)
    if card.normalisation["channels"] != list(config.inputs):
        raise InputError("start_from", f"{card.name}, which sees {card.normalisation['channels']}", f"{config.inputs}")
    own = network.state_dict()
    _check(weights, own, card, _WANTED)
    if config.close_from is not None and network.close is not None:
        if card.architecture.get("close"):
            raise InputError("close_from", f"{card.name}, which has a close look already", "start_from alone")
        close_card = find_card("cosmicray", config.close_from)
        close = _weights_of(close_card, "close_from", _WANTED_CLOSE)
        close = _of_channels(close, close_card, config.inputs)
        _check(close, network.close.state_dict(), close_card, _WANTED_CLOSE)
        _take_half(weights, card, ("head", "fine.head"))
        _take_half(close, close_card, ("head",))
        weights |= {f"close.{name}": value for name, value in close.items()}
    with torch.no_grad():
        for name, value in weights.items():
            inputs = (slice(None), slice(value.shape[1])) if name == _JOINT else ...
            own[name][inputs] = value.to(own[name])


def average_with(earlier: Mapping[str, Tensor], network: UNet, share: float) -> None:
    """Mix earlier weights into those that a network has come to.

    What they average to keeps most of what was gained on the training's own frames, and what the earlier network could
    do elsewhere (Wortsman et al. 2022, arXiv:2109.01903).
    """
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                value.lerp_(earlier[name].to(value), share)


def _weights_of(card: ModelCard, key: str, wanted: str) -> dict[str, Tensor]:
    if card.weights is None:
        raise InputError(key, f"{card.name}, a method without weights", wanted)
    return dict(load_file(card.weights))


def _of_channels(weights: dict[str, Tensor], card: ModelCard, inputs: Sequence[str]) -> dict[str, Tensor]:
    """Return weights for all channels of an image: what the card's network did not see counts for nothing."""
    names = card.normalisation["channels"]
    if not set(names) <= set(inputs):
        raise InputError(
            "close_from", f"{card.name}, which sees {names}", f"a network that sees some of {list(inputs)}"
        )
    if card.architecture.get("stem", 1) != 1:
        raise InputError("close_from", f"{card.name}, behind a stem", _WANTED_CLOSE)
    if _ENTRANCE not in weights or weights[_ENTRANCE].shape[1] != len(names):
        raise InputError(card.weights or card.name, f"no {_ENTRANCE} for {len(names)} channels", _WANTED_CLOSE)
    narrow = weights[_ENTRANCE]
    wide = narrow.new_zeros(narrow.shape[0], len(inputs), *narrow.shape[2:])
    wide[:, [list(inputs).index(name) for name in names]] = narrow
    return weights | {_ENTRANCE: wide}


def _take_half(weights: dict[str, Tensor], card: ModelCard, heads: Sequence[str]) -> None:
    """Let heads say half of the calibrated logit, in place."""
    scale, offset = card.calibration["scale"], card.calibration["offset"]
    for head in heads:
        for name in (f"{head}.weight", f"{head}.bias"):
            if name in weights:
                weights[name] = 0.5 * scale * weights[name]
    weights[f"{heads[0]}.bias"] = weights[f"{heads[0]}.bias"] + 0.5 * offset


def _check(weights: dict[str, Tensor], own: dict[str, Tensor], card: ModelCard, wanted: str) -> None:
    """Raise InputError unless weights fit into a network's own, and are all that it cannot do without."""
    for name, value in weights.items():
        if name not in own or not _fits(name, value, own[name]):
            there = "no such layer" if name not in own else f"{tuple(own[name].shape)}"
            raise InputError(card.weights or card.name, f"{name} {tuple(value.shape)} for {there}", wanted)
    optional = ("fine.", "close.")
    if absent := [name for name in own if name not in weights and not name.startswith(optional)]:
        raise InputError(card.weights or card.name, f"no {absent[0]}", wanted)


def _fits(name: str, value: Tensor, own: Tensor) -> bool:
    if name != _JOINT:
        return value.shape == own.shape
    return value.shape[0] == own.shape[0] and value.shape[1] <= own.shape[1] and value.shape[2:] == own.shape[2:]
