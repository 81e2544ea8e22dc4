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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import zarr

from csstdask.core.atomic_io import flush_file
from csstdask.core.errors import InputError, StoreError
from csstdask.instrument import Instrument, footprint, power_of_units, shifted_header, validate_instrument
from csstdask.store.schema import (
    CAMPAIGN_COORDINATES,
    CAMPAIGN_PIXELS,
    CAMPAIGN_RECORDS,
    NO_TIME,
    PIXEL_DIMS,
    ROWS_PER_CHUNK,
    SCHEMA_VERSION,
    UNIT_DIMS,
    ArraySpec,
)
from csstdask.store.xarray_formats import decode_time, encode_time, make_portable
from csstdask.store.zarr_arrays import (
    array_names,
    check_shard,
    consolidate,
    create_array,
    get_array,
    open_group,
    read_shard,
    read_small,
    resize,
    write_shard,
)

if TYPE_CHECKING:
    import xarray as xr

#: Above this many exposures coordinates stay lazy.
EAGER_EXPOSURES = 10_000
#: Child groups that tell of cosmic rays: what a simulator knows, what repeated exposures tell.
_KNOWN = ("truth", "labels")
_LABEL_IDENTITY = ArraySpec("identity", UNIT_DIMS, "str", "", "table", {"long_name": "SHA-256 of what they came from"})


@dataclass(frozen=True)
class UnitMetadata:
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
    source_folder: str = ""
    """Where the files were."""
    exposure_id: str = ""
    """The id as the file has it; `exposure` is the name of a folder."""
    planes: str = ""
    """JSON: which plane was read from which HDU, and what decided it."""
    file_units: str = ""
    """The units that the file states."""
    unit_scale: float = 1.0
    """The campaign's pixels are those of the file times this."""
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
    return {"sci": units, "wht": power_of_units(units, -2)}.get(name)


def flag_attributes(instrument: Instrument) -> dict[str, Any]:
    """Return the attributes that say what the bits of ``flag`` mean (CF conventions)."""
    bits = sorted(instrument.flags.bits.items(), key=lambda item: item[1])
    return {"flag_masks": [mask for _, mask in bits], "flag_meanings": " ".join(name for name, _ in bits)}


