"""Metrics of predicted zero points against numbers by hand and known distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from csstdask.metrics.zeropoint import (
    correlations,
    coverage,
    coverage_by_quartile,
    error_statistics,
    paired_bootstrap,
    within_interval,
)


def test_errors_by_hand() -> None:
    found = error_statistics([1.0, 2.1, 2.96, np.nan], [1.0, 2.0, 3.0, 4.0])
    assert (found.n, found.n_missing) == (3, 1)
    assert found.rmse == pytest.approx(math.sqrt((0.1**2 + 0.04**2) / 3))
    assert found.mae == pytest.approx(0.14 / 3)
    assert found.bias == pytest.approx(0.06 / 3)
    assert found.mad == pytest.approx(1.4826 * 0.04, rel=1e-4)  # errors -0.04, 0, 0.1 about their median 0
    assert found.failures == pytest.approx(1 / 3)


def test_no_exposures() -> None:
    found = error_statistics([np.nan], [25.0])
    assert (found.n, found.n_missing) == (0, 1)
    assert math.isnan(found.mae)
    assert all(math.isnan(one) for one in coverage([np.nan], [0.1]).values())
    assert all(math.isnan(one) for one in correlations([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]).values())
    with pytest.raises(ValueError, match="no exposure"):
        paired_bootstrap([np.nan], [0.1], [1])


def test_correlations_equal_scipy(rng: np.random.Generator) -> None:
    from scipy.stats import pearsonr, spearmanr

    one, two = rng.normal(size=(2, 200))
    found = correlations(np.append(one, np.nan), np.append(one + two, 1.0))
    assert found["pearson"] == pytest.approx(pearsonr(one, one + two).statistic)
    assert found["spearman"] == pytest.approx(spearmanr(one, one + two).statistic)


def test_coverage_of_normal_errors(rng: np.random.Generator) -> None:
    sigma = rng.uniform(0.01, 0.1, 40_000)
    error = sigma * rng.normal(size=40_000)
    found = coverage(error, sigma)
    assert found["coverage_68"] == pytest.approx(0.6827, abs=0.008)
    assert found["coverage_95"] == pytest.approx(0.9545, abs=0.004)
    wider = coverage(error, sigma, 2 * sigma)
    assert wider["coverage_68"] == found["coverage_68"]
    assert wider["coverage_95"] > 0.999
    quartiles = coverage_by_quartile(error, sigma)
    assert [one["n"] for one in quartiles] == [10_000] * 4
    assert [one["sigma"] for one in quartiles] == pytest.approx([0.02125, 0.04375, 0.06625, 0.08875], rel=0.02)
    assert [one["coverage_68"] for one in quartiles] == pytest.approx([0.6827] * 4, abs=0.02)


def test_quartiles_reveal_uninformative_sigmas(rng: np.random.Generator) -> None:
    sigma = np.repeat([0.01, 0.02], 20_000)
    error = np.sqrt(np.mean(sigma**2)) * rng.normal(size=40_000)  # the same for all: sigma carries no information
    quartiles = [one["coverage_68"] for one in coverage_by_quartile(error, sigma)]
    assert quartiles[0] < 0.5
    assert quartiles[3] > 0.78


def test_unknown_and_infinite_sigma() -> None:
    found = within_interval([0.1, 0.1, np.nan, 0.1], [np.inf, np.nan, 0.1, 0.05], 1.0)
    assert np.array_equal(found, [1.0, np.nan, np.nan, 0.0], equal_nan=True)


def test_bootstrap_accounts_for_the_number_of_nights(rng: np.random.Generator) -> None:
    nights = np.repeat(np.arange(25), 100)
    shift = rng.normal(0, 0.02, 25)
    second = 0.1 * np.ones(2500)
    first = second + shift[nights]
    by_night = paired_bootstrap(first, second, nights, seed=3)
    by_row = paired_bootstrap(first, second, np.arange(2500), seed=3)
    width = (by_night.interval_68[1] - by_night.interval_68[0]) / 2
    assert width == pytest.approx(shift.std() / 5, rel=0.1)  # standard error of 25 independent nights
    assert width > 7 * (by_row.interval_68[1] - by_row.interval_68[0]) / 2
    assert by_night.difference == pytest.approx(shift.mean())
    assert by_night.n_nights == 25
    assert paired_bootstrap(first, second, nights, seed=3) == by_night


def test_bootstrap_of_a_clear_difference() -> None:
    nights = np.repeat(np.arange(10), 5)
    better = paired_bootstrap(np.full(50, -0.09), np.full(50, 0.1), nights)
    assert better.difference == pytest.approx(-0.01)
    assert better.relative == pytest.approx(-0.1)
    assert better.probability_better == 1
    assert better.not_worse
    worse = paired_bootstrap(np.full(50, 0.11), np.full(50, 0.1), nights)
    assert not worse.not_worse
    assert worse.as_dict()["interval_95"] == pytest.approx([0.01, 0.01])
