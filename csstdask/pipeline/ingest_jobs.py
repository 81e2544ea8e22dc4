"""Decide which units an ingest copies, and copy one of them on a worker."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from csstdask.core.errors import CsstdaskError, InputError, StoreError
from csstdask.engine.cluster import limit_threads
from csstdask.engine.lock import check_owner, sibling_lock_path
from csstdask.engine.window import Task, describe_failure
from csstdask.engine.work_units import Unit
from csstdask.instrument import Instrument
from csstdask.pipeline.ingest_files import Report
from csstdask.store.campaign import Campaign
from csstdask.store.campaign_pixels import read_unit_pixels, write_unit_pixels
from csstdask.store.fits_planes import read_flag, read_headers, read_sci, read_weight
from csstdask.store.fits_unit import UnitSource
from csstdask.store.shards import shard_path

log = logging.getLogger("csstdask")

PLANES = ("sci", "wht", "flag")
"""Arrays of a campaign that an ingest writes."""
EXPTIME_TOLERANCE = 1e-6
"""Largest relative difference between the exposure times of an exposure's detectors: rounding of FITS headers."""


@dataclass(frozen=True)
class IngestJob:
    """Everything a worker needs to copy one unit."""

    source: UnitSource
    row: int
    column: int
    campaign: str
    instrument: Instrument
    driver: str
    """Token of the driver's lock."""


