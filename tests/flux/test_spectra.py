"""Grids, resolution, media and normalisation of stellar spectra."""

from __future__ import annotations

import numpy as np
import pytest

from csstdask.core.errors import InputError
from csstdask.flux.extinction import extinction_curve, redden
from csstdask.flux.normalised_spectra import moving_average, normalise_spectra
from csstdask.flux.resampling import FWHM_PER_SIGMA, degrade
from csstdask.flux.spectral_grids import (
    INPUT_RESOLUTION,
    INPUT_WAVELENGTH,
    N_INPUT,
    N_SED,
    REFERENCE_PIXELS,
    SED_RESOLUTION,
    SED_WAVELENGTH,
    air_to_vacuum,
    normalise_sed,
    vacuum_to_air,
)

WAVE = np.arange(3950.0, 7060.0, 0.3)


def test_grids_have_the_published_numbers_of_pixels() -> None:
    assert (N_INPUT, N_SED) == (2238, 574)
    assert np.allclose(np.diff(np.log(INPUT_WAVELENGTH)), 1 / 4000)
    assert np.allclose(np.diff(np.log(SED_WAVELENGTH)), 1 / 400)
    within = (SED_WAVELENGTH >= 5526) & (SED_WAVELENGTH <= 5586)
    assert np.flatnonzero(within).tolist() == list(range(REFERENCE_PIXELS.start, REFERENCE_PIXELS.stop))


def test_air_and_vacuum() -> None:
    assert air_to_vacuum(4861.333) == pytest.approx(4862.691, abs=0.01)  # H-beta, Morton (1991)
    assert air_to_vacuum(6562.80) == pytest.approx(6564.61, abs=0.01)
    wave = np.linspace(2500, 10_500, 50)
    assert np.allclose(vacuum_to_air(air_to_vacuum(wave)), wave, atol=1e-6)


@pytest.mark.parametrize(("resolution", "own"), [(2000.0, 0.0), (2000.0, 1.5), (1000.0, 2.5)])
def test_degrade_subtracts_the_instrument_in_quadrature(resolution: float, own: float) -> None:
    """A line of the instrument's width gets FWHM = wavelength / R and keeps its area."""
    centre, sigma = 5000.0, max(own, 0.35) / FWHM_PER_SIGMA
    wave = np.arange(4800.0, 5200.0, 0.05)
    line = np.exp(-0.5 * ((wave - centre) / sigma) ** 2)
    at = np.arange(4900.0, 5100.0, 0.2)
    out = degrade(wave, line, at, resolution, fwhm=max(own, 0.35))
    width = np.sqrt((out * (at - centre) ** 2).sum() / out.sum()) * FWHM_PER_SIGMA
    assert width == pytest.approx(centre / resolution, rel=0.01)
    assert out.sum() * 0.2 == pytest.approx(line.sum() * 0.05, rel=1e-3)


def test_degrade_never_extrapolates() -> None:
    wave = np.arange(3560.0, 7400.0, 0.9)
    flux = np.ones(len(wave))
    flux[1000:1200] = np.nan
    out = degrade(wave, flux, SED_WAVELENGTH, SED_RESOLUTION)
    assert np.isnan(out[(SED_WAVELENGTH < 3560) | (SED_WAVELENGTH > 7400)]).all()
    assert np.isnan(out[np.abs(SED_WAVELENGTH - wave[1100]) < 80]).all()
    assert np.nanmax(np.abs(out - 1)) < 1e-12


def test_moving_average_ignores_missing_pixels() -> None:
    flux = np.random.default_rng(1).normal(1, 0.1, (2, 200))
    flux[0, 40:50] = np.nan
    found = moving_average(flux)
    for k in (0, 3, 25, 60, 199):
        assert np.allclose(found[:, k], np.nanmean(flux[:, max(0, k - 25) : k + 26], axis=1))


def test_normalise_sed() -> None:
    sed = np.linspace(1, 5, N_SED)[None]
    assert normalise_sed(sed)[0, REFERENCE_PIXELS].mean() == pytest.approx(1)


def test_normalised_spectra_do_not_depend_on_the_unit_or_the_slope() -> None:
    line = 1 - 0.5 * np.exp(-0.5 * ((WAVE - 5000) / 4) ** 2)
    plain = normalise_spectra(WAVE, line, 0.01 * line)
    tilted = normalise_spectra(WAVE, 1e-17 * line * (WAVE / 5000) ** 2, 1e-19 * line * (WAVE / 5000) ** 2)
    inside = slice(25, -25)  # at the ends the average is one-sided and sees the slope
    assert np.allclose(plain.flux[:, inside], tilted.flux[:, inside], atol=1e-3)
    assert np.allclose(plain.flux, tilted.flux, atol=7e-3)
    assert np.allclose(plain.error, tilted.error, rtol=1e-2)


def test_air_wavelengths_shift_lines() -> None:
    line = 1 - 0.5 * np.exp(-0.5 * ((WAVE - vacuum_to_air(4862.68)) / 3) ** 2)
    found = normalise_spectra(WAVE, line, medium="air").flux[0]
    assert INPUT_WAVELENGTH[found.argmin()] == pytest.approx(4862.68, abs=0.7)


