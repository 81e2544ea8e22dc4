"""The story of an ingest: scan headers, agree on one campaign, let workers copy pixels, admit units.

The campaign's driver (this module) decides from headers alone which unit each file is; a worker then copies
the three planes of one unit, one HDU at a time, into shards it owns; the driver admits the unit, `present`
last. Killed anywhere, the next ingest of the same files goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from astropy.io import fits

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
from csstdask.engine.units import Unit
from csstdask.engine.window import Task, failure, run_window
from csstdask.errors import CsstdaskError, InputError, LostDriverError
from csstdask.instrument import Instrument, builtin_names, load_instrument, recognise
from csstdask.store.campaign import Campaign, UnitFacts, create_campaign, write_unit_pixels
from csstdask.store.fits_file import open_fits, value_of
from csstdask.store.fits_planes import read_flag, read_headers, read_sci, read_weight
from csstdask.store.fits_scan import UnitSource, companion_of, scan
from csstdask.store.zarr_arrays import shard_path

log = logging.getLogger("csstdask")

#: Peak bytes a pixel of one unit in ingest: a plane as it lies in the file, as float32, and as it is encoded.
INGEST_BYTES_PER_PIXEL = 18
#: Units whose records are written at once.
ADMIT_EVERY = 16
#: Exposure times of one exposure's detectors agree to this.
_SAME_TIME = 1e-6
_TELL_EVERY_SECONDS = 10.0


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
        return {"units": units, "dead": self.dead, "failures": self.failures}


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
        FITS files, plain or compressed.
    to : path
        The campaign; made if it is not there.
    instrument : str, path or Instrument, optional
        A built-in name or a TOML; by default the campaign's, or what the headers tell.
    supersede : bool
        Let another file take the place of a unit that is present.
    scheduler, workers, listeners
        As for `csstdask.pipeline.run.run`.

    Returns
    -------
    IngestSummary
        Files that cannot be used are named in it; the others are ingested.

    Raises
    ------
    InputError
        If no file is usable at all, or no instrument or more than one could be meant.
    """
    root = Path(to)
    if root.exists() and not root.is_dir():
        raise InputError(root, "a file", "a folder for the campaign, or a new name")
    paths = list(dict.fromkeys(Path(name) for name in files))
    if not paths:
        raise InputError("FITS", "no file", "at least one")
    summary = IngestSummary()
    existing = Campaign(root) if (root / "zarr.json").exists() else None
    camera = _instrument(paths, instrument, existing)
    sources, dead = _scan_all(paths, camera, summary)
    if not sources and not dead:
        first = summary.failures[0]["reason"] if summary.failures else "nothing to ingest"
        more = f" (and {len(summary.failures) - 1} more)" if len(summary.failures) > 1 else ""
        raise InputError("FITS", f"no usable file: {first}{more}", "at least one")
    first_source = (sources or dead)[0]
    campaign_shape = existing.shape if existing else first_source.shape
    campaign_units = existing.units if existing else first_source.units
    detectors = existing.detectors if existing else list(camera.detector_ids)
    sources = [
        source
        for source in sources
        if _belongs(
            source,
            campaign_shape,
            campaign_units,
            detectors,
            summary,
            str(root if existing else first_source.name),
        )
    ]
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
            create_campaign(root, camera, campaign_shape, campaign_units)
        campaign = Campaign(root, "r+")
        if camera != campaign.instrument:
            campaign.update_instrument(camera)
        campaign.append_exposures([source.exposure for source in (*sources, *dead)])
        for source in dead:
            summary.dead.append(f"{source.exposure}/{source.detector}")
            if not campaign.is_present(source.exposure, source.detector):
                campaign.record_absent(source.facts("", ""))
        jobs = _jobs(sources, campaign, lock.token, summary, supersede=supersede)
        _copy(jobs, campaign, summary, scheduler, count, listeners)
    return summary


