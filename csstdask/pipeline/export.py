"""Export units as FITS: of a campaign as they were ingested, of a run with repairs, flags, zero points and spectra."""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

from csstdask.core.errors import InputError
from csstdask.engine.collector import Counts, JobSummary
from csstdask.engine.driver import Driver
from csstdask.engine.events import Listener
from csstdask.engine.ledger import Ledger
from csstdask.engine.memory import choose_workers
from csstdask.engine.schedulers import check_scheduler
from csstdask.engine.window import Task
from csstdask.engine.work_units import Selection, Unit
from csstdask.pipeline.completed_units import frame_fingerprints
from csstdask.pipeline.export_frames import FrameJob, export_frame
from csstdask.pipeline.export_spectra import export_unit_spectra, spectra_jobs, write_calibrations
from csstdask.pipeline.export_zero_points import electron_rate, zero_point_cards
from csstdask.pipeline.plan import Plan
from csstdask.pipeline.provenance import Provenance, provenance_cards, software_versions
from csstdask.pipeline.source_tables import ZeroPointTable
from csstdask.pipeline.status import load_plan, reproduce_command
from csstdask.store.campaign import Campaign
from csstdask.store.store_metadata import open_group, refuse_inside_store, store_kind
from csstdask.store.unit_metadata import UnitMetadata

#: Peak memory of a unit: three planes in their views, with scratch arrays, and as FITS [byte / pixel].
EXPORT_BYTES_PER_PIXEL = 42

ExportUnit = tuple[Unit, int, int]
"""A unit, its row and its column."""


@dataclass
class ExportSummary(JobSummary):
    """Result of an export."""

    written: int = 0
    """Number of frames that were written."""
    unchanged: int = 0
    """Number of frames whose file existed already."""
    spectra: int = 0
    """Number of units whose calibrated spectra exist now."""
    calibrations: int = 0
    """Number of detectors whose sensitivity and flat-field cube exist now."""
    pending: int = 0
    """Number of units that the run has not finished, and that were left out."""


def export(
    store: str | Path,
    to: str | Path,
    *,
    campaign: str | Path | None = None,
    selection: Selection | None = None,
    scheduler: str = "threads",
    workers: int | None = None,
    overwrite: bool = False,
    cubes: bool = False,
    listeners: Sequence[Listener] = (),
) -> ExportSummary:
    """Write the units of a campaign or a run as FITS, ``<exposure>_<detector>.fits``.

    Parameters
    ----------
    store : path
        A campaign: planes as they were ingested. A run: its finished units, with repaired pixels, their weights, flags
        with CR and INPAINTED bits in place of incoming cosmic-ray bits and, once the zero points of the present units
        are finished, MAGZERO, MAGZERR and MAGZMETH in the header of SCI (`zero_point_cards`). What is read is verified:
        a unit with a damaged file fails, and the reason names the file and the command that restores it.
    to : path
        Output folder, created if it does not exist. The existing export of the same unit is kept; any other file of
        that name fails the unit, unless `overwrite` is set.
    campaign : path, optional
        Campaign of the run, if it has moved.
    selection : Selection, optional
        Units to export; default: all.
    scheduler : str
        ``threads``, ``processes``, ``cuda``, ``slurm`` or the address of a Dask scheduler.
    workers : int, optional
        Number of units exported at the same time.
    overwrite : bool
        Replace existing files.
    cubes : bool
        Write the flat-field cubes of slitless detectors too, in the format of aXe: 1.4 GB for a full detector.
    listeners : sequence of callable
        Receive the events of the export (``engine/events.py``).

    Raises
    ------
    InputError, StoreError
        For an unusable store, folder, scheduler or selection.
    """
    root, target = Path(store), Path(to)
    check_scheduler(scheduler)
    chosen = selection or Selection()
    is_run = _is_run(root)
    refuse_inside_store(target)
    plan = load_plan(root, campaign) if is_run else None
    source = plan.campaign if plan is not None else Campaign(root)
    units = [item for item in (_present_units(source) if plan is None else plan.units()) if item[0] in chosen]
    if not units and not chosen.selects_all:
        raise InputError("--select", "no unit", f"units of {root} that are present")
    target.mkdir(parents=True, exist_ok=True)
    summary = ExportSummary()
    jobs = _ExportJobs(root, target, source, plan, units, overwrite)
    collector = ExportCollector(summary, root, target, campaign)
    pixels = source.shape[0] * source.shape[1]
    count = choose_workers(scheduler, pixels * EXPORT_BYTES_PER_PIXEL, wanted=workers)
    key = uuid.uuid4().hex[:8]
    with (
        Driver(scheduler, count) as driver,
        driver.job_loop(f"export {root.name}", len(units), pixels, collector, listeners) as loop,
    ):
        loop.process(jobs.frames(summary), export_frame, key=f"export-{key}")
        loop.process(jobs.spectra(), export_unit_spectra, key=f"spectra-{key}", progress=False)
        if plan is not None and not loop.stopped:
            used = {unit.detector for unit, _, _ in units}
            detectors = [detector for detector in source.detectors if detector in used]
            written = write_calibrations(root, plan, target, detectors, overwrite=overwrite, cubes=cubes)
            summary.calibrations, failures = written
            summary.failures += failures
    return summary


