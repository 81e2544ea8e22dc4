"""Training on tables of measured zero points: our network by absolute errors, AZP-RC's telemetry branch as published.

Clouds make the errors of tables heavy-tailed. The mean is therefore learned by the absolute error, which asks for the
conditional median, and sigma by the likelihood of a Laplace distribution about a mean that is held fixed, so that
uncertain exposures count as much as others for the mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from csstdask.zeropoint.prior import PriorInputs, prior_arrays
from csstdask.zeropoint.prior.azprc import AzpRc, PublishedTensors, published_tensors
from csstdask.zeropoint.prior.network import PriorNetwork, PriorTensors

Float = npt.NDArray[np.float64]

RANKING = 0.1
"""Weight of the ranking penalty in the AZP-RC article."""


@dataclass(frozen=True)
class TableFit:
    """How networks learn from a table."""

    epochs: int = 12
    batch: int = 256
    learning_rate: float = 3e-3
    least_rate: float = 0.02
    """Share of the learning rate that is left at the end of the cosine."""
    warm_up: int = 50
    """Steps in which the rate rises."""
    weight_decay: float = 1e-3
    scale: float = 0.05
    """Unit of the network's offsets [mag]: between the scatter of clear nights and of clouds."""
    sigma_weight: float = 0.3
    """Weight of the likelihood of sigma."""
    drop_memory: float = 0.03
    """Share of exposures without memory, so that the first of a night are learned from more than once a night."""
    clip_norm: float = 5.0
    seed: int = 1


def fit_table_network(
    network: PriorNetwork, inputs: PriorInputs, offset: npt.ArrayLike, settings: TableFit = TableFit()
) -> None:
    """Train a prior in place on zero points less their nominal values.

    Parameters
    ----------
    network : PriorNetwork
        Without stars and image.
    inputs : PriorInputs
        Of n training exposures.
    offset : array-like (n,)
        Zero points less ``inputs.nominal`` [mag], all finite.
    settings : TableFit
    """
    target = np.asarray(offset, dtype=np.float64)
    arrays = prior_arrays(inputs, network.telemetry, memory=network.memory)
    network.normalise_by(arrays, target)
    network.offset_std.fill_(settings.scale)
    x, y = PriorTensors.from_arrays(arrays), torch.from_numpy(target.astype(np.float32))
    network.train()
    for index, withheld in _steps(network, len(y), settings):
        some = x.take(index)
        memory = some.memory.clone()
        memory[withheld] = math.nan
        found = network(replace(some, memory=memory))
        error = ((found.offset - y[index]) / network.offset_std).abs()
        width = torch.exp(0.5 * found.log_variance) / network.offset_std + 1e-3
        likelihood = (error.detach() / width + torch.log(width)).mean()
        (error.mean() + settings.sigma_weight * likelihood).backward()
    network.eval()


def fit_telemetry_branch(
    network: AzpRc, telemetry: npt.ArrayLike, offset: npt.ArrayLike, settings: TableFit = TableFit()
) -> None:
    """Train AZP-RC's telemetry branch and head in place by the loss of the article.

    The mean square error, and 0.1 times the share of pairs in the wrong order, which has no gradient; offsets are in
    units of their scatter. There is one survey, and therefore no discriminator.

    Parameters
    ----------
    network : AzpRc
        With the telemetry branch alone.
    telemetry : array-like (n, t)
        NaN where unknown.
    offset : array-like (n,)
        [mag]
    settings : TableFit
    """
    values, target = np.asarray(telemetry, dtype=np.float64), np.asarray(offset, dtype=np.float64)
    known = np.isfinite(values)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, values, 0.0).sum(axis=0) / count
    std = np.sqrt(np.where(known, (values - mean) ** 2, 0.0).sum(axis=0) / count)
    for name, buffer in (("telemetry_mean", mean), ("telemetry_std", np.where(std > 0, std, 1.0))):
        getattr(network, name).copy_(torch.from_numpy(buffer))
    network.offset_mean.fill_(float(target.mean()))
    scale = max(float(target.std()), 1e-3)
    x, y = branch_inputs(network, values), torch.from_numpy(target.astype(np.float32))
    network.train()
    for index, _ in _steps(network, len(y), settings):
        predicted, wanted = network(x.take(index)) / scale, y[index] / scale
        with torch.no_grad():
            margin = (predicted[:, None] - predicted) * (wanted[:, None] - wanted)
            wrong = (margin < 0).float().sum() / max(1, len(wanted) * (len(wanted) - 1))
        (nn.functional.mse_loss(predicted, wanted) + RANKING * wrong).backward()
    network.eval()


def branch_inputs(network: AzpRc, telemetry: npt.ArrayLike) -> PublishedTensors:
    """Return the inputs of a network that has a telemetry branch alone."""
    values = np.asarray(telemetry, dtype=np.float64)
    n_statistics = len(network.statistics_mean)  # type: ignore[arg-type]
    stars = np.full((len(values), 1, 7), np.nan, np.float32)
    return published_tensors(network, None, np.full((len(values), n_statistics), np.nan), stars, values)


def _steps(network: nn.Module, n: int, settings: TableFit) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the rows of each batch, and which of them lose their memory; step the optimiser after each.

    Gradients are those that the caller has left when the next batch is asked for.
    """
    rng = np.random.default_rng(settings.seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    total = settings.epochs * math.ceil(n / settings.batch)

    def rate(step: int) -> float:
        fall = 0.5 * (1 + math.cos(math.pi * step / total))
        return min(1.0, (step + 1) / settings.warm_up) * (settings.least_rate + (1 - settings.least_rate) * fall)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    for _ in range(settings.epochs):
        order = rng.permutation(n)
        for start in range(0, n, settings.batch):
            rows = order[start : start + settings.batch]
            optimiser.zero_grad()
            yield torch.from_numpy(rows), torch.from_numpy(rng.random(len(rows)) < settings.drop_memory)
            nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
            optimiser.step()
            schedule.step()
