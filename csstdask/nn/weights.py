"""Weights of networks: safetensors that are checked against the model card and loaded once per process.

Workers receive a path and a SHA-256, never an array. The first unit that needs a network loads it; all later ones, on
any thread, share it. Nothing is unpickled.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from csstdask.core.atomic_io import sha256_file, write_atomic
from csstdask.core.errors import InputError
from csstdask.nn.blocks import UNet
from csstdask.nn.card import ModelCard
from csstdask.nn.device import check_precision
from csstdask.nn.int8 import Int8UNet
from csstdask.nn.precision import Precision

Network = TypeVar("Network", bound=nn.Module)


@runtime_checkable
class Fusable(Protocol):
    """A network whose batch normalisation can be fused into its convolutions."""

    def fuse(self) -> None:
        """Fuse the batch normalisation into the convolutions."""


_LOADED: dict[tuple[str, ...], nn.Module] = {}
_LOCK = threading.Lock()


def save_weights(network: nn.Module, path: Path) -> str:
    """Write the weights of a network and return their SHA-256."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write_atomic(path, save(tensors))
    return sha256_file(path)


def load_network(
    card: ModelCard, build: Callable[..., Network], device: torch.device, precision: Precision = "float32"
) -> Network:
    """Return the network of a card on a device, ready for inference, with fused batch normalisation.

    Parameters
    ----------
    card : ModelCard
        Card of the network.
    build : callable
        Builds the network from the architecture of the card.
    device : torch.device
        Device for the network.
    precision : str
        Arithmetic of the network.

    Raises
    ------
    ValueError
        If the device does not support the precision.
    InputError
        If the weights do not belong to the card or its architecture, or if int8 is requested and the card has no
        ranges of the outputs of the layers.
    """
    check_precision(device, precision)
    if card.weights is None:
        raise InputError(card.name, "a method without weights", "a network")
    key = (str(card.weights), card.sha256, str(device), precision, str(card.ranges) if precision == "int8" else "")
    with _LOCK:
        if key not in _LOADED:
            _LOADED[key] = _as_precise(_load(card, card.weights, build), card, precision).to(device)
        return _LOADED[key]  # type: ignore[return-value]


def _as_precise(network: nn.Module, card: ModelCard, precision: Precision) -> nn.Module:
    if precision == "float32":
        return network
    if not isinstance(network, UNet):
        raise InputError(card.name, f"a {type(network).__name__} in {precision}", "float32")
    if precision == "int8":
        return Int8UNet(network, card.ranges)
    network.lower(torch.bfloat16)
    return network


def _load(card: ModelCard, path: Path, build: Callable[..., Network]) -> Network:
    found = sha256_file(path)
    if found != card.sha256:
        raise InputError(path, f"SHA-256 {found[:12]}", f"{card.sha256[:12]}, as {card.name}'s card says")
    try:
        network = build(**card.architecture)
        network.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, TypeError) as error:
        message = " ".join(str(error).split())[:200]
        raise InputError(path, f"other weights ({message})", f"those of {card.architecture}") from None
    network.eval().requires_grad_(requires_grad=False)
    if isinstance(network, Fusable):
        network.fuse()
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
