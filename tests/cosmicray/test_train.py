"""Training from end to end, small: without real data it learns, and what it writes, detect can use."""

from __future__ import annotations

import json

import numpy as np
import pytest

from csstdask.cosmicray import detect, evaluate, stis
from csstdask.cosmicray.examples import contaminate, draw_examples, gather_material
from csstdask.cosmicray.train import load_training_config, train_cosmicray, weighted_loss
from csstdask.errors import InputError
from csstdask.mock.events import STIS_PAIRS, exposures_of

TINY = {
    "channels": (8, 12), "skies": 3, "frames": 4, "frame_size": 256, "patch": 96, "patches": 6, "batch": 8,
    "validation_frames": 3, "epochs": 4, "passes": 8, "box": 64, "precision": "float32",
}  # fmt: skip


@pytest.mark.slow
def test_it_learns_detect_uses_it_and_evaluate_scores_it(tmp_path, rng, monkeypatch):
    lines = []
    path = train_cosmicray(load_training_config(None, **TINY), tmp_path, announce=lines.append)
    assert [line.split(",")[0] for line in lines] == [f"epoch {number}" for number in range(4)]
    sky = rng.poisson(30.0, (128, 128)).astype(np.float32) + rng.normal(0, 5, (128, 128)).astype(np.float32)
    data = sky.copy()
    data[40:43, 50] += 3000
    found = detect(data, model=str(path))
    assert found.model.name == "unet"
    assert found.mask[40:43, 50].all()
    assert detect(sky, model=str(path)).mask.mean() < 0.01
    monkeypatch.setattr(evaluate, "_RANGES", {"objlim": (3.0, 8.0, 12.0), "sepmed": (True,)})
    monkeypatch.setattr(evaluate, "_SKIES", 2)
    results = evaluate.evaluate_cosmicray(str(path), to=tmp_path)
    assert json.loads((tmp_path / "cosmicray_evaluation.json").read_text()) == json.loads(json.dumps(results))
    (methods,) = results["injected"].values()
    assert methods["network"]["recall_visible"] > 0.3
    assert methods["network"]["precision"] > 0.3
    classical = methods["L.A.Cosmic, tuned"]
    assert classical["at the edge of its range"] == ([] if classical["parameters"]["objlim"] == 8.0 else ["objlim"])
    assert sum("generated tracks" in line for line in evaluate.table(results)) == 2


class KilledError(Exception):
    """As if by a signal."""


def test_killed_in_the_middle_of_an_epoch(tmp_path, monkeypatch):
    """Weights and card are those of a training that was never killed; with other examples it is refused."""
    config = load_training_config(None, **TINY | {"passes": 1, "epochs": 3})
    whole = train_cosmicray(config, tmp_path / "whole")
    calls = []

    def killed(network, batch):
        calls.append(1)
        if len(calls) == 5:  # the second of the second epoch's three batches
            raise KilledError
        return weighted_loss(network, batch)

    with monkeypatch.context() as patch:
        patch.setattr("csstdask.cosmicray.train.weighted_loss", killed)
        with pytest.raises(KilledError):
            train_cosmicray(config, tmp_path / "broken")
    resumed = train_cosmicray(config, tmp_path / "broken")
    assert resumed.read_text() == whole.read_text()  # the SHA-256 of the weights stands in it
    for changed in ({"box": 32}, {"skies": 4}, {"patch": 64}):
        with pytest.raises(InputError, match="examples"):
            train_cosmicray(config.model_copy(update=changed), tmp_path / "broken")


