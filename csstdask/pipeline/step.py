"""Declare a step: what it reads, writes, needs and costs, and the function that processes one frame.

A step is one module in ``pipeline/steps``, one settings class in ``pipeline/config.py`` and one line in the registry
(``pipeline/steps/__init__.py``). Plans, stores, units of tables, memory projections, checks of input tables, reductions
and the report read everything else from the declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from csstdask.instrument import Instrument
from csstdask.pipeline.config import RunConfig
from csstdask.store.schema import Codec

if TYPE_CHECKING:
    from csstdask.pipeline.frame import Frame
    from csstdask.pipeline.plan import Plan

TORCH = {"torch": 45 << 20}
"""Memory that torch adds to a process (``benchmarks/projections.py``) [byte]."""

Table = dict[str, npt.NDArray[Any]]
"""Columns of a table, by name."""


@dataclass(frozen=True)
class Product:
    """An array that a step writes for each unit."""

    name: str
    """Name of the array in the run's store."""
    dtype: str
    """NumPy type."""
    fill: object
    """Value of elements that no unit has written."""
    units_power: int | None = None
    """Power of the units of ``sci`` that are its units; None: it has no units."""
    dims: tuple[str, ...] = ("y", "x")
    """Dimensions of one unit; the array has ``exposure`` and ``detector`` before them."""
    codec: Codec = "pixels"
    """Compression."""
    long_name: str = ""
    """Description."""


@dataclass(frozen=True)
class Output:
    """The results of a step for one unit."""

    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    """Products, in the units they are stored in."""
    tables: dict[str, Table] = field(default_factory=dict)
    """Columns of tables."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Contents of files and partials; a unit without content has no file."""
    metrics: dict[str, float | int | None] = field(default_factory=dict)
    """Values of the (exposure, detector) arrays; None where unknown."""


@dataclass(frozen=True)
class Cost:
    """Cost of a step on one core of the reference machine, reading and writing included.

    Measured on frames of 0.04 to 85 Mpix by ``benchmarks/projections.py``, which names the reference machine.
    """

    seconds_per_mpix: float = 0.0
    """Time proportional to the size of the frame [s / Mpix]."""
    fixed_seconds: float = 0.0
    """Time independent of the size of the frame [s]."""
    bytes_per_pixel: float = 0.0
    """Peak memory proportional to the size of the frame, planes and earlier products included [byte / pixel]."""
    fixed_bytes: int = 0
    """Peak memory of buffers independent of the size of the frame [byte]."""
    buffer_bytes_per_pixel: float = 0.0
    """Peak memory of buffers per pixel that is computed at the same time [byte / pixel]."""
    buffer_pixels: int = 0
    """Largest number of pixels that are computed at the same time."""

    def seconds(self, pixels: int) -> float:
        """Return the time of a frame [s]."""
        return self.fixed_seconds + self.seconds_per_mpix * pixels / 1e6

    def peak_bytes(self, pixels: int) -> int:
        """Return the peak memory of a frame, without libraries [byte]."""
        buffers = self.buffer_bytes_per_pixel * min(pixels, self.buffer_pixels)
        return round(self.fixed_bytes + self.bytes_per_pixel * pixels + buffers)


@dataclass(frozen=True)
class Step:
    """Declaration of one step of the pipeline."""

    name: str
    """Name in ``--steps``, the ledger and fingerprints."""
    requires: tuple[str, ...]
    """Steps whose products it reads, where these process the same kind of frame."""
    kinds: frozenset[str]
    """Kinds of frames that it processes."""
    numerics_version: int
    """Raised whenever the same input would give other numbers."""
    body: Callable[[Frame, RunConfig], Output]
    """Function that processes one frame."""
    settings: Callable[[RunConfig], dict[str, Any]]
    """Resolved settings that decide the result; a default and its explicit value are equal."""
    model: Callable[[RunConfig], str | None] = lambda _: None
    """Identity of its model: a SHA-256 of everything in the model that decides the result."""
    camera: Callable[[Instrument], dict[str, Any]] = lambda _: {}
    """Properties of the camera that decide the result, besides flag bits and units."""
    products: tuple[Product, ...] = ()
    """Arrays that it writes."""
    sizes: Callable[[RunConfig, tuple[int, int]], Mapping[str, int]] = lambda _config, _shape: {}
    """Lengths of the dimensions that it adds to ``y`` and ``x``, for frames of a shape (y, x)."""
    coordinates: Callable[[tuple[int, int]], Mapping[str, npt.NDArray[Any]]] = lambda _shape: {}
    """Coordinates of these dimensions, by name, for frames of a shape (y, x)."""
    tables: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Units of the columns of the tables that it writes under ``tables/``, by table."""
    files: tuple[str, ...] = ()
    """Files that it writes for later steps, under ``files/``: results without a fixed shape."""
    partials: tuple[str, ...] = ()
    """Files that it writes for reductions, under ``files/``."""
    metrics: tuple[str, ...] = ()
    """Names of the (exposure, detector) arrays that it writes."""
    inputs: tuple[str, ...] = ()
    """Input tables (`csstdask.pipeline.config.INPUT_TABLES`) without which it is left out of a default run."""
    check: Callable[[Plan], None] = lambda _: None
    """Raises InputError before a run that could not succeed: absent or unusable tables, impossible settings."""
    cost: Callable[[RunConfig, Instrument], Cost] = lambda _config, _instrument: Cost()
    """Cost with a configuration, on frames of an instrument."""
    libraries: Callable[[RunConfig], Mapping[str, int]] = lambda _: {}
    """Memory of the libraries that it imports, by library [byte]."""
    panel: str = ""
    """Panel of the report that shows its results; empty: none."""

    @property
    def owned_files(self) -> tuple[str, ...]:
        """Return the names of all files of a unit that are neither arrays nor tables."""
        return self.files + self.partials
