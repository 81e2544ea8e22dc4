"""Online recalibration of errors against simulations."""

from __future__ import annotations

import numpy as np
import pytest

from csstdask.zeropoint.recalibration import online_scale


def test_scale_starts_at_one_and_ignores_unknown_errors() -> None:
    scale = online_scale([np.nan, 0.5, np.nan, 3.0], [1.0, 1.0, np.inf, 0.0])
    assert scale[:2].tolist() == [1.0, 1.0]
    assert scale[2] == scale[3]


@pytest.mark.parametrize("level", [0.6827, 0.9545])
def test_scale_follows_a_change_of_the_errors(rng: np.random.Generator, level: float) -> None:
    size = np.repeat([2.0, 0.5, 3.0], 2000)
    error, sigma = size * rng.standard_t(4, 6000), np.full(6000, 1.0)
    scale = online_scale(error, sigma, level=level)
    z = {0.6827: 1.0, 0.9545: 2.0}[level]
    inside = np.abs(error) < z * scale * sigma
    assert inside.mean() == pytest.approx(level, abs=0.01)
    assert [inside[i : i + 2000].mean() for i in (0, 2000, 4000)] == pytest.approx([level] * 3, abs=0.03)
    assert np.median(scale[1000:2000]) / np.median(scale[3000:4000]) == pytest.approx(4, rel=0.15)


def test_groups_are_recalibrated_separately(rng: np.random.Generator) -> None:
    groups = rng.integers(0, 2, 4000)
    error = np.where(groups == 1, 3.0, 0.5) * rng.normal(size=4000)
    scale = online_scale(error, np.ones(4000), groups=groups)
    assert np.median(scale[groups == 1][-500:]) == pytest.approx(3, rel=0.2)
    assert np.median(scale[groups == 0][-500:]) == pytest.approx(0.5, rel=0.2)
