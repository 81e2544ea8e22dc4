"""Legendre products over a frame."""

import numpy as np
import pytest

from csstdask.numerics.polynomials import evaluate_on_grid, legendre_products, legendre_values, n_terms, term_degrees

SHAPE = (64, 96)


def test_values_are_those_of_numpy():
    u = np.linspace(-1, 1, 11)
    expected = np.polynomial.legendre.legvander(u, 6)
    np.testing.assert_allclose(legendre_values(u, 6), expected, atol=1e-14)


@pytest.mark.parametrize("degree", [0, 1, 2, 4])
def test_the_mean_over_the_frame_is_that_of_the_first_term(degree):
    node, weight = np.polynomial.legendre.leggauss(8)
    x, y = (node + 1) / 2 * SHAPE[1] - 0.5, (node + 1) / 2 * SHAPE[0] - 0.5
    terms = legendre_products(x, y[:, None], degree, SHAPE)
    mean = np.einsum("yxk,y,x->k", terms, weight / 2, weight / 2)
    np.testing.assert_allclose(mean, np.eye(1, n_terms(degree))[0], atol=1e-14)


def test_the_terms_of_a_lower_degree_come_first():
    x, y = np.arange(5.0), np.arange(5.0) * 7
    np.testing.assert_array_equal(legendre_products(x, y, 3, SHAPE)[:, :6], legendre_products(x, y, 2, SHAPE))
    assert term_degrees(3).sum(axis=1).tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]


def test_a_grid_agrees_with_points():
    rng = np.random.default_rng(0)
    coefficients = rng.normal(size=(3, n_terms(3)))
    x, y = np.array([0.0, 10.0, 95.0]), np.array([5.0, 63.0])
    expected = np.einsum("yxk,wk->wyx", legendre_products(x, y[:, None], 3, SHAPE), coefficients)
    np.testing.assert_allclose(evaluate_on_grid(coefficients, x, y, 3, SHAPE), expected, atol=1e-13)
