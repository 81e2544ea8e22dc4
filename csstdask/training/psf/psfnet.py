"""Train CSST-PSFNet: ``csstdask train psf`` with ``kind = "psfnet"``.

The training set are stamp sets (``csstdask mock stores/psf-dataset1.toml``) with one of three kinds of labels:

* ``truth``: the PSFs of the simulator, as published;
* ``psfex``: the PSFs of PSFEx for the same stars, for real data (the paper's weak labels);
* ``stars``: no PSF. The predicted PSF is rendered at the pixels of each star and compared with them, with their noise.
  This adapts a network in orbit.

The loss is the squared error, with PSFs scaled so that their peaks are of the order of one, plus the divergence of the
latent code from a unit Gaussian, whose weight rises from zero over the first epochs (equations 1 to 4). The paper does
not give learning rate, weight decay, size of the code and both weights; our choices are those of `PsfNetConfig`.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from scipy.optimize import nnls
from torch import Tensor, nn

from csstdask.core.errors import InputError
from csstdask.instrument import Instrument
from csstdask.nn.card import WEIGHTS_SUFFIX, ModelCard, write_card
from csstdask.nn.device import TrainingPrecision, choose_device, validate_device
from csstdask.nn.models import find_card
from csstdask.nn.trainer import Learner, Schedule, train
from csstdask.nn.weights import load_network, save_weights
from csstdask.psf.model_card import model_kind
from csstdask.psf.network import GROUPS, STAMP
from csstdask.psf.pixels import subpixel_offset
from csstdask.psf.psfnet import build_psfnet, detector_indices, normalise_positions, normalise_stamps, pixel_pulls
from csstdask.store.stamps import open_stamps
from csstdask.training.psf.psfex import psfex_at_stars

log = logging.getLogger("csstdask")

Images = npt.NDArray[np.float32]
Labels = Literal["truth", "psfex", "stars"]

#: Factor on PSFs in the loss: their peaks, some hundredths of their light, are then of the order of one.
_SCALE = 16.0
#: Residual of a pixel beyond which the loss is linear, because of neighbours and cosmic rays [sigma].
_HUBER_DELTA = 10.0
#: Settings that do not change the result; stamp sets and weights are identified by their content.
_IRRELEVANT_SETTINGS = {"name", "version", "licence", "method", "device", "threads", "campaigns", "start_from"}
#: Bins of light for the calibration of sigmas.
_BINS = 24


class PsfNetConfig(BaseModel):
    """Settings of a training of CSST-PSFNet."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["psfnet"] = "psfnet"
    name: str = "psfnet"
    version: str = "1"
    licence: str = "BSD-3-Clause"
    method: str = "CSST-PSFNet (csstdask.psf.network)"
    campaigns: tuple[str, ...] = Field(min_length=1, description="stamp sets of isolated stars, of one instrument")
    labels: Labels = Field("truth", description="PSFs of the simulator or of PSFEx, or the pixels of stars")
    start_from: str | None = Field(None, description="name or card of a network to start from")
    stars: int | None = Field(None, ge=8, description="largest number of stars per unit; by default all")
    validation: float = Field(0.21, gt=0, lt=1, description="share of each unit's stars; 3,728 of 17,968 in the paper")
    channels: tuple[int, int, int] = (8, 16, 32)
    width: int = Field(64, ge=8)
    heads: int = Field(4, ge=1)
    layers: int = Field(2, ge=1)
    latent: int = Field(64, ge=1)
    upward: tuple[int, int, int] = (32, 16, 8)
    divergence: float = Field(1e-6, ge=0, description="final weight of the divergence of the latent code")
    rise: float = Field(5.0, ge=0, description="number of epochs over which that weight rises linearly")
    batch: int = Field(16, ge=1)
    epochs: int = Field(200, ge=1)
    warm_up: float = Field(5.0, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    patience: int = Field(20, ge=1)
    precision: TrainingPrecision = Field("float32", description="float32 or bfloat16")
    threads: int = Field(1, ge=1)
    device: Annotated[str | None, AfterValidator(validate_device)] = None
    seed: int = Field(20261127, ge=0)

    @model_validator(mode="after")
    def _sizes_fit(self) -> PsfNetConfig:
        if odd := [one for one in self.channels if one % GROUPS]:
            raise ValueError(f"channels: found {odd[0]}; wanted multiples of {GROUPS}")
        if self.width % self.heads:
            raise ValueError(f"width = {self.width} with {self.heads} heads: wanted a multiple of them")
        if self.labels == "stars" and self.start_from is None:
            raise ValueError("labels = stars: wanted a network to start from, whose calibration of sigmas is kept")
        return self

    @property
    def sizes(self) -> dict[str, Any]:
        """Return the sizes of the network, as `csstdask.psf.network.PsfNet` takes them."""
        found = {name: getattr(self, name) for name in ("channels", "width", "heads", "layers", "latent", "upward")}
        return {name: list(one) if isinstance(one, tuple) else one for name, one in found.items()}

    @property
    def schedule(self) -> Schedule:
        """Return the schedule of the training (section III.2)."""
        names = ("epochs", "learning_rate", "warm_up", "weight_decay", "patience", "precision", "seed")
        return Schedule(**{name: getattr(self, name) for name in names}, clip_norm=0.5, least_rate=0.01)


@dataclass(frozen=True)
class StarStamps:
    """Stars of several units, with their labels."""

    stamps: Images
    """(n, 32, 32) [e-]"""
    error: Images
    """(n, 32, 32) 1 sigma [e-]; inf where unknown."""
    detector: npt.NDArray[np.int64]
    x: npt.NDArray[np.float64]
    """(n,) Zero-based position on the whole detector [pixel]."""
    y: npt.NDArray[np.float64]
    unit: npt.NDArray[np.int64]
    psf: Images
    """(n, 64, 64) Labels; empty for training on the pixels of stars."""
    identities: tuple[str, ...] = ()
    """Identities of the stamp sets."""

    def __len__(self) -> int:
        return len(self.stamps)

    @property
    def ignored(self) -> npt.NDArray[np.bool_]:
        """(n, 32, 32) Pixels without a known error."""
        return ~np.isfinite(self.error)


@dataclass(frozen=True)
class Batch:
    """A batch of stars on a device."""

    seen: tuple[Tensor, Tensor, Tensor]
    """Input of the network: stamps, positions, detectors."""
    psf: Tensor
    """(n, 64, 64) Labels, or empty for training on pixels."""
    pixels: Tensor
    """(n, 32, 32) [e-]"""
    weight: Tensor
    """(n, 32, 32) 1 / variance."""
    phase: tuple[Tensor, Tensor]
    """Offsets x and y of each star from the centre of its pixel."""
    divergence: float = 0.0

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        stamps, places, detectors = (one.to(device) for one in self.seen)
        psf, pixels, weight, x, y = (one.to(device) for one in (self.psf, self.pixels, self.weight, *self.phase))
        return Batch((stamps, places, detectors), psf, pixels, weight, (x, y), self.divergence)

    def take(self, which: Tensor, divergence: float = 0.0) -> Batch:
        """Return a subset, with a weight of the divergence of the latent code."""
        stamps, places, detectors = (one[which] for one in self.seen)
        psf, pixels, weight, x, y = (one[which] for one in (self.psf, self.pixels, self.weight, *self.phase))
        return Batch((stamps, places, detectors), psf, pixels, weight, (x, y), divergence)


def train_psfnet(config: PsfNetConfig, to: Path, *, on_progress: Callable[[str], None] = log.info) -> Path:
    """Train CSST-PSFNet, or resume a training.

    Parameters
    ----------
    config : PsfNetConfig
    to : Path
        Output folder.
    on_progress : callable
        Called with one line for each epoch.

    Returns
    -------
    Path
        The card; the weights are in the same folder.

    Raises
    ------
    InputError
        If a stamp set lacks stars or labels, or `start_from` is a network of another kind, instrument or detectors.
    """
    torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    to.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    instrument, stars = read_stars(config, on_progress)
    if config.labels == "psfex":
        on_progress(f"running PSFEx on {len(np.unique(stars.unit))} units")
        stars = label_with_psfex(stars)
    seen = sorted(int(one) for one in np.unique(stars.detector))
    if config.start_from is None:
        start = None
        architecture = {"kind": "psfnet", "instrument": instrument.name, "detectors": seen, **config.sizes}
        network = build_psfnet(**architecture)
    else:
        start = _starting_card(config.start_from, instrument, seen)
        architecture = start.architecture
        network = copy.deepcopy(load_network(start, build_psfnet, torch.device("cpu"))).requires_grad_()
    detectors = architecture["detectors"]
    validation = _validation_stars(stars, config)
    learnt, held_out = (_prepared(stars, some, instrument, detectors, config) for some in (~validation, validation))
    steps = -(-len(learnt.pixels) // config.batch)
    identity = config.model_dump(mode="json", exclude=_IRRELEVANT_SETTINGS)
    learner = Learner(
        network,
        partial(_batches, learnt, config, steps),
        steps,
        partial(loss_of, labels=config.labels),
        lambda network: scores(network, held_out, config.labels),
        identity | {"stars": len(learnt.pixels), "start": start.sha256 if start else None, "sets": stars.identities},
    )
    history = train(learner, config.schedule, to, device=device, on_progress=on_progress)
    sha256 = save_weights(network, to / f"{config.name}{WEIGHTS_SUFFIX}")
    found = scores(network.eval(), held_out, config.labels)
    sets = ", ".join(Path(one).name for one in config.campaigns)
    card = ModelCard(
        name=config.name,
        task="psf",
        version=config.version,
        method=config.method,
        licence=config.licence,
        trained_on=f"{len(learnt.pixels)} stars of {sets}, {config.labels}",
        sha256=sha256,
        architecture=architecture,
        # Without labels, the error of PSFs is unknown: the calibration stays.
        calibration=start.calibration if start and config.labels == "stars" else calibrate_sigma(network, held_out),
        metrics={
            "data": f"{int(validation.sum())} stars not used in training, compared with their labels ({config.labels})",
            **{name: round(value, 4) for name, value in found.items()},
            "epochs": len(history),
        },
    )
    path = to / f"{config.name}.json"
    write_card(path, card)
    return path


def read_stars(config: PsfNetConfig, on_progress: Callable[[str], None] = log.info) -> tuple[Instrument, StarStamps]:
    """Read the stars of stamp sets, and their instrument.

    Raises
    ------
    InputError
        If a set is of another instrument than the first, has too small stamps, or lacks PSFs that are needed.
    """
    parts: list[dict[str, npt.NDArray[Any]]] = []
    identities = []
    instrument: Instrument | None = None
    for path in config.campaigns:
        data = open_stamps(path)
        own = Instrument.model_validate(data.attrs["instrument"])
        if instrument is not None and own.name != instrument.name:
            raise InputError(path, f"stamps of {own.name}", f"of {instrument.name}, as the first set's")
        instrument = own
        identities.append(str(data.attrs["identity"]))
        if data.sizes["y"] < STAMP or ("truth_psf" not in data and config.labels == "truth"):
            found = f"stamps of {data.sizes['y']} pixels, {'with' if 'truth_psf' in data else 'without'} PSFs"
            raise InputError(path, found, f"{STAMP} pixels at least, of isolated stars, with their PSFs")
        low = data.sizes["y"] // 2 - STAMP // 2
        window = {"y": slice(low, low + STAMP), "x": slice(low, low + STAMP)}
        for row, column in np.argwhere(data["n_stamps"].to_numpy() > 0):
            available = int(data["n_stamps"][row, column])
            rng = np.random.default_rng([config.seed, 2, len(parts)])
            some = np.sort(rng.permutation(available)[: config.stars])
            count = len(some)
            unit = data.isel(exposure=row, detector=column, stamp=some).isel(window)
            exptime = float(unit["exptime"])
            weight, flag = unit["wht"].to_numpy(), unit["flag"].to_numpy()
            with np.errstate(divide="ignore"):
                error = np.where(flag == 0, exptime / np.sqrt(weight), np.inf)
            truth = unit["truth_psf"].to_numpy() if config.labels == "truth" else np.empty((count, 0, 0))
            parts.append({
                "stamps": (unit["sci"].to_numpy() * exptime).astype(np.float32),
                "error": error.astype(np.float32),
                "detector": np.full(count, int(unit["detector"])),
                "x": unit["x_detector"].to_numpy(),
                "y": unit["y_detector"].to_numpy(),
                "unit": np.full(count, len(parts)),
                "psf": truth.astype(np.float32),
            })  # fmt: skip
    if instrument is None or not parts:
        raise InputError(", ".join(config.campaigns), "no stars", "units with stamps")
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    stars = StarStamps(**columns, identities=tuple(identities))
    on_progress(f"{len(stars)} stars of {len(parts)} units")
    return instrument, stars


def label_with_psfex(stars: StarStamps) -> StarStamps:
    """Return stars with the PSFs that PSFEx fits to the stars of each unit as labels.

    Raises
    ------
    InputError
        If PSFEx is not installed, or fails.
    """
    psf = np.empty((len(stars), 64, 64), np.float32)
    for unit in np.unique(stars.unit):
        some = stars.unit == unit
        psf[some] = psfex_at_stars(stars.stamps[some], stars.ignored[some], stars.x[some], stars.y[some])
    return replace(stars, psf=psf)


def _starting_card(model: str, instrument: Instrument, detectors: list[int]) -> ModelCard:
    """Return the card of a network to start from; InputError if it is of another kind, instrument or detectors."""
    try:
        card = find_card("psf", model)
    except ValueError as error:
        raise InputError("start_from", str(error), "the name of a network, or its card") from None
    if (kind := model_kind(card)) != "psfnet":
        raise InputError("start_from", f"{card.name}, of kind {kind}", "a network: psfnet")
    if (learnt := card.architecture["instrument"]) != instrument.name:
        raise InputError("start_from", f"{card.name}, of {learnt}", f"a network of {instrument.name}")
    if unknown := set(detectors) - set(card.architecture["detectors"]):
        raise InputError("campaigns", f"stars of detectors {sorted(unknown)}", f"such as {card.name} has learnt")
    return card


def _validation_stars(stars: StarStamps, config: PsfNetConfig) -> npt.NDArray[np.bool_]:
    """Return which stars are for validation: a share of each unit."""
    chosen = np.zeros(len(stars), dtype=bool)
    for unit in np.unique(stars.unit):
        some = np.flatnonzero(stars.unit == unit)
        rng = np.random.default_rng([config.seed, int(unit)])
        chosen[rng.permutation(some)[: max(1, round(config.validation * len(some)))]] = True
    return chosen


def _prepared(
    stars: StarStamps, some: npt.NDArray[np.bool_], instrument: Instrument, detectors: list[int], config: PsfNetConfig
) -> Batch:
    """Return stars as one batch."""
    if instrument.shape is None:
        raise InputError(instrument.name, "detectors without a size", "an instrument with a shape")
    pixels, ignored, x, y = stars.stamps[some], stars.ignored[some], stars.x[some], stars.y[some]
    seen = (
        normalise_stamps(pixels.astype(float), ignored),
        normalise_positions(x, y, instrument.shape),
        detector_indices(detectors, stars.detector[some]),
    )
    psf = stars.psf[some] if config.labels != "stars" else np.empty((len(pixels), 0, 0), np.float32)
    planes = psf, np.where(ignored, 0, pixels), (1 / stars.error[some] ** 2).astype(np.float32)
    phases = (subpixel_offset(place).astype(np.float32) for place in (x, y))
    stamps, positions, numbers, labels, light, weight, in_x, in_y = (
        torch.from_numpy(one) for one in (*seen, *planes, *phases)
    )
    return Batch((stamps, positions, numbers), labels, light, weight, (in_x, in_y))


def _batches(stars: Batch, config: PsfNetConfig, steps: int, epoch: int) -> Iterator[Batch]:
    order = torch.from_numpy(np.random.default_rng([config.seed, 1, epoch]).permutation(len(stars.pixels)))
    for step in range(steps):
        risen = min(1.0, (epoch + step / steps) / config.rise) if config.rise else 1.0
        yield stars.take(order[step * config.batch : (step + 1) * config.batch], risen * config.divergence)


def loss_of(network: nn.Module, batch: Batch, *, labels: Labels) -> Tensor:
    """Return the loss: squared errors plus the divergence of the latent code (equations 1 to 3)."""
    batch = batch.to(next(network.parameters()).device)
    image, mean, log_variance = network(*batch.seen)
    divergence = 0.5 * (mean**2 + torch.exp(log_variance) - 1 - log_variance).sum(dim=1).mean()
    if labels == "stars":
        error = _costs(image, batch).mean()
    else:
        error = (_SCALE * (image - batch.psf)).square().sum(dim=(1, 2)).mean()
    return error + batch.divergence * divergence


def _costs(image: Tensor, stars: Batch) -> Tensor:
    """Return the Huber loss of the pulls of the stars' pixels (n, 32, 32)."""
    pulls = pixel_pulls(image, *stars.phase, stars.pixels, stars.weight)
    return 2 * nn.functional.huber_loss(pulls, torch.zeros_like(pulls), reduction="none", delta=_HUBER_DELTA)


def _predictions(network: nn.Module, stars: Batch) -> Iterator[tuple[Tensor, Batch]]:
    device = next(network.parameters()).device
    for which in torch.arange(len(stars.pixels)).split(128):
        batch = stars.take(which).to(device)
        with torch.inference_mode():
            yield network(*batch.seen).image, batch


def scores(network: nn.Module, held_out: Batch, labels: Labels) -> dict[str, float]:
    """Return the score of validation stars: PSNR [dB] of their PSFs, or chi^2 of their pixels."""
    found = []
    for image, batch in _predictions(network, held_out):
        if labels == "stars":
            found.append(_costs(image, batch).mean(dim=(1, 2)))
            continue
        peaks = [one.amax(dim=(1, 2), keepdim=True) for one in (image, batch.psf)]
        error = (image / peaks[0] - batch.psf / peaks[1]).square().mean(dim=(1, 2))
        found.append(-10 * torch.log10(error.clamp_min(1e-24)))
    mean = float(torch.cat(found).mean())
    return {"score": -mean, "chi2": mean} if labels == "stars" else {"score": mean, "psnr": mean}


def calibrate_sigma(network: nn.Module, held_out: Batch) -> dict[str, float]:
    """Calibrate the sigmas of PSFs on labels: a share of the peak, and a share of each sample.

    Parameters
    ----------
    network : Module
    held_out : Batch
        Stars with labels that were not used in training.

    Returns
    -------
    dict
        ``floor`` and ``share``, as `csstdask.psf.psfnet.predict_sigma` takes them.
    """
    light, error = [], []
    for image, batch in _predictions(network, held_out):
        peak = image.amax(dim=(1, 2), keepdim=True)
        light.append((image / peak).flatten().cpu())
        error.append(((image - batch.psf) / peak).flatten().square().cpu())
    of_light, of_error = (torch.cat(one).double().numpy() for one in (light, error))
    number = np.digitize(of_light, np.geomspace(1e-4, 1, _BINS))
    counts = np.bincount(number, minlength=_BINS + 1)
    there = counts > 0
    mean_light, mean_error = (
        np.bincount(number, one, _BINS + 1)[there] / counts[there] for one in (of_light**2, of_error)
    )
    scale = np.maximum(mean_error, 1e-14)
    floor, share = nnls(np.column_stack([np.ones_like(scale), mean_light]) / scale[:, None], np.ones_like(scale))[0]
    return {"floor": float(np.sqrt(floor)), "share": float(np.sqrt(share))}
