"""Train the cosmic-ray U-Net: ``csstdask train cosmicray``.

A worker process draws the examples of the next epoch while the network learns from those of this one. After the last
epoch the output of the network is calibrated, and card and weights are written:
``detect(..., model="folder/unet.json")`` uses them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from csstdask.core.errors import InputError
from csstdask.cosmicray.unet import build_unet
from csstdask.engine.cluster import open_cluster
from csstdask.metrics.detection import average_precision, precision_recall
from csstdask.nn.device import TrainingPrecision, autocast
from csstdask.nn.models import find_card
from csstdask.nn.trainer import Learner, train
from csstdask.nn.weights import load_network
from csstdask.training.base import load_initial_weights, start_training
from csstdask.training.cosmicray.batches import Batch, EpochLoader, cached_material, predict_logits, to_batch
from csstdask.training.cosmicray.config import DetectionTrainingConfig
from csstdask.training.cosmicray.examples import Examples, Image
from csstdask.training.cosmicray.finalise_model import add_reference_statistics, finalise_model, trained_conditions
from csstdask.training.cosmicray.material import Material

log = logging.getLogger("csstdask")

#: Number of epochs whose frames the range of conditions in a model card is measured on.
CONDITION_EPOCHS = 4
#: Probability from which a teacher is certain.
CERTAIN = 0.9


def train_cosmicray(
    config: DetectionTrainingConfig, to: Path, *, on_progress: Callable[[str], None] = log.info
) -> Path:
    """Train a network that detects cosmic rays, or resume its training.

    Parameters
    ----------
    config : DetectionTrainingConfig
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
        If there is nothing to learn from, if a model named in the settings does not fit, or if the folder holds a
        training with other settings.
    """
    device = start_training(config, to, device=config.device)
    material = cached_material(config, "training")
    check_material(config, material)
    network = build_unet(**config.architecture)
    identity = config.identity | {"material": material.identity}
    if config.start_from is not None:
        _check_inputs(config, config.start_from)
        identity["weights of start_from"] = load_initial_weights("cosmicray", config.start_from, network)
    if config.teacher is not None:
        identity["weights of teacher"] = find_card("cosmicray", config.teacher).sha256
    with open_cluster("processes", 1) as cluster:
        loader = EpochLoader(config, cluster.client, _teaching(config, device))
        validation = loader.collect(loader.draw("validation", 0, config.validation_frames))
        learner = Learner(
            network,
            loader,
            config.steps,
            weighted_loss,
            partial(validation_scores, examples=validation, batch=config.batch, precision=config.precision),
            identity,
        )
        history = train(learner, config.schedule, to, device=device, on_progress=on_progress)
        held_out = loader.collect(loader.draw("calibration", 0, config.validation_frames))
        conditions = [
            loader.collect(loader.draw("training", epoch, config.frames)).conditions
            for epoch in range(min(CONDITION_EPOCHS, config.epochs))
        ]
    path = finalise_model(
        config,
        network,
        held_out,
        to,
        conditions=trained_conditions(np.concatenate(conditions), config.conditions),
        sources=material.sources,
        epochs=len(history),
    )
    if (units := cached_material(config, "calibration").campaign) is not None:
        on_progress("measuring detections in held-out units")
        add_reference_statistics(path, units, material.campaign if config.is_campaign_specific else None)
    return path


def check_material(config: DetectionTrainingConfig, material: Material) -> None:
    """Raise InputError if there is nothing to learn from, or if frames are smaller than patches."""
    if not any(share > 0 and material.has(kind) for kind, share in config.shares.items()):
        wanted = "--campaign, --data or mock skies, for at least one of these kinds of frames"
        raise InputError("training", f"no material for {', '.join(config.shares)}", wanted)
    if material.campaign is not None and min(material.campaign.shape) < config.patch:
        ny, nx = material.campaign.shape
        raise InputError(material.campaign.path, f"frames of {ny} x {nx} pixels", f"at least the patch, {config.patch}")


def weighted_loss(network: nn.Module, batch: Batch) -> Tensor:
    """Return the binary cross-entropy of a batch, averaged with the weights of its pixels."""
    device = next(network.parameters()).device
    channels, conditions, target, weight = (part.to(device, non_blocking=True) for part in batch)
    logit = network(channels, conditions).float()
    entropy = nn.functional.binary_cross_entropy_with_logits(logit, target, reduction="none")
    return (entropy * weight).sum() / weight.sum().clamp(min=1)


def validation_scores(
    network: nn.Module, *, examples: Examples, batch: int, precision: TrainingPrecision
) -> dict[str, float]:
    """Return the loss, the average precision (``score``) and the best F1 of a network on some examples."""
    counted = examples.weight > 0
    truth = examples.hit[counted]
    logit = predict_logits(network, examples, batch, precision)[counted]
    _, precisions, recalls = precision_recall(logit, truth)
    f1 = 2 * precisions * recalls / np.maximum(1e-9, precisions + recalls)
    loss = float(np.mean(np.logaddexp(0, np.where(truth, -logit, logit))))
    return {"validation_loss": loss, "score": average_precision(precisions, recalls), "f1": float(f1.max())}


def taught_target(examples: Examples, teacher: nn.Module, share: float, precision: TrainingPrecision) -> Image:
    """Return the truth of some examples with the probabilities of a teacher mixed in.

    Whether a pixel whose charge is below the noise was hit is random: a small network needs many examples to learn its
    probability, which a teacher has learnt already (Hinton et al. 2015, arXiv:1503.02531). Where a teacher cannot be
    expected to know such frames, or is certain of the opposite of the truth, the truth is the target.

    Parameters
    ----------
    examples : Examples
        Patches of an epoch.
    teacher : torch.nn.Module
        Trained network.
    share : float
        Weight of the teacher's probabilities, 0 to 1.
    precision : str
        Precision of the teacher.

    Returns
    -------
    float32 array (n, y, x)
        Probability that a pixel is hit.
    """
    target = examples.hit.astype(np.float32)
    device = next(teacher.parameters()).device
    for index in np.flatnonzero(examples.in_domain):
        part = to_batch(examples, np.array([index]))
        with torch.inference_mode(), autocast(device, precision):
            logit = teacher(part.channels.to(device), part.conditions.to(device))
        difference = torch.sigmoid(logit[0, 0].float()).cpu().numpy() - target[index]
        target[index] += np.float32(share) * np.where(np.abs(difference) > CERTAIN, 0, difference)
    return target


def _teaching(config: DetectionTrainingConfig, device: torch.device) -> Callable[[Examples], Image] | None:
    """Return a function that mixes in the teacher of the settings; None without one."""
    if config.teacher is None:
        return None
    _check_inputs(config, config.teacher)
    teacher = load_network(find_card("cosmicray", config.teacher), build_unet, device)
    return partial(taught_target, teacher=teacher, share=config.teacher_share, precision=config.precision)


def _check_inputs(config: DetectionTrainingConfig, model: str) -> None:
    """Raise InputError if a model has other input channels than the settings."""
    card = find_card("cosmicray", model)
    inputs = card.normalisation.get("channels")
    if card.weights is not None and inputs != list(config.inputs):
        raise InputError(card.name, f"a model with the input channels {inputs}", f"{list(config.inputs)}")
