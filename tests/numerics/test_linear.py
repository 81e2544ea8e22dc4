"""Batched solutions of small symmetric systems."""

import numpy as np

from csstdask.numerics.linear import invert_symmetric, smallest_eigenvalue


def test_inverses_do_not_depend_on_units():
    rng = np.random.default_rng(0)
    half = rng.normal(size=(20, 4, 9))
    matrix = half @ half.swapaxes(1, 2)
    units = np.array([1e-8, 1.0, 1e6, 1e9])
    scaled = matrix * units[:, None] * units
    inverse = invert_symmetric(scaled)
    np.testing.assert_allclose(inverse * units[:, None] * units, np.linalg.inv(matrix), rtol=1e-8)
    np.testing.assert_array_equal(inverse, inverse.swapaxes(1, 2))
    np.testing.assert_allclose(smallest_eigenvalue(scaled), smallest_eigenvalue(matrix), rtol=1e-8)


def test_the_smallest_eigenvalue_shows_what_is_singular():
    assert abs(smallest_eigenvalue(np.diag([1e-9, 7.0])) - 1) < 1e-12
    assert abs(smallest_eigenvalue(np.ones((3, 3)))) < 1e-12
