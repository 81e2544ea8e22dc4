"""Mock surveys of zero points: prefixes, consistency of stars with the truth, splits, and the smallest errors."""

from __future__ import annotations

import numpy as np
import pytest

from csstdask.core.errors import InputError
from csstdask.datasets.zeropoint_oracle import STAR_COUNT_BINS, oracle, reported_explanation, unexplained_floor
from csstdask.datasets.zeropoint_surveys import make_survey, make_surveys, split_by_time
from csstdask.mock import Recipe
from csstdask.mock.conditions import CHANNELS
from csstdask.mock.zeropoint_settings import Reported, ZeroPoints
from csstdask.mock.zeropoint_stars import COLUMNS, psf_sigma

SETTINGS = ZeroPoints()
N = 600


@pytest.fixture(scope="module")
def surveys():
    return make_surveys("zeropoint", exposures=N)


@pytest.fixture(scope="module")
def half_a_year():
    return make_survey(SETTINGS, "A", 7, 1200)


def test_recipe_has_at_least_ten_thousand_exposures():
    assert sum(survey.exposures for survey in SETTINGS.surveys) >= 10_000
    assert [survey.name for survey in SETTINGS.surveys] == ["A", "B"]


def test_first_exposures_do_not_depend_on_the_number_requested(surveys):
    whole, few = surveys["A"], make_surveys("zeropoint", exposures=37)["A"]
    for name in (
        "exposure",
        "days",
        "truth",
        "explained",
        "walk",
        "jumps",
        "white",
        "solved",
        "solved_sigma",
        "n_stars",
    ):
        assert np.array_equal(getattr(whole, name)[:37], getattr(few, name), equal_nan=name == "solved"), name
    for name in CHANNELS:
        assert np.array_equal(whole.telemetry[name][:37], few.telemetry[name], equal_nan=True), name
    assert np.array_equal(whole.patch(20), few.patch(20))


def test_exposures_are_in_time_order_and_days_are_causal(surveys):
    for one in surveys.values():
        assert (np.diff(one.days) > 0).all()
        assert np.array_equal(one.telemetry["days_since_launch"], one.conditions["days_since_launch"])


def test_stars_follow_the_true_zero_point(surveys):
    """The weighted mean of ref_mag - inst_mag - C color is the truth, to the error of its stars."""
    one = surveys["A"]
    pulls = []
    for i in np.flatnonzero(one.n_stars >= 100)[:30]:
        stars = one.stars(int(i))
        assert tuple(stars) == COLUMNS
        assert {len(column) for column in stars.values()} == {one.n_stars[i]}
        good = (stars["ref_mag"] > 0) & (stars["ref_mag"] < 50) & (stars["ref_mag_err"] > 0)
        residual = (stars["ref_mag"] - stars["inst_mag"] - one.color_term[0] * stars["color"])[good] - one.truth[i]
        sigma = np.hypot(stars["inst_mag_err"], stars["ref_mag_err"])[good]
        typical = abs(residual) < 4 * np.hypot(sigma, 0.01)  # without variables and blends
        weight = 1 / sigma[typical] ** 2
        pulls.append(np.average(residual[typical], weights=weight))
    # 100 stars of 20 mmag give 2 mmag; colour term and large-scale flat add as much.
    assert np.std(pulls) < 0.006
    assert abs(np.mean(pulls)) < 0.003


def test_solved_zero_points_and_their_errors(surveys):
    for one in surveys.values():
        many = one.n_stars >= 30
        pull = (one.solved - one.truth)[many] / one.solved_sigma[many]
        assert 0.6 < np.mean(np.abs(pull) < 1) < 0.85  # 0.68 for normal errors; 200 exposures: +- 0.03
        none = one.n_stars == 0
        assert none.any()
        assert np.isnan(one.solved[none]).all()
        assert np.isinf(one.solved_sigma[none]).all()


def test_every_number_of_stars_occurs(surveys):
    classes = np.searchsorted(STAR_COUNT_BINS, surveys["A"].n_stars, side="right")
    assert set(classes) == set(range(1, len(STAR_COUNT_BINS) + 1))


def test_sentinels_missing_and_zero_errors_occur(surveys):
    one = surveys["A"]
    rows = [one.stars(int(i)) for i in np.flatnonzero(one.n_stars > 100)[:20]]
    magnitude = np.concatenate([stars["ref_mag"] for stars in rows])
    error = np.concatenate([stars["ref_mag_err"] for stars in rows])
    assert {-9999.0, 99.0, 130.0} <= set(magnitude)
    assert np.isnan(magnitude).any()
    usable = (magnitude > 0) & (magnitude < 50)
    assert np.mean(~usable) == pytest.approx(SETTINGS.stars.missing_share, abs=0.015)
    assert (error[usable] == 0).any()


