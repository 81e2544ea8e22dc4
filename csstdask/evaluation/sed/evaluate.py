"""Evaluation of SED networks: ``csstdask evaluate sed``.

Parts, all written to ``sed.json``:

* ``held_out``: errors on synthetic stars of test cells of (Teff, log g, [M/H]), by band and signal-to-noise ratio;
* ``calibration``: whether sigmas are right, on the same cells and on new stars of the training cells;
* ``miles``: MILES test stars (split by star);
* ``calspec``: CALSPEC stars, each by a correction that does not know it (leave-one-out);
* ``kurucz``: the Kurucz standards of SDSS, between the nodes of the templates;
* ``lamost``: LAMOST spectra: are they in the domain, and how large are the quoted errors.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from csstdask.core.atomic_io import write_atomic
from csstdask.core.errors import InputError
from csstdask.datasets.gaussian_process import clean_stars
from csstdask.datasets.spectra import RealStars, load_miles, split_by_star, star_key
from csstdask.datasets.synthetic_spectra import (
    Split,
    SyntheticStars,
    TemplateBank,
    held_out_share,
    joined,
    load_npz,
    load_templates,
    synthetic_stars,
)
from csstdask.evaluation.sed.baselines import (
    InputBasis,
    Predictor,
    empirical_correction,
    gaussian_process,
    median_sed,
    nearest,
    ridge,
)
from csstdask.flux.normalised_spectra import NormalisedSpectra, moving_average
from csstdask.flux.resampling import degrade
from csstdask.flux.sed import SedPrediction, build_network, predict_normalised, predict_sed
from csstdask.flux.sed_network import SedNetwork
from csstdask.flux.spectral_grids import (
    BANDS,
    INPUT_WAVELENGTH,
    LIGHT_SPEED,
    SED_RESOLUTION,
    SED_WAVELENGTH,
    in_band,
    normalise_sed,
)
from csstdask.flux.uaranet import UaRANet
from csstdask.nn.card import ModelCard
from csstdask.nn.models import find_card
from csstdask.nn.weights import load_network
from csstdask.training.sed.examples import noisy
from csstdask.training.sed.fit_real_stars import fit_correction, known_seds, scaled, scatter_of
from csstdask.training.sed.network import LABEL_SNR, MILES_SNR, RealTraining, real_predictions
from csstdask.training.sed.uaranet import fine_tune

log = logging.getLogger("csstdask")

Float = npt.NDArray[np.float64]

PARTS = ("held_out", "calibration", "miles", "calspec", "kurucz", "lamost")
#: Signal-to-noise ratios of the test.
SNRS = (10, 20, 40, 80)
#: Wavelengths at which the paper compares with MILES [A], its errors there, and MILES against HST on the same stars.
CHECKED = (3600.0, 4500.0, 5000.0, 6000.0, 7000.0)
PAPER_MILES = (0.070, 0.022, 0.013, 0.010, 0.022)
MILES_AGAINST_HST = (0.073, 0.021, 0.018, 0.007, 0.015)
#: Errors of the paper on its BOSZ set, by temperature and SNR: GU, GV, GI. Its set is not available here.
PAPER_HELD_OUT = {
    "6000": {"20": (0.0425, 0.0025, 0.0029), "40": (0.0207, 0.0013, 0.0015), "80": (0.0151, 0.0011, 0.0011)},
    "8000": {"20": (0.0117, 0.0016, 0.0024), "40": (0.0064, 0.0008, 0.0014), "80": (0.0052, 0.0007, 0.0012)},
}
#: Edges of the temperature cells of the calibration [K].
TEFF_EDGES = (4900.0, 5750.0, 6500.0, 7500.0, 10_100.0)
#: Draws of a bootstrap.
_DRAWS = 2000
#: Seed of the test's stars and noise; differs from all seeds of trainings.
_SEED = 77_000_001


@dataclass(frozen=True)
class EvaluationSettings:
    """How much is evaluated."""

    stars: int = 4096
    """Of the test cells, for errors, at each signal-to-noise ratio."""
    calibration: int = 8192
    """Independent stars for the calibration."""
    draws: int = _DRAWS
    fine_tuning: int = 200
    """Epochs of the published network's fine-tuning on real stars; 0: none."""
    folds: int = 5
    """Of CALSPEC stars, for that fine-tuning."""


