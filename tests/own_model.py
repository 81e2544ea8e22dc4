"""A user's own network for tests: untrained, small, and sensitive to everything it can see."""

from __future__ import annotations

from pathlib import Path

import torch

from csstdask.cosmicray.unet import CHANNELS, build_unet
from csstdask.nn.card import ModelCard, write_card
from csstdask.nn.int8 import measure_ranges
from csstdask.nn.weights import save_weights

ARCHITECTURE = {"channels": [8, 12, 16], "stem": 2}


def write_own_model(folder: Path, seed: int = 7) -> Path:
    """Write card and weights; return the card's path."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    network = build_unet(**ARCHITECTURE)
    for weight in network.parameters():
        weight.data *= 2
    sha256 = save_weights(network, folder / "own.safetensors")
    network.eval().fuse()
    ranges = measure_ranges(network, [(torch.randn(1, 3, 64, 64) * 1.5 + torch.rand(1, 3, 64, 64) ** 8 * 8,)])
    card = ModelCard(
        "own", "cosmicray", "1", "untrained", "BSD-3-Clause", "nothing", sha256, 0.5,
        architecture=ARCHITECTURE, normalisation={"channels": list(CHANNELS), "box": 64},
        calibration={"scale": 1.0, "offset": 2.0}, ranges=ranges,
    )  # fmt: skip
    write_card(folder / "own.json", card)
    return folder / "own.json"
