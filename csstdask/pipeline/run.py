"""A run: plan, lock, prepare the store, feed the window, gather, finish."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from csstdask.core.errors import StoreError
from csstdask.engine.cluster import open_cluster
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
from csstdask.engine.ledger import Ledger
from csstdask.engine.lock import DriverLock
from csstdask.engine.usage import Usage
from csstdask.engine.window import OWNERSHIP_LOST, WORKER_DIED, Task, run_window
from csstdask.engine.work_units import Selection, Unit
from csstdask.pipeline.config import RunConfig, relative_model_paths
from csstdask.pipeline.plan import Plan
from csstdask.pipeline.prepare import copy_user_models, prepare
from csstdask.pipeline.provenance import software_versions
from csstdask.pipeline.run_reductions import run_reductions
from csstdask.pipeline.stages import Stages, resolve_stages
from csstdask.pipeline.status import Summary, failure_entry
from csstdask.pipeline.steps import resolve
from csstdask.pipeline.unit import UnitJob, process_unit
from csstdask.pipeline.usage_report import UsageTotals
from csstdask.store.run import MetricsWriter, prepare_run
from csstdask.store.store_metadata import read_attributes_copy, root_metadata

log = logging.getLogger("csstdask")

#: Failures after which no worker was left to record them.
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
        The input store.
    to : str or Path
        The run's store; made if it is not there.
    steps : sequence of str, optional
        Names of steps and reductions; by default all. Steps that they read from are added.
    selection : Selection, optional
        Units; by default all that are present.
    config : RunConfig, optional
        Settings.
    scheduler : str
        ``threads``, ``processes``, ``cuda``, ``slurm`` or an address.
    workers : int, optional
        Units at the same time; by default as many as cores and memory allow.
    max_failures : int, optional
        Stop after so many failed units.
    listeners : sequence of callable
        Told what happens (see ``engine/events.py``).
    verify : bool
        Compare the products of units that are done with their checksums, and do again what differs. Damaged metadata
        and metrics of the run are restored.
    redo : bool
        Run the steps of the selected units again even if they are done.

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
    threads = plan.config.engine.threads_per_unit
    with open_cluster(scheduler, count, threads_per_unit=threads) as slots, DriverLock(ledger.lock_path) as lock:
        plan = replace(plan, config=copy_user_models(root, plan.config))
        attributes = _attributes(root, plan, chosen)
        # Of all steps so far: where an earlier one no longer holds, its metrics go too.
        metrics = [name for step in resolve(attributes["steps"]) for name in step.metrics]
        lost = prepare_run(
            root,
            plan.campaign,
            plan.product_specs(),
            plan.sizes,
            metrics,
            attributes,
            whole=chosen.selects_all,
            repair=verify,
        )
        summary = Summary(total=total, fingerprint=plan.fingerprint)
        keeper = _Bookkeeper(plan, ledger, MetricsWriter(root, metrics), summary)
        if lost:
            keeper.restore_metrics()
        emit = broadcast([keeper, *listeners])
        start = time.perf_counter()
        emit(RunStarted(f"run {root.name}", total, plan.pixels, slots.count, slots.dashboard))
        try:
            outcome = run_window(
                slots,
                _pending(
                    plan,
                    ledger,
                    root,
                    lock.token,
                    emit,
                    alone=scheduler == "processes" or slots.count == 1,
                    verify=verify,
                    redo=redo,
                ),
                process_unit,
                emit,
                key=f"unit-{plan.fingerprint[:12]}-{lock.token[:8]}",
                max_failures=max_failures,
            )
            summary.stopped = outcome.stopped
            if outcome.stopped is None:
                summary.reductions = run_reductions(plan, ledger, slots, lock.token, emit, verify=verify, redo=redo)
            summary.usage = keeper.tally.rows(plan)
        finally:
            keeper.flush()
            summary.seconds = time.perf_counter() - start
            emit(RunFinished(summary.done, summary.skipped, summary.failed, summary.seconds))
    return summary


def _attributes(root: Path, plan: Plan, chosen: Selection) -> dict[str, Any]:
    """Return what the store says of the run: this command's settings, and the steps and units of all so far."""
    metadata = (root_metadata(root) if (root / "zarr.json").exists() else None) or {}
    before: dict[str, Any] = metadata.get("attributes", {}) or read_attributes_copy(root)
    ours = {"exposures": list(chosen.exposures), "detectors": sorted(chosen.detectors)}
    theirs = [item for item in before.get("selections", []) if item != ours]
    names = set(Stages(plan.steps, plan.reductions).names)
    stages = resolve_stages(names | {*before.get("steps", []), *before.get("reductions", [])})
    return {
        "config": relative_model_paths(root, plan.config.model_dump(mode="json")),
        "steps": [step.name for step in stages.steps],
        "reductions": [reduction.name for reduction in stages.reductions],
        "selections": [*theirs, ours],
        "fingerprint": plan.fingerprint,
        "software": software_versions(),
    }


