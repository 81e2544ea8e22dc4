"""Evaluate zero-point networks on mock surveys: ``csstdask evaluate zeropoint``.

Parts, all written to ``zeropoint_evaluation.json``:

* ``methods``: errors of all methods on the last 30 % of the days of each survey, and the smallest possible errors;
* ``stars``: errors and coverage by the number of stars;
* ``ablations``: errors without image, catalogue, telemetry or memory;
* ``adaptation``: errors on each survey with and without a reversed gradient, and how well latents reveal the survey;
* ``importance``: permutation importance of each input;
* ``row_split``: the same methods with a random split, whose test exposures have neighbours in the training;
* ``latency``: time per exposure by batch size, of our network and the published one, on this processor.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from csstdask.core.errors import InputError
from csstdask.datasets.zeropoint_oracle import unexplained_floor
from csstdask.evaluation.runner import Measurement, Output, Section, run_evaluation, select_parts
from csstdask.evaluation.zeropoint.latency import latencies
from csstdask.evaluation.zeropoint.methods import (
    Prediction,
    PublishedNetwork,
    classical,
    on_rows,
    oracles,
    ours,
    scores,
)
from csstdask.evaluation.zeropoint.published_results import ARTICLE
from csstdask.evaluation.zeropoint.star_counts import star_counts
from csstdask.evaluation.zeropoint.studies import (
    ablations,
    adaptation,
    permutation_importance,
    row_split,
    train_network,
)
from csstdask.nn.models import find_card
from csstdask.nn.weights import load_network
from csstdask.training.zeropoint.fit import FitSettings
from csstdask.training.zeropoint.surveys import SurveyInputs, load_surveys
from csstdask.zeropoint.prior.azprc import AzpRc
from csstdask.zeropoint.prior.build import build_network
from csstdask.zeropoint.prior.network import PriorNetwork

log = logging.getLogger("csstdask")
Say = Callable[[str], None]

COMPARED_MODELS = ("azprc", "image-cnn")
"""Networks of the article: complete, and its image branch only."""
PARTS = ("methods", "stars", "ablations", "adaptation", "importance", "row_split", "latency")
_SEED = 20261131
_STUDY = FitSettings(
    epochs=15, learning_rate=6e-3, loss="student", weight_decay=0.02, adversarial=0.02, degrade_memory=0.5
)


@dataclass(frozen=True)
class Settings:
    """Settings of the evaluation."""

    exposures: int | None = None
    """Exposures of each survey; by default all."""
    published: int = 500
    """Test exposures of each survey for the networks with convolutions."""
    stars: int = 400
    """Test exposures of each survey and number of stars."""
    study: FitSettings = _STUDY
    """Training of the networks of the studies."""


def evaluate_zeropoint(
    to: Path | None = None,
    *,
    model: str = "default",
    compare_with: Sequence[str] = COMPARED_MODELS,
    recipe: str = "zeropoint",
    parts: Sequence[str] = PARTS,
    settings: Settings = Settings(),
    on_progress: Say = log.info,
) -> dict[str, Any]:
    """Evaluate zero-point networks on mock surveys.

    Parameters
    ----------
    to : Path, optional
        Folder for ``zeropoint_evaluation.json`` and figures. Existing parts that are not requested are kept.
    model : str
        Name or card of our network.
    compare_with : sequence of str
        Names or cards of published networks (``azprc``, its variants).
    recipe : str
        Name or path of a recipe with zero points.
    parts : sequence of str
        Parts to evaluate, of `PARTS`.
    settings : Settings
        Settings of the evaluation.
    on_progress : callable
        Receives one line per step.

    Returns
    -------
    dict
        Content of ``zeropoint_evaluation.json``.

    Raises
    ------
    InputError
        If a part or model is unknown, or the recipe has no zero points.
    """
    chosen = select_parts(parts, PARTS)
    networks = _Networks.of(model, compare_with)
    memory = networks.ours.memory
    output = Output(to, "zeropoint_evaluation")
    out: dict[str, Any] = output.load()
    out |= {"data": f"mock surveys of recipe {Path(recipe).stem}, last 30 % of the days", "article": ARTICLE}
    out["models"] = networks.cards
    on_progress(f"exposures of recipe {recipe}")
    surveys = load_surveys(recipe, settings.exposures, memory=memory)
    out["exposures"] = {name: len(one.truth) for name, one in surveys.items()}
    out["test"] = {name: int((one.split == "test").sum()) for name, one in surveys.items()}
    predictions: dict[str, dict[str, Prediction]] = {}
    published: dict[str, PublishedNetwork] = {}
    study = {"memory": memory, "on_progress": on_progress}

    def measure(part: str) -> Any:
        if part in {"methods", "stars"} and not predictions:
            found = _predict(surveys, networks, settings, on_progress)
            predictions.update(found[0])
            published.update(found[1])
        if part == "methods":
            return _methods(surveys, predictions)
        if part == "stars":
            return _stars(surveys, networks, predictions, published, settings, on_progress)
        if part == "ablations":
            return ablations(surveys, networks.ours, settings.study, **study)  # type: ignore[arg-type]
        if part == "adaptation":
            return adaptation(surveys, settings.study, **study)  # type: ignore[arg-type]
        if part == "importance":
            return permutation_importance(surveys, networks.ours, memory=memory, seed=_SEED)
        if part == "row_split":
            return row_split(surveys, settings.study, **study)  # type: ignore[arg-type]
        return latencies(surveys, networks.ours, networks.published.get("azprc"))

    sections = (
        Section((part,), lambda part=part: Measurement(measure(part)), title=f"part {part}")  # type: ignore[misc]
        for part in chosen
    )
    run_evaluation(sections, output, out, on_progress=on_progress)
    if to is not None:
        from csstdask.evaluation.zeropoint.figures import draw  # noqa: PLC0415  matplotlib is optional

        for figure in draw(out, surveys, predictions, to):
            on_progress(f"figure {figure}")
    return out


@dataclass(frozen=True)
class _Networks:
    """The networks to compare."""

    ours: PriorNetwork
    """Our network."""
    published: dict[str, AzpRc]
    """Published networks by name."""
    cards: dict[str, Any]
    """Checksum and metrics of each network, by name."""

    @classmethod
    def of(cls, model: str, compare_with: Sequence[str]) -> _Networks:
        """Load the networks.

        Raises
        ------
        InputError
            If a model is unknown, or ours is of another kind.
        """
        try:
            cards = {card.name: card for card in (find_card("zeropoint", name) for name in (model, *compare_with))}
        except ValueError as error:
            raise InputError(
                "evaluate zeropoint", str(error).partition("found ")[2].partition(";")[0], "a known model"
            ) from None
        loaded = {name: load_network(card, build_network, torch.device("cpu")) for name, card in cards.items()}
        first = next(iter(loaded.values()))
        if not isinstance(first, PriorNetwork):
            raise InputError("model", next(iter(cards)), "a network of kind zeropoint")
        published = {name: network for name, network in loaded.items() if isinstance(network, AzpRc)}
        return cls(first, published, {name: {"sha256": c.sha256, "metrics": c.metrics} for name, c in cards.items()})


def _rows(survey: SurveyInputs, max_exposures: int | None = None) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the test exposures, or an evenly spaced subset."""
    rows = np.flatnonzero(survey.split == "test")
    if max_exposures is None or len(rows) <= max_exposures:
        return rows
    return rows[np.linspace(0, len(rows) - 1, max_exposures).astype(np.int64)]


