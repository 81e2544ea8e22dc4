"""Scores of SEDs and their errors: band errors, coverage, CRPS and bootstraps of stars."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from csstdask.datasets.synthetic_spectra import SyntheticStars
from csstdask.evaluation.sed.settings import CHECKED, SEED, SNRS
from csstdask.flux.normalised_spectra import NormalisedSpectra
from csstdask.flux.sed import SedPrediction, predict_normalised
from csstdask.flux.spectral_grids import (
    BANDS,
    SED_WAVELENGTH,
    in_band,
)
from csstdask.nn.card import ModelCard
from csstdask.numerics.robust import mad_scale
from csstdask.training.sed.examples import noisy

Float = npt.NDArray[np.float64]
#: Wavelengths at which the paper compares with MILES [A], its errors there, and MILES against HST on the same stars.
TEFF_EDGES = (4900.0, 5750.0, 6500.0, 7500.0, 10_100.0)
"""Edges of the temperature cells of the calibration [K]."""
_MIN_CELL_STARS = 50
"""Stars from which a cell is scored."""


def noisy_inputs(stars: SyntheticStars, snr: npt.ArrayLike, seed: int) -> NormalisedSpectra:
    """Return noisy normalised spectra of synthetic stars, with one signal-to-noise ratio or one for each star (n,)."""
    generator = torch.Generator().manual_seed(seed)
    noise = 1 / np.broadcast_to(np.asarray(snr, dtype=np.float32), (len(stars),))
    flux, error = [], []
    for start in range(0, len(stars), 2048):
        part = slice(start, start + 2048)
        level = torch.from_numpy(np.ascontiguousarray(noise[part, None]))
        x, e = noisy(torch.from_numpy(stars.flux[part]), level, generator)
        flux.append(x.numpy())
        error.append(e.numpy())
    return NormalisedSpectra(np.concatenate(flux), np.concatenate(error).astype(np.float32))


def band_errors(mean: npt.NDArray, truth: npt.NDArray) -> dict[str, dict[str, float]]:
    """Return the rms and the robust (MAD) relative error in each band."""
    with np.errstate(invalid="ignore", divide="ignore"):
        residual = np.asarray(mean, dtype=float) / truth - 1
    return {
        band: {
            "rms": float(np.sqrt(np.nanmean(residual[:, in_band(band)] ** 2))),
            "robust": float(mad_scale(residual[:, in_band(band)], center=0.0)),
        }
        for band in BANDS
    }


def predict_spectra(
    card: ModelCard, spectra: NormalisedSpectra, fwhm: npt.NDArray, real: float | None = None
) -> SedPrediction:
    """Predict SEDs of normalised spectra on the CPU; see `csstdask.flux.sed.predict_normalised`."""
    return predict_normalised(spectra, card, torch.device("cpu"), fwhm=np.asarray(fwhm, dtype=np.float32), real=real)


def calibration_scores(z: npt.NDArray, found: SedPrediction, stars: SyntheticStars, snr: npt.NDArray) -> dict[str, Any]:
    """Score the errors of SEDs of synthetic stars.

    Parameters
    ----------
    z : array (n, 574)
        Pulls, made Gaussian (`SedPrediction.gaussian_pulls`).
    found : SedPrediction
        Predicted SEDs.
    stars : SyntheticStars
        The stars with their true SEDs.
    snr : array (n,)
        Signal-to-noise ratio of each spectrum.

    Returns
    -------
    dict
        Coverage of all pixels and of each band, CRPS of the quoted sigma and of a sigma that depends on wavelength
        only, and coverage by temperature, signal-to-noise ratio and band.
    """
    scored = _scored_pixels()
    out: dict[str, Any] = {"all": coverage(z[:, scored])}
    for band in BANDS:
        out[band] = coverage(z[:, scored & in_band(band)])
    constant = np.sqrt(((found.mean / stars.sed - 1) ** 2).mean(axis=0)) * found.mean
    residual = found.mean - stars.sed
    out["crps"] = float(np.mean(crps(residual[:, scored], found.sigma[:, scored])))
    out["crps_constant_sigma"] = float(np.mean(crps(residual[:, scored], constant[:, scored])))
    out["cells"] = _coverage_by_cell(z, stars, snr)
    return out


def _coverage_by_cell(z: npt.NDArray, stars: SyntheticStars, snr: npt.NDArray) -> dict[str, Any]:
    """Return coverages by temperature, signal-to-noise ratio and band; cells with fewer than 50 stars are left out.

    A coverage fails if it is off by more than 4 % and by more than two standard errors (over stars).
    """
    rows, worst, failed = [], 0.0, 0
    for (low, high), one in product(pairwise(TEFF_EDGES), SNRS):
        members = (stars.teff >= low) & (stars.teff < high) & (snr == one)
        if members.sum() < _MIN_CELL_STARS:
            continue
        for band in BANDS:
            size = np.abs(z[members][:, _scored_pixels() & in_band(band)])
            row: dict[str, Any] = {"teff": [low, high], "snr": one, "band": band, "stars": int(members.sum())}
            for level, limit in ((68, 1.0), (95, 2.0)):
                per_star = (size < _quantile(limit)).mean(axis=1)
                error = float(per_star.std() / np.sqrt(len(per_star)))
                off = float(per_star.mean() - level / 100)
                row[f"coverage_{level}"] = float(per_star.mean())
                row[f"allowed_{level}"] = max(0.04, 2 * error)
                failed += abs(off) > row[f"allowed_{level}"]
                worst = max(worst, abs(off))
            rows.append(row)
    return {"number": len(rows), "tests": 2 * len(rows), "failed": failed, "worst": worst, "rows": rows}


def _quantile(limit: float) -> float:
    """Return the half width of the central 68 % (limit 1) or 95 % (limit 2) of a Gaussian."""
    return {1.0: 0.99446, 2.0: 1.95996}[limit]


def _scored_pixels() -> npt.NDArray[np.bool_]:
    """Return the pixels (574,) whose errors are scored: not the reference range, whose mean is 1 by definition."""
    return (SED_WAVELENGTH < 5480) | (SED_WAVELENGTH > 5630)


def coverage(z: npt.NDArray) -> dict[str, float]:
    """Return the KS distance of the PIT from uniform, coverages, moments and tails of Gaussian pulls."""
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


def scatter_at_wavelengths(residual: npt.NDArray) -> list[float]:
    """Return the robust scatter over stars of residuals averaged within 1 % of each checked wavelength."""
    out = []
    for wavelength in CHECKED:
        near = np.abs(SED_WAVELENGTH / wavelength - 1) < 0.01
        values = np.nanmean(residual[:, near], axis=1)
        out.append(float(mad_scale(values)))
    return out


def median_at_wavelengths(residual: npt.NDArray) -> list[float]:
    """Return the median residual within 1 % of each checked wavelength."""
    return [float(np.nanmedian(residual[:, np.abs(SED_WAVELENGTH / one - 1) < 0.01])) for one in CHECKED]


def calibration_with_intervals(z: npt.NDArray, draws: int) -> dict[str, Any]:
    """Return the coverage of pulls of real stars, with 95 % intervals from a bootstrap of stars."""
    out: dict[str, Any] = {"all": coverage(z)}
    rng = np.random.default_rng(SEED)
    for key, limit in (("coverage_68", 1.0), ("coverage_95", 2.0)):
        hit = np.nanmean(np.where(np.isfinite(z), np.abs(z) < _quantile(limit), np.nan), axis=1)
        drawn = hit[rng.integers(0, len(hit), (draws, len(hit)))].mean(axis=1)
        out[f"{key}_interval"] = [float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))]
    return out


def rms_by_star(residual: npt.NDArray, band: str) -> list[float]:
    """Return the rms of each star's residuals in a band."""
    return [float(one) for one in np.sqrt(np.nanmean(residual[:, in_band(band)] ** 2, axis=1))]


def paired_ratio(first: list[float], second: list[float], draws: int) -> dict[str, Any]:
    """Return the ratio of the rms errors of two methods, with the 68 % interval of a paired bootstrap of stars."""
    a, b = np.array(first) ** 2, np.array(second) ** 2
    index = np.random.default_rng(SEED).integers(0, len(a), (draws, len(a)))
    ratio = np.sqrt(a[index].mean(axis=1) / b[index].mean(axis=1))
    medians = np.median(np.sqrt(a)) / np.median(np.sqrt(b))
    return {
        "ratio": float(np.sqrt(a.mean() / b.mean())),
        "interval_68": [float(np.quantile(ratio, 0.16)), float(np.quantile(ratio, 0.84))],
        "better": float((ratio < 1).mean()),
        "ratio_of_medians": float(medians),
    }
