"""Training of the cosmic-ray U-Net: ``csstdask train cosmicray``.

Examples are drawn by another process while the network learns from those of the epoch before; an epoch's
examples are a function of (seed, epoch), so that a training that was killed goes on as if it had not been.
At the end the network's output is calibrated and its threshold chosen, both on the validation split, and card
and weights are written beside each other: ``detect(..., model="that/folder/unet.json")`` uses them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from csstdask.cosmicray.examples import Examples, check_data, draw_examples, gather_material, joined
from csstdask.cosmicray.scoring import average_precision, calibrate, precision_recall
from csstdask.cosmicray.unet import CHANNELS, build_unet
from csstdask.mock.recipe import Split
from csstdask.nn.card import WEIGHTS_SUFFIX, ModelCard, write_card
from csstdask.nn.device import Precision, autocast, choose_device
from csstdask.nn.trainer import Learner, Schedule, train
from csstdask.nn.weights import save_weights
from csstdask.toml_file import read_toml, validated

log = logging.getLogger("csstdask")

#: Width of the real frames with truth [pixel].
_NARROWEST = 506


def _check_device(name: str | None) -> str | None:
    choose_device(name)
    return name


class TrainingConfig(BaseModel):
    """All settings of a training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "unet"
    version: str = "1"
    licence: str = "BSD-3-Clause"
    data: str | None = Field(None, description="folder of real events and frames; none: generated tracks alone")
    channels: tuple[int, ...] = Field((32, 64, 96), description="of each level, the finest first")
    stem: int = Field(2, ge=1, description="pixels folded into channels, along each axis")
    box: int = Field(128, ge=8, description="of the background mesh [pixel]")
    skies: int = Field(192, ge=1, description="mock skies")
    frames: int = Field(48, ge=1, description="drawn for an epoch")
    frame_size: int = Field(768, ge=128, description="[pixel]")
    patch: int = Field(256, ge=32, description="[pixel]")
    patches: int = Field(12, ge=1, description="cut from a frame")
    passes: int = Field(3, ge=1, description="over the patches of an epoch")
    batch: int = Field(16, ge=1)
    validation_frames: int = Field(24, ge=1)
    epochs: int = Field(26, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    patience: int = Field(20, ge=1)
    precision: Precision = Field("bfloat16", description="float32 or bfloat16")
    threads: int = Field(1, ge=1, description="of the network; examples are drawn on another core")
    device: Annotated[str | None, AfterValidator(_check_device)] = None
    seed: int = Field(20261121, ge=0)

    @model_validator(mode="after")
    def _sizes_agree(self) -> TrainingConfig:
        grid = self.stem * 2 ** (len(self.channels) - 1)
        if self.patch % grid:
            raise ValueError(f"patch = {self.patch} is no multiple of the network's grid, {grid}")
        if self.patch > min(self.frame_size, _NARROWEST):
            raise ValueError(f"patch = {self.patch} is larger than the frames, {min(self.frame_size, _NARROWEST)}")
        if self.batch > self.frames * self.patches:
            raise ValueError(f"batch = {self.batch} is more than the {self.frames * self.patches} patches of an epoch")
        return self

    @property
    def decisive(self) -> dict[str, Any]:
        """Return what decides the weights: a training is gone on with only under the same."""
        return self.model_dump(mode="json", exclude={"name", "version", "licence", "data", "device", "threads"})

    @property
    def schedule(self) -> Schedule:
        """Return how long and how fast to learn."""
        return Schedule(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            patience=self.patience,
            precision=self.precision,
            seed=self.seed,
        )


def load_training_config(path: Path | None, **changes: Any) -> TrainingConfig:
    """Read the settings of a training from a TOML file; `changes` that are not None win.

    Raises
    ------
    InputError
        Naming the file and every key that is unknown or wrong.
    """
    wanted = "settings of a training"
    fields = read_toml(path, wanted) if path is not None else {}
    fields |= {key: value for key, value in changes.items() if value is not None}
    config = validated(TrainingConfig, fields, str(path or "settings"), f"valid {wanted}")
    if config.data is not None:
        check_data(Path(config.data))
    return config


@cache
def _material(split: Split, seed: int, skies: int, data: str | None) -> Any:
    return gather_material(split, seed, skies, None if data is None else Path(data))


def draw_patches(config: TrainingConfig, split: Split, number: int, frames: int) -> Examples:
    """Draw the examples of an epoch, or of the validation: a function of its arguments.

    Parameters
    ----------
    config : TrainingConfig
    split : str
        ``training`` or ``validation``.
    number : int
        Of the epoch.
    frames : int
        How many to draw.
    """
    skies = config.skies if split == "training" else config.validation_frames
    material = _material(split, config.seed, skies, config.data)
    seeds = ((config.seed, 0 if split == "training" else 1, number, index) for index in range(frames))
    sizes = {"size": config.frame_size, "patch": config.patch, "count": config.patches, "box": config.box}
    return joined([draw_examples(seed, material, **sizes) for seed in seeds])


class _Feed:
    """Batches of examples, the next epoch's drawn while this one's are learnt from."""

    def __init__(self, config: TrainingConfig, pool: ProcessPoolExecutor) -> None:
        self.config, self.pool = config, pool
        self.drawn: dict[int, Future[Examples]] = {}

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        config = self.config
        for wanted in (epoch, epoch + 1):
            if wanted not in self.drawn and wanted < config.epochs:
                self.drawn[wanted] = self.pool.submit(draw_patches, config, "training", wanted, config.frames)
        examples = self.drawn.pop(epoch).result()
        rng = np.random.default_rng([config.seed, 2, epoch])
        for _ in range(config.passes):
            order = rng.permutation(len(examples.hit))
            mirror = bool(rng.integers(2))
            for first in range(0, len(order) - config.batch + 1, config.batch):
                yield as_batch(examples, order[first : first + config.batch], mirror=mirror)


def as_batch(
    examples: Examples, chosen: npt.NDArray[np.int64], *, mirror: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return channels, truth and weights of some patches as tensors, on request mirrored in x."""
    step = slice(None, None, -1 if mirror else 1)
    planes = (examples.channels[chosen], examples.hit[chosen, None], examples.weight[chosen, None])
    channels, hit, weight = (
        torch.from_numpy(np.ascontiguousarray(plane[..., step]).astype(np.float32)) for plane in planes
    )
    return channels.contiguous(memory_format=torch.channels_last), hit, weight


def weighted_loss(network: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return the binary cross-entropy, averaged with the pixels' weights."""
    channels, hit, weight = (part.to(next(network.parameters()).device, non_blocking=True) for part in batch)
    logit = network(channels).float()
    each = nn.functional.binary_cross_entropy_with_logits(logit, hit, reduction="none")
    return (each * weight).sum() / weight.sum().clamp(min=1)


def logits_of(
    network: nn.Module, examples: Examples, config: TrainingConfig, precision: Precision
) -> npt.NDArray[np.float32]:
    """Return a network's output for all pixels of some patches."""
    device = next(network.parameters()).device
    network.eval()
    parts = []
    for first in range(0, len(examples.hit), config.batch):
        chosen = np.arange(first, min(first + config.batch, len(examples.hit)))
        with torch.inference_mode(), autocast(device, precision):
            logit = network(as_batch(examples, chosen)[0].to(device))
        parts.append(logit[:, 0].float().cpu().numpy())
    return np.concatenate(parts)


def train_cosmicray(config: TrainingConfig, to: Path, *, announce: Callable[[str], None] = log.info) -> Path:
    """Train a network, or go on with a training.

    Parameters
    ----------
    config : TrainingConfig
    to : Path
        Folder of the training.
    announce : callable
        Told in a line how each epoch went.

    Returns
    -------
    Path
        The card; the weights lie beside it.
    """
    torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    to.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    sources = _material("training", config.seed, config.skies, config.data).sources
    architecture = {"channels": list(config.channels), "stem": config.stem}
    network = build_unet(**architecture)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        feed = _Feed(config, pool)
        validation = pool.submit(draw_patches, config, "validation", 0, config.validation_frames).result()
        counted = validation.weight > 0
        truth = validation.hit[counted]

        def validate(network: nn.Module) -> dict[str, float]:
            _, precision, recall = precision_recall(
                logits_of(network, validation, config, config.precision)[counted], truth
            )
            f1 = 2 * precision * recall / np.maximum(1e-9, precision + recall)
            return {"score": average_precision(precision, recall), "f1": float(f1.max())}

        batches = config.passes * (config.frames * config.patches // config.batch)
        learner = Learner(network, feed, batches, weighted_loss, validate, config.decisive | {"sources": sources})
        history = train(learner, config.schedule, to, device=device, announce=announce)
    # What the card says is of the network as it will run: in float32, on places of a frame as they come.
    counted &= validation.uniform[:, None, None]
    logit = logits_of(network, validation, config, "float32")[counted]
    card = _card(config, architecture, sources, network, logit, validation.hit[counted], history, to)
    path = to / f"{config.name}.json"
    write_card(path, card)
    return path


def _card(
    config: TrainingConfig,
    architecture: dict[str, Any],
    sources: list[str],
    network: nn.Module,
    logit: npt.NDArray[np.float32],
    truth: npt.NDArray[np.bool_],
    history: list[dict[str, float]],
    to: Path,
) -> ModelCard:
    """Calibrate, choose the threshold of the best F1 on the validation split, write the weights."""
    sha256 = save_weights(network, to / f"{config.name}{WEIGHTS_SUFFIX}")
    scale, offset = calibrate(logit, truth)
    threshold, precision, recall = precision_recall(scale * logit + offset, truth)
    best = int(np.argmax(2 * precision * recall / np.maximum(1e-9, precision + recall)))
    card = ModelCard(
        name=config.name,
        task="cosmicray",
        version=config.version,
        method="U-Net of double convolutions behind a space-to-depth stem (csstdask.cosmicray.unet)",
        licence=config.licence,
        trained_on="; ".join(sources),
        sha256=sha256,
        threshold=float(1 / (1 + np.exp(-threshold[best]))),
        architecture=architecture,
        normalisation={"channels": list(CHANNELS), "box": config.box},
        calibration={"scale": scale, "offset": offset},
    )
    metrics = {
        "data": "validation split: other mock skies, STIS pairs and ITL rows than in training; hit = charge above "
        "1 e- and 0.7 of the pixel's own sigma",
        "precision": round(float(precision[best]), 4),
        "recall": round(float(recall[best]), 4),
        "average_precision": round(average_precision(precision, recall), 4),
        "epochs": len(history),
    }
    return replace(card, metrics=metrics)
