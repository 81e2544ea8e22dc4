"""What a training goes on from: a network, or two that are set beside each other and say their mean."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from csstdask.core.errors import InputError
from csstdask.cosmicray.unet import CHANNELS, build_unet
from csstdask.nn.card import ModelCard, write_card
from csstdask.nn.models import find_card
from csstdask.nn.weights import load_network, save_weights
from csstdask.training.cosmicray.config import load_cosmicray_config
from csstdask.training.cosmicray.warm_start import average_with, load_initial_weights

OURS = {"channels": (8, 12), "stem": 2, "fine": 4}
CLOSE = {"channels": (6, 8), "stem": 1}


def written(folder, name, inputs, seed, **architecture):
    """Write a network that says something, with a calibration of its own; return its card's path."""
    torch.manual_seed(seed)
    network = build_unet(inputs=len(inputs), **architecture)
    for head in (network.head, None if network.fine is None else network.fine.head):
        if head is not None:
            torch.nn.init.normal_(head.weight, std=3.0)
    for name_, value in network.named_buffers():  # normalisation that has seen something
        if name_.endswith("running_mean"):
            value.normal_(std=0.1)
    path = folder / f"{name}.json"
    card = ModelCard(
        name=name,
        task="cosmicray",
        version="1",
        method="small",
        licence="BSD-3-Clause",
        trained_on="nothing",
        sha256=save_weights(network, path.with_suffix(".safetensors")),
        threshold=0.5,
        architecture={"inputs": len(inputs), **architecture},
        normalisation={"channels": list(inputs), "box": 128},
        calibration={"scale": 1.0 + 0.1 * seed, "offset": 0.2 * seed},
    )
    write_card(path, card)
    return str(path)


@pytest.fixture
def parts(tmp_path):
    return written(tmp_path, "ours", CHANNELS, 1, **OURS), written(tmp_path, "close", CHANNELS[1:2], 2, **CLOSE)


def config(parts, **more):
    settings = OURS | {"close": CLOSE["channels"], "start_from": parts[0], "close_from": parts[1], "patch": 64}
    return load_cosmicray_config(None, **settings | more)


def test_two_that_were_trained_apart_say_the_mean_of_their_calibrated_logits(parts):
    """Also where one of them sees fewer channels."""
    settings = config(parts)
    network = build_unet(**settings.architecture)
    load_initial_weights(settings, network)
    frame = torch.randn(1, 3, 32, 48)
    cards = [find_card("cosmicray", part) for part in parts]
    with torch.inference_mode():
        said = network.eval()(frame)
        apart = [
            card.calibration["scale"] * load_network(card, build_unet, torch.device("cpu"))(seen)
            + card.calibration["offset"]
            for card, seen in zip(cards, (frame, frame[:, 1:2]), strict=True)
        ]
    assert torch.allclose(said, (apart[0] + apart[1]) / 2, atol=1e-4)
    assert said.std() > 0.05


def test_what_is_remembered_whole_is_the_beginning(parts):
    """Layers that were not on any card, too: they begin as chance had them."""
    settings = config(parts)
    network = build_unet(**settings.architecture)
    load_initial_weights(settings, network)
    beginning = {name: value.clone() for name, value in network.state_dict().items()}
    for value in network.parameters():
        value.data += 0.1 * torch.randn_like(value)
    average_with(beginning, network, 1.0)
    after = network.state_dict()
    assert all(torch.allclose(after[name].float(), value.float(), atol=1e-6) for name, value in beginning.items())


def test_a_close_look_is_gone_on_with(parts, tmp_path):
    """From a card that has one, by start_from alone; another may not take its place."""
    settings = config(parts)
    network = build_unet(**settings.architecture)
    load_initial_weights(settings, network)
    whole = written(tmp_path, "whole", CHANNELS, 3, **OURS, close=CLOSE["channels"])
    again = build_unet(**settings.architecture)
    load_initial_weights(config((whole, None)), again)
    kept = load_file(whole.replace(".json", ".safetensors"))
    assert all(torch.equal(value, kept[name]) for name, value in again.state_dict().items())
    with pytest.raises(InputError, match="close_from: found whole, which has a close look already"):
        load_initial_weights(config((whole, parts[1])), again)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start_from": "lacosmic"}, "start_from: found lacosmic, a method without weights; wanted a network of the"),
        ({"close_from": "lacosmic"}, "close_from: found lacosmic, a method without weights; wanted a network without"),
        ({"inputs": CHANNELS[:2]}, "start_from: found ours, which sees"),
        ({"close": (6, 9)}, r"close.safetensors: found .* for \(.*\); wanted a network without a stem"),
        ({"channels": (8, 13)}, r"ours.safetensors: found .*; wanted a network of the same architecture"),
        ({"close_from": "unet"}, "close_from: found unet, behind a stem"),
    ],
)
def test_what_does_not_fit_is_named(parts, change, message):
    settings = config(parts, **change)
    with pytest.raises(InputError, match=message):
        load_initial_weights(settings, build_unet(**settings.architecture))


def test_a_close_look_of_other_channels_is_refused(parts, tmp_path):
    settings = config(parts, inputs=CHANNELS[:1], start_from=written(tmp_path, "narrow", CHANNELS[:1], 4, **OURS))
    with pytest.raises(InputError, match="close_from: found close, which sees"):
        load_initial_weights(settings, build_unet(**settings.architecture))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"close": (8, 8), "fine": 0}, "but fine = 0"),
        ({"close_from": "deepcr", "close": (32, 64), "fine": 4}, "wanted start_from and close as well"),
        ({"close": (8,) * 7, "fine": 4, "patch": 96}, "patch = 96 is no multiple of the network's grid, 64"),
    ],
)
def test_settings_that_contradict_each_other_are_named(wrong, message):
    with pytest.raises(InputError, match=message):
        load_cosmicray_config(None, **wrong)


def test_every_shipped_network_can_be_gone_on_with():
    for name in ("unet", "unet-fast", "deepcr"):
        card = find_card("cosmicray", name)
        own = {key: value for key, value in card.architecture.items() if key != "inputs"}
        settings = load_cosmicray_config(None, **own, start_from=name, inputs=tuple(card.normalisation["channels"]))
        network = build_unet(**settings.architecture)
        load_initial_weights(settings, network)
        assert torch.isfinite(network.head.weight).all()
