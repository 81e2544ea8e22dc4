"""Conversion of networks from the format of deepCR (Zhang & Bloom 2020, ApJ 889, 24).

Observatories that have trained deepCR can keep their weights: `convert` reads the tensors of a ``.pth`` file and writes
a model card with safetensors. The network then runs like any other model of csstdask, in seamless tiles and with its
threshold in the card. Both variants of deepCR are supported, with batch normalisation and with weight normalisation.
The number of channels follows from the shapes of the tensors.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from csstdask.core.atomic_io import sha256_file
from csstdask.core.errors import InputError
from csstdask.core.warnings import suppress_warnings
from csstdask.cosmicray.unet import COUNTS, STANDARDISED, build_unet
from csstdask.nn.card import WEIGHTS_SUFFIX, ModelCard, write_card
from csstdask.nn.weights import save_weights

#: Names of the double convolutions in deepCR, and in `UNet`.
_STACKS = {"inc.conv.conv": "down.0", "down1.mpconv.1.conv": "down.1", "up8.conv.conv": "up.0"}
_OTHERS = {"up8.up": "rise.0", "outc.conv": "head"}
#: Epsilon of batch normalisation.
_EPSILON = 1e-5
#: Default threshold of deepCR.
_THRESHOLD = 0.5
_WANTED = "a deepCR mask network: one pool, double convolutions (inc, down1, up8, outc)"


def convert(
    path: str | Path,
    to: str | Path,
    *,
    name: str | None = None,
    input: Literal["counts", "standardised counts"] = "counts",  # noqa: A002  the name in the card
    threshold: float = _THRESHOLD,
) -> Path:
    """Convert weights from the format of deepCR.

    Parameters
    ----------
    path : path
        State dictionary, written by ``torch.save``. Only tensors are read: a file that would run code is refused.
    to : path
        Folder for the card and the weights.
    name : str, optional
        Name of the model; by default that of the file.
    input : str
        Input of the network: ``counts`` in electrons, or ``standardised counts``, minus the mean of the frame and in
        units of its standard deviation.
    threshold : float
        Threshold of the model; by default that of deepCR.

    Returns
    -------
    Path
        Path of the card, for ``detect(..., model=...)``.

    Raises
    ------
    InputError
        If the file does not hold such a network.
    """
    source, folder = Path(path), Path(to)
    if input not in (COUNTS, STANDARDISED):
        raise InputError("input", repr(input), f"{COUNTS!r} or {STANDARDISED!r}")
    state, hidden = read_deepcr_state(source)
    architecture: dict[str, Any] = {"inputs": 1, "channels": [hidden, 2 * hidden], "merge": "concatenate"}
    network = build_unet(**architecture)
    network.load_state_dict(state)
    folder.mkdir(parents=True, exist_ok=True)
    name = name or source.stem
    sha256 = save_weights(network, folder / f"{name}{WEIGHTS_SUFFIX}")
    card = ModelCard(
        name=name,
        task="cosmicray",
        version="1",
        method="deepCR (Zhang & Bloom 2020, ApJ 889, 24), one pool",
        licence="that of its file",
        trained_on=f"converted from {source.name} (SHA-256 {sha256_file(source)[:12]})",
        sha256=sha256,
        threshold=threshold,
        architecture=architecture,
        normalisation={"channels": [input], "box": 128},
        calibration={"scale": 1.0, "offset": 0.0},
    )
    write_card(folder / f"{name}.json", card)
    return folder / f"{name}.json"


def read_deepcr_state(path: Path) -> tuple[dict[str, Tensor], int]:
    """Return a deepCR state dictionary with the names of `UNet`, and its number of channels."""
    try:
        with suppress_warnings():
            stored: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(path, "no such file", _WANTED) from None
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        found = f"no tensors that can be read safely ({str(error).splitlines()[0][:120]})"
        raise InputError(path, found, _WANTED) from None
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise InputError(path, f"a {type(stored).__name__}", _WANTED)
    tensors = {key.removeprefix("module."): value.float() for key, value in stored.items()}
    try:
        state = {f"{ours}.{kind}": tensors[f"{theirs}.{kind}"] for theirs, ours in _OTHERS.items() for kind in _KINDS}
        for theirs, ours in _STACKS.items():
            state |= _stack(tensors, theirs, ours)
    except KeyError as error:
        raise InputError(path, f"no tensor {error}", _WANTED) from None
    hidden = int(state["head.weight"].shape[1])
    wanted = build_unet(inputs=1, channels=(hidden, 2 * hidden)).state_dict()
    for key, value in wanted.items():
        if value.ndim and state[key].shape != value.shape:
            raise InputError(path, f"{key} of shape {tuple(state[key].shape)}", f"{_WANTED}, {tuple(value.shape)}")
    return state, hidden


_KINDS = ("weight", "bias")


def _stack(tensors: dict[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    """Return a double convolution, with its biases moved into the normalisation."""
    state: dict[str, Tensor] = {}
    normed = f"{theirs}.1.weight" in tensors
    for index, layer in enumerate((0, 3) if normed else (0, 2)):
        convolution, norm = f"{theirs}.{layer}", f"{theirs}.{layer + 1}"
        bias = tensors[f"{convolution}.bias"]
        if normed:
            weight = tensors[f"{convolution}.weight"]
            facts = {kind: tensors[f"{norm}.{kind}"] for kind in (*_KINDS, "running_mean", "running_var")}
            facts["running_mean"] = facts["running_mean"] - bias
        else:
            direction, length = tensors[f"{convolution}.weight_v"], tensors[f"{convolution}.weight_g"]
            weight = direction * (length / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
            one = torch.ones_like(bias)
            facts = {"weight": one, "bias": bias, "running_mean": torch.zeros_like(bias)}
            facts["running_var"] = one - _EPSILON
        state[f"{ours}.convolutions.{index}.weight"] = weight
        state |= {f"{ours}.norms.{index}.{kind}": value for kind, value in facts.items()}
        state[f"{ours}.norms.{index}.num_batches_tracked"] = torch.tensor(0)
    return state
