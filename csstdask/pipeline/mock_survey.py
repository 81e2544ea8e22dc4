"""A mock survey, rendered through the engine: into a campaign with truth, or as FITS files beside their truth."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from csstdask.engine.cluster import check_scheduler, default_workers, limit_threads, open_cluster
from csstdask.engine.events import Event, Listener, RunFinished, RunStarted, UnitDone, UnitFailed, broadcast
from csstdask.engine.lock import DriverLock
from csstdask.engine.units import Unit
from csstdask.engine.window import Task, failure, run_window
from csstdask.errors import InputError
from csstdask.instrument import Instrument, load_instrument
from csstdask.mock import MockUnit, Recipe, render_unit
from csstdask.mock.render import check_recipe, file_stem, unit_catalogue, unit_digest
from csstdask.store.campaign import Campaign, UnitFacts, add_truth, create_campaign, write_unit_pixels
from csstdask.store.tables import write_table

UNITS = "electron s-1"


@dataclass(frozen=True)
class MockJob:
    """Everything a worker needs to render one unit."""

    recipe: Recipe
    instrument: Instrument
    index: int
    detector: int
    target: str
    as_fits: bool
    row: int = 0
    column: int = 0


@dataclass
class MockSummary:
    """What came of a mock survey."""

    rendered: int = 0
    unchanged: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    stopped: str | None = None
    """Why the rendering ended early, if it did."""
    seconds: float = 0.0


def mock(
    recipe: Recipe,
    to: str | Path,
    *,
    as_fits: bool = False,
    scheduler: str = "threads",
    workers: int | None = None,
    listeners: Sequence[Listener] = (),
) -> MockSummary:
    """Render a mock survey.

    Parameters
    ----------
    recipe : Recipe
    to : path
        The campaign, or with `as_fits` a folder of Level 1 files and, as truth, cosmic-ray-only frames.
    as_fits : bool
        Write FITS instead of Zarr.
    scheduler, workers, listeners
        As for `csstdask.pipeline.run.run`.

    Raises
    ------
    InputError
        If the recipe cannot be drawn, or the campaign holds something else.
    """
    target = Path(to)
    check_scheduler(scheduler)
    instrument = load_instrument(recipe.instrument)
    check_recipe(recipe, instrument)
    summary = MockSummary()
    workers = workers or default_workers()
    pairs = [(index, detector) for index in range(recipe.exposures) for detector in recipe.detectors]
    if as_fits:
        target.mkdir(parents=True, exist_ok=True)
        jobs = [MockJob(recipe, instrument, index, detector, str(target), as_fits=True) for index, detector in pairs]
        _render(jobs, recipe, summary, scheduler, workers, listeners, None)
        return summary
    target.parent.mkdir(parents=True, exist_ok=True)
    with DriverLock(target.with_name(f".{target.name}.driver.json")):
        if not (target / "zarr.json").exists():
            create_campaign(target, instrument, recipe.frame_shape, UNITS, recipe.detectors)
        add_truth(target, UNITS)
        campaign = Campaign(target, "r+")
        if campaign.shape != recipe.frame_shape or campaign.detectors != list(recipe.detectors):
            raise InputError(target, "a campaign of another shape or other detectors", "a new name, or that recipe's")
        campaign.append_exposures(recipe.exposure_ids)
        jobs = []
        for index, detector in pairs:
            exposure = recipe.exposure_ids[index]
            if campaign.is_present(exposure, detector):
                if campaign.facts(exposure, detector).digest == unit_digest(recipe, instrument, exposure, detector):
                    summary.unchanged += 1
                    continue
                raise InputError(target, f"unit {exposure}/{detector} of another recipe", "a new name for this recipe")
            row, column = campaign.index(exposure, detector)
            jobs.append(
                MockJob(recipe, instrument, index, detector, str(target), as_fits=False, row=row, column=column)
            )
        _render(jobs, recipe, summary, scheduler, workers, listeners, campaign)
        write_table(target / "tables" / "truth_sources.parquet", _truth_sources(recipe, instrument, pairs))
    return summary


def _render(
    jobs: Sequence[MockJob],
    recipe: Recipe,
    summary: MockSummary,
    scheduler: str,
    workers: int,
    listeners: Sequence[Listener],
    campaign: Campaign | None,
) -> None:
    def keep(event: Event) -> None:
        if isinstance(event, UnitDone):
            if campaign is not None:
                facts = UnitFacts(**event.result["facts"])
                campaign.describe_exposures([facts])  # alike for all detectors of an exposure
                campaign.admit([facts])
            summary.rendered += 1
        elif isinstance(event, UnitFailed):
            unit = {"exposure": event.unit.exposure, "detector": event.unit.detector}
            summary.failures.append({**unit, "step": event.step, "reason": event.reason})

    emit = broadcast([keep, *listeners])
    start = time.perf_counter()
    pixels = recipe.frame_shape[0] * recipe.frame_shape[1]
    emit(RunStarted(f"mock {recipe.name}", len(jobs), pixels, workers))
    if jobs:
        with open_cluster(scheduler, workers) as slots:
            tasks = (Task(Unit(recipe.exposure_ids[job.index], job.detector), job) for job in jobs)
            outcome = run_window(slots, tasks, render_job, emit, key=f"mock-{recipe.name}-{id(jobs)}")
            summary.stopped = outcome.stopped
    summary.seconds = time.perf_counter() - start
    emit(RunFinished(summary.rendered, summary.unchanged, len(summary.failures), summary.seconds))


def render_job(job: MockJob) -> dict[str, Any]:
    """Render and write one unit: a worker's task."""
    limit_threads(1)
    try:
        unit = render_unit(job.recipe, job.instrument, job.index, job.detector)
        if job.as_fits:
            _write_fits(job, unit)
            return {}
        root = Path(job.target)
        planes = {"sci": unit.sci, "wht": unit.wht, "flag": unit.flag}
        planes |= {"truth/sci": unit.truth_sci, "truth/cr": unit.truth_cr}
        for name, plane in planes.items():
            write_unit_pixels(root, job.row, job.column, name, plane)
        return {"facts": _facts(job, unit).to_dict()}
    except Exception as error:  # noqa: BLE001  a unit that cannot be rendered is named; the others are rendered
        return failure("mock", error)


