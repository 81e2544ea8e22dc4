"""Zero points of mock surveys by all methods: ours, the published network, classical baselines, and an oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from csstdask.datasets.zeropoint_surveys import MockSurvey, oracle
from csstdask.evaluation.zeropoint.baselines import (
    boosted_trees,
    linear_regression,
    local_level,
    previous,
    random_forest,
    tree_features,
)
from csstdask.metrics.zeropoint import correlations, coverage, error_statistics
from csstdask.training.zeropoint.surveys import SurveyInputs
from csstdask.zeropoint.azprc import MAX_ENCODER_STARS, PUBLISHED_TELEMETRY, AzpRc, normalise_patch, published_tensors
from csstdask.zeropoint.features import (
    IMAGE_STATISTICS,
    TELEMETRY_NAMES,
    PriorInputs,
    build_star_lists,
    image_statistics,
)
from csstdask.zeropoint.fit_stars import StarFit, fit_stars
from csstdask.zeropoint.network import PriorNetwork
from csstdask.zeropoint.prior import Prior, predict_with_network, take_inputs
from csstdask.zeropoint.state import Memory, online_scale

Float = npt.NDArray[np.float64]
Stars = Mapping[str, Float]

GOOD_SOLVE = 0.004
"""Solved zero points with larger errors are not used by the online recalibration [mag]."""


@dataclass(frozen=True)
class Prediction:
    """Zero points of the exposures of one survey (n,); NaN where a method gives none."""

    value: Float
    sigma: Float | None = None


def scores(prediction: Prediction, truth: Float, rows: npt.NDArray[Any]) -> dict[str, float]:
    """Return errors, correlations and, with a sigma, coverages on some exposures."""
    value = prediction.value[rows]
    out = error_statistics(value, truth[rows]).as_dict() | correlations(value, truth[rows])
    if prediction.sigma is not None:
        out |= coverage(value - truth[rows], prediction.sigma[rows])
    return out


def recalibrated_prior(exposures: MockSurvey, prior: Prior) -> Prior:
    """Return the prior with its sigma recalibrated online, from well solved exposures before each.

    Sigma is only increased: well solved exposures are those of rich fields, whose memory is better than that of others.
    """
    error = np.where(exposures.solved_sigma < GOOD_SOLVE, exposures.solved - prior.value, np.nan)
    sigma = np.hypot(prior.sigma, np.where(np.isfinite(exposures.solved_sigma), exposures.solved_sigma, 0.0))
    factor = np.maximum(online_scale(error, sigma, days=exposures.days), 1.0)
    return replace(prior, sigma=prior.sigma * factor)


def fit(exposures: MockSurvey, stars: Stars, prior: tuple[float, float] | None = None) -> StarFit:
    """Fit the stars of an exposure, joined with a prior if there is one."""
    return fit_stars(
        stars["inst_mag"], stars["inst_mag_err"], stars["ref_mag"], stars["ref_mag_err"], stars["color"],
        stars["x"], stars["y"], shape=exposures.shape, color_term=exposures.color_term,
        flat_sigma=exposures.flat_sigma, prior=prior,
    )  # fmt: skip


def joined(exposures: MockSurvey, prior: Prior, rows: npt.NDArray[np.int64]) -> Prediction:
    """Return the posterior of exposures: their stars and the prior."""
    value, sigma = prior.value.copy(), prior.sigma.copy()
    for i in rows:
        if exposures.n_stars[i]:
            found = fit(exposures, exposures.stars(int(i)), (float(prior.value[i]), float(prior.sigma[i])))
            value[i], sigma[i] = found.value, found.sigma
    return Prediction(value, sigma)


def conditions_of(one: SurveyInputs, names: Sequence[str] = TELEMETRY_NAMES) -> Float:
    """Return the telemetry as columns (n, t)."""
    return np.stack([np.asarray(one.exposures.telemetry[name], dtype=float) for name in names], axis=1)


def classical(one: SurveyInputs, split: npt.NDArray[np.str_] | None = None) -> dict[str, Prediction]:
    """Return the predictions of the baselines, which learn from the solved zero points of the training exposures.

    They do not get the clock: it makes all of them worse on later exposures.
    """
    s = one.exposures
    train = (one.split if split is None else split) == "train"
    conditions, memory = conditions_of(one, PUBLISHED_TELEMETRY), one.inputs.memory
    assert memory is not None  # noqa: S101
    table = linear_regression(conditions, s.solved, train)
    filtered, sigma, _ = local_level(s.days, s.solved, s.solved_sigma, train)
    trees = tree_features(conditions, memory, level=table)
    return {
        "lut": Prediction(table),
        "forest": Prediction(random_forest(tree_features(conditions), s.solved, train)),
        "boosted with memory": Prediction(boosted_trees(trees, s.solved, train, base=table)),
        "previous": Prediction(previous(memory, table)),
        "local level": Prediction(np.where(np.isfinite(filtered), filtered, table), sigma),
    }


def oracles(one: SurveyInputs) -> dict[str, Prediction]:
    """Return what could be known: true conditions and the true noise model, without and with the exposure's stars."""
    best = oracle(one.exposures)
    return {
        "oracle": Prediction(best.prior, best.prior_sigma),
        "oracle joined": Prediction(best.joined, best.joined_sigma),
    }


