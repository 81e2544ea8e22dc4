"""A campaign: the input store, one Zarr group over ``(exposure, detector, y, x)``.

Who writes what, and in which order, is what makes adding to a campaign safe. Workers write the three
shards of a unit they own. The driver alone writes what spans units: it appends exposures, then, when a
unit's shards are on disk, its header and coordinates, and ``present`` last of all. Killed anywhere, a
campaign holds units that are present and whole, and shards that nobody counts and the next ingest replaces.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr

from csstdask.durable import flush_file
from csstdask.errors import InputError
from csstdask.instrument import Instrument, validate_instrument
from csstdask.store.schema import (
    CAMPAIGN_COORDINATES,
    CAMPAIGN_PIXELS,
    CAMPAIGN_RECORDS,
    NO_TIME,
    PIXEL_DIMS,
    SCHEMA_VERSION,
    ArraySpec,
)
from csstdask.store.zarr_arrays import (
    consolidate,
    create_array,
    get_array,
    open_group,
    read_shard,
    resize,
    write_shard,
)

#: Above this many exposures coordinates stay lazy.
EAGER_EXPOSURES = 10_000


@dataclass(frozen=True)
class UnitFacts:
    """What a campaign knows of one unit besides its pixels."""

    exposure: str
    detector: int
    kind: str
    band: str
    exptime: float
    """[s]; NaN where the file does not say."""
    time: int
    """Microseconds since 1970, UTC."""
    gain: float
    """[e-/adu]"""
    read_noise: float
    """[e-]"""
    digest: str
    """SHA-256 of what the unit was made from: its identity in fingerprints."""
    source: str = ""
    source_stat: str = ""
    header: str = field(default="", repr=False)
    primary_header: str = field(default="", repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, to travel back from a worker."""
        return asdict(self)

    @property
    def when(self) -> np.datetime64 | None:
        """Return the time as NumPy has it, or None."""
        return None if self.time == NO_TIME else np.datetime64(self.time, "us")


