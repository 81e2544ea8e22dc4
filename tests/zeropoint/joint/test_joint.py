"""The joint solve of zero points."""

from dataclasses import replace

import numpy as np
import pytest
from joint_surveys import GREY, SMALL, survey

from csstdask.zeropoint.joint import JointSettings, StarObservations, solve_joint

LINEAR = JointSettings(n_steps=0, scatter=1e-9)
"""Least squares with quoted errors: what a dense solution of the model gives."""


def dense(one, grey_sigma=GREY, small_sigma=SMALL, unit_sigma=None):
    """Solve for magnitudes and terms at once by `numpy.linalg`: value and sigma of each unit.

    An error common to the magnitudes of a unit is a separate unknown, with the prior 0 +- `unit_sigma`.
    """
    seen = one.seen
    n_stars, n_units = len(one.reference), len(one.exposure)
    n_exposures = one.exposure.max() + 1
    n_detectors = one.detector.max() + 1
    term = one.epoch * n_detectors + one.detector
    first_term = n_stars + n_exposures
    first_small = first_term + term.max() + 1
    first_shared = first_small + n_units
    size = first_shared + (0 if unit_sigma is None else n_units)
    combination = np.zeros((n_units, size))  # the zero point of each unit as a sum of unknowns
    for u in range(n_units):
        combination[u, [n_stars + one.exposure[u], first_term + term[u], first_small + u]] = 1
    design, target, precision = [], [], []
    for u, s, m, v in zip(seen.unit, seen.star, seen.magnitude, seen.variance, strict=True):
        row = -combination[u].copy()
        row[s] += 1
        row[first_shared + u : first_shared + u + 1] -= 1
        design.append(row), target.append(m), precision.append(1 / v)
    for s in np.flatnonzero(np.isfinite(one.reference_variance)):
        design.append(np.eye(size)[s]), target.append(one.reference[s]), precision.append(1 / one.reference_variance[s])
    for k in range(first_term, size):
        design.append(np.eye(size)[k]), target.append(0.0)
        if k < first_shared:
            precision.append((grey_sigma if k < first_small else small_sigma) ** -2)
        else:
            precision.append(unit_sigma[k - first_shared] ** -2)
    design, target, root = np.array(design), np.array(target), np.sqrt(precision)
    solution = np.linalg.lstsq(design * root[:, None], target * root, rcond=1e-14)[0]
    covariance = np.linalg.inv((design * root[:, None] ** 2).T @ design)
    return combination @ solution, np.sqrt(np.einsum("us,st,ut->u", combination, covariance, combination))


def test_solution_equals_a_dense_solution():
    one = survey(np.random.default_rng(0), 6, 3, stars=6, per_epoch=3, known=0.3)
    solution = solve_joint(*one.arguments, LINEAR)
    value, sigma = dense(one)
    np.testing.assert_allclose(solution.value, value, atol=1e-8, rtol=0)
    np.testing.assert_allclose(solution.sigma, sigma, rtol=1e-7)
    np.testing.assert_allclose(solution.exposure_term + solution.grey + solution.small, solution.value, atol=1e-11)


def shared_errors(seed):
    """Return a survey whose units have errors common to their magnitudes, and their sigma; units 4 and 8 are empty."""
    rng = np.random.default_rng(seed)
    one = survey(rng, 6, 3, stars=6, per_epoch=3, known=1.0)
    sigma = rng.choice([0.001, 0.005, 0.02], len(one.exposure))
    off = sigma * rng.standard_normal(len(sigma))
    kept = ~np.isin(one.seen.unit, [4, 8])
    magnitude = one.seen.magnitude - off[one.seen.unit]
    seen = StarObservations(*(value[kept] for value in vars(replace(one.seen, magnitude=magnitude)).values()))
    return replace(one, seen=seen), sigma


