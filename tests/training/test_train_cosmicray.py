"""Trainings of cosmic-ray detection, small ones: what they learn, how they resume, and what they refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from csstdask.core.errors import InputError
from csstdask.cosmicray import detect
from csstdask.cosmicray.unet import CHANNELS, build_unet
from csstdask.datasets import stis_1999
from csstdask.evaluation.cosmicray import methods, real
from csstdask.evaluation.cosmicray.evaluate import evaluate_cosmicray, summary_lines
from csstdask.mock.event_libraries import STIS_PAIRS, pair_exposures
from csstdask.mock.recipe import Recipe
from csstdask.mock.recipe_tables import CosmicRays, SkyField
from csstdask.nn.models import find_card
from csstdask.nn.weights import load_network
from csstdask.pipeline.mock_survey import mock
from csstdask.training.cosmicray.batches import draw_patches
from csstdask.training.cosmicray.config import load_cosmicray_config
from csstdask.training.cosmicray.examples import PatchSettings, draw_examples
from csstdask.training.cosmicray.frames import add_cosmic_rays
from csstdask.training.cosmicray.material import SHARES, load_material
from csstdask.training.cosmicray.train import taught_target, train_cosmicray, weighted_loss

TINY = {
    "channels": (8, 12), "skies": 3, "frames": 4, "frame_size": 256, "patch": 96, "patches": 6, "batch": 8,
    "validation_frames": 3, "epochs": 4, "passes_per_epoch": 8, "box": 64, "precision": "float32",
}  # fmt: skip


@pytest.mark.slow
def test_a_trained_network_detects_and_is_evaluated(tmp_path, rng, monkeypatch):
    lines = []
    path = train_cosmicray(load_cosmicray_config(None, **TINY), tmp_path, on_progress=lines.append)
    assert [line.split(",")[0] for line in lines] == [f"epoch {number}" for number in range(4)]
    sky = rng.poisson(30.0, (128, 128)).astype(np.float32) + rng.normal(0, 5, (128, 128)).astype(np.float32)
    data = sky.copy()
    data[40:43, 50] += 3000
    found = detect(data, model=str(path))
    assert found.model.name == "unet"
    assert found.mask[40:43, 50].all()
    assert detect(sky, model=str(path)).mask.mean() < 0.01
    monkeypatch.setattr(methods, "SEARCH_RANGES", {"objlim": (3.0, 8.0, 12.0), "sepmed": (True,)})
    monkeypatch.setattr(real, "N_SKIES", 2)
    results = evaluate_cosmicray(str(path), to=tmp_path)
    kept = json.loads((tmp_path / "cosmicray_evaluation.json").read_text())
    (rows,) = results["injected"].values()
    (kept_rows,) = kept["injected"].values()
    assert kept_rows["network"]["f1"] == pytest.approx(rows["network"]["f1"], rel=1e-4)
    assert rows["network"]["recall_visible"] > 0.3
    assert rows["network"]["precision"] > 0.3
    classical = rows["L.A.Cosmic, tuned"]
    assert classical["at the edge of its range"] == ([] if classical["parameters"]["objlim"] == 8.0 else ["objlim"])
    assert sum("generated tracks" in line for line in summary_lines(results)) == 2


class InterruptedTrainingError(Exception):
    """Interrupts a training, as a signal would."""


@pytest.mark.slow
def test_an_interrupted_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    """Interrupted in an epoch, it ends with the weights and card of one that was not; other examples are refused."""
    config = load_cosmicray_config(None, **TINY | {"passes_per_epoch": 1, "epochs": 3})
    complete = train_cosmicray(config, tmp_path / "complete")
    calls = []

    def interrupt(network, batch):
        calls.append(1)
        if len(calls) == 5:  # the second of the second epoch's three batches
            raise InterruptedTrainingError
        return weighted_loss(network, batch)

    with monkeypatch.context() as patch:
        patch.setattr("csstdask.training.cosmicray.train.weighted_loss", interrupt)
        with pytest.raises(InterruptedTrainingError):
            train_cosmicray(config, tmp_path / "broken")
    resumed = train_cosmicray(config, tmp_path / "broken")
    assert resumed.read_text() == complete.read_text()  # it contains the SHA-256 of the weights
    for changed in ({"box": 32}, {"skies": 4}, {"patch": 64}):
        with pytest.raises(InputError, match="examples"):
            train_cosmicray(config.model_copy(update=changed), tmp_path / "broken")


@pytest.mark.slow
def test_methods_are_tuned_and_tested_on_equal_frames(real_images):
    """References are built without the frame's own pair and the test pair; residuals have the same noise in all."""
    folder = real_images / "hst_stis"
    known = [stis_1999.read_frame(folder, name) for name in pair_exposures(stis_1999.DEVELOPMENT_PAIRS)]
    test = stis_1999.read_frame(folder, pair_exposures(STIS_PAIRS["test"])[0])
    cases = [
        real.stis_case(frame, stis_1999.reference_without_pair(frame, known), subtract=True, flag=False)
        for frame in known
    ]
    cases.append(real.stis_case(test, stis_1999.build_reference(known), subtract=True, flag=False))
    pulls = []
    for case in cases:
        quiet = case.use & ~case.hit
        assert (case.data[quiet] == 0).mean() < 0.001
        low, high = np.percentile((case.data / case.error)[quiet], [16, 84])
        pulls.append((high - low) / 2)
    assert np.ptp(pulls) < 0.1
    assert np.mean(pulls) == pytest.approx(1, abs=0.25)


