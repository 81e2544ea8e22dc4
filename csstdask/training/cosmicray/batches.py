"""Batches of training examples, drawn by a worker process while the network learns from those of the epoch before.

The examples of an epoch are a function of (seed, epoch): an interrupted training resumes as if it had not been.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from distributed import Client, Future
from torch import Tensor, nn

from csstdask.cosmicray.unet import CHANNELS
from csstdask.datasets.labelled_units import select_units
from csstdask.mock.recipe_tables import Split
from csstdask.nn.device import TrainingPrecision, autocast
from csstdask.training.cosmicray.config import DetectionTrainingConfig
from csstdask.training.cosmicray.examples import Examples, Image, concatenate, draw_examples
from csstdask.training.cosmicray.material import Kind, Material, load_material

#: What examples are for: to learn from, to decide when to stop, to calibrate the trained network.
Use = Literal["training", "validation", "calibration"]

#: Part (i, n) of the detectors of a split for each use: of each two validation detectors one serves the validation
#: and the other the calibration. The position of a use in this dictionary is part of the seed of its examples.
PARTS: dict[Use, tuple[int, int]] = {"training": (0, 1), "validation": (0, 2), "calibration": (1, 2)}
#: Distinguishes the seed of the order of patches from those of the examples.
_ORDER_SEED = 2


class Batch(NamedTuple):
    """Some patches."""

    channels: Tensor
    """Input of the network (n, channel, y, x)."""
    conditions: Tensor
    """Conditions of the frames (n, condition)."""
    target: Tensor
    """Probability that a pixel is hit (n, 1, y, x): the truth, or its mixture with that of a teacher."""
    weight: Tensor
    """Weight in the loss (n, 1, y, x)."""


@cache
def _load_material(use: Use, settings: str) -> Material:
    config = DetectionTrainingConfig.model_validate_json(settings)
    split: Split = "training" if use == "training" else "validation"
    campaign = None
    if config.campaign is not None:
        campaign = select_units(
            Path(config.campaign),
            split,
            part=PARTS[use],
            truth=config.truth,
            detectors=config.detectors,
            exposures=config.exposures,
        )
    return load_material(
        split,
        config.seed,
        config.skies if use == "training" else min(config.skies, config.validation_frames),
        None if config.data is None else Path(config.data),
        campaign=campaign,
        extra_campaigns=[select_units(Path(path), split, part=PARTS[use]) for path in config.extra_campaigns],
        events=[Path(path) for path in config.events],
    )


def cached_material(config: DetectionTrainingConfig, use: Use) -> Material:
    """Return the material of the examples for a use. It is loaded once per process."""
    return _load_material(use, config.model_dump_json())


def draw_patches(config: DetectionTrainingConfig, use: Use, epoch: int, frames: int) -> Examples:
    """Draw the examples of an epoch, or those of the validation or calibration.

    Parameters
    ----------
    config : DetectionTrainingConfig
        Settings of the training.
    use : str
        ``training``, ``validation`` or ``calibration``.
    epoch : int
        Number of the epoch.
    frames : int
        Number of frames to draw.

    Returns
    -------
    patches : Examples
        ``frames * config.patches`` patches, a function of the arguments.
    """
    material = cached_material(config, use)
    seeds = [(config.seed, list(PARTS).index(use), epoch, index) for index in range(frames)]
    # The calibration is for frames of the campaign, if there is one: for those the model is made.
    campaign_only = use == "calibration" and config.campaign is not None
    shares: dict[Kind, float] = {"rendered": 1.0} if campaign_only else config.shares
    settings = config.patch_settings
    examples = concatenate([draw_examples(seed, material, shares, config.frame_size, settings) for seed in seeds])
    inputs = [CHANNELS.index(name) for name in config.inputs]
    return replace(examples, channels=examples.channels[:, inputs])


class EpochLoader:
    """Yield the batches of an epoch while a worker draws the examples of the next one.

    Parameters
    ----------
    config : DetectionTrainingConfig
        Settings of the training.
    client : distributed.Client
        Client of a cluster with one worker process.
    teach : callable, optional
        Returns the target of each pixel of some examples, once per epoch; by default the truth.
    """

    def __init__(
        self, config: DetectionTrainingConfig, client: Client, teach: Callable[[Examples], Image] | None = None
    ) -> None:
        self.config = config
        self.client = client
        self.teach = teach
        self._pending: dict[int, Future] = {}

    def draw(self, use: Use, epoch: int, frames: int) -> Future:
        """Start drawing examples; see `draw_patches`."""
        return self.client.submit(draw_patches, self.config, use, epoch, frames, pure=False)

    def collect(self, future: Future) -> Examples:
        """Return examples once they are drawn, directly from the worker."""
        examples: Examples = self.client.gather(future, direct=True)
        return examples

    def __call__(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch."""
        config = self.config
        for number in (epoch, epoch + 1):
            if number not in self._pending and number < config.epochs:
                self._pending[number] = self.draw("training", number, config.frames)
        examples = self.collect(self._pending.pop(epoch))
        target = examples.hit if self.teach is None else self.teach(examples)
        rng = np.random.default_rng([config.seed, _ORDER_SEED, epoch])
        for _ in range(config.passes_per_epoch):
            order = rng.permutation(len(examples.hit))
            mirror = bool(rng.integers(2))
            for first in range(0, len(order) - config.batch + 1, config.batch):
                yield to_batch(examples, order[first : first + config.batch], target, mirror=mirror)


def to_batch(
    examples: Examples,
    indices: npt.NDArray[np.int64],
    target: npt.NDArray[Any] | None = None,
    *,
    mirror: bool = False,
) -> Batch:
    """Return some patches as tensors, optionally reflected in x. By default the target is the truth."""
    step = slice(None, None, -1 if mirror else 1)
    target = examples.hit if target is None else target
    planes = (examples.channels[indices], target[indices, None], examples.weight[indices, None])
    channels, expected, weight = (
        torch.from_numpy(np.ascontiguousarray(plane[..., step]).astype(np.float32)) for plane in planes
    )
    conditions = torch.from_numpy(examples.conditions[indices])
    return Batch(channels.contiguous(memory_format=torch.channels_last), conditions, expected, weight)


def predict_logits(
    network: nn.Module, examples: Examples, batch: int, precision: TrainingPrecision
) -> npt.NDArray[np.float32]:
    """Return the output of a network for all pixels of some patches (n, y, x), computed `batch` patches at a time."""
    device = next(network.parameters()).device
    network.eval()
    parts = []
    for first in range(0, len(examples.hit), batch):
        indices = np.arange(first, min(first + batch, len(examples.hit)))
        part = to_batch(examples, indices)
        with torch.inference_mode(), autocast(device, precision):
            logit = network(part.channels.to(device), part.conditions.to(device))
        parts.append(logit[:, 0].float().cpu().numpy())
    return np.concatenate(parts)
