"""The driver's handle on a campaign: unit metadata in memory, and writes in a safe order.

A campaign is the input store, one Zarr group over ``(exposure, detector, y, x)``. Workers write the three shards of a
unit they own. The driver alone writes what spans units: it appends exposures, then, when the shards of a unit are on
disk, its header and coordinates, and ``present`` last. After an interruption a campaign contains complete units, and
shards that are not counted and that the next ingest replaces.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.core.atomic_io import flush_file
from csstdask.core.errors import InputError
from csstdask.instrument import Instrument, footprint, validate_instrument
from csstdask.store.campaign_truth import LABEL_IDENTITY, TRUTH_GROUPS, record_label
from csstdask.store.schema import CAMPAIGN_RECORDS, PIXEL_DIMS, ROWS_PER_CHUNK
from csstdask.store.store_metadata import open_group
from csstdask.store.unit_metadata import FOOTPRINT, UNIT_RECORDS, UnitMetadata
from csstdask.store.xarray_formats import decode_time, encode_time
from csstdask.store.zarr_arrays import consolidate, create_array, get_array, read_small, resize


class Campaign:
    """The driver's handle on a campaign: metadata in memory, writes in a safe order.

    Parameters
    ----------
    path : Path
        Folder of the store.
    mode : str
        ``r``, or ``r+`` to add units.

    Examples
    --------
    >>> campaign = Campaign(Path("campaign.zarr"))  # doctest: +SKIP
    >>> campaign.metadata("10100000001", 8).exptime  # doctest: +SKIP
    150.0
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
        # An interrupted ingest may leave rows without a name at the end.
        named = itertools.takewhile(bool, (str(value) for value in self.read("exposure")))
        self.exposures: list[str] = list(named)
        self._rows = {name: row for row, name in enumerate(self.exposures)}
        self._blocks: dict[str, tuple[int, npt.NDArray[Any]]] = {}
        self._columns = {detector: column for column, detector in enumerate(self.detectors)}
        self.present: npt.NDArray[np.bool_] = self.read("present")[: len(self.exposures)]

    def _add_missing_records(self) -> None:
        """Create the records that a campaign of an earlier version lacks."""
        sizes = dict(zip(PIXEL_DIMS, get_array(self.group, "sci").shape, strict=True))
        missing = [spec for spec in CAMPAIGN_RECORDS if spec.name not in self.group]
        for spec in missing:
            create_array(self.group, spec, sizes)
        if missing:
            consolidate(self.path)

    def read(self, name: str) -> npt.NDArray[Any]:
        """Read a small array completely."""
        return read_small(self.group, name)

    def index(self, exposure: str, detector: int) -> tuple[int, int]:
        """Return the (row, column) of a unit.

        Raises
        ------
        InputError
            If the campaign has no such exposure or detector.
        """
        if exposure not in self._rows:
            raise InputError(self.path, f"no exposure {exposure!r}", f"one of its {len(self.exposures)}")
        if detector not in self._columns:
            raise InputError(self.path, f"no detector {detector}", f"one of {self.detectors}")
        return self._rows[exposure], self._columns[detector]

    def is_present(self, exposure: str, detector: int) -> bool:
        """Return whether the campaign contains the pixels of a unit."""
        return exposure in self._rows and bool(self.present[self.index(exposure, detector)])

    def append_exposures(self, names: Sequence[str]) -> None:
        """Append rows for new exposures; existing exposures keep theirs.

        The metadata is consolidated even without new exposures: a driver that was interrupted before this step has
        left readers with the old length.
        """
        new = [name for name in dict.fromkeys(names) if name not in self._rows]
        if new:
            first = len(self.exposures)
            for child in TRUTH_GROUPS:
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
        """Store a newer description of the camera; present units keep the values they were ingested with."""
        self.group.attrs["instrument"] = json.loads(instrument.model_dump_json(exclude_none=True))
        self.instrument = instrument

    def describe_exposures(self, metadata: Sequence[UnitMetadata]) -> None:
        """Write time and exposure time of exposures that have no present unit, from the lowest detector.

        The values of an exposure with present units are not changed, because the results of these units depend on them.
        """
        for one in sorted(metadata, key=lambda one: one.detector, reverse=True):
            row, _ = self.index(one.exposure, one.detector)
            if not self.present[row].any():
                self._put("time", row, encode_time(one.time, self._time_attributes))
                self._put("exptime", row, one.exptime)
        self._blocks.clear()

    def mark_absent(self, exposure: str, detector: int) -> None:
        """Mark a unit as absent before its shards are rewritten."""
        row, column = self.index(exposure, detector)
        if (self.path / "labels" / LABEL_IDENTITY.name).is_dir():
            record_label(self.path, row, column, "")  # labels of pixels that will be replaced
        self._put("present", (row, column), value=False)
        self.present[row, column] = False

    def mark_present(self, metadata: Sequence[UnitMetadata]) -> None:
        """Record units whose shards are on disk: flush their metadata first, then set ``present``."""
        for one in metadata:
            self._describe(one)
        self._flush(metadata, [*UNIT_RECORDS, *FOOTPRINT, "time", "exptime"])
        for one in metadata:
            row, column = self.index(one.exposure, one.detector)
            self._put("present", (row, column), value=True)
            self.present[row, column] = True
        self._flush(metadata, ["present"])
        self._blocks.clear()

    def record_absent(self, metadata: UnitMetadata) -> None:
        """Record a unit without pixels, such as one of a dead detector. It is not pending."""
        self._describe(metadata)
        self._blocks.clear()

    def _describe(self, metadata: UnitMetadata) -> None:
        row, column = self.index(metadata.exposure, metadata.detector)
        for name in UNIT_RECORDS:
            self._put(name, (row, column), getattr(metadata, name))
        for name, value in asdict(footprint(metadata.header, self.shape)).items():
            self._put(name, (row, column), value)

    def _put(self, name: str, selection: Any, value: Any) -> None:
        get_array(self.group, name)[selection] = value

    def _flush(self, metadata: Sequence[UnitMetadata], names: Sequence[str]) -> None:
        """Flush the chunks that contain the metadata of these units to disk."""
        for name in names:
            array = get_array(self.group, name)
            rows = {self.index(one.exposure, one.detector)[0] // array.chunks[0] for one in metadata}
            for row in rows:
                chunk = self.path.joinpath(name, "c", str(row), *["0"] * (array.ndim - 1))
                if chunk.is_file():
                    flush_file(chunk, self.path)

    def metadata(self, exposure: str, detector: int) -> UnitMetadata:
        """Return the metadata of one unit, without its headers (see `read_header`)."""
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
        """Return the record of how a unit was read; empty for campaigns of an earlier version."""
        if "unit_scale" not in self.group:
            return {}
        names = ("planes", "file_units", "exposure_id", "source_folder")
        texts = {name: str(self._value(name, row)[column]) for name in names if name in self.group}
        return {**texts, "unit_scale": float(self._value("unit_scale", row)[column])}

    def exposure_id(self, exposure: str) -> str:
        """Return the exposure id stated in the files; empty if it is not recorded."""
        if exposure not in self._rows or "exposure_id" not in self.group:
            return ""
        return next((str(one) for one in self._value("exposure_id", self._rows[exposure]) if one), "")

    @cached_property
    def _time_attributes(self) -> dict[str, Any]:
        return dict(get_array(self.group, "time").attrs)

    def _value(self, name: str, row: int) -> Any:
        """Return one row of a small array. A block of rows is read and cached, because units come in order."""
        block = self._blocks.get(name)
        if block is None or not 0 <= row - block[0] < len(block[1]):
            first = row - row % ROWS_PER_CHUNK
            block = (first, read_small(self.group, name, slice(first, first + ROWS_PER_CHUNK)))
            self._blocks[name] = block
        return block[1][row - block[0]]