class ExportCollector:
    """Counts what was exported, and names failures with the command that exports the unit again."""

    def __init__(self, summary: ExportSummary, root: Path, target: Path, campaign: str | Path | None) -> None:
        self.summary = summary
        self._root, self._target, self._campaign = root, target, campaign

    def counts(self) -> Counts:
        """Return the numbers of units so far."""
        return Counts(self.summary.written, self.summary.unchanged, len(self.summary.failures))

    def add(self, unit: Unit, result: dict[str, Any]) -> None:  # noqa: ARG002  only counted
        """Count a unit that was written."""
        if "spectra" in result:
            self.summary.spectra += 1
        else:
            self.summary.written += 1

    def skip(self, unit: Unit, record: dict[str, Any]) -> None:  # noqa: ARG002  only counted
        """Count a unit whose file existed already."""
        if "spectra" in record:
            self.summary.spectra += 1
        else:
            self.summary.unchanged += 1

    def fail(self, unit: Unit, step: str, reason: str) -> None:
        """Record a failure."""
        select = f"exposure={escape(unit.exposure)},detector={unit.detector}"
        moved = [] if self._campaign is None else ["--campaign", str(self._campaign)]
        command = ["csstdask", "export", str(self._root), "--to", str(self._target), "--select", select, *moved]
        self.summary.failures.append(
            {
                "exposure": unit.exposure,
                "detector": unit.detector,
                "step": step,
                "reason": reason,
                "reproduce": shlex.join(command),
            }
        )

    def flush(self) -> None:
        """Do nothing: files are written by the workers."""


def _is_run(root: Path) -> bool:
    """Return whether a store is a run or a campaign; raise StoreError if it is neither."""
    kind = store_kind(root) or ("run" if (root / "ledger").is_dir() else "campaign")
    open_group(root, "campaign" if kind == "campaign" else "run")
    return kind != "campaign"


def _present_units(source: Campaign) -> Iterator[ExportUnit]:
    """Yield the units of a campaign that are present, with row and column."""
    for row, exposure in enumerate(source.exposures):
        for column in np.flatnonzero(source.present[row]).tolist():
            yield Unit(exposure, source.detectors[column]), row, column


@dataclass(frozen=True)
class _ExportJobs:
    """The tasks of an export. Their paths are absolute: workers may run in other folders."""

    root: Path
    target: Path
    source: Campaign
    plan: Plan | None
    """None for the export of a campaign."""
    units: Sequence[ExportUnit]
    overwrite: bool

    def frames(self, summary: ExportSummary) -> Iterator[Task]:
        """Yield a task for each frame; count the units that the run has not finished."""
        common: dict[str, Any] = {
            "store": str(self.root.resolve()),
            "campaign": str(self.source.path.resolve()),
            "target": str(self.target.resolve()),
            "is_run": self.plan is not None,
            "session": uuid.uuid4().hex,
            "overwrite": self.overwrite,
        }
        if self.plan is None:
            for unit, row, column in self.units:
                cards = _input_cards(self.source.metadata(unit.exposure, unit.detector))
                yield Task(unit, FrameJob(unit, row, column, **common, provenance=cards))
        else:
            yield from self._frames_of_run(self.plan, common, summary)

    def _frames_of_run(self, plan: Plan, common: dict[str, Any], summary: ExportSummary) -> Iterator[Task]:
        ledger, history, names = Ledger(self.root), _history(plan), [step.name for step in plan.steps]
        zero_points = ZeroPointTable(self.root, plan)
        scales = self.source.read("unit_scale") if "unit_scale" in self.source.group else None
        for unit, row, column in self.units:
            metadata = self.source.metadata(unit.exposure, unit.detector)
            wanted = frame_fingerprints(plan, plan.fingerprints(metadata))
            record = ledger.read(unit)
            if "repair" not in wanted or len(record.recorded(wanted)) < len(wanted):
                summary.pending += 1
                continue
            objects = [item for name in wanted for item in record.steps[name].objects]
            scale = 1.0 if scales is None else float(scales[row, column])
            job = FrameJob(
                unit,
                row,
                column,
                **common,
                provenance=_run_cards(plan, metadata, wanted),
                objects=tuple(item for item in objects if not item.path.startswith("tables/")),
                mend=reproduce_command(
                    self.source.path, self.root, unit, "", steps=names, config=plan.config, verify=True
                ),
                history=history,
                zero_point=zero_point_cards(
                    zero_points.of(unit.exposure, unit.detector), electron_rate(self.source.units, metadata, scale)
                ),
            )
            yield Task(unit, job)

    def spectra(self) -> Iterator[Task]:
        """Yield a task for each unit whose spectra the run has finished."""
        if self.plan is not None:
            root, target, units = self.root.resolve(), self.target.resolve(), [unit for unit, _, _ in self.units]
            for job in spectra_jobs(root, self.plan, target, units, overwrite=self.overwrite):
                yield Task(job.unit, job)


def _input_cards(metadata: UnitMetadata) -> Provenance:
    """Return header cards that identify software and input."""
    return (
        ("CSDVERS", software_versions().get("csstdask", ""), "csstdask version"),
        ("CSDINPUT", metadata.digest, None),
    )


def _run_cards(plan: Plan, metadata: UnitMetadata, fingerprints: Mapping[str, str]) -> Provenance:
    """Return header cards that identify everything that decides the pixels of a run.

    ``CSDFPRNT`` is the SHA-256 of all that decides the pixels, ``CSDINPUT`` that of the unit's input.
    """
    models = provenance_cards(plan.config, plan.campaign.instrument)
    return (*_input_cards(metadata), *models[1:], ("CSDFPRNT", fingerprints["repair"], None))


def _history(plan: Plan) -> tuple[str, ...]:
    detect, repair = plan.config.detect.model, plan.config.repair.model
    return (
        f"csstdask {software_versions().get('csstdask', '')}: cosmic rays detected ({detect}) and repaired ({repair})",
        "csstdask: SCI repaired pixels, WHT their weights, FLG with CSDCRBIT and CSDIPBIT in place of incoming bits",
    )
