"""FITS out: one file a unit, from a campaign as it is, or from a run with its repairs and flags."""

from __future__ import annotations

import functools
import shlex
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from astropy.io import fits

from csstdask.core.errors import InputError, StoreError
from csstdask.engine.cluster import limit_threads, open_cluster
from csstdask.engine.events import (
    Event,
    Listener,
    RunFinished,
    RunStarted,
    UnitDone,
    UnitFailed,
    UnitSkipped,
    broadcast,
)
from csstdask.engine.ledger import Ledger, OwnedObject
from csstdask.engine.memory import choose_workers
from csstdask.engine.schedulers import check_scheduler, default_workers
from csstdask.engine.window import Task, describe_failure, run_window
from csstdask.engine.work_units import Selection, Unit
from csstdask.pipeline.completed_units import frame_fingerprints
from csstdask.pipeline.export_spectra import export_unit_spectra, spectra_jobs, write_calibrations
from csstdask.pipeline.export_zero_points import differing_cards, electron_rate, zero_point_cards
from csstdask.pipeline.plan import Plan
from csstdask.pipeline.provenance import Provenance, provenance_cards, software_versions
from csstdask.pipeline.source_tables import ZeroPointTable, ZeroPointValue
from csstdask.pipeline.status import load_plan, reproduce_command
from csstdask.pipeline.views import open_run
from csstdask.store.campaign import Campaign
from csstdask.store.campaign_dataset import open_campaign
from csstdask.store.campaign_pixels import check_unit_pixels, read_unit_pixels
from csstdask.store.fits_output import write_unit
from csstdask.store.store_metadata import open_group, refuse_inside_store, store_kind
from csstdask.store.unit_metadata import UnitMetadata, read_header

#: Peak bytes a pixel of one unit in export: three planes in their views, with scratch, and as FITS.
EXPORT_BYTES_PER_PIXEL = 42


@dataclass
class ExportSummary:
    """What came of an export."""

    written: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    unchanged: int = 0
    """Units whose file was there already."""
    spectra: int = 0
    """Units whose calibrated spectra are there."""
    calibrations: int = 0
    """Detectors whose sensitivity and flat-field cube were written."""
    pending: int = 0
    """Units of a run that are not done, and were left out."""
    stopped: str | None = None
    """Why the export ended early, if it did."""
    seconds: float = 0.0


