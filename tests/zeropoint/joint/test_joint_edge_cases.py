"""The joint solve without references or stars, with outliers only, and with wrong arguments."""

from dataclasses import replace

import numpy as np
import pytest
from joint_surveys import survey

from csstdask.core.errors import InputError
from csstdask.zeropoint.joint import JointSettings, StarObservations, solve_joint


def test_no_reference_at_all():
    one = survey(np.random.default_rng(11), 5, 2, known=0.0)
    solution = solve_joint(*one.arguments)
    assert not solution.anchored.any()
    assert np.isnan(solution.value).all()
    assert np.std(solution.relative - one.truth) < 2e-3
    assert np.isnan(solution.exposure_term).all()


def test_no_stars():
    none = StarObservations(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0), np.empty(0))
    solution = solve_joint(none, [], [], [0, 0, 1], [0, 1, 0], [0, 0, 0])
    assert not solution.anchored.any()
    assert solution.component.tolist() == [0, 0, 1]
    assert np.isinf(solution.sigma).all()
    assert np.abs(solution.relative).max() < 1e-12
    assert len(solve_joint(none, [], [], [], [], []).value) == 0


def test_one_unit():
    rng = np.random.default_rng(12)
    sky = rng.uniform(18, 22, 50)
    seen = StarObservations(np.zeros(50, int), np.arange(50), sky - 25 + 0.01 * rng.normal(size=50), np.full(50, 1e-4))
    solution = solve_joint(seen, sky, np.full(50, 1e-8), [3], [7], [0])
    assert solution.value[0] == pytest.approx(25, abs=4 * 0.01 / np.sqrt(50))
    assert solution.sigma[0] == pytest.approx(0.01 / np.sqrt(50), rel=0.15)


def test_one_star():
    seen = StarObservations(np.array([0]), np.array([0]), np.array([-5.0]), np.array([1e-4]))
    solution = solve_joint(seen, [20.0], [3e-4], [0], [0], [0])
    assert solution.value[0] == pytest.approx(25)
    assert solution.sigma[0] == pytest.approx(np.sqrt(4e-4 + solution.scatter**2), rel=1e-6)


def test_all_stars_outliers():
    """Magnitudes without relation to the reference: a wide error or no value, never a precise wrong one."""
    rng = np.random.default_rng(13)
    n = 200
    seen = StarObservations(np.zeros(n, int), np.arange(n), rng.uniform(-7, -3, n), np.full(n, 25e-6))
    solution = solve_joint(seen, rng.uniform(18, 22, n), np.full(n, 1e-4), [0], [0], [0])
    assert solution.sigma[0] > 0.05
    one = survey(rng, 6, 2, stars=50)
    last = np.isin(one.seen.unit, [10, 11])
    magnitude = np.where(last, rng.uniform(-7, -3, len(last)), one.seen.magnitude)
    solution = solve_joint(replace(one.seen, magnitude=magnitude), *one.arguments[1:])
    error = solution.value - one.truth
    assert np.abs(error[:10] / solution.sigma[:10]).max() < 4
    assert solution.anchored.tolist() == 10 * [True] + 2 * [False]


def test_errors_of_zero_do_not_decide_alone():
    one = survey(np.random.default_rng(14), 5, 2)
    seen = replace(one.seen, variance=np.zeros(len(one.seen.star)))
    solution = solve_joint(seen, one.reference, np.where(np.isfinite(one.reference), 0.0, np.inf), *one.arguments[3:])
    assert solution.scatter == pytest.approx(0.005, rel=0.15)
    assert np.isfinite(solution.value).all()


@pytest.mark.parametrize("change", [{"star": [-1]}, {"star": [5]}, {"unit": [3]}, {"variance": [1.0, 2.0]}])
def test_inconsistent_arguments_are_refused(change):
    seen = {"unit": [0], "star": [0], "magnitude": [20.0], "variance": [1e-4]} | change
    with pytest.raises(InputError):
        solve_joint(
            StarObservations(**{name: np.array(value) for name, value in seen.items()}), [1.0], [1.0], [0], [0], [0]
        )


def test_prior_of_zero_width_is_refused():
    one = survey(np.random.default_rng(15), 3, 2)
    with pytest.raises(InputError, match="grey_sigma"):
        solve_joint(*one.arguments, JointSettings(grey_sigma=0.0))
