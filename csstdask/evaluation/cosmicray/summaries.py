"""Summarise the counts of frames: rates, calibration, false pixels and photometry.

Results are dictionaries for the JSON file. All rates are at the threshold of the model card unless stated otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import linregress

from csstdask.evaluation.cosmicray.frames import (
    CHARGE_BINS,
    DISTANCE_BINS,
    LENGTH_BINS,
    FrameCounts,
    region_levels,
    sum_counts,
)
from csstdask.evaluation.cosmicray.methods import Method
from csstdask.metrics import detection_histograms as histograms

#: Rates that are reported.
_RATES = ("precision", "precision_off_skirt", "recall", "recall_visible")
#: Edges of the bins of the signal-to-noise ratio of stars.
_SNR_BINS = (5, 10, 20, 50, 100, 1e9)
#: Smallest signal-to-noise ratio and area [pixel] of the stars whose fluxes are compared.
MIN_FLUX_SNR, MIN_FLUX_AREA = 20, 16


def pooled_rates(counts: histograms.Counts, threshold: float) -> dict[str, float]:
    """Return precision and recall over the pixels of all frames, at a threshold."""
    chosen = histograms.at_threshold(histograms.detection_rates(counts), threshold)
    return {"threshold": threshold} | {name: chosen[name] for name in _RATES}


def per_image(frames: Sequence[FrameCounts], thresholds: dict[str, float]) -> dict[str, Any]:
    """Return mean and standard deviation over detectors of the median rates of their images, as in the paper."""
    result: dict[str, Any] = {}
    for name, threshold in thresholds.items():
        rows = [
            (
                one.detector,
                histograms.at_threshold(histograms.detection_rates(one.counts[name]), threshold),
            )
            for one in frames
        ]
        detectors = sorted({detector for detector, _ in rows})
        result[name] = {}
        for rate in _RATES:
            medians = [np.nanmedian([row[rate] for detector, row in rows if detector == one]) for one in detectors]
            result[name][rate] = {"mean": float(np.mean(medians)), "sd": float(np.std(medians))}
    return result


def by_detector(frames: Sequence[FrameCounts], thresholds: dict[str, float]) -> dict[str, Any]:
    """Return the quartiles of the rates over the images of each detector (rejection paper, figure 2)."""
    result: dict[str, Any] = {}
    for detector in sorted({one.detector for one in frames}):
        own = [one for one in frames if one.detector == detector]
        result[str(detector)] = {
            name: {
                rate: np.nanpercentile(
                    [histograms.at_threshold(histograms.detection_rates(one.counts[name]), cut)[rate] for one in own],
                    [25, 50, 75],
                ).tolist()
                for rate in _RATES
            }
            for name, cut in thresholds.items()
        }
    return result


def against(counts: dict[str, histograms.Counts], methods: Sequence[Method]) -> dict[str, Any]:
    """Compare the first method with each other one at equal precision."""
    ours = histograms.detection_rates(counts[methods[0].name])
    result: dict[str, Any] = {}
    for other in methods[1:]:
        theirs = histograms.at_threshold(histograms.detection_rates(counts[other.name]), other.threshold)
        result[other.name] = at_equal_precision(ours, theirs)
    return result


def at_equal_precision(ours: dict[str, npt.NDArray[np.float64]], theirs: dict[str, float]) -> dict[str, float | None]:
    """Return the rates of the first method at the precision of another, and the fraction fewer missed visible pixels.

    Parameters
    ----------
    ours : dict
        Rates of the first method at all thresholds, as `detection_rates` returns them.
    theirs : dict
        Rates of the other method at its threshold.
    """
    threshold = histograms.threshold_at_precision(ours, theirs["precision"])
    if threshold is None:
        return {"precision": theirs["precision"], "threshold": None, "fewer_missed_visible": None}
    chosen = histograms.at_threshold(ours, threshold)
    return {
        "precision": theirs["precision"],
        "threshold": threshold,
        "recall_visible": chosen["recall_visible"],
        "recall_visible_theirs": theirs["recall_visible"],
        "fewer_missed_visible": 1 - chosen["missed_visible"] / max(1.0, theirs["missed_visible"]),
    }


def by_region(counts: histograms.Counts, threshold: float, reweight: Sequence[float] | None = None) -> dict[str, Any]:
    """Return rates inside the regions above k times the rms of the background (assessment paper, table 1)."""
    rows: dict[str, Any] = {}
    for number, (name, level) in enumerate(region_levels()):
        weight = 1.0 if reweight is None else reweight[number]
        chosen = histograms.at_threshold(histograms.detection_rates(counts, level=level, reweight=weight), threshold)
        rows[name] = {rate: chosen[rate] for rate in _RATES} | {
            "visible": int(counts[histograms.VISIBLE, level:].sum())
        }
    return rows


def by_charge(values: npt.NDArray[np.int64]) -> dict[str, list[float]]:
    """Return recall as a function of the charge of a pixel (rejection paper, figure 3)."""
    total, found = values
    there = total > 20
    return {
        "charge": [CHARGE_BINS[i] for i in np.flatnonzero(there)],
        "recall": (found[there] / total[there]).tolist(),
        "pixels": total[there].tolist(),
    }


def by_distance(values: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return rates as functions of the distance from the nearest bright source."""
    visible, seen, found, false = values.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "from": list(DISTANCE_BINS),
            "recall_visible": (seen / visible).tolist(),
            "precision": (1 - false / found).tolist(),
            "visible": visible.astype(int).tolist(),
        }