def _instrument(paths: Sequence[Path], given: str | Path | Instrument | None, existing: Campaign | None) -> Instrument:
    """Return the camera: given, the campaign's, or the one that the first readable header tells."""
    if isinstance(given, Instrument):
        camera: Instrument | None = given
    else:
        camera = load_instrument(given) if given is not None else None
    if existing is not None:
        return existing.instrument if camera is None else _updated(camera, existing)
    if camera is not None:
        return camera
    problems: list[str] = []
    for path in paths:
        try:
            names = _recognise(path)
        except Exception as error:  # noqa: BLE001  the next file may tell
            problems.append(str(error))
            continue
        if len(names) == 1:
            return load_instrument(names[0])
        candidates = names or builtin_names()
        what = "could be more than one instrument" if names else "no instrument that is known"
        problems.append(f"{path}: found {what}; wanted --instrument with one of {', '.join(candidates)}, or a TOML")
    raise InputError("FITS", f"no usable file: {problems[0]}", "at least one of a known instrument")


def _updated(camera: Instrument, existing: Campaign) -> Instrument:
    """Return a camera for more exposures of a campaign: only dated overrides and expectations may have changed."""
    changeable = {"overrides", "description", "expectations"}
    ours, theirs = (one.model_dump(exclude=changeable) for one in (camera, existing.instrument))
    different = [key for key in ours if ours[key] != theirs[key]]
    if different:
        name = camera.name if "name" in different else f"{camera.name} with another {', '.join(different)}"
        raise InputError(
            "--instrument", name, f"{existing.instrument.name}, as in {existing.path} (overrides may change)"
        )
    return camera


def _recognise(path: Path) -> tuple[str, ...]:
    """Return the built-in instruments that a file could be of, by its first two headers."""
    with open_fits(path) as hdus:
        images = [hdu.header for hdu in hdus[:2] if not isinstance(hdu, fits.BinTableHDU | fits.TableHDU)]
        return recognise(path.name, _FirstOf(images))


class _FirstOf(Mapping[str, Any]):
    """Several headers as one: the first that has a keyword answers, and broken cards do not."""

    def __init__(self, headers: Sequence[fits.Header]) -> None:
        self._headers = headers

    def __getitem__(self, name: str) -> Any:
        for header in self._headers:
            value = value_of(header, name)
            if value is not None:
                return value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter({name for header in self._headers for name in header})

    def __len__(self) -> int:
        return len(set(self))


def _scan_all(
    paths: Sequence[Path], camera: Instrument, summary: IngestSummary
) -> tuple[list[UnitSource], list[UnitSource]]:
    """Return the units of all files, usable ones and those of dead detectors; note files that cannot be used."""
    given = set(paths)
    usable: list[UnitSource] = []
    dead: list[UnitSource] = []
    told = time.monotonic()
    for number, path in enumerate(paths):
        if time.monotonic() - told > _TELL_EVERY_SECONDS:
            told = time.monotonic()
            log.info("looked at %d of %d files", number, len(paths))
        try:
            for source in _scan_one(path, camera, given):
                alive = camera.values(source.detector, source.facts("", "").when).usable is not False
                (usable if alive else dead).append(source)
        except Exception as error:  # noqa: BLE001  whatever a file does to its reader, the others are read
            _note(summary, path, error)
    return usable, dead


def _scan_one(path: Path, camera: Instrument, given: set[Path]) -> list[UnitSource]:
    """Return the units of one file: none if it is a plane of another's."""
    science = companion_of(path, camera)
    if science is not None:
        if science not in given and not science.is_file():
            raise InputError(path, f"no {science.name} beside it", "the image that this plane belongs to")
        return []
    names = _recognise(path)
    if names and camera.name not in names and camera.name in builtin_names():
        raise InputError(path, f"a file of {', '.join(names)}", f"one of {camera.name}")
    return scan(path, camera)