def test_errors_common_to_a_unit_are_those_of_a_dense_solution():
    one, sigma = shared_errors(33)
    solution = solve_joint(*one.arguments, LINEAR, unit_sigma=sigma)
    value, error = dense(one, unit_sigma=sigma)
    np.testing.assert_allclose(solution.value, value, atol=1e-8, rtol=0)
    np.testing.assert_allclose(solution.sigma, error, rtol=1e-7)
    np.testing.assert_allclose(solution.exposure_term + solution.grey + solution.small, solution.value, atol=1e-11)
    large = solve_joint(*one.arguments, replace(LINEAR, max_nonzeros=0, n_samples=400), unit_sigma=sigma)
    np.testing.assert_allclose(large.value, value, atol=1e-7)
    assert np.abs(large.sigma / error - 1).max() < 4 / np.sqrt(2 * 400)


def test_errors_common_to_a_unit_are_covered_with_and_without_stars():
    z = []
    for seed in range(60):
        one, sigma = shared_errors([seed, 34])
        solution = solve_joint(*one.arguments, LINEAR, unit_sigma=sigma)
        z.append((solution.value - one.truth) / solution.sigma)
    root = np.sqrt(np.mean(np.square(z), axis=0))
    assert 0.85 < np.sqrt(np.mean(np.square(z))) < 1.15  # 1080 values, correlated within each survey
    assert 0.7 < np.sqrt(np.mean(root[[4, 8]] ** 2)) < 1.3  # 120 values of units without stars


def test_conjugate_gradients_agree_with_the_factors():
    one = survey(np.random.default_rng(1), 8, 3, stars=10, per_epoch=4)
    exact = solve_joint(*one.arguments, LINEAR)
    large = solve_joint(*one.arguments, replace(LINEAR, max_nonzeros=0, n_samples=400))
    np.testing.assert_allclose(large.value, exact.value, atol=1e-7)
    ratio = large.sigma / exact.sigma
    assert np.abs(ratio - 1).max() < 4 / np.sqrt(2 * 400)
    assert np.std(ratio) < 1 / np.sqrt(2 * 400)


def test_recovers_zero_points_to_better_than_a_millimagnitude():
    """200 stars per overlap, four overlaps per exposure, 5 mmag noise; two exposures have reference stars."""
    one = survey(
        np.random.default_rng(2), 20, 4, stars=200, anchored_exposures=[0, 10], known=0.5, catalogue_error=0.005
    )
    solution = solve_joint(*one.arguments)
    error = solution.value - one.truth
    assert np.sqrt(np.mean(error**2)) < 1e-3
    assert solution.anchored.all()
    assert solution.scatter < 0.002


def test_quoted_errors_are_the_scatter():
    pulls, chi2, dof = [], [], []
    for seed in range(40):
        one = survey(np.random.default_rng(100 + seed), 8, 3, stars=30, per_epoch=4)
        solution = solve_joint(*one.arguments)
        pulls.append((solution.value - one.truth) / solution.sigma)
        linear = solve_joint(*one.arguments, LINEAR)
        chi2.append(linear.chi2), dof.append(linear.dof)
    assert np.sqrt(np.mean(np.square(pulls))) == pytest.approx(1, abs=0.1)
    assert np.mean(np.abs(pulls) < 1) == pytest.approx(0.683, abs=0.05)
    assert np.mean(chi2) / np.mean(dof) == pytest.approx(1, abs=3 * np.sqrt(2 / np.sum(dof)))


def test_outliers_hardly_change_the_errors():
    scatter = {}
    for share in (0.0, 0.05, 0.2):
        errors, pulls = [], []
        for seed in range(8):
            rng = np.random.default_rng(200 + seed)
            one = survey(rng, 10, 3, stars=80)
            bad = rng.random(len(one.seen.star)) < share
            magnitude = one.seen.magnitude + bad * rng.normal(0, 0.5, len(bad))
            wrong = rng.random(len(one.reference)) < share
            reference = one.reference + wrong * rng.normal(0, 0.5, len(wrong))
            one = replace(one, seen=replace(one.seen, magnitude=magnitude), reference=reference)
            solution = solve_joint(*one.arguments)
            errors.append(solution.value - one.truth)
            pulls.append(errors[-1] / solution.sigma)
        scatter[share] = np.sqrt(np.mean(np.square(errors)))
        assert np.sqrt(np.mean(np.square(pulls))) == pytest.approx(1, abs=0.2)
    assert scatter[0.05] < 1.15 * scatter[0.0]
    assert scatter[0.2] < 1.4 * scatter[0.0]


