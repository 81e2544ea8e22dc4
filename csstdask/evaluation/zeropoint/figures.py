"""Figures of the evaluation of zero points."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from csstdask.evaluation.sed.figures import pyplot
from csstdask.evaluation.zeropoint.methods import Prediction
from csstdask.numerics.probability import WITHIN_ONE_SIGMA, WITHIN_TWO_SIGMA
from csstdask.training.zeropoint.surveys import SurveyInputs

_SHOWN = ("lut", "azprc", "solve", "prior", "joined", "oracle joined")
_EXPOSURES = 400
"""Exposures of the history that is drawn."""


def draw(
    found: dict[str, Any],
    surveys: Mapping[str, SurveyInputs],
    predictions: Mapping[str, Mapping[str, Prediction]],
    to: Path,
) -> list[Path]:
    """Draw what an evaluation found; return the figures' paths."""
    done = []
    if "stars" in found:
        done.append(_by_stars(found["stars"], to))
    if predictions:
        done.append(_history(surveys, predictions, to))
    return done


def _saved(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot().close(figure)
    return path


def _by_stars(rows: dict[str, Any], to: Path) -> Path:
    """Draw errors and coverage by number of stars."""
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(10, 4))
    counts = [int(one) for one in rows]
    place = np.arange(len(counts))
    for name in _SHOWN:
        rmse = [rows[str(one)]["methods"].get(name, {}).get("rmse", np.nan) for one in counts]
        left.semilogy(place, 1e3 * np.array(rmse, dtype=float), "o-", ms=4, label=name)
    left.set(xlabel="stars", ylabel="RMSE [mmag]")
    left.set_xticks(place, [str(one) for one in counts])
    left.legend(fontsize=8)
    for level, wanted in (("coverage_68", WITHIN_ONE_SIGMA), ("coverage_95", WITHIN_TWO_SIGMA)):
        right.plot(
            place, [rows[str(one)]["methods"]["joined"][level] for one in counts], "o-", label=f"joined, {level}"
        )
        right.axhline(wanted, color="0.6", lw=0.8, ls="--")
    right.set(xlabel="stars", ylabel="share of exposures within the interval", ylim=(0.5, 1.0))
    right.set_xticks(place, [str(one) for one in counts])
    right.legend(fontsize=8)
    return _saved(figure, to / "zeropoint-stars.png")


def _history(
    surveys: Mapping[str, SurveyInputs], predictions: Mapping[str, Mapping[str, Prediction]], to: Path
) -> Path:
    """Draw the true zero points of the first test exposures, their prior, and the solved ones."""
    figure, axes = pyplot().subplots(len(surveys), 1, figsize=(10, 3 * len(surveys)), squeeze=False)
    for axis, (name, one) in zip(axes[:, 0], surveys.items(), strict=True):
        rows = np.flatnonzero(one.split == "test")[:_EXPOSURES]
        s, prior = one.exposures, predictions[name]["prior"]
        days = s.days[rows] - s.days[rows[0]]
        axis.plot(days, s.solved[rows] - s.nominal, ".", color="0.7", ms=3, label="solve")
        low, high = (prior.value + side * np.asarray(prior.sigma) - s.nominal for side in (-1, 1))
        axis.fill_between(days, low[rows], high[rows], alpha=0.35, label="prior, one sigma")
        axis.plot(days, s.truth[rows] - s.nominal, "k.", ms=2, label="truth")
        middle = s.truth[rows] - s.nominal
        axis.set_ylim(middle.min() - 0.03, middle.max() + 0.03)
        axis.set(xlabel="days", ylabel="zero point - nominal [mag]", title=f"survey {name}")
    axes[0, 0].legend(fontsize=8)
    return _saved(figure, to / "zeropoint-history.png")