def test_both_methods_are_tuned_and_tested_on_the_same(real_images):
    """No reference foretells its own pair, none knows the test pair, and residuals are as noisy in all."""
    folder = real_images / "hst_stis"
    known = [stis.read_frame(folder, name) for name in exposures_of(stis.KNOWN_PAIRS)]
    test = stis.read_frame(folder, exposures_of(STIS_PAIRS["test"])[0])
    cases = [evaluate.stis_case(frame, stis.reference_for(frame, known), subtract=True, flag=False) for frame in known]
    cases.append(evaluate.stis_case(test, stis.build_reference(known), subtract=True, flag=False))
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
    library = gather_material("test", 1, 1, real_images).libraries[0]
    for scene in evaluate.real_scenes(real_images).values():
        brightness = evaluate.brightness_on(scene)
        charge = library.scatter(np.random.default_rng(1), scene.data.shape, 0.025, brightness=brightness)
        case = evaluate.as_case(scene, contaminate(scene, charge), 0.0)
        assert (case.hit & case.ignore).sum() < 0.1 * case.hit.sum()
        assert case.visible.sum() > 0.5 * case.hit.sum()
    assert len(evaluate.real_scenes(real_images)) == 3


def test_what_a_card_says_it_learnt_from(real_images, tmp_path):
    assert gather_material("training", 1, 7, None).sources == ["generated tracks", "7 mock skies"]
    sources = " ".join(gather_material("training", 1, 7, real_images).sources)
    assert "HST/STIS 1999 (6469 events)" in sources
    assert "4 WIRCam frames" in sources
    assert "o56502030_2" in sources
    assert "o56502050" not in sources
    with pytest.raises(InputError, match="none of hst_stis"):
        load_training_config(None, data=str(tmp_path))


def test_an_example_is_a_function_of_its_seed():
    material = gather_material("training", 5, 2, None)
    sizes = {"size": 256, "patch": 64, "count": 5, "box": 64}
    first, same, other = (draw_examples(seed, material, **sizes) for seed in ((1, 2), (1, 2), (1, 3)))
    assert np.array_equal(first.channels, same.channels)
    assert np.array_equal(first.hit, same.hit)
    assert not np.array_equal(first.channels, other.channels)
    assert first.channels.shape == (5, 3, 64, 64)
    assert np.isfinite(first.channels).all()
    assert set(np.unique(first.weight)) <= {0, 1, 5}


def test_wrong_settings_are_named(tmp_path):
    (tmp_path / "t.toml").write_text("epochs = 0\ncolour = 3\n")
    with pytest.raises(InputError, match=r"epochs: .*colour: "):
        load_training_config(tmp_path / "t.toml")
    for wrong, reason in (
        ({"patch": 90}, "grid, 4"),
        ({"patch": 300, "channels": (8,)}, "larger than the frames"),
        ({"batch": 99}, "24 patches"),
        ({"precision": "float16"}, "precision"),
        ({"device": "gpu"}, "device"),
    ):
        with pytest.raises(InputError, match=reason):
            load_training_config(None, **TINY | wrong)
    with pytest.raises(InputError, match="no such folder"):
        load_training_config(None, data=str(tmp_path / "nowhere"))


def test_the_truth_of_the_stis_frames_is_its_definition(real_images):
    """With the reference of all exposures, 6 sigma grown twice to 3 gives the stored masks, pixel for pixel."""
    folder = real_images / "hst_stis"
    with np.load(folder / "ref_rate_1999.npz") as stored:
        reference = stis.Reference(stored["ref_rate"], stored["hot"], 8)
    for name in exposures_of(sum(STIS_PAIRS.values(), ())):
        frame = stis.read_frame(folder, name)
        assert np.array_equal(evaluate.threshold_control(frame, reference) & frame.valid, frame.hit & frame.valid)


def test_a_rebuilt_reference_is_near_that_of_all(real_images):
    """From three pairs: the same dark to a read noise in almost all pixels."""
    folder = real_images / "hst_stis"
    frames = [stis.read_frame(folder, name) for name in exposures_of(stis.KNOWN_PAIRS)]
    reference = stis.build_reference(frames)
    with np.load(folder / "ref_rate_1999.npz") as stored:
        everything, hot = stored["ref_rate"], stored["hot"]
    valid = frames[0].valid
    difference = np.abs(reference.rate - everything)[valid] * frames[0].exptime
    assert np.quantile(difference, 0.99) < 10
    assert (reference.hot == hot)[valid].mean() > 0.95