def evaluate_sed(
    data: Path,
    to: Path | None = None,
    *,
    model: str = "default",
    beside: Sequence[str] = ("uaranet",),
    parts: Sequence[str] = PARTS,
    settings: EvaluationSettings = EvaluationSettings(),
    on_progress: Callable[[str], None] = log.info,
) -> dict[str, Any]:
    """Evaluate SED networks.

    Parameters
    ----------
    data : Path
        Folder of spectral libraries.
    to : Path, optional
        Folder for ``sed.json`` and figures.
    model : str
        Name or card.
    beside : sequence of str
        Other models, evaluated on the same spectra.
    parts : sequence of str
        Of `PARTS`.
    settings : Settings
    announce : callable
        Receives a line a part.

    Returns
    -------
    dict
        What ``sed.json`` has.

    Raises
    ------
    ValueError
        If a part or model is unknown.
    InputError
        If the data are absent.
    """
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"part: found {', '.join(sorted(unknown))}; wanted some of {', '.join(PARTS)}")
    if not data.is_dir():
        raise InputError(data, "no such folder", "a folder of spectral libraries (--data)")
    cards = {card.name: card for card in (find_card("sed", one) for one in (model, *beside))}
    main = next(iter(cards.values()))
    bank = load_templates(data)
    out: dict[str, Any] = {
        "data": "DESI templates + ATLAS9 (BOSZ is not available)",
        "models": {name: {"sha256": card.sha256, "metrics": card.metrics} for name, card in cards.items()},
    }
    figures: dict[str, Any] = {}
    for part in parts:
        on_progress(f"part {part}")
        if part == "held_out":
            out[part], figures[part] = _held_out(bank, cards, settings)
        elif part == "calibration":
            out[part], figures[part] = _calibration(bank, cards, settings)
        elif part == "miles":
            out[part], figures[part] = _miles(data, bank, cards, settings)
        elif part == "calspec":
            out[part], figures[part] = _calspec(data, bank, cards, main, settings)
        elif part == "kurucz":
            out[part] = _kurucz(data, cards)
        else:
            out[part] = _lamost(data, model)
    if to is not None:
        to.mkdir(parents=True, exist_ok=True)
        write_atomic(to / "sed.json", (json.dumps(out, indent=1) + "\n").encode())
        from csstdask.evaluation.sed.figures import draw  # noqa: PLC0415  matplotlib is optional

        for path in draw(figures, to):
            on_progress(f"figure {path}")
    return out


def noisy_inputs(stars: SyntheticStars, snr: npt.ArrayLike, seed: int) -> NormalisedSpectra:
    """Return normalised spectra of stars with noise, one SNR or one for each star (n,)."""
    generator = torch.Generator().manual_seed(seed)
    noise = 1 / np.broadcast_to(np.asarray(snr, dtype=np.float32), (len(stars),))
    flux, error = [], []
    for start in range(0, len(stars), 2048):
        some = slice(start, start + 2048)
        level = torch.from_numpy(np.ascontiguousarray(noise[some, None]))
        x, e = noisy(torch.from_numpy(stars.flux[some]), level, generator)
        flux.append(x.numpy())
        error.append(e.numpy())
    return NormalisedSpectra(np.concatenate(flux), np.concatenate(error).astype(np.float32))


def band_errors(mean: npt.NDArray, truth: npt.NDArray) -> dict[str, dict[str, float]]:
    """Return for each band the rms relative error, and 1.4826 x the median of |error|."""
    with np.errstate(invalid="ignore", divide="ignore"):
        residual = np.asarray(mean, dtype=float) / truth - 1
    return {
        band: {
            "rms": float(np.sqrt(np.nanmean(residual[:, in_band(band)] ** 2))),
            "robust": float(1.4826 * np.nanmedian(np.abs(residual[:, in_band(band)]))),
        }
        for band in BANDS
    }


def _predict(
    card: ModelCard, spectra: NormalisedSpectra, fwhm: npt.NDArray, real: float | None = None
) -> SedPrediction:
    return predict_normalised(spectra, card, torch.device("cpu"), fwhm=np.asarray(fwhm, dtype=np.float32), real=real)


