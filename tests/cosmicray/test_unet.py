"""The network on a frame: tiles leave no trace, masked pixels have no say, and its card holds what it needs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from own_model import write_own_model

from csstdask.core.errors import InputError
from csstdask.cosmicray import detect
from csstdask.cosmicray.preprocess import prepare_frame
from csstdask.cosmicray.unet import ChannelReader, hit_probability, network_channels
from csstdask.nn.card import read_card, write_card
from csstdask.nn.models import find_card


@pytest.fixture(scope="module")
def card_path(tmp_path_factory):
    return write_own_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def frame(rng):
    """Sky, a bright star, cosmic rays, a bad column, not-a-numbers; no size is a multiple of anything."""
    data = rng.poisson(40.0, (331, 293)).astype(np.float32) + rng.normal(0, 5, (331, 293)).astype(np.float32)
    y, x = np.mgrid[:331, :293]
    data += 4e4 * np.exp(-((y - 130) ** 2 + (x - 128) ** 2) / 4).astype(np.float32)
    data[rng.integers(0, 331, 300), rng.integers(0, 293, 300)] += 900
    data[200:205, 100] = np.nan
    mask = np.zeros(data.shape, bool)
    mask[:, 77] = True
    return data, mask


@pytest.mark.parametrize("tile", [64, 100, 256])
def test_tiled_equals_whole(card_path, frame, tile):
    """To rounding, with the network's halo; with halo 0, the control, it does not."""
    card = read_card(card_path)
    data, mask = frame
    view = prepare_frame(data, None, mask | ~np.isfinite(data), box=64)
    whole = hit_probability(view, card, tile=4096)
    assert whole.std() > 0.01
    tiled = hit_probability(view, card, tile=tile, batch=3)
    assert np.abs(tiled - whole).max() <= 1e-6
    assert np.array_equal(tiled >= 0.5, whole >= 0.5)
    if tile < 256:
        seamed = hit_probability(view, card, tile=tile, halo=0)
        assert np.abs(seamed - whole).max() > 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tiled_equals_whole_on_a_gpu(card_path, frame):
    """To rounding as well, because TF32 is disabled; and close to the host's result."""
    card = read_card(card_path)
    data, mask = frame
    view = prepare_frame(data, None, mask | ~np.isfinite(data), box=64)
    whole = hit_probability(view, card, tile=4096, device="cuda")
    tiled = hit_probability(view, card, tile=64, batch=3, device="cuda")
    assert np.abs(tiled - whole).max() <= 1e-5
    assert np.abs(hit_probability(view, card) - whole).max() <= 1e-4


def test_masked_pixels_have_no_say(card_path, frame):
    data, mask = frame
    first = detect(data, mask=mask, model=str(card_path))
    other = data.copy()
    other[mask] = 1e6
    second = detect(other, mask=mask, model=str(card_path))
    assert np.array_equal(first.probability, second.probability)
    ignored = mask | np.isnan(data)
    assert not first.mask[ignored].any()
    assert (first.probability[ignored] == 0).all()
    assert first.mask.any()


def test_calibration_and_threshold_are_the_cards(card_path, frame):
    data, mask = frame
    found = detect(data, mask=mask, model=str(card_path))
    assert found.threshold == 0.5
    assert np.array_equal(found.mask, found.probability >= 0.5)
    card = read_card(card_path)
    view = prepare_frame(data, None, mask | ~np.isfinite(data), box=64)
    plain = hit_probability(view, replace(card, calibration={"scale": 1.0, "offset": 0.0}))
    use = ~(mask | np.isnan(data)) & (np.abs(plain - 0.5) < 0.499)
    odds = np.where(use, plain / np.where(use, 1 - plain, 1), 1)
    expected = 1 / (1 + np.exp(-2) / odds)
    np.testing.assert_allclose(found.probability[use], expected[use], atol=1e-4)


def test_probabilities_are_rescaled_to_a_density(card_path, frame, tmp_path):
    """With a power of one the odds go with those of the density; a frame's own density is what they add up to."""
    calibration = {"scale": 1.0, "offset": 0.0, "prior": 1.0, "density": 0.02}
    card = replace(read_card(card_path), calibration=calibration)
    (tmp_path / "own.safetensors").write_bytes(card.weights.read_bytes())
    write_card(tmp_path / "own.json", card)
    model = str(tmp_path / "own.json")
    data, mask = frame
    plain = detect(data, mask=mask, model=model)
    same = detect(data, mask=mask, model=model, rate=0.02)
    np.testing.assert_allclose(same.probability, plain.probability, atol=1e-6)
    other = detect(data, mask=mask, model=model, rate=0.1)
    p = plain.probability.astype(np.float64)
    factor = (0.1 / 0.9) / (0.02 / 0.98)
    np.testing.assert_allclose(other.probability, p * factor / (1 + (factor - 1) * p), atol=1e-5)
    own = detect(data, mask=mask, model=model, rate="frame")
    use = ~(mask | np.isnan(data))
    density = own.probability[use].mean()
    again = detect(data, mask=mask, model=model, rate=float(density))
    np.testing.assert_allclose(again.probability, own.probability, atol=2e-3)
    with pytest.raises(ValueError, match="rate: found 2"):
        detect(data, model=model, rate=2.0)
    with pytest.raises(ValueError, match="without a density"):
        detect(data, model="lacosmic", rate=0.1)


