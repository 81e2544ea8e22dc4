"""A mock survey, rendered through the engine: a campaign with truth, a stamp set, or FITS files beside their truth."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from astropy.io import fits
from astropy.table import Table

from csstdask.core.errors import InputError
from csstdask.engine.cluster import limit_threads, open_cluster
from csstdask.engine.events import Event, Listener, RunFinished, RunStarted, UnitDone, UnitFailed, broadcast
from csstdask.engine.lock import DriverLock
from csstdask.engine.memory import choose_workers
from csstdask.engine.schedulers import check_scheduler
from csstdask.engine.window import Task, describe_failure, run_window
from csstdask.engine.work_units import Unit
from csstdask.instrument import Instrument, load_instrument
from csstdask.mock import MockUnit, Recipe, render_unit
from csstdask.mock.cost import estimate_cost
from csstdask.mock.recipe_checks import check_recipe
from csstdask.mock.stamps import StampSet
from csstdask.mock.unit_digest import unit_digest
from csstdask.mock.unit_headers import file_stem
from csstdask.mock.unit_stamps import TRUTH_COLUMNS, unit_stamps
from csstdask.pipeline.mock_tables import (
    SLITLESS_TABLES,
    ZEROPOINT_TABLES,
    exposure_truth,
    slitless_truth,
    source_truth,
    write_slitless_tables,
    write_true_zero_points,
    write_zeropoint_tables,
)
from csstdask.store.campaign import Campaign
from csstdask.store.campaign_creation import create_campaign, write_recipe
from csstdask.store.campaign_pixels import write_unit_pixels
from csstdask.store.campaign_truth import add_truth, write_truth_arrays
from csstdask.store.shards import shard_path
from csstdask.store.stamps import check_stamps_identity, create_stamps, finished_units, record_stamps, write_unit_stamps
from csstdask.store.store_metadata import store_kind
from csstdask.store.tables import is_complete_table, write_table, write_table_parts
from csstdask.store.unit_metadata import UnitMetadata

UNITS = "electron s-1"
#: Units of what is told of a stamp's source.
_COLUMN_UNITS = {
    **dict.fromkeys(TRUTH_COLUMNS, ""),
    "x": "pixel",
    "y": "pixel",
    "mag": "mag",
    "flux": "electron s-1",
    "temperature": "K",
    "half_light_radius": "pixel",
    "bulge_radius": "pixel",
    "angle": "rad",
    "snr": "",
    "x_detector": "pixel",
    "y_detector": "pixel",
}
_INJECTED_UNITS = {"cr_distance": "pixel", "cr_charge": "electron", "cr_charge_inside": "electron"}
_PSF_UNITS = {"psf_outside": ""}


@dataclass(frozen=True)
class MockJob:
    """Everything a worker needs to render one unit."""

    recipe: Recipe
    instrument: Instrument
    index: int
    detector: int
    target: str
    into: Literal["campaign", "stamps", "fits"]
    data: str | None = None
    row: int = 0
    column: int = 0

    @property
    def folder(self) -> Path | None:
        """Return the folder of real data."""
        return None if self.data is None else Path(self.data)


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
    data: str | Path | None = None,
    scheduler: str = "threads",
    workers: int | None = None,
    listeners: Sequence[Listener] = (),
) -> MockSummary:
    """Render a mock survey.

    Parameters
    ----------
    recipe : Recipe
    to : path
        The campaign, or for a recipe of stamps the stamp set, or with `as_fits` a folder: Level 1 files and, as
        truth, cosmic-ray-only frames; of stamps a file a unit. Slitless mocks come with the catalogue and the SEDs
        of their stars, mocks of zero points with a reference catalogue and telemetry.
    as_fits : bool
        Write FITS instead of Zarr.
    data : path, optional
        Folder of real cosmic-ray events and of libraries of SEDs, for recipes that want them.
    scheduler, workers, listeners
        As for `csstdask.pipeline.run.run`.

    Raises
    ------
    InputError
        If the recipe cannot be drawn, or the store holds something else.
    """
    target = Path(to)
    check_scheduler(scheduler)
    instrument = load_instrument(recipe.instrument)
    check_recipe(recipe, instrument, None if data is None else Path(data))
    summary = MockSummary()
    workers = choose_workers(estimate_cost(recipe).memory, processes=scheduler == "processes", wanted=workers)
    into: Literal["campaign", "stamps", "fits"] = "fits" if as_fits else "stamps" if recipe.stamps else "campaign"
    folder = None if data is None else str(Path(data).absolute())
    jobs = [
        MockJob(recipe, instrument, index, detector, str(target), into, folder, index, column)
        for index in range(recipe.exposures)
        for column, detector in enumerate(recipe.detectors)
    ]
    how = (scheduler, workers, listeners)
    if into == "fits":
        target.mkdir(parents=True, exist_ok=True)
        _render(jobs, recipe, summary, *how, keep=lambda _job, _result: None)
        if recipe.slitless is not None:
            write_slitless_tables(target, recipe, instrument, None if data is None else Path(data))
        if recipe.zeropoint is not None:
            write_zeropoint_tables(target, recipe, instrument)
        return summary
    if target.exists() and store_kind(target) is None:
        raise InputError(target, "something that is no store", "a new name")
    target.parent.mkdir(parents=True, exist_ok=True)
    with DriverLock(target.with_name(f".{target.name}.driver.json")):
        if into == "stamps":
            _mock_stamps(jobs, recipe, instrument, target, summary, how)
        else:
            _mock_campaign(jobs, recipe, instrument, target, summary, how)
    return summary


How = tuple[str, int, Sequence[Listener]]


def _mock_campaign(
    jobs: list[MockJob], recipe: Recipe, instrument: Instrument, target: Path, summary: MockSummary, how: How
) -> None:
    if (target / "zarr.json").exists():
        _check_same(jobs, recipe, target)  # before anything of it is touched
    else:
        create_campaign(target, instrument, recipe.frame_shape, UNITS, recipe.detectors)
    add_truth(target, UNITS)
    write_recipe(target, "campaign", recipe.model_dump_json())
    campaign = Campaign(target, "r+")
    campaign.append_exposures(recipe.exposure_ids)
    pending = []
    for job in jobs:
        exposure = recipe.exposure_ids[job.index]
        row, column = campaign.index(exposure, job.detector)
        planes = (shard_path(target, name, row, column) for name in ("sci", "wht", "flag", "truth/sci", "truth/cr"))
        if not campaign.is_present(exposure, job.detector) or not all(path.is_file() for path in planes):
            pending.append(replace(job, row=row, column=column))
    summary.unchanged = len(jobs) - len(pending)

    def keep(_job: MockJob, result: dict[str, Any]) -> None:
        metadata = UnitMetadata(**result["facts"])
        campaign.describe_exposures([metadata])  # alike for all detectors of an exposure
        campaign.mark_present([metadata])

    _render(pending, recipe, summary, *how, keep=keep)
    if recipe.slitless is not None:
        data = jobs[0].folder
        if pending or not all(is_complete_table(target / "tables" / f"{name}.parquet") for name in SLITLESS_TABLES):
            write_slitless_tables(target / "tables", recipe, instrument, data)
        write_truth_arrays(target, slitless_truth(recipe, instrument, data))
    else:
        sources = target / "tables" / "truth_sources.parquet"
        if pending or not is_complete_table(sources):
            write_table_parts(sources, source_truth(recipe, instrument))
    if recipe.zeropoint is not None:
        if pending or not all(is_complete_table(target / "tables" / f"{name}.parquet") for name in ZEROPOINT_TABLES):
            write_zeropoint_tables(target / "tables", recipe, instrument)
        write_true_zero_points(target, recipe, instrument)
    write_table(target / "tables" / "truth_exposures.parquet", exposure_truth(recipe))


def _check_same(jobs: Sequence[MockJob], recipe: Recipe, target: Path) -> None:
    """Raise InputError unless a campaign is a mock of this recipe, perhaps with fewer exposures."""
    campaign = Campaign(target)
    if campaign.exposures and "recipe" not in campaign.group.attrs:
        raise InputError(target, "a campaign that is no mock", "a new name for this recipe")
    if campaign.shape != recipe.frame_shape or campaign.detectors != list(recipe.detectors):
        raise InputError(target, "a campaign of another shape or other detectors", "a new name, or that recipe's")
    for job in jobs:
        exposure, detector = recipe.exposure_ids[job.index], job.detector
        if campaign.is_present(exposure, detector):
            known = campaign.metadata(exposure, detector).digest
            if known != _digest(job):
                raise InputError(target, f"unit {exposure}/{detector} of another recipe", "a new name for this recipe")


def _mock_stamps(
    jobs: list[MockJob], recipe: Recipe, instrument: Instrument, target: Path, summary: MockSummary, how: How
) -> None:
    wanted = recipe.stamps
    if wanted is None:
        raise ValueError(f"{recipe.name}: a recipe without stamps")
    text = "".join(_digest(job) for job in jobs)
    identity = sha256(text.encode()).hexdigest()
    isolated = wanted.kind == "isolated"
    if (target / "zarr.json").exists():
        check_stamps_identity(target, identity)
    else:
        create_stamps(
            target,
            instrument,
            identity=identity,
            exposures={
                name: (recipe.exptime, recipe.epoch_of(index)) for index, name in enumerate(recipe.exposure_ids)
            },
            detectors=recipe.detectors,
            per_unit=wanted.per_unit,
            size=wanted.size,
            columns=_COLUMN_UNITS | (_PSF_UNITS if isolated else _INJECTED_UNITS),
            with_psf=isolated,
        )
    write_table(target / "tables" / "truth_exposures.parquet", exposure_truth(recipe))
    write_recipe(target, "stamps", recipe.model_dump_json())
    done = finished_units(target)
    pending = [job for job in jobs if not done[job.row, job.column]]
    summary.unchanged = len(jobs) - len(pending)
    _render(
        pending,
        recipe,
        summary,
        *how,
        keep=lambda job, result: record_stamps(target, job.row, job.column, result["stamps"]),
    )


def _render(
    jobs: Sequence[MockJob],
    recipe: Recipe,
    summary: MockSummary,
    scheduler: str,
    workers: int,
    listeners: Sequence[Listener],
    *,
    keep: Callable[[MockJob, dict[str, Any]], None],
) -> None:
    by_unit = {Unit(recipe.exposure_ids[job.index], job.detector): job for job in jobs}

    def note(event: Event) -> None:
        if isinstance(event, UnitDone):
            keep(by_unit[event.unit], event.result)
            summary.rendered += 1
        elif isinstance(event, UnitFailed):
            unit = {"exposure": event.unit.exposure, "detector": event.unit.detector}
            summary.failures.append({**unit, "step": event.step, "reason": event.reason})

    emit = broadcast([note, *listeners])
    start = time.perf_counter()
    pixels = recipe.frame_shape[0] * recipe.frame_shape[1]
    emit(RunStarted(f"mock {recipe.name}", len(jobs), pixels, workers))
    if jobs:
        with open_cluster(scheduler, workers) as slots:
            tasks = (Task(unit, job) for unit, job in by_unit.items())
            outcome = run_window(slots, tasks, render_job, emit, key=f"mock-{recipe.name}-{id(jobs)}")
            summary.stopped = outcome.stopped
    summary.seconds = time.perf_counter() - start
    emit(RunFinished(summary.rendered, summary.unchanged, len(summary.failures), summary.seconds))


def render_job(job: MockJob) -> dict[str, Any]:
    """Render and write one unit: a worker's task."""
    limit_threads(1)
    try:
        unit = render_unit(job.recipe, job.instrument, job.index, job.detector, job.folder)
        if job.recipe.stamps is not None:
            return _keep_stamps(job, unit_stamps(job.recipe, job.instrument, job.index, job.detector, unit), unit)
        if job.into == "fits":
            _write_frames(job, unit)
            return {}
        root = Path(job.target)
        planes = {"sci": unit.sci, "wht": unit.wht, "flag": unit.flag}
        planes |= {"truth/sci": unit.truth_sci, "truth/cr": unit.truth_cr}
        for name, plane in planes.items():
            write_unit_pixels(root, job.row, job.column, name, plane)
        return {"facts": _facts(job, unit).to_dict()}
    except Exception as error:  # noqa: BLE001  a unit that cannot be rendered is named; the others are rendered
        return describe_failure("mock", error)


