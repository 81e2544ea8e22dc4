"""Evaluate SED networks on real stars: MILES, CALSPEC and LAMOST."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import cKDTree

from csstdask.core.errors import InputError
from csstdask.datasets.gaussian_process import clean_stars
from csstdask.datasets.spectra import load_miles, split_by_star, star_key
from csstdask.datasets.synthetic_spectra import synthetic_stars
from csstdask.datasets.template_bank import TemplateBank, load_npz
from csstdask.evaluation.sed.baselines import (
    InputBasis,
    empirical_correction,
    nearest,
)
from csstdask.evaluation.sed.scores import (
    band_errors,
    calibration_with_intervals,
    coverage,
    median_at_wavelengths,
    paired_ratio,
    predict_spectra,
    rms_by_star,
    scatter_at_wavelengths,
)
from csstdask.evaluation.sed.settings import CHECKED, SEED, EvaluationSettings
from csstdask.flux.normalised_spectra import NormalisedSpectra
from csstdask.flux.sed import SedPrediction, build_network, predict_sed
from csstdask.flux.sed_network import SedNetwork
from csstdask.flux.spectral_grids import (
    BANDS,
    LIGHT_SPEED,
    SED_WAVELENGTH,
    in_band,
    normalise_sed,
)
from csstdask.flux.uaranet import UaRANet
from csstdask.nn.card import ModelCard
from csstdask.nn.weights import load_network
from csstdask.training.sed.fit_real_stars import fit_correction, known_seds, normalise_log_sed, scatter_of
from csstdask.training.sed.real_stars import LABEL_SNR, MILES_SNR, RealTraining, real_predictions
from csstdask.training.sed.uaranet import fine_tune

Float = npt.NDArray[np.float64]

PAPER_MILES = (0.070, 0.022, 0.013, 0.010, 0.022)
"""Errors of the UaRA-net paper on MILES at the checked wavelengths."""
MILES_AGAINST_HST = (0.073, 0.021, 0.018, 0.007, 0.015)
"""Differences between MILES and HST for the same stars, at the checked wavelengths."""
_BASIS_STARS = 8000
"""Training stars of the baselines."""


def _knn_corrected(basis: InputBasis, real: RealTraining, flux: npt.NDArray, snr: float, *, hst: bool) -> Float:
    """Return log SEDs by kNN with the empirical correction, leaving out each HST star from its correction."""
    method = nearest(basis)
    temperature = _nearest_teff(basis)
    x = real.calspec_flux
    log_hst, teff_hst = normalise_log_sed(method(x, LABEL_SNR)), temperature(x)
    truth = known_seds(real.calspec)
    if hst:
        return normalise_log_sed(
            log_hst + empirical_correction(log_hst, teff_hst, truth, at=teff_hst, exclude_same=True)
        )
    found = normalise_log_sed(method(flux, snr))
    return normalise_log_sed(
        found + empirical_correction(log_hst, teff_hst, truth, at=temperature(flux), exclude_same=False)
    )


def _nearest_teff(basis: InputBasis) -> Callable[[npt.NDArray], Float]:
    """Return the function that gives the mean ln Teff of the ten nearest training stars."""
    tree = cKDTree(basis.coefficients)
    return lambda flux: np.asarray(basis.log_teff[tree.query(basis.project(flux), k=10)[1]].mean(axis=1))


def evaluate_miles(
    data: Path, bank: TemplateBank, cards: dict[str, ModelCard], settings: EvaluationSettings
) -> tuple[dict[str, Any], Any]:
    """Return errors on MILES test stars, all and normal ones, and residuals for the figures."""
    stars = load_miles(data)
    test = stars.take(split_by_star(stars))
    clean = clean_stars(test.labels, test.sed)
    spectra = NormalisedSpectra(test.flux, np.full(test.flux.shape, 1 / MILES_SNR, dtype=np.float32))
    residual: dict[str, npt.NDArray] = {}
    predictions = {name: predict_spectra(card, spectra, test.fwhm) for name, card in cards.items()}
    for name, found in predictions.items():
        residual[name] = found.mean / test.sed - 1
    main = next(iter(cards))
    if cards[main].architecture.get("kind") == "sed":
        residual[f"{main}, without correction"] = (
            predict_spectra(cards[main], spectra, test.fwhm, 0.0).mean / test.sed - 1
        )
    basis = InputBasis(synthetic_stars(bank, "train", _BASIS_STARS, np.random.default_rng(SEED + 1)))
    real = RealTraining.of(data, 0.4)
    residual["kNN + correction"] = np.exp(_knn_corrected(basis, real, test.flux, MILES_SNR, hst=False)) / test.sed - 1
    out: dict[str, Any] = {
        "stars": len(test), "clean": int(clean.sum()), "removed": int((~clean).sum()), "wavelength": CHECKED,
        "paper": PAPER_MILES, "miles_against_hst": MILES_AGAINST_HST,
        "all": {name: scatter_at_wavelengths(one) for name, one in residual.items()},
        "cleaned": {name: scatter_at_wavelengths(one[clean]) for name, one in residual.items()},
        "median": {name: median_at_wavelengths(one[clean]) for name, one in residual.items()},
    }  # fmt: skip
    found = predictions[main]
    out["real"] = float(np.mean(found.real > 0.5)) if np.isfinite(found.real).all() else None
    out["out_of_domain"] = int(found.out_of_domain.sum())
    truth_error = np.interp(SED_WAVELENGTH, CHECKED, MILES_AGAINST_HST) * test.sed
    z = (found.mean - test.sed) / np.hypot(found.sigma, truth_error)
    out["calibration"] = calibration_with_intervals(z, settings.draws)
    return out, {"residual": residual, "clean": clean, "teff": test.teff}


def evaluate_calspec(
    data: Path, bank: TemplateBank, cards: dict[str, ModelCard], main: ModelCard, settings: EvaluationSettings
) -> tuple[dict[str, Any], Any]:
    """Return errors on CALSPEC stars, and residuals for the figures.

    The correction of each star is fitted without it; inputs come from labels (UaRA-net, appendix C).
    """
    real = RealTraining.of(data, 0.4)
    truth = known_seds(real.calspec)
    n = len(real.calspec)
    fwhm = np.tile(real.miles.fwhm[:1], (n, 1))
    spectra = NormalisedSpectra(real.calspec_flux, np.full(real.calspec_flux.shape, 1 / LABEL_SNR, dtype=np.float32))
    found: dict[str, Float] = {}
    sigma = None
    if main.architecture.get("kind") == "sed":
        network = load_network(main, build_network, torch.device("cpu"))
        assert isinstance(network, SedNetwork)  # noqa: S101
        found[main.name], sigma = _leave_one_out_corrected(network, real, predict_spectra(main, spectra, fwhm, 0.0))
        found[f"{main.name}, without correction"] = np.log(predict_spectra(main, spectra, fwhm, 0.0).mean)
    for name, card in cards.items():
        if name not in found:
            found[name] = np.log(np.maximum(predict_spectra(card, spectra, fwhm).mean, 1e-6))
    for name, card in cards.items():
        if card.architecture.get("kind") == "uaranet" and settings.fine_tuning:
            tuned = _fine_tuned_folds(card, real, spectra, settings)
            found[f"{name}, fine-tuned"] = np.log(np.maximum(tuned, 1e-6))
    basis = InputBasis(synthetic_stars(bank, "train", _BASIS_STARS, np.random.default_rng(SEED + 1)))
    floor = "kNN + correction"
    found[floor] = _knn_corrected(basis, real, real.calspec_flux, LABEL_SNR, hst=True)
    residual = {name: np.exp(one - truth) - 1 for name, one in found.items()}
    out: dict[str, Any] = {
        "stars": n, "names": [str(one) for one in real.calspec.name], "twins_in_miles": _count_twins(real),
        "errors": {name: band_errors(np.exp(one), np.exp(truth)) for name, one in found.items()},
        "at": {name: scatter_at_wavelengths(one) for name, one in residual.items()}, "wavelength": CHECKED,
        "by_star": {name: {band: rms_by_star(one, band) for band in BANDS} for name, one in residual.items()},
    }  # fmt: skip
    if main.name in residual:
        out["against_knn"] = {
            band: paired_ratio(
                rms_by_star(residual[main.name], band), rms_by_star(residual[floor], band), settings.draws
            )
            for band in BANDS
        }
    if sigma is not None:
        z = residual[main.name] / sigma
        out["calibration"] = calibration_with_intervals(z, settings.draws)
        out["calibration"]["bands"] = {band: coverage(z[:, in_band(band)]) for band in BANDS}
    return out, {"residual": residual, "teff": real.calspec.teff, "sigma": sigma}


def _fine_tuned_folds(
    card: ModelCard, real: RealTraining, spectra: NormalisedSpectra, settings: EvaluationSettings
) -> npt.NDArray[np.float32]:
    """Return SEDs of CALSPEC stars by UaRA-net, fine-tuned on MILES and the other CALSPEC folds."""
    network = load_network(card, build_network, torch.device("cpu"))
    assert isinstance(network, UaRANet)  # noqa: S101
    n = len(real.calspec)
    fold = np.random.default_rng(SEED).permutation(n) % settings.folds
    out = np.zeros_like(real.calspec.sed)
    for k in range(settings.folds):
        flux = np.concatenate([real.miles.flux, real.calspec_flux[fold != k]])
        sed = np.concatenate([real.miles.sed, real.calspec.sed[fold != k]])
        tuned = fine_tune(network, flux, sed, epochs=settings.fine_tuning)
        mine = fold == k
        with torch.inference_mode():
            mean, _ = tuned(torch.from_numpy(spectra.flux[mine]), torch.from_numpy(spectra.error[mine]))
        out[mine] = normalise_sed(mean.numpy())
    return out


def _count_twins(real: RealTraining) -> int:
    """Return the number of MILES training stars that are also CALSPEC stars, and are therefore left out."""
    known = {star_key(str(name)) for name in real.calspec.name}
    return sum(star_key(str(name)) in known for name in real.miles.name)


def _leave_one_out_corrected(network: SedNetwork, real: RealTraining, synthetic: SedPrediction) -> tuple[Float, Float]:
    """Return corrected log SEDs and relative errors of CALSPEC stars, each from all other stars."""
    stars = real_predictions(network, real)
    key = np.array([star_key(str(one)) for one in (*real.calspec.name, *real.miles.name)])
    n = len(real.calspec)
    log_sed, sigma = [], []
    for i in range(n):
        fit = fit_correction(stars.take(key != key[i]))
        inner = []
        others = [j for j in range(n) if key[j] != key[i]]
        for j in others:
            without = fit_correction(stars.take((key != key[i]) & (key != key[j])))
            inner.append(stars.log_synthetic[j] + without.with_labels(stars.coefficients[j : j + 1])[0])
        residual = normalise_log_sed(np.array(inner)) - stars.log_truth[others]
        modes, noise = scatter_of(residual)
        coefficients = stars.coefficients[i : i + 1]
        log_sed.append(stars.log_synthetic[i] + fit.with_labels(coefficients)[0])
        scatter = (modes**2).sum(axis=0) + noise**2
        phi = fit.terms(coefficients)[0]
        epistemic = phi @ fit.weight_covariance @ phi * scatter
        relative = synthetic.sigma[i] / synthetic.mean[i]
        sigma.append(np.sqrt(relative**2 + scatter + epistemic))
    return normalise_log_sed(np.array(log_sed)), np.array(sigma)


def evaluate_lamost(data: Path, model: str) -> dict[str, Any]:
    """Return the number of LAMOST spectra in the domain, and their median relative errors."""
    arrays = load_npz(data, "lamost_sample")
    wave = 10 ** (float(arrays["log10_wave0"]) + float(arrays["log10_dwave"]) * np.arange(arrays["flux"].shape[1]))
    keep = (arrays["teff"] >= 5000) & (arrays["teff"] <= 9750)
    rows, flags, real, teff = [], [], [], []
    for i in np.flatnonzero(keep):
        good = (arrays["ivar"][i] > 0) & (arrays["andmask"][i] == 0) & np.isfinite(arrays["flux"][i])
        error = np.where(good, 1 / np.sqrt(np.where(good, arrays["ivar"][i], 1.0)), np.inf)
        velocity = float(arrays["rv"][i])
        try:
            found = predict_sed(
                wave / (1 + velocity / LIGHT_SPEED), np.where(good, arrays["flux"][i], np.nan), error,
                model=model, resolution=1800.0,
            )  # fmt: skip
        except InputError:
            continue
        rows.append((found.sigma / found.mean)[0])
        flags.append(bool(found.out_of_domain[0]))
        real.append(float(found.real[0]))
        teff.append(float(arrays["teff"][i]))
    sigma = np.array(rows)
    return {
        "stars": int(keep.sum()), "used": len(rows), "out_of_domain": int(np.sum(flags)),
        "recognised_as_real": int(np.sum(np.array(real) > 0.5)),
        "median_sigma": {band: float(np.median(sigma[:, in_band(band)])) for band in BANDS},
    }  # fmt: skip
