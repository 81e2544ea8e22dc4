"""Evaluation of zero-point networks on mock surveys: ``csstdask evaluate zeropoint``.

Parts, all written to ``zeropoint_evaluation.json``:

* ``methods``: errors of all methods on the last 30 % of the days of each survey, and what nothing explains;
* ``stars``: errors and coverage by the number of stars;
* ``ablations``: without image, catalogue, telemetry, memory;
* ``adaptation``: errors on each survey with and without a reversed gradient, and how well the latents show the survey;
* ``importance``: permutation importance of each input;
* ``row_split``: the same methods on a random split, whose test exposures have neighbours in the training;
* ``latency``: ms an exposure by batch size, ours and published, on this processor.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from csstdask.core.atomic_io import write_atomic
from csstdask.core.errors import InputError
from csstdask.datasets.zeropoint_surveys import unexplained_floor
from csstdask.evaluation.io import round_floats
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
"""Networks of the article: whole, and its image branch alone."""
PARTS = ("methods", "stars", "ablations", "adaptation", "importance", "row_split", "latency")
_SEED = 20261131
_STUDY = FitSettings(
    epochs=15, learning_rate=6e-3, loss="student", weight_decay=0.02, adversarial=0.02, degrade_memory=0.5
)


@dataclass(frozen=True)
class Settings:
    """How much is evaluated."""

    exposures: int | None = None
    """Of each survey; by default all."""
    published: int = 500
    """Test exposures of each survey on which the networks with convolutions are run."""
    stars: int = 400
    """Test exposures of each survey and number of stars."""
    study: FitSettings = _STUDY
    """Training of the studies' networks."""


def evaluate_zeropoint(
    to: Path | None = None,
    *,
    model: str = "default",
    beside: Sequence[str] = COMPARED_MODELS,
    recipe: str = "zeropoint",
    parts: Sequence[str] = PARTS,
    settings: Settings = Settings(),
    on_progress: Say = log.info,
) -> dict[str, Any]:
    """Evaluate zero-point networks on mock surveys.

    Parameters
    ----------
    to : Path, optional
        Folder for ``zeropoint_evaluation.json`` and figures. Parts that are there already and not asked for are kept.
    model : str
        Our network: name or card.
    beside : sequence of str
        Published networks (``azprc``, its variants): names or cards.
    recipe : str
        Name or path of a recipe with zero points.
    parts : sequence of str
        Of `PARTS`.
    settings : Settings
    announce : callable
        Receives a line a step.

    Returns
    -------
    dict
        What ``zeropoint_evaluation.json`` has.

    Raises
    ------
    InputError
        If a part or model is unknown, or the recipe has no zero points.
    """
    if unknown := set(parts) - set(PARTS):
        raise InputError("part", ", ".join(sorted(unknown)), f"some of {', '.join(PARTS)}")
    networks = _Networks.of(model, beside)
    memory = networks.ours.memory
    path = None if to is None else to / "zeropoint_evaluation.json"
    out: dict[str, Any] = json.loads(path.read_text()) if path is not None and path.exists() else {}
    out |= {"data": f"mock surveys of recipe {Path(recipe).stem}, last 30 % of the days", "article": ARTICLE}
    out["models"] = networks.cards
    on_progress(f"exposures of recipe {recipe}")
    surveys = load_surveys(recipe, settings.exposures, memory=memory)
    out["exposures"] = {name: len(one.truth) for name, one in surveys.items()}
    out["test"] = {name: int((one.split == "test").sum()) for name, one in surveys.items()}
    predictions: dict[str, dict[str, Prediction]] = {}
    published: dict[str, PublishedNetwork] = {}
    study = {"memory": memory, "on_progress": on_progress}
    for part in parts:
        on_progress(f"part {part}")
        if part in {"methods", "stars"} and not predictions:
            predictions, published = _predict(surveys, networks, settings, on_progress)
        if part == "methods":
            out[part] = _methods(surveys, predictions)
        elif part == "stars":
            out[part] = _stars(surveys, networks, predictions, published, settings, on_progress)
        elif part == "ablations":
            out[part] = ablations(surveys, networks.ours, settings.study, **study)  # type: ignore[arg-type]
        elif part == "adaptation":
            out[part] = adaptation(surveys, settings.study, **study)  # type: ignore[arg-type]
        elif part == "importance":
            out[part] = permutation_importance(surveys, networks.ours, memory=memory, seed=_SEED)
        elif part == "row_split":
            out[part] = row_split(surveys, settings.study, **study)  # type: ignore[arg-type]
        else:
            out[part] = latencies(surveys, networks.ours, networks.published.get("azprc"))
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, (json.dumps(round_floats(out), indent=1, allow_nan=False) + "\n").encode())
    if to is not None:
        from csstdask.evaluation.zeropoint.figures import draw  # noqa: PLC0415  matplotlib is optional

        for figure in draw(out, surveys, predictions, to):
            on_progress(f"figure {figure}")
    return out


@dataclass(frozen=True)
class _Networks:
    """The networks that are compared."""

    ours: PriorNetwork
    published: dict[str, AzpRc]
    cards: dict[str, Any]

    @classmethod
    def of(cls, model: str, beside: Sequence[str]) -> _Networks:
        """Load them; InputError if ours is of another kind."""
        try:
            cards = {card.name: card for card in (find_card("zeropoint", one) for one in (model, *beside))}
        except ValueError as error:
            raise InputError(
                "evaluate zeropoint", str(error).partition("found ")[2].partition(";")[0], "a known model"
            ) from None
        loaded = {name: load_network(card, build_network, torch.device("cpu")) for name, card in cards.items()}
        first = next(iter(loaded.values()))
        if not isinstance(first, PriorNetwork):
            raise InputError("model", next(iter(cards)), "a network of kind zeropoint")
        published = {name: one for name, one in loaded.items() if isinstance(one, AzpRc)}
        return cls(first, published, {name: {"sha256": c.sha256, "metrics": c.metrics} for name, c in cards.items()})