def _held_out(
    bank: TemplateBank, cards: dict[str, ModelCard], settings: EvaluationSettings
) -> tuple[dict[str, Any], Any]:
    """Return errors of all methods on the test cells, and residuals for the figures."""
    stars = synthetic_stars(bank, "test", settings.stars, np.random.default_rng(_SEED))
    basis = InputBasis(synthetic_stars(bank, "train", 8000, np.random.default_rng(_SEED + 1)))
    others: dict[str, Predictor] = {
        "median SED": median_sed(basis), "kNN": nearest(basis), "PCA + ridge": ridge(basis),
        "Gaussian process": gaussian_process(basis), "Wiener bound": ridge(basis, stars),
    }  # fmt: skip
    out: dict[str, Any] = {
        "stars": len(stars), "cells": len(np.unique(stars.cell)), "paper": PAPER_HELD_OUT, "errors": {}, "by_teff": {},
    }  # fmt: skip
    figures: dict[str, Any] = {"teff": stars.teff, "residual": {}, "sigma": {}, "truth": stars.sed, "mean": {}}
    for snr in SNRS:
        spectra = noisy_inputs(stars, snr, _SEED + snr)
        found: dict[str, npt.NDArray] = {}
        for name, card in cards.items():
            prediction = _predict(card, spectra, stars.fwhm)
            found[name] = prediction.mean
            figures["sigma"][name, snr] = prediction.sigma / prediction.mean
            figures["residual"][name, snr] = prediction.mean / stars.sed - 1
            figures["mean"][name, snr] = prediction.mean[:: max(1, len(stars) // 6)]
        found |= {name: np.exp(scaled(one(spectra.flux, snr))) for name, one in others.items()}
        out["errors"][str(snr)] = {name: band_errors(mean, stars.sed) for name, mean in found.items()}
        for teff, width in ((6000, 300), (8000, 500)):
            near = np.abs(stars.teff - teff) < width
            out["by_teff"].setdefault(str(teff), {})[str(snr)] = {
                name: band_errors(found[name][near], stars.sed[near]) for name in cards
            } | {"stars": int(near.sum())}
    names = list(cards)
    if len(names) > 1:
        out["ratio"] = {
            str(snr): {
                band: {
                    kind: out["errors"][str(snr)][names[0]][band][kind] / out["errors"][str(snr)][names[1]][band][kind]
                    for kind in ("rms", "robust")
                }
                for band in BANDS
            }
            for snr in SNRS
        }
    return out, figures


def _calibration(
    bank: TemplateBank, cards: dict[str, ModelCard], settings: EvaluationSettings
) -> tuple[dict[str, Any], Any]:
    """Return whether sigmas are right: PIT, coverage, CRPS.

    ``population``: new stars of training cells and stars of test cells, with their shares in the population.
    """
    unseen = held_out_share(bank, "test")
    sets: dict[str, dict[Split, float]] = {
        "population": {"train": 1 - unseen, "test": unseen},
        "test_cells": {"test": 1.0},
        "training_cells": {"train": 1.0},
    }
    out: dict[str, Any] = {"stars": settings.calibration, "share_of_test_cells": unseen}
    figures: dict[tuple[str, str], npt.NDArray] = {}
    for index, (name, shares) in enumerate(sets.items()):
        rng = np.random.default_rng(_SEED + 10 + index)
        parts = [synthetic_stars(bank, split, round(one * settings.calibration), rng) for split, one in shares.items()]
        stars = joined(parts)
        snr = np.array(SNRS)[rng.integers(0, len(SNRS), len(stars))]
        spectra = noisy_inputs(stars, snr, _SEED + 20 + index)
        out[name] = {}
        for model, card in cards.items():
            found = _predict(card, spectra, stars.fwhm)
            z = found.gaussian_pulls(stars.sed)
            out[name][model] = _scores(z, found, stars, snr)
            figures[name, model] = z
    return out, figures


def _scores(z: npt.NDArray, found: SedPrediction, stars: SyntheticStars, snr: npt.NDArray) -> dict[str, Any]:
    within = _scored_pixels()
    pooled = z[:, within]
    out: dict[str, Any] = {"all": coverage(pooled)}
    for band in BANDS:
        out[band] = coverage(z[:, within & in_band(band)])
    constant = np.sqrt(((found.mean / stars.sed - 1) ** 2).mean(axis=0)) * found.mean
    residual = found.mean - stars.sed
    out["crps"] = float(np.mean(crps(residual[:, within], found.sigma[:, within])))
    out["crps_constant_sigma"] = float(np.mean(crps(residual[:, within], constant[:, within])))
    cells, worst, failed = [], 0.0, 0
    for low, high in pairwise(TEFF_EDGES):
        for one in SNRS:
            mine = (stars.teff >= low) & (stars.teff < high) & (snr == one)
            if mine.sum() < 50:
                continue
            for band in BANDS:
                hit = np.abs(z[mine][:, within & in_band(band)])
                row: dict[str, Any] = {"teff": [low, high], "snr": one, "band": band, "stars": int(mine.sum())}
                for level, limit in ((68, 1.0), (95, 2.0)):
                    per_star = (hit < _quantile(limit)).mean(axis=1)
                    error = float(per_star.std() / np.sqrt(len(per_star)))
                    off = float(per_star.mean() - level / 100)
                    row[f"coverage_{level}"] = float(per_star.mean())
                    row[f"allowed_{level}"] = max(0.04, 2 * error)
                    failed += abs(off) > row[f"allowed_{level}"]
                    worst = max(worst, abs(off))
                cells.append(row)
    out["cells"] = {"number": len(cells), "tests": 2 * len(cells), "failed": failed, "worst": worst, "rows": cells}
    return out


def _quantile(limit: float) -> float:
    """Return the half width of the central 68 or 95 % of a Gaussian."""
    return {1.0: 0.99446, 2.0: 1.95996}[limit]


def _scored_pixels() -> npt.NDArray[np.bool_]:
    """Return pixels of which calibration makes sense: not the reference range, whose mean is 1 by definition."""
    return (SED_WAVELENGTH < 5480) | (SED_WAVELENGTH > 5630)


def coverage(z: npt.NDArray) -> dict[str, float]:
    """Return the KS distance of the PIT from a uniform distribution, coverages, robust SD and tails of pulls."""
    from scipy.special import ndtr  # noqa: PLC0415

    flat = z[np.isfinite(z)].astype(float)
    pit = np.sort(ndtr(flat))
    uniform = np.arange(1, len(pit) + 1) / len(pit)
    return {
        "ks": float(np.abs(pit - uniform).max()),
        "coverage_68": float((np.abs(flat) < _quantile(1.0)).mean()),
        "coverage_95": float((np.abs(flat) < _quantile(2.0)).mean()),
        "mean": float(flat.mean()),
        "sd": float(flat.std()),
        "robust_sd": float((np.quantile(flat, 0.8413) - np.quantile(flat, 0.1587)) / 2),
        "beyond_3": float((np.abs(flat) > 3).mean()),
        "beyond_5": float((np.abs(flat) > 5).mean()),
    }


def crps(residual: npt.NDArray, sigma: npt.NDArray) -> Float:
    """Return the continuous ranked probability score of Gaussians (Gneiting & Raftery 2007, equation 21)."""
    from scipy.special import ndtr  # noqa: PLC0415

    z = np.asarray(residual, dtype=float) / sigma
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    return np.asarray(sigma * (z * (2 * ndtr(z) - 1) + 2 * density - 1 / np.sqrt(np.pi)))


def _at_wavelengths(residual: npt.NDArray) -> list[float]:
    """Return 1.4826 x median |residual| about the median, within 1 % of each checked wavelength."""
    out = []
    for wavelength in CHECKED:
        near = np.abs(SED_WAVELENGTH / wavelength - 1) < 0.01
        values = np.nanmean(residual[:, near], axis=1)
        out.append(float(1.4826 * np.nanmedian(np.abs(values - np.nanmedian(values)))))
    return out


def _knn_corrected(basis: InputBasis, real: RealTraining, flux: npt.NDArray, snr: float, *, hst: bool) -> Float:
    """Return log SEDs by kNN with the empirical correction; HST stars are left out of their own correction."""
    method = nearest(basis)
    temperature = _nearest_teff(basis)
    x = real.calspec_flux
    log_hst, teff_hst = scaled(method(x, LABEL_SNR)), temperature(x)
    truth = known_seds(real.calspec)
    if hst:
        return scaled(log_hst + empirical_correction(log_hst, teff_hst, truth, at=teff_hst, exclude_same=True))
    found = scaled(method(flux, snr))
    return scaled(found + empirical_correction(log_hst, teff_hst, truth, at=temperature(flux), exclude_same=False))


def _nearest_teff(basis: InputBasis) -> Callable[[npt.NDArray], Float]:
    from scipy.spatial import cKDTree  # noqa: PLC0415

    tree = cKDTree(basis.amounts)
    return lambda flux: np.asarray(basis.log_teff[tree.query(basis.project(flux), k=10)[1]].mean(axis=1))


def _miles(
    data: Path, bank: TemplateBank, cards: dict[str, ModelCard], settings: EvaluationSettings
) -> tuple[dict[str, Any], Any]:
    """Return errors on MILES test stars, all and cleaned."""
    stars = load_miles(data)
    test = stars.take(split_by_star(stars))
    clean = clean_stars(test.labels, test.sed)
    spectra = NormalisedSpectra(test.flux, np.full(test.flux.shape, 1 / MILES_SNR, dtype=np.float32))
    residual: dict[str, npt.NDArray] = {}
    predictions = {name: _predict(card, spectra, test.fwhm) for name, card in cards.items()}
    for name, found in predictions.items():
        residual[name] = found.mean / test.sed - 1
    main = next(iter(cards))
    if cards[main].architecture.get("kind") == "sed":
        residual[f"{main}, without correction"] = _predict(cards[main], spectra, test.fwhm, 0.0).mean / test.sed - 1
    basis = InputBasis(synthetic_stars(bank, "train", 8000, np.random.default_rng(_SEED + 1)))
    real = RealTraining.of(data, 0.4)
    residual["kNN + correction"] = np.exp(_knn_corrected(basis, real, test.flux, MILES_SNR, hst=False)) / test.sed - 1
    out: dict[str, Any] = {
        "stars": len(test), "clean": int(clean.sum()), "removed": int((~clean).sum()), "wavelength": CHECKED,
        "paper": PAPER_MILES, "miles_against_hst": MILES_AGAINST_HST,
        "all": {name: _at_wavelengths(one) for name, one in residual.items()},
        "cleaned": {name: _at_wavelengths(one[clean]) for name, one in residual.items()},
        "median": {name: _medians(one[clean]) for name, one in residual.items()},
    }  # fmt: skip
    found = predictions[main]
    out["real"] = float(np.mean(found.real > 0.5)) if np.isfinite(found.real).all() else None
    out["out_of_domain"] = int(found.out_of_domain.sum())
    truth_error = np.interp(SED_WAVELENGTH, CHECKED, MILES_AGAINST_HST) * test.sed
    z = (found.mean - test.sed) / np.hypot(found.sigma, truth_error)
    out["calibration"] = _real_calibration(z, settings.draws)
    return out, {"residual": residual, "clean": clean, "teff": test.teff}


def _medians(residual: npt.NDArray) -> list[float]:
    return [float(np.nanmedian(residual[:, np.abs(SED_WAVELENGTH / one - 1) < 0.01])) for one in CHECKED]


def _real_calibration(z: npt.NDArray, draws: int) -> dict[str, Any]:
    """Return the calibration on real stars, with the 95 % interval of a bootstrap of stars."""
    out: dict[str, Any] = {"all": coverage(z)}
    rng = np.random.default_rng(_SEED)
    for key, limit in (("coverage_68", 1.0), ("coverage_95", 2.0)):
        hit = np.nanmean(np.where(np.isfinite(z), np.abs(z) < _quantile(limit), np.nan), axis=1)
        drawn = hit[rng.integers(0, len(hit), (draws, len(hit)))].mean(axis=1)
        out[f"{key}_interval"] = [float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))]
    return out


