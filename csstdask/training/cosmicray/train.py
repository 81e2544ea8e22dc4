"""Training of the cosmic-ray U-Net: ``csstdask train cosmicray``.

Examples are drawn by another process while the network learns from those of the epoch before; an epoch's
examples are a function of (seed, epoch), so that a training that was killed goes on as if it had not been.
At the end the network's output is calibrated and its threshold chosen, both on the validation split, and card
and weights are written beside each other: ``detect(..., model="that/folder/unet.json")`` uses them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from csstdask.core.errors import InputError
from csstdask.core.malloc import retain_freed_memory
from csstdask.cosmicray.unet import build_unet
from csstdask.metrics.detection import average_precision, precision_recall
from csstdask.nn.card import read_card, write_card
from csstdask.nn.device import TrainingPrecision, autocast, choose_device
from csstdask.nn.models import find_card
from csstdask.nn.trainer import Learner, train
from csstdask.nn.weights import load_network
from csstdask.training.cosmicray.batches import Batch, EpochLoader, cached_material, draw_patches, predict_logits
from csstdask.training.cosmicray.config import DetectionTrainingConfig
from csstdask.training.cosmicray.examples import Material
from csstdask.training.cosmicray.finalise_model import build_card, check_rival
from csstdask.training.cosmicray.lead import ahead_of
from csstdask.training.cosmicray.reference_statistics import measure_reference_statistics, validity_of
from csstdask.training.cosmicray.warm_start import average_with, load_initial_weights

log = logging.getLogger("csstdask")


def weighted_loss(network: nn.Module, batch: Batch) -> Tensor:
    """Return the binary cross-entropy, averaged with the pixels' weights."""
    channels, hit, weight = (part.to(next(network.parameters()).device, non_blocking=True) for part in batch)
    logit = network(channels).float()
    each = nn.functional.binary_cross_entropy_with_logits(logit, hit, reduction="none")
    return (each * weight).sum() / weight.sum().clamp(min=1)


def distil_from(teacher: nn.Module, share: float, precision: TrainingPrecision) -> Callable[[Batch], Batch]:
    """Return what mixes a teacher's probabilities into the truth of a batch.

    Whether a pixel that noise hides was hit is chance, and costs a small network many examples to find out; a
    teacher has found out (Hinton et al. 2015, arXiv:1503.02531).
    """

    def mixed(batch: Batch) -> Batch:
        channels, hit, weight = batch
        device = next(teacher.parameters()).device
        with torch.inference_mode(), autocast(device, precision):
            believed = torch.sigmoid(teacher(channels.to(device)).float()).cpu()
        return channels, torch.lerp(hit, believed.clone(), share), weight

    return mixed


def train_cosmicray(
    config: DetectionTrainingConfig, to: Path, *, on_progress: Callable[[str], None] = log.info
) -> Path:
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
    material = cached_material(config, "training")
    check_material(config, material)
    check_rival(config)
    network = build_unet(**config.architecture)
    load_initial_weights(config, network)
    beginning = {name: value.clone() for name, value in network.state_dict().items()} if config.remember else {}
    with ProcessPoolExecutor(1, get_context("spawn"), retain_freed_memory) as pool:
        feed = EpochLoader(config, pool)
        validation = pool.submit(draw_patches, config, "validation", 0, config.validation_frames).result()
        counted = validation.weight > 0
        truth = validation.hit[counted]

        def validate(network: nn.Module) -> dict[str, float]:
            logit = predict_logits(network, validation, config, config.precision)[counted]
            _, precision, recall = precision_recall(logit, truth)
            f1 = 2 * precision * recall / np.maximum(1e-9, precision + recall)
            loss = float(np.mean(np.logaddexp(0, np.where(truth, -logit, logit))))
            return {"validation_loss": loss, "score": average_precision(precision, recall), "f1": float(f1.max())}

        mixed = _teaching(config, device)
        batches = config.passes * (config.frames * config.patches // config.batch)
        learner = Learner(
            network,
            feed,
            batches,
            lambda network, batch: weighted_loss(network, mixed(batch)),
            validate,
            config.decisive | {"material": material.identity} | _origins(config),
        )
        history = train(learner, config.schedule, to, device=device, on_progress=on_progress)
        held_out = pool.submit(draw_patches, config, "calibration", 0, config.validation_frames).result()
    if config.remember:
        average_with(beginning, network, config.remember)
    card = build_card(config, material.sources, network, held_out, history, to)
    path = to / f"{config.name}.json"
    write_card(path, card)
    if (units := cached_material(config, "calibration").known) is not None:
        on_progress("measuring what it finds in units that it did not learn from")
        if config.lead_over is not None and (compared := cached_material(config, "comparison").known) is not None:
            card = ahead_of(find_card("cosmicray", config.lead_over), read_card(path), compared)
            write_card(path, card)
        card = replace(card, expects=measure_reference_statistics(path, units))
        if config.is_for_its_campaign and material.known is not None:
            card = replace(card, valid=validity_of(material.known))
        write_card(path, card)
    return path


def _teaching(config: DetectionTrainingConfig, device: torch.device) -> Callable[[Batch], Batch]:
    """Return what is done to each batch before it is learnt from."""
    if config.teacher is None:
        return lambda batch: batch
    card = find_card("cosmicray", config.teacher)
    if card.normalisation.get("channels") != list(config.inputs):
        raise InputError(
            card.name, f"a teacher that sees {card.normalisation.get('channels')}", f"{list(config.inputs)}"
        )
    teacher = load_network(card, build_unet, device)
    return distil_from(teacher, config.teacher_share, config.precision)


def _origins(config: DetectionTrainingConfig) -> dict[str, str]:
    """Return the SHA-256 of the networks that a training begins with and learns from."""
    named = {
        "weights of start_from": config.start_from,
        "weights of close_from": config.close_from,
        "weights of teacher": config.teacher,
    }
    return {key: find_card("cosmicray", model).sha256 for key, model in named.items() if model is not None}


def check_material(config: DetectionTrainingConfig, material: Material) -> None:
    """Raise InputError unless there is something to learn from, large enough to be cut into patches."""
    if not any(share > 0 and material.has(kind) for kind, share in config.shares.items()):
        wanted = "--campaign, --data or mock skies, for one of the frames that it wants"
        raise InputError("training", f"no material for {', '.join(config.shares)}", wanted)
    if material.known is not None and min(material.known.shape) < config.patch:
        found = f"frames of {material.known.shape[0]} x {material.known.shape[1]} pixels"
        raise InputError(material.known.path, found, f"at least the patch, {config.patch} pixels")
