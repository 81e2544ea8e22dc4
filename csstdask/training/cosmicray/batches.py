"""Batches of examples for a training of cosmic-ray detection: drawn by another process, fed to a network.

An epoch's examples are a function of (seed, epoch), so that a training that was killed goes on as if it had not been.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from csstdask.cosmicray.unet import CHANNELS
from csstdask.datasets.labelled_units import select_units
from csstdask.mock.recipe_tables import Split
from csstdask.nn.device import TrainingPrecision, autocast
from csstdask.training.cosmicray.config import DetectionTrainingConfig
from csstdask.training.cosmicray.examples import Examples, Kind, Material, draw_examples, joined, load_material

Batch = tuple[Tensor, Tensor, Tensor]

#: Which of each two detectors of a campaign's validation split serve which end; thresholds are compared on them all.
_PARTS = {"training": (0, 1), "validation": (0, 2), "calibration": (1, 2), "comparison": (0, 1)}
Use = Literal["training", "validation", "calibration", "comparison"]


@cache
def _material(use: Use, settings: str) -> Material:
    config = DetectionTrainingConfig.model_validate_json(settings)
    split: Split = "training" if use == "training" else "validation"
    known = None
    if config.campaign is not None:
        known = select_units(
            Path(config.campaign),
            split,
            part=_PARTS[use],
            truth=config.truth,
            detectors=config.detectors,
            exposures=config.exposures,
        )
    others = [select_units(Path(path), split, part=_PARTS[use]) for path in config.others]
    skies = config.skies if use == "training" else min(config.skies, config.validation_frames)
    data = None if config.data is None else Path(config.data)
    events = [Path(path) for path in config.events]
    return load_material(split, config.seed, skies, data, known=known, others=others, events=events)


def cached_material(config: DetectionTrainingConfig, use: Use) -> Material:
    """Return what examples are made of; it is gathered once a process."""
    return _material(use, config.model_dump_json())


def draw_patches(config: DetectionTrainingConfig, use: Use, number: int, frames: int) -> Examples:
    """Draw the examples of an epoch, of the validation or of the calibration: a function of its arguments.

    Parameters
    ----------
    config : TrainingConfig
    use : str
        ``training``, ``validation`` or ``calibration``.
    number : int
        Of the epoch.
    frames : int
        How many to draw.
    """
    material = cached_material(config, use)
    seeds = ((config.seed, list(_PARTS).index(use), number, index) for index in range(frames))
    # What the card says is of the campaign's own frames, where there is one: of what the network is for.
    own = use == "calibration" and config.campaign is not None
    shares: dict[Kind, float] = {"rendered": 1.0} if own else config.shares
    size, cutting = config.frame_size, config.cutting
    examples = joined([draw_examples(seed, material, shares, size, cutting) for seed in seeds])
    seen = [CHANNELS.index(name) for name in config.inputs]
    return replace(examples, channels=examples.channels[:, seen])


class EpochLoader:
    """Batches of examples, the next epoch's drawn while this one's are learnt from."""

    def __init__(self, config: DetectionTrainingConfig, pool: ProcessPoolExecutor) -> None:
        self.config, self.pool = config, pool
        self.drawn: dict[int, Future[Examples]] = {}

    def __call__(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, and have the next one drawn."""
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
                yield to_batch(examples, order[first : first + config.batch], mirror=mirror)


def to_batch(examples: Examples, chosen: npt.NDArray[np.int64], *, mirror: bool = False) -> Batch:
    """Return channels, truth and weights of some patches as tensors, on request mirrored in x."""
    step = slice(None, None, -1 if mirror else 1)
    planes = (examples.channels[chosen], examples.hit[chosen, None], examples.weight[chosen, None])
    channels, hit, weight = (
        torch.from_numpy(np.ascontiguousarray(plane[..., step]).astype(np.float32)) for plane in planes
    )
    return channels.contiguous(memory_format=torch.channels_last), hit, weight


def predict_logits(
    network: nn.Module, examples: Examples, config: DetectionTrainingConfig, precision: TrainingPrecision
) -> npt.NDArray[np.float32]:
    """Return a network's output for all pixels of some patches."""
    device = next(network.parameters()).device
    network.eval()
    parts = []
    for first in range(0, len(examples.hit), config.batch):
        chosen = np.arange(first, min(first + config.batch, len(examples.hit)))
        with torch.inference_mode(), autocast(device, precision):
            logit = network(to_batch(examples, chosen)[0].to(device))
        parts.append(logit[:, 0].float().cpu().numpy())
    return np.concatenate(parts)
