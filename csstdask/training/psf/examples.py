"""Examples for CSST-PSFNet: the stars of stamp sets with their labels, prepared as batches of tensors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from csstdask.core.errors import InputError
from csstdask.instrument import Instrument
from csstdask.psf.network import STAMP
from csstdask.psf.pixels import subpixel_offset
from csstdask.psf.psfnet import detector_indices, normalise_positions, normalise_stamps
from csstdask.store.stamps import open_stamps
from csstdask.training.psf.config import PsfNetConfig
from csstdask.training.psf.psfex import psfex_at_stars

log = logging.getLogger("csstdask")

Images = npt.NDArray[np.float32]


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


def choose_validation(stars: StarStamps, config: PsfNetConfig) -> npt.NDArray[np.bool_]:
    """Return which stars are for validation: a share of each unit."""
    chosen = np.zeros(len(stars), dtype=bool)
    for unit in np.unique(stars.unit):
        some = np.flatnonzero(stars.unit == unit)
        rng = np.random.default_rng([config.seed, int(unit)])
        chosen[rng.permutation(some)[: max(1, round(config.validation * len(some)))]] = True
    return chosen


def prepare_stars(
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


def draw_batches(stars: Batch, config: PsfNetConfig, steps: int, epoch: int) -> Iterator[Batch]:
    """Yield the batches of an epoch, in random order; the weight of the divergence rises over the first epochs."""
    order = torch.from_numpy(np.random.default_rng([config.seed, 1, epoch]).permutation(len(stars.pixels)))
    for step in range(steps):
        risen = min(1.0, (epoch + step / steps) / config.rise) if config.rise else 1.0
        yield stars.take(order[step * config.batch : (step + 1) * config.batch], risen * config.divergence)
