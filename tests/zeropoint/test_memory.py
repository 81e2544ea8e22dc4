"""Memory of earlier zero points against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from csstdask.zeropoint.memory import build_memory


def _history(rng: np.random.Generator, n: int = 120) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    days = rng.permutation(np.round(rng.uniform(0, 3, n), 2))  # rounded: some share their moment
    value = 25 + rng.normal(0, 0.05, n)
    value[rng.random(n) < 0.2] = np.nan
    sigma = rng.uniform(0.002, 0.02, n)
    sigma[rng.random(n) < 0.05] = np.inf
    return days, value, sigma, rng.integers(0, 4, n)


def test_memory_equals_brute_force(rng: np.random.Generator) -> None:
    days, value, sigma, series = _history(rng)
    memory = build_memory(days, value, sigma, length=5, series=series)
    for i in range(len(days)):
        earlier = [
            j for j in range(len(days))
            if days[j] < days[i] and series[j] == series[i] and np.isfinite(value[j]) and np.isfinite(sigma[j])
        ]  # fmt: skip
        earlier.sort(key=lambda j: -days[j])
        known = memory.index[i][memory.index[i] >= 0]
        assert len(known) == min(5, len(earlier)) == memory.count[i]
        assert days[known].tolist() == days[earlier[:5]].tolist()  # of equal moments, either may come first
        k = len(known)
        assert memory.value[i, :k].tolist() == value[known].tolist()
        assert memory.age[i, :k] == pytest.approx(days[i] - days[known])
        assert np.isnan(memory.value[i, k:]).all()
        assert np.isnan(memory.age[i, k:]).all()


def test_memory_at_other_times(rng: np.random.Generator) -> None:
    days, value, sigma, series = _history(rng)
    at, labels = np.array([-1.0, 1.5, 99.0, 1.5]), np.array([0, 0, 0, 77])
    memory = build_memory(days, value, sigma, length=3, series=series, at=at, at_series=labels)
    assert memory.count.tolist() == [0, 3, 3, 0]  # before everything, within, long after, a series without history
    both = build_memory(
        np.append(days, 1.5), np.append(value, np.nan), np.append(sigma, 1), length=3, series=np.append(series, 0)
    )
    assert memory.index[1].tolist() == both.index[-1].tolist()
    assert memory.age[2, 0] > 96
    with pytest.raises(ValueError, match="at_series"):
        build_memory(days, value, sigma, series=series, at=at)
