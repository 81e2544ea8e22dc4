"""Score zero points by the number of stars that are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from csstdask.datasets.zeropoint_oracle import STAR_COUNT_BINS, oracle
from csstdask.datasets.zeropoint_surveys import MockSurvey
from csstdask.evaluation.zeropoint.methods import (
    Prediction,
    PublishedNetwork,
    Stars,
    fit,
    recalibrated_prior,
    with_stars,
)
from csstdask.metrics.zeropoint import coverage, error_statistics
from csstdask.training.zeropoint.surveys import SurveyInputs
from csstdask.zeropoint.photometry import mask_bad_magnitudes
from csstdask.zeropoint.prior import predict_with_network

Float = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
_SIGMA = " sigma"
"""Suffix of the errors of a method among its predictions."""


def star_counts(
    surveys: Mapping[str, SurveyInputs],
    network: nn.Module,
    published: Mapping[str, PublishedNetwork],
    others: Mapping[str, Mapping[str, Prediction]],
    *,
    max_exposures: int,
    seed: int,
    counts: Sequence[int] = STAR_COUNT_BINS,
    direct: nn.Module | None = None,
    on_progress: Callable[[str], None] = print,
) -> dict[str, dict[str, Any]]:
    """Score test exposures whose stars are reduced to a given number, drawn at random.

    The memory is that of the survey: earlier exposures with all their stars.

    Parameters
    ----------
    surveys : mapping of SurveyInputs
        Surveys by name.
    network : nn.Module
        Our network.
    published : mapping of PublishedNetwork
        The published network of each survey, for the exposures that it can predict.
    others : mapping of mappings of Prediction
        For each survey, methods whose result does not depend on the stars.
    max_exposures : int
        Exposures of each survey and number of stars.
    seed : int
        Seed of the random choices.
    counts : sequence of int
        Numbers of stars.
    direct : nn.Module, optional
        A network that reads the level of the stars and predicts the posterior itself.
    on_progress : callable
        Receives one line per number of stars.

    Returns
    -------
    dict
        For each number: errors by method, coverage of ``joined``, and ratios.
    """
    out: dict[str, dict[str, Any]] = {}
    usable = {name: _usable_counts(survey) for name, survey in surveys.items()}
    for count in counts:
        columns: dict[str, list[Float]] = {}
        for k, (name, survey) in enumerate(surveys.items()):
            rng = np.random.default_rng([seed, count, k])
            rows = np.flatnonzero((survey.split == "test") & (usable[name] >= count))
            rows = np.sort(rng.permutation(rows)[:max_exposures])
            if len(rows):
                reduced = _Reduced.draw(survey, rows, count, rng)
                parts = reduced.predict(network, published.get(name), others[name], direct)
                for method, part in parts.items():
                    columns.setdefault(method, []).append(part)
        if not columns:
            continue
        scores = _score({method: np.concatenate(parts) for method, parts in columns.items()})
        out[str(count)] = scores
        on_progress(f"{count} stars: joined {scores['methods']['joined']['rmse']:.4f} mag")
    return out


def _score(values: dict[str, Float]) -> dict[str, Any]:
    """Return errors and coverage by method, and ratios to the solve and to the oracle."""
    truth = values.pop("truth")
    sigma = {name.removesuffix(_SIGMA): values.pop(name) for name in list(values) if name.endswith(_SIGMA)}
    methods = {
        name: error_statistics(value, truth).as_dict() | (coverage(value - truth, sigma[name]) if name in sigma else {})
        for name, value in values.items()
    }
    out: dict[str, Any] = {"n": len(truth), "methods": methods}
    if methods.get("solve", {}).get("n"):
        out["joined_over_solve"] = methods["joined"]["rmse"] / methods["solve"]["rmse"]
    out["joined_over_floor"] = methods["joined"]["rmse"] / methods["oracle joined"]["rmse"]
    return out


def _usable_counts(survey: SurveyInputs) -> Rows:
    assert survey.inputs.stars is not None  # noqa: S101
    return survey.inputs.stars.count


@dataclass(frozen=True)
class _Reduced:
    """Exposures of one survey (n,) with a reduced number of stars."""

    survey: SurveyInputs
    rows: Rows
    tables: list[Stars]

    @classmethod
    def draw(cls, survey: SurveyInputs, rows: Rows, count: int, rng: np.random.Generator) -> _Reduced:
        """Draw stars of each exposure."""
        return cls(survey, rows, [_draw_stars(survey.exposures.stars(int(i)), count, rng) for i in rows])

    def predict(
        self, network: nn.Module, published: PublishedNetwork | None, others: Mapping[str, Prediction],
        direct: nn.Module | None,
    ) -> dict[str, Float]:  # fmt: skip
        """Return truth and predictions (n,) by method, with their errors."""
        exposures, rows = self.survey.exposures, self.rows
        raw = predict_with_network(network, self.survey.inputs)
        factor = recalibrated_prior(exposures, raw).sigma[rows] / raw.sigma[rows]
        inputs = with_stars(self.survey, rows, list(self.tables))
        prior = predict_with_network(network, inputs)
        best = oracle(exposures)
        priors: dict[str, tuple[Float, Float] | None] = {
            "solve": None,
            "joined": (prior.value, prior.sigma * factor),
            "oracle joined": (best.prior[rows], best.prior_sigma[rows]),
        }
        out: dict[str, Float] = {
            "truth": exposures.truth[rows], "prior": prior.value, f"prior{_SIGMA}": prior.sigma * factor,
        }  # fmt: skip
        for name, given in priors.items():
            pairs = [
                _solve(exposures, table, None if given is None else (float(given[0][k]), float(given[1][k])))
                for k, table in enumerate(self.tables)
            ]
            out[name], out[f"{name}{_SIGMA}"] = (np.array(column) for column in zip(*pairs, strict=True))
        for name, prediction in others.items():
            out[name] = prediction.value[rows]
        if published is not None:
            out["azprc"] = self._predict_published(published)
        if direct is not None:
            posterior = predict_with_network(direct, inputs)
            out["direct posterior"], out[f"direct posterior{_SIGMA}"] = posterior.value, posterior.sigma
        return out

    def _predict_published(self, published: PublishedNetwork) -> Float:
        """Return predictions of the published network (n,); NaN for exposures that it cannot predict."""
        known = np.array([int(row) in published.position for row in self.rows])
        value = np.full(len(self.rows), np.nan)
        if known.any():
            tables = dict(zip(self.rows.tolist(), self.tables, strict=True))
            value[known] = published.predict(self.rows[known], lambda i: tables[i])
        return value


def _solve(exposures: MockSurvey, stars: Stars, prior: tuple[float, float] | None) -> tuple[float, float]:
    """Return value and sigma of stars and prior [mag]; the prior, or NaN, without a usable star."""
    if len(stars["inst_mag"]) == 0:
        return prior or (np.nan, np.nan)
    posterior = fit(exposures, stars, prior)
    return (posterior.value, posterior.sigma) if np.isfinite(posterior.value) else (prior or (np.nan, np.nan))


def _draw_stars(stars: Stars, count: int, rng: np.random.Generator) -> Stars:
    """Draw stars with usable magnitudes."""
    usable = np.isfinite(mask_bad_magnitudes(stars["inst_mag"])) & np.isfinite(mask_bad_magnitudes(stars["ref_mag"]))
    rows = np.sort(rng.permutation(np.flatnonzero(usable))[:count])
    return {name: values[rows] for name, values in stars.items()}