def _with_flags(spec: ArraySpec, instrument: Instrument) -> ArraySpec:
    if spec.name != "flag":
        return spec
    return replace(spec, attributes=flag_attributes(instrument))


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
        if mode == "r+":
            self._add_missing_records()
        self.instrument = validate_instrument(self.group.attrs["instrument"], f"{path}: instrument")  # type: ignore[arg-type]
        sci = get_array(self.group, "sci")
        self.shape: tuple[int, int] = (sci.shape[2], sci.shape[3])
        self.units = str(sci.attrs["units"])
        self.detectors: list[int] = [int(value) for value in self.read("detector")]
        named = itertools.takewhile(bool, (str(value) for value in self.read("exposure")))
        self.exposures: list[str] = list(named)  # a killed ingest may leave rows without a name at the end
        self._rows = {name: row for row, name in enumerate(self.exposures)}
        self._blocks: dict[str, tuple[int, npt.NDArray[Any]]] = {}
        self._columns = {detector: column for column, detector in enumerate(self.detectors)}
        self.present: npt.NDArray[np.bool_] = self.read("present")[: len(self.exposures)]

    def _add_missing_records(self) -> None:
        """Add the records that a campaign of an earlier version does not have yet."""
        sizes = dict(zip(PIXEL_DIMS, get_array(self.group, "sci").shape, strict=True))
        missing = [spec for spec in CAMPAIGN_RECORDS if spec.name not in self.group]
        for spec in missing:
            create_array(self.group, spec, sizes)
        if missing:
            consolidate(self.path)

    def read(self, name: str) -> npt.NDArray[Any]:
        """Read one of the small arrays."""
        return read_small(self.group, name)

    def index(self, exposure: str, detector: int) -> tuple[int, int]:
        """Return the (row, column) of a unit; InputError if the campaign has no such exposure or detector."""
        if exposure not in self._rows:
            raise InputError(self.path, f"no exposure {exposure!r}", f"one of its {len(self.exposures)}")
        if detector not in self._columns:
            raise InputError(self.path, f"no detector {detector}", f"one of {self.detectors}")
        return self._rows[exposure], self._columns[detector]

    def is_present(self, exposure: str, detector: int) -> bool:
        """Return whether a unit has pixels."""
        return exposure in self._rows and bool(self.present[self.index(exposure, detector)])

    def append_exposures(self, names: Sequence[str]) -> None:
        """Give new exposures a row; those already there keep theirs.

        Metadata is consolidated whether or not there are new ones: a driver that was killed just before it
        did so has left readers with the old length.
        """
        new = [name for name in dict.fromkeys(names) if name not in self._rows]
        if new:
            first = len(self.exposures)
            for child in _KNOWN:
                if (self.path / child).is_dir():
                    resize(self.path / child, first + len(new))
            resize(self.path, first + len(new))
            self.group = open_group(self.path, "campaign", "r+")
            get_array(self.group, "exposure")[first : first + len(new)] = np.array(new, dtype=object)
            for name in new:
                self._rows[name] = len(self.exposures)
                self.exposures.append(name)
            self.present = np.concatenate([self.present, np.zeros((len(new), len(self.detectors)), dtype=bool)])
        consolidate(self.path)

    def update_instrument(self, instrument: Instrument) -> None:
        """Keep a newer description of the camera; units that are present keep the values they came with."""
        self.group.attrs["instrument"] = json.loads(instrument.model_dump_json(exclude_none=True))
        self.instrument = instrument

    def describe_exposures(self, metadata: Sequence[UnitMetadata]) -> None:
        """Write time and exposure time of exposures without a present unit yet, from their lowest detector.

        What stands there is not changed afterwards: it decides the numbers of units that are present.
        """
        for one in sorted(metadata, key=lambda one: one.detector, reverse=True):
            row, _ = self.index(one.exposure, one.detector)
            if not self.present[row].any():
                self._put("time", row, encode_time(one.time, self._time_attributes))
                self._put("exptime", row, one.exptime)
        self._blocks.clear()

    def mark_absent(self, exposure: str, detector: int) -> None:
        """Mark a unit absent, before its shards are written anew."""
        row, column = self.index(exposure, detector)
        if (self.path / "labels" / _LABEL_IDENTITY.name).is_dir():
            record_label(self.path, row, column, "")  # they were of the pixels that go
        self._put("present", (row, column), value=False)
        self.present[row, column] = False

    def mark_present(self, metadata: Sequence[UnitMetadata]) -> None:
        """Record units whose shards are on disk: what is known of them first, and flushed, ``present`` last."""
        for one in metadata:
            self._describe(one)
        self._flush(metadata, [*_UNIT_FACTS, *FOOTPRINT, "time", "exptime"])
        for one in metadata:
            row, column = self.index(one.exposure, one.detector)
            self._put("present", (row, column), value=True)
            self.present[row, column] = True
        self._flush(metadata, ["present"])
        self._blocks.clear()

    def record_absent(self, metadata: UnitMetadata) -> None:
        """Record a unit that is known to be absent, such as one of a dead detector: no pixels, not pending."""
        self._describe(metadata)
        self._blocks.clear()

    def _describe(self, metadata: UnitMetadata) -> None:
        row, column = self.index(metadata.exposure, metadata.detector)
        for name in _UNIT_FACTS:
            self._put(name, (row, column), getattr(metadata, name))
        for name, value in asdict(footprint(metadata.header, self.shape)).items():
            self._put(name, (row, column), value)

    def _put(self, name: str, selection: Any, value: Any) -> None:
        get_array(self.group, name)[selection] = value

    def _flush(self, metadata: Sequence[UnitMetadata], names: Sequence[str]) -> None:
        """Flush the chunks that hold these units' facts to disk."""
        for name in names:
            array = get_array(self.group, name)
            rows = {self.index(one.exposure, one.detector)[0] // array.chunks[0] for one in metadata}
            for row in rows:
                chunk = self.path.joinpath(name, "c", str(row), *["0"] * (array.ndim - 1))
                if chunk.is_file():
                    flush_file(chunk, self.path)

    def metadata(self, exposure: str, detector: int) -> UnitMetadata:
        """Return what is known of one unit, without its headers (see `read_header`)."""
        row, column = self.index(exposure, detector)
        return UnitMetadata(
            exposure=exposure,
            detector=detector,
            exptime=float(self._value("exptime", row)),
            time=decode_time(self._value("time", row), self._time_attributes),
            gain=float(self._value("gain", row)[column]),
            read_noise=float(self._value("read_noise", row)[column]),
            band=str(self._value("band", row)[column]),
            kind=str(self._value("kind", row)[column]),
            digest=str(self._value("digest", row)[column]),
            source=str(self._value("source", row)[column]),
            source_stat=str(self._value("source_stat", row)[column]),
            **self._reading(row, column),
        )

    def _reading(self, row: int, column: int) -> dict[str, Any]:
        """Return how a unit was read from its file; campaigns of an earlier version do not say."""
        if "unit_scale" not in self.group:
            return {}
        names = ("planes", "file_units", "exposure_id", "source_folder")
        texts = {name: str(self._value(name, row)[column]) for name in names if name in self.group}
        return {**texts, "unit_scale": float(self._value("unit_scale", row)[column])}

    def exposure_id(self, exposure: str) -> str:
        """Return the id that the files of an exposure state; nothing where it is not recorded."""
        if exposure not in self._rows or "exposure_id" not in self.group:
            return ""
        return next((str(one) for one in self._value("exposure_id", self._rows[exposure]) if one), "")

    @cached_property
    def _time_attributes(self) -> dict[str, Any]:
        return dict(get_array(self.group, "time").attrs)

    def _value(self, name: str, row: int) -> Any:
        """Return one row of a small array; many rows are read at once, for units come in order."""
        block = self._blocks.get(name)
        if block is None or not 0 <= row - block[0] < len(block[1]):
            first = row - row % ROWS_PER_CHUNK
            block = (first, read_small(self.group, name, slice(first, first + ROWS_PER_CHUNK)))
            self._blocks[name] = block
        return block[1][row - block[0]]


FOOTPRINT = ("s_ra", "s_dec", "s_fov", "s_region")
"""Where a unit lies on the sky."""
#: What is recorded of each unit.
_UNIT_FACTS = (
    "gain",
    "read_noise",
    "band",
    "kind",
    "header",
    "primary_header",
    "source",
    "source_stat",
    "source_folder",
    "exposure_id",
    "planes",
    "file_units",
    "unit_scale",
    "digest",
)


def read_header(path: Path, row: int, column: int, name: str = "header") -> str:
    """Return a unit's FITS header as text, a card a line; of a campaign that was cut from another, moved by the cut."""
    group = open_group(path, "campaign")
    text = str(read_small(group, name, (row, column)).item())
    x, y = _origin(group, path)
    if not text or name != "header" or (x, y) == (0, 0):
        return text
    from astropy.io.fits import Header  # noqa: PLC0415

    header = shifted_header(Header.fromstring(text, sep="\n"), x, y)
    return "\n".join(str(card) for card in header.cards)


def _origin(group: zarr.Group, path: Path) -> tuple[int, int]:
    """Return the pixel (x, y) of the original frame that is the first one here.

    Raises
    ------
    StoreError
        If the pixels here are not neighbours in the original frame: no header describes them.
    """
    found = []
    for axis in ("x", "y"):
        pixels = np.asarray(get_array(group, axis)[...]) if axis in group else np.zeros(1, dtype=int)
        if len(pixels) > 1 and (np.diff(pixels) != 1).any():
            raise StoreError(
                f"{path}: found pixels {pixels[1] - pixels[0]} apart along {axis}; wanted all of a cut-out"
            )
        found.append(int(pixels[0]))
    return found[0], found[1]


def add_truth(path: Path, units: str, name: Literal["truth", "labels"] = "truth") -> None:
    """Give a campaign its truth, or labels in its place, or what of them is missing. Steps never read them.

    ``truth/sci`` is the scene with the same noise and without cosmic rays, ``truth/cr`` their charge. ``labels`` hold
    what is believed of both, NaN in ``labels/cr`` where nothing is known, and what they were made from.
    """
    root = open_group(path, "campaign", "r+")
    sizes = dict(zip(PIXEL_DIMS, get_array(root, "sci").shape, strict=True))
    group = root.require_group(name)
    there = array_names(path / name)
    nothing = 0.0 if name == "truth" else float("nan")
    specs = [(ArraySpec("sci", PIXEL_DIMS, "float32", float("nan")), units)]
    specs.append((ArraySpec("cr", PIXEL_DIMS, "float32", nothing), "electron"))
    for spec, unit in specs:
        if spec.name not in there:
            create_array(group, spec, sizes, unit)
    if name == "labels" and _LABEL_IDENTITY.name not in there:
        create_array(group, _LABEL_IDENTITY, sizes)
    consolidate(path)


def write_truth_arrays(path: Path, arrays: Mapping[str, tuple[ArraySpec, npt.NDArray[Any]]]) -> None:
    """Write small arrays of a campaign's truth, such as a flat over (detector, wavelength, term), whole."""
    root = open_group(path, "campaign", "r+")
    group = root.require_group("truth")
    for name, (spec, values) in arrays.items():
        if name not in array_names(path / "truth"):
            create_array(group, spec, dict(zip(spec.dims, values.shape, strict=True)))
        get_array(group, name)[...] = values
    consolidate(path)


def label_identity(path: Path, row: int, column: int) -> str:
    """Return what a unit's labels were made from; nothing where it has none."""
    return str(np.asarray(_label_identities(path, "r")[row, column]).item())


def record_label(path: Path, row: int, column: int, identity: str) -> None:
    """Record what a unit's labels were made from, once they are on disk; before they are written anew, nothing."""
    _label_identities(path, "r+")[row, column] = identity


def _label_identities(path: Path, mode: str) -> zarr.Array[Any]:
    return get_array(open_group(path, "campaign", mode), f"labels/{_LABEL_IDENTITY.name}")


def write_recipe(path: Path, kind: str, recipe: str) -> None:
    """Keep the recipe that a mock store was made with, as JSON."""
    open_group(path, kind, "r+").attrs["recipe"] = json.loads(recipe)
    consolidate(path)


def write_unit_pixels(path: Path, row: int, column: int, name: str, values: npt.NDArray[Any]) -> None:
    """Write one plane of a unit: a worker's part of an ingest, flushed to disk."""
    flush_file(write_shard(path, name, row, column, values), path)


def read_unit_pixels(path: Path, row: int, column: int, name: str) -> npt.NDArray[Any]:
    """Read one plane of a unit.

    Raises
    ------
    StoreError
        If it is lost or damaged: names the file, and the command that copies the unit again.
    """
    try:
        values = read_shard(path, name, row, column)
    except StoreError as error:
        raise StoreError(f"{error} ({_copy_again(path, row, column)})") from None
    dtype = _DTYPES.get(name, values.dtype)  # xarray saves flags as floats after `where`
    return values if values.dtype == dtype else np.nan_to_num(values, nan=0.0).astype(dtype)


_DTYPES = {spec.name: np.dtype(spec.dtype) for spec in CAMPAIGN_PIXELS}


def check_unit_pixels(path: Path, row: int, column: int) -> None:
    """Raise StoreError if a plane of a unit has no shard, or an empty one: xarray would read fill values."""
    group = open_group(path, "campaign")
    try:
        for spec in CAMPAIGN_PIXELS:
            check_shard(get_array(group, spec.name), path, spec.name, row, column)
    except StoreError as error:
        raise StoreError(f"{error} ({_copy_again(path, row, column)})") from None


def _copy_again(path: Path, row: int, column: int) -> str:
    """Return what makes a unit of a campaign whole again."""
    group, campaign = open_group(path, "campaign"), quote(str(path))
    source = str(read_small(group, "source", (row, column)).item())
    if source.startswith("mock "):
        return f"delete it and run: csstdask mock RECIPE --to {campaign}"
    folder = Path(str(read_small(group, "source_folder", (row, column)).item()) if "source_folder" in group else "")
    files = " ".join(quote(str(folder / name)) for name in source.split()) or "FITS"
    return f"run: csstdask ingest {files} --to {campaign} --supersede"


def open_campaign(path: str | Path) -> xr.Dataset:
    """Open a campaign, lazily.

    Parameters
    ----------
    path : str or Path
        The store.

    Returns
    -------
    xarray.Dataset
        ``sci`` (attribute ``units``), ``wht``, ``flag`` over (exposure, detector, y, x), and coordinates. ``y`` and
        ``x`` count the pixels of the whole frame: a cut-out keeps its place on the sky.

    Raises
    ------
    StoreError
        If there is no campaign, or one of another schema version.
    """
    import xarray as xr  # noqa: PLC0415  it takes half a second to import

    root = Path(path)
    open_group(root, "campaign")
    dataset = make_portable(xr.open_zarr(root, chunks={}))
    if dataset["flag"].dtype.kind == "f":  # of a dataset that was masked with `where` and saved
        attributes = dataset["flag"].attrs
        dataset["flag"] = dataset["flag"].fillna(0).astype(np.int32).assign_attrs(attributes)
    if dataset.sizes["exposure"] <= EAGER_EXPOSURES:
        dataset = dataset.assign_coords({name: dataset[name].load() for name in dataset.coords})
    pixels = {axis: np.arange(dataset.sizes[axis], dtype=np.int32) for axis in ("y", "x") if axis not in dataset.coords}
    dataset = dataset.assign_coords(pixels)  # so that a cut-out knows which pixels it has
    dataset.attrs["path"] = str(root)
    return dataset
