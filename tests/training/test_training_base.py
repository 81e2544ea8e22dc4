"""The parts that all trainings share: settings, initial weights, written models."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from csstdask.core.atomic_io import sha256_file
from csstdask.core.errors import InputError
from csstdask.nn.card import read_card
from csstdask.training.base import TrainingConfig, load_config, load_initial_weights, start_training, write_model


class SmallConfig(TrainingConfig):
    """Settings of a training of a small network."""

    task: ClassVar[str] = "sed"
    former_names: ClassVar = {"passes": "epochs"}

    name: str = "small"
    seed: int = 7
    epochs: int = 3
    learning_rate: float = 0.5
    start_from: str | None = None
    width: int = 2

    @classmethod
    def settings_of(cls, card):
        return {"width": card.architecture["width"]}


def written(folder, **settings):
    """Write a network with one weight matrix; return its card's path."""
    config = SmallConfig(**settings)
    start_training(config, folder)
    network = nn.Linear(config.width, 1)
    path = write_model(
        config,
        network,
        folder,
        method="one layer",
        trained_on="nothing",
        architecture={"kind": "linear", "width": config.width},
    )
    return path, network


def test_settings_are_read_under_their_former_names(tmp_path):
    (tmp_path / "t.toml").write_text("passes = 5\n")
    assert load_config(SmallConfig, tmp_path / "t.toml", "networks", {}).epochs == 5
    assert load_config(SmallConfig, tmp_path / "t.toml", "networks", {"width": None}).epochs == 5
    with pytest.raises(InputError, match="passes is the former name of epochs"):
        load_config(SmallConfig, tmp_path / "t.toml", "networks", {"epochs": 6})
    with pytest.raises(InputError, match="valid settings of a training of networks"):
        load_config(SmallConfig, None, "networks", {"colour": 1})


def test_the_identity_has_what_decides_the_weights():
    assert SmallConfig(name="other", threads=3, licence="MIT", version="2").identity == SmallConfig().identity
    assert SmallConfig(seed=8).identity != SmallConfig().identity


def test_the_schedule_is_made_of_the_settings():
    schedule = SmallConfig(epochs=9).schedule
    assert (schedule.epochs, schedule.learning_rate, schedule.seed) == (9, 0.5, 7)


def test_a_written_model_has_the_digest_of_its_weights(tmp_path):
    path, network = written(tmp_path / "new")
    card = read_card(path)
    assert card.sha256 == sha256_file(card.weights)
    assert torch.equal(load_file(card.weights)["weight"], network.weight)
    assert (card.name, card.task, card.version, card.licence) == ("small", "sed", "1", "BSD-3-Clause")
    again, _ = written(tmp_path / "again")
    assert read_card(again).sha256 == card.sha256  # the seed decides the initial weights
    as_bytes = write_model(
        SmallConfig(name="bytes"),
        card.weights.read_bytes(),
        tmp_path,
        method="",
        trained_on="",
        architecture={"kind": "linear"},
    )
    assert read_card(as_bytes).sha256 == card.sha256


def test_a_training_starts_from_the_weights_of_a_model(tmp_path):
    path, network = written(tmp_path, width=4)
    config = SmallConfig(start_from=str(path))
    assert config.width == 4  # the architecture is that of the model
    started = nn.Linear(config.width, 1)
    assert load_initial_weights("sed", str(path), started) == read_card(path).sha256
    assert torch.equal(started.weight, network.weight)
    assert SmallConfig(start_from=str(path), width=3).width == 3
    with pytest.raises(InputError, match="weights of the same architecture"):
        load_initial_weights("sed", str(path), nn.Linear(3, 1))
    with pytest.raises(InputError, match="start_from: found lacosmic, a method without weights"):
        load_initial_weights("cosmicray", "lacosmic", nn.Linear(3, 1))