def _calspec(
    data: Path, bank: TemplateBank, cards: dict[str, ModelCard], main: ModelCard, settings: EvaluationSettings
) -> tuple[dict[str, Any], Any]:
    """Return errors on CALSPEC stars: the correction is fitted without the star, inputs are by appendix C."""
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
        found[main.name], sigma = _corrected_without(network, real, _predict(main, spectra, fwhm, 0.0))
        found[f"{main.name}, without correction"] = np.log(_predict(main, spectra, fwhm, 0.0).mean)
    for name, card in cards.items():
        if name not in found:
            found[name] = np.log(np.maximum(_predict(card, spectra, fwhm).mean, 1e-6))
    for name, card in cards.items():
        if card.architecture.get("kind") == "uaranet" and settings.fine_tuning:
            tuned = _fine_tuned_folds(card, real, spectra, settings)
            found[f"{name}, fine-tuned"] = np.log(np.maximum(tuned, 1e-6))
    basis = InputBasis(synthetic_stars(bank, "train", 8000, np.random.default_rng(_SEED + 1)))
    floor = "kNN + correction"
    found[floor] = _knn_corrected(basis, real, real.calspec_flux, LABEL_SNR, hst=True)
    residual = {name: np.exp(one - truth) - 1 for name, one in found.items()}
    out: dict[str, Any] = {
        "stars": n, "names": [str(one) for one in real.calspec.name], "twins_in_miles": _twins(real),
        "errors": {name: band_errors(np.exp(one), np.exp(truth)) for name, one in found.items()},
        "at": {name: _at_wavelengths(one) for name, one in residual.items()}, "wavelength": CHECKED,
        "by_star": {name: {band: _per_star(one, band) for band in BANDS} for name, one in residual.items()},
    }  # fmt: skip
    if main.name in residual:
        out["against_knn"] = {
            band: _paired(_per_star(residual[main.name], band), _per_star(residual[floor], band), settings.draws)
            for band in BANDS
        }
    if sigma is not None:
        z = residual[main.name] / sigma
        out["calibration"] = _real_calibration(z, settings.draws)
        out["calibration"]["bands"] = {band: coverage(z[:, in_band(band)]) for band in BANDS}
    return out, {"residual": residual, "teff": real.calspec.teff, "sigma": sigma}