def _keep_stamps(job: MockJob, stamps: StampSet, unit: MockUnit) -> dict[str, Any]:
    if job.into == "fits":
        _write_stamps(job, stamps, unit)
    else:
        write_unit_stamps(Path(job.target), job.row, job.column, {**stamps.planes, **stamps.columns})
    return {"stamps": len(stamps)}


def _digest(job: MockJob) -> str:
    return unit_digest(job.recipe, job.instrument, job.index, job.detector, job.folder)


def _facts(job: MockJob, unit: MockUnit) -> UnitMetadata:
    values = job.instrument.values(job.detector)
    return UnitMetadata(
        exposure=job.recipe.exposure_ids[job.index],
        detector=job.detector,
        kind="imaging" if job.recipe.slitless is None else "slitless",
        band=job.instrument.detector(job.detector).band or "",
        exptime=job.recipe.exptime,
        time=unit.time,
        gain=values.gain or 1.0,
        read_noise=values.read_noise or 0.0,
        digest=_digest(job),
        source=f"mock {job.recipe.name}",
        header=unit.header.tostring(sep="\n", endcard=False, padding=False),
        primary_header=unit.primary_header.tostring(sep="\n", endcard=False, padding=False),
    )


def _write_frames(job: MockJob, unit: MockUnit) -> None:
    level_1 = [
        fits.PrimaryHDU(header=unit.primary_header),
        fits.ImageHDU(unit.sci, header=unit.header, name="SCI"),
        fits.ImageHDU(unit.wht, name="WHT"),
        fits.ImageHDU(unit.flag, name="FLG"),
    ]
    truth_header = unit.header.copy()
    truth_header["BUNIT"] = "electron"
    truth = [
        fits.PrimaryHDU(header=unit.primary_header),
        fits.ImageHDU(unit.truth_cr, header=truth_header, name="SCI"),
    ]
    _write(job, "SCIE", "L1", level_1)
    _write(job, "CRS", "L0", truth)


def _write_stamps(job: MockJob, stamps: StampSet, unit: MockUnit) -> None:
    names = {"sci": "SCI", "wht": "WHT", "flag": "FLG"}
    names |= {"truth/sci": "TRUTHSCI", "truth/cr": "TRUTHCR", "truth/psf": "TRUTHPSF"}
    cubes = [fits.ImageHDU(values, name=names[name]) for name, values in stamps.planes.items()]
    cubes[0].header["BUNIT"] = "e/s"
    table = fits.table_to_hdu(Table(dict(stamps.columns)))
    table.name = "STAMPS"
    _write(job, "STAMPS", "L1", [fits.PrimaryHDU(header=unit.primary_header), *cubes, table])


def _write(job: MockJob, kind: str, level: str, hdus: list[Any]) -> None:
    path = Path(job.target) / f"{file_stem(job.recipe, job.index, job.detector, kind)}_{level}_V01.fits"
    draft = path.with_name(f".{path.name}.partial")
    fits.HDUList(hdus).writeto(draft, overwrite=True)
    draft.replace(path)
