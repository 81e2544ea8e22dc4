"""Trainer of all networks: cosine schedule, early stopping, checkpoints and a log.

A training is a folder. ``log.csv`` has one line per epoch (``pandas.read_csv(...).plot("epoch")``).
``checkpoint-<epoch>.safetensors`` and ``checkpoint.json`` hold everything that the next epoch needs, and
``best.safetensors`` the weights with the best score so far. An interrupted training resumes with the epoch in which it
stopped and ends with the same weights as an uninterrupted one, because batches only depend on seed and epoch.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from csstdask.core.atomic_io import write_atomic
from csstdask.core.errors import InputError
from csstdask.nn.device import TrainingPrecision, autocast
from csstdask.nn.weights import save_weights

log = logging.getLogger("csstdask")

Batch = TypeVar("Batch")
Keep = Literal["best", "last"]


@dataclass(frozen=True)
class Schedule:
    """Number of epochs, learning rate and other settings of the optimisation."""

    epochs: int = 60
    learning_rate: float = 2e-3
    """Peak learning rate, after the warm-up."""
    warm_up: float = 1.0
    """Number of epochs in which the rate rises linearly."""
    least_rate: float = 0.0
    """Final learning rate, as a fraction of the peak."""
    weight_decay: float = 1e-4
    freeze_norm: float = 1.0
    """Fraction of the epochs after which the statistics of batch normalisation are frozen."""
    patience: int = 20
    """Number of epochs without a better score after which a training stops, if it keeps the best weights."""
    keep: Keep = "best"
    """Weights to keep: those of the epoch with the best score, or of the last epoch if scores are noisy."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    precision: TrainingPrecision = "bfloat16"
    seed: int = 1

    def rate(self, epoch: float) -> float:
        """Return the learning rate at a (fractional) epoch: linear warm-up, then a cosine to the final rate."""
        if epoch < self.warm_up:
            return self.learning_rate * (epoch + 1e-3) / self.warm_up
        past = (epoch - self.warm_up) / max(1e-9, self.epochs - self.warm_up)
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, past)))
        return self.learning_rate * (self.least_rate + (1 - self.least_rate) * fall)


@dataclass(frozen=True)
class Learner(Generic[Batch]):
    """A network with its examples, loss and validation score."""

    network: nn.Module
    batches: Callable[[int], Iterable[Batch]]
    """Returns the batches of an epoch, which only depend on the epoch."""
    steps: int
    """Number of batches per epoch."""
    loss: Callable[[nn.Module, Batch], Tensor]
    validate: Callable[[nn.Module], dict[str, float]]
    """Returns numbers for the log; ``score`` is maximised."""
    identity: dict[str, Any] = field(default_factory=dict)
    """Everything that decides batches and score; a training only resumes with the same identity."""


@dataclass
class _State:
    epoch: int = 0
    best: float = -math.inf
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)


def train(
    learner: Learner[Any],
    schedule: Schedule,
    folder: Path,
    *,
    device: torch.device,
    on_progress: Callable[[str], None] = log.info,
) -> list[dict[str, float]]:
    """Train a network, or resume its training.

    Parameters
    ----------
    learner : Learner
    schedule : Schedule
    folder : Path
        Folder of the training.
    device : torch.device
    announce : callable
        Called with one line of text per epoch.

    Returns
    -------
    list of dict
        The log, one item per epoch. The network holds the weights of the best epoch, or of the last.

    Raises
    ------
    InputError
        If the folder holds a training with another schedule, network or examples.
    """
    torch.manual_seed(schedule.seed)
    network = learner.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), lr=schedule.rate(0), weight_decay=schedule.weight_decay)
    state = _resume(folder, _identity(learner, schedule), network, optimiser)
    if state.epoch:
        on_progress(f"resuming the training in {folder} at epoch {state.epoch}")
    keep_last = schedule.keep == "last"
    while state.epoch < schedule.epochs and (keep_last or state.epoch - state.best_epoch <= schedule.patience):
        start = time.perf_counter()
        torch.manual_seed(schedule.seed + 1000 * (state.epoch + 1))
        mean_loss = _one_epoch(learner, network, optimiser, schedule, state.epoch, device)
        network.eval()
        with torch.inference_mode():
            metrics = learner.validate(network)
        took = time.perf_counter() - start
        line = {"epoch": state.epoch, "seconds": round(took, 1), "loss": mean_loss, **metrics}
        state.history.append(line)
        if metrics["score"] > state.best:
            state.best, state.best_epoch = metrics["score"], state.epoch
            save_weights(network, folder / "best.safetensors")
        state.epoch += 1
        _write_checkpoint(folder, _identity(learner, schedule), network, optimiser, state)
        on_progress(", ".join(f"{name} {value:.4g}" for name, value in line.items()))
    if not keep_last:
        network.load_state_dict(load_file(folder / "best.safetensors"))
    return state.history