@dataclass(frozen=True)
class ExportJob:
    """Everything a worker needs to export one unit."""

    unit: Unit
    row: int
    column: int
    store: str
    campaign: str
    is_run: bool
    target: str
    provenance: Provenance
    session: str
    """Of the export: stores are opened once in each, for workers may outlive it."""
    objects: tuple[OwnedObject, ...] = ()
    """Files of the run that are read, to be compared with their checksums."""
    mend: str = ""
    """Command that makes these files again."""
    overwrite: bool = False
    """Whether to replace a file that is there."""
    history: tuple[str, ...] = ()
    """What was done, for the file's header."""
    zero_point: Provenance = ()
    """The unit's zero point, for the header of SCI."""


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
    """Write a campaign's or a run's units as FITS, ``<exposure>_<detector>.fits``.

    Parameters
    ----------
    store : path
        A campaign: planes as they were ingested. A run: repaired pixels, their weights, flags with our
        cosmic-ray and INPAINTED bits in place of incoming cosmic-ray bits, and, once zero points of its present units
        are done, MAGZERO, MAGZERR and MAGZMETH in the header of SCI (`zero_point_cards`); units that are done. What is
        read is verified: a unit with a damaged file fails, and the reason names the file and the command that mends it.
    to : path
        A folder; made if it is not there. A file that an export of the same unit has left is kept; any other file of
        that name fails its unit, unless `overwrite` is set.
    campaign : path, optional
        The run's campaign, if it has moved.
    selection : Selection, optional
        Units; by default all.
    scheduler : str
        ``threads``, ``processes``, ``cuda``, ``slurm`` or an address.
    workers : int, optional
        Units at the same time.
    overwrite : bool
        Replace files that are there.
    cubes : bool
        Write the flat-field cubes of slitless detectors too, as aXe reads them: 1.4 GB for a whole detector.
    listeners : sequence of callable
        Told what happens.
    """
    root, target = Path(store), Path(to)
    check_scheduler(scheduler)
    chosen = selection or Selection()
    is_run = _is_run(root)
    refuse_inside_store(target)
    plan = load_plan(root, campaign) if is_run else None
    source = plan.campaign if plan is not None else Campaign(root)
    units = [item for item in (_units(source) if plan is None else plan.units()) if item[0] in chosen]
    if not units and not chosen.selects_all:
        raise InputError("--select", "no unit", f"units of {root} that are present")
    target.mkdir(parents=True, exist_ok=True)
    summary = ExportSummary()
    jobs = _jobs(root, source, plan, target, summary, units, overwrite=overwrite)
    pixels = source.shape[0] * source.shape[1]
    each = pixels * EXPORT_BYTES_PER_PIXEL
    if scheduler in {"threads", "processes"}:
        count = choose_workers(each, processes=scheduler == "processes", wanted=workers)
    else:
        count = workers or default_workers()

    def keep(event: Event) -> None:
        if isinstance(event, UnitDone | UnitSkipped) and "spectra" in _result_of(event):
            summary.spectra += 1
        elif isinstance(event, UnitDone):
            summary.written += 1
        elif isinstance(event, UnitSkipped):
            summary.unchanged += 1
        elif isinstance(event, UnitFailed):
            unit = {"exposure": event.unit.exposure, "detector": event.unit.detector}
            again = _command(root, target, event.unit, campaign)
            summary.failures.append({**unit, "step": event.step, "reason": event.reason, "reproduce": again})

    emit = broadcast([keep, *listeners])
    start = time.perf_counter()
    emit(RunStarted(f"export {root.name}", len(units), pixels, count))
    some = [unit for unit, _, _ in units]
    spectra = () if plan is None else spectra_jobs(root.resolve(), plan, target.resolve(), some, overwrite=overwrite)
    with open_cluster(scheduler, count) as slots:
        session = uuid.uuid4().hex[:8]
        outcome = run_window(slots, (Task(job.unit, job) for job in jobs), export_unit, emit, key=f"export-{session}")
        if outcome.stopped is None:
            tasks = (Task(job.unit, job) for job in spectra)
            outcome = run_window(slots, tasks, export_unit_spectra, keep, key=f"spectra-{session}")
    if plan is not None and outcome.stopped is None:
        detectors = [detector for detector in plan.campaign.detectors if _chosen(detector, units)]
        written = write_calibrations(root, plan, target, detectors, overwrite=overwrite, cubes=cubes)
        summary.calibrations, failures = written
        summary.failures += failures
    summary.stopped = outcome.stopped
    summary.seconds = time.perf_counter() - start
    emit(RunFinished(summary.written, summary.unchanged, len(summary.failures), summary.seconds))
    return summary


def _chosen(detector: int, units: Sequence[tuple[Unit, int, int]]) -> bool:
    return any(unit.detector == detector for unit, _, _ in units)


def _result_of(event: UnitDone | UnitSkipped) -> dict[str, Any]:
    return event.result if isinstance(event, UnitDone) else event.record


def _command(root: Path, target: Path, unit: Unit, campaign: str | Path | None) -> str:
    """Return the command that exports one unit."""
    select = f"exposure={escape(unit.exposure)},detector={unit.detector}"
    moved = [] if campaign is None else ["--campaign", str(campaign)]
    return shlex.join(["csstdask", "export", str(root), "--to", str(target), "--select", select, *moved])


