"""Render a mock survey: a campaign with its truth, a stamp set, or FITS files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from csstdask.core.errors import InputError
from csstdask.engine.collector import Counts, JobSummary
from csstdask.engine.driver import Driver
from csstdask.engine.events import Listener
from csstdask.engine.lock import sibling_lock_path
from csstdask.engine.memory import choose_workers
from csstdask.engine.schedulers import check_scheduler
from csstdask.engine.window import Task
from csstdask.engine.work_units import Unit
from csstdask.instrument import Instrument, load_instrument
from csstdask.mock import Recipe
from csstdask.mock.cost import estimate_cost
from csstdask.mock.recipe_checks import check_recipe
from csstdask.mock.unit_stamps import TRUTH_COLUMNS
from csstdask.pipeline.mock_jobs import MockJob, Target, job_digest, render_job
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
from csstdask.store.campaign_truth import add_truth, write_truth_arrays
from csstdask.store.shards import shard_path
from csstdask.store.stamps import check_stamps_identity, create_stamps, finished_units, record_stamps
from csstdask.store.store_metadata import store_kind
from csstdask.store.tables import is_complete_table, write_table, write_table_parts
from csstdask.store.unit_metadata import UnitMetadata

UNITS = "electron s-1"
#: Units of the columns that describe the source of a stamp.
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


@dataclass
class MockSummary(JobSummary):
    """Result of a mock survey."""

    rendered: int = 0
    """Number of units rendered now."""
    unchanged: int = 0
    """Number of units that were rendered before."""


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
    """Render a mock survey, or resume one.

    Parameters
    ----------
    recipe : Recipe
        Recipe of the survey.
    to : path
        Campaign; for a recipe of stamps, stamp set; with `as_fits`, folder of FITS files: Level 1 files and, as truth,
        frames of cosmic rays alone, or one file of stamps per unit. Slitless mocks include the catalogue and the SEDs
        of their stars, mocks of zero points a reference catalogue and telemetry.
    as_fits : bool
        Write FITS instead of Zarr.
    data : path, optional
        Folder of real cosmic-ray events and libraries of SEDs, for recipes that use them.
    scheduler, workers, listeners
        As for `csstdask.pipeline.run.run`.

    Raises
    ------
    InputError
        If the recipe cannot be rendered, or the store holds something else.
    """
    target, folder = Path(to), None if data is None else Path(data)
    check_scheduler(scheduler)
    instrument = load_instrument(recipe.instrument)
    check_recipe(recipe, instrument, folder)
    count = choose_workers(scheduler, estimate_cost(recipe).memory, wanted=workers)
    into: Target = "fits" if as_fits else "stamps" if recipe.stamps else "campaign"
    if into != "fits" and target.exists() and store_kind(target) is None:
        raise InputError(target, "something that is no store", "a new name")
    with Driver(scheduler, count) as driver:
        survey = _Survey(recipe, instrument, target, folder, into, driver, listeners)
        if into == "fits":
            survey.write_fits()
            return survey.summary
        target.parent.mkdir(parents=True, exist_ok=True)
        driver.lock(sibling_lock_path(target))
        if into == "stamps":
            survey.write_stamps()
        else:
            survey.write_campaign()
    return survey.summary


class MockCollector:
    """Counts rendered units, and hands each of them to the store.

    Parameters
    ----------
    summary : MockSummary
    jobs : dict of Unit to MockJob
        The jobs of the loop.
    store : callable
        Records a rendered unit: takes its job and its result.
    """

    def __init__(
        self, summary: MockSummary, jobs: dict[Unit, MockJob], store: Callable[[MockJob, dict[str, Any]], None]
    ) -> None:
        self.summary = summary
        self._jobs, self._store = jobs, store

    def counts(self) -> Counts:
        """Return the numbers of units so far."""
        return Counts(self.summary.rendered, self.summary.unchanged, len(self.summary.failures))

    def add(self, unit: Unit, result: dict[str, Any]) -> None:
        """Record a rendered unit."""
        self._store(self._jobs[unit], result)
        self.summary.rendered += 1

    def skip(self, unit: Unit, record: dict[str, Any]) -> None:
        """Do nothing: units that were rendered before have no task."""

    def fail(self, unit: Unit, step: str, reason: str) -> None:
        """Record a failure."""
        failure = {"exposure": unit.exposure, "detector": unit.detector, "step": step, "reason": reason}
        self.summary.failures.append(failure)

    def flush(self) -> None:
        """Do nothing: each unit is recorded at once."""


class _Survey:
    """A mock survey that is being rendered."""

    def __init__(
        self,
        recipe: Recipe,
        instrument: Instrument,
        target: Path,
        data: Path | None,
        into: Target,
        driver: Driver,
        listeners: Sequence[Listener],
    ) -> None:
        self.summary = MockSummary()
        self._recipe, self._instrument, self._target, self._data = recipe, instrument, target, data
        self._driver, self._listeners = driver, listeners
        folder = None if data is None else str(data.absolute())
        self._jobs = [
            MockJob(recipe, instrument, index, detector, str(target), into, folder, index, column)
            for index in range(recipe.exposures)
            for column, detector in enumerate(recipe.detectors)
        ]

    def write_fits(self) -> None:
        """Write FITS files and tables into a folder."""
        self._target.mkdir(parents=True, exist_ok=True)
        self._render(self._jobs, lambda _job, _result: None)
        if self._recipe.slitless is not None:
            write_slitless_tables(self._target, self._recipe, self._instrument, self._data)
        if self._recipe.zeropoint is not None:
            write_zeropoint_tables(self._target, self._recipe, self._instrument)

    def write_campaign(self) -> None:
        """Write a campaign with its truth, or add the exposures and units that it lacks."""
        recipe, target = self._recipe, self._target
        if (target / "zarr.json").exists():
            self._check_campaign()  # before anything in it is changed
        else:
            create_campaign(target, self._instrument, recipe.frame_shape, UNITS, recipe.detectors)
        add_truth(target, UNITS)
        write_recipe(target, "campaign", recipe.model_dump_json())
        campaign = Campaign(target, "r+")
        campaign.append_exposures(recipe.exposure_ids)
        pending = self._missing_units(campaign)

        def store(_job: MockJob, result: dict[str, Any]) -> None:
            metadata = UnitMetadata(**result["metadata"])
            campaign.describe_exposures([metadata])  # the same for all detectors of an exposure
            campaign.mark_present([metadata])

        self._render(pending, store)
        self._write_tables(rewrite=bool(pending))

    def _missing_units(self, campaign: Campaign) -> list[MockJob]:
        """Return the jobs of units that are absent, or lack a plane."""
        pending = []
        for job in self._jobs:
            exposure = self._recipe.exposure_ids[job.index]
            row, column = campaign.index(exposure, job.detector)
            names = ("sci", "wht", "flag", "truth/sci", "truth/cr")
            planes = (shard_path(self._target, name, row, column) for name in names)
            if not campaign.is_present(exposure, job.detector) or not all(path.is_file() for path in planes):
                pending.append(replace(job, row=row, column=column))
        return pending

    def _write_tables(self, *, rewrite: bool) -> None:
        """Write the tables of a campaign: all of them if units were rendered, else those that are incomplete."""
        recipe, instrument, tables = self._recipe, self._instrument, self._target / "tables"

        def incomplete(names: Sequence[str]) -> bool:
            return rewrite or not all(is_complete_table(tables / f"{name}.parquet") for name in names)

        if recipe.slitless is not None:
            if incomplete(SLITLESS_TABLES):
                write_slitless_tables(tables, recipe, instrument, self._data)
            write_truth_arrays(self._target, slitless_truth(recipe, instrument, self._data))
        elif incomplete(["truth_sources"]):
            write_table_parts(tables / "truth_sources.parquet", source_truth(recipe, instrument))
        if recipe.zeropoint is not None:
            if incomplete(ZEROPOINT_TABLES):
                write_zeropoint_tables(tables, recipe, instrument)
            write_true_zero_points(self._target, recipe, instrument)
        write_table(tables / "truth_exposures.parquet", exposure_truth(recipe))

    def _check_campaign(self) -> None:
        """Raise InputError unless the campaign is a mock of this recipe, perhaps with fewer exposures."""
        recipe, target, campaign = self._recipe, self._target, Campaign(self._target)
        if campaign.exposures and "recipe" not in campaign.group.attrs:
            raise InputError(target, "a campaign that is no mock", "a new name for this recipe")
        if campaign.shape != recipe.frame_shape or campaign.detectors != list(recipe.detectors):
            raise InputError(target, "a campaign of another shape or other detectors", "a new name, or that recipe's")
        for job in self._jobs:
            exposure, detector = recipe.exposure_ids[job.index], job.detector
            if campaign.is_present(exposure, detector):
                known = campaign.metadata(exposure, detector).digest
                if known != job_digest(job):
                    found = f"unit {exposure}/{detector} of another recipe"
                    raise InputError(target, found, "a new name for this recipe")

    def write_stamps(self) -> None:
        """Write a stamp set, or add the units that it lacks."""
        recipe, target, stamps = self._recipe, self._target, self._recipe.stamps
        if stamps is None:
            raise ValueError(f"{recipe.name}: a recipe without stamps")
        identity = sha256("".join(job_digest(job) for job in self._jobs).encode()).hexdigest()
        isolated = stamps.kind == "isolated"
        if (target / "zarr.json").exists():
            check_stamps_identity(target, identity)
        else:
            exposures = enumerate(recipe.exposure_ids)
            create_stamps(
                target,
                self._instrument,
                identity=identity,
                exposures={name: (recipe.exptime, recipe.epoch_of(index)) for index, name in exposures},
                detectors=recipe.detectors,
                per_unit=stamps.per_unit,
                size=stamps.size,
                columns=_COLUMN_UNITS | (_PSF_UNITS if isolated else _INJECTED_UNITS),
                with_psf=isolated,
            )
        write_table(target / "tables" / "truth_exposures.parquet", exposure_truth(recipe))
        write_recipe(target, "stamps", recipe.model_dump_json())
        done = finished_units(target)
        pending = [job for job in self._jobs if not done[job.row, job.column]]
        self._render(pending, lambda job, result: record_stamps(target, job.row, job.column, result["stamps"]))

    def _render(self, jobs: Sequence[MockJob], store: Callable[[MockJob, dict[str, Any]], None]) -> None:
        """Render units on the workers."""
        self.summary.unchanged = len(self._jobs) - len(jobs)
        recipe, by_unit = self._recipe, {job.unit: job for job in jobs}
        collector = MockCollector(self.summary, by_unit, store)
        pixels = recipe.frame_shape[0] * recipe.frame_shape[1]
        with self._driver.job_loop(f"mock {recipe.name}", len(jobs), pixels, collector, self._listeners) as loop:
            tasks = (Task(unit, job) for unit, job in by_unit.items())
            loop.process(tasks, render_job, key=f"mock-{recipe.name}-{id(jobs)}")