def _note(summary: IngestSummary, source: object, error: Exception) -> None:
    reason = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, CsstdaskError | OSError):
        reason = f"found something that cannot be read ({type(error).__name__}: {reason}); wanted a FITS file"
    if str(source) not in reason:
        reason = f"{source}: {reason}"
    summary.failures.append({"source": str(source), "reason": reason})


def _belongs(
    source: UnitSource,
    shape: tuple[int, int],
    units: str,
    detectors: Sequence[int],
    summary: IngestSummary,
    like: str,
) -> bool:
    """Tell whether a unit fits the campaign; note it if not."""
    own = "(it needs a campaign of its own)"
    if source.shape != shape:
        error = InputError(source.name, f"shape {source.shape}", f"{shape} as in {like} {own}")
    elif source.units != units:
        error = InputError(source.name, f"pixels in {source.units}", f"{units} as in {like} {own}")
    elif source.detector not in detectors:
        error = InputError(source.name, f"detector {source.detector}", f"one of the campaign's, {detectors} {own}")
    else:
        return True
    _note(summary, source.name, error)
    return False


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
    for source in sources:
        unit = Unit(source.exposure, source.detector)
        try:
            if unit in planned:
                _check_same_twice(source, planned[unit], unit)
                continue
            present = campaign.is_present(*_key(unit))
            if present and _is_unchanged(source, campaign, unit):
                summary.unchanged += 1
                planned[unit] = source
                continue
            if present:
                _check_replacement(source, campaign, unit, supersede=supersede)
            _check_exposure_time(source, campaign, times, settled)
            if present:
                campaign.withdraw(*_key(unit))
        except (CsstdaskError, OSError) as error:
            _note(summary, source.name, error)
            continue
        planned[unit] = source
        settled.setdefault(unit.exposure, source.exptime)
        row, column = campaign.index(*_key(unit))
        jobs.append((unit, IngestJob(source, row, column, str(campaign.path.resolve()), campaign.instrument, driver)))
    campaign.describe_exposures([job.source.facts("", "") for _, job in jobs])
    return jobs


def _check_same_twice(source: UnitSource, first: UnitSource, unit: Unit) -> None:
    if source.digest() != first.digest():
        raise InputError(source.name, f"unit {unit} a second time", f"one file for it, {first.name} was first")


def _is_unchanged(source: UnitSource, campaign: Campaign, unit: Unit) -> bool:
    """Tell whether a present unit came from this very file, and still has its shards."""
    row, column = campaign.index(*_key(unit))
    if not all(shard_path(campaign.path, name, row, column).is_file() for name in ("sci", "wht", "flag")):
        return False
    facts = campaign.facts(*_key(unit))
    return facts.source_stat == source.stat() or facts.digest == source.digest()


def _check_replacement(source: UnitSource, campaign: Campaign, unit: Unit, *, supersede: bool) -> None:
    """Raise unless a file may take a present unit's place: it was asked for, and all of it can be read."""
    facts = campaign.facts(*_key(unit))
    if facts.digest == source.digest():
        return  # the same file, for lost shards
    if not supersede:
        raise InputError(
            source.name, f"another file for unit {unit} than {facts.source}", "the same, or --supersede to replace it"
        )
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
        self._waiting: list[UnitFacts] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, UnitDone):
            self._waiting.append(UnitFacts(**event.result["facts"]))
            if len(self._waiting) >= ADMIT_EVERY:
                self.flush()
        elif isinstance(event, UnitFailed):
            self._summary.failures.append({"source": str(event.unit), "reason": event.reason})

    def flush(self) -> None:
        self._campaign.admit(self._waiting)
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
        return failure(step, error)
    header, primary = headers
    return {"facts": replace(source.facts(digest, stat), header=header, primary_header=primary).to_dict()}


def _check_driver(root: Path, driver: str) -> None:
    owner = read_owner(root.with_name(f".{root.name}.driver.json"))
    if owner is None or owner["token"] != driver:
        raise LostDriverError(f"{root}: its driver no longer holds the campaign")
