"""Evaluate detection on mock surveys: the tables and figures of two papers, and further tests.

The papers are the CSST rejection paper and the deepCR assessment paper. All methods are applied to the same pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from csstdask.evaluation.cosmicray.frames import (
    EvaluationRequest,
    FrameCounts,
    evaluate_frames,
    region_levels,
    sum_counts,
)
from csstdask.evaluation.cosmicray.methods import Method
from csstdask.evaluation.cosmicray.summaries import (
    MIN_FLUX_AREA,
    MIN_FLUX_SNR,
    against,
    at_equal_precision,
    by_charge,
    by_detector,
    by_distance,
    by_length,
    by_region,
    charged_fraction,
    charges,
    curve,
    false_pixels,
    false_pixels_on,
    fit_line,
    flux_statistics,
    per_image,
    pooled_rates,
    reliabilities,
    stars_part,
)
from csstdask.evaluation.runner import ProgressCallback
from csstdask.metrics import detection_histograms as histograms
from csstdask.mock import Recipe

#: Exposures that are also evaluated without their cosmic rays.
_CLEAN_EXPOSURES = 5
#: Classes of stars by the area of their region (deepCR assessment paper, section 5.3).
_SIZES = {"16 to 50 pixels": (16, 50), "200 to 400 pixels": (200, 400)}


@dataclass(frozen=True)
class Survey:
    """A recipe and the methods that are evaluated on it: first the network, second the baseline."""

    recipe: Recipe
    methods: tuple[Method, ...]
    data: Path | None = None
    """Folder of real cosmic-ray events."""
    workers: int | None = None
    """Number of worker processes, by default one per CPU core; 0: none."""


def _evaluate(survey: Survey, request: EvaluationRequest, on_progress: ProgressCallback) -> Iterator[FrameCounts]:
    """Evaluate the same on all frames of a survey."""
    return evaluate_frames(
        survey.recipe, lambda _: request, data=survey.data, workers=survey.workers, on_progress=on_progress
    )


def field_part(survey: Survey, on_progress: ProgressCallback) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Evaluate detection over all detectors: figures 2 to 4 of the rejection paper, table 1 of the assessment paper.

    Returns
    -------
    result : dict
        Numbers for the JSON file.
    gallery : list of dict
        Cut-outs of stars whose repaired flux is wrong, the worst first.
    """

    def asked(index: int) -> EvaluationRequest:
        few = index < _CLEAN_EXPOSURES
        return EvaluationRequest(survey.methods, clean=few, photometry=few)

    frames = list(
        evaluate_frames(survey.recipe, asked, data=survey.data, workers=survey.workers, on_progress=on_progress)
    )
    thresholds = {method.name: method.threshold for method in survey.methods}
    counts = sum_counts(frames, "counts")
    with_clean = [one for one in frames if one.clean_counts]
    result = {
        "frames": len(frames),
        "shape": list(survey.recipe.frame_shape),
        "share_of_asked_pixels_that_are_visible": histograms.visible_fraction(next(iter(counts.values()))),
        "pooled": {name: pooled_rates(values, thresholds[name]) for name, values in counts.items()},
        "per_image": per_image(frames, thresholds),
        "by_detector": by_detector(frames, thresholds),
        "against_baseline": against(counts, survey.methods),
        "by_region": {name: by_region(values, thresholds[name]) for name, values in counts.items()},
        "by_charge": {name: by_charge(values) for name, values in sum_counts(frames, "by_charge").items()},
        "by_distance": {name: by_distance(values) for name, values in sum_counts(frames, "by_distance").items()},
        "events_by_length": {name: by_length(values) for name, values in sum_counts(frames, "by_length").items()},
        "charges": charges(frames),
        "reliability": reliabilities(frames, survey.methods),
        "curves": {name: curve(values) for name, values in counts.items()},
        "false_pixels_per_mpix": false_pixels(with_clean, thresholds),
        "false_pixels_on": false_pixels_on(with_clean),
        "stars": stars_part(with_clean, list(thresholds)),
    }
    gallery = sorted((entry for one in frames for entry in one.gallery), key=lambda entry: entry["ratio"])
    return result, gallery


def sources_part(survey: Survey, field_density: float, on_progress: ProgressCallback) -> dict[str, Any]:
    """Evaluate cosmic rays on sources, where deepCR fails; precision is scaled to the density of an ordinary field.

    Parameters
    ----------
    survey : Survey
        Survey of a recipe with cosmic rays on sources.
    field_density : float
        Fraction of pixels with charge in an ordinary field.
    on_progress : callable
        Receives lines about the progress.
    """
    frames = list(_evaluate(survey, EvaluationRequest(survey.methods), on_progress))
    counts = sum_counts(frames, "counts")
    first = next(iter(counts.values()))
    weights = [field_density / max(1e-9, charged_fraction(first, level)) for _, level in region_levels()]
    ours = survey.methods[0]
    result: dict[str, Any] = {"frames": len(frames), "reweight": weights, "against": {}}
    result["by_region"] = {
        method.name: by_region(counts[method.name], method.threshold, weights) for method in survey.methods
    }
    result["by_distance"] = {name: by_distance(values) for name, values in sum_counts(frames, "by_distance").items()}
    for other in survey.methods[1:]:
        rows = {}
        for (name, level), weight in zip(region_levels(), weights, strict=True):
            rates = histograms.detection_rates(counts[other.name], level=level, reweight=weight)
            own_rates = histograms.detection_rates(counts[ours.name], level=level, reweight=weight)
            rows[name] = at_equal_precision(own_rates, histograms.at_threshold(rates, other.threshold))
        result["against"][other.name] = rows
    return result


