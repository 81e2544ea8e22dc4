"""Real stars for the training of the SED network: their spectra, and what the network learns from them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from csstdask.datasets.gaussian_process import clean_stars, fit_labels
from csstdask.datasets.spectra import RealStars, load_calspec, load_miles, split_by_star, star_key
from csstdask.datasets.synthetic_spectra import synthetic_stars
from csstdask.datasets.template_bank import TemplateBank
from csstdask.flux.sed_network import (
    Features,
    SedNetwork,
)
from csstdask.training.sed.examples import noisy, varied_batches, varied_noise
from csstdask.training.sed.fit_real_stars import (
    CorrectionFit,
    Predictions,
    fill_module,
    fit_correction,
    fit_logistic,
    known_seds,
    leave_one_out,
    normalise_log_sed,
    scatter_of,
    scatter_ratio,
)

log = logging.getLogger("csstdask")
#: Signal-to-noise ratio of inputs that a Gaussian process made from labels (appendix C).
LABEL_SNR = 50.0
#: Signal-to-noise ratio assumed for MILES spectra, which come without errors.
MILES_SNR = 100.0


def predict_synthetic(
    network: SedNetwork, flux: np.ndarray, fwhm: np.ndarray, snr: float
) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Return coefficients, uncorrected log SEDs and features of normalised spectra (n, 2238)."""
    x = torch.from_numpy(np.ascontiguousarray(flux, dtype=np.float32))
    with torch.no_grad():
        features = network.features(x, torch.full_like(x, 1 / snr), torch.from_numpy(fwhm))
        coefficients = network.ensemble(features.values)[0].mean(dim=0)
        log_sed = network.log_sed(coefficients).double().numpy()
    return coefficients.double().numpy(), normalise_log_sed(log_sed), features.values


@dataclass(frozen=True)
class RealTraining:
    """Real stars that may be learnt from, and inputs of the CALSPEC stars."""

    miles: RealStars
    calspec: RealStars
    calspec_flux: np.ndarray
    """(n, 2238) By a Gaussian process of the labels."""

    @classmethod
    def of(cls, folder: Path, test_share: float) -> RealTraining:
        """Read the libraries; the inputs of CALSPEC stars come from clean MILES training stars (appendix C)."""
        stars = load_miles(folder)
        miles, calspec = stars.take(~split_by_star(stars, test_share)), load_calspec(folder)
        return cls(miles, calspec, label_inputs(miles, calspec))


def label_inputs(miles: RealStars, calspec: RealStars) -> np.ndarray:
    """Return normalised spectra of CALSPEC stars from their labels (appendix C); MILES twins are not used."""
    apart = ~np.isin([star_key(str(one)) for one in miles.name], [star_key(str(one)) for one in calspec.name])
    miles = miles.take(apart)
    clean = miles.take(clean_stars(miles.labels, miles.sed))
    return fit_labels(clean.labels, clean.flux)(calspec.labels).astype(np.float32)


def real_predictions(network: SedNetwork, real: RealTraining) -> Predictions:
    """Return synthetic predictions for CALSPEC stars, then for MILES stars."""
    fwhm = np.tile(real.miles.fwhm[:1], (len(real.calspec), 1))
    hst = predict_synthetic(network, real.calspec_flux, fwhm, LABEL_SNR)
    ground = predict_synthetic(network, real.miles.flux, real.miles.fwhm, MILES_SNR)
    truth = np.concatenate([known_seds(real.calspec), known_seds(real.miles)])
    is_miles = np.arange(len(real.calspec) + len(real.miles)) >= len(real.calspec)
    coefficients, log_synthetic = (np.concatenate([hst[k], ground[k]]) for k in (0, 1))
    return Predictions(coefficients, log_synthetic, truth, is_miles)


def learn_from_real_stars(network: SedNetwork, bank: TemplateBank, real: RealTraining, seed: int) -> CorrectionFit:
    """Fit the correction for real stars, its scatter, the probability that a star is real, and limits of the domain."""
    stars = real_predictions(network, real)
    fit = fit_correction(stars)
    residual = leave_one_out(stars) - stars.log_truth[~stars.is_miles]
    ratio = scatter_ratio(stars, fit, residual)
    modes, noise = scatter_of(residual)
    fill_module(network.real_stars, fit, modes * ratio, noise * ratio)
    synthetic = synthetic_stars(bank, "train", 6000, np.random.default_rng(seed + 6), augment=True)
    batches = list(varied_batches(synthetic, 1000, seed + 6))
    with torch.no_grad():
        known = [network.features(one.flux, one.error, one.fwhm) for one in batches]
    values = torch.cat([one.values for one in known])
    observed = _noisy_features(network, real, seed)
    network.real_stars.logistic.copy_(fit_logistic(values, observed.values))
    sizes = torch.cat([values, observed.values]).square().mean(dim=1)
    excess = torch.sqrt((observed.chi2 - 1).clamp(min=0)) / observed.snr
    network.domain_limits.copy_(
        torch.stack([torch.quantile(excess, 0.99) * 2 + 2e-3, torch.quantile(sizes, 0.999) * 2])
    )
    return fit


def _noisy_features(network: SedNetwork, real: RealTraining, seed: int) -> Features:
    """Return features of the real training stars with noise like that of the synthetic ones, ten times each."""
    generator = torch.Generator().manual_seed(seed + 8)
    flux = torch.from_numpy(np.concatenate([np.tile(real.miles.flux, (10, 1)), np.tile(real.calspec_flux, (10, 1))]))
    fwhm = np.tile(real.miles.fwhm[:1], (len(flux), 1))
    x, error = noisy(flux, varied_noise(len(flux), flux.shape[1], generator), generator)
    with torch.no_grad():
        return network.features(x, error, torch.from_numpy(fwhm))
