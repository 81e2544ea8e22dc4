"""Finalise a trained network: calibration, threshold, quantisation ranges, reference statistics, model card.

Everything is measured on examples of the validation split that did not decide when the training stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from csstdask.cosmicray.unet import build_unet
from csstdask.datasets.labelled_units import LabelledUnits
from csstdask.metrics.detection import average_precision, fit_calibration, precision_recall
from csstdask.nn.card import read_card, write_card
from csstdask.nn.int8 import Int8UNet, measure_ranges
from csstdask.training.base import write_model
from csstdask.training.cosmicray.batches import predict_logits, to_batch
from csstdask.training.cosmicray.config import DetectionTrainingConfig
from csstdask.training.cosmicray.examples import Examples
from csstdask.training.cosmicray.reference_statistics import (
    measure_disagreement,
    measure_reference_statistics,
    validity_of,
)

#: Absolute logit below which a pixel is neither clearly hit nor clearly clean.
AMBIGUOUS_LOGIT = 4.0


def finalise_model(
    config: DetectionTrainingConfig,
    network: nn.Module,
    examples: Examples,
    to: Path,
    *,
    conditions: dict[str, list[float]],
    sources: list[str],
    epochs: int,
) -> Path:
    """Calibrate a trained network, choose its threshold (best F1), and write its weights and card.

    The figures in the card are those of the network as it runs: in float32, on patches at random positions.

    Parameters
    ----------
    config : DetectionTrainingConfig
        Settings of the training.
    network : torch.nn.Module
        Trained network.
    examples : Examples
        Held-out examples.
    to : Path
        Folder of the training.
    conditions : dict of str to [float, float]
        Range of the conditions of the training frames (`trained_conditions`).
    sources : list of str
        Training data of the network.
    epochs : int
        Epochs of the training.

    Returns
    -------
    Path
        Path of the card.
    """
    calibrated = _calibrate(config, network, examples)
    ranges, int8_offset = _measure_int8(config, network, examples)
    return write_model(
        config,
        network,
        to,
        method=config.method,
        trained_on="; ".join(sources),
        threshold=calibrated.threshold,
        architecture=config.architecture,
        normalisation={"channels": list(config.inputs), "box": config.box, "conditions": list(config.conditions)},
        calibration=calibrated.calibration | int8_offset,
        ranges=ranges,
        valid={"conditions": conditions} if conditions else {},
        metrics=calibrated.metrics | {"epochs": epochs},
    )


def add_reference_statistics(path: Path, held_out: LabelledUnits, validity: LabelledUnits | None) -> None:
    """Add what the model detects in held-out units to its card, with what precision, and the detectors it is valid for.

    Parameters
    ----------
    path : Path
        Path of the card.
    held_out : LabelledUnits
        Units that the network did not learn from.
    validity : LabelledUnits or None
        Units of the detectors and dates that the model is restricted to; None for no restriction.
    """
    card = read_card(path)
    card = replace(
        card,
        expects=measure_reference_statistics(path, held_out),
        disagreement=measure_disagreement(path, held_out),
        valid=card.valid | ({} if validity is None else validity_of(validity)),
    )
    write_card(path, card)


def trained_conditions(conditions: npt.NDArray[np.float32], names: Sequence[str]) -> dict[str, list[float]]:
    """Return the range of the conditions (n, condition) of some frames, by name; 0 is unknown."""
    known = {name: values[values != 0] for name, values in zip(names, conditions.T, strict=True)}
    return {name: [round(float(end), 3) for end in (one.min(), one.max())] for name, one in known.items() if len(one)}


@dataclass(frozen=True)
class _Calibrated:
    calibration: dict[str, float]
    threshold: float
    """Probability from which a pixel counts as hit."""
    metrics: dict[str, Any]


def _calibrate(config: DetectionTrainingConfig, network: nn.Module, examples: Examples) -> _Calibrated:
    """Fit the calibration of the logits, and choose the threshold of the best F1.

    As in the CSST rejection paper, precision counts every pixel with charge as correct, recall the hits alone.
    """
    counted = (examples.weight > 0) & examples.uniform[:, None, None]
    logit = predict_logits(network, examples, config.batch, "float32")[counted]
    truth = examples.hit[counted]
    density = np.broadcast_to(examples.density[:, None, None], counted.shape)[counted]
    calibration = fit_calibration(logit, truth, density)
    calibrated = calibration["scale"] * logit + calibration["offset"]
    threshold, precision_of_hits, recall = precision_recall(calibrated, truth)
    _, precision, _ = precision_recall(calibrated, examples.charged[counted])
    best = int(np.argmax(2 * precision * recall / np.maximum(1e-9, precision + recall)))
    metrics = {
        "data": "random positions of the validation split, not those that decided when to stop; precision counts any "
        f"charge, recall charge above {config.hit_threshold:g} e-",
        "precision": round(float(precision[best]), 4),
        "recall": round(float(recall[best]), 4),
        "average_precision": round(average_precision(precision_of_hits, recall), 4),
    }
    probability = float(1 / (1 + np.exp(-threshold[best])))
    return _Calibrated(calibration | {"hit_above": config.hit_threshold}, probability, metrics)


def _measure_int8(
    config: DetectionTrainingConfig, network: nn.Module, examples: Examples
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return the output ranges of the layers, and the mean shift of ambiguous logits by int8, to be subtracted."""
    fused = build_unet(**config.architecture)
    fused.load_state_dict(network.state_dict())
    fused.eval().to(memory_format=torch.channels_last).fuse()  # type: ignore[call-overload]
    patches = [to_batch(examples, np.asarray([index]))[:2] for index in range(len(examples.hit))]
    ranges = measure_ranges(fused, patches)
    quantised, shifts = Int8UNet(fused, ranges), []
    with torch.inference_mode():
        for patch in patches:
            logit = fused(*patch)
            ambiguous = logit.abs() < AMBIGUOUS_LOGIT
            shifts.append((quantised(*patch) - logit)[ambiguous])
    shift = torch.cat(shifts)
    return ranges, {"int8_offset": -round(float(shift.mean()), 4) if len(shift) else 0.0}