def ours(one: SurveyInputs, network: nn.Module, rows: npt.NDArray[np.int64]) -> dict[str, Prediction]:
    """Return the solve, the prior and the posterior of some exposures."""
    raw = predict_with_network(network, one.inputs)
    prior = recalibrated_prior(one.exposures, raw)
    solved = one.exposures
    return {
        "solve": Prediction(solved.solved, np.where(np.isfinite(solved.solved), solved.solved_sigma, np.nan)),
        "prior, as trained": Prediction(raw.value, raw.sigma),
        "prior": Prediction(prior.value, prior.sigma),
        "joined": joined(one.exposures, prior, rows),
    }


class PublishedNetwork:
    """The published network on exposures of one survey; the output of its convolutions is computed once."""

    def __init__(self, network: AzpRc, one: SurveyInputs, rows: npt.NDArray[np.int64]) -> None:
        self.network, self.one, self.rows = network, one, rows
        self.place = {int(row): k for k, row in enumerate(rows)}
        n = len(rows)
        self.features = np.zeros((n, 64), np.float32)
        self.statistics = np.full((n, len(IMAGE_STATISTICS)), np.nan, np.float32)
        if network.image is None:
            return
        for start in range(0, n, 16):
            patches = [one.exposures.patch(int(i)) for i in rows[start : start + 16]]
            stack = torch.from_numpy(np.stack([normalise_patch(patch) for patch in patches]))[:, None]
            with torch.inference_mode():
                found = network.image(stack.to(memory_format=torch.channels_last))
            self.features[start : start + 16] = found.float().numpy()
            self.statistics[start : start + 16] = [image_statistics(patch) for patch in patches]

    def predict(self, rows: npt.NDArray[np.int64], stars: Callable[[int], Stars] | None = None) -> Float:
        """Return zero points of some of the exposures, with their own stars or others."""
        s = self.one.exposures
        at = [self.place[int(row)] for row in rows]
        lists = build_star_lists([(stars or s.stars)(int(i)) for i in rows], shape=s.shape, at_most=MAX_ENCODER_STARS)
        lists.values[..., 0] += np.float32(s.nominal)
        x = published_tensors(
            self.network, self.features[at] if self.network.image is not None else None, self.statistics[at],
            lists.values, conditions_of(self.one, self.network.telemetry)[rows],
        )  # fmt: skip
        with torch.inference_mode():
            offset = torch.cat([self.network(x.take(slice(k, k + 256))) for k in range(0, len(rows), 256)])
        return np.asarray(s.nominal + offset.double().numpy())


def on_rows(values: Float, rows: npt.NDArray[np.int64], n: int) -> Prediction:
    """Return values of some exposures as a prediction of all (n,), NaN elsewhere."""
    out = np.full(n, np.nan)
    out[rows] = values
    return Prediction(out)


def without_memory(inputs: PriorInputs) -> PriorInputs:
    """Return inputs without the memory."""
    return replace(inputs, memory=None, memory_telemetry=None)


def with_stars(one: SurveyInputs, rows: npt.NDArray[np.int64], tables: list[Stars | None]) -> PriorInputs:
    """Return the inputs of some exposures with other stars."""
    return replace(take_inputs(one.inputs, rows), stars=build_star_lists(tables, shape=one.exposures.shape))


def latents(network: PriorNetwork, arrays: Any) -> Float:
    """Return the latents of the first member (n, 2 latent)."""
    from csstdask.zeropoint.network import PriorTensors  # noqa: PLC0415

    with torch.inference_mode():
        parts = [
            network(PriorTensors.of(arrays.take(slice(k, k + 2048)))).latent[0] for k in range(0, len(arrays), 2048)
        ]
    return np.asarray(torch.cat(parts).double().numpy())


__all__ = [
    "Memory", "Prediction", "PublishedNetwork", "classical", "conditions_of", "fit", "joined", "latents", "on_rows",
    "oracles", "ours", "recalibrated_prior", "scores", "with_stars", "without_memory",
]  # fmt: skip
