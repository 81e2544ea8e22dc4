"""deepCR's format: what is read computes what the published network does, and nothing else is read."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from csstdask.core.errors import InputError
from csstdask.cosmicray import detect
from csstdask.cosmicray.deepcr import convert
from csstdask.nn.card import read_card

HIDDEN = 6
STACKS = {"inc.conv.conv": (1, 6), "down1.mpconv.1.conv": (6, 12), "up8.conv.conv": (12, 6)}


def published_state(*, normed: bool) -> dict[str, torch.Tensor]:
    """Return random weights in the published names, batch- or weight-normalised."""
    torch.manual_seed(5)
    state = {}
    for name, (inputs, outputs) in STACKS.items():
        for place, a in zip((0, 3) if normed else (0, 2), (inputs, outputs), strict=True):
            weight = torch.randn(outputs, a, 3, 3) * (2 / (9 * a)) ** 0.5
            state[f"{name}.{place}.bias"] = torch.randn(outputs) * 0.1
            if normed:
                state[f"{name}.{place}.weight"] = weight
                state[f"{name}.{place + 1}.weight"] = torch.rand(outputs) + 0.5
                state[f"{name}.{place + 1}.bias"] = torch.randn(outputs) * 0.1
                state[f"{name}.{place + 1}.running_mean"] = torch.randn(outputs) * 0.3
                state[f"{name}.{place + 1}.running_var"] = torch.rand(outputs) + 0.5
                state[f"{name}.{place + 1}.num_batches_tracked"] = torch.tensor(7)
            else:
                state[f"{name}.{place}.weight_v"] = weight
                state[f"{name}.{place}.weight_g"] = torch.rand(outputs, 1, 1, 1) + 0.5
    state["up8.up.weight"], state["up8.up.bias"] = torch.randn(12, 6, 2, 2) * 0.3, torch.randn(6) * 0.1
    state["outc.conv.weight"], state["outc.conv.bias"] = torch.randn(1, 6, 1, 1) * 0.3, torch.randn(1)
    return {f"module.{key}": value for key, value in state.items()}


def published_network(state: dict[str, torch.Tensor], x: torch.Tensor, *, normed: bool) -> torch.Tensor:
    """Compute the published network by hand."""
    tensors = {key.removeprefix("module."): value for key, value in state.items()}

    def double(name: str, x: torch.Tensor) -> torch.Tensor:
        for place in (0, 3) if normed else (0, 2):
            own = f"{name}.{place}"
            if normed:
                norm = f"{name}.{place + 1}"
                x = functional.conv2d(x, tensors[f"{own}.weight"], tensors[f"{own}.bias"], padding=1)
                facts = (tensors[f"{norm}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
                x = functional.batch_norm(x, *facts)
            else:
                direction, length = tensors[f"{own}.weight_v"], tensors[f"{own}.weight_g"]
                weight = length * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                x = functional.conv2d(x, weight, tensors[f"{own}.bias"], padding=1)
            x = x.relu()
        return x

    first = double("inc.conv.conv", x)
    second = double("down1.mpconv.1.conv", functional.max_pool2d(first, 2))
    risen = functional.conv_transpose2d(second, tensors["up8.up.weight"], tensors["up8.up.bias"], stride=2)
    both = double("up8.conv.conv", torch.cat([first, risen], dim=1))
    return functional.conv2d(both, tensors["outc.conv.weight"], tensors["outc.conv.bias"]).sigmoid()


@pytest.mark.parametrize("normed", [True, False])
def test_converted_network_equals_the_published_one(tmp_path, rng, normed):
    state = published_state(normed=normed)
    torch.save(state, tmp_path / "mine.pth")
    card = convert(tmp_path / "mine.pth", tmp_path / "converted")
    frame = rng.normal(0, 1, (64, 96)).astype(np.float32)
    found = detect(frame, model=str(card))
    expected = published_network(state, torch.from_numpy(frame)[None, None], normed=normed)[0, 0].numpy()
    np.testing.assert_allclose(found.probability, expected, atol=2e-6)
    assert found.probability.std() > 0.01
    assert read_card(card).architecture["channels"] == [HIDDEN, 2 * HIDDEN]
    assert found.threshold == 0.5


def test_standardised_counts_are_those_of_the_frame(tmp_path, rng):
    state = published_state(normed=True)
    torch.save(state, tmp_path / "mine.pth")
    card = convert(tmp_path / "mine.pth", tmp_path, name="standard", input="standardised counts")
    frame = rng.normal(300, 20, (64, 64)).astype(np.float32)
    standard = (frame - frame.mean()) / frame.std()
    expected = published_network(state, torch.from_numpy(standard)[None, None], normed=True)[0, 0].numpy()
    np.testing.assert_allclose(detect(frame, model=str(card)).probability, expected, atol=2e-5)


def test_seams_do_not_show(tmp_path, rng):
    """Its own package cuts frames into patches without overlap; here tiles overlap by its radius, 9 pixels."""
    from csstdask.cosmicray.preprocess import prepare_frame
    from csstdask.cosmicray.unet import hit_probability

    torch.save(published_state(normed=True), tmp_path / "mine.pth")
    card = read_card(convert(tmp_path / "mine.pth", tmp_path))
    frame = rng.normal(0, 1, (150, 130)).astype(np.float32)
    view = prepare_frame(frame, None, np.zeros(frame.shape, bool))
    whole = hit_probability(view, card, tile=4096)
    assert np.abs(hit_probability(view, card, tile=40) - whole).max() <= 1e-6
    assert np.abs(hit_probability(view, card, tile=40, halo=0) - whole).max() > 1e-3


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_anything_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pth").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(InputError, match=r"bad\.pth.*no tensors that can be read safely"):
        convert("bad.pth", tmp_path)
    assert not Path("executed").exists()
    with pytest.raises(InputError, match="no such file"):
        convert("absent.pth", tmp_path)
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="no tensor"):
        convert("other.pth", tmp_path)
    state = published_state(normed=True)
    state["module.up8.up.weight"] = torch.zeros(12, 5, 2, 2)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=r"rise\.0\.weight of shape \(12, 5, 2, 2\)"):
        convert("odd.pth", tmp_path)
    with pytest.raises(InputError, match="standardised counts"):
        convert("odd.pth", tmp_path, input="images")


@pytest.mark.skipif(importlib.util.find_spec("deepCR") is None, reason="deepCR is not installed (extra bench)")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["ACS-WFC", "decam"])
def test_published_weights(tmp_path, rng, name):
    """The package itself, on one frame without seams."""
    from deepCR import deepCR, model

    frame = (rng.poisson(40, (128, 160)) + rng.normal(0, 5, (128, 160))).astype(np.float32)
    frame[40:44, 30:60] += 300
    card = convert(Path(model.default_model_path) / "mask" / f"{name}.pth", tmp_path)
    theirs = deepCR(mask=name, device="CPU").clean(frame, binary=False, inpaint=False, segment=False)
    np.testing.assert_allclose(detect(frame, model=str(card)).probability, theirs, atol=1e-5)
