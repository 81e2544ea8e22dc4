"""Errors of zero points by the number of stars that are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from csstdask.datasets.zeropoint_surveys import STAR_COUNT_BINS, oracle
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
from csstdask.zeropoint.photometry import MAX_MAGNITUDE, MIN_MAGNITUDE
from csstdask.zeropoint.prior import predict_with_network

Float = npt.NDArray[np.float64]


def star_counts(
    surveys: Mapping[str, SurveyInputs],
    network: nn.Module,
    published: Mapping[str, PublishedNetwork],
    others: Mapping[str, Mapping[str, Prediction]],
    *,
    at_most: int,
    seed: int,
    counts: Sequence[int] = STAR_COUNT_BINS,
    direct: nn.Module | None = None,
    on_progress: Callable[[str], None] = print,
) -> dict[str, dict[str, Any]]:
    """Score test exposures whose stars are reduced to a number, drawn at random.

    The memory is what the survey had: earlier exposures with all their stars.

    Parameters
    ----------
    surveys : mapping of SurveyInputs
    network : nn.Module
        Ours.
    published : mapping of Published
        For the exposures that are scored, as far as it knows them.
    others : mapping of the surveys' names to predictions
        Methods whose result does not depend on the stars.
    at_most : int
        Exposures of each survey and number.
    seed : int
    counts : sequence of int
    direct : nn.Module, optional
        A network that sees the level of the stars and gives the posterior itself.
    announce : callable

    Returns
    -------
    dict
        For each number: errors by method, coverage of ``joined``, and ratios.
    """
    out: dict[str, dict[str, Any]] = {}
    tables = {name: _usable_counts(one) for name, one in surveys.items()}
    for count in counts:
        found: dict[str, list[Float]] = {}
        for k, (name, one) in enumerate(surveys.items()):
            rng = np.random.default_rng([seed, count, k])
            rows = np.flatnonzero((one.split == "test") & (tables[name] >= count))
            rows = np.sort(rng.permutation(rows)[:at_most])
            if len(rows):
                parts = _one_survey(one, rows, count, network, published.get(name), others[name], rng, direct)
                for method, part in parts.items():
                    found.setdefault(method, []).append(part)
        if not found:
            continue
        values = {method: np.concatenate(parts) for method, parts in found.items()}
        truth = values.pop("truth")
        sigma = {name.removesuffix(" sigma"): values.pop(name) for name in list(values) if name.endswith(" sigma")}
        methods = {
            name: error_statistics(value, truth).as_dict()
            | (coverage(value - truth, sigma[name]) if name in sigma else {})
            for name, value in values.items()
        }
        out[str(count)] = {"n": len(truth), "methods": methods}
        if methods.get("solve", {}).get("n"):
            out[str(count)]["joined_over_solve"] = methods["joined"]["rmse"] / methods["solve"]["rmse"]
        out[str(count)]["joined_over_floor"] = methods["joined"]["rmse"] / methods["oracle joined"]["rmse"]
        on_progress(f"{count} stars: joined {methods['joined']['rmse']:.4f} mag")
    return out


def _usable_counts(one: SurveyInputs) -> npt.NDArray[np.int64]:
    assert one.inputs.stars is not None  # noqa: S101
    return one.inputs.stars.count


def _one_survey(
    one: SurveyInputs,
    rows: npt.NDArray[np.int64],
    count: int,
    network: nn.Module,
    published: PublishedNetwork | None,
    others: Mapping[str, Prediction],
    rng: np.random.Generator,
    direct: nn.Module | None,
) -> dict[str, Float]:
    """Return truth and predictions (n,), with their sigmas, of one survey's exposures reduced to a number of stars."""
    s = one.exposures
    tables = [_subset(s.stars(int(i)), count, rng) for i in rows]
    everything = predict_with_network(network, one.inputs)
    factor = recalibrated_prior(s, everything).sigma[rows] / everything.sigma[rows]
    inputs = with_stars(one, rows, list(tables))
    prior = predict_with_network(network, inputs)
    prior_sigma = prior.sigma * factor
    best = oracle(s)
    out: dict[str, Float] = {"truth": s.truth[rows], "prior": prior.value, "prior sigma": prior_sigma}
    for name, value, sigma in (
        ("solve", None, None),
        ("joined", prior.value, prior_sigma),
        ("oracle joined", best.prior[rows], best.prior_sigma[rows]),
    ):
        pairs = [
            _solve(s, table, None if value is None or sigma is None else (float(value[k]), float(sigma[k])))
            for k, table in enumerate(tables)
        ]
        out[name], out[f"{name} sigma"] = (np.array(column) for column in zip(*pairs, strict=True))
    for name, prediction in others.items():
        out[name] = prediction.value[rows]
    if published is not None:
        known = np.array([int(row) in published.place for row in rows])
        out["azprc"] = np.full(len(rows), np.nan)
        if known.any():
            chosen = dict(zip(rows.tolist(), tables, strict=True))
            out["azprc"][known] = published.predict(rows[known], lambda i: chosen[i])
    if direct is not None:
        found = predict_with_network(direct, inputs)
        out["direct posterior"], out["direct posterior sigma"] = found.value, found.sigma
    return out


def _solve(s: Any, stars: Stars, prior: tuple[float, float] | None) -> tuple[float, float]:
    if len(stars["inst_mag"]) == 0:
        return prior or (np.nan, np.nan)
    found = fit(s, stars, prior)
    return (found.value, found.sigma) if np.isfinite(found.value) else (prior or (np.nan, np.nan))


def _subset(stars: Stars, count: int, rng: np.random.Generator) -> Stars:
    """Return some of the stars with usable magnitudes."""
    usable = np.ones(len(stars["inst_mag"]), dtype=bool)
    for name in ("inst_mag", "ref_mag"):
        with np.errstate(invalid="ignore"):
            usable &= (stars[name] > MIN_MAGNITUDE) & (stars[name] < MAX_MAGNITUDE)
    rows = np.sort(rng.permutation(np.flatnonzero(usable))[:count])
    return {name: values[rows] for name, values in stars.items()}