def test_patches_contain_sky_and_a_psf_that_follows_focus(surveys):
    one = surveys["A"]
    sky = np.array([np.median(one.patch(i)) for i in range(60)])
    expected = one.conditions["background"][:60] * 10 ** (0.4 * (one.truth - one.nominal)[:60])
    assert np.corrcoef(sky, expected)[0, 1] > 0.99
    assert sky / expected == pytest.approx(1.0, abs=0.05)  # the light of stars adds a little
    assert one.patch(0).dtype == np.float32
    assert one.patch(0).shape == (256, 256)
    assert psf_sigma(10, 0.033) > psf_sigma(0, 0.033)
    assert psf_sigma(0, 0.06) > psf_sigma(0, 0.033)


def test_surveys_respond_differently(surveys):
    a, b = surveys["A"], surveys["B"]
    assert a.nominal != b.nominal
    assert (
        np.median(np.diff(a.days)) != np.median(np.diff(b.days)) or a.survey_settings.visit != b.survey_settings.visit
    )
    assert a.survey_settings.response != b.survey_settings.response
    assert a.n_stars.mean() > 1.5 * b.n_stars.mean()


def test_split_by_time_keeps_days_together():
    days = np.arange(0, 100, 0.25)
    labels = split_by_time(days)
    assert [(labels == name).mean() for name in ("train", "validation", "test")] == pytest.approx([0.6, 0.1, 0.3])
    assert (np.diff(np.unique(labels, return_index=True)[1]) != 0).all()
    for day in range(100):
        assert len(set(labels[np.floor(days) == day])) == 1
    mixed = np.random.default_rng(1).permutation(len(days))
    assert np.array_equal(split_by_time(days[mixed]), labels[mixed])


def test_errors_of_the_oracle_are_calibrated(half_a_year):
    """Errors over quoted sigma are standard normal: the filter has the noise model of the mock."""
    one = half_a_year
    best = oracle(one)
    for value, sigma in ((best.prior, best.prior_sigma), (best.joined, best.joined_sigma)):
        pull = (value - one.truth) / sigma
        assert np.std(pull) == pytest.approx(1.0, abs=0.12)
        assert np.mean(np.abs(pull) < 1) == pytest.approx(0.683, abs=0.05)
    # Without stars, the errors are the white noise and the walk since the last exposure with stars.
    assert one.survey_settings.white <= best.prior_sigma.min() < 1.2 * one.survey_settings.white


def test_floor_decreases_with_the_number_of_stars(surveys):
    floor = unexplained_floor(surveys["A"])
    assert floor.n.sum() == N
    assert floor.joined[0] == floor.prior[0]
    assert (np.diff(floor.joined[[0, 3, 4, 5, 6]]) < 0).all()
    assert floor.joined_all < floor.prior_all
    late = np.arange(N) >= N // 2
    assert unexplained_floor(surveys["A"], which=late).n.sum() == N // 2


def test_floor_of_reported_telemetry_is_above_that_of_true_conditions(half_a_year):
    one = half_a_year
    best, late = unexplained_floor(one), unexplained_floor(one, reported=True)
    # Noise of sensors is some 1 mmag within a visit, less than the unexplained 3 mmag.
    assert best.prior_all < late.prior_all < 1.4 * best.prior_all
    assert best.joined_all < late.joined_all < 1.4 * best.joined_all
    known = oracle(one, reported=True)
    assert np.mean(np.abs((known.prior - one.truth) / known.prior_sigma) < 1) == pytest.approx(0.683, abs=0.06)


def test_reported_telemetry_without_errors_explains_as_much_as_true_conditions():
    silent = Reported(
        lag=0, detector_temperature=0, focus=0, jitter=0, earth_limb_angle=0, sun_angle=0, background=0, gap_share=0,
        outage_days=1e9, contamination=0, contamination_step=1e-6, contamination_days=1e-6,
    )  # fmt: skip
    one = make_survey(SETTINGS.model_copy(update={"reported": silent}), "B", 7, 60)
    assert reported_explanation(one) == pytest.approx(one.explained, abs=1e-6)


def test_recipe_without_zero_points_is_refused():
    with pytest.raises(InputError, match="zeropoint"):
        make_surveys(Recipe(name="plain", seed=1))
