"""One small trainer for all networks: cosine schedule, early stop, checkpoints, resume, a log a person can plot.

A training is a folder. ``log.csv`` has a line an epoch (``pandas.read_csv(...).plot("epoch")``),
``checkpoint.safetensors`` and ``checkpoint.json`` hold everything that the next epoch needs, ``best.safetensors``
the weights with the best score so far. A training that is killed and started again goes on with the epoch it
was in, and ends with the weights of one that was never killed: batches are a function of (seed, epoch) alone.
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
    """How long and how fast to learn."""

    epochs: int = 60
    learning_rate: float = 2e-3
    """At its highest, after the warm-up."""
    warm_up: float = 1.0
    """Epochs in which the rate rises linearly."""
    least_rate: float = 0.0
    """What is left of the rate at the end, as a share of its highest."""
    weight_decay: float = 1e-4
    freeze_norm: float = 1.0
    """Share of the epochs after which batch normalisation uses what it has gathered, and gathers no more."""
    patience: int = 20
    """Epochs without a better score after which to stop, where the best are kept."""
    keep: Keep = "best"
    """Which weights: of the epoch with the best score, or the last, where a score is noisier than what is learnt."""
    clip_norm: float = 1.0
    """Of the gradient."""
    precision: TrainingPrecision = "bfloat16"
    seed: int = 1

    def rate(self, epoch: float) -> float:
        """Return the learning rate at a moment, in epochs: linear warm-up, then a cosine to its least."""
        if epoch < self.warm_up:
            return self.learning_rate * (epoch + 1e-3) / self.warm_up
        past = (epoch - self.warm_up) / max(1e-9, self.epochs - self.warm_up)
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, past)))
        return self.learning_rate * (self.least_rate + (1 - self.least_rate) * fall)


@dataclass(frozen=True)
class Learner(Generic[Batch]):
    """What is to be learnt: a network, its examples, what counts as wrong and what as good."""

    network: nn.Module
    batches: Callable[[int], Iterable[Batch]]
    """Batches of an epoch: a function of the epoch alone."""
    steps: int
    """Batches in an epoch."""
    loss: Callable[[nn.Module, Batch], Tensor]
    validate: Callable[[nn.Module], dict[str, float]]
    """Numbers for the log; ``score`` is the one to maximise."""
    identity: dict[str, Any] = field(default_factory=dict)
    """What decides the batches and the score: a training is gone on with only under the same."""


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
    """Train a network, or go on with a training.

    Parameters
    ----------
    learner : Learner
    schedule : Schedule
    folder : Path
        Of the training.
    device : torch.device
    announce : callable
        Told in a line how each epoch went.

    Returns
    -------
    list of dict
        The log, an epoch an item. The network holds the weights of the best epoch, or of the last.

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
        on_progress(f"going on with epoch {state.epoch} of the training in {folder}")
    to_the_end = schedule.keep == "last"
    while state.epoch < schedule.epochs and (to_the_end or state.epoch - state.best_epoch <= schedule.patience):
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
        _keep(folder, _identity(learner, schedule), network, optimiser, state)
        on_progress(", ".join(f"{name} {value:.4g}" for name, value in line.items()))
    if not to_the_end:
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


def _keep(
    folder: Path, identity: dict[str, Any], network: nn.Module, optimiser: torch.optim.Optimizer, state: _State
) -> None:
    """Write the checkpoint: tensors under a name of their epoch first, then the JSON that points at them."""
    tensors = {f"network.{name}": value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    for index, values in optimiser.state_dict()["state"].items():
        for name, value in values.items():
            tensors[f"optimiser.{index}.{name}"] = torch.as_tensor(value).detach().cpu().contiguous().clone()
    name = f"checkpoint-{state.epoch:04d}.safetensors"
    write_atomic(folder / name, save(tensors))
    facts = {"tensors": name, "identity": identity, **asdict(state)}
    write_atomic(folder / "checkpoint.json", json.dumps(facts).encode())
    write_atomic(folder / "log.csv", _as_csv(state.history).encode())
    for old in folder.glob("checkpoint-*.safetensors"):
        if old.name != name:
            old.unlink()


def _resume(folder: Path, identity: dict[str, Any], network: nn.Module, optimiser: torch.optim.Optimizer) -> _State:
    path = folder / "checkpoint.json"
    if not path.exists():
        return _State()
    facts = json.loads(path.read_text(encoding="utf-8"))
    if facts["identity"] != identity:
        raise InputError(
            folder, "a training with another schedule, network or examples", "a new folder, or the same settings"
        )
    tensors = load_file(folder / facts["tensors"])
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
    return _State(facts["epoch"], facts["best"], facts["best_epoch"], facts["history"])


def _as_csv(history: list[dict[str, float]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(history[0]))
    writer.writeheader()
    writer.writerows(history)
    return stream.getvalue()