def _fine_tuned_folds(
    card: ModelCard, real: RealTraining, spectra: NormalisedSpectra, settings: EvaluationSettings
) -> npt.NDArray[np.float32]:
    """Return SEDs of CALSPEC stars by the published network, fine-tuned on MILES and the other CALSPEC folds."""
    network = load_network(card, build_network, torch.device("cpu"))
    assert isinstance(network, UaRANet)  # noqa: S101
    n = len(real.calspec)
    fold = np.random.default_rng(_SEED).permutation(n) % settings.folds
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


def _twins(real: RealTraining) -> int:
    """Return the number of MILES training stars that are CALSPEC stars; all of these are left out."""
    known = {star_key(str(name)) for name in real.calspec.name}
    return sum(star_key(str(name)) in known for name in real.miles.name)


def _corrected_without(network: SedNetwork, real: RealTraining, synthetic: SedPrediction) -> tuple[Float, Float]:
    """Return corrected log SEDs of CALSPEC stars and relative sigmas, correction and scatter from the other stars."""
    stars = real_predictions(network, real)
    key = np.array([star_key(str(one)) for one in (*real.calspec.name, *real.miles.name)])
    n = len(real.calspec)
    log_sed, sigma = [], []
    for i in range(n):
        rest = stars.take(key != key[i])
        fit = fit_correction(rest)
        inner = []
        others = [j for j in range(n) if key[j] != key[i]]
        for j in others:
            without = fit_correction(stars.take((key != key[i]) & (key != key[j])))
            inner.append(stars.log_synthetic[j] + without.with_labels(stars.coefficients[j : j + 1])[0])
        residual = scaled(np.array(inner)) - stars.log_truth[others]
        modes, noise = scatter_of(residual)
        own = stars.coefficients[i : i + 1]
        log_sed.append(stars.log_synthetic[i] + fit.with_labels(own)[0])
        scatter = (modes**2).sum(axis=0) + noise**2
        phi = fit.terms(own)[0]
        epistemic = phi @ fit.weight_covariance @ phi * scatter
        relative = synthetic.sigma[i] / synthetic.mean[i]
        sigma.append(np.sqrt(relative**2 + scatter + epistemic))
    return scaled(np.array(log_sed)), np.array(sigma)


