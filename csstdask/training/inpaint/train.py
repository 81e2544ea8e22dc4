"""Training of the networks that repair sources: ``csstdask train inpaint``.

Ours learns by the Gaussian likelihood of what hit pixels would have measured: its mean and its variance at once. The
baseline ``unetpp`` learns as published: mean squared error of stamps scaled to [0, 1], hit pixels weighted
``alpha + 1`` times, at every depth (CSST rejection paper, section 3.2).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from safetensors.torch import load_file
from scipy.optimize import brentq
from torch import Tensor, nn

from csstdask.core.errors import InputError
from csstdask.core.settings import read_settings
from csstdask.cosmicray.inpaint_network import (
    SIZE,
    Scaling,
    build_inpainting_network,
    decode_output,
    deepest_output,
    is_source,
    network_inputs,
    pixel_variance,
)
from csstdask.datasets.labelled_units import LabelledUnits, RepairTruth, select_units
from csstdask.nn.card import WEIGHTS_SUFFIX, ModelCard, write_card
from csstdask.nn.device import TrainingPrecision, choose_device, validate_device
from csstdask.nn.models import find_card
from csstdask.nn.trainer import Learner, Schedule, train
from csstdask.nn.weights import save_weights
from csstdask.training.inpaint.examples import Examples, Material, batches, gather

log = logging.getLogger("csstdask")

#: Radius within which repaired pixels are summed to learn how far they are wrong together [pixel].
_APERTURE = 5.0
#: Pulls beyond this count as this: a few misses must not be all that a calibration tells.
_FURTHEST = 10.0
#: Batches of calibration for each one of validation: few hits lie on the middle of a source.
_CALIBRATION = 4


class InpaintTrainingConfig(BaseModel):
    """All settings of a training of repair."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "unet"
    version: str = "1"
    licence: str = "BSD-3-Clause"
    method: str = "U-Net on 64 x 64 stamps, Gaussian likelihood (csstdask.cosmicray.inpaint_network)"
    campaigns: tuple[str, ...] = Field(min_length=1, description="of one instrument or several")
    truth: RepairTruth = Field("truth", description="of the campaigns: a simulator's, labels, or what detection finds")
    kind: Literal["unet", "unetpp"] = "unet"
    scaling: Scaling = "noise"
    channels: tuple[int, ...] = Field((32, 64, 96), description="of each level, the finest first")
    start_from: str | None = Field(None, description="card of such a network to go on from")
    each: int = Field(120, ge=1, description="sources of a unit")
    alpha: float = Field(4.0, ge=0, description="weight of hit pixels beside 1, of the published loss")
    source_weight: float = Field(4.0, ge=1, description="of a source's pixels in the likelihood")
    batch: int = Field(32, ge=1)
    steps: int = Field(100, ge=1, description="batches of an epoch")
    validation_batches: int = Field(24, ge=1)
    epochs: int = Field(40, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    patience: int = Field(20, ge=1)
    precision: TrainingPrecision = Field("float32", description="float32 or bfloat16")
    threads: int = Field(1, ge=1)
    device: Annotated[str | None, AfterValidator(validate_device)] = None
    seed: int = Field(20261122, ge=0)

    @property
    def architecture(self) -> dict[str, Any]:
        """Return the arguments of the network."""
        return {"kind": self.kind, "scaling": self.scaling, "channels": list(self.channels)}

    @property
    def schedule(self) -> Schedule:
        """Return how long and how fast to learn."""
        names = ("epochs", "learning_rate", "weight_decay", "patience", "precision", "seed")
        return Schedule(**{name: getattr(self, name) for name in names})


def load_inpaint_config(path: Path | None, **changes: Any) -> InpaintTrainingConfig:
    """Read the settings of a training from a TOML file; `changes` that are not None win.

    Raises
    ------
    InputError
        Naming the file and every key that is unknown or wrong.
    """
    return read_settings(InpaintTrainingConfig, path, "settings of a training of repair", changes)


def train_inpaint(config: InpaintTrainingConfig, to: Path, *, on_progress: Callable[[str], None] = log.info) -> Path:
    """Train a network that repairs sources, or go on with a training.

    Parameters
    ----------
    config : RepairConfig
    to : Path
        Folder of the training.
    announce : callable
        Told in a line how each epoch went.

    Returns
    -------
    Path
        The card; the weights lie beside it.

    Raises
    ------
    InputError
        If a campaign has not the truth that is asked for, no sources or no cosmic rays, or nothing to validate on.
    """
    torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    to.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    training = [select_units(Path(path), "training", truth=config.truth) for path in config.campaigns]
    # As in detection: of each two detectors one decides when to stop, the other what the card says.
    stopping, calibrating = (
        [select_units(Path(path), "validation", part=(place, 2), truth=config.truth) for path in config.campaigns]
        for place in (0, 1)
    )
    learnt, held_out, apart = (_material(config, units, on_progress) for units in (training, stopping, calibrating))
    network = build_inpainting_network(**config.architecture)
    origin = {} if config.start_from is None else {"weights of start_from": _begin_from(config.start_from, network)}
    tested = list(batches(held_out, config.validation_batches, config.batch, (config.seed, 1)))

    def drawn(epoch: int) -> Iterator[Examples]:
        return batches(learnt, config.steps, config.batch, (config.seed, 0, epoch))

    identity = config.model_dump(mode="json", exclude={"name", "version", "licence", "method", "device", "threads"})
    learner = Learner(
        network,
        drawn,
        config.steps,
        partial(loss_of, config=config),
        lambda network: scores(network, tested, config.scaling),
        identity | origin | {"units": [units.identity for units in (*training, *stopping)]},
    )
    history = train(learner, config.schedule, to, device=device, on_progress=on_progress)
    calibration = list(batches(apart, _CALIBRATION * config.validation_batches, config.batch, (config.seed, 2)))
    return _write(config, network, training, calibration, len(history), to)


def _begin_from(model: str, network: nn.Module) -> str:
    """Give a network the weights of a card; return their SHA-256."""
    card = find_card("inpaint", model)
    if card.weights is None:
        raise InputError("start_from", f"{card.name}, a method without weights", "a network")
    try:
        network.load_state_dict(load_file(card.weights))
    except RuntimeError as error:
        found = " ".join(str(error).split())[:160]
        raise InputError(card.weights, found, "a network of the same architecture") from None
    return card.sha256


def _material(
    config: InpaintTrainingConfig, campaigns: list[LabelledUnits], on_progress: Callable[[str], None]
) -> Material:
    parts = []
    for units in campaigns:
        on_progress(f"cutting stamps from {len(units)} units of {units.path.name}")
        parts.append(gather(units, config.each, config.seed))
    names = ("light", "noise", "unknown", "charge")
    light, noise, unknown, charge = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
    material = Material(light, noise, unknown, charge, as_found=config.truth == "detected")
    if not len(material) or not len(material.charge):
        found = "no source" if not len(material) else "no cosmic ray"
        raise InputError(", ".join(config.campaigns), found, "units with both")
    return material


def loss_of(network: nn.Module, examples: Examples, *, config: InpaintTrainingConfig) -> Tensor:
    """Return what is to be made small."""
    examples = examples.to(next(network.parameters()).device)
    stamps = examples.stamps
    outputs = network(network_inputs(stamps, config.scaling))
    if config.scaling == "min-max":
        return _published_loss(outputs, examples, config)
    height, variance = decode_output(deepest_output(outputs).float(), stamps, "noise")
    own = pixel_variance(examples.light, stamps.noise)
    each = (height - examples.light) ** 2 / variance + torch.log(variance / own)
    source = is_source(examples.light, stamps)
    weight = torch.where(source, config.source_weight, 1.0) * stamps.hit
    return 0.5 * (each * weight).sum() / weight.sum().clamp_min(1)


def _published_loss(outputs: Tensor | list[Tensor], examples: Examples, config: InpaintTrainingConfig) -> Tensor:
    stamps = examples.stamps
    weight = config.alpha * stamps.hit + 1
    every = outputs if isinstance(outputs, list) else [outputs]
    losses = []
    for output in every:
        zero, one = (decode_output(torch.full_like(output, level), stamps, "min-max")[0] for level in (0.0, 1.0))
        wanted = (examples.light - zero) / (one - zero)
        losses.append((weight * (output[:, 0] - wanted) ** 2).mean())
    return torch.stack(losses).mean()


def scores(network: nn.Module, tested: list[Examples], scaling: Scaling) -> dict[str, float]:
    """Return how well hit pixels are foretold, in units of the noise that they would have had.

    ``rms_source`` and ``bias_source`` are of pixels above 3 sigma; ``score`` is the mean log likelihood.
    """
    pull, relative, source = _pulls(network, tested, scaling)
    error = pull * relative.sqrt()
    likelihood = -0.5 * (pull**2 + relative.log())
    return {
        "score": float(likelihood.clamp_min(-50).mean()),
        "score_source": float(likelihood[source].clamp_min(-50).mean()),
        "rms_source": float(error[source].clamp(-20, 20).square().mean().sqrt()),
        "bias_source": float(error[source].clamp(-20, 20).mean()),
        "pull_variance": float(pull.clamp(-20, 20).square().mean()),
    }


def _pulls(network: nn.Module, tested: list[Examples], scaling: Scaling) -> tuple[Tensor, Tensor, Tensor]:
    """Return, of hit pixels, error over its sigma, variance over its own, and whether it is told a source."""
    parts = []
    for height, variance, examples in _told(network, tested, scaling):
        stamps, own = examples.stamps, pixel_variance(examples.light, examples.stamps.noise)
        pull = (height - examples.light) / variance.sqrt()
        parts.append(tuple(one[stamps.hit].cpu() for one in (pull, variance / own, is_source(height, stamps))))
    pull, relative, source = (torch.cat(one) for one in zip(*parts, strict=True))
    return pull, relative, source


def _told(network: nn.Module, given: list[Examples], scaling: Scaling) -> Iterator[tuple[Tensor, Tensor, Examples]]:
    """Yield the heights and variances that a network tells of each batch [e-, e-^2], and the batch on its device."""
    network.eval()
    device = next(network.parameters()).device
    for one in given:
        examples = one.to(device)
        with torch.inference_mode():
            seen = network_inputs(examples.stamps, scaling)
            height, variance = decode_output(deepest_output(network(seen)).float(), examples.stamps, scaling)
        yield height, variance, examples


def fit_correlation(network: nn.Module, given: list[Examples], scaling: Scaling, factors: dict[str, float]) -> float:
    """Return the correlation of repaired pixels of a source that makes the pulls of their sums one wide, 0 to 1.

    Sums are over the repaired pixels within `_APERTURE` pixels of a stamp's middle; their variance is taken as
    ``sum(sigma^2) + correlation * (sum(beyond)^2 - sum(beyond^2))``, with ``beyond^2`` what the variance is beyond the
    noise that a pixel would have had itself.

    Parameters
    ----------
    network : Module
    given : list of Examples
        That did not decide about its weights.
    scaling : str
        Of its input.
    factors : dict
        What its variance is to be multiplied with, on ``sky`` and on a ``source``.
    """
    place = torch.arange(SIZE) - SIZE // 2
    near = torch.hypot(place[:, None].float(), place[None].float()) <= _APERTURE
    parts = []
    for height, variance, examples in _told(network, given, scaling):
        stamps = examples.stamps
        inside = stamps.hit & near.to(stamps.hit.device)
        calibrated = variance * torch.where(is_source(height, stamps), factors["source"], factors["sky"])
        beyond = (calibrated - pixel_variance(height, stamps.noise)).clamp_min(0)
        planes = (height - examples.light, calibrated, beyond, beyond.sqrt())
        parts.append(torch.stack([(plane * inside).sum(dim=(1, 2)) for plane in planes]).cpu())
    error, alone, beyond_alone, beyond_sigma = torch.cat(parts, dim=1).double().numpy()
    some = alone > 0
    error, alone, together = error[some], alone[some], beyond_sigma[some] ** 2 - beyond_alone[some]

    def excess(correlation: float) -> float:
        return float(np.minimum(error**2 / (alone + correlation * together), _FURTHEST**2).mean()) - 1

    if not some.any() or excess(0.0) <= 0:
        return 0.0
    return 1.0 if excess(1.0) >= 0 else float(brentq(excess, 0.0, 1.0))


def _write(
    config: InpaintTrainingConfig,
    network: nn.Module,
    units: list[LabelledUnits],
    calibration: list[Examples],
    epochs: int,
    to: Path,
) -> Path:
    """Write weights and card; the variance is calibrated on stamps that did not decide when to stop."""
    sha256 = save_weights(network, to / f"{config.name}{WEIGHTS_SUFFIX}")
    pull, _, source = _pulls(network, calibration, config.scaling)
    factors = {
        name: float(pull[one].clamp(-_FURTHEST, _FURTHEST).square().mean()) if one.any() else 1.0
        for name, one in (("sky", ~source), ("source", source))
    }
    factors["correlation"] = fit_correlation(network, calibration, config.scaling, factors)
    found = scores(network, calibration, config.scaling)
    card = ModelCard(
        name=config.name,
        task="inpaint",
        version=config.version,
        method=config.method,
        licence=config.licence,
        trained_on="; ".join(f"{len(one)} units of {one.path.name}, {one.truth}" for one in units),
        sha256=sha256,
        architecture=config.architecture,
        normalisation={"size": SIZE},
        calibration=factors,
        metrics={
            "data": "validation stamps that did not decide when to stop; in units of a pixel's own noise",
            **{name: round(value, 4) for name, value in found.items()},
            "epochs": epochs,
        },
    )
    path = to / f"{config.name}.json"
    write_card(path, card)
    return path
