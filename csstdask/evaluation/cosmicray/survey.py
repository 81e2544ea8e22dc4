"""Mock surveys with known truth: the two papers' tables and figures, and what they do not ask.

Every number is of test recipes alone, at the card's threshold unless it says another; baselines saw the same pixels in
the same run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import linregress

from csstdask.evaluation.cosmicray.frames import (
    CHARGE_BINS,
    DISTANCE_BINS,
    LENGTH_BINS,
    EvaluationRequest,
    FrameCounts,
    evaluate_frames,
    region_levels,
    sum_counts,
)
from csstdask.evaluation.cosmicray.methods import Method
from csstdask.evaluation.runner import ProgressCallback
from csstdask.metrics import detection_histograms as histograms
from csstdask.mock import Recipe

#: Of each field, exposures that are also looked at without their cosmic rays.
_CLEAN_EXPOSURES = 5
#: Two classes of stars by the pixels of their region (deepCR assessment paper, section 5.3).
_SIZES = {"16 to 50 pixels": (16, 50), "200 to 400 pixels": (200, 400)}
_SNR_BINS = (5, 10, 20, 50, 100, 1e9)
_BOOTSTRAPS, _SEED = 400, 1999


@dataclass(frozen=True)
class Survey:
    """One recipe, and the methods that look at it; the first is ours, the second the baseline."""

    recipe: Recipe
    methods: tuple[Method, ...]
    data: Path | None = None
    workers: int | None = None


def field_part(survey: Survey, on_progress: ProgressCallback) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return detection over all detectors: the rejection paper's figures 2 to 4, the assessment paper's table 1."""

    def asked(index: int) -> EvaluationRequest:
        few = index < _CLEAN_EXPOSURES
        return EvaluationRequest(survey.methods, clean=few, photometry=few)

    seen = list(
        evaluate_frames(survey.recipe, asked, data=survey.data, workers=survey.workers, on_progress=on_progress)
    )
    thresholds = {method.name: method.threshold for method in survey.methods}
    counts = sum_counts(seen, "counts")
    with_clean = [one for one in seen if one.clean_counts]
    result = {
        "frames": len(seen),
        "shape": list(survey.recipe.frame_shape),
        "share_of_asked_pixels_that_are_visible": histograms.visible_fraction(next(iter(counts.values()))),
        "pooled": {name: pooled_rates(values, thresholds[name]) for name, values in counts.items()},
        "per_image": per_image(seen, thresholds),
        "by_detector": by_detector(seen, thresholds),
        "against_baseline": against(counts, survey.methods),
        "by_region": {name: by_region(values, thresholds[name]) for name, values in counts.items()},
        "by_charge": {name: by_charge(values) for name, values in sum_counts(seen, "by_charge").items()},
        "by_distance": {name: by_distance(values) for name, values in sum_counts(seen, "by_distance").items()},
        "events_by_length": {name: by_length(values) for name, values in sum_counts(seen, "by_length").items()},
        "charges": charges(seen),
        "reliability": reliabilities(seen, survey.methods),
        "curves": {name: curve(values) for name, values in counts.items()},
        "false_pixels_per_mpix": false_pixels(with_clean, thresholds),
        "false_pixels_on": false_pixels_on(with_clean),
        "stars": stars_part(with_clean, list(thresholds)),
    }
    gallery = sorted((entry for one in seen for entry in one.gallery), key=lambda entry: entry["ratio"])
    return result, gallery


def pooled_rates(counts: histograms.Counts, threshold: float) -> dict[str, float]:
    """Return precision and recall of all pixels of all frames, at a threshold."""
    chosen = histograms.at_threshold(histograms.detection_rates(counts), threshold)
    return {"threshold": threshold} | {name: chosen[name] for name in _RATES}


_RATES = ("precision", "precision_off_skirt", "recall", "recall_visible")


def per_image(seen: Sequence[FrameCounts], thresholds: dict[str, float]) -> dict[str, Any]:
    """Return mean and deviation over detectors of each image's rates, as the paper quotes them."""
    result: dict[str, Any] = {}
    for name, threshold in thresholds.items():
        rows = [
            (
                one.detector,
                histograms.at_threshold(histograms.detection_rates(one.counts[name]), threshold),
            )
            for one in seen
        ]
        detectors = sorted({detector for detector, _ in rows})
        result[name] = {}
        for rate in _RATES:
            medians = [np.nanmedian([row[rate] for detector, row in rows if detector == one]) for one in detectors]
            result[name][rate] = {"mean": float(np.mean(medians)), "sd": float(np.std(medians))}
    return result