def _per_star(residual: npt.NDArray, band: str) -> list[float]:
    return [float(one) for one in np.sqrt(np.nanmean(residual[:, in_band(band)] ** 2, axis=1))]


def _paired(ours: list[float], theirs: list[float], draws: int) -> dict[str, Any]:
    """Return the ratio of rms errors with the central 68 % of a paired bootstrap of stars."""
    a, b = np.array(ours) ** 2, np.array(theirs) ** 2
    index = np.random.default_rng(_SEED).integers(0, len(a), (draws, len(a)))
    ratio = np.sqrt(a[index].mean(axis=1) / b[index].mean(axis=1))
    medians = np.median(np.sqrt(a)) / np.median(np.sqrt(b))
    return {
        "ratio": float(np.sqrt(a.mean() / b.mean())),
        "interval_68": [float(np.quantile(ratio, 0.16)), float(np.quantile(ratio, 0.84))],
        "better": float((ratio < 1).mean()),
        "ratio_of_medians": float(medians),
    }


def _kurucz(data: Path, cards: dict[str, ModelCard]) -> dict[str, Any]:
    """Return errors on the Kurucz standards of SDSS, which lie between the nodes of the templates (250 K steps)."""
    arrays = load_npz(data, "sdss_kurucz_fstd")
    wave = 10 ** (float(arrays["log10_wave0"]) + float(arrays["log10_dwave"]) * np.arange(arrays["flux"].shape[1]))
    inputs = degrade(wave, arrays["flux"], INPUT_WAVELENGTH, 1850.0, fwhm=wave / 1850)
    sed = normalise_sed(
        degrade(wave, arrays["flux"], SED_WAVELENGTH, SED_RESOLUTION, fwhm=wave / 1850, min_coverage=0.95)
    )
    flux = (inputs / moving_average(inputs)).astype(np.float32)
    fwhm = np.tile(np.array([4000 / 1850, 7000 / 1850], dtype=np.float32), (len(flux), 1))
    between = np.abs(arrays["teff"] % 500 - 250) < 1
    out: dict[str, Any] = {"stars": len(flux), "between_nodes": int(between.sum())}
    spectra = NormalisedSpectra(flux, np.full(flux.shape, 0.02, dtype=np.float32))
    for name, card in cards.items():
        real = 0.0 if card.architecture.get("kind") == "sed" else None
        mean = _predict(card, spectra, fwhm, real).mean
        out[name] = {
            "at_nodes": band_errors(mean[~between], sed[~between]),
            "between_nodes_errors": band_errors(mean[between], sed[between]),
        }
    return out


