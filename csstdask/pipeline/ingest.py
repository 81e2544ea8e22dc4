"""Ingest: read headers, agree on one campaign, copy pixels on workers, record units.

The campaign's driver (this module) decides from headers alone which unit each file is; a worker then copies
the three planes of one unit, one HDU at a time, into shards it owns; the driver admits the unit, `present`
last. Killed anywhere, the next ingest of the same files goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from csstdask.core.errors import CsstdaskError, InputError, LostDriverError, StoreError
from csstdask.engine.cluster import limit_threads, open_cluster
from csstdask.engine.events import (
    Event,
    Listener,
    RunFinished,
    RunStarted,
    UnitDone,
    UnitFailed,
    broadcast,
)
from csstdask.engine.lock import DriverLock, read_owner
from csstdask.engine.memory import choose_workers
from csstdask.engine.schedulers import check_scheduler, default_workers
from csstdask.engine.window import Task, describe_failure, run_window
from csstdask.engine.work_units import Unit
from csstdask.instrument import Instrument
from csstdask.pipeline.ingest_files import (
    campaign_format,
    choose_format,
    describe_error,
    describe_mixture,
    filter_by_format,
    find_files,
    resolve_camera,
    scan_files,
)
from csstdask.store.campaign import Campaign
from csstdask.store.campaign_creation import create_campaign
from csstdask.store.campaign_pixels import read_unit_pixels, write_unit_pixels
from csstdask.store.fits_planes import read_flag, read_headers, read_sci, read_weight
from csstdask.store.fits_unit import UnitSource
from csstdask.store.shards import shard_path
from csstdask.store.unit_metadata import UnitMetadata

log = logging.getLogger("csstdask")

#: Peak bytes a pixel of one unit in ingest: a plane as it lies in the file, as float32, and as it is encoded.
INGEST_BYTES_PER_PIXEL = 18
#: Units whose records are written at once.
ADMIT_EVERY = 16
#: Exposure times of one exposure's detectors agree to this.
_SAME_TIME = 1e-6


@dataclass
class IngestSummary:
    """What came of an ingest."""

    added: int = 0
    """Units whose pixels were copied."""
    unchanged: int = 0
    """Units that were there, from the same file."""
    dead: list[str] = field(default_factory=list)
    """Units of detectors that the instrument calls unusable: recorded, not copied."""
    failures: list[dict[str, str]] = field(default_factory=list)
    """``source`` and ``reason`` of files and units that could not be used."""
    notes: list[str] = field(default_factory=list)
    """What a user should know of how files were read, such as a header that contradicts the instrument's TOML."""
    ignored: list[str] = field(default_factory=list)
    """Chips that the instrument says to leave out."""
    seconds: float = 0.0
    stopped: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``--json`` prints."""
        units = {
            "added": self.added,
            "unchanged": self.unchanged,
            "dead": len(self.dead),
            "failed": len(self.failures),
        }
        return {
            "units": units,
            "dead": self.dead,
            "ignored": self.ignored,
            "notes": self.notes,
            "failures": self.failures,
        }

    def note_failure(self, source: object, error: Exception) -> None:
        """Record a file or unit that cannot be used."""
        self.failures.append({"source": str(source), "reason": describe_error(source, error)})


@dataclass(frozen=True)
class IngestJob:
    """Everything a worker needs to copy one unit."""

    source: UnitSource
    row: int
    column: int
    campaign: str
    instrument: Instrument
    driver: str


def ingest(
    files: Iterable[str | Path],
    to: str | Path,
    *,
    instrument: str | Path | Instrument | None = None,
    supersede: bool = False,
    scheduler: str = "threads",
    workers: int | None = None,
    listeners: Sequence[Listener] = (),
) -> IngestSummary:
    """Copy FITS files into a campaign; adds to one that is there.

    Parameters
    ----------
    files : iterable of path
        FITS files, plain or compressed; folders, of which every FITS file is taken; and ``@list`` for a text file with
        one path a line, relative to its own folder, empty lines and lines with # left out.
    to : path
        The campaign; made if it is not there.
    instrument : str, path or Instrument, optional
        A built-in name or a TOML; by default the campaign's, or what the headers tell.
    supersede : bool
        Let another file take the place of a unit that is present, and copy units again whose pixels are damaged.
    scheduler, workers, listeners
        As for `csstdask.pipeline.run.run`.

    Returns
    -------
    IngestSummary
        Files that cannot be used are named in it; the others are ingested.

    Raises
    ------
    InputError
        If no file is usable at all, no instrument or more than one could be meant, or no camera has most of the files.
    """
    root = Path(to)
    if root.exists() and not root.is_dir():
        raise InputError(root, "a file", "a folder for the campaign, or a new name")
    summary = IngestSummary()
    paths = find_files(files, summary.note_failure)
    existing = Campaign(root) if (root / "zarr.json").exists() else None
    scanned = scan_files(paths, resolve_camera(instrument, existing), summary.note_failure)
    summary.notes += scanned.notes
    summary.ignored += scanned.ignored
    if scanned.camera is None or not (scanned.usable or scanned.dead):
        first = summary.failures[0]["reason"] if summary.failures else "nothing to ingest"
        more = f" (and {len(summary.failures) - 1} more)" if len(summary.failures) > 1 else ""
        raise InputError("FITS", f"no usable file: {first}{more}", "at least one")
    camera, dead = scanned.camera, scanned.dead
    form = campaign_format(existing) if existing else choose_format(scanned.usable or dead, camera)
    sources = filter_by_format(scanned.usable, form, summary.note_failure)
    summary.notes += describe_mixture(scanned.usable, form)
    check_scheduler(scheduler)
    count = _workers(sources, scheduler, workers)
    root.parent.mkdir(parents=True, exist_ok=True)
    lock_path = root.with_name(f".{root.name}.driver.json")
    with DriverLock(lock_path) as lock:
        if existing is None:
            if (root / "zarr.json").exists():
                raise InputError(
                    root, "a campaign that another ingest has just made", "to be run again, now that it is there"
                )
            create_campaign(root, camera, form.shape, form.units)
        campaign = Campaign(root, "r+")
        if camera != campaign.instrument:
            campaign.update_instrument(camera)
        campaign.append_exposures([source.exposure for source in (*sources, *dead)])
        for source in dead:
            summary.dead.append(f"{source.exposure}/{source.detector}")
            if not campaign.is_present(source.exposure, source.detector):
                campaign.record_absent(source.metadata("", ""))
        jobs = _jobs(sources, campaign, lock.token, summary, supersede=supersede)
        _copy(jobs, campaign, summary, scheduler, count, listeners)
    return summary


def _workers(sources: Sequence[UnitSource], scheduler: str, workers: int | None) -> int:
    pixels = max((source.shape[0] * source.shape[1] for source in sources), default=0)
    each = pixels * INGEST_BYTES_PER_PIXEL
    if scheduler not in {"threads", "processes"}:
        return workers or default_workers()
    return choose_workers(each, processes=scheduler == "processes", wanted=workers)


def _jobs(
    sources: Sequence[UnitSource], campaign: Campaign, driver: str, summary: IngestSummary, *, supersede: bool
) -> list[tuple[Unit, IngestJob]]:
    """Return the units to copy: new ones, and, if asked, those whose file is another one now."""
    planned: dict[Unit, UnitSource] = {}
    jobs: list[tuple[Unit, IngestJob]] = []
    times = dict(zip(campaign.exposures, campaign.read("exptime").tolist(), strict=False))
    settled: dict[str, float] = {}
    ids: dict[str, str] = {}
    for source in sources:
        unit = Unit(source.exposure, source.detector)
        try:
            _check_exposure_id(source, campaign, ids)
            if unit in planned:
                _check_same_twice(source, planned[unit], unit)
                continue
            present = campaign.is_present(*_key(unit))
            if present and _is_unchanged(source, campaign, unit) and not (supersede and _is_damaged(campaign, unit)):
                summary.unchanged += 1
                planned[unit] = source
                continue
            if present:
                _check_replacement(source, campaign, unit, supersede=supersede)
            _check_exposure_time(source, campaign, times, settled)
            if present:
                campaign.mark_absent(*_key(unit))
        except (CsstdaskError, OSError) as error:
            summary.note_failure(source.name, error)
            continue
        planned[unit] = source
        settled.setdefault(unit.exposure, source.exptime)
        row, column = campaign.index(*_key(unit))
        jobs.append((unit, IngestJob(source, row, column, str(campaign.path.resolve()), campaign.instrument, driver)))
    campaign.describe_exposures([job.source.metadata("", "") for _, job in jobs])
    return jobs


def _check_exposure_id(source: UnitSource, campaign: Campaign, ids: dict[str, str]) -> None:
    """Raise if another exposure, whose id gives the same name, is there already."""
    known = ids.setdefault(source.exposure, campaign.exposure_id(source.exposure) or source.exposure_id)
    if known != source.exposure_id:
        wanted = f"one that is not named like exposure {known!r}, {source.exposure} in the campaign"
        raise InputError(source.name, f"exposure {source.exposure_id!r}", wanted)


def _check_same_twice(source: UnitSource, first: UnitSource, unit: Unit) -> None:
    if source.digest() != first.digest():
        raise InputError(source.name, f"unit {unit} a second time", f"one file for it, {first.name} was first")


def _is_unchanged(source: UnitSource, campaign: Campaign, unit: Unit) -> bool:
    """Return whether a present unit came from this very file, and still has its shards."""
    row, column = campaign.index(*_key(unit))
    if not all(shard_path(campaign.path, name, row, column).is_file() for name in ("sci", "wht", "flag")):
        return False
    metadata = campaign.metadata(*_key(unit))
    same_files = metadata.source_stat == source.stat() and metadata.planes == source.planes
    return same_files or metadata.digest == source.digest()


def _is_damaged(campaign: Campaign, unit: Unit) -> bool:
    """Return whether pixels of a present unit cannot be read; all of them are, so this is for units to be replaced."""
    try:
        for name in ("sci", "wht", "flag"):
            read_unit_pixels(campaign.path, *campaign.index(*_key(unit)), name)
    except (StoreError, OSError):
        return True
    return False


def _check_replacement(source: UnitSource, campaign: Campaign, unit: Unit, *, supersede: bool) -> None:
    """Raise unless a file may take a present unit's place: it was asked for, and all of it can be read."""
    metadata = campaign.metadata(*_key(unit))
    if metadata.digest == source.digest():
        return  # the same file, for lost shards
    if not supersede:
        same = metadata.source_stat == source.stat()
        found = "planes that are read in another way than before" if same else f"another file than {metadata.source}"
        raise InputError(source.name, f"{found} for unit {unit}", "the same, or --supersede to replace it")
    read_sci(source)
    read_weight(source)
    read_flag(source, campaign.instrument)