def by_detector(seen: Sequence[FrameCounts], thresholds: dict[str, float]) -> dict[str, Any]:
    """Return quartiles over each detector's images (rejection paper, figure 2)."""
    result: dict[str, Any] = {}
    for detector in sorted({one.detector for one in seen}):
        own = [one for one in seen if one.detector == detector]
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
    """Return how many fewer visible pixels the first method misses at each other's precision."""
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
    """Return rates inside the regions above k times the background's rms (assessment paper, table 1)."""
    rows: dict[str, Any] = {}
    for number, (name, level) in enumerate(region_levels()):
        weight = 1.0 if reweight is None else reweight[number]
        chosen = histograms.at_threshold(histograms.detection_rates(counts, level=level, reweight=weight), threshold)
        rows[name] = {rate: chosen[rate] for rate in _RATES} | {
            "visible": int(counts[histograms.VISIBLE, level:].sum())
        }
    return rows


def by_charge(values: npt.NDArray[np.int64]) -> dict[str, list[float]]:
    """Return recall against a pixel's charge (rejection paper, figure 3)."""
    total, found = values
    there = total > 20
    return {
        "charge": [CHARGE_BINS[i] for i in np.flatnonzero(there)],
        "recall": (found[there] / total[there]).tolist(),
        "pixels": total[there].tolist(),
    }