def _predict(
    surveys: dict[str, SurveyInputs], networks: _Networks, settings: Settings, on_progress: Say
) -> tuple[dict[str, dict[str, Prediction]], dict[str, PublishedNetwork]]:
    """Predict all test exposures; return predictions by survey and method, and the published network of each survey."""
    predictions, published = {}, {}
    for name, survey in surveys.items():
        by_method = classical(survey) | ours(survey, networks.ours, _rows(survey)) | oracles(survey)
        rows = _rows(survey, settings.published)
        for method, network in networks.published.items():
            predictor = PublishedNetwork(network, survey, rows)
            by_method[method] = on_rows(predictor.predict(rows), rows, len(survey.truth))
            if method == "azprc":
                published[name] = predictor
        predictions[name] = by_method
        on_progress(f"survey {name}: {', '.join(by_method)}")
    return predictions, published


def _methods(surveys: dict[str, SurveyInputs], predictions: dict[str, dict[str, Prediction]]) -> dict[str, Any]:
    """Return the scores of each method on each survey and on both, the smallest possible errors, and their ratios."""
    rows = {name: _rows(survey) for name, survey in surveys.items()}
    out: dict[str, Any] = {
        name: {
            method: scores(prediction, survey.exposures.truth, rows[name])
            for method, prediction in predictions[name].items()
        }
        for name, survey in surveys.items()
    }
    truth = np.concatenate([survey.truth[rows[name]] for name, survey in surveys.items()])
    out["both"] = {}
    for method in next(iter(predictions.values())):
        parts = [_offsets(predictions[name][method], survey, rows[name]) for name, survey in surveys.items()]
        out["both"][method] = scores(_concatenate(parts), truth, np.arange(len(truth)))
    out["floor"] = {name: _floor(survey) for name, survey in surveys.items()}
    out["over_floor"] = {
        name: {kind: out[name][kind]["rmse"] / out["floor"][name][kind] for kind in ("prior", "joined")}
        for name in surveys
    } | {
        "both": {
            "prior": out["both"]["prior"]["rmse"] / out["both"]["oracle"]["rmse"],
            "joined": out["both"]["joined"]["rmse"] / out["both"]["oracle joined"]["rmse"],
        }
    }
    return out


