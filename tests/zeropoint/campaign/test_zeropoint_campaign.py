"""Zero points of a campaign, from arrays: stars, network, earlier exposures and nominal values, and combinations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from csstdask.zeropoint.campaign import CampaignSettings, CampaignStars, calibrate_campaign
from csstdask.zeropoint.campaign.calibrate import reference_level
from csstdask.zeropoint.fit_stars import fit_stars
from csstdask.zeropoint.matched_stars import MatchedStars
from csstdask.zeropoint.prior import NOMINAL_SIGMA, Prior

NOISE = 0.005
"""Error of the magnitude of a star [mag]."""
NOMINAL = {"i": 25.85, "g": 26.23}
NO_NETWORK = CampaignSettings(model="none")


def unit_of(exposure, detector, truth, *, n=60, days=None, band="i", field=0, known=None, nominal=None, seed=0):
    """Return a unit; stars of one field and band are the same ones, the first `known` in the reference."""
    sky = np.random.default_rng([field, ord(band)])
    magnitude, color = sky.uniform(17, 21, n), sky.normal(0.6, 0.3, n)
    rng = np.random.default_rng([seed, exposure, detector])
    known = n if known is None else known
    has = np.arange(n) < known
    x, y = sky.uniform(0, 511, (2, n))
    inst = magnitude - truth + rng.normal(0, NOISE, n)
    error = np.full(n, NOISE)
    ref = np.where(has, magnitude, np.nan)
    fit = fit_stars(inst, error, ref, np.full(n, 0.001), np.where(has, color, np.nan), x, y, shape=(512, 512))
    return MatchedStars(
        id=np.arange(n), reference=np.where(has, 1000 * field + 10**6 * ord(band) + np.arange(n), -1), x=x, y=y,
        ra=150.0 + field + x / 36000, dec=2.0 + y / 36000, inst_mag=inst, inst_mag_err=error, ref_mag=ref,
        ref_mag_err=np.where(has, 0.001, np.nan), color=np.where(has, color, np.nan), weight=fit.weights,
        residual=fit.residuals, coefficients=fit.coefficients, exposure=f"e{exposure:03d}", detector=detector,
        band=band, days=9000.0 + exposure / 10 if days is None else days, shape=(512, 512),
        nominal=NOMINAL[band] if nominal is None else nominal, value=fit.value, sigma=fit.sigma, correction_err=0.0,
        color_term=fit.color_term, color_term_err=fit.color_term_err, scatter=fit.scatter, n_matched=fit.n_matched,
        n_used=fit.n_used, coefficient_covariance=fit.coefficient_covariance,
    )  # fmt: skip


def joined(units):
    return CampaignStars.concatenate([CampaignStars.from_unit(unit, 500) for unit in units])


def test_stars_alone_give_zero_points_of_all_bands():
    truth = {(e, d): NOMINAL["ig"[d]] - 0.05 + 0.01 * e for e in range(4) for d in range(2)}
    stars = joined([unit_of(e, d, zp, band="ig"[d]) for (e, d), zp in truth.items()])
    found = calibrate_campaign(stars, settings=NO_NETWORK)
    error = found.value - np.array(list(truth.values()))
    assert found.method.tolist() == ["solve"] * 2 + ["joined"] * 6  # with earlier exposures
    # 60 stars of 5 mmag: 0.65 mmag a unit, and what F and the colour term leave unknown.
    assert np.abs(error).max() < 0.004
    assert np.abs(error / found.sigma).max() < 4
    assert found.metrics["n_joined"] == 6
    assert found.metrics["n_unanchored"] == 0


def test_a_unit_without_stars_has_the_zero_point_of_its_exposure():
    units = [unit_of(e, d, NOMINAL["i"] + 0.03 * e) for e in range(3) for d in range(3)]
    units[4] = unit_of(1, 1, 0.0, n=0)
    found = calibrate_campaign(joined(units), settings=NO_NETWORK)
    assert np.isfinite(found.joint[4])  # by stars of the same exposure
    assert found.method[4] == "joined"
    # The grey term of the detector is known from its other exposures, the small term is not: 2 mmag.
    assert found.value[4] == pytest.approx(NOMINAL["i"] + 0.03, abs=0.008)
    assert 0.002 < found.sigma[4] < 0.02


def test_without_stars_in_its_exposure_a_unit_borrows_or_is_nominal():
    rng = np.random.default_rng(8)
    truth = NOMINAL["i"] - 0.04 + rng.normal(0, 0.003, 12)
    units = [unit_of(e, 0, truth[e], field=e) for e in range(12)]
    units[0], units[11] = unit_of(0, 0, 0.0, n=0), unit_of(11, 0, 0.0, n=0)
    found = calibrate_campaign(joined(units), settings=NO_NETWORK)
    assert found.method.tolist() == ["nominal", "solve", *["joined"] * 9, "borrowed"]
    assert (found.value[0], found.sigma[0]) == (pytest.approx(NOMINAL["i"]), NOMINAL_SIGMA)
    assert found.value[11] == pytest.approx(truth[1:11].mean(), abs=4 * found.sigma[11])
    assert 0.002 < found.sigma[11] < 0.02
    assert np.isnan(found.prior[0])
    assert np.isinf(found.prior_sigma[0])


def test_without_a_nominal_value_nothing_is_known_of_a_camera_without_stars():
    units = [unit_of(0, 0, 25.0, n=0, nominal=np.nan), unit_of(0, 1, 24.0, nominal=np.nan)]
    found = calibrate_campaign(joined(units), settings=NO_NETWORK)
    assert np.isnan(found.value[0])
    assert np.isinf(found.sigma[0])
    assert found.method.tolist() == ["nominal", "solve"]
    assert found.value[1] == pytest.approx(24.0, abs=0.004)


def test_levels_of_unknown_cameras_are_medians_of_each_detector():
    nominal, solved = np.array([np.nan, np.nan, 25.0, np.nan]), np.array([1.0, 3.0, 9.0, np.nan])
    level = reference_level(nominal, solved, np.array([0, 0, 0, 1]))
    np.testing.assert_array_equal(level, [3.0, 3.0, 25.0, np.nan])  # of 1, 3 and 9


def test_unanchored_parts_are_reported_and_get_no_number_of_the_joint_solution():
    units = [unit_of(0, 0, NOMINAL["i"] + 0.02), *(unit_of(e, 0, NOMINAL["i"], field=1, known=0) for e in (1, 2))]
    found = calibrate_campaign(joined(units), settings=NO_NETWORK)
    assert np.isfinite(found.joint).tolist() == [True, False, False]
    assert (found.metrics["n_unanchored"], found.metrics["n_unanchored_components"]) == (2, 1)
    assert found.method.tolist() == ["solve", "borrowed", "borrowed"]


def test_overlaps_anchor_exposures_without_a_reference():
    units = [unit_of(0, 0, NOMINAL["i"] - 0.1, known=30), beyond(unit_of(1, 0, NOMINAL["i"] + 0.2, known=0), 30)]
    found = calibrate_campaign(joined(units), settings=NO_NETWORK)
    # Both exposures have 30 stars of 5 mmag in common; the second has no F stars.
    assert found.value[1] == pytest.approx(NOMINAL["i"] + 0.2, abs=0.008)
    assert found.method[1] == "solve"


@pytest.fixture
def network(monkeypatch):
    """A network whose answer the test sets."""
    said = {}

    def predict(inputs, *, model, device):
        said["inputs"], said["model"] = inputs, model
        value, sigma = said["answer"](inputs)
        return Prior(value, sigma, np.full(len(value), "prior"))

    monkeypatch.setattr("csstdask.zeropoint.campaign.prior.predict_prior", predict)
    return said


def test_stars_and_network_are_joined_by_precision(network):
    network["answer"] = lambda inputs: (inputs.nominal + 0.002, np.full(len(inputs), 0.001))
    stars = joined([unit_of(0, 0, NOMINAL["i"]), unit_of(1, 0, 0.0, n=0, field=1)])
    found = calibrate_campaign(stars, {"focus": np.array([0.1, 0.2])}, CampaignSettings(model="own.json"))
    assert network["model"] == "own.json"
    assert found.method.tolist() == ["joined", "prior"]
    weights = np.array([found.joint_sigma[0], 0.001]) ** -2.0
    expected = np.average([found.joint[0], NOMINAL["i"] + 0.002], weights=weights)
    assert found.value[0] == pytest.approx(expected, abs=1e-9)
    assert found.sigma[0] == pytest.approx(weights.sum() ** -0.5, rel=1e-9)
    assert found.value[1] == pytest.approx(NOMINAL["i"] + 0.002)
    assert found.prior[1] == found.value[1]


@pytest.mark.parametrize("sigma", [0.02, 0.0001])
def test_stars_overrule_a_contradicting_network(network, sigma):
    """A change of the camera that no telemetry shows, whatever the error of the network."""
    network["answer"] = lambda inputs: (inputs.nominal - 0.3, np.full(len(inputs), sigma))
    found = calibrate_campaign(joined([unit_of(0, 0, NOMINAL["i"])]), {"focus": np.zeros(1)})
    assert found.method.tolist() == ["solve"]
    assert found.value[0] == pytest.approx(NOMINAL["i"], abs=0.004)
    assert found.sigma[0] == found.joint_sigma[0]
    assert found.metrics["n_disagreeing"] == 1


def test_few_contradicting_stars_widen_the_error_of_the_network(network):
    network["answer"] = lambda inputs: (inputs.nominal - 0.8, np.full(len(inputs), 0.004))
    found = calibrate_campaign(joined([unit_of(0, 0, NOMINAL["i"], n=3)]), {"focus": np.zeros(1)})
    assert found.method.tolist() == ["prior"]
    assert found.value[0] == pytest.approx(NOMINAL["i"] - 0.8)
    assert found.sigma[0] == pytest.approx(0.4, abs=0.02)
    assert found.metrics["n_disagreeing"] == 1


def test_single_contradicting_star_does_not_overrule_the_prior():
    units = [unit_of(e, 0, NOMINAL["i"], field=e) for e in range(8)]
    wrong = unit_of(8, 0, NOMINAL["i"], field=8, n=1)
    units.append(replace(wrong, ref_mag=wrong.ref_mag - 1.0, value=wrong.value - 1.0))
    found = calibrate_campaign(joined(units), settings=NO_NETWORK)
    assert found.method.tolist() == ["solve"] + ["joined"] * 7 + ["borrowed"]
    assert found.value[8] == pytest.approx(NOMINAL["i"], abs=0.01)
    assert found.sigma[8] == pytest.approx(0.5, abs=0.02)  # or it is the same star, and the camera has changed


def test_exposures_without_a_time_have_no_memory_and_are_not_remembered():
    units = [unit_of(e, 0, NOMINAL["i"], field=e, days=np.nan if e % 2 else None) for e in range(6)]
    found = calibrate_campaign(joined(units), settings=NO_NETWORK)
    assert found.method.tolist() == ["solve", "solve", "joined", "solve", "joined", "solve"]
    assert np.isfinite(found.prior).tolist() == [False, False, True, False, True, False]


def test_network_is_used_only_with_telemetry(network):
    network["answer"] = lambda _: pytest.fail("asked")
    stars = joined([unit_of(0, 0, NOMINAL["i"])])
    assert calibrate_campaign(stars).method.tolist() == ["solve"]
    assert calibrate_campaign(stars, {"focus": np.full(1, np.nan)}).method.tolist() == ["solve"]


def test_overconfident_network_is_rescaled_by_its_errors(network):
    rng = np.random.default_rng(2)
    n, true_error, said = 60, 0.02, 0.01
    error = rng.normal(0, true_error, n)
    network["answer"] = lambda inputs: (inputs.nominal + error, np.full(len(inputs), said))
    stars = joined([unit_of(e, 0, NOMINAL["i"], field=e, n=30) for e in range(n)])
    found = calibrate_campaign(stars, {"focus": np.zeros(n)})
    assert found.prior_sigma[0] == pytest.approx(said)  # no errors are known yet
    assert found.prior_sigma[-1] > 1.4 * said  # the pseudo-scores count as much as half of the errors


def test_priors_are_causal():
    truth = NOMINAL["i"] + np.random.default_rng(1).normal(0, 0.01, 14)
    units = [unit_of(e, 0, truth[e], field=e, n=20) for e in range(14)]
    later = [*units[:10], *(replace(unit, value=unit.value + 0.5) for unit in units[10:])]
    one, other = (calibrate_campaign(joined(some), settings=NO_NETWORK) for some in (units, later))
    # The parameters of the local level are fitted to all; the memory of an exposure is not.
    first = CampaignStars.concatenate([CampaignStars.from_unit(unit, 500) for unit in units[:10]])
    alone = calibrate_campaign(first, settings=NO_NETWORK)
    assert np.isnan(one.prior[0])
    assert np.abs(one.prior[1:10] - alone.prior[1:10]).max() < 0.005
    assert np.abs(one.prior[1:10] - other.prior[1:10]).max() < 0.02


def beyond(unit, first):
    """Return a unit without its first stars."""
    names = ("id", "reference", "x", "y", "ra", "dec", "inst_mag", "inst_mag_err", "ref_mag", "ref_mag_err", "color")
    return replace(unit, **{name: getattr(unit, name)[first:] for name in (*names, "weight", "residual")})


def test_the_order_of_units_does_not_matter():
    units = [unit_of(e, d, NOMINAL["i"] + 0.01 * e) for e in range(3) for d in range(2)]
    order = np.random.default_rng(4).permutation(len(units))
    one = calibrate_campaign(joined(units), settings=NO_NETWORK)
    other = calibrate_campaign(joined([units[i] for i in order]), settings=NO_NETWORK)
    np.testing.assert_allclose(other.value, one.value[order], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(other.method, one.method[order])


def test_own_stars_overrule_a_strained_joint_solution():
    """A unit that deviates by more than terms of exposures and detectors can is left to its own stars."""
    truth = np.full((3, 3), NOMINAL["i"])
    truth[1, 1] += 0.05  # the small term is known to be 2 mmag
    units = [unit_of(e, d, truth[e, d]) for e in range(3) for d in range(3)]
    found = calibrate_campaign(joined(units), settings=NO_NETWORK)
    assert np.abs(found.value - truth.ravel())[4] < 4 * found.sigma[4]
    assert np.abs(found.value - truth.ravel()).max() < 0.01


def test_max_stars_limits_the_stars_of_a_unit():
    unit = unit_of(0, 0, NOMINAL["i"], n=40, known=30)
    some = CampaignStars.from_unit(unit, 10)
    assert np.isfinite(some.ref_mag).sum() == 10
    assert len(some.unit) == 10 + 10  # and those without a reference
