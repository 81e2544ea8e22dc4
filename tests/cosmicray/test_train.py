"""Training from end to end, small: without real data it learns, and what it writes, detect can use."""

from __future__ import annotations

import json

import numpy as np
import pytest

from csstdask.cosmicray import detect, evaluate, stis
from csstdask.cosmicray.examples import draw_examples, gather_material
from csstdask.cosmicray.train import load_training_config, train_cosmicray
from csstdask.errors import InputError

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
    monkeypatch.setattr(evaluate, "_GRID", {"sigclip": (4.5,), "sigfrac": (0.3,), "objlim": (3.0, 8.0)})
    monkeypatch.setattr(evaluate, "_SKIES", 2)
    results = evaluate.evaluate_cosmicray(str(path), to=tmp_path)
    assert json.loads((tmp_path / "cosmicray_evaluation.json").read_text()) == json.loads(json.dumps(results))
    (methods,) = results["injected"].values()
    assert methods["network"]["recall_visible"] > 0.3
    assert methods["network"]["precision"] > 0.3
    assert methods["L.A.Cosmic, tuned"]["objlim"] in {3.0, 8.0}
    assert sum("generated tracks" in line for line in evaluate.table(results)) == 2


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
    with pytest.raises(InputError, match="no such folder"):
        load_training_config(None, data=str(tmp_path / "nowhere"))


def test_the_truth_of_the_stis_frames_is_its_definition(real_images):
    """With the reference of all exposures, 6 sigma grown twice to 3 gives the stored masks, pixel for pixel."""
    folder = real_images / "hst_stis"
    with np.load(folder / "ref_rate_1999.npz") as stored:
        reference = stis.Reference(stored["ref_rate"], stored["hot"])
    for name in stis.exposures_of(stis.PAIRS):
        frame = stis.read_frame(folder, name)
        assert np.array_equal(evaluate.threshold_control(frame, reference) & frame.valid, frame.hit & frame.valid)


def test_a_rebuilt_reference_is_near_that_of_all(real_images):
    """From three pairs: the same dark to a read noise in almost all pixels."""
    folder = real_images / "hst_stis"
    frames = [stis.read_frame(folder, name) for name in stis.exposures_of(stis.PAIRS[:3])]
    reference = stis.build_reference(frames)
    with np.load(folder / "ref_rate_1999.npz") as stored:
        everything, hot = stored["ref_rate"], stored["hot"]
    valid = frames[0].valid
    difference = np.abs(reference.rate - everything)[valid] * frames[0].exptime
    assert np.quantile(difference, 0.99) < 10
    assert (reference.hot == hot)[valid].mean() > 0.95
