"""Train AZP-RC as published, on mock surveys.

The loss is that of the article (sections 3.3 and 3.4): the mean square error, 0.1 times the fraction of pairs in the
wrong order, and a discriminator of the survey that reads only the predicted offset, with alpha = 0.01. The ranking
indicator has no gradient: it is computed and logged, and changes no weight. Offsets are in units of their scatter;
otherwise alpha would outweigh the mean square error. The minimax over network and discriminator is implemented by a
reversed gradient.

The target is the solved zero point ("derived from the standard comparison pipeline"); unsolved exposures are left out.
Training uses random crops of the images, because the network averages over pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from csstdask.nn.trainer import Learner, train
from csstdask.training.base import start_training, write_model
from csstdask.training.zeropoint.config import ZeropointConfig
from csstdask.training.zeropoint.losses import reverse_gradient, wrong_order
from csstdask.training.zeropoint.surveys import SurveyInputs, load_surveys
from csstdask.zeropoint.prior import PriorArrays, build_star_lists, concatenate_arrays, image_statistics
from csstdask.zeropoint.prior.azprc import (
    MAX_ENCODER_STARS,
    PUBLISHED_TELEMETRY,
    AzpRc,
    PublishedTensors,
    earth_limb_angle,
    normalise_patch,
    published_star_rows,
    published_tensors,
)
from csstdask.zeropoint.prior.network import finite_moments

log = logging.getLogger("csstdask")

MIN_STARS = 3
"""Smallest number of stars of a training exposure: fewer may all be variable."""
_N_VALIDATION = 256
"""Number of validation exposures."""
_VALIDATION_BATCH = 32
"""Exposures per evaluation of the network in the validation."""
_PATCH_SIZE = 256
"""Side of the image patches [pixel]."""


@dataclass(frozen=True)
class PublishedExamples:
    """Inputs and targets of n exposures."""

    arrays: PriorArrays
    """Inputs in the layout of a network."""
    patches: npt.NDArray[np.float16]
    """(n, y, x) Patches as `normalise_patch` returns them."""
    offset: npt.NDArray[np.float64]
    """(n,) Solved zero points minus nominal [mag]."""
    survey: npt.NDArray[np.int64]
    """(n,) Number of the survey."""


@dataclass(frozen=True)
class _Batch:
    inputs: PublishedTensors
    target: Tensor
    survey: Tensor


class _Training(nn.Module):
    """The network, with a discriminator of the survey that reads its output."""

    def __init__(self, network: AzpRc, config: ZeropointConfig, scale: float) -> None:
        super().__init__()
        self.network, self.config, self.scale = network, config, scale
        self.discriminator = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 1))

    def loss(self, batch: _Batch) -> Tensor:
        """Return the loss of a batch."""
        predicted = self.network(batch.inputs) / self.scale
        target = batch.target / self.scale
        loss = nn.functional.mse_loss(predicted, target) + self.config.ranking * wrong_order(predicted, target)
        if self.config.adversarial > 0:
            centred = (predicted - self.network.offset_mean / self.scale)[:, None]
            logits = self.discriminator(reverse_gradient(centred, 1.0)).squeeze(-1)
            adversarial = nn.functional.binary_cross_entropy_with_logits(logits, batch.survey)
            loss = loss + self.config.adversarial * adversarial
        return loss


def published_examples(
    surveys: Mapping[str, SurveyInputs],
    part: str,
    *,
    image: bool = True,
    max_exposures: int | None = None,
    seed: int = 0,
) -> PublishedExamples:
    """Collect solved exposures of one part of all surveys with their patches.

    Parameters
    ----------
    surveys : mapping of SurveyInputs
        Surveys by name.
    part : str
        ``train``, ``validation`` or ``test``.
    image : bool
        Whether patches are rendered.
    max_exposures : int, optional
        Number of exposures to choose at random; by default all.
    seed : int
        Seed of the choice.
    """
    arrays, patches, offset, label = [], [], [], []
    total = sum(int((survey.split == part).sum()) for survey in surveys.values())
    for k, survey in enumerate(surveys.values()):
        exposures = survey.exposures
        rows = np.flatnonzero((survey.split == part) & (exposures.n_stars >= MIN_STARS) & np.isfinite(exposures.solved))
        if max_exposures is not None:
            n = max(4, round(max_exposures / max(1, total) * len(rows)))
            rows = np.sort(np.random.default_rng([seed, k]).permutation(rows)[:n])
        tables = [exposures.stars(int(i)) for i in rows]
        lists = build_star_lists(tables, shape=exposures.shape, max_stars=MAX_ENCODER_STARS)
        lists.values[..., 0] += np.float32(exposures.nominal)
        inputs = survey.arrays(0, PUBLISHED_TELEMETRY).take(rows)
        side = _PATCH_SIZE if image else 1
        survey_patches, statistics = np.zeros((len(rows), side, side), np.float16), inputs.image.copy()
        for row, i in enumerate(rows if image else ()):
            patch = exposures.patch(int(i))
            survey_patches[row], statistics[row] = normalise_patch(patch), image_statistics(patch)
        arrays.append(replace(inputs, stars=lists.values, image=statistics))
        patches.append(survey_patches)
        offset.append(survey.solved[rows])
        label.append(np.full(len(rows), k))
    return PublishedExamples(
        concatenate_arrays(arrays), np.concatenate(patches), np.concatenate(offset), np.concatenate(label)
    )


def train_azprc(config: ZeropointConfig, to: Path, *, on_progress: Callable[[str], None] = log.info) -> Path:
    """Train the published network; return the path of its card.

    Parameters
    ----------
    config : ZeropointConfig
        Settings with ``kind = "azprc"``.
    to : Path
        Folder of the training. An existing training is resumed.
    announce : callable
        Receives one line per epoch.
    """
    device = start_training(config, to)
    on_progress(f"exposures of recipe {config.recipe}")
    surveys = load_surveys(config.recipe, config.exposures, memory=0, image=False)
    train_set = published_examples(surveys, "train", image=config.image)
    validation = published_examples(
        surveys, "validation", image=config.image, max_exposures=_N_VALIDATION, seed=config.seed
    )
    cropped = replace(validation, patches=_crop_centre(validation.patches, config.crop))
    network = AzpRc(image=config.image, stars=config.stars, telemetry_branch=config.telemetry_branch)
    normalise_by(network, train_set)
    n = min(config.examples, len(train_set.offset))
    learner = Learner(
        _Training(network, config, float(train_set.offset.std())),
        batches=lambda epoch: _batches(network, train_set, config, n, epoch),
        steps=-(-n // config.batch),
        loss=lambda training, batch: training.loss(batch),  # type: ignore[operator]
        validate=lambda training: _validate(training.network, cropped),  # type: ignore[arg-type]
        identity=config.identity,
    )
    history = train(learner, config.schedule, to, device=device, on_progress=on_progress)
    with torch.inference_mode():
        network.eval()
        errors = _validate(network, validation)
        network.rms.fill_(errors["rmse"])
    return write_model(
        config,
        network,
        to,
        method="AZP-RC as described (csstdask.zeropoint.prior.azprc)",
        trained_on=f"{len(train_set.offset)} exposures of two mock surveys, first 60 % of their days",
        architecture=network.architecture,
        metrics={
            "data": "exposures after those of the training; errors against solved zero points",
            "epochs": len(history),
            **{name: round(errors[name], 6) for name in ("rmse", "wrong_order")},
        },
    )


def normalise_by(network: AzpRc, examples: PublishedExamples) -> None:
    """Set means and standard deviations of the inputs, and the mean of the output."""
    arrays = examples.arrays
    rows = published_star_rows(arrays.stars, earth_limb_angle(network.telemetry, arrays.telemetry))
    rows = rows[np.isfinite(arrays.stars[..., 0])]
    for name, values in (("statistics", arrays.image), ("star", rows), ("telemetry", arrays.telemetry)):
        mean, std = finite_moments(values)
        network.get_buffer(f"{name}_mean").copy_(mean)
        network.get_buffer(f"{name}_std").copy_(std)
    network.offset_mean.fill_(float(examples.offset.mean()))


def _batches(
    network: AzpRc, examples: PublishedExamples, config: ZeropointConfig, n: int, epoch: int
) -> Iterator[_Batch]:
    """Yield the batches of an epoch: n exposures in random order, with random crops of their images."""
    rng = np.random.default_rng([config.seed, epoch])
    order = rng.permutation(len(examples.offset))[:n]
    for start in range(0, n, config.batch):
        rows = order[start : start + config.batch]
        if len(rows) > 1:
            patches = _crop_randomly(examples.patches[rows], config.crop, rng)
            yield _batch(network, examples, rows, patches)


def _crop_randomly(patches: npt.NDArray[np.float16], side: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return a random square crop of each patch."""
    full = patches.shape[1]
    if full <= side:
        return patches.astype(np.float32)
    corners = rng.integers(0, full - side + 1, (len(patches), 2))
    crops = [patch[y : y + side, x : x + side] for patch, (y, x) in zip(patches, corners, strict=True)]
    return np.stack(crops).astype(np.float32)


