"""What a step is: a declaration of what it reads, writes and costs, round a plain function on a frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy.typing as npt

from csstdask.instrument import Instrument
from csstdask.pipeline.config import RunConfig
from csstdask.store.schema import Codec

if TYPE_CHECKING:
    from csstdask.pipeline.frame import Frame

Table = dict[str, npt.NDArray[Any]]
Grid = Literal["pixels", "mesh", "psf"]


@dataclass(frozen=True)
class Product:
    """An array that a step writes for each unit."""

    name: str
    """In the run's store."""
    dtype: str
    """A NumPy type."""
    fill: object
    """What reads where no unit has written."""
    units_power: int | None = None
    """Its units are those of ``sci`` to this power; None: it has none."""
    grid: Grid = "pixels"
    """What it has a value for: each pixel, each box of the background's mesh, or half pixels of PSFs on their nodes."""
    codec: Codec = "pixels"
    """How it is compressed."""
    long_name: str = ""
    """For people."""


@dataclass(frozen=True)
class Output:
    """What a step returns for one unit."""

    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    """Its products, in the units they are stored in."""
    tables: dict[str, Table] = field(default_factory=dict)
    """Columns of its tables."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Contents of its files; a unit without content has no file."""
    metrics: dict[str, float | int | None] = field(default_factory=dict)
    """Numbers for (exposure, detector) arrays."""


@dataclass(frozen=True)
class Cost:
    """What a step takes on one core of the reference machine, reading and writing included.

    Measured on frames of 0.04 to 85 Mpix (`benchmarks/projections.py`). The reference machine is named there.
    """

    seconds_per_mpix: float = 0.0
    """Time that grows with the frame."""
    fixed_seconds: float = 0.0
    """Time that a frame of any size takes."""
    bytes_per_pixel: float = 0.0
    """Peak memory that grows with the frame: its planes and earlier products included."""
    fixed_bytes: int = 0
    """Peak memory of buffers that do not depend on the frame's size."""
    buffer_bytes_per_pixel: float = 0.0
    """Peak memory of buffers, per pixel that is computed at the same time."""
    buffer_pixels: int = 0
    """Largest number of pixels that are computed at the same time."""

    def seconds(self, pixels: int) -> float:
        """Return the time of a frame."""
        return self.fixed_seconds + self.seconds_per_mpix * pixels / 1e6

    def peak_bytes(self, pixels: int) -> int:
        """Return the peak memory of a frame, without libraries."""
        buffers = self.buffer_bytes_per_pixel * min(pixels, self.buffer_pixels)
        return round(self.fixed_bytes + self.bytes_per_pixel * pixels + buffers)


@dataclass(frozen=True)
class Step:
    """One stage of the pipeline."""

    name: str
    """In ``--steps``, the ledger and fingerprints."""
    requires: tuple[str, ...]
    """Steps whose products it reads, where these are for the same kind of frame."""
    kinds: frozenset[str]
    """Kinds of frames it is for."""
    numerics_version: int
    """Raised whenever the same input would give other numbers."""
    body: Callable[[Frame, RunConfig], Output]
    """The work: a plain function of one frame."""
    settings: Callable[[RunConfig], dict[str, Any]]
    """What of the configuration decides its result, resolved: a default and its value are the same."""
    model: Callable[[RunConfig], str | None]
    """Identity of its model: a SHA-256 of everything in it that decides a result."""
    products: tuple[Product, ...] = ()
    """Arrays it writes."""
    tables: tuple[str, ...] = ()
    """Tables it writes, under ``tables/``."""
    files: tuple[str, ...] = ()
    """Folders of the files it writes, one file a unit: what later steps read that is no array of a fixed shape."""
    metrics: tuple[str, ...] = ()
    """Names of its metrics."""
    halo: int = 0
    """Pixels beyond a pixel that decide its value; 0 where the whole frame does."""
    cost: Callable[[RunConfig, Instrument], Cost] = lambda _config, _instrument: Cost()
    """What it costs with a configuration, on frames of an instrument."""
    camera: Callable[[Instrument], dict[str, Any]] = lambda _: {}
    """What of the camera's description decides its result, beyond flag bits and units."""
    uses_torch: Callable[[RunConfig], bool] = lambda _: False
    """Whether it runs a network with a configuration."""
