"""Training from end to end, small: without real data it learns, and what it writes, detect can use."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from csstdask.core.errors import InputError
from csstdask.cosmicray import detect
from csstdask.cosmicray.unet import CHANNELS, build_unet
from csstdask.datasets import stis_1999
from csstdask.datasets.labelled_units import select_units
from csstdask.evaluation.cosmicray import methods, real
from csstdask.evaluation.cosmicray.evaluate import evaluate_cosmicray, summary_lines
from csstdask.mock.event_libraries import STIS_PAIRS, pair_exposures
from csstdask.mock.recipe import Recipe
from csstdask.mock.recipe_tables import CosmicRays, SkyField
from csstdask.nn.models import find_card
from csstdask.nn.weights import load_network
from csstdask.pipeline.mock_survey import mock
from csstdask.training.cosmicray.batches import draw_patches, to_batch
from csstdask.training.cosmicray.config import load_cosmicray_config
from csstdask.training.cosmicray.examples import PatchSettings, draw_examples
from csstdask.training.cosmicray.frames import add_cosmic_rays
from csstdask.training.cosmicray.material import SHARES, load_material
from csstdask.training.cosmicray.train import distil_from, train_cosmicray, weighted_loss

TINY = {
    "channels": (8, 12), "skies": 3, "frames": 4, "frame_size": 256, "patch": 96, "patches": 6, "batch": 8,
    "validation_frames": 3, "epochs": 4, "passes_per_epoch": 8, "box": 64, "precision": "float32",
}  # fmt: skip


@pytest.mark.slow
def test_it_learns_detect_uses_it_and_evaluate_scores_it(tmp_path, rng, monkeypatch):
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
    monkeypatch.setattr(methods, "_RANGES", {"objlim": (3.0, 8.0, 12.0), "sepmed": (True,)})
    monkeypatch.setattr(real, "_SKIES", 2)
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


class KilledError(Exception):
    """As if by a signal."""


@pytest.mark.slow
def test_killed_in_the_middle_of_an_epoch(tmp_path, monkeypatch):
    """Weights and card are those of a training that was never killed; with other examples it is refused."""
    config = load_cosmicray_config(None, **TINY | {"passes_per_epoch": 1, "epochs": 3})
    whole = train_cosmicray(config, tmp_path / "whole")
    calls = []

    def killed(network, batch):
        calls.append(1)
        if len(calls) == 5:  # the second of the second epoch's three batches
            raise KilledError
        return weighted_loss(network, batch)

    with monkeypatch.context() as patch:
        patch.setattr("csstdask.training.cosmicray.train.weighted_loss", killed)
        with pytest.raises(KilledError):
            train_cosmicray(config, tmp_path / "broken")
    resumed = train_cosmicray(config, tmp_path / "broken")
    assert resumed.read_text() == whole.read_text()  # the SHA-256 of the weights stands in it
    for changed in ({"box": 32}, {"skies": 4}, {"patch": 64}):
        with pytest.raises(InputError, match="examples"):
            train_cosmicray(config.model_copy(update=changed), tmp_path / "broken")


@pytest.mark.slow
def test_both_methods_are_tuned_and_tested_on_the_same(real_images):
    """No reference foretells its own pair, none knows the test pair, and residuals are as noisy in all."""
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
    """Events on real scenes are not lost to saturation: what is ignored is not scored."""
    library = load_material("test", 1, 1, real_images).libraries[0]
    for scene in real.real_scenes(real_images).values():
        brightness = real.charge_scale(scene)
        charge = library.scatter(np.random.default_rng(1), scene.data.shape, 0.025, brightness=brightness)
        case = real.make_case(scene, add_cosmic_rays(scene, charge), 0.0)
        assert (case.hit & case.ignore).sum() < 0.1 * case.hit.sum()
        assert case.visible.sum() > 0.5 * case.hit.sum()
    assert len(real.real_scenes(real_images)) == 3


@pytest.mark.slow
def test_what_a_card_says_it_learnt_from(real_images, tmp_path):
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


def test_units_of_a_campaign_are_split_by_field_and_by_detector(campaign):
    every = select_units(campaign)
    training, validation = select_units(campaign, "training"), select_units(campaign, "validation")
    assert len(every) == 12
    assert len(training) == len(validation) == 6
    assert not set(training.indices) & set(validation.indices)
    first, second = (select_units(campaign, "validation", part=(i, 2)) for i in (0, 1))
    assert {column for _, column in first.indices} == {0, 2}
    assert {column for _, column in second.indices} == {1}
    with pytest.raises(InputError, match="no unit for test"):
        select_units(campaign, "test")
    with pytest.raises(InputError, match="no campaign"):
        select_units(campaign / "sci")


def test_a_campaign_that_says_nothing_of_splits_is_split_by_detector(campaign, tmp_path):
    """Exposures of one field share its sky; a single detector is split by exposure."""
    silent = tmp_path / "silent.zarr"
    shutil.copytree(campaign, silent)
    (silent / "tables" / "truth_exposures.parquet").unlink()
    training, validation = select_units(silent, "training"), select_units(silent, "validation")
    assert {column for _, column in training.indices} == {0, 1}
    assert {column for _, column in validation.indices} == {2}
    assert len(select_units(silent, "training", exposures=1)) == 2
    alone = [select_units(silent, split, detectors=(8,)) for split in ("training", "validation")]
    assert [len(units) for units in alone] == [3, 1]
    assert {column for units in alone for _, column in units.indices} == {1}


def test_a_unit_is_in_electrons_with_its_truth(campaign):
    """What cosmic rays added is their charge, but for what saturated or was trailed; noise is that of the counts."""
    frame = select_units(campaign).read(0)
    use = ~frame.ignore
    held = use & (frame.charge > 100) & (frame.data < 5e4)
    assert np.median((frame.data - frame.clean)[held] / frame.charge[held]) == pytest.approx(1, abs=0.02)
    assert np.median(np.abs(frame.data - frame.clean)[use & (frame.charge == 0)]) == 0
    sky = use & (frame.charge == 0) & (frame.clean < np.median(frame.clean))
    assert np.median(frame.error[sky]) == pytest.approx(np.sqrt(np.median(frame.clean[sky]) + 25), rel=0.05)


def test_nothing_to_learn_from_is_said_at_once(campaign, tmp_path):
    with pytest.raises(InputError, match=r"no material for rendered.*--campaign"):
        train_cosmicray(load_cosmicray_config(None, **TINY | {"shares": {"rendered": 1.0}}), tmp_path)
    settings = TINY | {"campaign": str(campaign), "patch": 192, "frame_size": 256}
    with pytest.raises(InputError, match=r"frames of 160 x 192 pixels.*at least the patch, 192"):
        train_cosmicray(load_cosmicray_config(None, **settings), tmp_path)


@pytest.mark.slow
def test_training_on_a_campaign_goes_on_from_a_model(campaign, tmp_path):
    """Better than from nothing after as many epochs; calibrated for its densities; frozen norms stay as they were."""
    settings = TINY | {"campaign": str(campaign), "skies": 0, "frames": 6, "epochs": 3}
    first = train_cosmicray(load_cosmicray_config(None, **settings), tmp_path / "first")
    card = find_card("cosmicray", str(first))
    assert set(card.calibration) == {"scale", "offset", "prior", "density", "hit_above", "int8_offset"}
    assert "6 units of known.zarr" in card.trained_on
    assert set(card.expects) == {"rate", "log_charge", "log_length"}
    assert not card.valid  # a mock's model is for all detectors, unless it was made for some
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
def test_a_teacher_is_learnt_from(campaign, tmp_path):
    """Its probabilities take the place of the truth; a smaller network learns from them; one that is blind may not."""
    settings = TINY | {"campaign": str(campaign), "skies": 0, "epochs": 3, "frames": 6}
    teacher = train_cosmicray(load_cosmicray_config(None, **settings), tmp_path / "teacher")
    network = load_network(find_card("cosmicray", str(teacher)), build_unet, torch.device("cpu"))
    examples = draw_patches(load_cosmicray_config(None, **settings), "validation", 0, 2)
    batch = to_batch(examples, np.arange(4))
    _, target, _ = distil_from(network, 1.0, "float32")(batch)
    assert torch.equal(distil_from(network, 0.0, "float32")(batch)[1], batch[1])
    assert ((target > 0) & (target < 1)).all()
    assert target[batch[1] > 0].mean() > 3 * target[batch[1] == 0].mean()
    pupil = settings | {"teacher": str(teacher), "channels": (4, 8), "epochs": 2}
    card = find_card("cosmicray", str(train_cosmicray(load_cosmicray_config(None, **pupil), tmp_path / "pupil")))
    assert card.metrics["average_precision"] > 0.2
    blind = pupil | {"inputs": CHANNELS[:1]}
    with pytest.raises(InputError, match="a model with the input channels"):
        train_cosmicray(load_cosmicray_config(None, **blind), tmp_path / "blind")


@pytest.mark.slow
def test_a_model_for_one_detector_says_so(campaign, tmp_path):
    settings = TINY | {"campaign": str(campaign), "skies": 0, "epochs": 1, "detectors": (8,)}
    card = find_card("cosmicray", str(train_cosmicray(load_cosmicray_config(None, **settings), tmp_path)))
    assert card.valid["detectors"] == [8]
    assert "from" not in card.valid  # a mock's date is nobody's


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
        ({"shares": {"rendring": 1.0}}, "shares"),
        ({"device": "gpu"}, "device"),
    ):
        with pytest.raises(InputError, match=reason):
            load_cosmicray_config(None, **TINY | wrong)
    with pytest.raises(InputError, match="no such folder"):
        load_cosmicray_config(None, data=str(tmp_path / "nowhere"))


def test_the_truth_of_the_stis_frames_is_its_definition(real_images):
    """With the reference of all exposures, 6 sigma grown twice to 3 gives the stored masks, pixel for pixel."""
    folder = real_images / "hst_stis"
    with np.load(folder / "ref_rate_1999.npz") as stored:
        reference = stis_1999.StisReference(stored["ref_rate"], stored["hot"], 8)
    for name in pair_exposures(sum(STIS_PAIRS.values(), ())):
        frame = stis_1999.read_frame(folder, name)
        assert np.array_equal(real.threshold_control(frame, reference) & frame.valid, frame.hit & frame.valid)


def test_a_rebuilt_reference_is_near_that_of_all(real_images):
    """From three pairs: the same dark to a read noise in almost all pixels."""
    folder = real_images / "hst_stis"
    frames = [stis_1999.read_frame(folder, name) for name in pair_exposures(stis_1999.DEVELOPMENT_PAIRS)]
    reference = stis_1999.build_reference(frames)
    with np.load(folder / "ref_rate_1999.npz") as stored:
        everything, hot = stored["ref_rate"], stored["hot"]
    valid = frames[0].valid
    difference = np.abs(reference.rate - everything)[valid] * frames[0].exptime
    assert np.quantile(difference, 0.99) < 10
    assert (reference.hot == hot)[valid].mean() > 0.95