def _floor(survey: SurveyInputs) -> dict[str, float]:
    """Return the errors of the oracle on the test exposures [mag]."""
    test = survey.split == "test"
    floor = unexplained_floor(survey.exposures, which=test)
    reported = unexplained_floor(survey.exposures, which=test, reported=True)
    return {
        "prior": floor.prior_all,
        "joined": floor.joined_all,
        "prior from reported telemetry": reported.prior_all,
        "joined from reported telemetry": reported.joined_all,
    }


def _offsets(prediction: Prediction, survey: SurveyInputs, rows: np.ndarray[Any, Any]) -> Prediction:
    """Return a prediction for some exposures, relative to the nominal zero point."""
    sigma = None if prediction.sigma is None else prediction.sigma[rows]
    return Prediction(prediction.value[rows] - survey.exposures.nominal, sigma)


def _concatenate(parts: list[Prediction]) -> Prediction:
    """Concatenate predictions; there is no sigma if one of them has none."""
    sigmas = [part.sigma for part in parts if part.sigma is not None]
    sigma = np.concatenate(sigmas) if len(sigmas) == len(parts) else None
    return Prediction(np.concatenate([part.value for part in parts]), sigma)


def _stars(
    surveys: dict[str, SurveyInputs],
    networks: _Networks,
    predictions: dict[str, dict[str, Prediction]],
    published: dict[str, PublishedNetwork],
    settings: Settings,
    on_progress: Say,
) -> dict[str, Any]:
    """Return errors by number of stars, including those of a network that reads the level of the stars."""
    fixed = ("lut", "previous", "local level")
    others = {name: {method: by_method[method] for method in fixed} for name, by_method in predictions.items()}
    direct = train_network(
        surveys, replace(settings.study, drop_stars=0.1), memory=networks.ours.memory, star_level=True
    )
    return star_counts(
        surveys,
        networks.ours,
        published,
        others,
        max_exposures=settings.stars,
        seed=_SEED,
        direct=direct,
        on_progress=on_progress,
    )


def format_results(results: dict[str, Any]) -> list[str]:
    """Format the results of an evaluation as lines of text.

    Parameters
    ----------
    results : dict
        Content of ``zeropoint_evaluation.json``.
    """
    lines = []
    if "methods" in results:
        lines.append(f"{'method':<22} {'RMSE':>7} {'MAE':>7} {'r':>6} {'>0.05':>6}   [mag], last 30 % of the days")
        for name, row in results["methods"]["both"].items():
            line = f"{name:<22} {row['rmse']:7.4f} {row['mae']:7.4f} {row['pearson']:6.3f} {row['failures']:6.1%}"
            if "coverage_68" in row:
                line += f"   coverage {row['coverage_68']:.3f} {row['coverage_95']:.3f}"
            lines.append(line)
        for name, ratio in results["methods"]["over_floor"].items():
            lines.append(
                f"{name}: prior {ratio['prior']:.2f} and joined {ratio['joined']:.2f} times the oracle's error"
            )
    for count, row in results.get("stars", {}).items():
        errors = "  ".join(
            f"{name} {row['methods'][name]['rmse']:.4f}"
            for name in ("lut", "azprc", "prior", "solve", "joined")
            if row["methods"].get(name, {}).get("n") and row["methods"][name]["rmse"] is not None
        )
        coverage = row["methods"]["joined"]
        lines.append(
            f"{count:>3} stars: {errors}  coverage {coverage['coverage_68']:.3f} {coverage['coverage_95']:.3f}"
        )
    for part in ("ablations", "adaptation", "row_split"):
        for name, row in results.get(part, {}).items():
            lines.append(f"{part}, {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in row.items()))
    for name, value in results.get("importance", {}).items():
        lines.append(f"importance of {name}: {value:+.4f} mag")
    for row in results.get("latency", {}).get("rows", []):
        times = ", ".join(f"{key} {value:.2f} ms" for key, value in row.items() if key != "batch")
        lines += [f"batch {row['batch']}: {times}"]
    return lines