def by_distance(values: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return rates against the distance from the nearest source of S/N 20."""
    visible, seen, found, false = values.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "from": list(DISTANCE_BINS),
            "recall_visible": (seen / visible).tolist(),
            "precision": (1 - false / found).tolist(),
            "visible": visible.astype(int).tolist(),
        }


def by_length(values: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return the share of events of which half of the charge is found, by length."""
    total, found = values.astype(float)
    return {
        "from": list(LENGTH_BINS),
        "found": (found / np.maximum(total, 1)).tolist(),
        "events": total.astype(int).tolist(),
    }


def charges(seen: Sequence[FrameCounts]) -> dict[str, Any]:
    """Return the distribution of pixels' charges and the share of tracks in it (rejection paper, figure 4)."""
    every, track = np.sum([one.charges for one in seen if one.charges is not None], axis=0)
    return {
        "charge": list(CHARGE_BINS),
        "pixels": every.tolist(),
        "share_of_tracks": (track / np.maximum(every, 1)).tolist(),
    }


def reliabilities(seen: Sequence[FrameCounts], methods: Sequence[Method]) -> dict[str, Any]:
    """Return how true the networks' probabilities are, as the card has them and rescaled, everywhere and on sources."""
    result: dict[str, Any] = {}
    above = {method.name: method.hit_threshold for method in methods}
    for what in ("counts", "rescaled"):
        for name, counts in sum_counts(seen, what).items():
            if name in seen[0].rescaled:
                rows = result.setdefault(name, {})
                rows["as the card has it" if what == "counts" else "rescaled to the frame"] = {
                    "everywhere": histograms.reliability(counts, hit_threshold=above[name]),
                    "within sources": histograms.reliability(counts, hit_threshold=above[name], level=1),
                }
    return result


def curve(counts: histograms.Counts) -> dict[str, list[float]]:
    """Return precision and recalls against the threshold, thinned."""
    curves = histograms.detection_rates(counts)
    places = range(20, 220, 5)
    return {"threshold": [histograms.bin_probability(i) for i in places]} | {
        rate: [round(float(curves[rate][i]), 5) for i in places] for rate in _RATES
    }


def false_pixels(seen: Sequence[FrameCounts], thresholds: dict[str, float]) -> dict[str, float]:
    """Return how many pixels are called hit in a million where nothing is."""
    result: dict[str, float] = {}
    for name, counts in sum_counts(seen, "clean_counts").items():
        false = counts[..., histograms.threshold_bin(thresholds[name]) :].sum()
        result[name] = float(false / counts.sum() * 1e6)
    return result


def false_pixels_on(seen: Sequence[FrameCounts]) -> dict[str, Any]:
    """Return how many pixels are on trails and ghosts and beside saturated ones, and the share that is called hit."""
    result: dict[str, Any] = {}
    for name in seen[0].false_on:
        for place in seen[0].false_on[name]:
            pixels, found = np.sum([one.false_on[name][place] for one in seen], axis=0)
            row = result.setdefault(place, {"pixels": int(pixels), "per_mpix": {}})
            row["per_mpix"][name] = float(found / pixels * 1e6) if pixels else None
    return result


def stars_part(seen: Sequence[FrameCounts], names: Sequence[str]) -> dict[str, Any]:
    """Return photometry of stars, clean against hit and repaired, and how many are flagged where nothing hit them."""
    columns = {key: np.concatenate([one.stars[key] for one in seen]) for key in seen[0].stars}
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
    solid = (columns["snr"] > 20) & (columns["area"] >= 16)
    result["flux"] = {
        name: flux_statistics({key: value[solid] for key, value in columns.items()}, name) for name in names
    }
    return result


def flux_statistics(columns: dict[str, npt.NDArray[Any]], name: str) -> dict[str, Any]:
    """Return contaminated and anomalous shares and flux ratios of some stars after a method's masks were repaired.

    Contaminated: the hit image's flux is more than three sigma from the clean one's; anomalous: the repaired one's is
    (deepCR assessment paper, sections 5.2 and 5.3).
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


# --- sources, density, epochs -----------------------------------------------------------------------------------


def sources_part(survey: Survey, field_density: float, on_progress: ProgressCallback) -> dict[str, Any]:
    """Return detection where deepCR fails: cosmic rays dropped on sources; precision at the density of the field.

    Parameters
    ----------
    survey : Survey
        Of a recipe that aims cosmic rays at sources.
    field_density : float
        Share of pixels with charge that an ordinary field has.
    announce : callable
    """
    look = EvaluationRequest(survey.methods)
    seen = list(
        evaluate_frames(
            survey.recipe, lambda _: look, data=survey.data, workers=survey.workers, on_progress=on_progress
        )
    )
    counts = sum_counts(seen, "counts")
    first = next(iter(counts.values()))
    weights = [field_density / max(1e-9, charged_fraction(first, level)) for _, level in region_levels()]
    ours = survey.methods[0]
    result: dict[str, Any] = {"frames": len(seen), "reweight": weights, "against": {}}
    result["by_region"] = {
        method.name: by_region(counts[method.name], method.threshold, weights) for method in survey.methods
    }
    result["by_distance"] = {name: by_distance(values) for name, values in sum_counts(seen, "by_distance").items()}
    for other in survey.methods[1:]:
        rows = {}
        for (name, level), weight in zip(region_levels(), weights, strict=True):
            rates = histograms.detection_rates(counts[other.name], level=level, reweight=weight)
            own_rates = histograms.detection_rates(counts[ours.name], level=level, reweight=weight)
            rows[name] = at_equal_precision(own_rates, histograms.at_threshold(rates, other.threshold))
        result["against"][other.name] = rows
    return result


def charged_fraction(counts: histograms.Counts, level: int) -> float:
    """Return the share of a region's pixels that hold charge."""
    inside = counts[:, level:]
    return float(inside[histograms.FAINT :].sum() / max(1, inside.sum()))


def crowded_part(survey: Survey, on_progress: ProgressCallback) -> dict[str, Any]:
    """Return crowded fields by name: rates, false pixels without cosmic rays, stars flagged."""
    look = EvaluationRequest(survey.methods, clean=True, photometry=True)
    seen = list(
        evaluate_frames(
            survey.recipe, lambda _: look, data=survey.data, workers=survey.workers, on_progress=on_progress
        )
    )
    thresholds = {method.name: method.threshold for method in survey.methods}
    result: dict[str, Any] = {}
    for name in dict.fromkeys(field.name for field in survey.recipe.fields):
        own = [one for one in seen if survey.recipe.field_of(one.exposure).name == name]
        counts = sum_counts(own, "counts")
        result[name] = {
            "frames": len(own),
            "pooled": {key: pooled_rates(values, thresholds[key]) for key, values in counts.items()},
            "against_baseline": against(counts, survey.methods),
            "false_pixels_per_mpix": false_pixels(own, thresholds),
            "stars": stars_part(own, list(thresholds)),
        }
    return result


def density_part(survey: Survey, on_progress: ProgressCallback) -> dict[str, Any]:
    """Return rates, calibration, contaminated and anomalous stars against the density of cosmic rays."""
    from csstdask.mock.cosmic_rays import pixel_fraction  # noqa: PLC0415

    look = EvaluationRequest(survey.methods, photometry=True)
    seen = list(
        evaluate_frames(
            survey.recipe, lambda _: look, data=survey.data, workers=survey.workers, on_progress=on_progress
        )
    )
    thresholds = {method.name: method.threshold for method in survey.methods}
    rows: dict[str, Any] = {}
    shares: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for index in sorted(range(survey.recipe.exposures), key=lambda index: pixel_fraction(survey.recipe, index)):
        density = pixel_fraction(survey.recipe, index)
        own = [one for one in seen if one.exposure == index]
        counts = sum_counts(own, "counts")
        rows[f"{100 * density:.3g} %"] = {
            "pooled": {name: pooled_rates(values, thresholds[name]) for name, values in counts.items()},
            "against_baseline": against(counts, survey.methods),
            "reliability": reliabilities(own, survey.methods),
        }
        for one in own:
            for size, (low, high) in _SIZES.items():
                inside = (one.stars["area"] >= low) & (one.stars["area"] <= high) & (one.stars["snr"] > 20)
                if inside.sum() < 5:
                    continue
                columns = {key: value[inside] for key, value in one.stars.items()}
                facts = {name: flux_statistics(columns, name) for name in thresholds}
                for name, row in facts.items():
                    shares.setdefault((size, name), []).append((density, row["anomalous"]))
                touched = next(iter(facts.values()))["contaminated"]
                shares.setdefault((size, "contaminated"), []).append((density, touched))
    fits = {f"{size}: {name}": fit_line(points) for (size, name), points in shares.items()}
    return {"densities": rows, "fraction_of_stars_against_density": fits}


def fit_line(points: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Return slope, intercept and Pearson's r of a straight line."""
    x, y = np.array(points).T
    if np.ptp(x) == 0 or len(x) < 3:
        return {"n": float(len(x))}
    fit = linregress(x, y)
    return {
        "slope": float(fit.slope), "slope_error": float(fit.stderr), "intercept": float(fit.intercept),
        "r": float(fit.rvalue), "p": float(fit.pvalue), "n": float(len(x)),
    }  # fmt: skip


#: What ages, and the settings that stop it.
AGEING: dict[str, dict[str, dict[str, Any]]] = {
    "hot pixels": {"sensor": {"hot_growth": 0.0}},
    "dark current": {"sensor": {"dark_growth": 0.0}},
    "charge transfer": {"sensor": {"cti": 0.0}},
    "optics": {"optics": {"drift": 0.0}},
    "rate of cosmic rays": {"cosmic_rays": {"solar_cycle": 0.0, "anomaly_share": 0.0, "rate_scatter": 0.0}},
}


def epochs_part(survey: Survey, on_progress: ProgressCallback) -> dict[str, Any]:
    """Return F-score and flux ratio over ten years, with all that ages, with each term alone, and with none."""
    result: dict[str, Any] = {}
    for name, kept in {"all together": tuple(AGEING), **{term: (term,) for term in AGEING}, "none": ()}.items():
        recipe = survey.recipe
        for term, settings in AGEING.items():
            if term not in kept:
                for part, values in settings.items():
                    recipe = recipe.model_copy(update={part: getattr(recipe, part).model_copy(update=values)})
        methods = survey.methods if name == "all together" else survey.methods[:1]
        on_progress(f"ageing: {name}")
        look = EvaluationRequest(methods, photometry=True)
        seen = list(evaluate_frames(recipe, lambda _, look=look: look, workers=survey.workers, on_progress=on_progress))  # type: ignore[misc]
        result[name] = {method.name: trend(recipe, seen, method) for method in methods}
    return result


def trend(recipe: Recipe, seen: Sequence[FrameCounts], method: Method) -> dict[str, Any]:
    """Return F-score inside sources and mean flux ratio by epoch, with straight lines."""
    points: dict[str, list[tuple[float, float]]] = {"f_score_on_sources": [], "f_score": [], "flux_ratio": []}
    for index in range(recipe.exposures):
        own = [one for one in seen if one.exposure == index]
        counts, epoch = sum_counts(own, "counts")[method.name], recipe.epoch_of(index)
        for key, level in (("f_score_on_sources", 1), ("f_score", 0)):
            chosen = histograms.at_threshold(histograms.detection_rates(counts, level=level), method.threshold)
            precision, recall = chosen["precision"], chosen["recall_visible"]
            points[key].append((epoch, 2 * precision * recall / max(1e-9, precision + recall)))
        columns = {key: np.concatenate([one.stars[key] for one in own]) for key in own[0].stars}
        solid = (columns["snr"] > 20) & (columns["area"] >= 16)
        ratio = np.sort(columns[method.name][solid] / np.maximum(columns["clean"][solid], 1))
        cut = len(ratio) // 20  # the paper leaves the highest and lowest twentieth out
        points["flux_ratio"].append((epoch, float(ratio[cut : len(ratio) - cut].mean())))
    return {key: fit_line(values) | {"points": values} for key, values in points.items()}
