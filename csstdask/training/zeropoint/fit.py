"""Training of a prior of the zero point: losses, gaps in the inputs, and the calibration of sigma.

`fit_prior` serves the mock surveys as well as tables of real exposures. The loss is the likelihood of the solved zero
points, whose own errors are added to the network's variance, so that sigma is that of the true zero point. A smooth
surrogate of the ranking penalty is added, and, with two surveys, a discriminator whose gradient is reversed on the
latents (Ganin & Lempitsky 2015).

In every batch telemetry, memory, stars and images are withheld at random: exposures without them are then
within the domain.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from csstdask.nn.trainer import Learner, Schedule, train
from csstdask.numerics.probability import WITHIN_ONE_SIGMA
from csstdask.zeropoint.prior import PriorArrays, PriorInputs, prior_arrays
from csstdask.zeropoint.prior.network import PriorNetwork, PriorOutput, PriorTensors

log = logging.getLogger("csstdask")

_FEWEST = 100
"""Exposures with small errors of their own from which alone the calibration is measured, if there are so many."""
_DEGRADED = (0.004, 0.06)
"""Least and greatest noise of a degraded memory [mag]: from a hundred stars to one."""
_RUN = 5.0
"""Mean number of entries of one field."""
_WRONG, _WRONG_SIZE = 0.06, 0.15
"""Share and size [mag] of wrong values among the noisiest entries."""
_RANK_SCALE = 0.1
"""Difference of two zero points at which the ranking surrogate bends, in units of their scatter."""


@dataclass(frozen=True)
class FitSettings:
    """How a prior is trained."""

    epochs: int = 60
    batch: int = 256
    learning_rate: float = 3e-3
    least_rate: float = 0.02
    weight_decay: float = 1e-3
    loss: Literal["gaussian", "student"] = "gaussian"
    """``student``: four degrees of freedom, for zero points with outliers (clouds)."""
    beta: float = 0.0
    """Exponent of the beta-NLL (Seitzer et al. 2022): 0 is the likelihood, 1 weighs all residuals alike. Above 0 the
    few exposures without memory outweigh all others, and the covariance of the process becomes theirs."""
    warm_up: float = 0.05
    """Share of the training in which sigma does not yet weigh residuals."""
    ranking: float = 0.1
    """Weight of the ranking surrogate."""
    adversarial: float = 0.0
    """Weight of the reversed gradient of the survey discriminator; 0: none."""
    drop_telemetry: float = 0.05
    """Share of exposures without any telemetry; a third of the others misses some."""
    drop_memory: float = 0.1
    """Share of exposures without memory; for as many again the newest entries are withheld."""
    degrade_memory: float = 0.0
    """Share of exposures whose memory is made as noisy as that of sparse fields. Targets of sparse fields are too noisy
    themselves to teach how far such a memory can be trusted."""
    drop_stars: float = 0.2
    drop_image: float = 0.2
    keep: Literal["best", "last"] = "last"
    seed: int = 20261130

    @property
    def schedule(self) -> Schedule:
        """Return how long and how fast to learn."""
        return Schedule(
            epochs=self.epochs, learning_rate=self.learning_rate, warm_up=1.0, least_rate=self.least_rate,
            weight_decay=self.weight_decay, patience=self.epochs, keep=self.keep, clip_norm=5.0,
            precision="float32", seed=self.seed,
        )  # fmt: skip


@dataclass(frozen=True)
class _Batch:
    inputs: PriorTensors
    target: Tensor
    variance: Tensor
    survey: Tensor


class _ReverseGradient(torch.autograd.Function):
    """The identity, whose gradient is reversed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradient, None


def reverse_gradient(x: Tensor, weight: float) -> Tensor:
    """Return x; gradients that come back through it are multiplied by ``-weight``."""
    return _ReverseGradient.apply(x, weight)