def crowded_part(survey: Survey, on_progress: ProgressCallback) -> dict[str, Any]:
    """Evaluate crowded fields, by name: rates, false pixels, and flagged stars."""
    frames = list(_evaluate(survey, EvaluationRequest(survey.methods, clean=True, photometry=True), on_progress))
    thresholds = {method.name: method.threshold for method in survey.methods}
    result: dict[str, Any] = {}
    for name in dict.fromkeys(field.name for field in survey.recipe.fields):
        own = [one for one in frames if survey.recipe.field_of(one.exposure).name == name]
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
    """Evaluate rates, calibration and photometry as functions of the density of cosmic rays."""
    from csstdask.mock.cosmic_rays import pixel_fraction  # noqa: PLC0415

    frames = list(_evaluate(survey, EvaluationRequest(survey.methods, photometry=True), on_progress))
    thresholds = {method.name: method.threshold for method in survey.methods}
    rows: dict[str, Any] = {}
    shares: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for index in sorted(range(survey.recipe.exposures), key=lambda index: pixel_fraction(survey.recipe, index)):
        density = pixel_fraction(survey.recipe, index)
        own = [one for one in frames if one.exposure == index]
        counts = sum_counts(own, "counts")
        rows[f"{100 * density:.3g} %"] = {
            "pooled": {name: pooled_rates(values, thresholds[name]) for name, values in counts.items()},
            "against_baseline": against(counts, survey.methods),
            "reliability": reliabilities(own, survey.methods),
        }
        for one in own:
            for size, (low, high) in _SIZES.items():
                inside = (one.stars["area"] >= low) & (one.stars["area"] <= high) & (one.stars["snr"] > MIN_FLUX_SNR)
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


#: Effects of ageing, and the settings of the recipe that switch each off.
AGEING: dict[str, dict[str, dict[str, Any]]] = {
    "hot pixels": {"sensor": {"hot_growth": 0.0}},
    "dark current": {"sensor": {"dark_growth": 0.0}},
    "charge transfer": {"sensor": {"cti": 0.0}},
    "optics": {"optics": {"drift": 0.0}},
    "rate of cosmic rays": {"cosmic_rays": {"solar_cycle": 0.0, "anomaly_share": 0.0, "rate_scatter": 0.0}},
}


def epochs_part(survey: Survey, on_progress: ProgressCallback) -> dict[str, Any]:
    """Evaluate F-score and flux ratio over ten years, with all effects of ageing, each alone, and none."""
    result: dict[str, Any] = {}
    for name, kept in {"all together": tuple(AGEING), **{term: (term,) for term in AGEING}, "none": ()}.items():
        recipe = survey.recipe
        for term, settings in AGEING.items():
            if term not in kept:
                for part, values in settings.items():
                    recipe = recipe.model_copy(update={part: getattr(recipe, part).model_copy(update=values)})
        methods = survey.methods if name == "all together" else survey.methods[:1]
        on_progress(f"ageing: {name}")
        request = EvaluationRequest(methods, photometry=True)
        frames = list(_evaluate(replace(survey, recipe=recipe, data=None), request, on_progress))
        result[name] = {method.name: trend(recipe, frames, method) for method in methods}
    return result


def trend(recipe: Recipe, frames: Sequence[FrameCounts], method: Method) -> dict[str, Any]:
    """Return F-score and mean flux ratio by epoch, with straight lines."""
    points: dict[str, list[tuple[float, float]]] = {"f_score_on_sources": [], "f_score": [], "flux_ratio": []}
    for index in range(recipe.exposures):
        own = [one for one in frames if one.exposure == index]
        counts, epoch = sum_counts(own, "counts")[method.name], recipe.epoch_of(index)
        for key, level in (("f_score_on_sources", 1), ("f_score", 0)):
            chosen = histograms.at_threshold(histograms.detection_rates(counts, level=level), method.threshold)
            precision, recall = chosen["precision"], chosen["recall_visible"]
            points[key].append((epoch, 2 * precision * recall / max(1e-9, precision + recall)))
        columns = {key: np.concatenate([one.stars[key] for one in own]) for key in own[0].stars}
        bright = (columns["snr"] > MIN_FLUX_SNR) & (columns["area"] >= MIN_FLUX_AREA)
        ratio = np.sort(columns[method.name][bright] / np.maximum(columns["clean"][bright], 1))
        cut = len(ratio) // 20  # as in the paper, without the highest and the lowest 5 %
        points["flux_ratio"].append((epoch, float(ratio[cut : len(ratio) - cut].mean())))
    return {key: fit_line(values) | {"points": values} for key, values in points.items()}
