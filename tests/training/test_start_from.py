"""Fine-tuning: a training of cosmic-ray detection that starts from the weights of a model."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from csstdask.core.errors import InputError
from csstdask.cosmicray.unet import CHANNELS, build_unet
from csstdask.nn.models import find_card
from csstdask.training.base import load_initial_weights
from csstdask.training.cosmicray.config import load_cosmicray_config
from csstdask.training.cosmicray.train import train_cosmicray


@pytest.mark.parametrize("name", ["unet", "unet-fast", "deepcr"])
def test_every_shipped_network_can_be_fine_tuned(name):
    """Architecture, input channels and mesh are those of the card, without further settings."""
    card = find_card("cosmicray", name)
    config = load_cosmicray_config(None, start_from=name)
    assert list(config.inputs) == card.normalisation["channels"]
    assert config.box == card.normalisation["box"]
    network = build_unet(**config.architecture)
    assert load_initial_weights("cosmicray", name, network) == card.sha256
    weights = load_file(card.weights)
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())


def test_settings_win_over_the_card(tmp_path):
    (tmp_path / "t.toml").write_text('start_from = "unet-fast"\nup = 2\n')
    config = load_cosmicray_config(tmp_path / "t.toml")
    assert (config.up, config.channels) == (2, (16, 32, 64))
    with pytest.raises(InputError, match=r"unet-fast.safetensors: found .* weights of the same architecture"):
        load_initial_weights("cosmicray", "unet-fast", build_unet(**config.architecture))


def test_former_names_of_settings_are_read(tmp_path):
    """A file of an earlier version, as those of the shipped models were."""
    (tmp_path / "t.toml").write_text(
        'others = ["a.zarr"]\nhit_above = 5.0\nfine = 16\nclose = [32, 64]\non_sources = 0.4\n'
        'keep = "last"\npasses = 2\n[shares]\nothers = 0.3\nrehit = 0.2\n'
    )
    config = load_cosmicray_config(tmp_path / "t.toml")
    assert config.extra_campaigns == ("a.zarr",)
    assert (config.hit_threshold, config.source_patch_fraction, config.passes_per_epoch) == (5.0, 0.4, 2)
    assert (config.architecture["fine"], config.architecture["close"]) == (16, [32, 64])
    assert config.schedule.keep == "last"
    assert config.shares == {"extra_campaigns": 0.3, "reinjected": 0.2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start_from": "lacosmic"}, "start_from: found lacosmic, a method without weights"),
        ({"start_from": "unet-fast", "inputs": CHANNELS[:1]}, "unet-fast: found a model with the input channels"),
    ],
)
def test_a_model_that_does_not_fit_is_named(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        train_cosmicray(load_cosmicray_config(None, skies=1, frames=1, **settings), tmp_path)