def test_scored_scenes_keep_their_cosmic_rays(real_images):
    """Few events on real scenes are lost to saturation: ignored pixels are not scored."""
    library = load_material("test", 1, 1, real_images).libraries[0]
    for scene in real.real_scenes(real_images).values():
        brightness = real.charge_scale(scene)
        charge = library.scatter(np.random.default_rng(1), scene.data.shape, 0.025, brightness=brightness)
        case = real.make_case(scene, add_cosmic_rays(scene, charge), 0.0)
        assert (case.hit & case.ignore).sum() < 0.1 * case.hit.sum()
        assert case.visible.sum() > 0.5 * case.hit.sum()
    assert len(real.real_scenes(real_images)) == 3


@pytest.mark.slow
def test_the_sources_of_the_material_are_listed(real_images, tmp_path):
    assert load_material("training", 1, 7, None).sources == ["generated tracks", "7 mock skies"]
    sources = " ".join(load_material("training", 1, 7, real_images).sources)
    assert "HST/STIS 1999 (6469 events)" in sources
    assert "4 WIRCam frames" in sources
    assert "o56502030_2" in sources
    assert "o56502050" not in sources
    with pytest.raises(InputError, match="none of hst_stis"):
        load_cosmicray_config(None, data=str(tmp_path))


def test_an_example_is_a_function_of_its_seed():
    material = load_material("training", 5, 2, None)
    cutting = PatchSettings(patch=64, count=5, box=64)
    first, same, other = (draw_examples(seed, material, SHARES, 256, cutting) for seed in ((1, 2), (1, 2), (1, 3)))
    assert np.array_equal(first.channels, same.channels)
    assert np.array_equal(first.hit, same.hit)
    assert not np.array_equal(first.channels, other.channels)
    assert first.channels.shape == (5, 3, 64, 64)
    assert np.isfinite(first.channels).all()
    assert set(np.unique(first.weight)) <= {0, 1, 5}
    assert first.uniform.sum() == 3
    assert np.ptp(first.density) == 0


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """Five exposures of three detectors, one field for training and one for validation."""
    path = tmp_path_factory.mktemp("known") / "known.zarr"
    fields = (
        SkyField(name="a", pointing=(10.0, -20.0), split="training"),
        SkyField(name="b", pointing=(50.0, 20.0), split="validation"),
    )
    rays = CosmicRays(pixel_fraction=(0.03,))
    recipe = Recipe(name="known", seed=3, exposures=4, shape=(160, 192), fields=fields, cosmic_rays=rays)
    mock(recipe, path, workers=1)
    return path


def test_missing_material_is_refused_before_the_training(campaign, tmp_path):
    with pytest.raises(InputError, match=r"no material for rendered.*--campaign"):
        train_cosmicray(load_cosmicray_config(None, **TINY | {"shares": {"rendered": 1.0}}), tmp_path)
    settings = TINY | {"campaign": str(campaign), "patch": 192, "frame_size": 256}
    with pytest.raises(InputError, match=r"frames of 160 x 192 pixels.*at least the patch, 192"):
        train_cosmicray(load_cosmicray_config(None, **settings), tmp_path)


