"""Robust fit of a zero point: exact answers, tested errors, and the input of real catalogues."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from csstdask.numerics.robust import mad_scale
from csstdask.zeropoint.fit_stars import COLOR_TERM, SCATTER_FLOOR, bootstrap_sigma, fit_stars

SHAPE = (9232, 9216)
TRUTH = 25.5


def stars(
    n: int, seed: int = 0, *, outliers: float = 0.0, scatter: float = 0.01, color_term: float = 0.02
) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    inst_mag = rng.uniform(-10, -6, n)
    inst_mag_err, ref_mag_err = rng.uniform(0.005, 0.03, n), rng.uniform(0.005, 0.02, n)
    color, (x, y) = rng.normal(0.7, 0.3, n), rng.uniform(0, 9000, (2, n))
    noise = rng.standard_normal(n) * np.sqrt(inst_mag_err**2 + ref_mag_err**2 + scatter**2)
    ref_mag = inst_mag + TRUTH + color_term * color + noise
    wrong = rng.random(n) < outliers
    ref_mag[wrong] += rng.normal(0, 0.5, int(wrong.sum()))
    return {
        "inst_mag": inst_mag, "inst_mag_err": inst_mag_err, "ref_mag": ref_mag, "ref_mag_err": ref_mag_err,
        "color": color, "x": x, "y": y,
    }  # fmt: skip


def test_a_linear_model_without_noise_is_recovered() -> None:
    table = stars(400, scatter=0.0)
    u, v = 2 * (table["x"] + 0.5) / SHAPE[1] - 1, 2 * (table["y"] + 0.5) / SHAPE[0] - 1
    table["ref_mag"] = table["inst_mag"] + TRUTH + 0.05 * table["color"] + 0.01 * u - 0.02 * v
    fit = fit_stars(**table, shape=SHAPE, flat_sigma=1.0, color_term=(0.0, 10.0))
    # Priors of 1 and 10 mag pull by (error / width)^2, some 1e-6.
    assert fit.value == pytest.approx(TRUTH, abs=1e-5)
    assert fit.color_term == pytest.approx(0.05, abs=1e-5)
    assert fit.coefficients == pytest.approx([0.01, -0.02], abs=1e-5)
    assert fit.n_matched == fit.n_used == 400


@pytest.mark.parametrize(("n", "outliers"), [(1, 0.0), (3, 0.0), (10, 0.05), (30, 0.05), (100, 0.05), (30, 0.3)])
def test_quoted_errors_are_the_scatter_of_zero_points(n: int, outliers: float) -> None:
    z = []
    rng = np.random.default_rng(5)
    for seed in range(300):
        term = rng.normal(0.02, 0.01)
        fit = fit_stars(**stars(n, seed, outliers=outliers, color_term=term), shape=SHAPE, color_term=(0.02, 0.01))
        z.append((fit.value - TRUTH) / fit.sigma)
    # 300 draws determine a standard deviation to 4 %, and 68 % to .027; three of each are allowed. Priors that are
    # exactly right (F is 0 here) make errors slightly too large.
    assert 0.78 < float(mad_scale(z, center=0.0)) < 1.14
    assert np.mean(np.abs(z) < 1) == pytest.approx(0.72, abs=0.1)
    assert np.mean(np.abs(z) < 2) > 0.91


def test_quoted_error_equals_the_bootstrap() -> None:
    table = stars(300, seed=3, outliers=0.05)
    assert fit_stars(**table).sigma == pytest.approx(bootstrap_sigma(200, 1, **table), rel=0.2)


def test_intrinsic_scatter_is_found_and_never_zero() -> None:
    assert fit_stars(**stars(2000, scatter=0.03)).scatter == pytest.approx(0.03, rel=0.1)
    inst = np.linspace(-10, -6, 50)
    exact = fit_stars(inst, np.zeros(50), inst + TRUTH, np.zeros(50))  # stars that agree exactly, without errors
    assert exact.scatter >= SCATTER_FLOOR
    assert exact.sigma >= SCATTER_FLOOR / np.sqrt(50)
    assert exact.n_used == 50


def test_equal_stars_do_not_reject_the_others() -> None:
    # A scale of 0 would reject all but the 31 equal stars.
    inst = np.linspace(-10, -6, 60)
    offset = np.where(np.arange(60) % 2, 0.0, np.random.default_rng(0).normal(0, 0.004, 60))
    fit = fit_stars(inst, np.full(60, 0.005), inst + TRUTH + offset, np.full(60, 0.005))
    assert fit.n_used == 60


def test_no_stars_give_no_zero_point() -> None:
    fit = fit_stars([], [], [], [], [], [], [])
    assert np.isnan(fit.value)
    assert fit.sigma == np.inf
    assert (fit.n_matched, fit.n_used, fit.chi2) == (0, 0, 0.0)
    assert (fit.color_term, fit.color_term_err) == COLOR_TERM


def test_error_of_one_star_includes_color_and_position_terms() -> None:
    fit = fit_stars([-8.0], [0.01], [17.5], [0.0], [1.0], [0.0], [0.0], shape=(100, 100))
    assert fit.value == pytest.approx(25.5)
    assert fit.n_used == 1
    # The star, its scatter, a colour term of 0.1 at colour 1, two terms of 0.01 at a corner, where |u| = |v| = .99.
    expected = np.sqrt(0.01**2 + fit.scatter**2 + 0.1**2 + 2 * (0.01 * 0.99) ** 2)
    assert fit.sigma == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("sentinel", [np.nan, np.inf, -9999.0, 99.0, 130.0])
@pytest.mark.parametrize("column", ["inst_mag", "ref_mag"])
def test_missing_magnitudes_are_ignored(column: str, sentinel: float) -> None:
    table = stars(100)
    bad = {name: values.copy() for name, values in table.items()}
    bad[column][:20] = sentinel
    fit, rest = fit_stars(**bad, shape=SHAPE), fit_stars(**{k: v[20:] for k, v in table.items()}, shape=SHAPE)
    assert fit.n_matched == 80
    assert fit.value == pytest.approx(rest.value, abs=1e-12)
    assert np.isnan(fit.residuals[:20]).all()
    assert (fit.weights[:20] == 0).all()


@pytest.mark.parametrize("missing", [0.0, -1.0, np.nan, 99.0, -9999.0])
def test_unknown_errors_are_replaced_by_typical_ones(missing: float) -> None:
    table = stars(200)
    table["ref_mag_err"][:] = 0.01
    known = fit_stars(**table)
    table["ref_mag_err"][:50] = missing
    fit = fit_stars(**table)
    assert fit.value == pytest.approx(known.value, abs=1e-12)
    assert fit.sigma == pytest.approx(known.sigma, rel=1e-9)


def test_order_and_repeated_rows_change_no_bit() -> None:
    table = stars(80, outliers=0.1)
    order = np.random.default_rng(1).permutation(80)
    fit = fit_stars(**table, shape=SHAPE)
    shuffled = fit_stars(**{name: values[order] for name, values in table.items()}, shape=SHAPE)
    twice = fit_stars(**{name: np.concatenate([values, values[:30]]) for name, values in table.items()}, shape=SHAPE)
    for other in (shuffled, twice):
        assert (other.value, other.sigma, other.n_used, other.chi2) == (fit.value, fit.sigma, fit.n_used, fit.chi2)
    assert (shuffled.weights == fit.weights[order]).all()


def test_stars_that_all_disagree_have_a_wide_error() -> None:
    inst = np.linspace(-10, -6, 20)
    wrong = np.random.default_rng(2).uniform(-1, 1, 20)
    fit = fit_stars(inst, np.full(20, 0.01), inst + TRUTH + wrong, np.full(20, 0.01))
    assert fit.sigma > 0.05
    assert abs(fit.value - TRUTH) < 4 * fit.sigma


def test_a_minority_of_true_matches_in_a_cluster_of_offsets() -> None:
    # Two thirds of the stars agree, one third is off by half a magnitude to one side: a mean would be .17 off.
    table = stars(60, scatter=0.0)
    table["ref_mag"][:20] += 0.5
    fit = fit_stars(**table, shape=SHAPE, color_term=(0.02, 0.01))
    assert abs(fit.value - TRUTH) < 4 * fit.sigma
    assert (fit.weights[:20] == 0).all()


def test_prior_and_stars_are_combined_by_precision() -> None:
    inst = np.linspace(-10, -6, 25)
    columns = inst, np.full(25, 0.02), inst + TRUTH, np.full(25, 0.0)
    alone = fit_stars(*columns)
    joined = fit_stars(*columns, prior=(TRUTH + 0.004, 0.004))
    weight = alone.sigma**-2, 0.004**-2
    assert joined.sigma == pytest.approx(sum(weight) ** -0.5, rel=0.01)
    assert joined.value == pytest.approx(TRUTH + 0.004 * weight[1] / sum(weight), abs=2e-5)


def test_one_wrong_star_does_not_move_a_good_prior() -> None:
    fit = fit_stars([-8.0], [0.01], [17.2], [0.01], prior=(TRUTH, 0.005))
    assert (fit.value, fit.sigma, fit.n_used) == (TRUTH, 0.005, 0)


def test_unknown_colours_have_less_weight() -> None:
    table = stars(200, color_term=0.0)
    all_known = fit_stars(**table)
    table["color"][:100] = np.nan
    half = fit_stars(**table)
    assert half.n_used > 190
    assert half.color_term_err > all_known.color_term_err
    table["color"][:] = np.nan
    assert fit_stars(**table).color_term == pytest.approx(COLOR_TERM[0])


def test_three_stars_that_disagree_still_give_a_wide_zero_point() -> None:
    fit = fit_stars([-8.0, -8.5, -9.0], [0.01] * 3, [17.5, 17.3, 16.1], [0.01] * 3)
    assert np.isfinite(fit.value)
    assert fit.n_used >= 2
    assert fit.sigma > 0.05


@pytest.mark.parametrize("sentinel", [-9999.0, 99.0, np.inf, np.nan])
def test_sentinel_colours_are_unknown(sentinel: float) -> None:
    table = stars(50, color_term=0.1)
    exact = fit_stars(**table, shape=SHAPE)
    table["color"][:2] = sentinel
    fit = fit_stars(**table, shape=SHAPE)
    assert fit.color_term == pytest.approx(exact.color_term, abs=0.02)
    assert fit.value == pytest.approx(exact.value, abs=0.02)
    table["color"][:] = sentinel
    none = fit_stars(**table, shape=SHAPE)
    assert (none.color_term, none.color_term_err) == pytest.approx(COLOR_TERM)
    assert none.sigma < 0.02


def test_repeated_rows_with_unknown_values_count_once() -> None:
    table = stars(20)
    table["ref_mag_err"][:] = np.nan
    table["color"][:10] = np.nan
    once = fit_stars(**table, shape=SHAPE)
    twice = fit_stars(**{name: np.tile(values, 2) for name, values in table.items()}, shape=SHAPE)
    assert (twice.n_matched, twice.value, twice.sigma) == (20, once.value, once.sigma)


def test_unknown_positions_have_less_weight() -> None:
    table = stars(30)
    table["x"][:10] = np.nan
    fit = fit_stars(**table, shape=SHAPE)
    assert fit.n_matched == 30
    assert np.isfinite(fit.residuals).all()
    table["x"][:] = np.nan
    assert np.isfinite(fit_stars(**table, shape=SHAPE).value)


def test_the_covariance_of_f_is_its_prior_without_stars_and_small_with_many() -> None:
    assert fit_stars([], [], [], [], None, [], [], flat_sigma=0.01).coefficient_covariance == pytest.approx(
        np.eye(2) * 1e-4
    )
    covariance = fit_stars(**stars(1000), shape=SHAPE).coefficient_covariance
    # 1000 stars of 25 mmag or so, and a mean square of 1/3: 1.4 mmag a term.
    assert np.sqrt(np.diag(covariance)) == pytest.approx(0.0014, rel=0.3)
