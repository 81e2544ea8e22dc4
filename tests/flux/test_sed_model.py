"""The network `sed`, predictions, their covariance, and tables of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits
from small_sed import SIZES, small_network
from torch.distributions import LowRankMultivariateNormal

from csstdask.core.errors import InputError
from csstdask.flux import predict_sed
from csstdask.flux.sed import SedPrediction
from csstdask.flux.sed_files import predict_files
from csstdask.flux.sed_network import CALIBRATION_SNR, CALIBRATION_TEFF, SedNetwork, mode_nll
from csstdask.flux.sed_table import read_seds
from csstdask.flux.spectral_grids import INPUT_WAVELENGTH, N_INPUT, N_SED, REFERENCE_PIXELS, SED_WAVELENGTH
from csstdask.nn.card import ModelCard

WAVE = np.arange(3980.0, 7020.0, 1.0)
FLUX = 1 - 0.4 * np.exp(-0.5 * ((WAVE - 4862.7) / 6) ** 2)


def noisy_spectra(n: int, snr: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    error = torch.full((n, N_INPUT), 1 / snr)
    return 1 + error * torch.randn(n, N_INPUT), error, torch.tensor([[2.0, 3.5]]).repeat(n, 1)


def test_prediction_has_a_valid_covariance(small_card: str) -> None:
    found = predict_sed(WAVE, np.stack([FLUX, FLUX**2]), 0.02 * np.stack([FLUX, FLUX]), model=small_card)
    assert np.array_equal(found.wavelength, SED_WAVELENGTH)
    assert found.mean.shape == found.sigma.shape == (2, N_SED)
    assert np.allclose(found.mean[:, REFERENCE_PIXELS].mean(axis=1), 1, atol=1e-5)
    covariance = found.covariance(1)
    assert np.allclose(np.sqrt(np.diag(covariance)), found.sigma[1], rtol=1e-5)
    assert np.linalg.eigvalsh(covariance).min() > 0
    assert np.allclose((covariance - found.modes[1].T @ found.modes[1])[3, 40:50], 0, atol=1e-6)


def test_intervals_have_student_tails() -> None:
    """The central 68.3 % are one sigma for any number of degrees of freedom; 95 % are 1.96 sigma for a Gaussian."""
    mean, sigma = np.ones((2, N_SED), np.float32), np.full((2, N_SED), 0.1, np.float32)
    nothing, outside = np.zeros((2, 0, N_SED), np.float32), np.zeros(2, dtype=bool)
    unknown = np.full(2, np.nan)
    card = ModelCard("a", "sed", "1", "", "", "", "")
    found = SedPrediction(
        SED_WAVELENGTH, mean, sigma, nothing, outside, unknown, unknown, np.array([4.0, np.inf]), card
    )
    low, high = found.interval(0.682689)
    assert np.allclose(high - low, 0.2, rtol=1e-4)
    low, high = found.interval(0.95)
    assert high[1, 0] - 1 == pytest.approx(0.196, rel=1e-3)
    assert high[0, 0] - 1 == pytest.approx(0.1 * 2.776 / 1.142, rel=1e-3)
    assert np.allclose(found.gaussian_pulls(mean - sigma), 1, atol=1e-3)
    assert np.allclose(found.gaussian_pulls(low), 1.96, atol=1e-3)
    with pytest.raises(ValueError, match="level: found 1"):
        found.interval(1.0)


def test_one_spectrum_is_one_row(small_card: str) -> None:
    assert predict_sed(WAVE, FLUX, model=small_card).mean.shape == (1, N_SED)
    assert "1 stars" in repr(predict_sed(WAVE, FLUX, model=small_card))


def test_each_spectrum_may_have_its_own_grid(small_card: str) -> None:
    waves = np.stack([WAVE, WAVE + 0.3])
    both = predict_sed(waves, np.stack([FLUX, FLUX]), 0.02 * np.ones((2, len(WAVE))), model=small_card)
    one = predict_sed(waves[1], FLUX, 0.02 * np.ones(len(WAVE)), model=small_card)
    assert np.allclose(both.mean[1], one.mean[0], rtol=1e-5)


def test_reddening_error_is_a_separate_mode(small_card: str) -> None:
    plain = predict_sed(WAVE, FLUX, 0.02 * FLUX, model=small_card)
    red = predict_sed(WAVE, FLUX, 0.02 * FLUX, model=small_card, ebv=0.1, ebv_error=0.02)
    ratio = red.mean[0] / plain.mean[0]
    assert ratio[10] < 0.85
    assert ratio[500] > 1.03
    assert red.modes.shape[1] == plain.modes.shape[1] + 1
    assert (red.sigma[0, :50] / red.mean[0, :50] > plain.sigma[0, :50] / plain.mean[0, :50]).all()


def test_correction_of_real_stars_is_optional() -> None:
    network = small_network()
    with torch.no_grad():
        network.real_stars.weights[0, :100] = 0.3
        network.real_stars.scatter_noise.fill_(0.1)
    synthetic, real = (network(*noisy_spectra(3, 50), p) for p in (0.0, 1.0))
    assert torch.allclose(real.log_mean[:, :100] - synthetic.log_mean[:, :100], torch.tensor(0.3), atol=1e-5)
    assert (real.noise > synthetic.noise).all()
    assert torch.allclose(network(*noisy_spectra(3, 50)).log_mean, synthetic.log_mean)  # the logistic says synthetic


def test_calibration_is_interpolated() -> None:
    network = small_network()
    network.log_factor[1, 2] = 0.7
    at = torch.tensor([CALIBRATION_SNR[1]]), torch.tensor([CALIBRATION_TEFF[2]])
    assert torch.allclose(network.log_factors(*at), torch.tensor(0.7))
    beyond = network.log_factors(torch.tensor([1000.0]), torch.tensor([1e5]))
    assert torch.allclose(beyond, network.log_factor[-1, -1])


def test_mode_likelihood_equals_torch() -> None:
    torch.manual_seed(2)
    lower = torch.tril(torch.rand(3, 4, 4)) + torch.eye(4)
    x = torch.randn(3, 4)
    normal = torch.distributions.MultivariateNormal(torch.zeros(4), scale_tril=lower)
    constant = 2 * np.log(2 * np.pi)
    assert torch.allclose(mode_nll(x, lower), -normal.log_prob(x) - constant, atol=1e-5)


def test_modes_and_noise_are_a_low_rank_normal() -> None:
    found = small_network()(*noisy_spectra(2, 30), 0.0)
    normal = LowRankMultivariateNormal(found.log_mean, found.modes.transpose(1, 2), found.noise.square())
    total = torch.sqrt(found.noise.square() + found.modes.square().sum(dim=1))
    assert torch.allclose(normal.stddev, total, rtol=1e-4)


def test_pixels_without_data_are_filled_from_the_components() -> None:
    """Missing pixels of a spectrum in the span of the components are recovered."""
    network = small_network()
    flux = network.features.mean + torch.randn(1, 12) @ network.features.components * 2
    error = torch.full((1, N_INPUT), 0.002)
    width = torch.tensor([[2.0, 3.5]])
    whole = network.features(flux, error, width).values
    spoilt = flux.clone()
    spoilt[:, 300:340] = 1.0
    error[:, 300:340] = torch.inf
    assert torch.allclose(network.features(spoilt, error, width).values[:, :12], whole[:, :12], atol=0.02)


def test_unlike_spectra_are_out_of_domain() -> None:
    network = small_network()
    network.domain_limits.copy_(torch.tensor([0.05, 50.0]))
    x, error, width = noisy_spectra(1, 50)
    lines = x * (1 - 0.6 * (torch.from_numpy(INPUT_WAVELENGTH) % 40 < 6).float())
    chi2 = [float(network.features(one, error, width).chi2) for one in (x, lines)]
    assert chi2[0] == pytest.approx(1, abs=0.2)
    assert chi2[1] > 10


def test_unknown_stars_and_models(small_card: str) -> None:
    with pytest.raises(ValueError, match="stars: found 'galaxies'"):
        predict_sed(WAVE, FLUX, model=small_card, stars="galaxies")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="model: found 'nothing'"):
        predict_sed(WAVE, FLUX, model="nothing")
    with pytest.raises(TypeError, match="kind"):
        SedNetwork("uaranet", **SIZES)


def test_spectra_of_files_become_a_table(small_card: str, tmp_path: Path) -> None:
    columns = [fits.Column(name, "D", array=one) for name, one in (("WAVELENGTH", WAVE), ("FLUX", FLUX))]
    paths = [tmp_path / "one.fits", tmp_path / "two.fits", tmp_path / "broken.fits"]
    for path in paths[:2]:
        fits.BinTableHDU.from_columns(columns).writeto(path)
    paths[2].write_text("no FITS")
    failed = predict_files(paths, tmp_path / "seds.parquet", model=small_card)
    assert list(failed) == [str(paths[2])]
    table = read_seds(tmp_path / "seds.parquet")
    assert table.id.tolist() == ["one", "two"]
    expected = predict_sed(WAVE, FLUX, model=small_card, stars="real")
    assert np.array_equal(table.mean[0], expected.mean[0])
    assert np.array_equal(table.modes[1], expected.modes[0])
    assert np.array_equal(table.wavelength, SED_WAVELENGTH)
    assert table.out_of_domain.dtype == bool


def test_bad_tables_and_files(small_card: str, tmp_path: Path) -> None:
    path = tmp_path / "seds.parquet"
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="no readable Parquet table"):
        read_seds(path)
    with pytest.raises(InputError, match="--medium"):
        predict_files([path], path, medium="water", model=small_card)
    with pytest.raises(InputError, match="at least one usable spectrum"):
        predict_files([path], tmp_path / "out.parquet", model=small_card)
    with pytest.raises(InputError, match="--model"):
        predict_files([path], path, model="nothing")