def _is_run(root: Path) -> bool:
    """Return whether a store is a run or a campaign; StoreError if it is neither."""
    kind = store_kind(root) or ("run" if (root / "ledger").is_dir() else "campaign")
    open_group(root, "campaign" if kind == "campaign" else "run")
    return kind != "campaign"


def _units(source: Campaign) -> Iterator[tuple[Unit, int, int]]:
    """Yield the units of a campaign that are present, with row and column."""
    for row, exposure in enumerate(source.exposures):
        for column in np.flatnonzero(source.present[row]).tolist():
            yield Unit(exposure, source.detectors[column]), row, column


def _jobs(
    root: Path,
    source: Campaign,
    plan: Plan | None,
    target: Path,
    summary: ExportSummary,
    units: Sequence[tuple[Unit, int, int]],
    *,
    overwrite: bool,
) -> Iterator[ExportJob]:
    """Yield the units to export, and count those of a run that are not done.

    Paths are those that the driver means: workers may run in other folders.
    """
    session = uuid.uuid4().hex
    places = {"store": str(root.resolve()), "campaign": str(source.path.resolve()), "target": str(target.resolve())}
    common: dict[str, Any] = {**places, "is_run": plan is not None, "session": session, "overwrite": overwrite}
    ledger = Ledger(root)
    history = _history(plan) if plan is not None else ()
    zero_points = ZeroPointTable(root, plan) if plan is not None else None
    scales = source.read("unit_scale") if "unit_scale" in source.group else None
    for unit, row, column in units:
        metadata = source.metadata(unit.exposure, unit.detector)
        if plan is None:
            yield ExportJob(unit, row, column, **common, provenance=_provenance_of(metadata))
            continue
        wanted = frame_fingerprints(plan, plan.fingerprints(metadata))
        record = ledger.read(unit)
        if "repair" not in wanted or len(record.recorded(wanted)) < len(wanted):
            summary.pending += 1
            continue
        read = [item for name in wanted for item in record.steps[name].objects if not item.path.startswith("tables/")]
        names = [step.name for step in plan.steps]
        mend = reproduce_command(source.path, root, unit, "", steps=names, config=plan.config, verify=True)
        provenance = _provenance(plan, metadata, wanted)
        scale = 1.0 if scales is None else float(scales[row, column])
        zero_point = ZeroPointValue() if zero_points is None else zero_points.of(unit.exposure, unit.detector)
        yield ExportJob(
            unit,
            row,
            column,
            **common,
            provenance=provenance,
            objects=tuple(read),
            mend=mend,
            history=history,
            zero_point=zero_point_cards(zero_point, electron_rate(source.units, metadata, scale)),
        )


def _provenance_of(metadata: UnitMetadata) -> Provenance:
    """Return header cards that say where pixels come from."""
    return (
        ("CSDVERS", software_versions().get("csstdask", ""), "csstdask version"),
        ("CSDINPUT", metadata.digest, None),
    )


def _provenance(plan: Plan, metadata: UnitMetadata, fingerprints: Mapping[str, str]) -> Provenance:
    """Return header cards that say how the pixels of a run came about.

    ``CSDFPRNT`` is the SHA-256 of all that decides the pixels, ``CSDINPUT`` that of what the campaign's unit was made
    from.
    """
    models = provenance_cards(plan.config, plan.campaign.instrument)
    return (*_provenance_of(metadata), *models[1:], ("CSDFPRNT", fingerprints["repair"], None))


def _history(plan: Plan) -> tuple[str, ...]:
    detect, repair = plan.config.detect.model, plan.config.repair.model
    return (
        f"csstdask {software_versions().get('csstdask', '')}: cosmic rays detected ({detect}) and repaired ({repair})",
        "csstdask: SCI repaired pixels, WHT their weights, FLG with CSDCRBIT and CSDIPBIT in place of incoming bits",
    )


