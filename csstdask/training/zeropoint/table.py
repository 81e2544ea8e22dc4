"""Train on tables of measured zero points: our network, and the telemetry branch of AZP-RC.

Clouds make the errors of tables heavy-tailed. Our network therefore learns the mean by the absolute error, whose
minimum is the conditional median, and sigma by the likelihood of a Laplace distribution about a fixed mean, so that
uncertain exposures count as much as others for the mean. The branch of AZP-RC is trained as published.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from csstdask.training.zeropoint.losses import wrong_order
from csstdask.zeropoint.prior import PriorInputs, prior_arrays
from csstdask.zeropoint.prior.azprc import AzpRc, PublishedTensors, published_tensors
from csstdask.zeropoint.prior.network import PriorNetwork, PriorTensors
from csstdask.zeropoint.prior.normalisation import finite_moments

Float = npt.NDArray[np.float64]

RANKING = 0.1
"""Weight of the ranking penalty in the AZP-RC article."""


@dataclass(frozen=True)
class TableFit:
    """Settings of a training on a table."""

    epochs: int = 12
    batch: int = 256
    """Exposures per batch."""
    learning_rate: float = 3e-3
    least_rate: float = 0.02
    """Final learning rate, as a fraction of the largest."""
    warm_up: int = 50
    """Steps in which the learning rate rises."""
    weight_decay: float = 1e-3
    scale: float = 0.05
    """Unit of the network's offsets [mag]: between the scatter of clear nights and that of clouds."""
    sigma_weight: float = 0.3
    """Weight of the likelihood of sigma in the loss."""
    drop_memory: float = 0.03
    """Fraction of exposures without memory: there is only one first exposure per night to learn from."""
    clip_norm: float = 5.0
    """Largest norm of the gradient."""
    seed: int = 1


def fit_table_network(
    network: PriorNetwork, inputs: PriorInputs, offset: npt.ArrayLike, settings: TableFit = TableFit()
) -> None:
    """Train a prior in place on zero points minus their nominal values.

    Parameters
    ----------
    network : PriorNetwork
        Network without stars and image.
    inputs : PriorInputs
        Inputs of n training exposures.
    offset : array-like (n,)
        Zero points minus ``inputs.nominal`` [mag], all finite.
    settings : TableFit
        Settings of the training.
    """
    target = np.asarray(offset, dtype=np.float64)
    arrays = prior_arrays(inputs, network.telemetry, memory=network.memory)
    network.normalise_by(arrays, target)
    network.offset_std.fill_(settings.scale)
    x, y = PriorTensors.from_arrays(arrays), torch.from_numpy(target.astype(np.float32))
    network.train()
    for index, withheld in _steps(network, len(y), settings):
        batch = x.take(index)
        memory = batch.memory.clone()
        memory[withheld] = math.nan
        output = network(replace(batch, memory=memory))
        error = ((output.offset - y[index]) / network.offset_std).abs()
        width = torch.exp(0.5 * output.log_variance) / network.offset_std + 1e-3
        likelihood = (error.detach() / width + torch.log(width)).mean()
        (error.mean() + settings.sigma_weight * likelihood).backward()
    network.eval()


def fit_telemetry_branch(
    network: AzpRc, telemetry: npt.ArrayLike, offset: npt.ArrayLike, settings: TableFit = TableFit()
) -> None:
    """Train AZP-RC's telemetry branch and head in place with the loss of the article.

    The loss is the mean square error plus 0.1 times the fraction of pairs in the wrong order, which has no gradient;
    offsets are in units of their scatter. There is one survey, and therefore no discriminator.

    Parameters
    ----------
    network : AzpRc
        Network with the telemetry branch only.
    telemetry : array-like (n, t)
        Telemetry vectors; NaN where unknown.
    offset : array-like (n,)
        Targets [mag].
    settings : TableFit
        Settings of the training.
    """
    values, target = np.asarray(telemetry, dtype=np.float64), np.asarray(offset, dtype=np.float64)
    mean, std = finite_moments(values)
    network.get_buffer("telemetry_mean").copy_(mean)
    network.get_buffer("telemetry_std").copy_(std)
    network.offset_mean.fill_(float(target.mean()))
    scale = max(float(target.std()), 1e-3)
    x, y = branch_inputs(network, values), torch.from_numpy(target.astype(np.float32))
    network.train()
    for index, _ in _steps(network, len(y), settings):
        predicted, expected = network(x.take(index)) / scale, y[index] / scale
        loss = nn.functional.mse_loss(predicted, expected) + RANKING * wrong_order(predicted, expected)
        loss.backward()
    network.eval()


def branch_inputs(network: AzpRc, telemetry: npt.ArrayLike) -> PublishedTensors:
    """Return the inputs of a network with a telemetry branch only."""
    values = np.asarray(telemetry, dtype=np.float64)
    n_statistics = len(network.statistics_mean)  # type: ignore[arg-type]
    stars = np.full((len(values), 1, 7), np.nan, np.float32)
    return published_tensors(network, None, np.full((len(values), n_statistics), np.nan), stars, values)


def _steps(network: nn.Module, n: int, settings: TableFit) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the rows of each batch and whether their memory is withheld; step the optimiser after each batch.

    The caller computes the gradients before it requests the next batch.
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
