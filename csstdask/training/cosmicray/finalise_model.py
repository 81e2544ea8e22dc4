"""What becomes of a trained network: calibrated, its threshold chosen, in eight bits as well, its card.

All of it is decided on examples of the validation split that did not decide when the training stopped, but for a
threshold that is compared with another network's (`csstdask.training.cosmicray.lead`): that takes the whole split.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from csstdask.core.errors import InputError
from csstdask.cosmicray.unet import build_unet
from csstdask.metrics.detection import average_precision, fit_calibration, precision_recall
from csstdask.nn.card import WEIGHTS_SUFFIX, ModelCard
from csstdask.nn.int8 import Int8UNet, measure_ranges
from csstdask.nn.models import find_card
from csstdask.nn.weights import save_weights
from csstdask.training.cosmicray.batches import predict_logits, to_batch
from csstdask.training.cosmicray.config import DetectionTrainingConfig
from csstdask.training.cosmicray.examples import Examples

#: Logits that are neither clearly hit nor clearly not.
_DOUBTFUL = 4.0


def check_rival(config: DetectionTrainingConfig) -> None:
    """Raise InputError if the network to be ahead of cannot be compared with: now, not at the end."""
    if config.lead_over is None:
        return
    card = find_card("cosmicray", config.lead_over)
    if card.weights is None:
        raise InputError("lead_over", f"{card.name}, a method without weights", "a network")
    if config.campaign is None:
        raise InputError("lead_over", f"{card.name}, and no campaign", "one on whose frames the two are compared")


def build_card(
    config: DetectionTrainingConfig,
    sources: list[str],
    network: nn.Module,
    examples: Examples,
    history: list[dict[str, float]],
    to: Path,
) -> ModelCard:
    """Calibrate, choose the threshold, both on examples of their own; write the weights.

    The threshold is that of the best F1, unless `csstdask.training.cosmicray.lead` chooses another later. What the
    card says is of the network as it will run: in float32, on places of a frame as they come.
    """
    sha256 = save_weights(network, to / f"{config.name}{WEIGHTS_SUFFIX}")
    counted = (examples.weight > 0) & examples.uniform[:, None, None]
    logit, truth = predict_logits(network, examples, config, "float32")[counted], examples.hit[counted]
    density = np.broadcast_to(examples.density[:, None, None], counted.shape)[counted]
    calibration = fit_calibration(logit, truth, density) | {"hit_above": config.hit_above}
    ranges, int8_offset = _in_int8(network, examples, config)
    threshold, precision, recall = precision_recall(calibration["scale"] * logit + calibration["offset"], truth)
    best = int(np.argmax(2 * precision * recall / np.maximum(1e-9, precision + recall)))
    card = ModelCard(
        name=config.name,
        task="cosmicray",
        version=config.version,
        method=config.method,
        licence=config.licence,
        trained_on="; ".join(sources),
        sha256=sha256,
        threshold=float(1 / (1 + np.exp(-threshold[best]))),
        architecture=config.architecture,
        normalisation={"channels": list(config.inputs), "box": config.box},
        calibration=calibration | int8_offset,
        ranges=ranges,
    )
    metrics = {
        "data": f"places of the validation split as they come, not those that decided when to stop; hit = charge above "
        f"{config.hit_above:g} e-",
        "precision": round(float(precision[best]), 4),
        "recall": round(float(recall[best]), 4),
        "average_precision": round(average_precision(precision, recall), 4),
        "epochs": len(history),
    }
    return replace(card, metrics=metrics)


def _in_int8(
    network: nn.Module, examples: Examples, config: DetectionTrainingConfig
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return how far the network's layers go on some patches, and what int8 adds to its output, to be taken off again.

    Nothing where the network cannot be in int8.
    """
    if config.merge != "concatenate":
        return {}, {}
    fused = build_unet(**config.architecture)
    fused.load_state_dict(network.state_dict())
    fused.eval().to(memory_format=torch.channels_last).fuse()  # type: ignore[call-overload]
    patches = [to_batch(examples, np.asarray([index]))[0] for index in range(len(examples.hit))]
    ranges = measure_ranges(fused, patches)
    quantised, added = Int8UNet(fused, ranges), []
    with torch.inference_mode():
        for patch in patches:
            logit = fused(patch)
            doubtful = logit.abs() < _DOUBTFUL
            added.append((quantised(patch) - logit)[doubtful])
    shifts = torch.cat(added)
    return ranges, {"int8_offset": -round(float(shifts.mean()), 4) if len(shifts) else 0.0}
