"""Evaluation: what is measured of a reconstruction, by methods that must come out in a known order."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import uniform_filter
from typer.testing import CliRunner

from csstdask.cli import app
from csstdask.core.errors import InputError
from csstdask.evaluation.psf.evaluate import by_snr, evaluate_psf
from csstdask.evaluation.psf.figures import draw_bands, draw_counts
from csstdask.evaluation.psf.measure import (
    ALL_STARS,
    BOUND,
    BOUND_OF,
    NO_STARS,
    ONE_STAR,
    measure_stars,
    model_label,
)
from csstdask.evaluation.psf.tables import by_band, table
from csstdask.metrics.held_out_stars import held_out_stars
from csstdask.metrics.psf import draw_stars, psf_errors, psf_pulls
from csstdask.mock.recipe_tables import Nodes
from csstdask.nn.models import find_card
from csstdask.psf.selection import in_held_out_cell

RUNNER = CliRunner()


def test_errors_of_known_psfs(psf_stars):
    """A PSF that is 1 % too large, and a correct one."""
    truth = psf_stars.truth[:5]
    same = psf_errors(truth, truth)
    assert (same["psnr"] > 200).all()
    assert np.allclose(same["ssim"], 1)
    assert np.allclose(same["size"], 0)
    noisy = truth + np.random.default_rng(1).normal(0, 1e-3, truth.shape).astype(np.float32) * truth.max(
        axis=(1, 2), keepdims=True
    )
    assert np.abs(psf_errors(noisy, truth)["psnr"] - 60).max() < 0.5
    sheared = psf_errors(np.roll(truth, 1, axis=2) + truth, truth)
    assert (sheared["size"] > 0).all()
    assert (sheared["e1"] > 0).all()


def test_pulls_use_bright_pixels_only(psf_stars):
    truth = psf_stars.truth[:3]
    sigma = np.full_like(truth, 1e-4)
    pull = psf_pulls(truth + sigma, sigma, truth)
    assert np.allclose(pull, 1, atol=1e-2)
    assert len(pull) == (truth > 0.01 * truth.max(axis=(1, 2), keepdims=True)).sum()


@pytest.mark.slow
def test_more_stars_are_better_and_none_is_worst(psf_stars, psf_model):
    found = measure_stars(psf_stars, model=str(psf_model), psfex=False)
    psnr = {name: row["psnr"]["mean"] for name, row in found["methods"].items()}
    assert psnr[ALL_STARS] > psnr["10 stars"] > psnr[NO_STARS]
    assert psnr[ALL_STARS] > psnr[ONE_STAR] > psnr[NO_STARS]
    assert found["methods"][ALL_STARS]["seconds"] > 0
    assert found["n"] == len(psf_stars)
    assert found["reserve"]["n"] > 0


def test_comparison_with_held_out_stars(psf_stars, psf_model):
    """Held-out stars agree with the PSF within the noise; wider stars are detected."""
    kept = in_held_out_cell(psf_stars.x, psf_stars.y, psf_stars.shape)
    assert 5 < kept.sum() < len(psf_stars) - 5
    right = held_out_stars(psf_stars, str(psf_model))
    assert right["n"] == kept.sum()
    assert right["chi2"] == pytest.approx(1, abs=0.25)
    assert abs(right["size"]["mean"]) < 0.01
    assert np.isfinite(right["rho"]["rho1"]).any()
    wide = psf_stars.stamps.copy()
    wide[kept] = uniform_filter(wide[kept], (1, 3, 3)) / 2 + wide[kept] / 2
    wrong = held_out_stars(replace(psf_stars, stamps=wide), str(psf_model))
    assert wrong["size"]["mean"] < right["size"]["mean"] - 0.05
    assert wrong["chi2"] > 2


@pytest.mark.slow
def test_results_are_written_with_their_tables(psf_recipe, psf_model, tmp_path):
    stores = tmp_path / "stores"
    stores.mkdir()
    text = """
