"""FITS out: one file a unit, from a campaign as it is, or from a run with its repairs and flags."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr

from csstdask.cosmicray.card import find_card
from csstdask.engine.cluster import default_workers, limit_threads, open_cluster
from csstdask.engine.events import Event, Listener, RunFinished, RunStarted, UnitDone, UnitFailed, broadcast
from csstdask.engine.ledger import Ledger
from csstdask.engine.memory import Projection, check, fitting_slots
from csstdask.engine.units import Unit
from csstdask.engine.window import Task, failure, run_window
from csstdask.errors import StoreError
from csstdask.pipeline.plan import Plan
from csstdask.pipeline.run import plan_of_run
from csstdask.pipeline.unit import software_versions
from csstdask.pipeline.views import open_run
from csstdask.store.campaign import Campaign, open_campaign
from csstdask.store.fits_output import write_unit
from csstdask.store.zarr_arrays import open_group

#: Peak bytes a pixel of one unit in export: three planes in their views, with scratch, and as FITS.
EXPORT_BYTES_PER_PIXEL = 42


@dataclass
class ExportSummary:
    """What came of an export."""

    written: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    pending: int = 0
    """Units of a run that are not done, and were left out."""
    seconds: float = 0.0


@dataclass(frozen=True)
class ExportJob:
    """Everything a worker needs to export one unit."""

    unit: Unit
    store: str
    campaign: str
    is_run: bool
    target: str
    provenance: tuple[tuple[str, Any, str], ...]


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
    plan = plan_of_run(root, campaign) if is_run else None
    source = plan.campaign if plan is not None else Campaign(root)
    target.mkdir(parents=True, exist_ok=True)
    summary = ExportSummary()
    jobs = list(_jobs(root, source, plan, target, summary))
    pixels = source.shape[0] * source.shape[1]
    each = pixels * EXPORT_BYTES_PER_PIXEL
    count = workers or max(1, min(default_workers(), fitting_slots(each, processes=False)))
    check(Projection(each, count, 1))

    def keep(event: Event) -> None:
        if isinstance(event, UnitDone):
            summary.written += 1
        elif isinstance(event, UnitFailed):
            unit = {"exposure": event.unit.exposure, "detector": event.unit.detector}
            summary.failures.append({**unit, "step": event.step, "reason": event.reason})

    emit = broadcast([keep, *listeners])
    start = time.perf_counter()
    emit(RunStarted(f"export {root.name}", len(jobs), pixels, count))
    if jobs:
        with open_cluster("threads", count) as slots:
            run_window(slots, (Task(job.unit, job) for job in jobs), export_unit, emit, key=f"export-{id(jobs)}")
    summary.seconds = time.perf_counter() - start
    emit(RunFinished(summary.written, 0, len(summary.failures), summary.seconds))
    return summary


def _is_run(root: Path) -> bool:
    try:
        open_group(root, "run")
    except StoreError as error:
        if "campaign" in str(error).split("; wanted", maxsplit=1)[0].rsplit("found", maxsplit=1)[-1]:
            return False
        raise
    return True


def _jobs(root: Path, source: Campaign, plan: Plan | None, target: Path, summary: ExportSummary) -> Iterator[ExportJob]:
    if plan is None:
        for row, exposure in enumerate(source.exposures):
            for column in np.flatnonzero(source.present[row]):
                unit = Unit(exposure, source.detectors[column])
                yield ExportJob(unit, str(root), str(root), False, str(target), _common_provenance())
        return
    ledger = Ledger(root)
    for unit, _, _ in plan.units():
        fingerprints = plan.fingerprints(source.facts(unit.exposure, unit.detector))
        if "repair" not in fingerprints or len(ledger.read(unit).fresh(root, fingerprints)) < len(fingerprints):
            summary.pending += 1
            continue
        yield ExportJob(unit, str(root), str(source.path), True, str(target), _provenance(plan, fingerprints))


def _common_provenance() -> tuple[tuple[str, Any, str], ...]:
    return (("CSDVERS", software_versions().get("csstdask", ""), "csstdask version"),)


def _provenance(plan: Plan, fingerprints: dict[str, str]) -> tuple[tuple[str, Any, str], ...]:
    """Return header cards that say how the pixels came about."""
    detect = find_card("cosmicray", plan.config.detect.model)
    repair = find_card("inpaint", plan.config.repair.model)
    threshold = detect.threshold if plan.config.detect.threshold is None else plan.config.detect.threshold
    flags = plan.campaign.instrument.flags
    return (
        *_common_provenance(),
        ("CSDCRMOD", detect.name, "cosmic-ray detection: model"),
        ("CSDCRSHA", detect.sha256, "its SHA-256"),
        ("CSDCRTHR", threshold, "its probability threshold"),
        ("CSDIPMOD", repair.name, "repair: model"),
        ("CSDIPSHA", repair.sha256, "its SHA-256"),
        ("CSDFPRNT", fingerprints["repair"], "fingerprint of what decides these pixels"),
        ("CSDCRBIT", flags.cosmic_ray_mask, "FLG bit: cosmic ray (csstdask)"),
        ("CSDIPBIT", flags.inpainted_mask, "FLG bit: repaired pixel"),
    )


def export_unit(job: ExportJob) -> dict[str, Any]:
    """Write one unit: a worker's task."""
    limit_threads(1)
    try:
        dataset = open_run(job.store, job.campaign) if job.is_run else open_campaign(job.store)
        names = ("clean", "clean_wht", "flag_out") if job.is_run else ("sci", "wht", "flag")
        one = dataset.sel(exposure=job.unit.exposure, detector=job.unit.detector)
        planes = [_compute(one[name]) for name in names]
        facts = Campaign(Path(job.campaign)).facts(job.unit.exposure, job.unit.detector)
        path = Path(job.target) / f"{job.unit.exposure}_{job.unit.detector}.fits"
        write_unit(
            path,
            facts,
            planes[0],
            planes[1],
            planes[2],
            units=str(one[names[0]].attrs["units"]),
            cards=job.provenance,
        )
    except Exception as error:  # noqa: BLE001  a unit that cannot be written is named; the others are written
        return failure("export", error)
    return {}


def _compute(plane: xr.DataArray) -> Any:
    with dask.config.set(scheduler="synchronous"):
        return plane.values
