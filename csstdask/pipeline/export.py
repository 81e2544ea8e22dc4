"""FITS out: one file a unit, from a campaign as it is, or from a run with its repairs and flags."""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from csstdask.engine.cluster import limit_threads, open_cluster
from csstdask.engine.events import Event, Listener, RunFinished, RunStarted, UnitDone, UnitFailed, broadcast
from csstdask.engine.ledger import Ledger
from csstdask.engine.memory import choose_workers
from csstdask.engine.units import Unit
from csstdask.engine.window import Task, failure, run_window
from csstdask.errors import StoreError
from csstdask.nn.models import find_card
from csstdask.pipeline.plan import Plan
from csstdask.pipeline.status import plan_of_run
from csstdask.pipeline.steps.detect import resolved_threshold
from csstdask.pipeline.unit import software_versions
from csstdask.pipeline.views import open_run
from csstdask.store.campaign import Campaign, open_campaign, read_header
from csstdask.store.fits_output import write_unit
from csstdask.store.zarr_arrays import open_group, refuse_inside_store

#: Peak bytes a pixel of one unit in export: three planes in their views, with scratch, and as FITS.
EXPORT_BYTES_PER_PIXEL = 42


@dataclass
class ExportSummary:
    """What came of an export."""

    written: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
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
    provenance: tuple[tuple[str, Any, str | None], ...]
    history: tuple[str, ...] = ()


def export(
    store: str | Path,
    to: str | Path,
    *,
    campaign: str | Path | None = None,
    workers: int | None = None,
    listeners: Sequence[Listener] = (),
) -> ExportSummary:
    """Write a campaign's or a run's units as FITS, ``<exposure>_<detector>.fits``.

    Parameters
    ----------
    store : path
        A campaign: planes as they were ingested. A run: repaired pixels, their weights, flags with our
        cosmic-ray and INPAINTED bits in place of incoming cosmic-ray bits; units that are done.
    to : path
        A folder; made if it is not there.
    campaign : path, optional
        The run's campaign, if it has moved.
    workers : int, optional
        Units at the same time.
    listeners : sequence of callable
        Told what happens.
    """
    root, target = Path(store), Path(to)
    is_run = _is_run(root)
    refuse_inside_store(target)
    plan = plan_of_run(root, campaign) if is_run else None
    source = plan.campaign if plan is not None else Campaign(root)
    target.mkdir(parents=True, exist_ok=True)
    summary = ExportSummary()
    total = int(source.present.sum()) if plan is None else sum(1 for _ in plan.units())
    jobs = _jobs(root, source, plan, target, summary)
    _open.cache_clear()
    pixels = source.shape[0] * source.shape[1]
    each = pixels * EXPORT_BYTES_PER_PIXEL
    count = choose_workers(each, processes=False, wanted=workers)

    def keep(event: Event) -> None:
        if isinstance(event, UnitDone):
            summary.written += 1
        elif isinstance(event, UnitFailed):
            unit = {"exposure": event.unit.exposure, "detector": event.unit.detector}
            summary.failures.append({**unit, "step": event.step, "reason": event.reason})

    emit = broadcast([keep, *listeners])
    start = time.perf_counter()
    emit(RunStarted(f"export {root.name}", total, pixels, count))
    with open_cluster("threads", count) as slots:
        outcome = run_window(
            slots, (Task(job.unit, job) for job in jobs), export_unit, emit, key=f"export-{uuid.uuid4().hex[:8]}"
        )
    summary.stopped = outcome.stopped
    summary.seconds = time.perf_counter() - start
    emit(RunFinished(summary.written, 0, len(summary.failures), summary.seconds))
    return summary


def _is_run(root: Path) -> bool:
    """Tell a run from a campaign; StoreError if it is neither."""
    try:
        open_group(root, "campaign")
    except StoreError:
        open_group(root, "run")
        return True
    return False