def _crop_centre(patches: npt.NDArray[np.float16], side: int) -> npt.NDArray[np.float16]:
    """Return the central square of each patch."""
    corner = max(0, patches.shape[1] - side) // 2
    return patches[:, corner : corner + side, corner : corner + side]


def _batch(
    network: AzpRc, examples: PublishedExamples, rows: npt.NDArray[np.int64], patches: npt.NDArray[np.float32]
) -> _Batch:
    """Return the normalised inputs and targets of some exposures."""
    arrays = examples.arrays.take(rows)
    inputs = published_tensors(network, patches, arrays.image, arrays.stars, arrays.telemetry)
    target, survey = (
        torch.from_numpy(column[rows].astype(np.float32)) for column in (examples.offset, examples.survey)
    )
    return _Batch(inputs, target, survey)


def _validate(network: AzpRc, examples: PublishedExamples) -> dict[str, float]:
    """Return ``rmse`` [mag], ``wrong_order`` and ``score``."""
    parts, n = [], len(examples.offset)
    for start in range(0, n, _VALIDATION_BATCH):
        rows = np.arange(start, min(start + _VALIDATION_BATCH, n))
        batch = _batch(network, examples, rows, examples.patches[rows].astype(np.float32))
        parts.append(network(batch.inputs))
    predicted, target = torch.cat(parts), torch.from_numpy(examples.offset.astype(np.float32))
    rmse = float((predicted - target).square().mean().sqrt())
    return {"rmse": rmse, "wrong_order": float(wrong_order(predicted, target)), "score": -rmse}
