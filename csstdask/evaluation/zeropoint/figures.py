"""Draw figures of the evaluation of zero points on mock surveys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from csstdask.evaluation.sed.figures import pyplot
from csstdask.evaluation.zeropoint.methods import Prediction
from csstdask.metrics.zeropoint import COVERAGE_LEVELS
from csstdask.training.zeropoint.surveys import SurveyInputs

_SHOWN = ("lut", "azprc", "solve", "prior", "joined", "oracle joined")
_N_EXPOSURES = 400
"""Number of exposures in the figure of the history."""


def draw(
    found: dict[str, Any],
    surveys: Mapping[str, SurveyInputs],
    predictions: Mapping[str, Mapping[str, Prediction]],
    to: Path,
) -> list[Path]:
    """Draw the results of an evaluation; return the paths of the figures."""
    done = []
    if "stars" in found:
        done.append(_by_stars(found["stars"], to))
    if predictions:
        done.append(_history(surveys, predictions, to))
    return done


def _save(figure: Any, path: Path) -> Path:
    """Save and close a figure; return its path."""
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot().close(figure)
    return path


def _by_stars(rows: dict[str, Any], to: Path) -> Path:
    """Draw errors and coverage by number of stars."""
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(10, 4))
    counts = [int(count) for count in rows]
    position = np.arange(len(counts))
    for name in _SHOWN:
        rmse = [rows[str(count)]["methods"].get(name, {}).get("rmse", np.nan) for count in counts]
        left.semilogy(position, 1e3 * np.array(rmse, dtype=float), "o-", ms=4, label=name)
    left.set(xlabel="stars", ylabel="RMSE [mmag]")
    left.set_xticks(position, [str(count) for count in counts])
    left.legend(fontsize=8)
    for key, (level, _) in COVERAGE_LEVELS.items():
        measured = [rows[str(count)]["methods"]["joined"][key] for count in counts]
        right.plot(position, measured, "o-", label=f"joined, {key}")
        right.axhline(level, color="0.6", lw=0.8, ls="--")
    right.set(xlabel="stars", ylabel="fraction of exposures within the interval", ylim=(0.5, 1.0))
    right.set_xticks(position, [str(count) for count in counts])
    right.legend(fontsize=8)
    return _save(figure, to / "zeropoint-stars.png")


def _history(
    surveys: Mapping[str, SurveyInputs], predictions: Mapping[str, Mapping[str, Prediction]], to: Path
) -> Path:
    """Draw the true zero points of the first test exposures, their prior, and the solved ones."""
    figure, axes = pyplot().subplots(len(surveys), 1, figsize=(10, 3 * len(surveys)), squeeze=False)
    for axis, (name, survey) in zip(axes[:, 0], surveys.items(), strict=True):
        rows = np.flatnonzero(survey.split == "test")[:_N_EXPOSURES]
        exposures, prior = survey.exposures, predictions[name]["prior"]
        days = exposures.days[rows] - exposures.days[rows[0]]
        axis.plot(days, survey.solved[rows], ".", color="0.7", ms=3, label="solve")
        low, high = (prior.value + side * np.asarray(prior.sigma) - exposures.nominal for side in (-1, 1))
        axis.fill_between(days, low[rows], high[rows], alpha=0.35, label="prior, one sigma")
        truth = survey.truth[rows]
        axis.plot(days, truth, "k.", ms=2, label="truth")
        axis.set_ylim(truth.min() - 0.03, truth.max() + 0.03)
        axis.set(xlabel="days", ylabel="zero point - nominal [mag]", title=f"survey {name}")
    axes[0, 0].legend(fontsize=8)
    return _save(figure, to / "zeropoint-history.png")
