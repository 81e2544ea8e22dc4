"""Robust scale, weights and fits."""

import numpy as np

from csstdask.numerics.robust import (
    huber_weights,
    mad_scale,
    min_kept_points,
    nan_median,
    robust_linear_fit,
    tukey_weights,
)


def test_the_median_of_numbers_and_nothing():
    values = np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, np.nan], [5.0, 1.0, 2.0]])
    np.testing.assert_array_equal(nan_median(values, axis=1), [2.0, np.nan, 2.0])
    stack = np.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(nan_median(stack, axis=(1, 2)), np.median(stack, axis=(1, 2)))


def test_the_scale_of_normal_values_and_its_floor():
    values = np.random.default_rng(1).normal(0, 3, 20000)
    assert abs(mad_scale(values) / 3 - 1) < 0.03
    assert mad_scale(np.ones(9), floor=0.2) == 0.2
    assert mad_scale([np.nan, np.nan], floor=0.5) == 0.5


def test_weights_fall_as_they_are_defined():
    np.testing.assert_allclose(huber_weights([0.0, 1.0, -2.69]), [1, 1, 0.5])
    np.testing.assert_allclose(tukey_weights([0.0, 2.3425, 5.0]), [1, 0.5625, 0])


def test_half_of_the_points_and_three_more_than_parameters_stay():
    assert min_kept_points([0, 3, 10, 400], 6).tolist() == [0, 3, 9, 200]


def test_a_fit_ignores_outliers_and_never_collapses():
    rng = np.random.default_rng(2)
    x = rng.uniform(-1, 1, 60)
    terms = np.stack([np.ones(60), x], axis=1)
    values = 1 + 2 * x + rng.normal(0, 0.1, 60)
    values[:15] += 30
    found, weights = robust_linear_fit(terms, values, np.full(60, 0.01))
    assert np.all(np.abs(found - [1, 2]) < 0.08)
    assert np.all(weights[:15] == 0)
    exact = robust_linear_fit(terms, 1 + 2 * x + (np.arange(60) == 3), np.full(60, 1e-20))
    np.testing.assert_allclose(exact[0], [1, 2], atol=1e-9)
    assert np.count_nonzero(exact[1]) >= 30
    nothing = robust_linear_fit(terms, np.full(60, np.nan), np.ones(60))
    assert not nothing[0].any()
    assert not nothing[1].any()
