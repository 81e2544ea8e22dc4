"""Training of AZP-RC as published, on mock surveys.

The loss is that of the article (sections 3.3 and 3.4): the mean square error, 0.1 times the share of pairs in the wrong
order, and a discriminator of the survey that sees the predicted offset alone, with alpha = 0.01. The ranking indicator
has no gradient: it is computed and logged, and changes no weight. Offsets are in units of their scatter, otherwise
alpha would outweigh the mean square error. The minimax over network and discriminator is that of a reversed gradient.

Its target is the solved zero point ("derived from the standard comparison pipeline"), unsolved exposures are left out.
Images are learnt from as random crops: the network averages over pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from csstdask.nn.card import ModelCard, write_card
from csstdask.nn.trainer import Learner, train
from csstdask.nn.weights import save_weights
from csstdask.training.zeropoint.config import ZeropointConfig
from csstdask.training.zeropoint.fit import reverse_gradient
from csstdask.training.zeropoint.surveys import SurveyInputs, load_surveys
from csstdask.zeropoint.prior import PriorArrays, build_star_lists, concatenate_arrays, image_statistics
from csstdask.zeropoint.prior.azprc import (
    MAX_ENCODER_STARS,
    PUBLISHED_TELEMETRY,
    AzpRc,
    PublishedTensors,
    normalise_patch,
    published_star_rows,
    published_tensors,
)
from csstdask.zeropoint.prior.network import finite_moments

log = logging.getLogger("csstdask")

LEAST_STARS = 3
"""Exposures with fewer stars are not trained on: their solved zero point may be that of a variable star."""
_VALIDATION = 256
"""Exposures of the validation."""


@dataclass(frozen=True)
class PublishedExamples:
    """Inputs and targets of n exposures."""

    arrays: PriorArrays
    patches: npt.NDArray[np.float16]
    """(n, y, x) As of `normalise_patch`."""
    offset: npt.NDArray[np.float64]
    survey: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Batch:
    inputs: PublishedTensors
    target: Tensor
    survey: Tensor


class _Training(nn.Module):
    """The network and the discriminator of its output."""

    def __init__(self, network: AzpRc, config: ZeropointConfig, scale: float) -> None:
        super().__init__()
        self.network, self.config, self.scale = network, config, scale
        self.discriminator = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 1))

    def loss(self, batch: _Batch) -> Tensor:
        predicted = self.network(batch.inputs) / self.scale
        target = batch.target / self.scale
        loss = nn.functional.mse_loss(predicted, target) + self.config.ranking * wrong_order(predicted, target)
        if self.config.adversarial > 0:
            centred = (predicted - self.network.offset_mean / self.scale)[:, None]
            logits = self.discriminator(reverse_gradient(centred, 1.0)).squeeze(-1)
            adversarial = nn.functional.binary_cross_entropy_with_logits(logits, batch.survey)
            loss = loss + self.config.adversarial * adversarial
        return loss


def wrong_order(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the share of pairs in the wrong order, the article's ranking penalty; its gradient is zero."""
    n = len(predicted)
    with torch.no_grad():
        product = (predicted[:, None] - predicted) * (target[:, None] - target)
        return (product < 0).float().sum() / max(1, n * (n - 1))


def published_examples(
    surveys: Mapping[str, SurveyInputs], part: str, *, image: bool = True, at_most: int | None = None, seed: int = 0
) -> PublishedExamples:
    """Return solved exposures of a part of all surveys with their patches.

    Parameters
    ----------
    surveys : mapping of SurveyInputs
    part : str
        ``train``, ``validation`` or ``test``.
    image : bool
        Whether patches are rendered.
    at_most : int, optional
        A random choice of so many exposures.
    seed : int
    """
    arrays, patches, offset, label = [], [], [], []
    total = sum(int((one.split == part).sum()) for one in surveys.values())
    for k, one in enumerate(surveys.values()):
        s = one.exposures
        rows = np.flatnonzero((one.split == part) & (s.n_stars >= LEAST_STARS) & np.isfinite(s.solved))
        if at_most is not None:
            share = at_most / max(1, total)
            rows = np.sort(np.random.default_rng([seed, k]).permutation(rows)[: max(4, round(share * len(rows)))])
        lists = build_star_lists([s.stars(int(i)) for i in rows], shape=s.shape, max_stars=MAX_ENCODER_STARS)
        lists.values[..., 0] += np.float32(s.nominal)
        found = one.arrays(0, PUBLISHED_TELEMETRY).take(rows)
        side = 256 if image else 1
        cut, statistics = np.zeros((len(rows), side, side), np.float16), found.image.copy()
        for at, i in enumerate(rows if image else ()):
            patch = s.patch(int(i))
            cut[at], statistics[at] = normalise_patch(patch), image_statistics(patch)
        arrays.append(PriorArrays(**{**vars(found), "stars": lists.values, "image": statistics}))
        patches.append(cut)
        offset.append(one.solved[rows])
        label.append(np.full(len(rows), k))
    return PublishedExamples(
        concatenate_arrays(arrays), np.concatenate(patches), np.concatenate(offset), np.concatenate(label)
    )