def _key(unit: Unit) -> tuple[str, int]:
    return unit.exposure, unit.detector


def _check_exposure_time(
    source: UnitSource, campaign: Campaign, times: Mapping[str, float], settled: Mapping[str, float]
) -> None:
    """Raise unless a unit's exposure time is that of the others of its exposure: there is one number for all.

    `times` are the campaign's, `settled` those of units that this ingest is going to copy. A wrong time of an
    exposure with several detectors can therefore not be superseded one by one: it needs a campaign of its own.
    """
    row, column = campaign.index(source.exposure, source.detector)
    others = campaign.present[row].copy()
    others[column] = False
    known = times[source.exposure] if others.any() else settled.get(source.exposure)
    if known is not None and abs(known - source.exptime) > _SAME_TIME * max(known, 1.0):
        raise InputError(
            source.name, f"an exposure time of {source.exptime} s", f"{known} s as in the rest of {source.exposure}"
        )


def _copy(
    jobs: Sequence[tuple[Unit, IngestJob]],
    campaign: Campaign,
    summary: IngestSummary,
    scheduler: str,
    workers: int,
    listeners: Sequence[Listener],
) -> None:
    """Let workers copy the units, and admit them as they come back."""
    keeper = _Registrar(campaign, summary)
    emit = broadcast([keeper, *listeners])
    start = time.perf_counter()
    emit(RunStarted(f"ingest {campaign.path.name}", len(jobs), campaign.shape[0] * campaign.shape[1], workers))
    try:
        if jobs:
            with open_cluster(scheduler, workers) as slots:
                tasks = (Task(unit, job) for unit, job in jobs)
                try:
                    outcome = run_window(slots, tasks, copy_unit, emit, key=f"ingest-{jobs[0][1].driver[:8]}")
                    summary.stopped = outcome.stopped
                finally:
                    keeper.flush()  # before the cluster closes, which waits for units in work
    finally:
        summary.seconds = time.perf_counter() - start
        emit(RunFinished(summary.added, summary.unchanged, len(summary.failures), summary.seconds))