def _one_epoch(
    learner: Learner[Any],
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    schedule: Schedule,
    epoch: int,
    device: torch.device,
) -> float:
    network.train()
    if epoch >= schedule.freeze_norm * schedule.epochs:
        for part in network.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                part.eval()
    total, count = 0.0, 0
    for step, batch in enumerate(learner.batches(epoch)):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(epoch + step / learner.steps)
        optimiser.zero_grad(set_to_none=True)
        with autocast(device, schedule.precision):
            loss = learner.loss(network, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), schedule.clip_norm)
        optimiser.step()
        total, count = total + float(loss.detach()), count + 1
    return total / max(1, count)


def _identity(learner: Learner[Any], schedule: Schedule) -> dict[str, Any]:
    shapes = {name: list(value.shape) for name, value in learner.network.state_dict().items()}
    return {"schedule": asdict(schedule), "network": shapes, "examples": learner.identity}


def _write_checkpoint(
    folder: Path, identity: dict[str, Any], network: nn.Module, optimiser: torch.optim.Optimizer, state: _State
) -> None:
    """Write the checkpoint: first the tensors, in a file named by the epoch, then the JSON that refers to them."""
    tensors = {f"network.{name}": value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    for index, values in optimiser.state_dict()["state"].items():
        for name, value in values.items():
            tensors[f"optimiser.{index}.{name}"] = torch.as_tensor(value).detach().cpu().contiguous().clone()
    name = f"checkpoint-{state.epoch:04d}.safetensors"
    write_atomic(folder / name, save(tensors))
    checkpoint = {"tensors": name, "identity": identity, **asdict(state)}
    write_atomic(folder / "checkpoint.json", json.dumps(checkpoint).encode())
    write_atomic(folder / "log.csv", _as_csv(state.history).encode())
    for old in folder.glob("checkpoint-*.safetensors"):
        if old.name != name:
            old.unlink()


def _resume(folder: Path, identity: dict[str, Any], network: nn.Module, optimiser: torch.optim.Optimizer) -> _State:
    path = folder / "checkpoint.json"
    if not path.exists():
        return _State()
    checkpoint = json.loads(path.read_text(encoding="utf-8"))
    if checkpoint["identity"] != identity:
        raise InputError(
            folder, "a training with another schedule, network or examples", "a new folder, or the same settings"
        )
    tensors = load_file(folder / checkpoint["tensors"])
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "optimiser": {}}
    for name, value in tensors.items():
        part, rest = name.split(".", maxsplit=1)
        parts[part][rest] = value
    network.load_state_dict(parts["network"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in parts["optimiser"].items():
        index, key = name.split(".", maxsplit=1)
        moments.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    return _State(checkpoint["epoch"], checkpoint["best"], checkpoint["best_epoch"], checkpoint["history"])


def _as_csv(history: list[dict[str, float]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(history[0]))
    writer.writeheader()
    writer.writerows(history)
    return stream.getvalue()