@pytest.mark.parametrize("step", [0.2, 1.15, 1.6])
def test_noise_of_resampled_spectra_matches_errors(step: float) -> None:
    wave = np.arange(3990.0, 7010.0, step)
    rng = np.random.default_rng(4)
    found = normalise_spectra(wave, 1 + rng.normal(0, 0.05, (60, len(wave))), np.full((60, len(wave)), 0.05))
    assert (found.flux - 1).std() == pytest.approx(float(found.error.mean()), rel=0.03)


def test_high_resolution_is_degraded() -> None:
    line = 1 - 0.5 * np.exp(-0.5 * ((WAVE - 5500) / (0.8 / FWHM_PER_SIGMA)) ** 2)
    found = degrade(WAVE, line, INPUT_WAVELENGTH, INPUT_RESOLUTION, fwhm=WAVE / 7000)
    given = normalise_spectra(WAVE, line, resolution=7000.0)
    assert np.allclose(given.flux[0], found / moving_average(found), atol=1e-5)


def test_ignored_pixels_have_no_effect() -> None:
    line = 1 - 0.5 * np.exp(-0.5 * ((WAVE - 5000) / 4) ** 2)
    error = np.full(len(WAVE), 0.01)
    spoilt = line.copy()
    spoilt[4000:4020] = 1e6
    error[4000:4020] = np.inf
    found = normalise_spectra(WAVE, spoilt, error)
    lost = np.isinf(found.error[0])
    assert 0 < lost.sum() < 20
    assert (found.flux[0][lost] == 1).all()
    assert found.flux.max() < 1.1


def test_extinction_curve() -> None:
    """A(I) / A(V) is 0.479 (Cardelli et al. 1989, table 3); O'Donnell has 3 % less at U than their 1.569."""
    assert extinction_curve(3650.0) == pytest.approx(0.975 * 1.569, abs=0.02)
    assert extinction_curve(9000.0) == pytest.approx(0.479, abs=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wave": np.arange(4100.0, 7100.0)}, "4100.0-7099.0 A.*covers 4000-7000 A"),
        ({"wave": np.arange(3900.0, 6900.0)}, "covers 4000-7000 A"),
        ({"error": 0.0}, "zero or negative.*inf for pixels to ignore"),
        ({"error": np.nan}, "3000 NaN.*inf for pixels to ignore"),
        ({"flux": -1.0}, "positive fluxes"),
        ({"flux": np.nan}, "at most 20 %"),
    ],
)
def test_bad_spectra_are_refused_in_one_line(change: dict[str, object], message: str) -> None:
    wave = np.asarray(change.get("wave", np.linspace(3990.0, 7010.0, 3000)))
    flux = np.full(len(wave), change.get("flux", 1.0))
    error = np.full(len(wave), change.get("error", 0.1))
    with pytest.raises(InputError, match=message) as caught:
        normalise_spectra(wave, flux, error)
    assert "\n" not in str(caught.value)


def test_bad_arguments() -> None:
    wave = np.linspace(3990.0, 7010.0, 3000)
    with pytest.raises(ValueError, match="medium: found 'water'; wanted 'vacuum' or 'air'"):
        normalise_spectra(wave, np.ones(3000), medium="water")
    with pytest.raises(ValueError, match=r"flux: found shape \(2, 5\)"):
        normalise_spectra(wave, np.ones((2, 5)))
    with pytest.raises(ValueError, match=r"error: found shape"):
        normalise_spectra(wave, np.ones((2, 3000)), np.ones(3000))


def test_reddening_keeps_reference_and_adds_mode():
    mean = np.ones((2, len(SED_WAVELENGTH)), np.float32)
    modes = np.zeros((2, 0, len(SED_WAVELENGTH)), np.float32)
    found, sigma, own = redden(SED_WAVELENGTH, mean, 0.1 * mean, modes, [0.0, 0.2], [0.0, 0.05])
    assert found[0] == pytest.approx(1, abs=1e-7)
    at_5556, blue, red = (int(np.abs(SED_WAVELENGTH - at).argmin()) for at in (5556, 4361, 7980))
    assert found[1, at_5556] == pytest.approx(1, abs=2e-3)
    # A(B) - A(V) = E(B - V), nearly at these wavelengths
    assert -2.5 * np.log10(found[1, blue]) == pytest.approx(0.2, abs=0.02)
    assert found[1, red] > 1.15
    assert own.shape == (2, 1, len(SED_WAVELENGTH))
    shifted = redden(SED_WAVELENGTH, mean, 0.1 * mean, modes, [0.0, 0.25], [0.0, 0.0])[0]
    assert np.abs(own[1, 0]) == pytest.approx(np.abs(shifted[1] - found[1]), rel=0.12, abs=2e-3)
    assert sigma[1] == pytest.approx(np.hypot(0.1 * found[1], own[1, 0]), rel=1e-5)