def test_intrinsic_scatter_is_found():
    one = survey(np.random.default_rng(3), 10, 3, stars=100, noise=0.01)
    bright = replace(one.seen, variance=one.seen.variance * 0.36)
    solution = solve_joint(bright, *one.arguments[1:])
    assert solution.scatter == pytest.approx(0.008, rel=0.05)


def test_errors_grow_with_the_distance_from_reference_stars():
    one = survey(
        np.random.default_rng(4), 16, 2, stars=20, reach=1, anchored_exposures=[0], known=1.0, catalogue_error=0.002
    )
    solution = solve_joint(*one.arguments)
    of_exposure = solution.sigma.reshape(16, 2).mean(axis=1)
    assert np.all(np.diff(of_exposure[1:]) > 0)
    assert of_exposure[-1] > 1.5 * of_exposure[1]


def test_order_and_labels_do_not_change_a_bit():
    one = survey(np.random.default_rng(5), 8, 3, stars=40)
    expected = solve_joint(*one.arguments)
    rng = np.random.default_rng(6)
    row, label = rng.permutation(len(one.seen.star)), rng.permutation(len(one.reference))
    unit = rng.permutation(len(one.exposure))
    moved = np.empty_like(label)
    moved[label] = np.arange(len(label))
    renumbered = np.empty_like(unit)
    renumbered[unit] = np.arange(len(unit))
    seen = StarObservations(
        renumbered[one.seen.unit[row]], moved[one.seen.star[row]], one.seen.magnitude[row], one.seen.variance[row]
    )
    solution = solve_joint(
        seen, one.reference[label], one.reference_variance[label],
        one.exposure[unit], one.detector[unit], one.epoch[unit],
    )  # fmt: skip
    for name, value in vars(expected).items():
        found = getattr(solution, name)
        np.testing.assert_array_equal(found, value[unit] if isinstance(value, np.ndarray) else value, err_msg=name)


def test_an_unanchored_component_is_reported_and_changes_no_other():
    rng = np.random.default_rng(7)
    one, two = survey(rng, 6, 3), survey(rng, 5, 3, known=0.0)
    exposures, stars = 6, len(one.reference)
    seen = StarObservations(
        np.concatenate([one.seen.unit, two.seen.unit + len(one.exposure)]),
        np.concatenate([one.seen.star, two.seen.star + stars]),
        np.concatenate([one.seen.magnitude, two.seen.magnitude]),
        np.concatenate([one.seen.variance, two.seen.variance]),
    )
    arguments = (
        np.concatenate([one.reference, two.reference]),
        np.concatenate([one.reference_variance, two.reference_variance]),
        np.concatenate([one.exposure, two.exposure + exposures]),
        np.concatenate([one.detector, two.detector]),
        np.concatenate([one.epoch, two.epoch + 10]),
    )
    solution = solve_joint(seen, *arguments)
    free = np.arange(len(one.exposure) + len(two.exposure)) >= len(one.exposure)
    assert np.isnan(solution.value[free]).all()
    assert np.isinf(solution.sigma[free]).all()
    np.testing.assert_array_equal(solution.anchored, ~free)
    np.testing.assert_array_equal(solution.component, np.where(free, 1, 0))
    assert solution.unanchored[1].tolist() == np.flatnonzero(free).tolist()
    assert solution.relative[free].mean() == pytest.approx(0, abs=1e-12)
    assert np.std(solution.relative[free] - two.truth) < 2e-3
    assert "15 units in 1 unanchored components" in repr(solution)
    alone = solve_joint(*one.arguments, LINEAR)
    together = solve_joint(seen, *arguments, LINEAR)
    np.testing.assert_allclose(together.value[~free], alone.value, atol=1e-10)


