"""Train a prior of the zero point, and calibrate its sigma.

The loss is the likelihood of the solved zero points. Their own errors are added to the network's variance, so that
sigma is that of the true zero point. A smooth surrogate of the ranking penalty is added and, with two surveys, a
discriminator whose gradient is reversed on the latents (Ganin & Lempitsky 2015). In every batch, telemetry, memory,
stars and images are withheld at random (`csstdask.training.zeropoint.augmentation`).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from csstdask.nn.trainer import Learner, Schedule, train
from csstdask.numerics.probability import WITHIN_ONE_SIGMA
from csstdask.training.zeropoint.augmentation import degrade_memory, drop_inputs
from csstdask.training.zeropoint.losses import negative_log_likelihood, ranking_loss, reverse_gradient
from csstdask.zeropoint.prior import PriorArrays, PriorInputs, prior_arrays
from csstdask.zeropoint.prior.network import PriorNetwork, PriorOutput, PriorTensors

log = logging.getLogger("csstdask")

_MIN_PRECISE = 100
"""Smallest number of exposures with small errors for which the calibration uses only these."""
_MIN_FOR_CALIBRATION = 30
"""Smallest number of exposures from which sigma is calibrated."""
_MAX_Z2 = 25.0
"""Limit of squared standardised residuals in the validation score."""
_BATCH_SIZE = 2048
"""Exposures per evaluation of the network."""


@dataclass(frozen=True)
class FitSettings:
    """Settings of the training of a prior."""

    epochs: int = 60
    batch: int = 256
    """Exposures per batch."""
    learning_rate: float = 3e-3
    least_rate: float = 0.02
    """Final learning rate, as a fraction of the largest."""
    weight_decay: float = 1e-3
    loss: Literal["gaussian", "student"] = "gaussian"
    """Likelihood; ``student`` has four degrees of freedom, for zero points with outliers (clouds)."""
    beta: float = 0.0
    """Exponent of the beta-NLL (Seitzer et al. 2022): 0 is the likelihood, 1 weights all residuals equally. Above 0
    the few exposures without memory outweigh all others, and the covariance of the process becomes theirs."""
    warm_up: float = 0.05
    """Initial fraction of the training in which residuals are weighted equally."""
    ranking: float = 0.1
    """Weight of the ranking surrogate."""
    adversarial: float = 0.0
    """Weight of the reversed gradient of the survey discriminator; 0: none."""
    drop_telemetry: float = 0.05
    """Fraction of exposures without any telemetry; a third of the others lacks some."""
    drop_memory: float = 0.1
    """Fraction of exposures without memory; for as many again the newest entries are withheld."""
    degrade_memory: float = 0.0
    """Fraction of exposures whose memory is made as noisy as that of sparse fields. Targets of sparse fields are too
    noisy themselves to learn how far such a memory can be trusted."""
    drop_stars: float = 0.2
    """Fraction of exposures without stars."""
    drop_image: float = 0.2
    """Fraction of exposures without an image."""
    keep: Literal["best", "last"] = "last"
    """Epoch whose weights are kept."""
    seed: int = 20261130

    @property
    def schedule(self) -> Schedule:
        """Schedule of the trainer."""
        return Schedule(
            epochs=self.epochs, learning_rate=self.learning_rate, warm_up=1.0, least_rate=self.least_rate,
            weight_decay=self.weight_decay, patience=self.epochs, keep=self.keep, clip_norm=5.0,
            precision="float32", seed=self.seed,
        )  # fmt: skip


@dataclass(frozen=True)
class _Batch:
    """Training exposures (n,); targets in mag, NaN where unknown."""

    inputs: PriorTensors
    target: Tensor
    variance: Tensor
    survey: Tensor


class _Training(nn.Module):
    """A network with a discriminator of the survey for each member."""

    def __init__(self, network: PriorNetwork, settings: FitSettings) -> None:
        super().__init__()
        self.network, self.settings = network, settings
        self.discriminators = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * network.latent, 32), nn.SiLU(), nn.Linear(32, 1)) for _ in network.members
        )

    def loss(self, batch: _Batch, progress: float) -> Tensor:
        """Return the loss of a batch; `progress` is the fraction of the training that is done."""
        settings, scale = self.settings, self.network.offset_std
        output = self.network(batch.inputs)
        known = torch.isfinite(batch.target)
        target = torch.where(known, batch.target, torch.zeros(()))
        noise = torch.where(known, batch.variance, torch.ones(()))
        losses = negative_log_likelihood(
            (output.offset - target) / scale, torch.exp(output.log_variance) / scale**2, noise / scale**2,
            loss=settings.loss, beta=settings.beta if progress >= settings.warm_up else 1.0,
        )  # fmt: skip
        total = losses[:, known].mean()
        if settings.ranking > 0 and int(known.sum()) > 1:
            total = total + settings.ranking * ranking_loss(output.offset[:, known] / scale, target[known] / scale)
        if settings.adversarial > 0:
            total = total + self._adversarial_loss(output, batch.survey, progress)
        return total

    def _adversarial_loss(self, output: PriorOutput, survey: Tensor, progress: float) -> Tensor:
        """Return the cross-entropy of the discriminators, whose gradient is reversed on the latents."""
        weight = self.settings.adversarial * min(1.0, 2 * progress)
        logits = [
            discriminator(reverse_gradient(latent, weight)).squeeze(-1)
            for discriminator, latent in zip(self.discriminators, output.latent, strict=True)
        ]
        balance = survey.mean().clamp(0.05, 0.95)
        weights = torch.where(survey > 0.5, 0.5 / balance, 0.5 / (1 - balance))
        return nn.functional.binary_cross_entropy_with_logits(
            torch.stack(logits), survey.expand(len(logits), -1), weights.expand(len(logits), -1)
        )


@dataclass(frozen=True)
class _ExampleSet:
    """Exposures with their targets."""

    arrays: PriorArrays
    offset: npt.NDArray[np.float64]
    """(n,) Zero points minus nominal [mag]; NaN where unknown."""
    noise: npt.NDArray[np.float64]
    """(n,) Errors of the targets [mag]."""

    def __len__(self) -> int:
        return len(self.offset)

    @classmethod
    def from_inputs(
        cls, network: PriorNetwork, inputs: PriorInputs | PriorArrays, target: npt.ArrayLike,
        sigma: npt.ArrayLike | None = None,
    ) -> _ExampleSet:  # fmt: skip
        """Arrange inputs for a network, and subtract nominal zero points from the targets of `PriorInputs`."""
        offset = np.asarray(target, dtype=float)
        if isinstance(inputs, PriorInputs):
            offset = offset - inputs.nominal
            inputs = prior_arrays(inputs, network.telemetry, memory=network.memory)
        return cls(inputs, offset, np.zeros(len(offset)) if sigma is None else np.asarray(sigma, dtype=float))


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
        Network to train.
    inputs : PriorInputs or PriorArrays
        Inputs of n training exposures.
    target : array-like (n,)
        Zero points [mag], or with `PriorArrays` zero points minus nominal. Exposures with NaN are used by the
        discriminator only.
    target_sigma : array-like (n,), optional
        Errors of the targets [mag]; by default 0.
    validation : pair of inputs and targets, optional
        Later exposures, for the log and the calibration of sigma; by default the training exposures.
    validation_sigma : array-like, optional
        Errors of the validation targets [mag]; by default 0.
    survey : array-like (n,), optional
        Survey of each exposure, 0 or 1, for the discriminator.
    settings : FitSettings
        Settings of the training.
    folder : Path, optional
        Folder of the training. An existing training is resumed; by default the folder is temporary.
    identity : dict, optional
        Everything that decides the exposures: a training is resumed only if it is equal.
    announce : callable
        Receives one line per epoch.

    Returns
    -------
    list of dict
        Log of the epochs: training loss, and ``rmse``, ``nll`` and ``score`` on the validation exposures.
    """
    train_set = _ExampleSet.from_inputs(network, inputs, target, target_sigma)
    checked = train_set
    if validation is not None:
        checked = _ExampleSet.from_inputs(network, *validation, validation_sigma)
    labels = np.zeros(len(train_set)) if survey is None else np.asarray(survey, dtype=float)
    network.normalise_by(train_set.arrays, train_set.offset)
    model = _Training(network, settings)
    state = {"epoch": 0}

    def batches(epoch: int) -> Iterable[_Batch]:
        state["epoch"] = epoch
        return _batches(train_set, labels, settings, epoch)

    learner = Learner(
        model,
        batches=batches,
        steps=max(1, -(-len(train_set) // settings.batch)),
        loss=lambda training, batch: training.loss(batch, state["epoch"] / settings.epochs),  # type: ignore[operator]
        validate=lambda training: scores(training.network, checked.arrays, checked.offset, checked.noise),  # type: ignore[arg-type]
        identity={"settings": asdict(settings), **(identity or {})},
    )
    with tempfile.TemporaryDirectory() as scratch:
        history = train(
            learner, settings.schedule, folder or Path(scratch), device=torch.device("cpu"), on_progress=on_progress
        )
    network.eval()
    degraded = degrade_memory(checked.arrays.memory, settings.degrade_memory, np.random.default_rng(settings.seed))
    calibrate(network, replace(checked.arrays, memory=degraded), checked.offset, checked.noise)
    return history


def _batches(
    train_set: _ExampleSet, labels: npt.NDArray[np.float64], settings: FitSettings, epoch: int
) -> Iterator[_Batch]:
    """Yield the batches of an epoch, in random order and with inputs withheld at random."""
    rng = np.random.default_rng([settings.seed, epoch])
    dropped = drop_inputs(train_set.arrays, settings, rng)
    order = rng.permutation(len(train_set))
    for start in range(0, len(order), settings.batch):
        rows = order[start : start + settings.batch]
        if len(rows) < 2:
            continue
        yield _Batch(
            PriorTensors.from_arrays(dropped.take(rows)), _tensor(train_set.offset[rows]),
            _tensor(train_set.noise[rows] ** 2), _tensor(labels[rows]),
        )  # fmt: skip


def _tensor(values: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def predict_offsets(network: PriorNetwork, arrays: PriorArrays) -> tuple[npt.NDArray[np.float64], ...]:
    """Return offsets from nominal and their sigmas, float64 arrays (n,) [mag]."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(arrays), _BATCH_SIZE):
            batch = PriorTensors.from_arrays(arrays.take(slice(start, start + _BATCH_SIZE)))
            parts.append([tensor.double().numpy() for tensor in network.predict(batch)])
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def scores(
    network: PriorNetwork, arrays: PriorArrays, offset: npt.NDArray[Any], noise: npt.NDArray[Any]
) -> dict[str, float]:
    """Return ``rmse`` [mag], ``nll`` (negative log-likelihood) and ``score`` for exposures with a target."""
    mean, sigma = predict_offsets(network, arrays)
    known = np.isfinite(offset) & np.isfinite(noise)
    residual, total = (mean - offset)[known], np.hypot(sigma, noise)[known]
    nll = float(np.mean(0.5 * np.minimum((residual / total) ** 2, _MAX_Z2) + np.log(total)))
    return {"rmse": float(np.sqrt(np.mean(residual**2))), "nll": nll, "score": -nll}


def calibrate(network: PriorNetwork, arrays: PriorArrays, offset: npt.NDArray[Any], noise: npt.NDArray[Any]) -> None:
    """Set the factors on sigma, without and with memory, so that one sigma covers 68 % of the targets.

    Parameters
    ----------
    network : PriorNetwork
        Network to calibrate; its ``log_scale`` is modified.
    arrays : PriorArrays
        Inputs of n exposures.
    offset, noise : array (n,)
        Zero points minus nominal, and their errors [mag].
    """
    network.log_scale.zero_()
    no_memory = np.full_like(arrays.memory, np.nan)
    for k, memory in enumerate((no_memory, arrays.memory)):
        known = np.isfinite(offset) & np.isfinite(noise)
        if k:
            known &= np.isfinite(memory).all(axis=-1).any(axis=-1)
        if known.sum() < _MIN_FOR_CALIBRATION:
            continue
        history = np.full_like(arrays.memory_telemetry, np.nan) if k == 0 else arrays.memory_telemetry
        subset = replace(arrays, memory=memory, memory_telemetry=history).take(known)
        mean, sigma = predict_offsets(network, subset)
        size, target_sigma = np.abs(mean - offset[known]), noise[known]
        precise = target_sigma <= np.median(sigma)
        if precise.sum() >= _MIN_PRECISE:
            size, sigma, target_sigma = size[precise], sigma[precise], target_sigma[precise]
        network.log_scale[k] = float(np.log(_calibration_factor(size, sigma, target_sigma)))


def _calibration_factor(size: npt.NDArray[Any], sigma: npt.NDArray[Any], noise: npt.NDArray[Any]) -> float:
    """Return the factor f for which 68 % of the residuals are within ``hypot(f sigma, noise)``, by bisection."""
    low, high = 0.3, 4.0
    for _ in range(40):
        middle = np.sqrt(low * high)
        if (size <= np.hypot(middle * sigma, noise)).mean() < WITHIN_ONE_SIGMA:
            low = middle
        else:
            high = middle
    return float(np.sqrt(low * high))