def by_length(values: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return the fraction of events of which half of the charge is found, by length."""
    total, found = values.astype(float)
    return {
        "from": list(LENGTH_BINS),
        "found": (found / np.maximum(total, 1)).tolist(),
        "events": total.astype(int).tolist(),
    }


def charges(frames: Sequence[FrameCounts]) -> dict[str, Any]:
    """Return the distribution of the charge of pixels, and the fraction in tracks (rejection paper, figure 4)."""
    every, track = np.sum([one.charges for one in frames if one.charges is not None], axis=0)
    return {
        "charge": list(CHARGE_BINS),
        "pixels": every.tolist(),
        "share_of_tracks": (track / np.maximum(every, 1)).tolist(),
    }


def reliabilities(frames: Sequence[FrameCounts], methods: Sequence[Method]) -> dict[str, Any]:
    """Return the reliability of the probabilities of networks, original and rescaled, everywhere and on sources."""
    result: dict[str, Any] = {}
    above = {method.name: method.hit_threshold for method in methods}
    for what in ("counts", "rescaled"):
        for name, counts in sum_counts(frames, what).items():
            if name in frames[0].rescaled:
                rows = result.setdefault(name, {})
                rows["as the card has it" if what == "counts" else "rescaled to the frame"] = {
                    "everywhere": histograms.reliability(counts, hit_threshold=above[name]),
                    "within sources": histograms.reliability(counts, hit_threshold=above[name], level=1),
                }
    return result


def curve(counts: histograms.Counts) -> dict[str, list[float]]:
    """Return precision and recall at some thresholds."""
    curves = histograms.detection_rates(counts)
    bins = range(20, 220, 5)
    return {"threshold": [histograms.bin_probability(i) for i in bins]} | {
        rate: [round(float(curves[rate][i]), 5) for i in bins] for rate in _RATES
    }


def false_pixels(frames: Sequence[FrameCounts], thresholds: dict[str, float]) -> dict[str, float]:
    """Return the number of false pixels per million in frames without cosmic rays."""
    result: dict[str, float] = {}
    for name, counts in sum_counts(frames, "clean_counts").items():
        false = counts[..., histograms.threshold_bin(thresholds[name]) :].sum()
        result[name] = float(false / counts.sum() * 1e6)
    return result


def false_pixels_on(frames: Sequence[FrameCounts]) -> dict[str, Any]:
    """Return the number of pixels of each artefact, and false pixels per million among them."""
    result: dict[str, Any] = {}
    for name in frames[0].false_on:
        for place in frames[0].false_on[name]:
            pixels, found = np.sum([one.false_on[name][place] for one in frames], axis=0)
            row = result.setdefault(place, {"pixels": int(pixels), "per_mpix": {}})
            row["per_mpix"][name] = float(found / pixels * 1e6) if pixels else None
    return result


def stars_part(frames: Sequence[FrameCounts], names: Sequence[str]) -> dict[str, Any]:
    """Return fluxes of stars after repair, and the fraction of stars flagged in frames without cosmic rays."""
    columns = {key: np.concatenate([one.stars[key] for one in frames]) for key in frames[0].stars}
    result: dict[str, Any] = {"stars": len(columns["snr"])}
    if f"{names[0]}: core flagged" in columns:
        rows = {}
        for low, high in pairwise(_SNR_BINS):
            inside = (columns["snr"] >= low) & (columns["snr"] < high)
            rows[f"S/N {low:g} to {high:g}" if high < 1e6 else f"S/N above {low:g}"] = {"stars": int(inside.sum())} | {
                name: {
                    "core": float(columns[f"{name}: core flagged"][inside].mean()) if inside.any() else None,
                    "whole": float(columns[f"{name}: whole flagged"][inside].mean()) if inside.any() else None,
                }
                for name in names
            }
        result["flagged_without_cosmic_rays"] = rows
    bright = (columns["snr"] > MIN_FLUX_SNR) & (columns["area"] >= MIN_FLUX_AREA)
    result["flux"] = {
        name: flux_statistics({key: value[bright] for key, value in columns.items()}, name) for name in names
    }
    return result


def flux_statistics(columns: dict[str, npt.NDArray[Any]], name: str) -> dict[str, Any]:
    """Return fractions of contaminated and anomalous stars, and flux ratios, after the repair of a mask.

    The flux of a contaminated star differs by more than three sigma between the hit and the clean image, that of an
    anomalous star between the repaired and the clean image (deepCR assessment paper, sections 5.2 and 5.3).
    """
    clean, sigma = columns["clean"], np.maximum(columns["sigma"], 1e-6)
    contaminated = np.abs(columns["hit"] - clean) > 3 * sigma
    anomalous = np.abs(columns[name] - clean) > 3 * sigma
    ratio = columns[name][contaminated] / np.maximum(clean[contaminated], 1)
    if len(clean) == 0:
        return {"stars": 0}
    row: dict[str, Any] = {
        "stars": len(clean), "contaminated": float(contaminated.mean()), "anomalous": float(anomalous.mean()),
        "anomalous_of_contaminated": float(anomalous[contaminated].mean()) if contaminated.any() else None,
        "spoilt": float((anomalous & ~contaminated).mean()),
    }  # fmt: skip
    if contaminated.any():
        row["ratio_percentiles_5_16_50_84_95"] = np.percentile(ratio, [5, 16, 50, 84, 95]).tolist()
        before = columns["hit"][contaminated] / np.maximum(clean[contaminated], 1)
        row["ratio_before_5_16_50_84_95"] = np.percentile(before, [5, 16, 50, 84, 95]).tolist()
    return row


def charged_fraction(counts: histograms.Counts, level: int) -> float:
    """Return the fraction of the pixels of a region that have charge."""
    inside = counts[:, level:]
    return float(inside[histograms.FAINT :].sum() / max(1, inside.sum()))


def fit_line(points: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Fit a straight line; return slope, intercept, Pearson's r and p."""
    x, y = np.array(points).T
    if np.ptp(x) == 0 or len(x) < 3:
        return {"n": float(len(x))}
    fit = linregress(x, y)
    return {
        "slope": float(fit.slope), "slope_error": float(fit.stderr), "intercept": float(fit.intercept),
        "r": float(fit.rvalue), "p": float(fit.pvalue), "n": float(len(x)),
    }  # fmt: skip
