"""Variances that follow counts, and what they were to have been."""

from __future__ import annotations

import numpy as np
import pytest

from csstdask.psf.noise import expected_variance

GAIN, READ = 2.0, 25.0


@pytest.fixture
def light():
    """Of stars on a sky, expected on each pixel."""
    steps = np.arange(24) - 12
    star = np.exp(-0.5 * (steps[:, None] ** 2 + steps**2) / 1.2**2)
    return (50 + np.array([0, 300, 4000])[:, None, None] * star).astype(np.float32)


@pytest.fixture
def noise(light, rng):
    return (rng.normal(size=light.shape) * np.sqrt(READ + GAIN * light)).astype(np.float32)


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_variance_from_counts_is_that_of_the_model(light, noise, unit):
    seen = READ + GAIN * (light + noise)
    assert np.allclose(
        expected_variance(np.float32(unit**2) * seen, unit * noise, unit * light) / unit**2,
        np.maximum(READ + GAIN * light, seen.min((1, 2))[:, None, None]),
        rtol=1e-4,
    )


@pytest.mark.parametrize("constant", [False, True])
def test_variance_from_an_expectation_is_unchanged(light, noise, constant):
    variance = READ + GAIN * (light.mean() + 0 * light if constant else light)
    assert np.allclose(expected_variance(variance, noise, light), variance, rtol=1e-4)


def test_slope_does_not_depend_on_the_first_fit(light, noise):
    """The slope is found even if the first fit is wrong by 10 %."""
    seen, wrong = READ + GAIN * (light + noise), 0.9 * light
    found = expected_variance(seen, light + noise - wrong, wrong)
    assert np.allclose(found, np.maximum(READ + GAIN * wrong, seen.min((1, 2))[:, None, None]), rtol=1e-3)


def test_cosmic_ray_does_not_hide_in_its_own_variance(light, noise):
    """The variance of a contaminated pixel excludes the contaminating charge, so the pixel is an outlier."""
    left = noise.copy()
    left[1, 3, 3] = 5000
    found = expected_variance(READ + GAIN * (light + left), left, light)
    assert found[1, 3, 3] < 1.2 * (READ + GAIN * light[1, 3, 3])


def test_infinite_variances_stay_infinite(light, noise):
    variance = READ + GAIN * (light + noise)
    variance[0] = variance[1, :5] = np.inf
    found = expected_variance(variance, noise, light)
    assert np.array_equal(np.isinf(found), np.isinf(variance))


@pytest.fixture
def skies(rng):
    """Poisson's, and their means."""
    values = rng.poisson(50, size=(200, 24, 24)).astype(np.float32)
    return values, values.mean(axis=(1, 2))


def weighted(values, variance):
    return (values / variance).sum(axis=(1, 2)) / (1 / variance).sum(axis=(1, 2))


def test_weights_from_counts_bias_the_sky(skies):
    values, plain = skies
    assert (weighted(values, values) - plain).mean() < -0.9


def test_expected_variances_do_not_bias_the_sky(skies):
    values, plain = skies
    fitted = np.broadcast_to(plain[:, None, None], values.shape)
    assert abs((weighted(values, expected_variance(values, values - fitted, fitted)) - plain).mean()) < 0.1
