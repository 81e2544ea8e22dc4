"""Evaluation of zero-point networks on small mock surveys."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from csstdask.core.errors import InputError
from csstdask.datasets.zeropoint_surveys import make_surveys
from csstdask.evaluation.zeropoint.evaluate import Settings, evaluate_zeropoint, format_results
from csstdask.evaluation.zeropoint.methods import Prediction, recalibrated_prior, scores
from csstdask.training.zeropoint.fit import FitSettings
from csstdask.training.zeropoint.surveys import assign_split, collect_examples, survey_inputs
from csstdask.training.zeropoint.train import load_zeropoint_config, train_zeropoint
from csstdask.zeropoint.prior import Prior


@pytest.fixture(scope="module")
def small():
    return {name: survey_inputs(one, memory=4) for name, one in make_surveys(exposures=120).items()}


def test_scores_by_hand() -> None:
    truth = np.array([1.0, 2.0, 3.0, 4.0])
    found = scores(Prediction(truth + np.array([0.1, -0.1, 0.1, -0.1]), np.full(4, 0.2)), truth, np.arange(4))
    assert found["rmse"] == pytest.approx(0.1)
    assert found["failures"] == 1.0
    assert found["coverage_68"] == 1.0
    assert found["spearman"] == 1.0


def test_split_is_by_time_and_rows_are_shuffled(small) -> None:
    one = small["A"]
    first = {part: one.exposures.days[one.split == part].min() for part in ("train", "validation", "test")}
    last = {part: one.exposures.days[one.split == part].max() for part in ("train", "validation", "test")}
    assert last["train"] < first["validation"]
    assert last["validation"] < first["test"]
    shuffled = assign_split(one.exposures.days, row_split=True)
    assert sorted(shuffled) == sorted(one.split)
    assert one.exposures.days[shuffled == "test"].min() < last["train"]


def test_examples_of_two_surveys(small) -> None:
    both = collect_examples(small, "test", memory=4)
    second = collect_examples(small, "test", memory=4, names=("B",))
    assert set(both.survey) == {0, 1}
    assert set(second.survey) == {1}
    assert np.array_equal(both.truth[both.survey == 1], second.truth)
    # Memory is causal: the newest entry is older than the exposure.
    age = both.arrays.memory[:, 0, 2]
    assert (age[np.isfinite(age)] > 0).all()


def test_recalibration_is_causal(small) -> None:
    s = small["A"].exposures
    prior = Prior(s.truth + 0.0, np.full(len(s), 0.002), np.full(len(s), "prior"))
    wrong = Prior(np.where(np.arange(len(s)) >= 80, prior.value + 0.1, prior.value), prior.sigma, prior.method)
    one, two = recalibrated_prior(s, prior), recalibrated_prior(s, wrong)
    assert np.array_equal(one.sigma[:81], two.sigma[:81])
    assert two.sigma[-1] > one.sigma[-1]


@pytest.mark.slow
def test_small_evaluation(tmp_path: Path) -> None:
    tiny = {"exposures": 120, "epochs": 1, "batch": 32, "members": 1, "width": 8, "latent": 4, "memory": 4}
    card = train_zeropoint(load_zeropoint_config(None, **tiny), tmp_path / "ours", on_progress=lambda _: None)
    published = {
        "kind": "azprc",
        "name": "azprc",
        "exposures": 120,
        "epochs": 1,
        "batch": 8,
        "examples": 16,
        "crop": 32,
    }
    beside = train_zeropoint(load_zeropoint_config(None, **published), tmp_path / "az", on_progress=lambda _: None)
    settings = Settings(exposures=120, published=8, stars=6, study=FitSettings(epochs=1, batch=32))
    found = evaluate_zeropoint(
        tmp_path / "out", model=str(card), compare_with=(str(beside),), settings=settings, on_progress=lambda _: None
    )
    saved = json.loads((tmp_path / "out" / "zeropoint_evaluation.json").read_text())
    assert set(saved) >= {
        "methods",
        "stars",
        "ablations",
        "adaptation",
        "importance",
        "row_split",
        "latency",
        "article",
    }
    assert set(saved["methods"]["both"]) >= {"lut", "forest", "azprc", "previous", "local level", "prior", "joined"}
    assert saved["stars"]["0"]["methods"]["joined"]["rmse"] == saved["stars"]["0"]["methods"]["prior"]["rmse"]
    assert [row["batch"] for row in saved["latency"]["rows"]] == [1, 8, 64, 512]
    assert len(list((tmp_path / "out").glob("zeropoint-*.png"))) == 2
    assert any("joined" in line for line in format_results(found))


def test_unknown_part() -> None:
    with pytest.raises(InputError, match="--only: found hair"):
        evaluate_zeropoint(parts=("hair",))