def test_a_network_made_for_other_channels_is_refused(card_path, frame, tmp_path):
    card = replace(read_card(card_path), normalisation={"channels": ["counts"], "box": 64})
    (tmp_path / "other.safetensors").write_bytes(card.weights.read_bytes())
    write_card(tmp_path / "other.json", card)
    with pytest.raises(InputError, match="counts"):
        detect(frame[0], model=str(tmp_path / "other.json"))


def test_input_channels(frame):
    """Heights divided by both noises, in a window that reaches beyond the frame."""
    data, mask = frame
    ignore = mask | ~np.isfinite(data)
    view = prepare_frame(data, np.full(data.shape, 7, np.float32), ignore, box=64)
    whole = network_channels(view)
    height = data - view.mesh.background_at()
    np.testing.assert_allclose(np.sinh(whole[1])[~ignore], (height / 7)[~ignore], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        np.sinh(whole[0])[~ignore], (height / view.mesh.noise_at())[~ignore], rtol=1e-4, atol=1e-4
    )
    assert np.array_equal(whole[2] == 1, ignore)
    part = ChannelReader(view).at((slice(320, 336), slice(280, 296)))
    assert part.shape == (3, 16, 16)
    assert np.array_equal(part[:, :11, :13], whole[:, 320:, 280:])
    assert np.array_equal(part[:, 11:], part[:, 10:5:-1])  # mirrored
    assert np.array_equal(part[:, :, 13:], part[:, :, 12:9:-1])


@pytest.mark.parametrize("rows", [200, 201, 202, 205])
def test_a_halo_that_the_edge_cuts_is_no_cosmic_ray(rng, rows):
    """Whether or not the frame ends on the network's grid."""
    y, x = np.mgrid[:rows, :256]
    photons = 60 + 4e4 * np.exp(-np.hypot(y - rows, x - 128) / 12)
    data = (rng.poisson(photons) + rng.normal(0, 5, photons.shape)).astype(np.float32)
    assert detect(data, model="unet").mask[-4:].mean() < 1e-2


def test_a_frame_that_may_not_be_written_to(card_path, frame):
    """Memory-mapped and broadcast frames are read-only: there is no warning, and they are not changed."""
    data, mask = frame
    data.flags.writeable = mask.flags.writeable = False
    assert detect(data, mask=mask, model=str(card_path)).mask.any()


def test_bfloat16_is_near(card_path, frame):
    """On a processor without bfloat16 it is emulated; either way probabilities move by little."""
    data, mask = frame
    view = prepare_frame(data, None, mask | ~np.isfinite(data), box=64)
    card = read_card(card_path)
    exact, rough = hit_probability(view, card), hit_probability(view, card, precision="bfloat16")
    assert np.abs(exact - rough).max() > 0
    assert np.abs(exact - rough).mean() < 0.01


@pytest.mark.parametrize("model", ["unet", "deepcr"])
def test_the_networks_that_come_with_it_run_in_eight_bits(frame, model):
    """Masks differ where a lone pixel is as likely hit as warm: here there are many of those."""
    data, mask = frame
    view = prepare_frame(data, None, mask | ~np.isfinite(data), box=64)
    card = find_card("cosmicray", model)
    exact, rough = (hit_probability(view, card, precision=precision) for precision in ("float32", "int8"))
    assert np.abs(exact - rough).max() > 0
    assert np.abs(exact - rough).mean() < 2e-3
    hit, found = exact >= card.threshold, rough >= card.threshold
    assert hit.sum() > 250
    assert (hit != found).sum() < 0.06 * hit.sum()


def test_int8_requires_a_card_with_ranges(card_path, frame):
    data, mask = frame
    view = prepare_frame(data, None, mask | ~np.isfinite(data), box=64)
    with pytest.raises(InputError, match=r"int8: found no range of .*; wanted one for each layer"):
        hit_probability(view, replace(read_card(card_path), ranges={}), precision="int8")
