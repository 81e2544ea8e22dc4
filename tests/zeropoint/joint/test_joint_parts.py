"""Parts of the joint solve: canonical order, weights, components and linear algebra."""

import numpy as np
import pytest
import scipy.sparse as sp

from csstdask.numerics.robust import huber_weights, tukey_weights
from csstdask.zeropoint.joint.components import exposure_components
from csstdask.zeropoint.joint.linear_algebra import factorise, solve_iteratively
from csstdask.zeropoint.joint.normal_equations import MAX_PAIRS_PER_BATCH, find_overlaps, star_equations
from csstdask.zeropoint.joint.observations import group_by_star
from csstdask.zeropoint.joint.robust import (
    MIN_WEIGHT,
    Loss,
    Precision,
    drop_inconsistent_exposures,
    intrinsic_scatter,
    measurement_precision,
    residual_scale,
)


def random_rows(rng, n_stars=80, n_units=9, n=400, known=0.5):
    unit, star = rng.integers(0, n_units, n), rng.integers(0, n_stars, n)
    reference = np.where(rng.random(n_stars) < known, rng.uniform(18, 22, n_stars), np.nan)
    variance = np.where(np.isfinite(reference), 1e-4, np.inf)
    return group_by_star(unit, star, rng.uniform(18, 22, n), rng.uniform(1e-5, 1e-3, n), reference, variance)


def test_elimination_is_the_schur_complement_of_the_magnitudes():
    """Eliminate the magnitudes from the dense normal matrix of magnitudes and zero points."""
    rng = np.random.default_rng(0)
    rows, n_units = random_rows(rng), 9
    precision = Precision(
        rng.uniform(0, 1, len(rows.unit)),
        np.where(np.isfinite(rows.reference), rng.uniform(0, 1, rows.n_stars), 0.0),
    )
    pairs = find_overlaps(rows, n_units)
    found = star_equations(rows, precision, pairs)
    star = np.repeat(np.arange(rows.n_stars), np.diff(rows.start))
    design = np.zeros((len(star) + rows.n_stars, rows.n_stars + n_units))
    design[np.arange(len(star)), star] = 1
    design[np.arange(len(star)), rows.n_stars + rows.unit] = -1
    design[len(star) :, : rows.n_stars] = np.eye(rows.n_stars)
    weight = np.concatenate([precision.observation, precision.reference])
    target = np.concatenate([rows.magnitude, np.nan_to_num(rows.reference)])
    full, vector = design.T @ (weight[:, None] * design), design.T @ (weight * target)
    s = slice(0, rows.n_stars)
    u = slice(rows.n_stars, None)
    solved = np.linalg.solve(full[s, s], full[s, u])
    expected = full[u, u] - full[u, s] @ solved
    matrix = np.zeros((n_units, n_units))
    matrix[pairs.first, pairs.second] = found.pair
    matrix += matrix.T
    np.testing.assert_allclose(matrix, expected - np.diag(np.diag(expected)), atol=1e-12)
    np.testing.assert_allclose(found.from_reference, expected.sum(axis=1), atol=1e-11)
    np.testing.assert_allclose(found.vector, vector[u] - solved.T @ vector[s], atol=1e-10)


def test_pairs_found_in_several_steps_are_the_same():
    rows = random_rows(np.random.default_rng(1))
    expected = find_overlaps(rows, 9)
    found = find_overlaps(rows, 9, batch_size=7)
    np.testing.assert_array_equal(found.second, expected.second)
    np.testing.assert_array_equal(found.start, expected.start)
    assert MAX_PAIRS_PER_BATCH > 7


def test_selected_inverse_is_the_diagonal_of_the_inverse():
    rng = np.random.default_rng(2)
    for n, density in ((1, 1.0), (40, 0.05), (120, 0.03), (60, 0.5)):
        half = sp.random_array((n, n), density=density, rng=rng, format="csc")
        matrix = (half @ half.T + sp.diags_array(rng.uniform(0.1, 1, n))).tocsc()
        dense = np.linalg.inv(matrix.toarray())
        np.testing.assert_allclose(factorise(matrix).inverse_diagonal(), np.diag(dense), rtol=1e-9)
        vector = rng.normal(size=n)
        np.testing.assert_allclose(factorise(matrix).solve(vector), dense @ vector, atol=1e-9)
        np.testing.assert_allclose(solve_iteratively(matrix, vector)[0], dense @ vector, atol=1e-8)


def test_a_matrix_that_is_not_positive_definite_is_refused():
    with pytest.raises((ArithmeticError, RuntimeError)):
        factorise(sp.csc_array([[0.0, 1.0], [1.0, 0.0]]))