def _pending(
    plan: Plan, ledger: Ledger, root: Path, driver: str, emit: Listener, *, alone: bool, verify: bool, redo: bool
) -> Iterator[Task]:
    """Yield a task for each unit whose record does not prove it done, or that is to be verified or done again.

    Checksums are compared by the workers: there are many of them, and one driver.
    """
    for unit, row, column in plan.units():
        metadata = plan.campaign.metadata(unit.exposure, unit.detector)
        fingerprints = plan.fingerprints(metadata)
        record = ledger.read(unit)
        done = not redo and len(record.fresh(root, fingerprints)) == len(fingerprints)
        if done and not verify:
            metrics = {name: value for step in record.steps.values() for name, value in step.metrics.items()}
            emit(UnitSkipped(unit, {"metrics": metrics}))
            continue
        job = UnitJob(
            unit=unit,
            row=row,
            column=column,
            campaign=str(plan.campaign.path.resolve()),
            run=str(root.resolve()),
            units=plan.campaign.units,
            metadata=metadata,
            instrument=plan.campaign.instrument,
            config=plan.config,
            fingerprints=fingerprints,
            driver=driver,
            alone=alone,
            verify=done,
            redo=redo,
        )
        yield Task(unit, job)


class _Bookkeeper:
    """The listener that counts, and hands metrics on."""

    def __init__(self, plan: Plan, ledger: Ledger, metrics: MetricsWriter, summary: Summary) -> None:
        self.tally = UsageTotals()
        self._plan, self._campaign = plan, plan.campaign
        self._ledger, self._metrics, self._summary = ledger, metrics, summary

    def __call__(self, event: Event) -> None:
        if isinstance(event, UnitDone):
            self._summary.done += 1
            self.tally.add({name: Usage(**used) for name, used in event.result["usage"].items()})
            self._summary.kernel_seconds += sum(event.result["kernel_seconds"].values())
            self._put(event.unit, event.result["metrics"])
        elif isinstance(event, UnitSkipped):
            self._summary.skipped += 1
            self._put(event.unit, event.record["metrics"])
        elif isinstance(event, UnitFailed):
            self._summary.failures.append(
                failure_entry(self._plan, self._ledger.root, event.unit, step=event.step, reason=event.reason)
            )
            if event.step == OWNERSHIP_LOST:
                self._metrics.discard()  # they are the other driver's to write
                return
            self._put_recorded(event.unit)
            if event.step in _UNRECORDED:
                why = {"step": event.step, "reason": event.reason}
                with contextlib.suppress(OSError):
                    self._ledger.write(replace(self._ledger.read(event.unit), failure=why))

    def restore_metrics(self) -> None:
        """Take the metrics of all units from their records, for arrays that were begun anew."""
        campaign = self._campaign
        for row, exposure in enumerate(campaign.exposures):
            for column in campaign.present[row].nonzero()[0].tolist():
                self._put_recorded(Unit(exposure, campaign.detectors[column]))
        self.flush()

    def _put_recorded(self, unit: Unit) -> None:
        steps = self._ledger.read(unit).steps.values()
        self._put(unit, {name: value for step in steps for name, value in step.metrics.items()})

    def _put(self, unit: Unit, metrics: dict[str, Any]) -> None:
        self._metrics.put(*self._campaign.index(unit.exposure, unit.detector), metrics)
        if self._metrics.due:
            self.flush()

    def flush(self) -> None:
        """Write metrics; if that fails they are not lost: the next run rebuilds them from the ledger."""
        try:
            self._metrics.flush()
        except OSError as error:
            log.warning("metrics not written (%s): run again to write them", error.strerror)
        except StoreError as error:
            log.warning("metrics not written: %s", error)