def export_unit(job: ExportJob) -> dict[str, Any]:
    """Write one unit: a worker's task."""
    limit_threads(1)
    try:
        path = Path(job.target) / f"{job.unit.exposure}_{job.unit.detector}.fits"
        if path.exists() and not job.overwrite:
            _check_same(path, job)
            return {"unchanged": {}}
        _verify(job)
        dataset = _open(job.store, job.campaign, job.session, is_run=job.is_run)
        names = ("clean", "clean_wht", "flag_out") if job.is_run else ("sci", "wht", "flag")
        one = dataset.isel(exposure=job.row, detector=job.column)
        write_unit(
            path,
            *_planes(job, one, names),
            exptime=float(one["exptime"]),
            header=read_header(Path(job.campaign), job.row, job.column),
            primary_header=read_header(Path(job.campaign), job.row, job.column, "primary_header"),
            units=str(one[names[0]].attrs["units"]),
            cards=job.provenance,
            history=job.history,
            science_cards=job.zero_point,
            planes=_text(one, "planes"),
            unit_scale=float(one["unit_scale"]) if "unit_scale" in one else 1.0,
            file_units=_text(one, "file_units"),
        )
    except Exception as error:  # noqa: BLE001  a unit that cannot be written is named; the others are written
        return describe_failure("export", error)
    return {}


def _check_same(path: Path, job: ExportJob) -> None:
    """Raise InputError unless a file is an export of the same pixels and zero point, by the cards of its headers."""
    provenance = job.provenance
    try:
        header = fits.getheader(path)
        found = {keyword: header.get(keyword) for keyword, _, _ in provenance}
        science = fits.getheader(path, "SCI") if job.is_run else fits.Header()
    except (OSError, ValueError, KeyError, fits.VerifyError) as error:
        raise InputError(path, f"a file that is no FITS ({error})", "no file, or --overwrite to replace it") from None
    different = [keyword for keyword, value, _ in provenance if found[keyword] != value]
    different += [keyword for keyword in header if keyword.startswith("CSD") and keyword not in found]
    original = functools.partial(read_header, Path(job.campaign), job.row, job.column)
    if not different and (other := differing_cards(science, job.zero_point, original)):
        wanted = "no file, or --overwrite to replace it"
        raise InputError(path, f"an export with another zero point ({', '.join(other)} differ)", wanted)
    if different:
        what = "an export of other pixels" if found["CSDVERS"] else "a file that csstdask has not written"
        raise InputError(path, f"{what} ({', '.join(different)} differ)", "no file, or --overwrite to replace it")


def _verify(job: ExportJob) -> None:
    """Raise StoreError if a file that is going to be read is lost or damaged."""
    for item in job.objects:
        if not item.is_intact(Path(job.store), checksum=True):
            path = Path(job.store) / item.path
            what = "content that differs from its record" if path.exists() else "no file, which its record lists"
            raise StoreError(f"{path}: found {what}; wanted that of the run ({job.mend})")
    check_unit_pixels(Path(job.campaign), job.row, job.column)


def _planes(job: ExportJob, one: xr.Dataset, names: Sequence[str]) -> list[npt.NDArray[Any]]:
    """Return the planes of a unit; StoreError names the file if pixels of the campaign are damaged."""
    try:
        return [_compute(one[name]) for name in names]
    except Exception:
        for name in ("sci", "wht", "flag"):
            read_unit_pixels(Path(job.campaign), job.row, job.column, name)
        raise


@functools.lru_cache(maxsize=2)
def _open(store: str, campaign: str, session: str, *, is_run: bool) -> xr.Dataset:  # noqa: ARG001
    """Open a store once a process and export: opening costs more than a small unit does."""
    return open_run(store, campaign, check=False) if is_run else open_campaign(store)


def _text(unit: xr.Dataset, name: str) -> str:
    """Return what a campaign records of a unit; nothing in campaigns of an earlier version."""
    return str(unit[name].values) if name in unit else ""


def _compute(plane: xr.DataArray) -> Any:
    return plane.compute(scheduler="synchronous").values