@pytest.mark.parametrize("loss", list(Loss))
def test_weights_equal_numerics_robust(loss):
    """Stars with a precise reference magnitude: residuals are against it."""
    n = 200
    z = np.linspace(-8, 8, n)
    rows = group_by_star(
        np.zeros(n, int), np.arange(n), 20 + 0.01 * z, np.full(n, 1e-4), np.full(n, 20.0), np.full(n, 1e-12)
    )
    precision = measurement_precision(rows, np.zeros(1), scatter=0.0, scale=1.5, loss=loss)
    z = (rows.magnitude - 20) / 0.01 / 1.5
    expected = {Loss.SQUARE: np.ones(n), Loss.HUBER: huber_weights(z), Loss.TUKEY: tukey_weights(z)}[loss]
    expected = np.where(expected > MIN_WEIGHT, expected, 0)
    np.testing.assert_allclose(precision.observation * 1e-4, expected, atol=1e-5)


def test_both_observations_of_a_pair_have_the_same_weight():
    rows = group_by_star([0, 1], [0, 0], [20.0, 20.1], [1e-4, 9e-4], [np.nan], [np.inf])
    precision = measurement_precision(rows, np.zeros(2), scatter=0.0, scale=1.0, loss=Loss.HUBER)
    z = 0.1 / np.sqrt(1e-3)
    np.testing.assert_allclose(precision.observation * [1e-4, 9e-4], huber_weights(z), rtol=1e-12)


def test_one_wrong_observation_of_several_is_found():
    """The majority decides, whichever is wrong: an observation or the reference magnitude."""
    values = [20.0, 20.003, 19.998, 20.6]
    rows = group_by_star(np.arange(4), np.zeros(4, int), values, np.full(4, 25e-6), [20.001], [25e-6])
    precision = measurement_precision(rows, np.zeros(4), scatter=0.0, scale=1.0, loss=Loss.TUKEY)
    assert (precision.observation > 0).tolist() == [True, True, True, False]
    assert precision.reference[0] > 0
    rows = group_by_star(np.arange(3), np.zeros(3, int), values[:3], np.full(3, 25e-6), [19.5], [25e-6])
    precision = measurement_precision(rows, np.zeros(3), scatter=0.0, scale=1.0, loss=Loss.TUKEY)
    assert (precision.observation > 0).all()
    assert precision.reference[0] == 0


def repeated(rng, n_units, n, noise, quoted):
    """Stars that several units observed, each all of them."""
    sky = rng.uniform(18, 22, n)
    unit, star = np.repeat(np.arange(n_units), n), np.tile(np.arange(n), n_units)
    magnitude = sky[star] + noise * rng.normal(size=len(star))
    return group_by_star(unit, star, magnitude, np.full(len(star), quoted**2), np.full(n, np.nan), np.full(n, np.inf))


@pytest.mark.parametrize("n_units", [2, 3, 4, 8])
def test_scale_and_scatter_of_normal_residuals(n_units):
    """Quoted errors of 3 mmag and a scatter of 4 mmag make 5 mmag, also where few observations make a mean."""
    rows = repeated(np.random.default_rng(3), n_units, 40_000 // n_units, 0.005, 0.003)
    zero = np.zeros(n_units)
    scatter, scale = 1e-3, 1.0
    for _ in range(8):
        scale = residual_scale(rows, zero, scatter=scatter, scale=scale, loss=Loss.TUKEY)
        scatter = intrinsic_scatter(rows, zero, scatter=scatter, scale=scale, floor=1e-3)
    assert scatter == pytest.approx(0.004, rel=0.03)
    assert intrinsic_scatter(rows, zero, scatter=0.02, scale=1.0, floor=0.006) == 0.006
    scale = residual_scale(rows, zero, scatter=0.0, scale=1.6, loss=Loss.HUBER)
    assert 1.45 < scale < 5 / 3 * 1.02
    assert residual_scale(rows, zero, scatter=0.02, scale=1.0, loss=Loss.TUKEY) == 1.0


def test_observations_of_weight_zero_do_not_tie_exposures():
    rows = group_by_star(
        [0, 1, 1, 2], [0, 0, 1, 1], [20.0, 20.0, 19.0, 19.0], np.full(4, 1e-4), [20.0, np.nan], [1e-4, np.inf]
    )
    whole = Precision(np.ones(4), (rows.reference_variance < 1).astype(float))
    found = exposure_components(rows, whole, [0, 1, 2], 3)
    assert found.label.tolist() == [0, 0, 0]
    assert found.anchored.tolist() == [True]
    cut = Precision(np.where(rows.unit == 1, 0.0, 1.0), whole.reference)
    found = exposure_components(rows, cut, [0, 1, 2], 3)
    assert found.label.tolist() == [0, 1, 2]
    assert found.anchored.tolist() == [True, False, False]
    assert found.free.tolist() == [1, 2]


def test_exposure_that_keeps_few_observations_is_dropped():
    rng = np.random.default_rng(4)
    rows = repeated(rng, 3, 100, 0.005, 0.005)
    of_unit = np.array([1.0, 0.3, 0.2])
    kept = (np.repeat(np.arange(100), 3) < 100 * of_unit[rows.unit]).astype(float)
    assert drop_inconsistent_exposures(rows, Precision(kept, np.zeros(100)), [0, 0, 0]) is None
    found = drop_inconsistent_exposures(rows, Precision(kept, np.zeros(100)), [0, 1, 2])
    np.testing.assert_array_equal(found.observation, np.where(rows.unit == 2, 0, kept))
