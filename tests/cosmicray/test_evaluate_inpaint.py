"""Evaluation of repair, small: what is measured is what was done, and peers are given what ours is given."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from csstdask.cosmicray.evaluate_inpaint import evaluate_inpaint, table
from csstdask.cosmicray.evaluate_inpaint.fillers import Damaged, absent_peers, fillers
from csstdask.cosmicray.evaluate_inpaint.m51 import m51_part
from csstdask.cosmicray.evaluate_inpaint.science import CLEAN, measure_unit, science_part
from csstdask.errors import InputError
from csstdask.mock.recipe import load_recipe

STORES = Path(__file__).parents[2] / "stores"


@pytest.fixture(scope="module")
def recipe():
    """Four sources of 17 to 23 mag, sixteen copies of each, all hit."""
    science = load_recipe(STORES / "cr-science.toml")
    stamps = science.stamps.model_copy(update={"per_unit": 64, "cosmic_rays_each": 16})
    return science.model_copy(update={"detectors": (8,), "shape": (960, 960), "stamps": stamps})


@pytest.fixture(scope="module")
def unit(recipe):
    return measure_unit(recipe, 0, 8, models=(), mask="true")


def test_cosmic_rays_add_light_and_the_median_takes_it_away(unit):
    columns = unit.columns
    near = columns["distance"] < 4
    assert near.sum() > 10
    added = columns["untouched"] - columns[CLEAN]
    assert (added > -1).all()  # the same photons: a cosmic ray only adds
    assert np.median(added[near]) > 5 * np.median(np.abs(columns["median"] - columns[CLEAN])[~near])
    far = columns["distance"] > 8
    assert columns["untouched"][far] == pytest.approx(columns[CLEAN][far], abs=5)  # trails are all that reaches it


def test_distance_and_charge_are_those_of_the_cosmic_ray(unit):
    columns = unit.columns
    assert (columns["charge"] > 0).mean() > 0.9
    assert 0 <= columns["distance"].min() < 1.5
    assert np.isfinite(columns["distance"]).mean() > 0.9


def test_pulls_are_of_repaired_pixels_alone(unit):
    pulls = unit.pulls["median"]
    assert set(pulls) == {"star", "galaxy", "background"}
    assert abs(pulls["background"].mean()) < 0.3
    assert 0.7 < pulls["background"].std() < 1.4
    repaired = np.isfinite(unit.flux_pulls["median"])
    assert (unit.columns["distance"][repaired] < 6).all()
    assert set(unit.pulls) == {"median"}  # peers tell no variance


def test_bins_tell_shift_and_scatter(recipe):
    part = science_part(recipe, (), lambda _: None, workers=0)
    assert {one["kind"] for one in part["bins"]} <= {"star", "galaxy"}
    for one in part["bins"]:
        clean, raw = one["methods"][CLEAN], one["methods"]["untouched"]
        assert clean["shift"] == 0
        assert 0 < clean["scatter"] < 1
        assert raw["shift"] <= 0  # light was added
    near = [one["methods"] for one in part["bins"] if one["distance"][0] < 3]
    assert any(methods["untouched"]["scatter"] > methods[CLEAN]["scatter"] for methods in near)
    json.dumps(part)
    lines = list(table({"science": {"small": {"true": part}}}))
    assert any(line.startswith("| median |") for line in lines)


@pytest.mark.parametrize("name", [name for name in fillers(()) if name != "untouched"])
def test_every_method_repairs_hit_pixels_alone(name, rng):
    """Ignored pixels, here of enormous value, are neither changed nor donors."""
    truth = (100 + rng.normal(0, 1, (48, 48))).astype(np.float32)
    hit, ignore = np.zeros((2, 48, 48), dtype=bool)
    hit[20:23, 10:14], ignore[20:23, 14:16] = True, True
    data = truth.copy()
    data[hit], data[ignore] = 9000, 50_000
    fixed, _ = fillers(())[name](Damaged(data, np.ones_like(data), ignore), hit)
    assert np.array_equal(fixed[~hit], data[~hit])
    if not name.startswith("deepCR"):  # which learnt from frames of another noise
        assert np.abs(fixed[hit] - 100).max() < 6


def test_m51(real_images):
    found = m51_part(real_images, ())
    assert found["median"]["rms"] < 0.5 * found["untouched"]["rms"]
    assert all(facts["seconds"] >= 0 for facts in found.values())
    assert set(absent_peers()).isdisjoint(found)


def test_what_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"--part.*some of science, m51"):
        evaluate_inpaint(parts=["everything"])
    with pytest.raises(InputError, match="neither --recipes nor --data"):
        evaluate_inpaint()
    with pytest.raises(InputError, match="--model"):
        evaluate_inpaint(["nobody"], recipes=tmp_path)
    with pytest.raises(InputError, match=r"m51_org\.fits: found no file"):
        evaluate_inpaint(data=tmp_path, parts=["m51"])