def create_campaign(
    path: Path,
    instrument: Instrument,
    shape: tuple[int, int],
    units: str,
    detectors: Sequence[int] | None = None,
) -> None:
    """Create an empty campaign.

    Parameters
    ----------
    path : Path
        The folder to make.
    instrument : Instrument
        Kept whole in the campaign, so that it describes itself.
    shape : (int, int)
        (y, x) of every frame.
    units : str
        Of ``sci``; ``wht`` is in units^-2.
    detectors : sequence of int, optional
        Ids along the detector axis; by default all of the instrument's.
    """
    ids = tuple(detectors) if detectors is not None else instrument.detector_ids
    sizes = dict(zip(PIXEL_DIMS, (0, len(ids), *shape), strict=True))
    # Made under another name and renamed: there is a whole campaign or none.
    draft = path.with_name(f".{path.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    group = zarr.create_group(draft)
    for spec in CAMPAIGN_PIXELS:
        create_array(group, _with_flags(spec, instrument), sizes, _units_of(spec.name, units))
    for spec in (
        ArraySpec("exposure", ("exposure",), "str", "", "table"),
        *CAMPAIGN_COORDINATES,
        *CAMPAIGN_RECORDS,
    ):
        create_array(group, spec, sizes)
    create_array(group, ArraySpec("detector", ("detector",), "int32", -1, "table"), sizes)
    get_array(group, "detector")[:] = np.array(ids, dtype=np.int32)
    group.attrs.update(
        {
            "csstdask": "campaign",
            "schema_version": SCHEMA_VERSION,
            "coordinates": " ".join(spec.name for spec in CAMPAIGN_COORDINATES),
            "instrument": json.loads(instrument.model_dump_json(exclude_none=True)),
        }
    )
    consolidate(draft)
    draft.rename(path)


def _units_of(name: str, units: str) -> str | None:
    return {"sci": units, "wht": f"({units})^-2"}.get(name)


def _with_flags(spec: ArraySpec, instrument: Instrument) -> ArraySpec:
    if spec.name != "flag":
        return spec
    bits = sorted(instrument.flags.bits.items(), key=lambda item: item[1])
    attributes: dict[str, object] = {
        "flag_masks": [mask for _, mask in bits],
        "flag_meanings": " ".join(name for name, _ in bits),
    }
    return ArraySpec(spec.name, spec.dims, spec.dtype, spec.fill, spec.codec, attributes)


class Campaign:
    """The driver's handle on a campaign: its facts in memory, its writes in the right order.

    Parameters
    ----------
    path : Path
        The store.
    mode : str
        ``r``, or ``r+`` to add units.
    """

    def __init__(self, path: Path, mode: str = "r") -> None:
        self.path = Path(path)
        self.group = open_group(self.path, "campaign", mode)
        self.instrument = validate_instrument(self.group.attrs["instrument"], f"{path}: instrument")  # type: ignore[arg-type]
        sci = get_array(self.group, "sci")
        self.shape: tuple[int, int] = (sci.shape[2], sci.shape[3])
        self.units = str(sci.attrs["units"])
        self.detectors: list[int] = [int(value) for value in self.read("detector")]
        named = itertools.takewhile(bool, (str(value) for value in self.read("exposure")))
        self.exposures: list[str] = list(named)  # a killed ingest may leave rows without a name at the end
        self._rows = {name: row for row, name in enumerate(self.exposures)}
        self._columns = {detector: column for column, detector in enumerate(self.detectors)}
        self.present: npt.NDArray[np.bool_] = self.read("present")[: len(self.exposures)]

    def read(self, name: str) -> npt.NDArray[Any]:
        """Read one of the small arrays."""
        return np.asarray(get_array(self.group, name)[...])

    def index(self, exposure: str, detector: int) -> tuple[int, int]:
        """Return the (row, column) of a unit; InputError if the campaign has no such exposure or detector."""
        if exposure not in self._rows:
            raise InputError(self.path, f"no exposure {exposure!r}", f"one of its {len(self.exposures)}")
        if detector not in self._columns:
            raise InputError(self.path, f"no detector {detector}", f"one of {self.detectors}")
        return self._rows[exposure], self._columns[detector]

    def has_exposure(self, exposure: str) -> bool:
        """Tell whether an exposure is in the campaign."""
        return exposure in self._rows

    def is_present(self, exposure: str, detector: int) -> bool:
        """Tell whether a unit has pixels."""
        return exposure in self._rows and bool(self.present[self.index(exposure, detector)])

    def append_exposures(self, names: Sequence[str]) -> None:
        """Give new exposures a row; those already there keep theirs."""
        new = [name for name in dict.fromkeys(names) if name not in self._rows]
        if not new:
            return
        first = len(self.exposures)
        if (self.path / "truth").is_dir():
            resize(self.path / "truth", first + len(new))
        resize(self.path, first + len(new))
        self.group = open_group(self.path, "campaign", "r+")
        get_array(self.group, "exposure")[first : first + len(new)] = np.array(new, dtype=object)
        for name in new:
            self._rows[name] = len(self.exposures)
            self.exposures.append(name)
        self.present = np.concatenate([self.present, np.zeros((len(new), len(self.detectors)), dtype=bool)])
        consolidate(self.path)

    def withdraw(self, exposure: str, detector: int) -> None:
        """Mark a unit absent, before its shards are written anew."""
        row, column = self.index(exposure, detector)
        get_array(self.group, "present")[row, column] = False
        self.present[row, column] = False

    def admit(self, facts: Sequence[UnitFacts]) -> None:
        """Record units whose shards are on disk, ``present`` last."""
        for one in facts:
            row, column = self.index(one.exposure, one.detector)
            get_array(self.group, "time")[row] = one.time
            get_array(self.group, "exptime")[row] = one.exptime
            for name in ("gain", "read_noise"):
                get_array(self.group, name)[row, column] = getattr(one, name)
            for name in ("band", "kind", "header", "primary_header", "source", "source_stat", "digest"):
                get_array(self.group, name)[row, column] = getattr(one, name)
        for one in facts:
            row, column = self.index(one.exposure, one.detector)
            get_array(self.group, "present")[row, column] = True
            self.present[row, column] = True

    def facts(self, exposure: str, detector: int) -> UnitFacts:
        """Return what is known of one unit."""
        row, column = self.index(exposure, detector)

        def one(name: str) -> Any:
            return get_array(self.group, name)[row, column]

        def text(name: str) -> str:
            return str(np.asarray(one(name)).item())

        return UnitFacts(
            exposure=exposure,
            detector=detector,
            exptime=float(get_array(self.group, "exptime")[row]),  # type: ignore[arg-type]
            time=int(get_array(self.group, "time")[row]),  # type: ignore[arg-type]
            gain=float(one("gain")),
            read_noise=float(one("read_noise")),
            **{
                name: text(name)
                for name in ("band", "kind", "digest", "source", "source_stat", "header", "primary_header")
            },
        )


def add_truth(path: Path, units: str) -> None:
    """Give a mock campaign its truth: the scene without cosmic rays, and their charge. Steps never read it."""
    root = open_group(path, "campaign", "r+")
    sci = get_array(root, "sci")
    sizes = dict(zip(PIXEL_DIMS, sci.shape, strict=True))
    group = root.create_group("truth")
    create_array(group, ArraySpec("sci", PIXEL_DIMS, "float32", float("nan")), sizes, units)
    create_array(group, ArraySpec("cr", PIXEL_DIMS, "float32", 0.0), sizes, "electron")
    consolidate(path)


def write_unit_pixels(path: Path, row: int, column: int, name: str, values: npt.NDArray[Any]) -> None:
    """Write one plane of a unit: a worker's part of an ingest, flushed to disk."""
    flush_file(write_shard(path, name, row, column, values))


def read_unit_pixels(path: Path, row: int, column: int, name: str) -> npt.NDArray[Any]:
    """Read one plane of a unit."""
    return read_shard(path, name, row, column)


def open_campaign(path: str | Path) -> xr.Dataset:
    """Open a campaign, lazily.

    Parameters
    ----------
    path : str or Path
        The store.

    Returns
    -------
    xarray.Dataset
        ``sci`` (attribute ``units``), ``wht``, ``flag`` over (exposure, detector, y, x), and coordinates.

    Raises
    ------
    StoreError
        If there is no campaign, or one of another schema version.
    """
    root = Path(path)
    open_group(root, "campaign")
    dataset = xr.open_zarr(root, chunks={})
    if dataset.sizes["exposure"] <= EAGER_EXPOSURES:
        dataset = dataset.assign_coords({name: dataset[name].load() for name in dataset.coords})
    dataset.attrs["path"] = str(root)
    return dataset