class _Registrar:
    """The listener that admits copied units to the campaign."""

    def __init__(self, campaign: Campaign, summary: IngestSummary) -> None:
        self._campaign, self._summary = campaign, summary
        self._waiting: list[UnitMetadata] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, UnitDone):
            self._waiting.append(UnitMetadata(**event.result["facts"]))
            if len(self._waiting) >= ADMIT_EVERY:
                self.flush()
        elif isinstance(event, UnitFailed):
            self._summary.failures.append({"source": str(event.unit), "reason": event.reason})

    def flush(self) -> None:
        self._campaign.mark_present(self._waiting)
        self._summary.added += len(self._waiting)
        self._waiting = []


def copy_unit(job: IngestJob) -> dict[str, Any]:
    """Copy one unit's planes into the shards it owns, one HDU at a time: a worker's task."""
    limit_threads(1)
    root, source = Path(job.campaign), job.source
    step = "read"
    try:
        # What identifies the unit is read before its pixels: a file that changes meanwhile shows next time.
        stat, digest, headers = source.stat(), source.digest(), read_headers(source)
        for name in ("sci", "wht", "flag"):
            step = name
            if name == "sci":
                plane: Any = read_sci(source)
            elif name == "wht":
                plane = read_weight(source)
            else:
                plane = read_flag(source, job.instrument)
            _check_driver(root, job.driver)
            write_unit_pixels(root, job.row, job.column, name, plane)
            del plane
    except Exception as error:
        log.debug("ingest of %s", source.name, exc_info=True)
        return describe_failure(step, error)
    header, primary = headers
    return {"facts": replace(source.metadata(digest, stat), header=header, primary_header=primary).to_dict()}


def _check_driver(root: Path, driver: str) -> None:
    owner = read_owner(root.with_name(f".{root.name}.driver.json"))
    if owner is None or owner["token"] != driver:
        raise LostDriverError(f"{root}: its driver no longer holds the campaign")
