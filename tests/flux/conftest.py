"""A small SED network with random weights, as a card."""

from __future__ import annotations

import pytest
from small_sed import SIZES, small_network

from csstdask.nn.card import ModelCard, write_card
from csstdask.nn.weights import save_weights


@pytest.fixture(scope="session")
def small_card(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "small.json"
    sha256 = save_weights(small_network(), path.with_suffix(".safetensors"))
    write_card(
        path, ModelCard("small", "sed", "1", "", "BSD-3-Clause", "", sha256, architecture={"kind": "sed", **SIZES})
    )
    return str(path)