@pytest.mark.slow
def test_a_training_on_a_campaign_is_fine_tuned(campaign, tmp_path):
    """Better than after the first epochs; calibrated for the densities of the campaign; frozen norms do not change."""
    settings = TINY | {"campaign": str(campaign), "skies": 0, "frames": 6, "epochs": 3}
    first = train_cosmicray(load_cosmicray_config(None, **settings), tmp_path / "first")
    card = find_card("cosmicray", str(first))
    assert set(card.calibration) == {"scale", "offset", "prior", "density", "hit_above", "int8_offset"}
    assert "6 units of known.zarr" in card.trained_on
    assert set(card.expects) == {"rate", "log_charge", "log_length"}
    assert not card.valid  # a model of a mock is for all detectors, unless some were selected
    assert {"down.0.0", "rise.0", "up.0.1"} <= set(card.ranges)
    more = settings | {"start_from": str(first), "freeze_norm": 0.0}
    second = train_cosmicray(load_cosmicray_config(None, **more), tmp_path / "second")
    losses = [float((path.parent / "log.csv").read_text().splitlines()[-1].split(",")[3]) for path in (first, second)]
    assert losses[1] < losses[0]
    before, after = (load_file(path.with_suffix(".safetensors")) for path in (first, second))
    statistics = [name for name in before if name.endswith("running_mean")]
    assert statistics
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    config = load_cosmicray_config(None, **settings | {"start_from": str(first), "channels": (8, 16)})
    with pytest.raises(InputError, match="weights of the same architecture"):
        train_cosmicray(config, tmp_path / "third")


@pytest.mark.slow
def test_a_network_learns_from_a_teacher(campaign, tmp_path):
    """Probabilities replace the truth; a small network learns from them, but not one with other input channels."""
    settings = TINY | {"campaign": str(campaign), "skies": 0, "epochs": 3, "frames": 6}
    teacher = train_cosmicray(load_cosmicray_config(None, **settings), tmp_path / "teacher")
    network = load_network(find_card("cosmicray", str(teacher)), build_unet, torch.device("cpu"))
    examples = draw_patches(load_cosmicray_config(None, **settings), "validation", 0, 2)
    target = taught_target(examples, network, 1.0, "float32")
    assert np.array_equal(taught_target(examples, network, 0.0, "float32"), examples.hit)
    assert ((target > 0) & (target < 1)).mean() > 0.9
    assert target[examples.hit].mean() > 3 * target[~examples.hit].mean()
    student = settings | {"teacher": str(teacher), "channels": (4, 8), "epochs": 2}
    card = find_card("cosmicray", str(train_cosmicray(load_cosmicray_config(None, **student), tmp_path / "student")))
    assert card.metrics["average_precision"] > 0.2
    blind = student | {"inputs": CHANNELS[:1]}
    with pytest.raises(InputError, match="a model with the input channels"):
        train_cosmicray(load_cosmicray_config(None, **blind), tmp_path / "blind")


@pytest.mark.slow
def test_the_card_of_a_model_for_one_detector_names_it(campaign, tmp_path):
    settings = TINY | {"campaign": str(campaign), "skies": 0, "epochs": 1, "detectors": (8,)}
    card = find_card("cosmicray", str(train_cosmicray(load_cosmicray_config(None, **settings), tmp_path)))
    assert card.valid["detectors"] == [8]
    assert "from" not in card.valid  # the dates of a mock mean nothing


def test_wrong_settings_are_named(tmp_path):
    (tmp_path / "t.toml").write_text("epochs = 0\ncolour = 3\n")
    with pytest.raises(InputError, match=r"epochs: .*colour: "):
        load_cosmicray_config(tmp_path / "t.toml")
    for wrong, reason in (
        ({"patch": 90}, "grid, 4"),
        ({"patch": 300, "channels": (8,)}, "larger than the frames"),
        ({"batch": 99}, "24 patches"),
        ({"precision": "float16"}, "precision"),
        ({"inputs": ("colour",)}, "inputs"),
        ({"source_patch_fraction": 1.0}, "none of 6 patches"),
        ({"fine_unet": (8, 8)}, "requires full_resolution_channels"),
        ({"hit_threshold": 2.0}, "wanted 0, 1 or 5"),
        ({"shares": {"drawing": 1.0}}, "shares"),
        ({"device": "gpu"}, "device"),
    ):
        with pytest.raises(InputError, match=reason):
            load_cosmicray_config(None, **TINY | wrong)
    with pytest.raises(InputError, match="no such folder"):
        load_cosmicray_config(None, data=str(tmp_path / "nowhere"))
