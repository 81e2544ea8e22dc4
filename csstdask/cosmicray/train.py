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
from copy import deepcopy
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from safetensors.torch import load_file
from torch import Tensor, nn

from csstdask.cosmicray.card import find_card
from csstdask.cosmicray.examples import (
    SHARES,
    Cutting,
    Examples,
    Kind,
    Material,
    check_data,
    draw_examples,
    gather_material,
    joined,
)
from csstdask.cosmicray.expected import expected_of, valid_for
from csstdask.cosmicray.known import Truth, known_units
from csstdask.cosmicray.scoring import average_precision, calibrate, logit_of, precision_recall
from csstdask.cosmicray.unet import CHANNELS, build_unet
from csstdask.errors import InputError
from csstdask.mock.recipe import Split
from csstdask.nn.card import WEIGHTS_SUFFIX, ModelCard, write_card
from csstdask.nn.device import TrainingPrecision, autocast, checked_device, choose_device
from csstdask.nn.int8 import Int8UNet, measure_ranges
from csstdask.nn.trainer import Learner, Schedule, train
from csstdask.nn.weights import load_network, save_weights
from csstdask.toml_file import read_settings

log = logging.getLogger("csstdask")

Batch = tuple[Tensor, Tensor, Tensor]

#: Settings that do not decide the weights that are learnt: what is at the paths is told by the material.
_FREE = {
    "name", "version", "licence", "method", "data", "campaign", "events", "device", "threads", "lead_over", "remember",
}  # fmt: skip
#: Width of the real frames with truth [pixel].
_NARROWEST = 506
#: Logits that are neither clearly hit nor clearly not.
_DOUBTFUL = 4.0


