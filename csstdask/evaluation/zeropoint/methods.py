"""Predict the zero points of mock surveys by all methods: ours, the published network, baselines, and an oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from csstdask.datasets.zeropoint_oracle import oracle
from csstdask.datasets.zeropoint_surveys import MockSurvey
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
from csstdask.zeropoint.fit_stars import StarFit, fit_stars
from csstdask.zeropoint.prior import (
    IMAGE_STATISTICS,
    TELEMETRY_NAMES,
    Prior,
    PriorArrays,
    PriorInputs,
    build_star_lists,
    image_statistics,
    predict_with_network,
)
from csstdask.zeropoint.prior.azprc import (
    IMAGE_FEATURES,
    MAX_ENCODER_STARS,
    PUBLISHED_TELEMETRY,
    AzpRc,
    normalise_patch,
    published_tensors,
)
from csstdask.zeropoint.prior.network import PriorNetwork, PriorTensors
from csstdask.zeropoint.recalibration import online_scale

Float = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Stars = Mapping[str, Float]

GOOD_SOLVE = 0.004
"""Largest error of solved zero points that the online recalibration uses [mag]."""
_PATCHES_PER_BATCH = 16
_EXPOSURES_PER_BATCH = 256
_LATENTS_PER_BATCH = 2048


@dataclass(frozen=True)
class Prediction:
    """Zero points of the exposures of one survey (n,) [mag]; NaN where a method gives none."""

    value: Float
    """Predicted zero points."""
    sigma: Float | None = None
    """Their errors, if the method has them."""


def scores(prediction: Prediction, truth: Float, rows: npt.NDArray[Any]) -> dict[str, float]:
    """Return errors, correlations and, with a sigma, coverages for some exposures."""
    value = prediction.value[rows]
    out = error_statistics(value, truth[rows]).as_dict() | correlations(value, truth[rows])
    if prediction.sigma is not None:
        out |= coverage(value - truth[rows], prediction.sigma[rows])
    return out


def recalibrated_prior(exposures: MockSurvey, prior: Prior) -> Prior:
    """Recalibrate the sigma of a prior online, from well solved exposures before each one.

    Sigma is only increased: well solved exposures are those of rich fields, whose memory is better than that of others.
    """
    error = np.where(exposures.solved_sigma < GOOD_SOLVE, exposures.solved - prior.value, np.nan)
    sigma = np.hypot(prior.sigma, np.where(np.isfinite(exposures.solved_sigma), exposures.solved_sigma, 0.0))
    factor = np.maximum(online_scale(error, sigma, days=exposures.days), 1.0)
    return replace(prior, sigma=prior.sigma * factor)


def fit(exposures: MockSurvey, stars: Stars, prior: tuple[float, float] | None = None) -> StarFit:
    """Fit the stars of an exposure, combined with a prior if there is one."""
    return fit_stars(
        stars["inst_mag"], stars["inst_mag_err"], stars["ref_mag"], stars["ref_mag_err"], stars["color"],
        stars["x"], stars["y"], shape=exposures.shape, color_term=exposures.color_term,
        flat_sigma=exposures.flat_sigma, prior=prior,
    )  # fmt: skip


def joined(exposures: MockSurvey, prior: Prior, rows: Rows) -> Prediction:
    """Combine the stars of some exposures with the prior; other exposures keep the prior."""
    value, sigma = prior.value.copy(), prior.sigma.copy()
    for i in rows:
        if exposures.n_stars[i]:
            posterior = fit(exposures, exposures.stars(int(i)), (float(prior.value[i]), float(prior.sigma[i])))
            value[i], sigma[i] = posterior.value, posterior.sigma
    return Prediction(value, sigma)


def telemetry_columns(survey: SurveyInputs, names: Sequence[str] = TELEMETRY_NAMES) -> Float:
    """Return the telemetry of a survey as columns, float64 array (n, t)."""
    return np.stack([np.asarray(survey.exposures.telemetry[name], dtype=float) for name in names], axis=1)


def classical(survey: SurveyInputs, split: npt.NDArray[np.str_] | None = None) -> dict[str, Prediction]:
    """Predict by the baselines, which learn from the solved zero points of the training exposures.

    They do not read the clock: it makes all of them worse on later exposures.
    """
    exposures = survey.exposures
    train = (survey.split if split is None else split) == "train"
    conditions, memory = telemetry_columns(survey, PUBLISHED_TELEMETRY), survey.inputs.memory
    assert memory is not None  # noqa: S101
    table = linear_regression(conditions, exposures.solved, train)
    filtered, sigma, _ = local_level(exposures.days, exposures.solved, exposures.solved_sigma, train)
    features = tree_features(conditions, memory, level=table)
    return {
        "lut": Prediction(table),
        "forest": Prediction(random_forest(tree_features(conditions), exposures.solved, train)),
        "boosted with memory": Prediction(boosted_trees(features, exposures.solved, train, base=table)),
        "previous": Prediction(previous(memory, table)),
        "local level": Prediction(np.where(np.isfinite(filtered), filtered, table), sigma),
    }


def oracles(survey: SurveyInputs) -> dict[str, Prediction]:
    """Predict with the true conditions and the true noise model, without and with the exposure's stars."""
    best = oracle(survey.exposures)
    return {
        "oracle": Prediction(best.prior, best.prior_sigma),
        "oracle joined": Prediction(best.joined, best.joined_sigma),
    }


