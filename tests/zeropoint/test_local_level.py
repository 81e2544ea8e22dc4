"""The local level against the conditional normal distribution and simulations; causality of memory and errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from csstdask.zeropoint.local_level import LocalLevel, fit_local_level
from csstdask.zeropoint.memory import build_memory
from csstdask.zeropoint.recalibration import online_scale


def _history(rng: np.random.Generator, n: int = 120) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    days = rng.permutation(np.round(rng.uniform(0, 3, n), 2))  # rounded: some share their moment
    value = 25 + rng.normal(0, 0.05, n)
    value[rng.random(n) < 0.2] = np.nan
    sigma = rng.uniform(0.002, 0.02, n)
    sigma[rng.random(n) < 0.05] = np.inf
    return days, value, sigma, rng.integers(0, 4, n)


def test_empty_history() -> None:
    empty = np.zeros(0)
    memory = build_memory(empty, empty, empty, at=[1.0, 2.0], length=4)
    assert memory.value.shape == (2, 4)
    assert (memory.index == -1).all()
    assert len(build_memory(empty, empty, empty)) == 0
    mean, sigma = LocalLevel(0.01, 0.01).predict(empty, empty, empty)
    assert mean.shape == sigma.shape == (0,)
    assert online_scale(empty, empty).shape == (0,)
    with pytest.raises(ValueError, match="three solved"):
        fit_local_level(empty, empty, empty)
    with pytest.raises(ValueError, match="three solved"):
        fit_local_level([0.0, 1.0, 2.0], [25.0, np.nan, 25.0], [0.01, 0.01, 0.01])


def _condition(
    model: LocalLevel, days: np.ndarray, value: np.ndarray, sigma: np.ndarray, i: int
) -> tuple[float, float]:
    """Predict exposure i by conditioning a normal distribution on all that began earlier: no filter."""
    first = days.min()
    cover = model.initial_sigma**2 + model.walk**2 * (np.minimum.outer(days, days) - first)
    earlier = (days < days[i]) & np.isfinite(value)
    matrix = cover[np.ix_(earlier, earlier)] + np.diag(sigma[earlier] ** 2 + model.white**2)
    weights = np.linalg.solve(matrix, cover[earlier, i])
    mean = model.initial_mean + weights @ (value[earlier] - model.initial_mean)
    return mean, math.sqrt(cover[i, i] - weights @ cover[earlier, i] + model.white**2)


def test_filter_is_the_conditional_normal(rng: np.random.Generator) -> None:
    days = np.sort(rng.uniform(0, 5, 40))
    value, sigma = 25 + rng.normal(0, 0.05, 40), rng.uniform(0.001, 0.05, 40)
    value[[3, 17, 18]] = np.nan
    model = LocalLevel(0.03, 0.01, initial_mean=25.01, initial_sigma=0.08)
    shuffled = rng.permutation(40)
    mean, spread = model.predict(days[shuffled], value[shuffled], sigma[shuffled])
    for at, i in enumerate(shuffled):
        expected = _condition(model, days, value, sigma, i)
        assert (mean[at], spread[at]) == pytest.approx(expected, rel=1e-9)


def test_unknown_initial_level_and_growth_of_errors() -> None:
    model = LocalLevel(walk=0.02, white=0.003)
    mean, sigma = model.predict([0.0, 1.0, 400.0], [25.0, np.nan, np.nan], [0.004, np.nan, np.nan])
    assert math.isnan(mean[0])
    assert math.isinf(sigma[0])
    # level: 0.003^2 + 0.004^2 after the only measurement, then walk^2 t; white noise of the exposure itself on top
    assert mean[1:].tolist() == [25.0, 25.0]
    assert sigma[1:] == pytest.approx(np.sqrt(0.005**2 + 0.02**2 * np.array([1.0, 400.0]) + 0.003**2))


def test_jump_after_a_gap_only() -> None:
    days, value, sigma = [0.0, 0.1, 1.1], [25.0, 25.0, 25.0], [0.01, 0.01, 0.01]
    quiet = LocalLevel(0.01, 0.0).predict(days, value, sigma)[1]
    jumping = LocalLevel(0.01, 0.0, jump=0.3, gap=0.5).predict(days, value, sigma)[1]
    assert jumping[1] == quiet[1]
    assert jumping[2] ** 2 == pytest.approx(quiet[2] ** 2 + 0.3**2)


def test_outliers_count_less_with_a_finite_dof() -> None:
    days, sigma = np.arange(30.0), np.full(30, 0.01)
    value = np.full(30, 25.0)
    value[20] = 26.0
    assert LocalLevel(0.005, 0.0, initial_mean=25, initial_sigma=0.1).predict(days, value, sigma)[0][21] > 25.3
    assert LocalLevel(0.005, 0.0, initial_mean=25, initial_sigma=0.1, dof=3).predict(days, value, sigma)[0][21] < 25.02


def test_series_are_independent(rng: np.random.Generator) -> None:
    days, value, sigma, series = _history(rng)
    model = LocalLevel(0.02, 0.01, initial_mean=25, initial_sigma=0.1)
    mean, spread = model.predict(days, value, sigma, series=series)
    one = series == 2
    alone = model.predict(days[one], value[one], sigma[one])
    assert mean[one].tolist() == alone[0].tolist()
    assert spread[one].tolist() == alone[1].tolist()


def _walks(rng: np.random.Generator, n_series: int, n: int) -> tuple[np.ndarray, ...]:
    """Simulate series with walk 0.03 mag day^-1/2, white noise 6 mmag and measurement errors of 4 mmag."""
    series = np.repeat(np.arange(n_series), n)
    dt = rng.uniform(0.01, 0.2, (n_series, n))
    days = np.cumsum(dt, axis=1)
    level = rng.normal(25, 0.1, (n_series, 1)) + np.cumsum(rng.normal(0, 0.03 * np.sqrt(dt)), axis=1)
    truth = level + rng.normal(0, 0.006, level.shape)
    value = truth + rng.normal(0, 0.004, level.shape)
    return days.ravel(), truth.ravel(), value.ravel(), np.full(n_series * n, 0.004), series


def test_fit_finds_the_simulated_noise_and_covers(rng: np.random.Generator) -> None:
    days, truth, value, sigma, series = _walks(rng, 60, 100)
    value[rng.random(len(value)) < 0.1] = np.nan
    half = series < 45
    model = fit_local_level(days[half], value[half], sigma[half], series[half])
    assert model.walk == pytest.approx(0.03, rel=0.1)
    assert model.white == pytest.approx(0.006, rel=0.1)
    assert model.initial_mean == pytest.approx(25, abs=0.1)
    assert 0.05 < model.initial_sigma < 0.2
    mean, spread = model.predict(days[~half], value[~half], sigma[~half], series=series[~half])
    z = (truth[~half] - mean) / spread
    # 1,500 exposures: standard error of the shares 0.012 and 0.005
    assert (np.abs(z) < 1).mean() == pytest.approx(0.683, abs=0.036)
    assert (np.abs(z) < 2).mean() == pytest.approx(0.954, abs=0.017)


def test_fit_finds_a_jump(rng: np.random.Generator) -> None:
    days = np.concatenate([night + np.sort(rng.uniform(0, 0.4, 20)) for night in range(60)])
    night = np.floor(days).astype(int)
    value = 25 + np.cumsum(rng.normal(0, 0.05, 60))[night] + rng.normal(0, 0.005, len(days))
    model = fit_local_level(days, value, np.zeros(len(days)), gap=0.5)
    assert model.jump == pytest.approx(0.05, rel=0.25)
    assert model.white == pytest.approx(0.005, rel=0.1)
    assert model.walk < 0.01


def test_predictions_are_causal(rng: np.random.Generator) -> None:
    days, value, sigma, series = _history(rng)
    late = days >= 1.5
    changed = np.where(late, value + 5, value)
    model = LocalLevel(0.02, 0.01, initial_mean=25, initial_sigma=0.1, dof=4)
    upto = days <= 1.5  # those of the moment itself are not changed either
    for one, other in zip(
        model.predict(days, value, sigma, series=series),
        model.predict(days, changed, sigma, series=series),
        strict=True,
    ):
        assert one[upto].tolist() == other[upto].tolist()
        assert (one != other).any()
    error = value - 25
    scale = online_scale(error, sigma, days=days)
    other = online_scale(np.where(late, 10 * error, error), sigma, days=days)
    assert scale[upto].tolist() == other[upto].tolist()
    assert (scale != other).any()
    early, again = (build_memory(days, one, sigma, series=series).value[upto] for one in (value, changed))
    assert np.array_equal(early, again, equal_nan=True)
