"""Probability: against SciPy's distributions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, norm

from csstdask.numerics.probability import WITHIN_ONE_SIGMA, WITHIN_TWO_SIGMA, poisson_binomial


def test_equal_trials_are_binomial():
    np.testing.assert_allclose(poisson_binomial([0.3] * 7), binom.pmf(np.arange(8), 7, 0.3), rtol=1e-12)


def test_mean_and_variance_of_unequal_trials():
    p = np.array([0.1, 0.5, 0.9, 0.02])
    chance, number = poisson_binomial(p), np.arange(5)
    assert chance.sum() == pytest.approx(1)
    assert chance @ number == pytest.approx(p.sum())
    assert chance @ number**2 - (chance @ number) ** 2 == pytest.approx((p * (1 - p)).sum())


def test_coverage_of_a_gaussian():
    assert norm.cdf(1) - norm.cdf(-1) == pytest.approx(WITHIN_ONE_SIGMA, abs=5e-5)
    assert norm.cdf(2) - norm.cdf(-2) == pytest.approx(WITHIN_TWO_SIGMA, abs=5e-5)
