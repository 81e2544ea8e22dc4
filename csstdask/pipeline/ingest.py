"""Copy FITS files into a campaign.

The driver reads the headers of all files and decides which unit each of them holds. A worker copies the planes of one
unit into the shards it owns, and the driver marks the unit as present: last, so that an ingest killed at any moment
leaves nothing half written in sight. The next ingest of the same files resumes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from csstdask.core.errors import InputError
from csstdask.engine.collector import Counts, JobSummary
from csstdask.engine.driver import Driver
from csstdask.engine.events import Listener
from csstdask.engine.lock import sibling_lock_path
from csstdask.engine.memory import choose_workers
from csstdask.engine.schedulers import check_scheduler
from csstdask.engine.work_units import Unit
from csstdask.instrument import Instrument
from csstdask.pipeline.ingest_files import (
    CampaignFormat,
    ScannedFiles,
    campaign_format,
    choose_format,
    describe_error,
    describe_mixture,
    filter_by_format,
    find_files,
    resolve_camera,
    scan_files,
)
from csstdask.pipeline.ingest_jobs import JobPlanner, copy_unit
from csstdask.store.campaign import Campaign
from csstdask.store.campaign_creation import create_campaign
from csstdask.store.fits_unit import UnitSource
from csstdask.store.unit_metadata import UnitMetadata

#: Peak memory of a unit: a plane as it lies in the file, as float32, and encoded [byte / pixel].
INGEST_BYTES_PER_PIXEL = 18
#: Units that are marked as present at once: each call rewrites chunks that many units share.
UNITS_PER_WRITE = 16


@dataclass
class IngestSummary(JobSummary):
    """Result of an ingest; `failures` have ``source`` and ``reason`` of files and units that could not be used."""

    added: int = 0
    """Number of units whose pixels were copied."""
    unchanged: int = 0
    """Number of units that were present, from the same file."""
    dead: list[str] = field(default_factory=list)
    """Units of detectors that the instrument calls unusable: recorded, not copied."""
    notes: list[str] = field(default_factory=list)
    """Remarks on how files were read, such as a header that contradicts the instrument's TOML."""
    ignored: list[str] = field(default_factory=list)
    """Chips that the instrument's TOML leaves out."""

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
    """Copy FITS files into a campaign; an existing campaign is extended.

    Parameters
    ----------
    files : iterable of path
        FITS files, plain or compressed; folders, of which all FITS files are taken; and ``@list``, a text file with one
        path per line, relative to its own folder, where empty lines and lines that begin with # are ignored.
    to : path
        Campaign, created if it does not exist.
    instrument : str, path or Instrument, optional
        Built-in name or TOML file; default: that of the campaign, else recognised from the headers.
    supersede : bool
        Replace units that are present by other files, and copy units again whose pixels are damaged.
    scheduler, workers, listeners
        As for `csstdask.pipeline.run.run`.

    Returns
    -------
    IngestSummary
        Names the files that cannot be used; the others are ingested.

    Raises
    ------
    InputError
        If no file is usable, the instrument is unknown or ambiguous, or no camera has most of the files.
    """
    root = Path(to)
    if root.exists() and not root.is_dir():
        raise InputError(root, "a file", "a folder for the campaign, or a new name")
    summary = IngestSummary()
    existing = Campaign(root) if (root / "zarr.json").exists() else None
    camera, scanned = _scan(files, instrument, existing, summary)
    form = campaign_format(existing) if existing else choose_format(scanned.usable or scanned.dead, camera)
    sources = filter_by_format(scanned.usable, form, summary.note_failure)
    summary.notes += describe_mixture(scanned.usable, form)
    check_scheduler(scheduler)
    pixels = max((source.shape[0] * source.shape[1] for source in sources), default=0)
    count = choose_workers(scheduler, pixels * INGEST_BYTES_PER_PIXEL, wanted=workers)
    root.parent.mkdir(parents=True, exist_ok=True)
    with Driver(scheduler, count) as driver:
        token = driver.lock(sibling_lock_path(root))
        campaign = _open_campaign(root, camera, None if existing else form)
        campaign.append_exposures([source.exposure for source in (*sources, *scanned.dead)])
        _record_dead(campaign, scanned.dead, summary)
        planner = JobPlanner(campaign, summary.note_failure, supersede=supersede)
        tasks = planner.tasks(sources, token)
        summary.unchanged = planner.unchanged
        writer, title = CampaignWriter(campaign, summary), f"ingest {root.name}"
        pixels = campaign.shape[0] * campaign.shape[1]
        with driver.job_loop(title, len(tasks), pixels, writer, listeners) as loop:
            loop.process(tasks, copy_unit, key=f"ingest-{token[:8]}")
    return summary


def _scan(
    files: Iterable[str | Path],
    instrument: str | Path | Instrument | None,
    existing: Campaign | None,
    summary: IngestSummary,
) -> tuple[Instrument, ScannedFiles]:
    """Read the headers of all files; raise InputError if none can be used."""
    paths = find_files(files, summary.note_failure)
    scanned = scan_files(paths, resolve_camera(instrument, existing), summary.note_failure)
    summary.notes += scanned.notes
    summary.ignored += scanned.ignored
    if scanned.camera is None or not (scanned.usable or scanned.dead):
        first = summary.failures[0]["reason"] if summary.failures else "nothing to ingest"
        more = f" (and {len(summary.failures) - 1} more)" if len(summary.failures) > 1 else ""
        raise InputError("FITS", f"no usable file: {first}{more}", "at least one")
    return scanned.camera, scanned


def _open_campaign(root: Path, camera: Instrument, form: CampaignFormat | None) -> Campaign:
    """Open a campaign for writing; create it if a format is given."""
    if form is not None:
        if (root / "zarr.json").exists():
            raise InputError(
                root, "a campaign that another ingest has just made", "to be run again, now that it is there"
            )
        create_campaign(root, camera, form.shape, form.units)
    campaign = Campaign(root, "r+")
    if camera != campaign.instrument:
        campaign.update_instrument(camera)
    return campaign


def _record_dead(campaign: Campaign, dead: Sequence[UnitSource], summary: IngestSummary) -> None:
    """Record the units of detectors that the instrument calls unusable."""
    for source in dead:
        summary.dead.append(f"{source.exposure}/{source.detector}")
        if not campaign.is_present(source.exposure, source.detector):
            campaign.record_absent(source.metadata("", ""))


class CampaignWriter:
    """Marks copied units as present in the campaign, several at once."""

    def __init__(self, campaign: Campaign, summary: IngestSummary) -> None:
        self.summary = summary
        self._campaign = campaign
        self._copied: list[UnitMetadata] = []

    def counts(self) -> Counts:
        """Return the numbers of units so far."""
        return Counts(self.summary.added, self.summary.unchanged, len(self.summary.failures))

    def add(self, unit: Unit, result: dict[str, Any]) -> None:  # noqa: ARG002  the metadata name it
        """Record the metadata of a copied unit."""
        self._copied.append(UnitMetadata(**result["metadata"]))
        if len(self._copied) >= UNITS_PER_WRITE:
            self.flush()

    def skip(self, unit: Unit, record: dict[str, Any]) -> None:
        """Do nothing: unchanged units have no task."""

    def fail(self, unit: Unit, step: str, reason: str) -> None:  # noqa: ARG002  the reason names the plane
        """Record a failure."""
        self.summary.failures.append({"source": str(unit), "reason": reason})

    def flush(self) -> None:
        """Mark the copied units as present."""
        self._campaign.mark_present(self._copied)
        self.summary.added += len(self._copied)
        self._copied = []
