"""Run the pipeline over a campaign: plan, lock and prepare the store, process units, reduce."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from csstdask.core.errors import StoreError
from csstdask.engine.collector import Counts
from csstdask.engine.driver import Driver
from csstdask.engine.events import Listener, UnitSkipped
from csstdask.engine.ledger import Ledger
from csstdask.engine.usage import Usage
from csstdask.engine.window import OWNERSHIP_LOST, WORKER_DIED, Task
from csstdask.engine.work_units import Selection, Unit
from csstdask.pipeline.config import RunConfig, relative_model_paths
from csstdask.pipeline.plan import Plan
from csstdask.pipeline.prepare import copy_user_models, prepare
from csstdask.pipeline.provenance import software_versions
from csstdask.pipeline.run_reductions import run_reductions
from csstdask.pipeline.stages import Stages, resolve_stages
from csstdask.pipeline.status import Summary, failure_entry
from csstdask.pipeline.steps import resolve
from csstdask.pipeline.unit import UnitJob, process_unit, recorded_metrics
from csstdask.pipeline.usage_report import UsageTotals
from csstdask.store.run import MetricsWriter, prepare_run
from csstdask.store.store_metadata import read_attributes_copy, root_metadata

log = logging.getLogger("csstdask")

#: Failures after which no worker was left to record them: the driver does.
_UNRECORDED = (WORKER_DIED, "worker", "claim", "record")


def run(
    campaign: str | Path,
    to: str | Path,
    *,
    steps: Sequence[str] | None = None,
    selection: Selection | None = None,
    config: RunConfig | None = None,
    scheduler: str = "threads",
    workers: int | None = None,
    max_failures: int | None = None,
    listeners: Sequence[Listener] = (),
    verify: bool = False,
    redo: bool = False,
) -> Summary:
    """Run the pipeline over a campaign, or resume a run.

    Parameters
    ----------
    campaign : str or Path
        Input store.
    to : str or Path
        Output store; an existing run is resumed.
    steps : sequence of str, optional
        Names of steps and reductions; default: all. The steps they require are added.
    selection : Selection, optional
        Units to process; default: all that are present.
    config : RunConfig, optional
        Settings.
    scheduler : str
        ``threads``, ``processes``, ``cuda``, ``slurm`` or the address of a Dask scheduler.
    workers : int, optional
        Number of units processed at the same time; default: as many as cores and memory allow.
    max_failures : int, optional
        Number of failed units after which the run stops.
    listeners : sequence of callable
        Receive the events of the run (``engine/events.py``).
    verify : bool
        Compare the products of finished units with their checksums, and redo what differs. Damaged metadata and metrics
        of the run are restored.
    redo : bool
        Run the steps of the selected units again even if they are finished.

    Returns
    -------
    Summary

    Raises
    ------
    InputError, StoreError
        For unusable stores, steps or schedulers.
    MemoryProjectionError
        If the run cannot fit into memory.
    RunLockedError
        If a live driver owns the run.
    """
    root, chosen = Path(to), selection or Selection()
    plan, total, count = prepare(campaign, root, steps, chosen, config, scheduler, workers, repair=verify)
    ledger = Ledger(root)
    with Driver(scheduler, count, threads_per_unit=plan.config.engine.threads_per_unit) as driver:
        slots = driver.slots  # first: a scheduler that does not answer leaves no store behind
        token = driver.lock(ledger.lock_path)
        plan = replace(plan, config=copy_user_models(root, plan.config))
        summary = Summary(total=total, fingerprint=plan.fingerprint)
        collector = _prepare_store(root, plan, chosen, ledger, summary, repair=verify)
        exclusive = scheduler == "processes" or slots.count == 1
        pending = _PendingUnits(plan, ledger, token, exclusive=exclusive, verify=verify, redo=redo)
        with driver.job_loop(f"run {root.name}", total, plan.pixels, collector, listeners) as loop:
            key = f"unit-{plan.fingerprint[:12]}-{token[:8]}"
            loop.process(pending.tasks(loop.emit), process_unit, key=key, max_failures=max_failures)
            if not loop.stopped:
                summary.reductions = run_reductions(plan, ledger, slots, token, loop.emit, verify=verify, redo=redo)
            summary.usage = collector.usage.rows(plan)
    return summary


def _prepare_store(
    root: Path, plan: Plan, chosen: Selection, ledger: Ledger, summary: Summary, *, repair: bool
) -> ResultCollector:
    """Create the store or bring it up to date; return the collector that writes its metrics."""
    attributes = _attributes(root, plan, chosen)
    # Metrics of all steps so far: where the result of an earlier step is outdated, its metrics are removed too.
    metrics = [name for step in resolve(attributes["steps"]) for name in step.metrics]
    lost = prepare_run(
        root,
        plan.campaign,
        plan.product_specs(),
        plan.sizes,
        metrics,
        attributes,
        whole=chosen.selects_all,
        repair=repair,
    )
    collector = ResultCollector(plan, ledger, MetricsWriter(root, metrics), summary)
    if lost:
        collector.restore_metrics()
    return collector


def _attributes(root: Path, plan: Plan, chosen: Selection) -> dict[str, Any]:
    """Return the attributes of the store: settings of this command, and steps and units of all commands so far."""
    metadata = (root_metadata(root) if (root / "zarr.json").exists() else None) or {}
    before: dict[str, Any] = metadata.get("attributes", {}) or read_attributes_copy(root)
    current = {"exposures": list(chosen.exposures), "detectors": sorted(chosen.detectors)}
    earlier = [item for item in before.get("selections", []) if item != current]
    names = set(Stages(plan.steps, plan.reductions).names)
    stages = resolve_stages(names | {*before.get("steps", []), *before.get("reductions", [])})
    return {
        "config": relative_model_paths(root, plan.config.model_dump(mode="json")),
        "steps": [step.name for step in stages.steps],
        "reductions": [reduction.name for reduction in stages.reductions],
        "selections": [*earlier, current],
        "fingerprint": plan.fingerprint,
        "software": software_versions(),
    }


@dataclass(frozen=True)
class _PendingUnits:
    """Units of a plan that are to be processed, or verified by a worker."""

    plan: Plan
    ledger: Ledger
    token: str
    """Token of the driver's lock."""
    exclusive: bool
    """Whether a worker process has one unit at a time."""
    verify: bool
    redo: bool

    def tasks(self, emit: Listener) -> Iterator[Task]:
        """Yield a task for each unit whose record does not prove it finished, or that is to be verified or redone.

        Workers compare the checksums: there are many workers, and one driver.
        """
        for unit, row, column in self.plan.units():
            metadata = self.plan.campaign.metadata(unit.exposure, unit.detector)
            fingerprints = self.plan.fingerprints(metadata)
            record = self.ledger.read(unit)
            done = not self.redo and len(record.up_to_date(self.ledger.root, fingerprints)) == len(fingerprints)
            if done and not self.verify:
                emit(UnitSkipped(unit, {"metrics": recorded_metrics(record.steps)}))
                continue
            job = UnitJob(
                unit=unit,
                row=row,
                column=column,
                campaign=str(self.plan.campaign.path.resolve()),
                run=str(self.ledger.root.resolve()),
                units=self.plan.campaign.units,
                metadata=metadata,
                instrument=self.plan.campaign.instrument,
                config=self.plan.config,
                fingerprints=fingerprints,
                driver=self.token,
                exclusive=self.exclusive,
                verify=done,
                redo=self.redo,
            )
            yield Task(unit, job)


