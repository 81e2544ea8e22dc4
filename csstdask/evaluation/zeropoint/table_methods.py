"""Predict the zero points of a table by all methods, from the same inputs, with intervals from past errors.

Methods are trained in folds of training nights (cross-validation): each fold is predicted by the model that was not
trained on it, and later exposures by the mean of all models. The errors on training nights are then unbiased, and the
online recalibration of the intervals starts from them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from csstdask.evaluation.zeropoint.baselines import (
    Intervals,
    boosted_trees,
    local_level,
    random_forest,
    recalibrated,
    recent_scatter,
)
from csstdask.evaluation.zeropoint.table_inputs import FRAMINGS, MEMORY_SIGMA, TableInputs
from csstdask.training.zeropoint.table import TableFit, branch_inputs, fit_table_network, fit_telemetry_branch
from csstdask.zeropoint.prior import predict_with_network
from csstdask.zeropoint.prior.azprc import AzpRc
from csstdask.zeropoint.prior.network import PriorNetwork

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
#: Offsets (n,) from the extinction fit [mag], and their standard deviations (n,) if the method has them.
Predicted = tuple[Float, Float | None]

N_FOLDS = 5
"""Folds of training nights."""
BRANCH_EPOCHS = 2
"""Epochs of the telemetry branch of AZP-RC, as a multiple of ours."""
BRANCH_RATE = 1e-3
"""Learning rate of the telemetry branch of AZP-RC."""
MAX_CHANGE = 1.0
"""Limit of the predicted change between two exposures [mag]."""
N_SIGMA_GROUPS = 4
"""Groups of predicted sigma that are recalibrated separately, by quartiles of the training nights."""


@dataclass(frozen=True)
class MethodSettings:
    """Settings of the methods."""

    folds: int = N_FOLDS
    """Folds of training nights."""
    fit: TableFit = field(default_factory=TableFit)
    """Training of networks."""
    framings: tuple[str, ...] = FRAMINGS
    """Framings of the memory whose predictions are averaged."""
    width: int = 48
    """Units of hidden layers of our network."""
    latent: int = 24
    """Units of its latents."""


@dataclass(frozen=True)
class Prediction:
    """Predictions of one method for n exposures."""

    value: Float
    """Zero points [mag]."""
    intervals: Intervals
    """Half-widths of intervals."""


def in_folds(inputs: TableInputs, learn: Callable[[Bool, int], Predicted], n_folds: int) -> Predicted:
    """Predict training rows by models that were not trained on their night, and other rows by the mean of all models.

    Parameters
    ----------
    inputs : TableInputs
        Exposures of the table.
    learn : callable
        Receives the rows to learn from and the number of the fold, and predicts all rows.
    n_folds : int
        Number of folds, at most one per training night. With a single night the model predicts its own training rows.
    """
    fold = inputs.folds(n_folds)
    n = int(fold.max()) + 1
    if n < 2:
        return learn(inputs.train, 0)
    predictions = [learn(inputs.train & (fold != k), k) for k in range(n)]
    mean_offset = np.mean([offset for offset, _ in predictions], axis=0)
    sigmas = [sigma for _, sigma in predictions if sigma is not None]
    mean_sigma = np.sqrt(np.mean(np.square(sigmas), axis=0)) if sigmas else None
    for k, (offset, sigma) in enumerate(predictions):
        mean_offset[fold == k] = offset[fold == k]
        if mean_sigma is not None and sigma is not None:
            mean_sigma[fold == k] = sigma[fold == k]
    return mean_offset, mean_sigma


def lut(inputs: TableInputs, _settings: MethodSettings) -> Predicted:
    """Predict the extinction fit."""
    return np.zeros(len(inputs)), None


def previous(inputs: TableInputs, _settings: MethodSettings) -> Predicted:
    """Predict the offset of the previous exposure of the night; the first of a night gets the extinction fit."""
    return inputs.persistence, None


def kalman(inputs: TableInputs, _settings: MethodSettings) -> Predicted:
    """Predict by a local level of each night, whose noise is fitted to the training nights."""
    mean, sigma, _ = local_level(
        inputs.days, inputs.offset, np.full(len(inputs), MEMORY_SIGMA), inputs.train, series=inputs.night
    )
    return mean, sigma


def trees(inputs: TableInputs, settings: MethodSettings) -> Predicted:
    """Predict by boosted trees with absolute-error loss, from conditions and memory."""
    features, base = inputs.features, inputs.persistence
    return in_folds(
        inputs,
        lambda rows, k: (boosted_trees(features, inputs.offset, rows, base=base, seed=1 + k), None),
        settings.folds,
    )


def trees_conditions(inputs: TableInputs, settings: MethodSettings) -> Predicted:
    """Predict by boosted trees from conditions only."""
    matrix = inputs.matrix
    return in_folds(
        inputs, lambda rows, k: (boosted_trees(matrix, inputs.offset, rows, seed=1 + k), None), settings.folds
    )


def forest(inputs: TableInputs, settings: MethodSettings) -> Predicted:
    """Predict by a random forest from conditions and memory."""
    features, base = inputs.features, inputs.persistence
    return in_folds(
        inputs,
        lambda rows, k: (random_forest(features, inputs.offset, rows, base=base, seed=1 + k), None),
        settings.folds,
    )


def forest_conditions(inputs: TableInputs, settings: MethodSettings) -> Predicted:
    """Predict by a random forest from conditions only, as in the AZP-RC article."""
    matrix = inputs.matrix
    return in_folds(
        inputs, lambda rows, k: (random_forest(matrix, inputs.offset, rows, seed=1 + k), None), settings.folds
    )


def azprc(inputs: TableInputs, settings: MethodSettings) -> Predicted:
    """Predict by the telemetry branch of AZP-RC: tables have neither images nor star lists."""
    matrix = inputs.matrix
    branch_fit = replace(settings.fit, epochs=BRANCH_EPOCHS * settings.fit.epochs, learning_rate=BRANCH_RATE)

    def learn(rows: Bool, k: int) -> Predicted:
        torch.manual_seed(settings.fit.seed + k)
        network = AzpRc(telemetry=tuple(inputs.conditions), image=False, stars=False)
        fit_telemetry_branch(
            network, matrix[rows], inputs.offset[rows], replace(branch_fit, seed=settings.fit.seed + k)
        )
        with torch.inference_mode():
            return network(branch_inputs(network, matrix)).double().numpy(), None

    return in_folds(inputs, learn, settings.folds)


def ours(inputs: TableInputs, settings: MethodSettings) -> Predicted:
    """Predict by an ensemble of the network ``zeropoint``, from conditions and memory.

    The prediction is the mean over the framings of the memory. Each of them differs from persistence by at most
    `MAX_CHANGE`, because networks extrapolate where clouds are thicker than in the training.
    """
    predictions = [_predict_with_framing(inputs, settings, framing) for framing in settings.framings]
    value = np.mean([offset for offset, _ in predictions], axis=0)
    return value, np.sqrt(np.mean([np.square(sigma) for _, sigma in predictions], axis=0))


def _predict_with_framing(inputs: TableInputs, settings: MethodSettings, framing: str) -> tuple[Float, Float]:
    """Predict offsets and their errors by our network, with one framing of the memory."""
    prior_inputs, base = inputs.prior_inputs(framing)
    target, last = inputs.offset - base, inputs.persistence

    def learn(rows: Bool, k: int) -> Predicted:
        seed = settings.fit.seed + k
        torch.manual_seed(seed)
        network = PriorNetwork(
            telemetry=tuple(prior_inputs.telemetry), memory=inputs.memory.value.shape[1], stars=False, image=False,
            width=settings.width, latent=settings.latent,
        )  # fmt: skip
        fit_table_network(network, prior_inputs.take(rows), target[rows], replace(settings.fit, seed=seed))
        prior = predict_with_network(network, prior_inputs)
        change = np.clip(base + prior.value - last, -MAX_CHANGE, MAX_CHANGE)
        return last + change, prior.sigma

    value, sigma = in_folds(inputs, learn, settings.folds)
    assert sigma is not None  # noqa: S101  (networks have one)
    return value, sigma


METHODS: dict[str, Callable[[TableInputs, MethodSettings], Predicted]] = {
    "lut": lut,
    "previous": previous,
    "kalman": kalman,
    "forest_conditions": forest_conditions,
    "forest": forest,
    "trees_conditions": trees_conditions,
    "trees": trees,
    "azprc": azprc,
    "ours": ours,
}


def predict(name: str, inputs: TableInputs, settings: MethodSettings = MethodSettings()) -> Prediction:
    """Predict all zero points of a table by one method, with intervals.

    The sigma of methods that predict none is the scatter of their recent errors. All sigmas are recalibrated online, by
    group of sigma in each campaign.

    Parameters
    ----------
    name : str
        Key of `METHODS`.
    inputs : TableInputs
        Exposures of the table.
    settings : MethodSettings
        Settings of the methods.
    """
    offset, sigma = METHODS[name](inputs, settings)
    error = offset - inputs.offset
    if sigma is None:
        sigma = recent_scatter(inputs.days, error, inputs.train, series=inputs.night)
    sigma_68, sigma_95 = np.zeros(len(inputs)), np.zeros(len(inputs))
    for campaign in np.unique(inputs.campaign):
        rows = inputs.campaign == campaign
        train = rows & inputs.train if (rows & inputs.train).sum() >= N_SIGMA_GROUPS else inputs.train
        edges = np.quantile(sigma[train], np.arange(1, N_SIGMA_GROUPS) / N_SIGMA_GROUPS)
        groups = np.searchsorted(edges, sigma[rows])
        intervals = recalibrated(inputs.days[rows], error[rows], sigma[rows], groups=groups)
        sigma_68[rows], sigma_95[rows] = intervals.sigma_68, intervals.sigma_95
    return Prediction(inputs.level + offset, Intervals(sigma_68, sigma_95))
