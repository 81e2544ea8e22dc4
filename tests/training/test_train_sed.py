"""Training of SED networks: a small training, resuming, and invalid settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from csstdask.core.errors import InputError
from csstdask.flux.spectral_grids import SED_WAVELENGTH
from csstdask.flux.uaranet import UaRANet
from csstdask.nn.card import read_card
from csstdask.training.sed.calibration import sigma_factors
from csstdask.training.sed.examples import average, noisy, varied_noise
from csstdask.training.sed.fit_real_stars import Predictions, fit_correction, leave_one_out, scatter_of
from csstdask.training.sed.train import load_sed_config, train_sed
from csstdask.training.sed.uaranet import fine_tune, last_tenth_gain

TINY = {
    "stars": 600, "validation": 64, "calibration": 128, "batch": 200, "epochs": 2, "members": 2, "width": 16,
    "components": 24, "sed_components": 8, "rank": 4, "covariance_epochs": 1,
    "scout_epochs": 1,
}  # fmt: skip


def test_noise_has_its_level_and_spectra_are_normalised() -> None:
    generator = torch.Generator().manual_seed(1)
    flux = torch.full((50, 2238), 3.0)
    x, error = noisy(flux, torch.full((1, 1), 0.05), generator)
    assert float(x.std()) == pytest.approx(0.05, rel=0.03)
    assert float(error.mean()) == pytest.approx(0.05, rel=0.01)
    assert torch.allclose(average(flux), flux)
    noise = varied_noise(2000, 30, generator)
    assert 1 / 130 / 3 < float(noise.median()) < 1 / 20


@pytest.mark.slow
def test_network_is_trained_resumed_and_written(real_spectra: Path, tmp_path: Path) -> None:
    config = load_sed_config(None, data=str(real_spectra), **TINY)
    lines: list[str] = []
    path = train_sed(config, tmp_path / "a", on_progress=lines.append)
    card = read_card(path)
    assert (card.task, card.architecture["kind"]) == ("sed", "sed")
    assert card.metrics["epochs"] == 2
    weights = load_file(path.with_suffix(".safetensors"))
    assert weights["log_factor"].abs().max() > 0
    assert weights["real_stars.weights"].abs().max() > 0
    again = train_sed(config, tmp_path / "a", on_progress=lines.append)
    assert read_card(again).sha256 == card.sha256
    other = load_sed_config(None, data=str(real_spectra), **TINY | {"width": 24})
    with pytest.raises(InputError, match="another schedule, network or examples"):
        train_sed(other, tmp_path / "a", on_progress=lines.append)


def test_published_network_is_trained(real_spectra: Path, tmp_path: Path) -> None:
    changes = {"kind": "uaranet", "name": "ua", "stars": 200, "validation": 64, "batch": 100, "epochs": 1}
    path = train_sed(load_sed_config(None, data=str(real_spectra), **changes), tmp_path, on_progress=lambda _: None)
    assert path.name == "ua.json"
    assert read_card(path).architecture == {"kind": "uaranet"}
    assert (tmp_path / "log.csv").is_file()


def test_frozen_norms_keep_their_statistics(real_spectra: Path, tmp_path: Path) -> None:
    changes = {"kind": "uaranet", "stars": 200, "validation": 64, "batch": 100, "epochs": 1, "freeze_norm": 0.0}
    path = train_sed(load_sed_config(None, data=str(real_spectra), **changes), tmp_path, on_progress=lambda _: None)
    assert not load_file(path.with_suffix(".safetensors"))["norm.running_mean"].any()


def test_fine_tuning_ignores_unobserved_pixels() -> None:
    rng = np.random.default_rng(3)
    flux = (1 + 0.01 * rng.normal(size=(8, 2238))).astype(np.float32)
    sed = np.ones((8, 574), dtype=np.float32)
    sed[:, :100] = np.nan
    torch.manual_seed(1)
    start = UaRANet()
    tuned = fine_tune(start, flux, sed, epochs=2, batch=4)
    assert all(torch.isfinite(one).all() for one in tuned.state_dict().values())
    assert not torch.equal(start.sed[-1].weight, tuned.sed[-1].weight)


def test_correction_excludes_miles_offsets() -> None:
    """CALSPEC stars are 10 % fainter in the blue; MILES stars have an additional offset of 5 %."""
    rng = np.random.default_rng(5)
    n, n_hst = 120, 30
    is_miles = np.arange(n) >= n_hst
    blue = np.where(SED_WAVELENGTH < 4000, 1.0, 0.0)
    truth = -0.1 * blue + np.where(is_miles, 0.05, 0.0)[:, None] * blue + rng.normal(0, 0.005, (n, 574))
    truth[is_miles[:, None] & (SED_WAVELENGTH < 3540)] = np.nan
    stars = Predictions(rng.normal(size=(n, 8)), np.zeros((n, 574)), truth, is_miles)
    fit = fit_correction(stars)
    offset = fit(stars.coefficients[:n_hst]).mean(axis=0)
    assert offset[20:180].mean() == pytest.approx(-0.1, abs=0.02)
    assert np.abs(offset[250:]).max() < 0.01
    residual = leave_one_out(stars) - truth[:n_hst]
    modes, noise = scatter_of(residual)
    assert np.sqrt((modes**2).sum(axis=0) + noise**2)[50:500].max() < 0.03


def test_factors_are_quantiles_of_the_pulls() -> None:
    rng = np.random.default_rng(6)
    z = np.abs(rng.normal(0, 2.0, (4000, 10)))
    found = sigma_factors(z, rng.uniform(5000, 9500, 4000), [np.arange(5), np.arange(5, 10)])
    assert np.allclose(np.exp(found), 2, rtol=0.08)


def test_gain_of_the_last_tenth() -> None:
    history = [{"validation": 1.0}] * 18 + [{"validation": 0.995}, {"validation": 0.999}]
    assert last_tenth_gain(history) == pytest.approx(0.005)


def test_settings_are_checked(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text('data = "x"\nepoch = 3\n')
    with pytest.raises(InputError, match=r"epoch: unknown key \(did you mean epochs"):
        load_sed_config(tmp_path / "bad.toml")
    with pytest.raises(InputError, match="data: Field required"):
        load_sed_config(None)
