"""Errors of campaign zero points: what stars, units and exposures have in common, by simulations with a known truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from csstdask.numerics.polynomials import legendre_products
from csstdask.zeropoint.campaign import CampaignSettings, CampaignStars, calibrate_campaign
from csstdask.zeropoint.campaign.joint_offsets import small_sigmas
from csstdask.zeropoint.campaign.star_terms import flat_terms
from csstdask.zeropoint.fit_stars import fit_stars
from csstdask.zeropoint.matched_stars import MatchedStars

NOISE = 0.005
"""Error of the magnitude of a star [mag]."""
NOMINAL = 25.85
SETTINGS = CampaignSettings(model="none")
SHAPE = (512, 512)
GREY = (0.0, 0.02)
"""Mean and scatter of colours where the colour term does not matter [mag]."""


class Sky:
    """Stars of a field at random positions with a catalogue that is wrong by `error`, and quotes `quoted`."""

    def __init__(
        self, rng, n, *, first=0, error=0.0, quoted=0.001, known=True, left=0.0, right=511.0, color=(0.6, 0.3)
    ):
        self.x, self.y = rng.uniform(left, right, n), rng.uniform(0, 511, n)
        self.mag, self.color = rng.uniform(17, 21, n), rng.normal(*color, n)
        self.ref, self.quoted = self.mag + error * rng.standard_normal(n), np.full(n, quoted)
        self.ids, self.known = first + np.arange(n), np.full(n, known)

    def __add__(self, other):
        both = Sky(np.random.default_rng(0), 0)
        for name in vars(self):
            setattr(both, name, np.concatenate([getattr(self, name), getattr(other, name)]))
        return both


def observe(rng, sky, zero_point, *, exposure=0, detector=0, flat=(0.0, 0.0), correction_err=0.0, shift=0.0, **changes):
    """Return a unit that observed the stars of a field, shifted by `shift` pixels."""
    x, n = sky.x - shift, len(sky.x)
    terms = legendre_products(x, sky.y, 1, SHAPE)[:, 1:] @ np.asarray(flat)
    inst = sky.mag - zero_point - terms + NOISE * rng.standard_normal(n) + correction_err * rng.standard_normal()
    ref, color = np.where(sky.known, sky.ref, np.nan), np.where(sky.known, sky.color, np.nan)
    colors = color if sky.known.any() else None
    fit = fit_stars(inst, np.full(n, NOISE), ref, sky.quoted, colors, x, sky.y, shape=SHAPE)
    facts = {
        "id": np.arange(n), "reference": np.where(sky.known, sky.ids, -1), "x": x, "y": sky.y,
        "ra": 150 + 0.001 * sky.ids, "dec": np.full(n, 2.0), "inst_mag": inst, "inst_mag_err": np.full(n, NOISE),
        "ref_mag": ref, "ref_mag_err": np.where(sky.known, sky.quoted, np.nan), "color": color,
        "weight": fit.weights, "residual": fit.residuals, "coefficients": fit.coefficients,
        "coefficient_covariance": fit.coefficient_covariance, "exposure": f"e{exposure:03d}", "detector": detector,
        "band": "i", "days": 9000 + exposure / 10, "shape": SHAPE, "nominal": NOMINAL, "value": fit.value,
        "sigma": float(np.hypot(fit.sigma, correction_err)), "correction_err": correction_err,
        "color_term": fit.color_term, "color_term_err": fit.color_term_err, "scatter": fit.scatter,
        "n_matched": fit.n_matched, "n_used": fit.n_used,
    }  # fmt: skip
    return MatchedStars(**facts | changes)


def calibrate(units):
    return calibrate_campaign(
        CampaignStars.concatenate([CampaignStars.from_unit(unit, 500) for unit in units]), None, SETTINGS
    )


def root_mean_square(values):
    return float(np.sqrt(np.mean(np.square(values))))


@pytest.mark.parametrize("stable", [True, False])
def test_error_of_units_with_few_stars_includes_f(stable):
    """Single exposures of 1 to 10 stars among those of 100; F of 10 mmag of the detector, or of each exposure."""
    counts, z = np.array([100] * 6 + [1, 1, 2, 2, 3, 3, 5, 5, 10, 10]), []
    for seed in range(16):
        rng = np.random.default_rng([seed, 7])
        truth, same = NOMINAL + rng.normal(0, 0.02, len(counts)), rng.normal(0, 0.01, 2)
        units = [
            observe(
                rng, Sky(rng, n, first=1000 * e), truth[e], exposure=e, flat=same if stable else rng.normal(0, 0.01, 2)
            )
            for e, n in enumerate(counts)
        ]  # fmt: skip
        found = calibrate(units)
        z.append((found.joint - truth) / found.joint_sigma)
    assert 0.7 < root_mean_square(np.array(z)[:, counts <= 10]) < 1.25  # 160 values
    assert 0.7 < root_mean_square(np.array(z)[:, counts == 100]) < 1.25


def test_error_of_an_exposure_tied_at_its_edge_includes_f_there():
    z, sigma = [], []
    for seed in range(30):
        rng = np.random.default_rng([seed, 9])
        truth = NOMINAL + rng.normal(0, 0.02, 2)
        edge = Sky(rng, 80, first=5000, known=False, left=410)
        units = [
            observe(rng, Sky(rng, 200) + edge, truth[0], flat=rng.normal(0, 0.005, 2)),
            observe(rng, edge, truth[1], exposure=1, flat=rng.normal(0, 0.005, 2), shift=410.0),
        ]
        found = calibrate(units)
        z.append((found.value[1] - truth[1]) / found.sigma[1])
        sigma.append(found.sigma[1])
    # F is 0 +- 10 mmag a term where its own stars do not determine it, and the overlap is at 0.8 of the half-width.
    assert 0.005 < np.median(sigma) < 0.0085
    assert 0.5 < root_mean_square(z) < 1.3


def test_terms_of_f_agree_with_a_dense_solution():
    """Units with a_u = b + d_u of known variances: invert the covariance of all measurements."""
    rng, n, k, sigma, share = np.random.default_rng(3), 5, 2, 0.01, 0.3
    noise = []
    for _ in range(n):
        half = rng.normal(0, 0.004, (k, k))
        noise.append(half @ half.T + 1e-6 * np.eye(k))
    measured = rng.normal(0, 0.01, (n, k))
    posterior = np.array([np.linalg.inv(np.linalg.inv(one) + np.eye(k) / sigma**2) for one in noise])
    fitted = np.einsum("uij,ujk,uk->ui", posterior, np.linalg.inv(noise), measured)
    found, covariance = flat_terms(fitted, posterior, np.zeros(n, int), sigma, fractions=[share])
    units = (1 - share) * np.ones((n, n)) + share * np.eye(n)
    prior = sigma**2 * np.kron(units, np.eye(k))
    whole = np.zeros((n * k, n * k))
    for u in range(n):
        whole[u * k : u * k + k, u * k : u * k + k] = noise[u]
    gain = prior @ np.linalg.inv(prior + whole)
    np.testing.assert_allclose(found.ravel(), gain @ measured.ravel(), atol=1e-10)
    expected = prior - gain @ prior
    for u in range(n):
        np.testing.assert_allclose(covariance[u], expected[u * k : u * k + k, u * k : u * k + k], atol=1e-12)


def test_variable_detector_does_not_affect_others():
    """Its terms of 20 mmag are recovered and do not change those of the other detectors."""
    z = [[] for _ in range(3)]
    for seed in range(8):
        rng = np.random.default_rng([seed, 21])
        units, truth = [], []
        for e in range(8):
            common = rng.normal(0, 0.02)
            for d in range(3):
                truth.append(NOMINAL + common + (0.02 * rng.normal() if d == 0 else 0.0))
                sky = Sky(rng, 8 if d == 0 else 60, first=10000 * e + 1000 * d, color=GREY)
                units.append(observe(rng, sky, truth[-1], exposure=e, detector=d))
        found = calibrate(units)
        for d in range(3):
            z[d] += ((found.joint - truth) / found.joint_sigma)[d::3].tolist()
    for d in range(3):
        assert root_mean_square(z[d]) < 1.4  # 64 values; 3.0 with terms of 2 mmag


def test_scatter_of_each_detector_is_recovered():
    found = []
    for seed in range(20):
        rng = np.random.default_rng([seed, 22])
        exposure, series = np.repeat(np.arange(40), 3), np.tile(np.arange(3), 40)
        offset = rng.normal(0, np.array([0.02, 0.004, 0.004])[series]) + rng.normal(0, 0.1, 40)[exposure]
        offset += rng.normal(0, 0.002, 120)
        found.append(small_sigmas(offset, np.full(120, 0.002), exposure, series, np.zeros(120, int), 0.002)[:3])
    assert np.median(found, axis=0) == pytest.approx([0.02, 0.004, 0.004], rel=0.15)


@pytest.mark.parametrize("same", [True, False])
def test_catalogue_errors_of_a_repeated_field_do_not_average_down(same):
    """Eight exposures of 8 stars with catalogue errors of 20 mmag, 7 mmag per field; the camera is stable."""
    z, sigma = [], []
    for seed in range(12):
        rng = np.random.default_rng([seed, 11])
        one = Sky(rng, 8, error=0.02, quoted=0.02, color=GREY)
        truth = NOMINAL + rng.normal(0, 0.03) + rng.normal(0, 0.002, 8)
        fields = [one if same else Sky(rng, 8, first=1000 * e, error=0.02, quoted=0.02, color=GREY) for e in range(8)]
        found = calibrate([observe(rng, fields[e], truth[e], exposure=e) for e in range(8)])
        z.append(((found.value - truth) / found.sigma)[1:])
        sigma.append(found.sigma[-1])
    assert 0.5 < root_mean_square(z) < 1.5
    assert np.median(sigma) > 0.006 if same else np.median(sigma) < 0.0065


def test_underestimated_catalogue_errors_do_not_average_down():
    """20 exposures of 25 stars, quoted to 2 mmag and wrong by 20: 4 mmag however often they are observed."""
    sigma, z = [], []
    for seed in range(6):
        rng = np.random.default_rng([seed, 14])
        sky, truth = Sky(rng, 25, error=0.02, quoted=0.002, color=GREY), NOMINAL + rng.normal(0, 0.03, 20)
        found = calibrate([observe(rng, sky, truth[e], exposure=e) for e in range(20)])
        sigma.append(np.median(found.joint_sigma))
        z.append(np.mean((found.joint - truth) / found.joint_sigma))
    assert np.median(sigma) == pytest.approx(0.004, rel=0.3)
    assert root_mean_square(z) < 1.8  # six numbers


def test_a_detector_that_never_has_a_reference_star_is_nominal():
    """Its constant is known only from its prior, which stars of other detectors do not improve."""
    rng = np.random.default_rng(5)
    units = [observe(rng, Sky(rng, 60, first=1000 * e), NOMINAL + 0.01 * e, exposure=e) for e in range(4)]
    units += [observe(rng, Sky(rng, 0), NOMINAL, exposure=e, detector=1) for e in range(4)]
    found = calibrate(units)
    assert found.method[4:].tolist() == ["nominal"] * 4
    assert found.sigma[4:].tolist() == [0.3] * 4
    assert np.isnan(found.joint[4:]).all()


def test_unit_without_psf_takes_the_correction_of_its_detector():
    """Corrections of -0.05 mag: without one the magnitudes of a unit are too faint by that."""
    rng = np.random.default_rng(6)
    units = []
    for e in range(5):
        unknown = e == 2
        changes = {"correction": np.nan if unknown else -0.05 + 0.001 * (e - 2)}
        faint = 0.05 if unknown else 0.0
        unit = observe(rng, Sky(rng, 60, first=1000 * e), NOMINAL - faint, exposure=e, **changes)
        error = 0.1 if unknown else 0.002
        units.append(replace(unit, correction_err=error, sigma=float(np.hypot(unit.sigma, error))))
    units.append(observe(rng, Sky(rng, 60, first=9000), NOMINAL, exposure=1, detector=1, correction=np.nan))
    found = calibrate(units)
    assert found.value[2] == pytest.approx(NOMINAL, abs=0.012)
    assert found.joint_sigma[2] == pytest.approx(0.01, rel=0.2)
