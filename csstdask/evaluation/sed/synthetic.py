"""Evaluate SED networks on synthetic stars: errors on held-out cells, and calibration of sigma."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.datasets.stellar_population import Split
from csstdask.datasets.synthetic_spectra import concatenate_stars, held_out_share, synthetic_stars
from csstdask.datasets.template_bank import TemplateBank, load_npz
from csstdask.evaluation.sed.baselines import (
    InputBasis,
    Predictor,
    gaussian_process,
    median_sed,
    nearest,
    ridge,
)
from csstdask.evaluation.sed.scores import band_errors, calibration_scores, noisy_inputs, predict_spectra
from csstdask.evaluation.sed.settings import SEED, SNRS, EvaluationSettings
from csstdask.flux.normalised_spectra import NormalisedSpectra, moving_average
from csstdask.flux.resampling import degrade
from csstdask.flux.spectral_grids import (
    BANDS,
    INPUT_WAVELENGTH,
    SED_RESOLUTION,
    SED_WAVELENGTH,
    normalise_sed,
)
from csstdask.nn.card import ModelCard
from csstdask.training.sed.fit_real_stars import normalise_log_sed

#: Errors of the paper on its BOSZ set, by temperature and SNR: GU, GV, GI. Its set is not available here.
PAPER_HELD_OUT = {
    "6000": {"20": (0.0425, 0.0025, 0.0029), "40": (0.0207, 0.0013, 0.0015), "80": (0.0151, 0.0011, 0.0011)},
    "8000": {"20": (0.0117, 0.0016, 0.0024), "40": (0.0064, 0.0008, 0.0014), "80": (0.0052, 0.0007, 0.0012)},
}


def evaluate_held_out(
    bank: TemplateBank, cards: dict[str, ModelCard], settings: EvaluationSettings
) -> tuple[dict[str, Any], Any]:
    """Return errors of all methods on stars of the test cells, and residuals for the figures."""
    stars = synthetic_stars(bank, "test", settings.stars, np.random.default_rng(SEED))
    basis = InputBasis(synthetic_stars(bank, "train", 8000, np.random.default_rng(SEED + 1)))
    baselines: dict[str, Predictor] = {
        "median SED": median_sed(basis), "kNN": nearest(basis), "PCA + ridge": ridge(basis),
        "Gaussian process": gaussian_process(basis), "Wiener bound": ridge(basis, stars),
    }  # fmt: skip
    out: dict[str, Any] = {
        "stars": len(stars), "cells": len(np.unique(stars.cell)), "paper": PAPER_HELD_OUT, "errors": {}, "by_teff": {},
    }  # fmt: skip
    figures: dict[str, Any] = {"teff": stars.teff, "residual": {}, "sigma": {}, "truth": stars.sed, "mean": {}}
    for snr in SNRS:
        spectra = noisy_inputs(stars, snr, SEED + snr)
        found: dict[str, npt.NDArray] = {}
        for name, card in cards.items():
            prediction = predict_spectra(card, spectra, stars.fwhm)
            found[name] = prediction.mean
            figures["sigma"][name, snr] = prediction.sigma / prediction.mean
            figures["residual"][name, snr] = prediction.mean / stars.sed - 1
            figures["mean"][name, snr] = prediction.mean[:: max(1, len(stars) // 6)]
        found |= {name: np.exp(normalise_log_sed(one(spectra.flux, snr))) for name, one in baselines.items()}
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


def evaluate_calibration(
    bank: TemplateBank, cards: dict[str, ModelCard], settings: EvaluationSettings
) -> tuple[dict[str, Any], Any]:
    """Return coverage, PIT and CRPS of the quoted errors, and pulls for the figures.

    ``population`` are new stars of training cells and stars of test cells, with their shares in the population.
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
        rng = np.random.default_rng(SEED + 10 + index)
        parts = [synthetic_stars(bank, split, round(one * settings.calibration), rng) for split, one in shares.items()]
        stars = concatenate_stars(parts)
        snr = np.array(SNRS)[rng.integers(0, len(SNRS), len(stars))]
        spectra = noisy_inputs(stars, snr, SEED + 20 + index)
        out[name] = {}
        for model, card in cards.items():
            found = predict_spectra(card, spectra, stars.fwhm)
            z = found.gaussian_pulls(stars.sed)
            out[name][model] = calibration_scores(z, found, stars, snr)
            figures[name, model] = z
    return out, figures


def evaluate_kurucz(data: Path, cards: dict[str, ModelCard]) -> dict[str, Any]:
    """Return errors on the Kurucz standards of SDSS, half of which lie between the nodes of the templates."""
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
        mean = predict_spectra(card, spectra, fwhm, real).mean
        out[name] = {
            "at_nodes": band_errors(mean[~between], sed[~between]),
            "between_nodes_errors": band_errors(mean[between], sed[between]),
        }
    return out
