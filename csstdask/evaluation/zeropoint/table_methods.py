"""Methods that predict the zero points of a table, all from the same inputs, with intervals from past errors.

Methods that learn do so in folds of training nights: each fold is predicted by the model that has not seen it, later
exposures by the mean of all. Errors of the training nights are then honest, and the intervals begin with them.
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
#: Offsets (n,) from the extinction fit, and their standard deviations (n,) where the method has them.
Predicted = tuple[Float, Float | None]

N_FOLDS = 5
BRANCH_EPOCHS = 2
"""Epochs of AZP-RC's telemetry branch, as a multiple of ours."""
BRANCH_RATE = 1e-3
"""Learning rate of AZP-RC's telemetry branch."""
LARGEST_CHANGE = 1.0
"""Limit of the predicted change between two exposures [mag]."""
N_SIGMA_GROUPS = 4
"""Groups of predicted sigma that are recalibrated apart, by quartiles of the training nights."""


@dataclass(frozen=True)
class MethodSettings:
    """How much is trained."""

    folds: int = N_FOLDS
    fit: TableFit = field(default_factory=TableFit)
    framings: tuple[str, ...] = FRAMINGS
    width: int = 48
    latent: int = 24


@dataclass(frozen=True)
class Prediction:
    """Zero points (n,) [mag] of one method, with half widths of intervals; see `Intervals`."""

    value: Float
    intervals: Intervals


def in_folds(inputs: TableInputs, learn: Callable[[Bool, int], Predicted], n_folds: int) -> Predicted:
    """Return predictions of training rows by models that have not seen their night, of others by the mean of all.

    Parameters
    ----------
    inputs : TableInputs
    learn : callable
        Receives the rows to learn from and the number of the fold, and predicts all rows.
    n_folds : int
        At most one fold a training night; with a single night the model predicts its own training rows.
    """
    fold = inputs.folds(n_folds)
    n = int(fold.max()) + 1
    if n < 2:
        return learn(inputs.train, 0)
    found = [learn(inputs.train & (fold != k), k) for k in range(n)]
    value = np.mean([one[0] for one in found], axis=0)
    given = [one[1] for one in found if one[1] is not None]
    spread = np.sqrt(np.mean(np.square(given), axis=0)) if given else None
    for k, (offset, sigma) in enumerate(found):
        value[fold == k] = offset[fold == k]
        if spread is not None and sigma is not None:
            spread[fold == k] = sigma[fold == k]
    return value, spread


def lut(inputs: TableInputs, _settings: MethodSettings) -> Predicted:
    """Predict the extinction fit."""
    return np.zeros(len(inputs)), None


def previous(inputs: TableInputs, _settings: MethodSettings) -> Predicted:
    """Predict the offset of the exposure before in the night; the first of a night gets the extinction fit."""
    return inputs.persistence, None


def kalman(inputs: TableInputs, _settings: MethodSettings) -> Predicted:
    """Predict by a local level of each night, whose noise is fitted to the training nights."""
    mean, sigma, _ = local_level(
        inputs.days, inputs.offset, np.full(len(inputs), MEMORY_SIGMA), inputs.train, series=inputs.night
    )
    return mean, sigma


def trees(inputs: TableInputs, settings: MethodSettings) -> Predicted:
    """Predict by boosted trees, with the absolute error as loss, from conditions and memory."""
    features, base = inputs.features, inputs.persistence
    return in_folds(
        inputs,
        lambda rows, k: (boosted_trees(features, inputs.offset, rows, base=base, seed=1 + k), None),
        settings.folds,
    )


def trees_conditions(inputs: TableInputs, settings: MethodSettings) -> Predicted:
    """Predict by boosted trees from conditions alone."""
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
    """Predict by a random forest from conditions alone, as in the AZP-RC article."""
    matrix = inputs.matrix
    return in_folds(
        inputs, lambda rows, k: (random_forest(matrix, inputs.offset, rows, seed=1 + k), None), settings.folds
    )


def azprc(inputs: TableInputs, settings: MethodSettings) -> Predicted:
    """Predict by AZP-RC's telemetry branch: tables have neither images nor star lists."""
    matrix = inputs.matrix
    how = replace(settings.fit, epochs=BRANCH_EPOCHS * settings.fit.epochs, learning_rate=BRANCH_RATE)

    def learn(rows: Bool, k: int) -> Predicted:
        torch.manual_seed(settings.fit.seed + k)
        network = AzpRc(telemetry=tuple(inputs.conditions), image=False, stars=False)
        fit_telemetry_branch(network, matrix[rows], inputs.offset[rows], replace(how, seed=settings.fit.seed + k))
        with torch.inference_mode():
            return network(branch_inputs(network, matrix)).double().numpy(), None

    return in_folds(inputs, learn, settings.folds)


def ours(inputs: TableInputs, settings: MethodSettings) -> Predicted:
    """Predict by an ensemble of the network ``zeropoint``, from conditions and memory.

    The mean over `FRAMINGS`, in each of which a prediction may differ from persistence by at most `LARGEST_CHANGE`:
    networks extrapolate where clouds are thicker than in the training.
    """
    found = [_of_framing(inputs, settings, framing) for framing in settings.framings]
    value = np.mean([one[0] for one in found], axis=0)
    return value, np.sqrt(np.mean([np.square(one[1]) for one in found], axis=0))


def _of_framing(inputs: TableInputs, settings: MethodSettings, framing: str) -> tuple[Float, Float]:
    given, base = inputs.prior_inputs(framing)
    target, last = inputs.offset - base, inputs.persistence

    def learn(rows: Bool, k: int) -> Predicted:
        seed = settings.fit.seed + k
        torch.manual_seed(seed)
        network = PriorNetwork(
            telemetry=tuple(given.telemetry), memory=inputs.memory.value.shape[1], stars=False, image=False,
            width=settings.width, latent=settings.latent,
        )  # fmt: skip
        fit_table_network(network, given.take(rows), target[rows], replace(settings.fit, seed=seed))
        found = predict_with_network(network, given)
        change = np.clip(base + found.value - last, -LARGEST_CHANGE, LARGEST_CHANGE)
        return last + change, found.sigma

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
    """Predict all zero points of a table by a method of `METHODS`, with intervals.

    Methods without a sigma get the scatter of their recent errors. Both are recalibrated online by group of sigma,
    in each campaign.
    """
    offset, sigma = METHODS[name](inputs, settings)
    error = offset - inputs.offset
    if sigma is None:
        sigma = recent_scatter(inputs.days, error, inputs.train, series=inputs.night)
    lower, upper = np.zeros(len(inputs)), np.zeros(len(inputs))
    for campaign in np.unique(inputs.campaign):
        rows = inputs.campaign == campaign
        of_campaign = rows & inputs.train if (rows & inputs.train).sum() >= N_SIGMA_GROUPS else inputs.train
        edges = np.quantile(sigma[of_campaign], np.arange(1, N_SIGMA_GROUPS) / N_SIGMA_GROUPS)
        found = recalibrated(inputs.days[rows], error[rows], sigma[rows], groups=np.searchsorted(edges, sigma[rows]))
        lower[rows], upper[rows] = found.sigma_68, found.sigma_95
    return Prediction(inputs.level + offset, Intervals(lower, upper))
