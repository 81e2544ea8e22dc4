import numpy as np
import pytest

from csstdask.numerics.spectral import SpectrumSplines, interpolate_spectrum


def test_a_cubic_in_log_wavelength_is_exact_and_nothing_is_extrapolated() -> None:
    wavelength = np.geomspace(2500, 10500, 60)
    log = np.log(wavelength / 5000)
    at = np.array([2400.0, 2500.0, 3333.3, 7777.7, 10500.0, 10501.0])
    expected = 1 + 0.3 * np.log(at / 5000) - 2 * np.log(at / 5000) ** 3
    found = interpolate_spectrum(wavelength, np.stack([1 + 0.3 * log - 2 * log**3, np.ones(60)]), at)
    assert np.isnan(found[:, [0, -1]]).all()
    assert found[0, 1:-1] == pytest.approx(expected[1:-1], abs=1e-12)
    assert found[1, 1:-1] == pytest.approx(1, abs=1e-14)


def test_many_spectra_are_interpolated_as_one():
    rng = np.random.default_rng(0)
    grid = np.geomspace(3000, 9000, 80)
    flux = rng.uniform(1, 2, (5, 80))
    at = rng.uniform(2500, 9500, (5, 33))
    expected = np.array([interpolate_spectrum(grid, one, where) for one, where in zip(flux, at, strict=True)])
    found = SpectrumSplines(grid, flux)(at)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.isnan(found[at < 3000]).all()