def test_a_common_grey_term_does_not_anchor():
    seen = StarObservations(np.array([0]), np.array([0]), np.array([-5.0]), np.array([1e-4]))
    solution = solve_joint(seen, [20.0], [1e-4], ["a", "b"], [7, 7], [0, 0])
    assert solution.anchored.tolist() == [True, False]


def test_a_unit_without_stars_has_the_value_of_its_exposure_and_the_error_of_its_priors():
    """One exposure; detector 0 has a precise star, detector 1 none: only grey and small terms differ."""
    n = 400
    rng = np.random.default_rng(8)
    sky = rng.uniform(18, 22, n)
    seen = StarObservations(np.zeros(n, int), np.arange(n), sky - 25, np.full(n, 1e-6))
    solution = solve_joint(seen, sky, np.full(n, 1e-6), [0, 0], [0, 1], [0, 0])
    np.testing.assert_allclose(solution.value, 25.0, atol=1e-6)
    assert solution.sigma[0] < 2e-4
    assert solution.sigma[1] == pytest.approx(np.sqrt(2) * np.hypot(GREY, SMALL), rel=1e-3)
    assert solution.n_stars.tolist() == [n, 0]


def test_observations_of_one_reference_star_share_its_error():
    """Many observations of one star whose reference magnitude is uncertain by 30 mmag."""
    n = 100
    seen = StarObservations(np.arange(n), np.zeros(n, int), np.full(n, -5.0), np.full(n, 1e-6))
    solution = solve_joint(seen, [20.0], [9e-4], np.arange(n), np.zeros(n), np.zeros(n), LINEAR)
    np.testing.assert_allclose(solution.value, 25, atol=1e-9)
    np.testing.assert_allclose(solution.sigma, np.sqrt(9e-4 + 1e-6), rtol=1e-6)


def test_errors_of_a_catalogue_do_not_decrease_with_the_number_of_observations():
    """20 exposures of 25 stars with catalogue errors of 20 mmag: 20 / sqrt(25) = 4 mmag, however often observed."""
    z, sigma = [], []
    for seed in range(20):
        rng = np.random.default_rng([seed, 35])
        n, exposures = 25, 20
        sky, truth = rng.uniform(18, 22, n), 25 + rng.normal(0, 0.03, exposures)
        unit, star = np.repeat(np.arange(exposures), n), np.tile(np.arange(n), exposures)
        magnitude = sky[star] - truth[unit] + 0.005 * rng.standard_normal(len(star))
        seen = StarObservations(unit, star, magnitude, np.full(len(star), 0.005**2))
        labels = np.arange(exposures), np.zeros(exposures, int), np.zeros(exposures, int)
        reference = sky + 0.02 * rng.standard_normal(n)
        solution = solve_joint(seen, reference, np.full(n, 4e-6), *labels, reference_scatter=np.full(n, 0.02))
        z.append((solution.value - truth).mean() / solution.sigma.mean())
        sigma.append(solution.sigma.mean())
    assert np.median(sigma) == pytest.approx(0.004, rel=0.2)
    assert 0.6 < np.sqrt(np.mean(np.square(z))) < 1.4


def test_repeated_rows_count_once():
    one = survey(np.random.default_rng(9), 5, 2, stars=20)
    twice = StarObservations(*(np.concatenate([value, value[::3]]) for value in vars(one.seen).values()))
    expected, solution = solve_joint(*one.arguments), solve_joint(twice, *one.arguments[1:])
    np.testing.assert_array_equal(solution.n_stars, expected.n_stars)
    np.testing.assert_allclose(solution.value, expected.value, rtol=1e-13)
    np.testing.assert_allclose(solution.sigma, expected.sigma, rtol=1e-10)