class _Training(nn.Module):
    """The network and its discriminator."""

    def __init__(self, network: PriorNetwork, settings: FitSettings) -> None:
        super().__init__()
        self.network, self.settings = network, settings
        latent = 2 * network.latent
        n = len(network.members)
        self.discriminators = nn.ModuleList(
            nn.Sequential(nn.Linear(latent, 32), nn.SiLU(), nn.Linear(32, 1)) for _ in range(n)
        )

    def loss(self, batch: _Batch, share: float) -> Tensor:
        """Return the loss of a batch at a share of the training."""
        settings, scale = self.settings, self.network.offset_std
        found = self.network(batch.inputs)
        known = torch.isfinite(batch.target)
        target = torch.where(known, batch.target, torch.zeros(()))
        noise = torch.where(known, batch.variance, torch.ones(()))
        losses = negative_log_likelihood(
            (found.offset - target) / scale, torch.exp(found.log_variance) / scale**2, noise / scale**2,
            loss=settings.loss, beta=settings.beta if share >= settings.warm_up else 1.0,
        )  # fmt: skip
        total = losses[:, known].mean()
        if settings.ranking > 0 and int(known.sum()) > 1:
            total = total + settings.ranking * ranking_loss(found.offset[:, known] / scale, target[known] / scale)
        if settings.adversarial > 0:
            total = total + self._adversarial(found, batch.survey, share)
        return total

    def _adversarial(self, found: PriorOutput, survey: Tensor, share: float) -> Tensor:
        weight = self.settings.adversarial * min(1.0, 2 * share)
        logits = [
            one(reverse_gradient(latent, weight)).squeeze(-1)
            for one, latent in zip(self.discriminators, found.latent, strict=True)
        ]
        balance = survey.mean().clamp(0.05, 0.95)
        weights = torch.where(survey > 0.5, 0.5 / balance, 0.5 / (1 - balance))
        return nn.functional.binary_cross_entropy_with_logits(
            torch.stack(logits), survey.expand(len(logits), -1), weights.expand(len(logits), -1)
        )


def negative_log_likelihood(
    residual: Tensor, variance: Tensor, noise: Tensor, *, loss: str = "gaussian", beta: float = 0.0
) -> Tensor:
    """Return -ln likelihood of residuals whose variance is ``variance + noise``, weighted by that of the beta-NLL."""
    total = variance + noise + 1e-8
    square = residual.square() / total
    if loss == "student":
        dof = 4.0
        square = (dof + 1) * torch.log1p(square / dof)
    nll = 0.5 * (square + torch.log(total))
    return nll * total.detach().pow(beta) if beta else nll