name = "psf-dataset2"
seed = 5
split = "test"
instrument = "csst"
exposures = 1
detectors = [7]
shape = [700, 700]
[[fields]]
name = "nodes"
pointing = [10.0, -20.0]
[nodes]
per_axis = 4
[optics]
exact = true
[cosmic_rays]
pixel_fraction = [0.0]
[artefacts]
satellites = 0.0
ghosts_above = 0.0
[stamps]
kind = "isolated"
size = 64
per_unit = 20
"""
    (stores / "psf-dataset2.toml").write_text(text)
    results = evaluate_psf(
        str(psf_model), tmp_path, recipes=stores, parts=("nodes",), psfex=False, workers=1, on_progress=lambda _: None
    )
    kept = json.loads((tmp_path / "psf_evaluation.json").read_text())
    assert kept["recipes"]["psf-dataset2"][0]["detector"] == 7
    assert kept["identity"] == results["identity"]
    assert (tmp_path / "psf-dataset2.png").stat().st_size > 10_000
    assert (tmp_path / "psf-dataset2-bands.png").stat().st_size > 5_000
    lines = list(table(results))
    assert (tmp_path / "psf_evaluation.md").read_text() == "\n".join(lines) + "\n"
    assert any(line.startswith("| all stars | ") for line in lines)


def test_tables_have_a_cell_for_each_column():
    spread = {"mean": 0.001, "sd": 0.002}
    row = {"psnr": {"mean": 70.0}, "ssim": {"mean": 1.0}, "size": spread, "e1": spread, "e2": spread}
    kept = {"n": 5, "chi2": 1.0, "size": spread, "e1": spread, "e2": spread, "rho": {"rho1": [None, 1e-6], "rho2": []}}
    unit = {"band": "g", "detector": 8, "methods": {ALL_STARS: row}, "reserve": kept}
    widths: list[list[int]] = []
    for line in table({"recipes": {"psf-dataset2": [unit]}}):
        if line:
            widths[-1].append(line.count("|"))
        else:
            widths.append([])
    assert len(widths) == 2
    assert all(len(set(one)) == 1 and len(one) == 3 for one in widths)


def test_fits_of_fewer_stars_are_optional(psf_stars, psf_model):
    methods = measure_stars(psf_stars, model=str(psf_model), psfex=False, compare_with=("empirical",), fewer=False)[
        "methods"
    ]
    other = model_label(find_card("psf", "empirical"))
    assert list(methods) == [ALL_STARS, other, f"{other}, blank"]
    assert methods[other]["psnr"]["mean"] > methods[f"{other}, blank"]["psnr"]["mean"] + 20


def test_bands_are_drawn_from_all_of_their_units(tmp_path):
    def unit(band, psnr):
        row = {"psnr": {"mean": psnr}, **{name: {"sd": 0.001} for name in ("size", "e1", "e2")}}
        return {"band": band, "methods": {"all stars": row}}

    units = [unit("y", 60.0), unit("g", 70.0), unit("y", 80.0)]
    assert by_band(units, "all stars", "psnr", "mean") == {"y": 70.0, "g": 70.0}
    draw_bands(units, tmp_path / "bands.png")
    assert (tmp_path / "bands.png").stat().st_size > 5_000


def test_saturated_stars_are_left_out(psf_recipe):
    bright = psf_recipe.model_copy(update={"nodes": Nodes(per_axis=3, snr=(3000.0, 3000.0))})
    with pytest.raises(InputError, match="no isolated star on detector 7; wanted stars that do not saturate"):
        draw_stars(bright, 0, 7)


def test_unknown_names_raise(tmp_path):
    with pytest.raises(InputError, match="--only: found nonsense"):
        evaluate_psf(recipes=tmp_path, parts=("nonsense",))
    with pytest.raises(InputError, match="--model: found model"):
        evaluate_psf("nonsense", recipes=tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "psf"],
        ["train", "psf", "--to", "x", "--epochs", "3"],
        ["evaluate", "psf"],
        ["evaluate", "psf", "--recipes", "stores", "--scale", "0.1"],
        ["evaluate", "psf", "--recipes", "stores", "--run", "x"],
    ],
)
def test_the_command_line_refuses_what_it_does_not_take(arguments):
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code != 0


def test_lower_bound_of_the_error(psf_stars, psf_model, monkeypatch, tmp_path):
    monkeypatch.setattr("csstdask.evaluation.psf.measure.SINGLE_STARS", 3)
    unit = measure_stars(psf_stars, model=str(psf_model), psfex=False, bounded=True)
    methods = unit["methods"]
    bound = {name: methods[BOUND + name]["psnr"]["mean"] for name in (ALL_STARS, ONE_STAR, "10 stars")}
    assert bound[ONE_STAR] < bound["10 stars"] < bound[ALL_STARS]
    assert methods[ALL_STARS]["psnr"]["mean"] < bound[ALL_STARS] + 3
    recipes = {"psf-newoptics": [], "psf-newoptics, S/N 150": [unit], "psf-newoptics, S/N 30": [unit]}
    assert list(by_snr(recipes)) == ["S/N 30", "S/N 150"]
    draw_counts(by_snr(recipes), BOUND_OF, tmp_path / "counts.png")
    assert (tmp_path / "counts.png").stat().st_size > 10_000