def test_missing_values_and_sentinels_are_ignored():
    one = survey(np.random.default_rng(10), 5, 2, stars=20)
    expected = solve_joint(*one.arguments)
    bad = np.array([np.nan, -9999.0, 99.0, 130.0, np.inf, 20.0, 20.0, 20.0])
    variance = np.array([1e-4, 1e-4, 1e-4, 1e-4, 1e-4, np.nan, np.inf, -1.0])
    seen = StarObservations(
        np.concatenate([one.seen.unit, np.arange(8)]), np.concatenate([one.seen.star, np.arange(8)]),
        np.concatenate([one.seen.magnitude, bad]), np.concatenate([one.seen.variance, variance]),
    )  # fmt: skip
    solution = solve_joint(seen, *one.arguments[1:])
    np.testing.assert_array_equal(solution.value, expected.value)
    free = np.flatnonzero(np.isinf(one.reference_variance))
    reference, of_reference = one.reference.copy(), one.reference_variance.copy()
    reference[free[:4]], of_reference[free[:4]] = [-9999.0, 99.0, 130.0, np.nan], 1e-4
    reference[free[4]], of_reference[free[4]] = 20.0, np.nan
    solution = solve_joint(one.seen, reference, of_reference, *one.arguments[3:])
    np.testing.assert_array_equal(solution.value, expected.value)


def test_constant_offset_of_a_detector_is_recovered():
    """Detector 1 is 0.3 mag off; a separate constant for it is recovered within the errors of its stars."""
    one = survey(np.random.default_rng(30), 8, 2, stars=8, per_epoch=2, known=0.3)
    off = np.where(one.detector == 1, 0.3, 0.0)
    seen = replace(one.seen, magnitude=one.seen.magnitude - off[one.seen.unit])
    truth = one.truth + off
    free = solve_joint(seen, *one.arguments[1:], replace(LINEAR, detector_sigma=0.5))
    assert np.sqrt(np.mean(((free.value - truth) / free.sigma) ** 2)) < 1.5
    pulled = solve_joint(seen, *one.arguments[1:], LINEAR)
    assert np.abs(pulled.value - truth).max() > np.abs(free.value - truth).max()
    without = solve_joint(*one.arguments, replace(LINEAR, detector_sigma=0.5))
    np.testing.assert_allclose(free.value - off, without.value, atol=2e-3)


def test_common_error_of_a_unit_is_separated_from_its_zero_point():
    """Two detectors of an exposure; the second one's magnitudes are off by 50 mmag, and this is known."""
    n = 200
    rng = np.random.default_rng(31)
    sky, unit = rng.uniform(18, 22, 2 * n), np.repeat([0, 1], n)
    seen = StarObservations(unit, np.arange(2 * n), sky - 25 + 0.05 * unit, np.full(2 * n, 1e-6))
    arguments = seen, sky, np.full(2 * n, 1e-6), [0, 0], [0, 1], [0, 0]
    stiff = solve_joint(*arguments, JointSettings(grey_sigma=1e-4, small_sigma=1e-4, n_steps=0, scatter=0.05))
    loose = solve_joint(
        *arguments, JointSettings(grey_sigma=1e-4, small_sigma=1e-4, n_steps=0, scatter=0.05), unit_sigma=[0.0, 0.05]
    )
    assert abs(stiff.value[0] - 24.975) < 1e-3
    # The other unit is no longer moved; the zero point of the second one is that of magnitudes without their error.
    assert loose.value == pytest.approx([25.0, 25.0], abs=4e-4)
    assert loose.shared[1] == pytest.approx(-0.05, abs=6e-4)  # 1 % less: stars have errors of 3.5 mmag


def test_units_without_stars_have_the_errors_of_a_dense_solution():
    """Eliminating such a unit cancels elements of the matrix exactly, which the inverse must not miss."""
    one = survey(np.random.default_rng(32), 5, 3, stars=6, per_epoch=3, known=1.0)
    kept = ~np.isin(one.seen.unit, [4, 8])
    seen = StarObservations(*(value[kept] for value in vars(one.seen).values()))
    solution = solve_joint(seen, *one.arguments[1:], LINEAR)
    value, sigma = dense(replace(one, seen=seen))
    np.testing.assert_allclose(solution.value, value, atol=1e-8, rtol=0)
    np.testing.assert_allclose(solution.sigma, sigma, rtol=1e-7)