def _facts(job: MockJob, unit: MockUnit) -> UnitFacts:
    values = job.instrument.values(job.detector)
    return UnitFacts(
        exposure=job.recipe.exposure_ids[job.index],
        detector=job.detector,
        kind="imaging",
        band=job.instrument.detector(job.detector).band or "",
        exptime=job.recipe.exptime,
        time=unit.time,
        gain=values.gain or 1.0,
        read_noise=values.read_noise or 0.0,
        digest=unit.digest,
        source=f"mock {job.recipe.name}",
        header=unit.header.tostring(sep="\n", endcard=False, padding=False),
        primary_header=unit.primary_header.tostring(sep="\n", endcard=False, padding=False),
    )


def _write_fits(job: MockJob, unit: MockUnit) -> None:
    folder = Path(job.target)
    level_1 = fits.HDUList(
        [
            fits.PrimaryHDU(header=unit.primary_header),
            fits.ImageHDU(unit.sci, header=unit.header, name="SCI"),
            fits.ImageHDU(unit.wht, name="WHT"),
            fits.ImageHDU(unit.flag, name="FLG"),
        ]
    )
    truth_header = unit.header.copy()
    truth_header["BUNIT"] = "electron"
    truth = fits.HDUList(
        [
            fits.PrimaryHDU(header=unit.primary_header),
            fits.ImageHDU(unit.truth_cr, header=truth_header, name="SCI"),
        ]
    )
    for hdus, kind, level in ((level_1, "SCIE", "L1"), (truth, "CRS", "L0")):
        path = folder / f"{file_stem(job.recipe, job.index, job.detector, kind)}_{level}_V01.fits"
        draft = path.with_name(f".{path.name}.partial")
        hdus.writeto(draft, overwrite=True)
        draft.replace(path)


def _truth_sources(recipe: Recipe, instrument: Instrument, pairs: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Return the true sources of all units, drawn again from their seeds."""
    columns: dict[str, list[Any]] = {}
    for index, detector in pairs:
        catalogue = unit_catalogue(recipe, instrument, index, detector)
        n = len(catalogue.x)
        part = {
            "exposure": np.full(n, recipe.exposure_ids[index], dtype=object),
            "detector": np.full(n, detector, dtype=np.int32),
            "id": np.arange(n, dtype=np.int32),
            **{
                name: getattr(catalogue, name)
                for name in ("x", "y", "mag", "flux", "is_star", "half_light_radius", "axis_ratio")
            },
        }
        for name, values in part.items():
            columns.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in columns.items()}
