"""Training of CSST-PSFNet: ``csstdask train psf`` with ``kind = "psfnet"``.

It learns from stamp sets (``csstdask mock stores/psf-dataset1.toml``), and from one of three teachers:

* ``truth``: the PSFs of the simulator, as published;
* ``psfex``: what PSFEx makes of the very stars, where the truth is not known (the paper's weak labels);
* ``stars``: no PSF at all. What it says is looked at through each star's pixels, and ought to be what they hold, to
  their noise. So it adapts in orbit.

The loss is the square of the error, PSFs scaled so that their peaks are of the order of one, plus the divergence of the
latent code from a unit Gaussian, whose weight rises from nought over the first epochs (equations 1 to 4). The paper
lost learning rate, weight decay, size of the code and both weights; ours are those of `PsfNetConfig`.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from safetensors.torch import load_file
from scipy.optimize import nnls
from torch import Tensor, nn

from csstdask.errors import InputError
from csstdask.instrument import Instrument
from csstdask.nn.card import WEIGHTS_SUFFIX, ModelCard, write_card
from csstdask.nn.device import TrainingPrecision, checked_device, choose_device
from csstdask.nn.models import find_card
from csstdask.nn.psfnet import STAMP, PsfNet
from csstdask.nn.trainer import Learner, Schedule, train
from csstdask.nn.weights import save_weights
from csstdask.psf.psfex import run_psfex
from csstdask.psf.psfnet import build_psfnet, numbers_seen, places_seen, pulls_of_pixels, stamps_seen
from csstdask.store.stamps import open_stamps

log = logging.getLogger("csstdask")

Images = npt.NDArray[np.float32]
Labels = Literal["truth", "psfex", "stars"]

#: PSFs are multiplied with this: their peaks, some hundredths of their light, are then of the order of one.
_SCALE = 16.0
#: A residual of a star's pixel counts as this at most [sigma]: neighbours and cosmic rays must not lead.
_FURTHEST = 10.0
#: Bins of light for the calibration of sigmas.
_BINS = 24


class PsfNetConfig(BaseModel):
    """All settings of a training of CSST-PSFNet."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["psfnet"] = "psfnet"
    name: str = "psfnet"
    version: str = "1"
    licence: str = "BSD-3-Clause"
    method: str = "CSST-PSFNet (csstdask.nn.psfnet)"
    campaigns: tuple[str, ...] = Field(min_length=1, description="stamp sets of isolated stars, of one instrument")
    labels: Labels = Field("truth", description="a simulator's PSFs, PSFEx's, or the stars' own pixels")
    start_from: str | None = Field(None, description="card of such a network to go on from")
    stars: int | None = Field(None, ge=8, description="of a unit at most; all where it is not said")
    validation: float = Field(0.21, gt=0, lt=1, description="share of each unit's stars; the paper's 3,728 of 17,968")
    channels: tuple[int, int, int] = (8, 16, 32)
    width: int = Field(64, ge=8)
    heads: int = Field(4, ge=1)
    layers: int = Field(2, ge=1)
    latent: int = Field(64, ge=1)
    upward: tuple[int, int, int] = (32, 16, 8)
    divergence: float = Field(1e-6, ge=0, description="weight of the code's divergence, at the end of its rise")
    rise: float = Field(5.0, ge=0, description="epochs in which that weight rises linearly")
    batch: int = Field(16, ge=1)
    epochs: int = Field(200, ge=1)
    warm_up: float = Field(5.0, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    patience: int = Field(20, ge=1)
    precision: TrainingPrecision = Field("float32", description="float32 or bfloat16")
    threads: int = Field(1, ge=1)
    device: Annotated[str | None, AfterValidator(checked_device)] = None
    seed: int = Field(20261127, ge=0)

    @property
    def sizes(self) -> dict[str, Any]:
        """Return the arguments of the network, but for what it looks at."""
        found = {name: getattr(self, name) for name in ("channels", "width", "heads", "layers", "latent", "upward")}
        return {name: list(one) if isinstance(one, tuple) else one for name, one in found.items()}

    @property
    def schedule(self) -> Schedule:
        """Return how long and how fast to learn (section III.2)."""
        names = ("epochs", "learning_rate", "warm_up", "weight_decay", "patience", "precision", "seed")
        return Schedule(**{name: getattr(self, name) for name in names}, clip_norm=0.5, least_rate=0.01)


@dataclass(frozen=True)
class StarStamps:
    """Stars of several units, and what is to be said of them."""

    stamps: Images
    """(n, 32, 32) [e-]"""
    error: Images
    """(n, 32, 32) inf where nothing is known."""
    detector: npt.NDArray[np.int64]
    x: npt.NDArray[np.float64]
    """(n,) On the whole detector [pixel]."""
    y: npt.NDArray[np.float64]
    unit: npt.NDArray[np.int64]
    psf: Images
    """(n, 64, 64) The simulator's; empty where there is none."""

    def __len__(self) -> int:
        return len(self.stamps)

    @property
    def ignored(self) -> npt.NDArray[np.bool_]:
        """Return which pixels nothing is known of."""
        return ~np.isfinite(self.error)


@dataclass(frozen=True)
class Batch:
    """Some stars on a device."""

    seen: tuple[Tensor, Tensor, Tensor]
    """What the network looks at: stamps, places, detectors."""
    psf: Tensor
    """(n, 64, 64), or (0, 64, 64) where pixels teach."""
    pixels: Tensor
    """(n, 32, 32) [e-]"""
    weight: Tensor
    """(n, 32, 32) 1 / variance."""
    phase: tuple[Tensor, Tensor]
    """x and y of each star in its pixel."""
    divergence: float = 0.0

    def to(self, device: torch.device) -> Batch:
        """Return them on a device."""
        stamps, places, detectors = (one.to(device) for one in self.seen)
        psf, pixels, weight, x, y = (one.to(device) for one in (self.psf, self.pixels, self.weight, *self.phase))
        return Batch((stamps, places, detectors), psf, pixels, weight, (x, y), self.divergence)

    def take(self, which: Tensor, divergence: float = 0.0) -> Batch:
        """Return some of them, with a weight of the code's divergence."""
        stamps, places, detectors = (one[which] for one in self.seen)
        psf, pixels, weight, x, y = (one[which] for one in (self.psf, self.pixels, self.weight, *self.phase))
        return Batch((stamps, places, detectors), psf, pixels, weight, (x, y), divergence)


def train_psfnet(config: PsfNetConfig, to: Path, *, announce: Callable[[str], None] = log.info) -> Path:
    """Train CSST-PSFNet, or go on with a training.

    Parameters
    ----------
    config : PsfNetConfig
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
        If a stamp set has not what is asked for, or `start_from` is another network.
    """
    torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    to.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    instrument, stars = read_stars(config, announce)
    if config.labels == "psfex":
        announce(f"PSFEx looks at {len(np.unique(stars.unit))} units")
        stars = labelled_by_psfex(stars)
    start = None if config.start_from is None else find_card("psf", config.start_from)
    detectors = start.architecture["detectors"] if start else sorted(int(one) for one in np.unique(stars.detector))
    architecture = {"kind": "psfnet", "instrument": instrument.name, "detectors": detectors, **config.sizes}
    network = build_psfnet(**(start.architecture if start else architecture))
    if start:
        network.load_state_dict(load_file(Path(str(start.weights))))
        architecture = start.architecture
    apart = _apart(stars, config)
    learnt, held_out = (_prepared(stars, some, instrument, detectors, config) for some in (~apart, apart))
    steps = -(-len(learnt.pixels) // config.batch)
    identity = config.model_dump(mode="json", exclude={"name", "version", "licence", "method", "device", "threads"})
    learner = Learner(
        network,
        partial(_batches, learnt, config, steps),
        steps,
        partial(loss_of, labels=config.labels),
        lambda network: scores(network, held_out, config.labels),
        identity | {"stars": len(learnt.pixels), "start": start.sha256 if start else None},
    )
    history = train(learner, config.schedule, to, device=device, announce=announce)
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
        calibration=start.calibration if start and config.labels == "stars" else _calibration(network, held_out),
        metrics={
            "data": f"{int(apart.sum())} stars that were not learnt from, beside what taught ({config.labels})",
            **{name: round(value, 4) for name, value in found.items()},
            "epochs": len(history),
        },
    )
    path = to / f"{config.name}.json"
    write_card(path, card)
    return path


def read_stars(config: PsfNetConfig, announce: Callable[[str], None] = log.info) -> tuple[Instrument, StarStamps]:
    """Read the stars of stamp sets, and their instrument.

    Raises
    ------
    InputError
        If a set is of another instrument than the first, has smaller stamps, or no PSFs where they are asked for.
    """
    parts: list[dict[str, npt.NDArray[Any]]] = []
    instrument: Instrument | None = None
    for path in config.campaigns:
        data = open_stamps(path)
        own = Instrument.model_validate(data.attrs["instrument"])
        if instrument is not None and own.name != instrument.name:
            raise InputError(path, f"stamps of {own.name}", f"of {instrument.name}, as the first set's")
        instrument = own
        if data.sizes["y"] < STAMP or ("truth_psf" not in data and config.labels == "truth"):
            found = f"stamps of {data.sizes['y']} pixels, {'with' if 'truth_psf' in data else 'without'} PSFs"
            raise InputError(path, found, f"{STAMP} pixels at least, of isolated stars, with their PSFs")
        low = data.sizes["y"] // 2 - STAMP // 2
        window = {"y": slice(low, low + STAMP), "x": slice(low, low + STAMP)}
        for row, column in np.argwhere(data["n_stamps"].to_numpy() > 0):
            count = int(data["n_stamps"][row, column])
            count = min(count, config.stars or count)
            unit = data.isel(exposure=row, detector=column, stamp=slice(0, count)).isel(window)
            exptime = float(unit["exptime"])
            weight, flag = unit["wht"].to_numpy(), unit["flag"].to_numpy()
            with np.errstate(divide="ignore"):
                error = np.where(flag == 0, exptime / np.sqrt(weight), np.inf)
            truth = unit["truth_psf"].to_numpy() if "truth_psf" in unit else np.empty((count, 0, 0))
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
    stars = StarStamps(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    announce(f"{len(stars)} stars of {len(parts)} units")
    return instrument, stars


def labelled_by_psfex(stars: StarStamps) -> StarStamps:
    """Return stars with what PSFEx makes of the stars of each unit in place of their PSFs.

    Raises
    ------
    InputError
        If PSFEx is not installed, or fails.
    """
    psf = np.empty((len(stars), 64, 64), np.float32)
    for unit in np.unique(stars.unit):
        some = stars.unit == unit
        light, ignored = stars.stamps[some], stars.ignored[some]
        noise = float(np.median(stars.error[some][~ignored]))
        x, y = stars.x[some], stars.y[some]
        with tempfile.TemporaryDirectory() as folder:
            psf[some] = run_psfex(Path(folder), light, x, y, mask=ignored, noise=noise)(x, y)
    return StarStamps(stars.stamps, stars.error, stars.detector, stars.x, stars.y, stars.unit, psf)


def _apart(stars: StarStamps, config: PsfNetConfig) -> npt.NDArray[np.bool_]:
    """Return which stars are not learnt from: a share of each unit."""
    apart = np.zeros(len(stars), dtype=bool)
    for unit in np.unique(stars.unit):
        some = np.flatnonzero(stars.unit == unit)
        rng = np.random.default_rng([config.seed, int(unit)])
        apart[rng.permutation(some)[: max(1, round(config.validation * len(some)))]] = True
    return apart


def _prepared(
    stars: StarStamps, some: npt.NDArray[np.bool_], instrument: Instrument, detectors: list[int], config: PsfNetConfig
) -> Batch:
    """Return stars as one batch."""
    if instrument.shape is None:
        raise InputError(instrument.name, "detectors without a size", "an instrument with a shape")
    pixels, ignored, x, y = stars.stamps[some], stars.ignored[some], stars.x[some], stars.y[some]
    error = np.where(ignored, np.inf, stars.error[some])
    seen = (
        stamps_seen(pixels.astype(float), ignored),
        places_seen(x, y, instrument.shape),
        numbers_seen(detectors, stars.detector[some]),
    )
    psf = stars.psf[some] if config.labels != "stars" else np.empty((len(pixels), 0, 0), np.float32)
    planes = psf, np.where(ignored, 0, pixels), (1 / error**2).astype(np.float32)
    phases = ((place - np.floor(place + 0.5)).astype(np.float32) for place in (x, y))
    stamps, places, numbers, told, light, weight, in_x, in_y = (
        torch.from_numpy(one) for one in (*seen, *planes, *phases)
    )
    return Batch((stamps, places, numbers), told, light, weight, (in_x, in_y))


def _batches(stars: Batch, config: PsfNetConfig, steps: int, epoch: int) -> Iterator[Batch]:
    order = torch.from_numpy(np.random.default_rng([config.seed, 1, epoch]).permutation(len(stars.pixels)))
    for step in range(steps):
        risen = min(1.0, (epoch + step / steps) / config.rise) if config.rise else 1.0
        yield stars.take(order[step * config.batch : (step + 1) * config.batch], risen * config.divergence)


def loss_of(network: nn.Module, batch: Batch, *, labels: Labels) -> Tensor:
    """Return what is to be made small: squares of errors, and the divergence of the latent code (equations 1 to 3)."""
    batch = batch.to(next(network.parameters()).device)
    image, mean, log_variance = network(*batch.seen)
    divergence = 0.5 * (mean**2 + torch.exp(log_variance) - 1 - log_variance).sum(dim=1).mean()
    if labels == "stars":
        error = _pulls(image, batch).square().mean()
    else:
        error = (_SCALE * (image - batch.psf)).square().sum(dim=(1, 2)).mean()
    return error + batch.divergence * divergence


def _pulls(image: Tensor, stars: Batch) -> Tensor:
    return pulls_of_pixels(image, *stars.phase, stars.pixels, stars.weight).clamp(-_FURTHEST, _FURTHEST)


def _told(network: nn.Module, stars: Batch) -> Iterator[tuple[Tensor, Batch]]:
    device = next(network.parameters()).device
    for which in torch.arange(len(stars.pixels)).split(128):
        batch = stars.take(which).to(device)
        with torch.inference_mode():
            yield network(*batch.seen).image, batch


def scores(network: nn.Module, held_out: Batch, labels: Labels) -> dict[str, float]:
    """Return how well stars that were not learnt from are told: PSNR [dB], or chi^2 of their pixels."""
    found = []
    for image, batch in _told(network, held_out):
        if labels == "stars":
            found.append(_pulls(image, batch).square().mean(dim=(1, 2)))
            continue
        peaks = [one.amax(dim=(1, 2), keepdim=True) for one in (image, batch.psf)]
        error = (image / peaks[0] - batch.psf / peaks[1]).square().mean(dim=(1, 2))
        found.append(-10 * torch.log10(error.clamp_min(1e-24)))
    mean = float(torch.cat(found).mean())
    return {"score": -mean, "chi2": mean} if labels == "stars" else {"score": mean, "psnr": mean}


def _calibration(network: PsfNet, held_out: Batch) -> dict[str, float]:
    """Return the two parts of sigmas: a share of the peak everywhere, and a share of a sample's own light."""
    if not held_out.psf.numel():
        return {"floor": 0.0, "share": 0.0}
    light, error = [], []
    for image, batch in _told(network, held_out):
        peak = image.amax(dim=(1, 2), keepdim=True)
        light.append((image / peak).flatten().cpu())
        error.append(((image - batch.psf) / peak).flatten().square().cpu())
    of_light, of_error = (torch.cat(one).double().numpy() for one in (light, error))
    edges = np.geomspace(1e-4, 1, _BINS)
    number = np.digitize(of_light, edges)
    counts = np.maximum(np.bincount(number, minlength=_BINS + 1), 1)
    mean_light, mean_error = (np.bincount(number, one, _BINS + 1) / counts for one in (of_light**2, of_error))
    told = np.maximum(mean_error, 1e-14)
    floor, share = nnls(np.column_stack([np.ones_like(told), mean_light]) / told[:, None], np.ones_like(told))[0]
    return {"floor": float(np.sqrt(floor)), "share": float(np.sqrt(share))}