def ranking_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return a smooth surrogate of the share of pairs in the wrong order.

    The softplus of the negative margin ``(predicted_i - predicted_j) sign(target_i - target_j)``, for neighbours in a
    random order: batches are shuffled.
    """
    margin = (predicted - predicted.roll(1, dims=-1)) * torch.sign(target - target.roll(1, dims=-1))
    return _RANK_SCALE * nn.functional.softplus(-margin / _RANK_SCALE).mean()


def drop_inputs(arrays: PriorArrays, settings: FitSettings, rng: np.random.Generator) -> PriorArrays:
    """Return inputs with telemetry, memory, stars and images withheld at random."""
    n, t = arrays.telemetry.shape
    telemetry, memory = arrays.telemetry.copy(), arrays.memory.copy()
    history, stars = arrays.memory_telemetry.copy(), arrays.stars.copy()
    n_stars, image = arrays.n_stars.copy(), arrays.image.copy()
    gaps = (rng.random((n, t)) < 0.3) & (rng.random((n, 1)) < 1 / 3)
    without = rng.random((n,)) < settings.drop_telemetry
    telemetry[gaps | without[:, None]] = np.nan
    history[without] = np.nan
    # A channel in a long outage is also absent from the memory.
    history[np.broadcast_to((gaps & (rng.random((n, 1)) < 0.3))[:, None], history.shape)] = np.nan
    blank = rng.random((n,)) < settings.drop_memory
    memory[blank] = history[blank] = np.nan
    k = memory.shape[1]
    if k > 1:
        late = np.flatnonzero(~blank & (rng.random((n,)) < settings.drop_memory))
        for row, first in zip(late, rng.integers(1, k, len(late)), strict=True):
            memory[row], history[row] = _shifted(memory[row], first), _shifted(history[row], first)
    memory = degrade_memory(memory, settings.degrade_memory, rng)
    hidden = rng.random((n,)) < settings.drop_stars
    stars[hidden], n_stars[hidden] = np.nan, 0
    image[rng.random((n,)) < settings.drop_image] = np.nan
    return PriorArrays(telemetry, memory, history, stars, n_stars, image, arrays.nominal)


def degrade_memory(memory: npt.NDArray[Any], share: float, rng: np.random.Generator) -> npt.NDArray[Any]:
    """Return a memory (n, K, 3) that is noisier for a share of the exposures, with a few wrong values.

    Noise is drawn for runs of entries, as the exposures of one field are alike, and their errors include it. Wrong
    values, those of a variable or blended star, have no larger error.
    """
    n, k, _ = memory.shape
    out = memory.copy()
    if share <= 0 or k == 0:
        return out
    run: npt.NDArray[np.int64] = np.cumsum(rng.random((n, k)) < 1 / _RUN, axis=1, dtype=np.int64)
    log_size = rng.uniform(np.log(_DEGRADED[0]), np.log(_DEGRADED[1]), (n, k + 1))
    size = np.exp(np.take_along_axis(log_size, run, axis=1))
    size *= (rng.random((n, k + 1)) < 0.7)[np.arange(n)[:, None], run] * (rng.random((n, 1)) < share)
    wrong = (rng.random((n, k)) < _WRONG) & (size > _DEGRADED[1] / 3)
    out[..., 0] += size * rng.standard_normal((n, k)) + np.where(wrong, _WRONG_SIZE * rng.standard_normal((n, k)), 0.0)
    out[..., 1] = np.hypot(out[..., 1], size)
    return out


def _shifted(rows: npt.NDArray[Any], first: int) -> npt.NDArray[Any]:
    """Return rows from `first` on, padded with NaN at the end."""
    out = np.full_like(rows, np.nan)
    out[: len(rows) - first] = rows[first:]
    return out


def fit_prior(
    network: PriorNetwork,
    inputs: PriorInputs | PriorArrays,
    target: npt.ArrayLike,
    *,
    target_sigma: npt.ArrayLike | None = None,
    validation: tuple[PriorInputs | PriorArrays, npt.ArrayLike] | None = None,
    validation_sigma: npt.ArrayLike | None = None,
    survey: npt.ArrayLike | None = None,
    settings: FitSettings = FitSettings(),
    folder: Path | None = None,
    identity: dict[str, Any] | None = None,
    on_progress: Callable[[str], None] = log.info,
) -> list[dict[str, float]]:
    """Train a prior in place, and calibrate its sigma.

    Parameters
    ----------
    network : PriorNetwork
    inputs : PriorInputs or PriorArrays
        Of n training exposures.
    target : array (n,)
        Zero points [mag], or with `PriorArrays` zero points minus nominal. NaN: the exposure only teaches the
        discriminator.
    target_sigma : array (n,), optional
        Errors of the targets [mag]; by default 0.
    validation : pair of inputs and targets, optional
        Later exposures, for the log and the calibration of sigma; by default the training exposures.
    validation_sigma : array, optional
    survey : array (n,) of 0 and 1, optional
        For the discriminator.
    settings : FitSettings
    folder : Path, optional
        Of the training, which is resumed if it is there; by default temporary.
    identity : dict, optional
        What decides the exposures: a training is only resumed under the same.
    announce : callable
        Receives a line an epoch.

    Returns
    -------
    list of dict
        The log: training loss, and ``rmse``, ``nll`` and ``score`` on the validation exposures.
    """
    arrays, offset = _laid_out(network, inputs, target)
    noise = np.zeros(len(offset)) if target_sigma is None else np.asarray(target_sigma, dtype=float)
    labels = np.zeros(len(offset)) if survey is None else np.asarray(survey, dtype=float)
    checked, checked_offset = _laid_out(network, *validation) if validation else (arrays, offset)
    checked_noise = np.zeros(len(checked_offset))
    if validation is None:
        checked_noise = noise
    elif validation_sigma is not None:
        checked_noise = np.asarray(validation_sigma, dtype=float)
    network.normalise_by(arrays, offset)
    model = _Training(network, settings)
    state = {"epoch": 0}

    def batches(epoch: int) -> Iterable[_Batch]:
        state["epoch"] = epoch
        rng = np.random.default_rng([settings.seed, epoch])
        dropped = drop_inputs(arrays, settings, rng)
        order = rng.permutation(len(offset))
        for start in range(0, len(order), settings.batch):
            some = order[start : start + settings.batch]
            if len(some) < 2:
                continue
            yield _Batch(
                PriorTensors.from_arrays(dropped.take(some)), _tensor(offset[some]), _tensor(noise[some] ** 2),
                _tensor(labels[some]),
            )  # fmt: skip

    learner = Learner(
        model,
        batches=batches,
        steps=max(1, -(-len(offset) // settings.batch)),
        loss=lambda one, batch: one.loss(batch, state["epoch"] / settings.epochs),  # type: ignore[operator]
        validate=lambda one: scores(one.network, checked, checked_offset, checked_noise),  # type: ignore[arg-type]
        identity={"settings": asdict(settings), **(identity or {})},
    )
    with tempfile.TemporaryDirectory() as scratch:
        history = train(
            learner, settings.schedule, folder or Path(scratch), device=torch.device("cpu"), on_progress=on_progress
        )
    network.eval()
    degraded = degrade_memory(checked.memory, settings.degrade_memory, np.random.default_rng(settings.seed))
    calibrate(network, replace(checked, memory=degraded), checked_offset, checked_noise)
    return history


def _laid_out(
    network: PriorNetwork, inputs: PriorInputs | PriorArrays, target: npt.ArrayLike
) -> tuple[PriorArrays, npt.NDArray[np.float64]]:
    values = np.asarray(target, dtype=float)
    if isinstance(inputs, PriorArrays):
        return inputs, values
    return prior_arrays(inputs, network.telemetry, memory=network.memory), values - inputs.nominal


def _tensor(values: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def predict_offsets(network: PriorNetwork, arrays: PriorArrays) -> tuple[npt.NDArray[np.float64], ...]:
    """Return offsets from nominal (n,) and their sigmas (n,) [mag]."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(arrays), 2048):
            some = PriorTensors.from_arrays(arrays.take(slice(start, start + 2048)))
            parts.append([one.double().numpy() for one in network.predict(some)])
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def scores(
    network: PriorNetwork, arrays: PriorArrays, offset: npt.NDArray[Any], noise: npt.NDArray[Any]
) -> dict[str, float]:
    """Return the root mean square error [mag], the negative log-likelihood and the score of known zero points."""
    mean, sigma = predict_offsets(network, arrays)
    known = np.isfinite(offset) & np.isfinite(noise)
    residual, total = (mean - offset)[known], np.hypot(sigma, noise)[known]
    nll = float(np.mean(0.5 * np.minimum((residual / total) ** 2, 25) + np.log(total)))
    return {"rmse": float(np.sqrt(np.mean(residual**2))), "nll": nll, "score": -nll}


