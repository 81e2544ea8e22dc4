"""Evaluation of SED networks: scores, baselines, and a small evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from csstdask.core.errors import InputError
from csstdask.datasets.synthetic_spectra import synthetic_stars
from csstdask.datasets.template_bank import load_templates
from csstdask.evaluation.sed.baselines import InputBasis, empirical_correction, nearest, ridge
from csstdask.evaluation.sed.evaluate import evaluate_sed, summary_lines
from csstdask.evaluation.sed.scores import coverage, crps, noisy_inputs
from csstdask.evaluation.sed.settings import EvaluationSettings
from csstdask.training.sed.train import load_sed_config, train_sed


def test_coverage_of_gaussian_pulls() -> None:
    z = np.random.default_rng(1).normal(size=100_000)
    found = coverage(z)
    assert found["ks"] < 0.006
    assert found["coverage_68"] == pytest.approx(0.68, abs=0.005)
    assert found["coverage_95"] == pytest.approx(0.95, abs=0.003)
    assert coverage(2 * z)["robust_sd"] == pytest.approx(2, rel=0.01)


def test_crps_equals_numerical_integral() -> None:
    from scipy.stats import norm

    grid = np.linspace(-20, 20, 400_001)
    residual, sigma = 0.7, 1.3
    step = (grid >= 0).astype(float)
    integral = ((norm.cdf(grid, residual, sigma) - step) ** 2).sum() * (grid[1] - grid[0])
    assert float(crps(np.array(residual), np.array(sigma))) == pytest.approx(integral, rel=1e-4)


def test_correction_excludes_the_star_itself() -> None:
    truth = np.zeros((5, 3))
    truth[2] = 1.0
    teff = np.linspace(8.6, 8.61, 5)
    found = empirical_correction(np.zeros((5, 3)), teff, truth, at=teff, exclude_same=True)
    assert np.allclose(found[2], 0)
    assert (found[1] > 0.2).all()


def test_baselines_learn_and_the_bound_is_below_ridge(real_spectra: Path) -> None:
    bank = load_templates(real_spectra)
    rng = np.random.default_rng(2)
    basis = InputBasis(synthetic_stars(bank, "train", 1500, rng))
    stars = synthetic_stars(bank, "test", 300, rng)
    spectra = noisy_inputs(stars, 40, 3)
    truth = np.log(stars.sed)
    errors = {
        name: float(np.sqrt(((method(spectra.flux, 40) - truth) ** 2).mean()))
        for name, method in (("knn", nearest(basis)), ("ridge", ridge(basis)), ("bound", ridge(basis, stars)))
    }
    assert errors["bound"] < errors["ridge"] < 0.2
    assert errors["knn"] < 0.2


@pytest.mark.slow
def test_small_evaluation(real_spectra: Path, tmp_path: Path) -> None:
    changes = {
        "stars": 600, "validation": 64, "calibration": 128, "batch": 200, "epochs": 2, "members": 2, "width": 16,
        "components": 24, "sed_components": 8, "rank": 4, "covariance_epochs": 1,
        "scout_epochs": 1,
    }  # fmt: skip
    config = load_sed_config(None, data=str(real_spectra), **changes)
    card = train_sed(config, tmp_path / "training", on_progress=lambda _: None)
    settings = EvaluationSettings(stars=200, calibration=256, draws=100, fine_tuning=0)
    found = evaluate_sed(
        real_spectra, tmp_path / "out", model=str(card), compare_with=(), settings=settings, on_progress=lambda _: None
    )
    saved = json.loads((tmp_path / "out" / "sed.json").read_text())
    assert saved["held_out"]["stars"] == 200
    assert set(found) >= {"held_out", "calibration", "miles", "calspec", "kurucz", "lamost"}
    assert len(list((tmp_path / "out").glob("sed-*.png"))) >= 6
    assert any("CALSPEC" in line for line in summary_lines(found))


def test_missing_data_and_unknown_parts_raise(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder of spectral libraries"):
        evaluate_sed(tmp_path / "nothing")
    with pytest.raises(InputError, match="--only: found hair"):
        evaluate_sed(tmp_path, parts=("hair",))
