"""Batched solutions of small symmetric systems."""

import numpy as np

from csstdask.numerics.linear import invert_symmetric, invert_with_ridge, smallest_eigenvalue, solve_with_ridge


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


def test_a_ridge_solves_around_an_unconstrained_unknown(rng):
    """Whatever the units, constrained unknowns are those of the system without the other, which becomes 0."""
    root = rng.normal(size=(4, 3, 3)) * [1e6, 1.0, 1e-6]
    matrix, right = np.zeros((4, 4, 4)), np.zeros((4, 4, 1))
    matrix[:, :3, :3], right[:, :3] = root.transpose(0, 2, 1) @ root, rng.normal(size=(4, 3, 1))
    solved = solve_with_ridge(matrix, right)
    expected = np.stack([invert_symmetric(one) for one in matrix[:, :3, :3]]) @ right[:, :3]
    np.testing.assert_allclose(solved[:, :3], expected, rtol=1e-6)
    assert (solved[:, 3] == 0).all()
    inverse = invert_with_ridge(matrix)
    np.testing.assert_allclose(inverse @ right, solved, rtol=1e-6, atol=1e-12)
    assert (inverse[:, 3, 3] > 1e30).all()
