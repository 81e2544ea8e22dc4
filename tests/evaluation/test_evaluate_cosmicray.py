"""Evaluation on a mock survey, small: from recipes to tables and figures, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from own_model import write_own_model

from csstdask.core.errors import InputError
from csstdask.evaluation.cosmicray import methods
from csstdask.evaluation.cosmicray.evaluate import (
    Survey,
    describe_models,
    evaluate_cosmicray,
    field_part,
    gather_methods,
    resumable_results,
    summary_lines,
)
from csstdask.evaluation.cosmicray.figures import draw_field, draw_gallery
from csstdask.evaluation.cosmicray.frames import EvaluationRequest, evaluate_frame
from csstdask.evaluation.cosmicray.methods import Method, network_method, tune_lacosmic
from csstdask.evaluation.cosmicray.survey import AGEING, epochs_part, sources_part
from csstdask.evaluation.cosmicray.truth_frame import render_truth_frame
from csstdask.evaluation.io import round_floats
from csstdask.mock.recipe import load_recipe

STORES = Path(__file__).parents[2] / "stores"
CLASSICAL = Method("L.A.Cosmic", parameters={"sigclip": 4.5, "sigfrac": 0.3, "objlim": 5.0, "sepmed": True})


@pytest.fixture(scope="module")
def recipe():
    return load_recipe(STORES / "cr-detection-test.toml", scale=0.02).model_copy(
        update={"exposures": 2, "detectors": (7, 22)}
    )


def test_a_frame_is_what_the_recipe_renders(recipe):
    known = render_truth_frame(recipe, 0, 7)
    case = known.case
    assert case.data.shape == recipe.frame_shape
    untouched = (case.charge == 0) & case.use
    assert np.median(np.abs(case.data - known.clean)[untouched]) == 0  # the same photons and the same noise
    assert (case.hit <= (case.charge > 5)).all()
    assert case.visible.sum() < case.hit.sum() < (case.charge > 0).sum()


def test_counts_of_a_frame_agree_with_its_mask(recipe):
    seen = evaluate_frame(recipe, 0, 7, EvaluationRequest((CLASSICAL,), clean=True, photometry=True))
    known = render_truth_frame(recipe, 0, 7)
    found = CLASSICAL.probability(known.case) > 0.5
    counts = seen.counts["L.A.Cosmic"]
    assert counts.sum() == known.case.use.sum()
    assert counts[..., -1].sum() == (found & known.case.use).sum()
    assert seen.by_distance["L.A.Cosmic"][2].sum() == (found & known.case.use).sum()
    assert seen.stars["clean"].shape == seen.stars["L.A.Cosmic"].shape
    solid = seen.stars["snr"] > 30
    expected = seen.stars["clean"][solid]
    hit = seen.stars["hit"][solid] - expected
    assert (hit > -5 * seen.stars["sigma"][solid]).all()  # cosmic rays only add
    total, half = seen.by_length["L.A.Cosmic"]
    assert (half <= total).all()


@pytest.mark.slow
def test_from_recipes_to_tables(tmp_path, recipe):
    model = write_own_model(tmp_path / "model")
    methods = (network_method(str(model), "network"), CLASSICAL)
    result, gallery = field_part(Survey(recipe, methods, workers=1), lambda _: None)
    assert set(result["by_detector"]) == {"7", "22"}
    assert result["frames"] == 4
    for name in ("network", "L.A.Cosmic"):
        assert 0 <= result["pooled"][name]["precision"] <= 1
    assert result["pooled"]["L.A.Cosmic"]["recall_visible"] > 0.5
    json.dumps(result)
    draw_field(result, tmp_path / "field.png")
    draw_gallery(gallery, tmp_path / "gallery.png")
    assert (tmp_path / "field.png").stat().st_size > 20_000
    lines = list(summary_lines({"field": {"small": result}}))
    assert any(line.startswith("| L.A.Cosmic |") for line in lines)


@pytest.mark.slow
def test_sources_and_epochs(tmp_path):
    model = write_own_model(tmp_path / "model")
    science = load_recipe(STORES / "cr-science.toml")
    stamps = science.stamps.model_copy(update={"per_unit": 8, "cosmic_rays_each": 2})
    science = science.model_copy(update={"detectors": (8,), "shape": (384, 384), "stamps": stamps})
    methods = (network_method(str(model), "network"), CLASSICAL)
    result = sources_part(Survey(science, methods, workers=0), 0.0275, lambda _: None)
    assert result["by_region"]["L.A.Cosmic"]["above 20 rms"]["visible"] > 0
    assert all(weight > 0 for weight in result["reweight"])
    epochs = load_recipe(STORES / "cr-epochs.toml", scale=0.02)
    epochs = epochs.model_copy(update={"exposures": 3, "detectors": (8,)})
    trends = epochs_part(Survey(epochs, methods, workers=0), lambda _: None)
    assert set(trends) == {"all together", "none", *AGEING}
    assert len(trends["none"]["network"]["flux_ratio"]["points"]) == 3


def test_invalid_arguments_raise(tmp_path):
    with pytest.raises(InputError, match=r"--only.*some of real, field"):
        evaluate_cosmicray(parts=["everything"])
    cards = [str(write_own_model(tmp_path / name)) for name in ("a", "b")]
    with pytest.raises(InputError, match="two networks called own; wanted cards of different names"):
        gather_methods("unet", cards, tmp_path, "float32")
    with pytest.raises(InputError, match="a classical method"):
        evaluate_cosmicray("lacosmic", to=tmp_path)


def test_lacosmic_is_tuned_once_for_the_same_frames(recipe, monkeypatch):
    """The tuning is keyed by the pixels and the truth of the frames."""
    asked = []
    monkeypatch.setattr(methods, "search_parameters", lambda cases: asked.append(len(cases)) or {"sigclip": 4.5})
    case, tuned = render_truth_frame(recipe, 0, 7).case, {}
    assert (
        tune_lacosmic([case], tuned)
        == tune_lacosmic([render_truth_frame(recipe, 0, 7).case], tuned)
        == {"sigclip": 4.5}
    )
    tune_lacosmic([replace(case, hit=~case.hit)], tuned)
    assert asked == [1, 1]
    assert len(tuned) == 2


def test_sections_with_unchanged_settings_are_kept(tmp_path):
    """With another compared network, real frames are kept; with another model, only the tuning of L.A.Cosmic is."""
    models = describe_models("unet", ())
    stored = round_floats({"model": models, "seed": 1, "stis": {}, "field": {}, "tuned_lacosmic": {"a": {}}})
    assert set(resumable_results(stored, models)) == set(stored)
    assert set(resumable_results(stored, describe_models("unet", ("deepcr",)))) == set(stored)
    compared = describe_models("unet", (str(write_own_model(tmp_path / "own")),))
    assert set(resumable_results(stored, compared)) == {"model", "seed", "stis", "tuned_lacosmic"}
    assert set(resumable_results(stored, describe_models("deepcr", ()))) == {"model", "tuned_lacosmic"}
