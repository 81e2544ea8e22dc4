"""Weights and cards: round trips, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from csstdask.core.errors import InputError
from csstdask.nn.blocks import UNet
from csstdask.nn.card import ModelCard, copy_model, read_card, write_card
from csstdask.nn.device import autocast, choose_device
from csstdask.nn.weights import load_network, save_weights


def build(channels):
    return UNet(inputs=1, outputs=1, channels=channels)


@pytest.fixture
def card(tmp_path):
    torch.manual_seed(3)
    sha256 = save_weights(build((4, 4)), tmp_path / "small.safetensors")
    card = ModelCard("small", "cosmicray", "1", "a test", "BSD-3-Clause", "nothing", sha256, 0.5)
    card = replace(card, architecture={"channels": [4, 4]}, calibration={"scale": 1.0, "offset": 0.0})
    write_card(tmp_path / "small.json", replace(card, normalisation={"channels": ["counts"], "box": 64}))
    return read_card(tmp_path / "small.json")


def test_round_trip(card):
    torch.manual_seed(3)
    same = build((4, 4)).eval()
    frame = torch.randn(1, 1, 16, 16)
    loaded = load_network(card, build, torch.device("cpu"))
    with torch.no_grad():
        assert torch.allclose(loaded(frame), same(frame), atol=1e-6)
    assert load_network(card, build, torch.device("cpu")) is loaded  # once a process


def test_other_weights_are_refused(card):
    card.weights.write_bytes(b"not weights")
    with pytest.raises(InputError, match="SHA-256"):
        load_network(card, build, torch.device("cpu"))


def test_another_architecture_is_refused(card):
    with pytest.raises(InputError, match="other weights"):
        load_network(replace(card, architecture={"channels": [8, 4]}), build, torch.device("cpu"))


def test_missing_weights_and_invalid_cards_raise(card, tmp_path):
    card.weights.unlink()
    with pytest.raises(InputError, match=r"no such file; wanted the weights of small\.json"):
        read_card(tmp_path / "small.json")
    (tmp_path / "small.json").write_text(json.dumps({"name": "x"}))
    with pytest.raises(InputError, match="no readable model card"):
        read_card(tmp_path / "small.json")


@pytest.mark.parametrize(("part", "reason"), [("calibration", "offset, scale"), ("threshold", "a threshold")])
def test_a_network_needs_its_numbers(card, tmp_path, part, reason):
    fields = json.loads((tmp_path / "small.json").read_text())
    (tmp_path / "small.json").write_text(json.dumps(fields | {part: None if part == "threshold" else {}}))
    with pytest.raises(InputError, match=f"a card without {reason}"):
        read_card(tmp_path / "small.json")
    (tmp_path / "small.json").write_text("[1]")
    with pytest.raises(InputError, match="no readable model card"):
        read_card(tmp_path / "small.json")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"calibration": {"scale": "steep", "offset": 0.0}}, r"calibration\.scale"),
        ({"threshold": "high"}, "threshold"),
        ({"valid": {"detectors": ["7"]}}, r"detectors\.0"),
        ({"valid": {"until": "tomorrow"}}, "until"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(card, tmp_path, change, reason):
    fields = json.loads((tmp_path / "small.json").read_text())
    (tmp_path / "small.json").write_text(json.dumps(fields | change))
    with pytest.raises(InputError, match=rf"small\.json: .*{reason}.*wanted a card that `csstdask train` wrote"):
        read_card(tmp_path / "small.json")


def test_a_copy_is_named_by_its_identity(card, tmp_path):
    copy = copy_model(card, tmp_path / "small.json", tmp_path / "kept")
    assert read_card(copy).identity == card.identity
    assert card.identity[:16] in copy.name
    assert copy_model(card, tmp_path / "small.json", tmp_path / "kept") == copy


def test_identity_depends_on_numbers_only(card):
    assert replace(card, metrics={"recall": 1.0}, trained_on="x").identity == card.identity
    assert replace(card, calibration={"scale": 2.0, "offset": 0.0}).identity != card.identity
    assert replace(card, sha256="0").identity != card.identity


def test_devices_and_precisions():
    assert choose_device() == torch.device("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="cuda"):
            choose_device("cuda")
    with pytest.raises(ValueError, match="float16"):
        autocast(torch.device("cpu"), "float16")