def calibrate(network: PriorNetwork, arrays: PriorArrays, offset: npt.NDArray[Any], noise: npt.NDArray[Any]) -> None:
    """Set factors on sigma, without and with memory: 68 % of the targets are then within one sigma of both errors."""
    network.log_scale.zero_()
    blank = np.full_like(arrays.memory, np.nan)
    for k, memory in enumerate((blank, arrays.memory)):
        known = np.isfinite(offset) & np.isfinite(noise)
        if k:
            known &= np.isfinite(memory).all(axis=-1).any(axis=-1)
        if known.sum() < 30:
            continue
        history = np.full_like(arrays.memory_telemetry, np.nan) if k == 0 else arrays.memory_telemetry
        some = PriorArrays(**{**vars(arrays), "memory": memory, "memory_telemetry": history}).take(known)
        mean, sigma = predict_offsets(network, some)
        size, own = np.abs(mean - offset[known]), noise[known]
        clear = own <= np.median(sigma)
        if clear.sum() >= _FEWEST:
            size, sigma, own = size[clear], sigma[clear], own[clear]
        network.log_scale[k] = float(np.log(_factor(size, sigma, own)))


def _factor(size: npt.NDArray[Any], sigma: npt.NDArray[Any], noise: npt.NDArray[Any]) -> float:
    """Return the factor f for which 68 % of |residual| are within ``hypot(f sigma, noise)``, by bisection."""
    low, high = 0.3, 4.0
    for _ in range(40):
        middle = np.sqrt(low * high)
        if (size <= np.hypot(middle * sigma, noise)).mean() < WITHIN_ONE_SIGMA:
            low = middle
        else:
            high = middle
    return float(np.sqrt(low * high))