def ours(survey: SurveyInputs, network: nn.Module, rows: Rows) -> dict[str, Prediction]:
    """Return the solved zero points, the prior, and the posterior of some exposures."""
    raw = predict_with_network(network, survey.inputs)
    exposures = survey.exposures
    prior = recalibrated_prior(exposures, raw)
    solved_sigma = np.where(np.isfinite(exposures.solved), exposures.solved_sigma, np.nan)
    return {
        "solve": Prediction(exposures.solved, solved_sigma),
        "prior, as trained": Prediction(raw.value, raw.sigma),
        "prior": Prediction(prior.value, prior.sigma),
        "joined": joined(exposures, prior, rows),
    }


class PublishedNetwork:
    """The published network on some exposures of one survey; the output of its convolutions is computed once.

    Parameters
    ----------
    network : AzpRc
        Trained network.
    survey : SurveyInputs
        Exposures with their images and stars.
    rows : int64 array (n,)
        Exposures that can be predicted.
    """

    def __init__(self, network: AzpRc, survey: SurveyInputs, rows: Rows) -> None:
        self.network, self.survey = network, survey
        self.position = {int(row): k for k, row in enumerate(rows)}
        n = len(rows)
        self.features = np.zeros((n, IMAGE_FEATURES), np.float32)
        self.statistics = np.full((n, len(IMAGE_STATISTICS)), np.nan, np.float32)
        if network.image is None:
            return
        for start in range(0, n, _PATCHES_PER_BATCH):
            batch = slice(start, start + _PATCHES_PER_BATCH)
            patches = [survey.exposures.patch(int(i)) for i in rows[batch]]
            stack = torch.from_numpy(np.stack([normalise_patch(patch) for patch in patches]))[:, None]
            with torch.inference_mode():
                features = network.image(stack.to(memory_format=torch.channels_last))
            self.features[batch] = features.float().numpy()
            self.statistics[batch] = [image_statistics(patch) for patch in patches]

    def predict(self, rows: Rows, stars: Callable[[int], Stars] | None = None) -> Float:
        """Predict the zero points of some of the exposures.

        Parameters
        ----------
        rows : int64 array (n,)
            Exposures.
        stars : callable, optional
            Returns the stars of an exposure; by default its own.

        Returns
        -------
        float64 array (n,)
            Zero points [mag].
        """
        exposures = self.survey.exposures
        index = [self.position[int(row)] for row in rows]
        tables = [(stars or exposures.stars)(int(i)) for i in rows]
        lists = build_star_lists(tables, shape=exposures.shape, max_stars=MAX_ENCODER_STARS)
        lists.values[..., 0] += np.float32(exposures.nominal)
        x = published_tensors(
            self.network, self.features[index] if self.network.image is not None else None, self.statistics[index],
            lists.values, telemetry_columns(self.survey, self.network.telemetry)[rows],
        )  # fmt: skip
        with torch.inference_mode():
            offset = torch.cat([
                self.network(x.take(slice(start, start + _EXPOSURES_PER_BATCH)))
                for start in range(0, len(rows), _EXPOSURES_PER_BATCH)
            ])  # fmt: skip
        return np.asarray(exposures.nominal + offset.double().numpy())


def on_rows(values: Float, rows: Rows, n: int) -> Prediction:
    """Return values of some exposures as a prediction of all n, NaN elsewhere."""
    out = np.full(n, np.nan)
    out[rows] = values
    return Prediction(out)


def with_stars(survey: SurveyInputs, rows: Rows, tables: list[Stars | None]) -> PriorInputs:
    """Return the inputs of some exposures with other stars."""
    return replace(survey.inputs.take(rows), stars=build_star_lists(tables, shape=survey.exposures.shape))


def latents(network: PriorNetwork, arrays: PriorArrays) -> Float:
    """Return the latents of the first member of the ensemble, float64 array (n, 2 latent)."""
    with torch.inference_mode():
        parts = [
            network(PriorTensors.from_arrays(arrays.take(slice(start, start + _LATENTS_PER_BATCH)))).latent[0]
            for start in range(0, len(arrays), _LATENTS_PER_BATCH)
        ]
    return np.asarray(torch.cat(parts).double().numpy())