class TrainingConfig(BaseModel):
    """All settings of a training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "unet"
    version: str = "1"
    licence: str = "BSD-3-Clause"
    method: str = "U-Net behind a space-to-depth stem (csstdask.cosmicray.unet)"
    data: str | None = Field(None, description="folder of real events and frames; none: generated tracks alone")
    campaign: str | None = Field(None, description="campaign with truth, such as one of stores/cr-detection.toml")
    truth: Truth = Field("truth", description="of the campaign: its simulator's, or labels of `csstdask label repeats`")
    detectors: tuple[int, ...] = Field((), description="of the campaign; none: all")
    exposures: int | None = Field(None, ge=1, description="of the campaign's training split, the first so many")
    events: tuple[str, ...] = Field((), description="libraries of events, as `csstdask label` cuts them from darks")
    shares: dict[Kind, float] = Field(SHARES, description="how often each kind of frame is drawn")
    hit_above: float = Field(1.0, ge=0, description="charge above which a pixel counts as hit [e-]")
    inputs: tuple[str, ...] = Field(CHANNELS, description="what the network sees of a pixel")
    channels: tuple[int, ...] = Field((32, 64, 96), description="of each level, the finest first")
    stem: int = Field(2, ge=1, description="pixels folded into channels, along each axis")
    merge: Literal["concatenate", "add"] = Field("concatenate", description="how levels meet on the way up")
    down: int = Field(2, ge=1, description="convolutions of a level on the way down")
    up: int = Field(2, ge=1, description="convolutions of a level on the way up")
    box: int = Field(128, ge=8, description="of the background mesh [pixel]")
    skies: int = Field(192, ge=0, description="mock skies")
    frames: int = Field(48, ge=1, description="drawn for an epoch")
    frame_size: int = Field(768, ge=128, description="[pixel]")
    patch: int = Field(256, ge=32, description="[pixel]")
    patches: int = Field(12, ge=1, description="cut from a frame")
    start_from: str | None = Field(None, description="card of a network of the same architecture to go on from")
    remember: float = Field(0.0, ge=0, le=1, description="share of the weights it went on from in those it ends with")
    teacher: str | None = Field(None, description="card of a network whose probabilities are learnt beside the truth")
    teacher_share: float = Field(0.7, ge=0, le=1, description="of the teacher's word in what is to be learnt")
    lead_over: str | None = Field(None, description="card of a network to be better than, in precision and recall both")
    on_sources: float = Field(0.5, ge=0, le=1, description="share of the patches on sources")
    source_weight: int = Field(5, ge=1, le=255, description="of a source's pixels in the loss")
    passes: int = Field(1, ge=1, description="over the patches of an epoch")
    batch: int = Field(8, ge=1)
    validation_frames: int = Field(24, ge=1)
    epochs: int = Field(26, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    freeze_norm: float = Field(1.0, ge=0, le=1, description="share of the epochs after which norms are frozen")
    patience: int = Field(20, ge=1)
    precision: TrainingPrecision = Field("bfloat16", description="float32 or bfloat16")
    threads: int = Field(1, ge=1, description="of the network; examples are drawn on another core")
    device: Annotated[str | None, AfterValidator(checked_device)] = None
    seed: int = Field(20261121, ge=0)

    @field_validator("inputs")
    @classmethod
    def _known_channels(cls, inputs: tuple[str, ...]) -> tuple[str, ...]:
        if not inputs or not set(inputs) <= set(CHANNELS):
            raise ValueError(f"found {list(inputs)}; wanted some of {list(CHANNELS)}")
        return inputs

    @model_validator(mode="after")
    def _sizes_agree(self) -> TrainingConfig:
        grid = self.stem * 2 ** (len(self.channels) - 1)
        if self.patch % grid:
            raise ValueError(f"patch = {self.patch} is no multiple of the network's grid, {grid}")
        if self.patch > min(self.frame_size, _NARROWEST):
            raise ValueError(f"patch = {self.patch} is larger than the frames, {min(self.frame_size, _NARROWEST)}")
        if self.remember and self.start_from is None:
            raise ValueError(f"remember = {self.remember}, but no start_from: wanted a network to remember")
        if self.patches == round(self.patches * self.on_sources):
            raise ValueError(f"on_sources = {self.on_sources} leaves no patch of {self.patches} to calibrate on")
        if self.batch > self.frames * self.patches:
            raise ValueError(f"batch = {self.batch} is more than the {self.frames * self.patches} patches of an epoch")
        return self

    @property
    def decisive(self) -> dict[str, Any]:
        """Return what decides the weights: a training is gone on with only under the same."""
        return self.model_dump(mode="json", exclude=_FREE)

    @property
    def architecture(self) -> dict[str, Any]:
        """Return the arguments of the network."""
        return {
            "inputs": len(self.inputs), "channels": list(self.channels), "stem": self.stem, "merge": self.merge,
            "down": self.down, "up": self.up,
        }  # fmt: skip

    @property
    def is_for_its_campaign(self) -> bool:
        """Tell whether the model is for the detectors of its campaign alone: a real one, or some of a mock's."""
        return self.truth == "labels" or bool(self.detectors)

    @property
    def cutting(self) -> Cutting:
        """Return how frames are cut into patches."""
        names = ("patch", "on_sources", "source_weight", "box", "hit_above")
        return Cutting(count=self.patches, **{name: getattr(self, name) for name in names})

    @property
    def schedule(self) -> Schedule:
        """Return how long and how fast to learn."""
        return Schedule(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            freeze_norm=self.freeze_norm,
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
    config = read_settings(TrainingConfig, path, "settings of a training", changes)
    if config.data is not None:
        check_data(Path(config.data))
    return config


#: Which of each two detectors of a campaign's validation split serve which end.
_PARTS = {"training": (0, 1), "validation": (0, 2), "calibration": (1, 2)}
Use = Literal["training", "validation", "calibration"]


@cache
def _material(use: Use, settings: str) -> Material:
    config = TrainingConfig.model_validate_json(settings)
    split: Split = "training" if use == "training" else "validation"
    known = None
    if config.campaign is not None:
        known = known_units(
            Path(config.campaign),
            split,
            part=_PARTS[use],
            truth=config.truth,
            detectors=config.detectors,
            exposures=config.exposures,
        )
    skies = config.skies if use == "training" else min(config.skies, config.validation_frames)
    data = None if config.data is None else Path(config.data)
    return gather_material(split, config.seed, skies, data, known=known, events=[Path(path) for path in config.events])


def material_for(config: TrainingConfig, use: Use) -> Material:
    """Return what examples are made of; it is gathered once a process."""
    return _material(use, config.model_dump_json())


def draw_patches(config: TrainingConfig, use: Use, number: int, frames: int) -> Examples:
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
    material = material_for(config, use)
    seeds = ((config.seed, list(_PARTS).index(use), number, index) for index in range(frames))
    # What the card says is of the campaign's own frames, where there is one: of what the network is for.
    own = use == "calibration" and config.campaign is not None
    shares: dict[Kind, float] = {"rendered": 1.0} if own else config.shares
    size, cutting = config.frame_size, config.cutting
    examples = joined([draw_examples(seed, material, shares, size, cutting) for seed in seeds])
    seen = [CHANNELS.index(name) for name in config.inputs]
    return replace(examples, channels=examples.channels[:, seen])


class _Feed:
    """Batches of examples, the next epoch's drawn while this one's are learnt from."""

    def __init__(self, config: TrainingConfig, pool: ProcessPoolExecutor) -> None:
        self.config, self.pool = config, pool
        self.drawn: dict[int, Future[Examples]] = {}

    def __call__(self, epoch: int) -> Iterator[Batch]:
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


def as_batch(examples: Examples, chosen: npt.NDArray[np.int64], *, mirror: bool = False) -> Batch:
    """Return channels, truth and weights of some patches as tensors, on request mirrored in x."""
    step = slice(None, None, -1 if mirror else 1)
    planes = (examples.channels[chosen], examples.hit[chosen, None], examples.weight[chosen, None])
    channels, hit, weight = (
        torch.from_numpy(np.ascontiguousarray(plane[..., step]).astype(np.float32)) for plane in planes
    )
    return channels.contiguous(memory_format=torch.channels_last), hit, weight


def weighted_loss(network: nn.Module, batch: Batch) -> Tensor:
    """Return the binary cross-entropy, averaged with the pixels' weights."""
    channels, hit, weight = (part.to(next(network.parameters()).device, non_blocking=True) for part in batch)
    logit = network(channels).float()
    each = nn.functional.binary_cross_entropy_with_logits(logit, hit, reduction="none")
    return (each * weight).sum() / weight.sum().clamp(min=1)


def taught_by(teacher: nn.Module, share: float, precision: TrainingPrecision) -> Callable[[Batch], Batch]:
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


def logits_of(
    network: nn.Module, examples: Examples, config: TrainingConfig, precision: TrainingPrecision
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
    material = material_for(config, "training")
    check_material(config, material)
    _check_rival(config)
    network = build_unet(**config.architecture)
    if config.start_from is not None:
        copy_weights(find_card("cosmicray", config.start_from), network)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        feed = _Feed(config, pool)
        validation = pool.submit(draw_patches, config, "validation", 0, config.validation_frames).result()
        counted = validation.weight > 0
        truth = validation.hit[counted]

        def validate(network: nn.Module) -> dict[str, float]:
            logit = logits_of(network, validation, config, config.precision)[counted]
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
        history = train(learner, config.schedule, to, device=device, announce=announce)
        held_out = pool.submit(draw_patches, config, "calibration", 0, config.validation_frames).result()
    if config.start_from is not None and config.remember:
        average_with(find_card("cosmicray", config.start_from), network, config.remember)
    card = _card(config, material.sources, network, held_out, history, to)
    path = to / f"{config.name}.json"
    write_card(path, card)
    if (units := material_for(config, "calibration").known) is not None:
        announce("measuring what it finds in units that it did not learn from")
        card = replace(card, expects=expected_of(path, units))
        if config.is_for_its_campaign and material.known is not None:
            card = replace(card, valid=valid_for(material.known))
        write_card(path, card)
    return path


def _teaching(config: TrainingConfig, device: torch.device) -> Callable[[Batch], Batch]:
    """Return what is done to each batch before it is learnt from."""
    if config.teacher is None:
        return lambda batch: batch
    card = find_card("cosmicray", config.teacher)
    if card.normalisation.get("channels") != list(config.inputs):
        raise InputError(
            card.name, f"a teacher that sees {card.normalisation.get('channels')}", f"{list(config.inputs)}"
        )
    teacher = load_network(card, build_unet, device)
    return taught_by(teacher, config.teacher_share, config.precision)


def check_material(config: TrainingConfig, material: Material) -> None:
    """Raise InputError unless there is something to learn from, large enough to be cut into patches."""
    if not any(share > 0 and material.has(kind) for kind, share in config.shares.items()):
        wanted = "--campaign, --data or mock skies, for one of the frames that it wants"
        raise InputError("training", f"no material for {', '.join(config.shares)}", wanted)
    if material.known is not None and min(material.known.shape) < config.patch:
        found = f"frames of {material.known.shape[0]} x {material.known.shape[1]} pixels"
        raise InputError(material.known.path, found, f"at least the patch, {config.patch} pixels")


def copy_weights(card: ModelCard, network: nn.Module) -> None:
    """Give a network the weights of a card.

    Raises
    ------
    InputError
        If the card has none, or those of another architecture.
    """
    wanted = "a network of the same architecture"
    if card.weights is None:
        raise InputError("start_from", f"{card.name}, a method without weights", wanted)
    try:
        network.load_state_dict(load_file(card.weights))
    except RuntimeError as error:
        raise InputError(card.weights, " ".join(str(error).split())[:160], wanted) from None


def average_with(card: ModelCard, network: nn.Module, share: float) -> None:
    """Mix the weights that a training went on from into those it has come to.

    What they average to keeps most of what was gained on the training's own frames, and what the earlier network could
    do elsewhere (Wortsman et al. 2022, arXiv:2109.01903).
    """
    before = deepcopy(network)
    copy_weights(card, before)
    earlier = before.state_dict()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                value.lerp_(earlier[name].to(value), share)


def _in_int8(
    network: nn.Module, examples: Examples, config: TrainingConfig
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return how far the network's layers go on some patches, and what int8 adds to its output, to be taken off again.

    Nothing where the network cannot be in int8.
    """
    if config.merge != "concatenate":
        return {}, {}
    fused = build_unet(**config.architecture)
    fused.load_state_dict(network.state_dict())
    fused.eval().to(memory_format=torch.channels_last).fuse()  # type: ignore[call-overload]
    patches = [as_batch(examples, np.asarray([index]))[0] for index in range(len(examples.hit))]
    ranges = measure_ranges(fused, patches)
    quantised, added = Int8UNet(fused, ranges), []
    with torch.inference_mode():
        for patch in patches:
            logit = fused(patch)
            doubtful = logit.abs() < _DOUBTFUL
            added.append((quantised(patch) - logit)[doubtful])
    shifts = torch.cat(added)
    return ranges, {"int8_offset": -round(float(shifts.mean()), 4) if len(shifts) else 0.0}


def _origins(config: TrainingConfig) -> dict[str, str]:
    """Return the SHA-256 of the networks that a training begins with and learns from."""
    named = {"weights of start_from": config.start_from, "weights of teacher": config.teacher}
    return {key: find_card("cosmicray", model).sha256 for key, model in named.items() if model is not None}


def _check_rival(config: TrainingConfig) -> None:
    """Raise InputError if the network to be better than cannot be judged on the same examples: now, not at the end."""
    if config.lead_over is None:
        return
    card = find_card("cosmicray", config.lead_over)
    names, box = set(card.normalisation.get("channels", [])), card.normalisation.get("box")
    if card.weights is None or card.threshold is None or not names <= set(config.inputs):
        raise InputError(
            "lead_over", f"{card.name}, which sees {sorted(names)}", f"a network that sees {config.inputs}"
        )
    if box != config.box:
        raise InputError("lead_over", f"{card.name}, whose background has boxes of {box}", f"{config.box}")


def _rates_of_another(
    config: TrainingConfig, examples: Examples, counted: npt.NDArray[np.bool_]
) -> tuple[float, float]:
    """Return precision and recall that another network has on these examples at its own threshold."""
    card = find_card("cosmicray", str(config.lead_over))
    names = card.normalisation["channels"]
    seen = replace(examples, channels=examples.channels[:, [config.inputs.index(name) for name in names]])
    network = load_network(card, build_unet, torch.device("cpu"))
    logit = card.calibration["scale"] * logits_of(network, seen, config, "float32") + card.calibration["offset"]
    found = logit[counted] >= float(logit_of(card.threshold or 0.5))
    truth = examples.hit[counted]
    right = float((found & truth).sum())
    return right / max(1, int(found.sum())), right / max(1, int(truth.sum()))


def _card(
    config: TrainingConfig,
    sources: list[str],
    network: nn.Module,
    examples: Examples,
    history: list[dict[str, float]],
    to: Path,
) -> ModelCard:
    """Calibrate, choose the threshold, both on examples of their own; write the weights.

    The threshold is that of the best F1; or, where there is a network to be better than, that at which the smaller of
    the leads in precision and in recall is largest. What the card says is of the network as it will run: in float32,
    on places of a frame as they come.
    """
    sha256 = save_weights(network, to / f"{config.name}{WEIGHTS_SUFFIX}")
    counted = (examples.weight > 0) & examples.uniform[:, None, None]
    logit, truth = logits_of(network, examples, config, "float32")[counted], examples.hit[counted]
    density = np.broadcast_to(examples.density[:, None, None], counted.shape)[counted]
    calibration = calibrate(logit, truth, density)
    ranges, int8_offset = _in_int8(network, examples, config)
    threshold, precision, recall = precision_recall(calibration["scale"] * logit + calibration["offset"], truth)
    if config.lead_over is None:
        merit = 2 * precision * recall / np.maximum(1e-9, precision + recall)
    else:
        theirs = _rates_of_another(config, examples, counted)
        merit = np.minimum(precision - theirs[0], recall - theirs[1])
    best = int(np.argmax(merit))
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