def train_azprc(config: ZeropointConfig, to: Path, *, on_progress: Callable[[str], None] = log.info) -> Path:
    """Train the published network; return its card.

    Parameters
    ----------
    config : ZeropointConfig
        With ``kind = "azprc"``.
    to : Path
        Folder of the training, which is resumed if it is there.
    announce : callable
        Receives a line an epoch.
    """
    torch.set_num_threads(config.threads)
    on_progress(f"exposures of recipe {config.recipe}")
    surveys = load_surveys(config.recipe, config.exposures, memory=0, image=False)
    known = published_examples(surveys, "train", image=config.image)
    checked = published_examples(surveys, "validation", image=config.image, at_most=_VALIDATION, seed=config.seed)
    quick = replace(checked, patches=_middle(checked.patches, config.crop))
    torch.manual_seed(config.seed)
    network = AzpRc(image=config.image, stars=config.stars, telemetry_branch=config.telemetry_branch)
    normalise_by(network, known)
    model = _Training(network, config, float(known.offset.std()))
    n = min(config.examples, len(known.offset))

    def batches(epoch: int) -> Iterable[_Batch]:
        rng = np.random.default_rng([config.seed, epoch])
        order = rng.permutation(len(known.offset))[:n]
        for start in range(0, n, config.batch):
            some = order[start : start + config.batch]
            if len(some) > 1:
                yield _batch(network, known, some, _crops(known.patches[some], config.crop, rng))

    learner = Learner(
        model,
        batches=batches,
        steps=-(-n // config.batch),
        loss=_loss,
        validate=lambda one: _validate(one.network, quick),  # type: ignore[arg-type]
        identity=config.identity,
    )
    history = train(learner, config.schedule, to, device=torch.device("cpu"), on_progress=on_progress)
    with torch.inference_mode():
        network.eval()
        found = _validate(network, checked)
        network.rms.fill_(found["rmse"])
    return _write(network, config, history, found, len(known.offset), to)


def normalise_by(network: AzpRc, known: PublishedExamples) -> None:
    """Set means and standard deviations of the inputs, and the mean of the output."""
    stars = known.arrays.stars
    names = network.telemetry
    limb = known.arrays.telemetry[:, names.index("earth_limb_angle")] if "earth_limb_angle" in names else None
    rows = published_star_rows(stars, np.full(len(stars), np.nan) if limb is None else limb)
    rows = rows[np.isfinite(stars[..., 0])]
    for name, values in (("statistics", known.arrays.image), ("star", rows), ("telemetry", known.arrays.telemetry)):
        mean, std = finite_moments(values)
        getattr(network, f"{name}_mean").copy_(mean)
        getattr(network, f"{name}_std").copy_(std)
    network.offset_mean.fill_(float(known.offset.mean()))


def _loss(model: nn.Module, batch: _Batch) -> Tensor:
    return model.loss(batch)  # type: ignore[operator]


def _crops(patches: npt.NDArray[np.float16], side: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return a random crop of each patch."""
    full = patches.shape[1]
    if full <= side:
        return patches.astype(np.float32)
    corner = rng.integers(0, full - side + 1, (len(patches), 2))
    return np.stack([one[y : y + side, x : x + side] for one, (y, x) in zip(patches, corner, strict=True)]).astype(
        np.float32
    )


def _middle(patches: npt.NDArray[np.float16], side: int) -> npt.NDArray[np.float16]:
    """Return the middle of each patch."""
    corner = max(0, patches.shape[1] - side) // 2
    return patches[:, corner : corner + side, corner : corner + side]


def _batch(
    network: AzpRc, known: PublishedExamples, some: npt.NDArray[np.int64], patches: npt.NDArray[np.float32]
) -> _Batch:
    part = known.arrays.take(some)
    inputs = published_tensors(network, patches, part.image, part.stars, part.telemetry)
    target, survey = (torch.from_numpy(one[some].astype(np.float32)) for one in (known.offset, known.survey))
    return _Batch(inputs, target, survey)


def _validate(network: AzpRc, checked: PublishedExamples) -> dict[str, float]:
    found = []
    for start in range(0, len(checked.offset), 32):
        some = np.arange(start, min(start + 32, len(checked.offset)))
        batch = _batch(network, checked, some, checked.patches[some].astype(np.float32))
        found.append(network(batch.inputs))
    predicted, target = torch.cat(found), torch.from_numpy(checked.offset.astype(np.float32))
    rmse = float((predicted - target).square().mean().sqrt())
    return {"rmse": rmse, "wrong_order": float(wrong_order(predicted, target)), "score": -rmse}


def _write(
    network: AzpRc, config: ZeropointConfig, history: list[dict[str, float]], found: dict[str, float], n: int, to: Path
) -> Path:
    path = to / f"{config.name}.json"
    sha256 = save_weights(network, path.with_suffix(".safetensors"))
    metrics = {
        "data": "exposures after those of the training; errors against solved zero points",
        "epochs": len(history),
        **{name: round(found[name], 6) for name in ("rmse", "wrong_order")},
    }
    write_card(
        path,
        ModelCard(
            config.name, "zeropoint", config.version, "AZP-RC as described (csstdask.zeropoint.prior.azprc)",
            config.licence,
            f"{n} exposures of two mock surveys, first 60 % of their days", sha256, architecture=network.architecture,
            metrics=metrics,
        ),
    )  # fmt: skip
    return path