def _rows(one: SurveyInputs, at_most: int | None = None) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the test exposures, or evenly spaced ones of them."""
    rows = np.flatnonzero(one.split == "test")
    if at_most is None or len(rows) <= at_most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, at_most).astype(np.int64)]


def _predict(
    surveys: dict[str, SurveyInputs], networks: _Networks, settings: Settings, on_progress: Say
) -> tuple[dict[str, dict[str, Prediction]], dict[str, PublishedNetwork]]:
    """Return predictions by survey and method, and the published network of each survey."""
    predictions, published = {}, {}
    for name, one in surveys.items():
        found = classical(one) | ours(one, networks.ours, _rows(one)) | oracles(one)
        some = _rows(one, settings.published)
        for label, network in networks.published.items():
            of_survey = PublishedNetwork(network, one, some)
            found[label] = on_rows(of_survey.predict(some), some, len(one.truth))
            if label == "azprc":
                published[name] = of_survey
        predictions[name] = found
        on_progress(f"survey {name}: {', '.join(found)}")
    return predictions, published


def _methods(surveys: dict[str, SurveyInputs], predictions: dict[str, dict[str, Prediction]]) -> dict[str, Any]:
    """Return scores of each method on each survey and on both."""
    rows = {name: _rows(one) for name, one in surveys.items()}
    out: dict[str, Any] = {
        name: {
            method: scores(prediction, one.exposures.truth, rows[name])
            for method, prediction in predictions[name].items()
        }
        for name, one in surveys.items()
    }
    out["both"] = {}
    for method in next(iter(predictions.values())):
        parts = {name: _offsets(found[method], surveys[name], rows[name]) for name, found in predictions.items()}
        truth = np.concatenate([one.truth[rows[name]] for name, one in surveys.items()])
        value = np.concatenate([part.value for part in parts.values()])
        sigmas = [part.sigma for part in parts.values()]
        sigma = (
            None if any(one is None for one in sigmas) else np.concatenate([one for one in sigmas if one is not None])
        )
        out["both"][method] = scores(Prediction(value, sigma), truth, np.arange(len(truth)))
    out["floor"] = {}
    for name, one in surveys.items():
        test = one.split == "test"
        floor = unexplained_floor(one.exposures, which=test)
        reported = unexplained_floor(one.exposures, which=test, reported=True)
        out["floor"][name] = {
            "prior": floor.prior_all,
            "joined": floor.joined_all,
            "prior from reported telemetry": reported.prior_all,
            "joined from reported telemetry": reported.joined_all,
        }
    out["over_floor"] = {
        name: {
            "prior": out[name]["prior"]["rmse"] / out["floor"][name]["prior"],
            "joined": out[name]["joined"]["rmse"] / out["floor"][name]["joined"],
        }
        for name in surveys
    } | {
        "both": {
            "prior": out["both"]["prior"]["rmse"] / out["both"]["oracle"]["rmse"],
            "joined": out["both"]["joined"]["rmse"] / out["both"]["oracle joined"]["rmse"],
        }
    }
    return out


def _offsets(prediction: Prediction, one: SurveyInputs, rows: np.ndarray[Any, Any]) -> Prediction:
    """Return a prediction relative to the nominal zero point on some exposures."""
    sigma = None if prediction.sigma is None else prediction.sigma[rows]
    return Prediction(prediction.value[rows] - one.exposures.nominal, sigma)


def _stars(
    surveys: dict[str, SurveyInputs],
    networks: _Networks,
    predictions: dict[str, dict[str, Prediction]],
    published: dict[str, PublishedNetwork],
    settings: Settings,
    on_progress: Say,
) -> dict[str, Any]:
    """Return errors by number of stars, and of a network that sees the level of the stars."""
    fixed = ("lut", "previous", "local level")
    others = {name: {method: found[method] for method in fixed} for name, found in predictions.items()}
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


def format_results(found: dict[str, Any]) -> list[str]:
    """Return the results of an evaluation as lines of text."""
    lines = []
    if "methods" in found:
        lines.append(f"{'method':<22} {'RMSE':>7} {'MAE':>7} {'r':>6} {'>0.05':>6}   [mag], last 30 % of the days")
        for name, row in found["methods"]["both"].items():
            shown = f"{name:<22} {row['rmse']:7.4f} {row['mae']:7.4f} {row['pearson']:6.3f} {row['failures']:6.1%}"
            if "coverage_68" in row:
                shown += f"   coverage {row['coverage_68']:.3f} {row['coverage_95']:.3f}"
            lines.append(shown)
        for name, ratio in found["methods"]["over_floor"].items():
            lines.append(
                f"{name}: prior {ratio['prior']:.2f} and joined {ratio['joined']:.2f} times the oracle's error"
            )
    for count, row in found.get("stars", {}).items():
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
        for name, row in found.get(part, {}).items():
            lines.append(f"{part}, {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in row.items()))
    for name, value in found.get("importance", {}).items():
        lines.append(f"importance of {name}: {value:+.4f} mag")
    for row in found.get("latency", {}).get("rows", []):
        times = ", ".join(f"{key} {value:.2f} ms" for key, value in row.items() if key != "batch")
        lines += [f"batch {row['batch']}: {times}"]
    return lines
