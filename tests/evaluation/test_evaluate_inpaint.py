"""Evaluation of repair, small: what is measured is what was done, and peers are given what ours is given."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from csstdask.core.errors import InputError
from csstdask.evaluation.inpaint import evaluate as evaluate_inpaint_module
from csstdask.evaluation.inpaint import frames as fields
from csstdask.evaluation.inpaint import photometry as science_module
from csstdask.evaluation.inpaint.evaluate import evaluate_inpaint, summary_lines
from csstdask.evaluation.inpaint.figures import draw_fields, draw_science
from csstdask.evaluation.inpaint.m51 import m51_part
from csstdask.evaluation.inpaint.methods import PEERS, MaskedImage, absent_peers, repair_methods
from csstdask.evaluation.inpaint.photometry import (
    CLEAN,
    FLUX_BOUND,
    ORACLE,
    ORACLE_POSITION,
    measure_unit,
    oracle_scatter,
)
from csstdask.evaluation.inpaint.photometry_statistics import science_part, shape_statistics
from csstdask.evaluation.io import round_floats
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
    added = columns["no repair"] - columns[CLEAN]
    assert (added > -1).all()  # the same photons: a cosmic ray only adds
    assert np.median(added[near]) > 5 * np.median(np.abs(columns["median"] - columns[CLEAN])[~near])
    far = columns["distance"] > 8
    assert columns["no repair"][far] == pytest.approx(columns[CLEAN][far], abs=5)  # trails are all that reaches it


def test_distance_is_that_of_the_charge_whatever_the_mask(unit, recipe):
    """A cosmic ray that detection misses counts, at its distance: else the worst would drop out."""
    assert 0 <= unit.columns["distance"].min() < 1.5
    assert np.isfinite(unit.columns["distance"]).mean() > 0.9
    assert (unit.columns["masked"] == 1).all()
    found = measure_unit(recipe, 0, 8, models=(), mask="detected")
    assert np.array_equal(found.columns["distance"], unit.columns["distance"])
    assert 0.3 < found.columns["masked"].mean() < 1
    with pytest.raises(ValueError, match="mask: found 'none'; wanted one of true, detected"):
        measure_unit(recipe, 0, 8, models=(), mask="none")


def test_pulls_are_of_repaired_pixels_alone(unit):
    pulls = unit.pulls["median"]
    assert set(pulls) == {"star", "galaxy", "background"}
    assert abs(pulls["background"].mean()) < 0.3
    assert 0.7 < pulls["background"].std() < 1.4
    repaired = np.isfinite(unit.flux_pulls["median"])
    assert (unit.columns["distance"][repaired] < 6).all()
    assert set(unit.pulls) == {"median", "median, stars by PSF"}  # peers tell no variance
    # A median in a source's flank is too low or too high, not both: its pulls there are wide, and no matter of noise.
    assert unit.pulls["median"]["star"].std() > 1.5


def test_oracle_repair_agrees_with_simulation(rng):
    """Closed forms against ten thousand trials; without lost pixels the error is the noise of the aperture."""
    y, x = np.mgrid[:17, :17] - 8.0
    shape = np.exp(-(x**2 + y**2) / 4)
    light, inside = 3000 * shape / shape.sum(), np.hypot(x, y) < 5
    variance = light + 60
    lost = (np.abs(x) < 1.5) & (np.abs(y - 1) < 1.5)
    trials = light + rng.normal(0, 1, (10_000, 17, 17)) * np.sqrt(variance)
    bounds = []
    for unknown in (light[None], np.stack([light, light * x / 2, light * y / 2])):
        kept, weight = unknown[:, ~lost], 1 / variance[~lost]
        told = np.linalg.solve(kept * weight @ kept.T, kept * weight @ (trials - light)[:, ~lost].T)
        flux = trials[:, inside & ~lost].sum(axis=1) + (
            light[inside & lost].sum() + unknown[:, inside & lost].sum(1) @ told
        )
        aperture, bound = oracle_scatter(unknown, variance, lost, inside)
        assert aperture == pytest.approx(flux.std() / light[inside].sum(), rel=0.03)
        assert bound == pytest.approx(told[0].std(), rel=0.03)
        assert bound < aperture
        bounds.append(aperture)
        whole, _ = oracle_scatter(unknown, variance, np.zeros_like(lost), inside)
        assert whole == pytest.approx(np.sqrt(variance[inside].sum()) / light[inside].sum())
    assert bounds[1] > 1.1 * bounds[0]  # the pixels that tell the place best are lost


def test_bins_give_shift_and_scatter(recipe, tmp_path):
    stamps = recipe.stamps.model_copy(update={"offset": (0.0, 1.0)})  # all in the same bin
    recipe = recipe.model_copy(update={"stamps": stamps})
    part = science_part(recipe, (), lambda _: None, workers=0)
    assert len(part["bins"]) == 4  # of each magnitude, all copies in one bin
    for one in part["bins"]:
        clean, raw = one["methods"][CLEAN], one["methods"]["no repair"]
        assert 0 < clean["scatter"] < 1
        assert raw["shift"] <= 0  # light was added
        if one["kind"] == "star":
            assert one[FLUX_BOUND] < one[ORACLE] <= one[ORACLE_POSITION]
            assert 0.8 * clean["scatter"] < one[ORACLE] < 10 * clean["scatter"]
    near = [one["methods"] for one in part["bins"] if one["distance"][0] < 1]
    assert min(methods["no repair"]["shift_5"] for methods in near) < -0.05
    assert min(methods["median"]["shift_5"] for methods in near) > -0.05
    json.dumps(round_floats(part), allow_nan=False)  # the last bin has no end
    draw_science({"true": part}, tmp_path / "science.png")
    assert (tmp_path / "science.png").stat().st_size > 20_000
    lines = list(summary_lines({"science": {"small": {"true": part}}}))
    assert any(line.startswith("| median |") for line in lines)


@pytest.mark.parametrize("name", ["median", *PEERS])
def test_every_method_repairs_hit_pixels_alone(name, rng):
    """Ignored pixels, here of enormous value, are neither changed nor donors."""
    if name in PEERS:
        pytest.importorskip(PEERS[name][0])
    truth = (100 + rng.normal(0, 1, (48, 48))).astype(np.float32)
    hit, ignore = np.zeros((2, 48, 48), dtype=bool)
    hit[20:23, 10:14], ignore[20:23, 14:16] = True, True
    data = truth.copy()
    data[hit], data[ignore] = 9000, 50_000
    fixed, _ = repair_methods(())[name](MaskedImage(data, np.ones_like(data), ignore), hit)
    assert np.array_equal(fixed[~hit], data[~hit])
    if not name.startswith("deepCR"):  # which learnt from frames of another noise
        assert np.abs(fixed[hit] - 100).max() < 6


@pytest.fixture
def like_m51(tmp_path, rng):
    """A flat frame with noise, and twelve hit pixels."""
    truth = (50 + rng.normal(0, 1, (40, 40))).astype(np.float32)
    mask = np.zeros((40, 40), np.float32)
    mask[10:13, 10:14] = 1
    folder = tmp_path / "m51_inpaint"
    folder.mkdir()
    planes = {"m51_org": truth, "m51_with_cosmicrays": truth + 700 * mask, "m51_mask": mask}
    for name, plane in planes.items():
        fits.writeto(folder / f"{name}.fits", plane)
    return tmp_path


def test_errors_on_m51_are_of_masked_pixels_in_counts(like_m51):
    found = m51_part(like_m51, ())
    for key in ("rms", "mean_absolute", "bias"):
        assert found["no repair"][key] == pytest.approx(700, rel=1e-5)
    assert found["median"]["rms"] < 3
    assert found["median"]["pull"]["n"] == 12
    assert set(absent_peers()).isdisjoint(found)


def test_evaluated_sections_are_kept_and_new_ones_added(tmp_path, like_m51, monkeypatch):
    """Sections store their settings; only those with other settings are measured again."""
    done = []
    monkeypatch.setattr(evaluate_inpaint_module, "science_part", lambda *_, mask, **__: done.append(mask) or EMPTY)
    again = {"recipes": STORES, "to": tmp_path / "out", "parts": ["science"]}
    evaluate_inpaint(**again)
    both = evaluate_inpaint(data=like_m51, to=tmp_path / "out")
    assert done == ["true", "detected"] * 2  # and of the foreign twin
    assert {"science", "m51"} <= set(both)
    path = tmp_path / "out" / "inpaint_evaluation.json"
    stored = json.loads(path.read_text())
    assert set(stored) == set(both)
    lines = []
    evaluate_inpaint(**again, on_progress=lines.append)
    assert len(done) == 4
    assert "science/cr-science/true is up to date" in lines
    stored["measured"]["science/cr-science/detected"]["models"]["median"] = "another"
    path.write_text(json.dumps(stored))
    assert "science" in evaluate_inpaint(data=like_m51, to=tmp_path / "out")
    assert len(done) == 4
    evaluate_inpaint(**again)
    assert done[4:] == ["detected"]


EMPTY = {"mask": "true", "aperture": 5.0, "bins": [], "pulls": {}, "shapes": {}}


def test_shapes_are_measured_for_sources_that_a_mask_touches(unit):
    """All methods use the same sources; sources without a shape after a repair are counted."""
    touched = np.isfinite(unit.shapes["no repair"]).all(axis=1)
    assert 5 < touched.sum() < len(touched)
    assert (unit.columns["distance"][touched] < 7).all()
    assert (unit.shaped[touched] == 1).all()
    raw, repaired = (shape_statistics([unit], name) for name in ("no repair", "median"))
    for kind in ("star", "galaxy"):
        assert raw[kind]["n"] == repaired[kind]["n"] > 5
        assert 0 <= repaired[kind]["lost"] < 0.5


def test_shapes_are_size_and_distortions():
    """Of Gaussians, which adaptive moments give back: sigma^2 is the product of the two widths."""
    y, x = np.mgrid[:64, :128]
    wide, high = 2.5, 1.5
    frame = np.exp(-(((x - 30.2) / wide) ** 2 + ((y - 31.7) / high) ** 2) / 2)
    frame += np.exp(-((x - 95) ** 2 + (y - 31) ** 2) / 8)
    size, e1, e2 = science_module.measure_shapes(frame.astype(np.float32), np.array([30.2, 95]), np.array([31.7, 31])).T
    assert size == pytest.approx([np.sqrt(wide * high), 2], rel=1e-3)
    assert e1 == pytest.approx([(wide**2 - high**2) / (wide**2 + high**2), 0], abs=1e-3)
    assert e2 == pytest.approx([0, 0], abs=1e-3)


@pytest.fixture(scope="module")
def frame():
    """A field of a thousand galaxies and stars a megapixel, one pixel in forty hit, in all treatments."""
    recipe = load_recipe(STORES / "cr-detection-test.toml", scale=0.0625)
    return fields.measure_unit(recipe.model_copy(update={"exposures": 1}), 0, 8, models=())


def test_sources_that_were_hit_are_lost_without_repair(frame):
    """Left in, cosmic rays are the catalogue; masked or repaired, most of what the clean frame gives is found."""
    assert list(frame.treated) == [
        CLEAN,
        fields.DIRECT,
        fields.MASKED,
        fields.REJECTED,
        "median",
        "median, stars by PSF",
    ]
    found = {name: one.found[frame.hit].mean() for name, one in frame.treated.items()}
    purity = {name: one.true[one.hit].mean() for name, one in frame.treated.items()}
    assert frame.hit.sum() > 8
    assert found[CLEAN] > 0.6
    assert found[fields.DIRECT] < found["median"] <= found[CLEAN] + 0.1
    assert found[fields.REJECTED] < found[fields.MASKED]
    assert purity[fields.DIRECT] < 0.1 < purity["median"]


def test_magnitudes_are_those_of_the_catalogue_where_nothing_was_hit(frame):
    """Kron ellipses miss a few hundredths; a sum in the same ellipse over pixels that lack some is scaled to it."""
    away = frame.bright & ~frame.hit & (frame.magnitude < 24)
    twin = frame.treated[CLEAN]
    assert np.nanmedian(np.abs(twin.magnitude - frame.magnitude)[away]) < 0.15
    assert np.nanmedian(np.abs(twin.forced - twin.magnitude)[away]) < 0.03
    for name in ("median", fields.MASKED):
        assert np.nanmedian(np.abs(frame.treated[name].forced - twin.forced)[away]) < 0.02


def test_a_forced_sum_without_some_pixels_is_that_of_the_whole_ellipse():
    """On a flat frame: half of an ellipse masked, and the sum is what it was; all masked, and there is none."""
    flat = np.full((64, 64), 2.0, np.float32)
    twin = {"x": [30.0], "y": [30.0], "a": [2.0], "b": [2.0], "theta": [0.0], "kron_radius": [3.0], "flux": [226.0]}
    twin = {name: np.array(column) for name, column in twin.items()}
    place = fields.SourcePositions(np.array([30.5]), np.array([30.0]), np.array([20.0]))
    zero, sums = 20 + 2.5 * np.log10(226.0), []
    for column in (0, 30, 64):
        mask = np.zeros(flat.shape, bool)
        mask[:, :column] = True
        some = fields.TreatedFrame(flat, mask, np.ones_like(flat), mask)
        sums.append(fields.forced_fluxes(flat, some, twin, place, zero)[0])
    assert sums[0] == pytest.approx(2 * np.pi * 36, rel=0.01)
    assert sums[1] == pytest.approx(sums[0], rel=0.02)
    assert not np.isfinite(sums[2])


def test_chance_matches_are_measured_with_a_shifted_catalogue(frame):
    """As many of its sources are hit, but hardly any are found."""
    assert 0.5 < frame.hit_elsewhere.sum() / frame.hit.sum() < 2
    assert frame.treated["median"].by_chance[frame.hit_elsewhere].mean() < 0.1


def test_each_measured_source_is_one_of_the_catalogue_at_most():
    """The nearer of two takes it; one of another brightness, or too far, is none."""
    true = np.array([10.0, 50.0]), np.array([10.0, 50.0]), np.array([20.0, 22.0])
    x, y = np.array([10.5, 9.9, 50.0, 53.0]), np.array([10.0, 10.0, 50.0, 50.0])
    magnitude = np.array([20.0, 20.1, 24.0, 22.0])
    assert fields.match_to_catalogue(x, y, magnitude, *true).tolist() == [-1, 0, -1, -1]
    assert fields.match_to_catalogue(x[:1], y[:1], magnitude[:1], *true).tolist() == [0]
    assert fields.match_to_catalogue(np.empty(0), np.empty(0), np.empty(0), *true).tolist() == []


def test_percentiles_and_counts_are_those_of_known_errors(rng):
    true = np.full(4000, 21.2)
    measured = true + rng.normal(0.1, 0.2, 4000)
    half = np.where(np.arange(4000) % 2, measured, np.nan)
    rows = fields.photometry({CLEAN: measured, "half": half}, true, np.ones(4000, bool))
    ((row,), (other,)) = rows[CLEAN], rows["half"]
    assert (row["from"], row["to"], row["n"], other["n"]) == (21.0, 21.5, 2000, 2000)  # those that both measured
    assert (row["lost"], other["lost"]) == (0, 0.5)
    assert row["p50"] == pytest.approx(0.1, abs=0.02)
    assert row["p95"] - row["p5"] == pytest.approx(2 * 1.645 * 0.2, rel=0.05)
    true = rng.uniform(17, 25, 4000)
    same = fields.number_counts(true, true)
    assert same["ssim"] == pytest.approx(1)
    assert same["chi2"] == 0
    half = fields.number_counts(np.where(true > 23, np.nan, true), true)
    assert half["ssim"] < 0.9
    assert half["chi2"] > 10


def test_fields_have_tables_and_figures(frame, tmp_path, monkeypatch):
    monkeypatch.setattr(fields, "map_units", lambda *_, **__: [frame] * 8)
    part = fields.fields_part(None, (), lambda _: None)
    assert part["hit"]["star"] + part["hit"]["galaxy"] == 8 * frame.hit.sum()
    false = part["number_counts"]["everything"]
    assert sum(false[fields.DIRECT]["counts"]) > 2 * sum(false[CLEAN]["counts"])  # cosmic rays taken for sources
    json.dumps(round_floats(part), allow_nan=False)
    lines = list(summary_lines({"fields": {"small": {"detected": part}}}))
    assert any(line.startswith("| affected sources rejected |") for line in lines)
    draw_fields(part, tmp_path / "fields.png")
    assert (tmp_path / "fields.png").stat().st_size > 20_000


def test_m51(real_images):
    found = m51_part(real_images, ())
    assert found["median"]["rms"] < 0.5 * found["no repair"]["rms"]


def test_invalid_arguments_raise(tmp_path):
    with pytest.raises(InputError, match=r"--only.*some of science, fields, m51"):
        evaluate_inpaint(parts=["everything"])
    with pytest.raises(InputError, match=r"no input for science, fields, m51; wanted --recipes .* or --data"):
        evaluate_inpaint()
    with pytest.raises(InputError, match="--model"):
        evaluate_inpaint(["unknown"], recipes=tmp_path)
    with pytest.raises(InputError, match=r"m51_org\.fits: found no file"):
        evaluate_inpaint(data=tmp_path, parts=["m51"])