class JobPlanner:
    """Chooses the units that an ingest copies: new ones and, with `supersede`, those whose file has changed.

    Parameters
    ----------
    campaign : Campaign
        Open for writing, with rows for all exposures.
    report : callable
        Receives each file that cannot be used, and the error.
    supersede : bool
        Replace units that are present by other files, and copy units again whose pixels are damaged.
    """

    def __init__(self, campaign: Campaign, report: Report, *, supersede: bool) -> None:
        self.unchanged = 0
        """Units that are present, from the same file."""
        self._campaign, self._report, self._supersede = campaign, report, supersede
        self._planned: dict[Unit, UnitSource] = {}
        self._exptimes = dict(zip(campaign.exposures, campaign.read("exptime").tolist(), strict=False))
        self._new_exptimes: dict[str, float] = {}
        self._ids: dict[str, str] = {}

    def tasks(self, sources: Sequence[UnitSource], token: str) -> list[Task]:
        """Return a task for each unit to copy; units that are replaced are marked absent until they are copied.

        Parameters
        ----------
        sources : sequence of UnitSource
            Units of all files.
        token : str
            Token of the driver's lock.
        """
        chosen = [source for source in sources if self._wanted(source)]
        self._campaign.describe_exposures([source.metadata("", "") for source in chosen])
        path, instrument = str(self._campaign.path.resolve()), self._campaign.instrument
        tasks = []
        for source in chosen:
            row, column = self._campaign.index(source.exposure, source.detector)
            job = IngestJob(source, row, column, path, instrument, token)
            tasks.append(Task(Unit(source.exposure, source.detector), job))
        return tasks

    def _wanted(self, source: UnitSource) -> bool:
        """Return whether a unit is to be copied; report a file that cannot be used."""
        unit = Unit(source.exposure, source.detector)
        try:
            self._check_exposure_id(source)
            if unit in self._planned:
                self._check_same_file(source, unit)
                return False
            present = self._campaign.is_present(*_key(unit))
            if present and self._is_unchanged(source, unit) and not (self._supersede and self._is_damaged(unit)):
                self.unchanged += 1
                self._planned[unit] = source
                return False
            if present:
                self._check_replacement(source, unit)
            self._check_exposure_time(source)
            if present:
                self._campaign.mark_absent(*_key(unit))
        except (CsstdaskError, OSError) as error:
            self._report(source.name, error)
            return False
        self._planned[unit] = source
        self._new_exptimes.setdefault(unit.exposure, source.exptime)
        return True

    def _check_exposure_id(self, source: UnitSource) -> None:
        """Raise InputError if another exposure, whose id gives the same folder name, is there already."""
        first = self._campaign.exposure_id(source.exposure) or source.exposure_id
        known = self._ids.setdefault(source.exposure, first)
        if known != source.exposure_id:
            wanted = f"one that is not named like exposure {known!r}, {source.exposure} in the campaign"
            raise InputError(source.name, f"exposure {source.exposure_id!r}", wanted)

    def _check_same_file(self, source: UnitSource, unit: Unit) -> None:
        """Raise InputError if two different files of this ingest hold the same unit."""
        first = self._planned[unit]
        if source.digest() != first.digest():
            raise InputError(source.name, f"unit {unit} a second time", f"one file for it, {first.name} was first")

    def _is_unchanged(self, source: UnitSource, unit: Unit) -> bool:
        """Return whether a present unit came from this very file, and still has its shards."""
        row, column = self._campaign.index(*_key(unit))
        if not all(shard_path(self._campaign.path, name, row, column).is_file() for name in PLANES):
            return False
        metadata = self._campaign.metadata(*_key(unit))
        same_files = metadata.source_stat == source.stat() and metadata.planes == source.planes
        return same_files or metadata.digest == source.digest()

    def _is_damaged(self, unit: Unit) -> bool:
        """Return whether pixels of a present unit cannot be read; reads all of them."""
        try:
            for name in PLANES:
                read_unit_pixels(self._campaign.path, *self._campaign.index(*_key(unit)), name)
        except (StoreError, OSError):
            return True
        return False

    def _check_replacement(self, source: UnitSource, unit: Unit) -> None:
        """Raise unless a file may replace a present unit: `supersede` is set, and all of it can be read."""
        metadata = self._campaign.metadata(*_key(unit))
        if metadata.digest == source.digest():
            return  # the same file, for lost shards
        if not self._supersede:
            same = metadata.source_stat == source.stat()
            found = (
                "planes that are read in another way than before" if same else f"another file than {metadata.source}"
            )
            raise InputError(source.name, f"{found} for unit {unit}", "the same, or --supersede to replace it")
        read_sci(source)
        read_weight(source)
        read_flag(source, self._campaign.instrument)

    def _check_exposure_time(self, source: UnitSource) -> None:
        """Raise InputError unless a unit has the exposure time of its exposure: one is stored for all detectors.

        A wrong exposure time of an exposure with several detectors can therefore not be superseded unit by unit: the
        exposure needs another campaign.
        """
        row, column = self._campaign.index(source.exposure, source.detector)
        others = self._campaign.present[row].copy()
        others[column] = False
        exptimes = self._exptimes if others.any() else self._new_exptimes
        known = exptimes.get(source.exposure)
        if known is not None and abs(known - source.exptime) > EXPTIME_TOLERANCE * max(known, 1.0):
            raise InputError(
                source.name, f"an exposure time of {source.exptime} s", f"{known} s as in the rest of {source.exposure}"
            )


def _key(unit: Unit) -> tuple[str, int]:
    return unit.exposure, unit.detector


def copy_unit(job: IngestJob) -> dict[str, Any]:
    """Copy the planes of one unit into the shards it owns, one HDU at a time: the task of a worker."""
    limit_threads(1)
    root, source = Path(job.campaign), job.source
    step = "read"
    try:
        # The identity of the unit is read before its pixels: a file that changes meanwhile is noticed the next time.
        stat, digest, headers = source.stat(), source.digest(), read_headers(source)
        for name in PLANES:
            step = name
            plane = _read_plane(source, name, job.instrument)
            check_owner(sibling_lock_path(root), job.driver, root)
            write_unit_pixels(root, job.row, job.column, name, plane)
            del plane  # before the next one is read
    except Exception as error:
        log.debug("ingest of %s", source.name, exc_info=True)
        return describe_failure(step, error)
    header, primary = headers
    return {"metadata": replace(source.metadata(digest, stat), header=header, primary_header=primary).to_dict()}


def _read_plane(source: UnitSource, name: str, instrument: Instrument) -> Any:
    if name == "sci":
        return read_sci(source)
    return read_weight(source) if name == "wht" else read_flag(source, instrument)
