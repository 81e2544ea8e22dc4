"""Train networks that repair sources: ``csstdask train inpaint``.

Our network is trained with the Gaussian likelihood of what hit pixels would have measured: mean and variance at once.
The baseline ``unetpp`` is trained as published: mean squared error of stamps scaled to [0, 1], hit pixels weighted
``alpha + 1`` times, summed over all depths (CSST rejection paper, section 3.2).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from csstdask.core.errors import InputError
from csstdask.cosmicray.inpaint_network import (
    SIZE,
    build_inpainting_network,
    decode_output,
    deepest_output,
    is_source,
    network_inputs,
    pixel_variance,
)
from csstdask.datasets.labelled_units import LabelledUnits, select_units
from csstdask.nn.trainer import Learner, train
from csstdask.training.base import load_initial_weights, start_training, write_model
from csstdask.training.inpaint.calibration import fit_variance_factors, validation_scores
from csstdask.training.inpaint.config import InpaintTrainingConfig
from csstdask.training.inpaint.examples import Examples, Material, collect_stamps, concatenate, draw_batches

log = logging.getLogger("csstdask")

#: Batches of the calibration for each batch of the validation: few hits are on the centre of a source.
CALIBRATION_RATIO = 4
#: Streams of random numbers, part of the seed of a batch.
_TRAINING, _VALIDATION, _CALIBRATION = 0, 1, 2


def train_inpaint(config: InpaintTrainingConfig, to: Path, *, on_progress: Callable[[str], None] = log.info) -> Path:
    """Train a network that repairs sources, or resume its training.

    Parameters
    ----------
    config : InpaintTrainingConfig
        Settings of the training.
    to : Path
        Folder of the training.
    on_progress : callable
        Receives one line per epoch.

    Returns
    -------
    Path
        Path of the model card; the weights are in the same folder.

    Raises
    ------
    InputError
        If a campaign lacks the truth of the settings, sources, cosmic rays or validation units, or if the folder has a
        training with other settings.
    """
    device = start_training(config, to, device=config.device)
    paths = [Path(path) for path in config.campaigns]
    training = [select_units(path, "training", truth=config.truth) for path in paths]
    # Of each two validation detectors one decides when to stop, the other is for the calibration.
    stopping, calibrating = (
        [select_units(path, "validation", part=(index, 2), truth=config.truth) for path in paths] for index in (0, 1)
    )
    material, held_out, calibration = (
        _collect(config, units, on_progress) for units in (training, stopping, calibrating)
    )
    network = build_inpainting_network(**config.architecture)
    identity = config.identity | {"units": [units.identity for units in (*training, *stopping)]}
    if config.start_from is not None:
        identity["weights of start_from"] = load_initial_weights("inpaint", config.start_from, network)
    validation = list(draw_batches(held_out, config.validation_batches, config.batch, (config.seed, _VALIDATION)))

    def batches(epoch: int) -> Iterator[Examples]:
        return draw_batches(material, config.batches_per_epoch, config.batch, (config.seed, _TRAINING, epoch))

    learner = Learner(
        network,
        batches,
        config.batches_per_epoch,
        partial(loss_of_batch, config=config),
        lambda network: validation_scores(network, validation, config.scaling),
        identity,
    )
    history = train(learner, config.schedule, to, device=device, on_progress=on_progress)
    n_batches = CALIBRATION_RATIO * config.validation_batches
    examples = list(draw_batches(calibration, n_batches, config.batch, (config.seed, _CALIBRATION)))
    return _write(config, network, training, examples, len(history), to)


def loss_of_batch(network: nn.Module, examples: Examples, *, config: InpaintTrainingConfig) -> Tensor:
    """Return the loss of a batch: the published one for min-max scaling, else the negative log likelihood."""
    examples = examples.to(next(network.parameters()).device)
    stamps, light = examples.stamps, examples.light
    outputs = network(network_inputs(stamps, config.scaling))
    if config.scaling == "min-max":
        return _published_loss(outputs, examples, config.alpha)
    height, variance = decode_output(deepest_output(outputs).float(), stamps, "noise")
    deviance = (height - light) ** 2 / variance + torch.log(variance / pixel_variance(light, stamps.noise))
    weight = torch.where(is_source(light, stamps), config.source_weight, 1.0) * stamps.hit
    return 0.5 * (deviance * weight).sum() / weight.sum().clamp_min(1)


def _published_loss(outputs: Tensor | list[Tensor], examples: Examples, alpha: float) -> Tensor:
    """Return the mean squared error of scaled stamps, averaged over the outputs of all depths."""
    stamps = examples.stamps
    weight = alpha * stamps.hit + 1
    losses = []
    for output in outputs if isinstance(outputs, list) else [outputs]:
        zero, one = (decode_output(torch.full_like(output, level), stamps, "min-max")[0] for level in (0.0, 1.0))
        target = (examples.light - zero) / (one - zero)
        losses.append((weight * (output[:, 0] - target) ** 2).mean())
    return torch.stack(losses).mean()


def _collect(
    config: InpaintTrainingConfig, campaigns: Sequence[LabelledUnits], on_progress: Callable[[str], None]
) -> Material:
    """Cut the stamps of several campaigns; InputError if there are no sources or no cosmic rays."""
    parts = []
    for units in campaigns:
        on_progress(f"cutting stamps from {len(units)} units of {units.path.name}")
        parts.append(collect_stamps(units, config.sources_per_unit, config.seed))
    material = concatenate(parts)
    if not len(material) or not len(material.charge):
        found = "no source" if not len(material) else "no cosmic ray"
        raise InputError(", ".join(config.campaigns), found, "units with both")
    return material


def _write(
    config: InpaintTrainingConfig,
    network: nn.Module,
    training: Sequence[LabelledUnits],
    calibration: Sequence[Examples],
    epochs: int,
    to: Path,
) -> Path:
    """Calibrate the variance on held-out stamps; write weights and card."""
    scores = validation_scores(network, calibration, config.scaling)
    return write_model(
        config,
        network,
        to,
        method=config.method,
        trained_on="; ".join(f"{len(units)} units of {units.path.name}, {units.truth}" for units in training),
        architecture=config.architecture,
        normalisation={"size": SIZE},
        calibration=fit_variance_factors(network, calibration, config.scaling),
        metrics={
            "data": "validation stamps that did not decide when to stop; in units of a pixel's own noise",
            **{name: round(value, 4) for name, value in scores.items()},
            "epochs": epochs,
        },
    )