def _lamost(data: Path, model: str) -> dict[str, Any]:
    """Return whether LAMOST spectra are in the domain, and their median relative sigmas."""
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


def summary_lines(found: dict[str, Any]) -> list[str]:
    """Return the lines that ``csstdask evaluate sed`` prints."""
    lines = []
    for snr, methods in found.get("held_out", {}).get("errors", {}).items():
        for name, bands in methods.items():
            errors = "  ".join(f"{band} {bands[band]['rms']:.4f}" for band in BANDS)
            lines.append(f"held-out cells, SNR {snr:>3}  {name:<18} {errors}")
    for cells, models in found.get("calibration", {}).items():
        for name, one in models.items() if isinstance(models, dict) else ():
            every = one["all"]
            lines.append(
                f"calibration, {cells:<15} {name:<10} KS {every['ks']:.3f}  68 %: {100 * every['coverage_68']:.1f}  "
                f"95 %: {100 * every['coverage_95']:.1f}  cells failed {one['cells']['failed']}/{one['cells']['tests']}"
            )
    for name, values in found.get("miles", {}).get("cleaned", {}).items():
        lines.append(f"MILES, cleaned  {name:<24} " + "  ".join(f"{value:.3f}" for value in values))
    for name, bands in found.get("calspec", {}).get("errors", {}).items():
        lines.append(f"CALSPEC         {name:<24} " + "  ".join(f"{band} {bands[band]['rms']:.4f}" for band in BANDS))
    return lines


__all__ = ["PARTS", "EvaluationSettings", "RealStars", "evaluate_sed", "summary_lines"]