def _jobs(root: Path, source: Campaign, plan: Plan | None, target: Path, summary: ExportSummary) -> Iterator[ExportJob]:
    """Yield the units to export, and count those of a run that are not repaired."""
    if plan is None:
        for row, exposure in enumerate(source.exposures):
            for column in np.flatnonzero(source.present[row]).tolist():
                unit = Unit(exposure, source.detectors[column])
                yield ExportJob(unit, row, column, str(root), str(root), False, str(target), _common_provenance())
        return
    ledger = Ledger(root)
    history = _history(plan)
    for unit, row, column in plan.units():
        wanted = plan.fingerprints(source.facts(unit.exposure, unit.detector))
        needed: dict[str, str] = {name: wanted[name] for name in ("background", "detect", "repair") if name in wanted}
        if "repair" not in needed or len(ledger.read(unit).fresh(root, needed)) < len(needed):
            summary.pending += 1
            continue
        yield ExportJob(
            unit, row, column, str(root), str(source.path), True, str(target), _provenance(plan, needed), history
        )


def _common_provenance() -> tuple[tuple[str, Any, str | None], ...]:
    return (("CSDVERS", software_versions().get("csstdask", ""), "csstdask version"),)


def _provenance(plan: Plan, fingerprints: dict[str, str]) -> tuple[tuple[str, Any, str | None], ...]:
    """Return header cards that say how the pixels came about.

    A SHA-256 fills its card: ``...SHA`` are of the models, ``CSDFPRNT`` is of all that decides the pixels.
    """
    detect = find_card("cosmicray", plan.config.detect.model)
    repair = find_card("inpaint", plan.config.repair.model)
    flags = plan.campaign.instrument.flags
    return (
        *_common_provenance(),
        ("CSDCRMOD", detect.name, "cosmic-ray detection: model"),
        ("CSDCRSHA", detect.sha256, None),
        ("CSDCRTHR", resolved_threshold(plan.config), "its probability threshold"),
        ("CSDIPMOD", repair.name, "repair: model"),
        ("CSDIPSHA", repair.sha256, None),
        ("CSDFPRNT", fingerprints["repair"], None),
        ("CSDCRBIT", flags.cosmic_ray_mask, "FLG bit: cosmic ray (csstdask)"),
        ("CSDIPBIT", flags.inpainted_mask, "FLG bit: repaired pixel"),
    )


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
        dataset = _open(job.store, job.campaign, is_run=job.is_run)
        names = ("clean", "clean_wht", "flag_out") if job.is_run else ("sci", "wht", "flag")
        one = dataset.isel(exposure=job.row, detector=job.column)
        planes = [_compute(one[name]) for name in names]
        write_unit(
            Path(job.target) / f"{job.unit.exposure}_{job.unit.detector}.fits",
            *planes,
            exptime=float(one["exptime"]),
            header=read_header(Path(job.campaign), job.row, job.column),
            primary_header=read_header(Path(job.campaign), job.row, job.column, "primary_header"),
            units=str(one[names[0]].attrs["units"]),
            cards=job.provenance,
            history=job.history,
            planes=_text(one, "planes"),
            unit_scale=float(one["unit_scale"]) if "unit_scale" in one else 1.0,
            file_units=_text(one, "file_units"),
        )
    except Exception as error:  # noqa: BLE001  a unit that cannot be written is named; the others are written
        return failure("export", error)
    return {}


@functools.lru_cache(maxsize=2)
def _open(store: str, campaign: str, *, is_run: bool) -> xr.Dataset:
    """Open a store once a process: opening costs more than a small unit does."""
    return open_run(store, campaign) if is_run else open_campaign(store)


def _text(unit: xr.Dataset, name: str) -> str:
    """Return what a campaign records of a unit; nothing in campaigns of an earlier version."""
    return str(unit[name].values) if name in unit else ""


def _compute(plane: xr.DataArray) -> Any:
    return plane.compute(scheduler="synchronous").values