class ResultCollector:
    """Counts the units of a run, and writes their metrics."""

    def __init__(self, plan: Plan, ledger: Ledger, metrics: MetricsWriter, summary: Summary) -> None:
        self.usage = UsageTotals()
        self.summary = summary
        self._plan, self._campaign = plan, plan.campaign
        self._ledger, self._metrics = ledger, metrics

    def counts(self) -> Counts:
        """Return the numbers of units so far."""
        return Counts(self.summary.done, self.summary.skipped, self.summary.failed)

    def add(self, unit: Unit, result: dict[str, Any]) -> None:
        """Record the result of `process_unit`."""
        self.summary.done += 1
        self.usage.add({name: Usage(**used) for name, used in result["usage"].items()})
        self.summary.kernel_seconds += sum(result["kernel_seconds"].values())
        self._put(unit, result["metrics"])

    def skip(self, unit: Unit, record: dict[str, Any]) -> None:
        """Record the metrics of a unit that was finished before."""
        self.summary.skipped += 1
        self._put(unit, record["metrics"])

    def fail(self, unit: Unit, step: str, reason: str) -> None:
        """Record a failure, also in the ledger if no worker could."""
        self.summary.failures.append(failure_entry(self._plan, self._ledger.root, unit, step=step, reason=reason))
        if step == OWNERSHIP_LOST:
            self._metrics.discard()  # the new owner writes them
            return
        self._put(unit, recorded_metrics(self._ledger.read(unit).steps))
        if step in _UNRECORDED:
            failure = {"step": step, "reason": reason}
            with contextlib.suppress(OSError):
                self._ledger.write(replace(self._ledger.read(unit), failure=failure))

    def restore_metrics(self) -> None:
        """Write the metrics of all units from their records, into arrays that were created anew."""
        campaign = self._campaign
        for row, exposure in enumerate(campaign.exposures):
            for column in campaign.present[row].nonzero()[0].tolist():
                unit = Unit(exposure, campaign.detectors[column])
                self._put(unit, recorded_metrics(self._ledger.read(unit).steps))
        self.flush()

    def _put(self, unit: Unit, metrics: dict[str, Any]) -> None:
        self._metrics.put(*self._campaign.index(unit.exposure, unit.detector), metrics)
        if self._metrics.due:
            self.flush()

    def flush(self) -> None:
        """Write metrics; the next run restores those that could not be written from the ledger."""
        try:
            self._metrics.flush()
        except OSError as error:
            log.warning("metrics not written (%s): run again to write them", error.strerror)
        except StoreError as error:
            log.warning("metrics not written: %s", error)
