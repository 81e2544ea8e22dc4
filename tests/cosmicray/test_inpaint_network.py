"""Networks on stamps: what they see, what they may change, and that they learn to be right and to know how right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from csstdask.core.errors import InputError
from csstdask.cosmicray import inpaint, inpaint_network
from csstdask.cosmicray.inpaint_network import (
    SIZE,
    Stamps,
    build_inpainting_network,
    decode_output,
    deepest_output,
    network_inputs,
)
from csstdask.datasets.labelled_units import select_units
from csstdask.mock.recipe import Recipe
from csstdask.mock.recipe_tables import CosmicRays, SkyField
from csstdask.nn.models import find_card
from csstdask.nn.weights import load_network
from csstdask.pipeline.mock_survey import mock
from csstdask.training.inpaint.calibration import fit_correlation, validation_scores
from csstdask.training.inpaint.config import load_inpaint_config
from csstdask.training.inpaint.examples import Examples, collect_stamps, draw_batches, to_stamps
from csstdask.training.inpaint.train import train_inpaint

TINY = {
    "channels": (8, 12),
    "sources_per_unit": 30,
    "batches_per_epoch": 12,
    "batch": 16,
    "validation_batches": 3,
    "epochs": 3,
}


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    path = tmp_path_factory.mktemp("repair") / "repair.zarr"
    fields = (
        SkyField(name="a", pointing=(10.0, -20.0), split="training"),
        SkyField(name="b", pointing=(50.0, 20.0), split="validation"),
    )
    rays = CosmicRays(pixel_fraction=(0.02,))
    recipe = Recipe(name="repair", seed=4, exposures=2, shape=(320, 320), fields=fields, cosmic_rays=rays)
    mock(recipe, path, workers=1)
    return path


@pytest.fixture(scope="module", params=["noise", "min-max"])
def trained(campaign, tmp_path_factory, request):
    kind = {"noise": "unet", "min-max": "unetpp"}[request.param]
    settings = TINY | {"campaigns": (str(campaign),), "kind": kind, "scaling": request.param, "name": kind}
    lines = []
    path = train_inpaint(load_inpaint_config(None, **settings), tmp_path_factory.mktemp(kind), on_progress=lines.append)
    assert sum(line.startswith("epoch") for line in lines) == 3
    return path


def test_examples_are_contaminated_where_they_are_hit(campaign):
    """A hit pixel's charge is hidden, an event's faint skirt stays; light is that of the clean frame."""
    material = collect_stamps(select_units(campaign, "training"), 20, 1)
    (examples,) = draw_batches(material, 1, 40, (1,))
    stamps = examples.stamps
    away = ~stamps.hit & ~stamps.unknown
    excess = stamps.height - examples.light
    assert stamps.hit.float().mean() > 0.005
    assert (excess[away] >= -1e-3).all()
    assert (excess[away] < 2.01 * stamps.noise[away]).all()
    again = next(iter(draw_batches(material, 1, 40, (1,))))
    assert torch.equal(again.stamps.height, stamps.height)


def test_untrained_network_with_noise_scaling_returns_the_median(rng):
    height = rng.normal(0, 5, (3, 64, 64)).astype(np.float32)
    hit = rng.random(height.shape) < 0.02
    stamps = to_stamps(height, np.full(3, 5, np.float32), hit, np.zeros_like(hit))
    network = build_inpainting_network(kind="unet", scaling="noise", channels=(4, 6)).eval()
    with torch.no_grad():
        told, variance = decode_output(deepest_output(network(network_inputs(stamps, "noise"))), stamps, "noise")
    assert torch.allclose(told, stamps.height, atol=1e-4)
    assert (variance > 25).all()


def test_min_max_scaling_ignores_hit_pixels(rng):
    height = torch.from_numpy(rng.normal(0, 5, (2, 64, 64)).astype(np.float32))
    hit = torch.zeros(2, 64, 64, dtype=torch.bool)
    hit[:, 30, 30] = True
    first = Stamps(height, torch.full_like(height, 5.0), hit, torch.zeros_like(hit))
    other = replace(first, height=torch.where(hit, 1e6, height))
    assert torch.equal(network_inputs(first, "min-max"), network_inputs(other, "min-max"))
    shown = network_inputs(first, "min-max")[:, 0]
    assert shown.min() == 0
    assert shown.max() == 1
    with pytest.raises(InputError, match="scaling"):
        build_inpainting_network(kind="unet", scaling="percentile", channels=(4, 6))


def test_only_hit_pixels_change_and_all_have_a_variance(trained, campaign):
    frame = select_units(campaign, "validation").read(0)
    hit = frame.charge > 2
    before = frame.data.copy()
    fixed = inpaint(frame.data, hit, frame.error, frame.ignore, model=str(trained))
    target = hit & ~frame.ignore
    assert np.array_equal(frame.data, before)
    assert np.array_equal(fixed.data[~target], frame.data[~target], equal_nan=True)
    assert (fixed.variance[target] > 0).all()
    assert np.isnan(fixed.variance[~target]).all()
    assert fixed.model.task == "inpaint"
    again = inpaint(frame.data, hit, frame.error, frame.ignore, model=str(trained))
    assert np.array_equal(fixed.data, again.data, equal_nan=True)


def test_given_sources_alone_are_repaired_by_the_network(trained, campaign):
    """Far from them all is as the median has it; a table with columns and an array of pairs say the same."""
    frame = select_units(campaign, "validation").read(1)
    hit = frame.charge > 2
    plain = inpaint(frame.data, hit, frame.error, frame.ignore, model="median")
    some = inpaint(frame.data, hit, frame.error, frame.ignore, model=str(trained), sources=np.array([[100.0, 60.0]]))
    table = {"x": np.array([100.0]), "y": np.array([60.0])}
    same = inpaint(frame.data, hit, frame.error, frame.ignore, model=str(trained), sources=table)
    assert np.array_equal(some.data, same.data, equal_nan=True)
    moved = some.data != plain.data
    moved &= np.isfinite(frame.data)
    assert moved[28:92, 68:132].any()
    moved[28:92, 68:132] = False
    assert not moved.any()
    with pytest.raises(ValueError, match=r"sources: found shape \(3,\)"):
        inpaint(frame.data, hit, model=str(trained), sources=[1, 2, 3])


def test_network_learns_its_uncertainty(campaign, tmp_path):
    """A short training does not learn stars, but where the median errs; a constant variance would fail."""
    config = load_inpaint_config(None, **TINY | {"campaigns": (str(campaign),), "epochs": 8, "batches_per_epoch": 25})
    card = find_card("inpaint", str(train_inpaint(config, tmp_path)))
    learnt = load_network(card, build_inpainting_network, torch.device("cpu"))
    tested = list(draw_batches(collect_stamps(select_units(campaign, "validation"), 30, 2), 6, 16, (9,)))
    trained, untrained = (
        validation_scores(one, tested, "noise") for one in (learnt, build_inpainting_network(**config.architecture))
    )
    assert trained["score_source"] > untrained["score_source"] + 1
    assert trained["score"] > untrained["score"]
    assert set(card.calibration) == {"sky", "source", "correlation"}


@pytest.mark.parametrize("wanted", [0.0, 0.25, 1.0])
def test_correlation_of_errors_is_recovered(wanted):
    """Errors are drawn with a known correlation between pixels; the network predicts zero."""
    n, shape = 600, (SIZE, SIZE)
    numbers = torch.Generator().manual_seed(1)
    noise = torch.full((n, *shape), 2.0)
    hit = torch.zeros((n, *shape), dtype=torch.bool)
    hit[:, 30:34, 29:36] = True
    common = torch.randn((n, 1, 1), generator=numbers) * wanted**0.5
    alone = torch.randn((n, *shape), generator=numbers) * (2 - wanted) ** 0.5
    stamps = Stamps(torch.zeros((n, *shape)), noise, hit, torch.zeros_like(hit))
    light = noise * (common + alone)
    network = build_inpainting_network(kind="unet", scaling="noise", channels=(4, 4))
    factors = {"sky": float(2 * np.exp(-1)), "source": float(2 * np.exp(-1))}
    height, variance = decode_output(deepest_output(network(network_inputs(stamps, "noise"))), stamps, "noise")
    assert torch.allclose(height, torch.zeros_like(height))
    assert torch.allclose(variance * factors["sky"], 2 * noise**2)
    found = fit_correlation(network, [Examples(stamps, light)], "noise", factors)
    assert abs(found - wanted) < 0.06


@pytest.mark.slow
def test_frames_without_truth_teach_as_well(campaign, tmp_path):
    """Detected cosmic rays are moved to good pixels; detected pixels themselves have no truth and are ignored."""
    units = select_units(campaign, "training", truth="detected")
    frame, known = units.read(0), select_units(campaign, "training").read(0)
    assert np.array_equal(frame.clean, frame.data)
    assert np.array_equal(frame.unknown, frame.charge > 0)
    assert (frame.unknown & (known.charge > 0)).sum() > 0.8 * (known.charge > 5).sum()
    (examples,) = draw_batches(collect_stamps(units, 20, 1), 1, 40, (1,))
    assert examples.stamps.hit.float().mean() > 0.003
    assert not (examples.stamps.hit & examples.stamps.unknown).any()
    settings = TINY | {"campaigns": (str(campaign),), "truth": "detected", "epochs": 6, "batches_per_epoch": 25}
    card = find_card("inpaint", str(train_inpaint(load_inpaint_config(None, **settings), tmp_path)))
    learnt = load_network(card, build_inpainting_network, torch.device("cpu"))
    tested = list(
        draw_batches(collect_stamps(select_units(campaign, "validation"), 30, 2), 6, 16, (9,))
    )  # by the true light
    untrained = build_inpainting_network(**card.architecture)
    after, before = (validation_scores(network, tested, "noise") for network in (learnt, untrained))
    assert after["score_source"] > before["score_source"] + 0.5


def test_training_can_start_from_a_card(trained, campaign, tmp_path):
    """With a tiny learning rate the network hardly changes; a card of another architecture is refused."""
    card = find_card("inpaint", str(trained))
    settings = TINY | {"campaigns": (str(campaign),), **card.architecture, "start_from": str(trained), "epochs": 1}
    on = find_card("inpaint", str(train_inpaint(load_inpaint_config(None, **settings, learning_rate=1e-9), tmp_path)))
    before, after = (
        load_network(one, build_inpainting_network, torch.device("cpu")).state_dict() for one in (card, on)
    )
    assert all(torch.allclose(value, after[name], atol=0.05) for name, value in before.items() if "head" in name)
    for start, message in (
        (str(trained), "weights of the same architecture"),
        ("median", "a method without weights"),
    ):
        wrong = load_inpaint_config(None, **settings | {"channels": (8, 16), "start_from": start})
        with pytest.raises(InputError, match=message):
            train_inpaint(wrong, tmp_path / "wrong")


def test_a_bad_column_through_a_star_is_seen_as_in_training(trained, monkeypatch):
    """Ignored pixels at the median of their neighbours, not at the sky."""
    y, x = np.mgrid[:128, :128]
    frame = (100 + 2e4 * np.exp(-((y - 64) ** 2 + (x - 64) ** 2) / 18)).astype(np.float32)
    frame += np.random.default_rng(3).normal(0, 5, frame.shape).astype(np.float32)
    ignore, hit = np.zeros(frame.shape, bool), np.zeros(frame.shape, bool)
    ignore[:, 66] = True
    hit[63:65, 62:64] = True
    seen, repair = [], inpaint_network.repair_sources
    monkeypatch.setattr(inpaint_network, "repair_sources", lambda *given: seen.append(given[0]) or repair(*given))
    inpaint(frame, hit, mask=ignore, model=str(trained))
    assert seen[0][64, 66] == pytest.approx(frame[64, 66], rel=0.3)
    assert seen[0][64, 66] != frame[64, 66]


def test_a_campaign_without_cosmic_rays_is_refused(tmp_path):
    path = tmp_path / "calm.zarr"
    recipe = Recipe(
        name="calm", seed=5, exposures=2, shape=(160, 160), cosmic_rays=CosmicRays(pixel_fraction=(0.0,)),
        fields=(SkyField(name="a", pointing=(10.0, -20.0), split="training"),
                SkyField(name="b", pointing=(50.0, 20.0), split="validation")),
    )  # fmt: skip
    mock(recipe, path, workers=1)
    with pytest.raises(InputError, match="found no cosmic ray; wanted units with both"):
        train_inpaint(load_inpaint_config(None, **TINY | {"campaigns": (str(path),)}), tmp_path / "t")


def test_wrong_settings_are_named(tmp_path):
    (tmp_path / "r.toml").write_text("epochs = 0\nscaling = 'none'\n")
    with pytest.raises(InputError, match="scaling: "):
        load_inpaint_config(tmp_path / "r.toml")
    with pytest.raises(InputError, match="campaigns: "):
        load_inpaint_config(None)
