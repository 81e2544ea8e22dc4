"""The story of a run: plan, lock, prepare the store, feed the window, gather, finish."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from csstdask.engine.cluster import check_scheduler, open_cluster
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
from csstdask.engine.units import AnyOf, Selection, Unit
from csstdask.engine.window import KILLED, LOST, Task, run_window
from csstdask.errors import InputError, StoreError
from csstdask.nn.card import copy_model
from csstdask.nn.models import find_card
from csstdask.pipeline.config import MODEL_SETTINGS, RunConfig
from csstdask.pipeline.plan import Plan, make_plan
from csstdask.pipeline.steps import resolve
from csstdask.pipeline.unit import UnitJob, process_unit, software_versions
from csstdask.store.run import MetricsWriter, campaign_path, prepare_run
from csstdask.store.zarr_arrays import open_group, refuse_inside_store

log = logging.getLogger("csstdask")

#: What a run leaves in its folder before the store itself: a driver that was killed then may be followed by another.
_BEFORE_STORE = ("driver.json", "models")
#: Failures after which no worker was left to record them.
_UNRECORDED = (KILLED, "worker", "claim", "record")


@dataclass
class Summary:
    """What came of a run."""

    total: int = 0
    done: int = 0
    skipped: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    fingerprint: str = ""
    kernel_seconds: float = 0.0
    """Of the steps' bodies, over all units done now."""
    seconds: float = 0.0
    """Wall time."""
    stopped: str | None = None
    """Why the run ended early, if it did."""

    @property
    def failed(self) -> int:
        """Return the number of failed units."""
        return len(self.failures)

    @property
    def pending(self) -> int:
        """Return the units that are neither done nor failed."""
        return self.total - self.done - self.skipped - self.failed

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``--json`` prints."""
        units = {name: getattr(self, name) for name in ("total", "done", "skipped", "failed", "pending")}
        return {"units": units, "failures": self.failures, "fingerprint": self.fingerprint}


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
) -> Summary:
    """Run the pipeline over a campaign, or go on with a run.

    Parameters
    ----------
    campaign : str or Path
        The input store.
    to : str or Path
        The run's store; made if it is not there.
    steps : sequence of str, optional
        By default all; those that they read from are added.
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
    plan, total, count = _prepare(campaign, root, steps, chosen, config, scheduler, workers)
    ledger = Ledger(root)
    threads = plan.config.engine.threads_per_unit
    with open_cluster(scheduler, count, threads_per_unit=threads) as slots, DriverLock(ledger.lock_path) as lock:
        plan = replace(plan, config=_keep_models(root, plan.config))
        attributes = _attributes(root, plan, chosen)
        # Of all steps so far: where an earlier one no longer holds, its metrics go too.
        metrics = [name for step in resolve(attributes["steps"]) for name in step.metrics]
        prepare_run(
            root,
            plan.campaign,
            plan.product_specs(),
            plan.sizes,
            metrics,
            attributes,
            whole=chosen.is_everything,
        )
        summary = Summary(total=total, fingerprint=plan.fingerprint)
        keeper = _Bookkeeper(plan, ledger, MetricsWriter(root, metrics), summary)
        emit = broadcast([keeper, *listeners])
        start = time.perf_counter()
        emit(RunStarted(f"run {root.name}", total, plan.pixels, slots.count))
        try:
            outcome = run_window(
                slots,
                _pending(plan, ledger, root, lock.token, emit),
                process_unit,
                emit,
                key=f"unit-{plan.fingerprint[:12]}-{lock.token[:8]}",
                max_failures=max_failures,
            )
            summary.stopped = outcome.stopped
        finally:
            keeper.flush()
            summary.seconds = time.perf_counter() - start
            emit(RunFinished(summary.done, summary.skipped, summary.failed, summary.seconds))
    return summary


def _prepare(
    campaign: str | Path,
    root: Path,
    steps: Sequence[str] | None,
    chosen: Selection,
    config: RunConfig | None,
    scheduler: str,
    workers: int | None,
) -> tuple[Plan, int, int]:
    """Return plan, number of units and workers of a run that could begin; raise for one that could not."""
    check_scheduler(scheduler)
    settings = config or RunConfig()
    if scheduler == "cuda" and settings.engine.device is None:
        engine = settings.engine.model_copy(update={"device": "cuda"})
        settings = settings.model_copy(update={"engine": engine})
    device = settings.engine.device or "cpu"
    if settings.detect.precision == "int8" and not device.startswith("cpu"):
        raise InputError("[detect] precision", f"int8 on {device}", "float32 or bfloat16: int8 is for the host")
    plan = make_plan(Path(campaign), resolve(steps), settings, chosen)
    _check_target(root, plan)
    total = sum(1 for _ in plan.units())
    if total == 0 and not chosen.is_everything:
        raise InputError("--select", "no unit", f"units of {campaign} that are present")
    return plan, total, plan.choose_workers(scheduler, workers)


def foresee(
    campaign: str | Path,
    to: str | Path,
    *,
    steps: Sequence[str] | None = None,
    selection: Selection | None = None,
    config: RunConfig | None = None,
    scheduler: str = "threads",
    workers: int | None = None,
) -> dict[str, Any]:
    """Tell what a run would do and cost, with the arguments of `run`; write nothing.

    Returns
    -------
    dict
        ``units`` and ``failures`` as a run's summary has them, ``steps``, ``bytes_read``,
        ``bytes_written_at_most``, ``memory_bytes``, ``workers``, ``seconds_estimated``, ``fingerprint``.
    """
    root = Path(to)
    plan, total, count = _prepare(campaign, root, steps, selection or Selection(), config, scheduler, workers)
    ledger, done = Ledger(root), 0
    for unit, _, _ in plan.units():
        wanted = plan.fingerprints(plan.campaign.facts(unit.exposure, unit.detector))
        done += len(ledger.read(unit).fresh(root, wanted)) == len(wanted)
    pending = total - done
    return {
        **Summary(total=total, skipped=done, fingerprint=plan.fingerprint).to_json(),
        "steps": [step.name for step in plan.steps],
        "bytes_read": pending * plan.pixels * 12,
        "bytes_written_at_most": pending * plan.stored_bytes(),
        "memory_bytes": plan.projection(scheduler, count).total,
        "workers": count,
        "seconds_estimated": pending * plan.unit_seconds() / count,
    }


def _attributes(root: Path, plan: Plan, chosen: Selection) -> dict[str, Any]:
    """Return what the store says of the run: this command's settings, and the steps and units of all so far."""
    before: dict[str, Any] = dict(open_group(root, "run").attrs) if (root / "zarr.json").exists() else {}
    ours = {"exposures": list(chosen.exposures), "detectors": sorted(chosen.detectors)}
    theirs = [item for item in before.get("selections", []) if item != ours]
    steps = {step.name for step in plan.steps} | set(before.get("steps", []))
    return {
        "config": _portable(root, plan.config.model_dump(mode="json")),
        "steps": [step.name for step in resolve(steps)],
        "selections": [*theirs, ours],
        "fingerprint": plan.fingerprint,
        "software": software_versions(),
    }


def _keep_models(root: Path, config: RunConfig) -> RunConfig:
    """Copy models that are not csstdask's own into the run, under their identity; return settings that name the copies.

    Whoever trains on in the same folder changes no run that has begun, and a run can be looked at when the
    folder is gone.
    """
    for (part, key), task in MODEL_SETTINGS.items():
        settings = getattr(config, part)
        model = getattr(settings, key)
        if model.endswith(".json"):
            copy = copy_model(find_card(task, model), Path(model), root / "models")
            changed = settings.model_copy(update={key: str(copy.resolve())})
            config = config.model_copy(update={part: changed})
    return config


def _portable(root: Path, config: dict[str, Any], *, back: bool = False) -> dict[str, Any]:
    """Name the models that lie in a run relative to it, or, `back`, by their full path again."""
    folder = f"{root.resolve()}/"
    for part, key in MODEL_SETTINGS:
        known = RunConfig.model_fields[part].default.model_dump() | config.get(part, {})  # of before it had that key
        model = known[key]
        if back and model.startswith("models/"):
            model = folder + model
        config[part] = known | {key: model if back else model.removeprefix(folder)}
    return config


def _check_target(root: Path, plan: Plan) -> None:
    if root.resolve() == plan.campaign.path.resolve():
        raise InputError("--to", "the campaign itself", "a store of its own for the run")
    if root.exists() and not root.is_dir():
        raise StoreError(f"{root}: found a file; wanted a folder for the run, or none")
    if (root / "zarr.json").exists():
        open_group(root, "run")
        return
    refuse_inside_store(root)
    if root.is_dir() and any(not item.name.lstrip(".").startswith(_BEFORE_STORE) for item in root.iterdir()):
        raise StoreError(f"{root}: found a folder that is no run; wanted a csstdask run, or a new name")


def _pending(plan: Plan, ledger: Ledger, root: Path, driver: str, emit: Listener) -> Iterator[Task]:
    """Yield a task for each unit whose record does not prove it done."""
    for unit, row, column in plan.units():
        facts = plan.campaign.facts(unit.exposure, unit.detector)
        fingerprints = plan.fingerprints(facts)
        record = ledger.read(unit)
        if len(record.fresh(root, fingerprints)) == len(fingerprints):
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
            facts=facts,
            instrument=plan.campaign.instrument,
            config=plan.config,
            fingerprints=fingerprints,
            driver=driver,
        )
        yield Task(unit, job)


class _Bookkeeper:
    """The listener that counts, and hands metrics on."""

    def __init__(self, plan: Plan, ledger: Ledger, metrics: MetricsWriter, summary: Summary) -> None:
        self._campaign, self._ledger, self._metrics, self._summary = plan.campaign, ledger, metrics, summary

    def __call__(self, event: Event) -> None:
        if isinstance(event, UnitDone):
            self._summary.done += 1
            self._summary.kernel_seconds += sum(event.result["seconds"].values())
            self._put(event.unit, event.result["metrics"])
        elif isinstance(event, UnitSkipped):
            self._summary.skipped += 1
            self._put(event.unit, event.record["metrics"])
        elif isinstance(event, UnitFailed):
            self._summary.failures.append(
                {
                    "exposure": event.unit.exposure,
                    "detector": event.unit.detector,
                    "step": event.step,
                    "reason": event.reason,
                }
            )
            if event.step == LOST:
                self._metrics.discard()  # they are the other driver's to write
                return
            steps = self._ledger.read(event.unit).steps.values()
            self._put(event.unit, {name: value for step in steps for name, value in step.metrics.items()})
            if event.step in _UNRECORDED:
                why = {"step": event.step, "reason": event.reason}
                with contextlib.suppress(OSError):
                    self._ledger.write(replace(self._ledger.read(event.unit), failure=why))

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


def plan_of_run(path: str | Path, campaign: str | Path | None = None) -> Plan:
    """Return the plan that a run's store remembers: all steps and units so far, with the last settings."""
    root = Path(path)
    attributes = dict(open_group(root, "run").attrs)
    if "steps" not in attributes:
        raise StoreError(f"{root}: found a run that was stopped before it began; wanted one to look at (run it again)")
    selections: Any = attributes["selections"]
    steps: Any = attributes["steps"]
    stored: Any = attributes["config"]
    try:
        config = RunConfig.model_validate(_portable(root, dict(stored), back=True))
    except (ValidationError, KeyError) as error:
        unknown = error.error_count() if isinstance(error, ValidationError) else 1
        raise StoreError(f"{root}: found settings of another version ({unknown} unknown); wanted ours") from None
    return make_plan(
        campaign_path(root, campaign),
        resolve(steps),
        config,
        AnyOf(tuple(Selection(tuple(one["exposures"]), frozenset(one["detectors"])) for one in selections)),
    )


def status(path: str | Path, *, campaign: str | Path | None = None, verify: bool = False) -> Summary:
    """Tell what of a run is done, failed and pending.

    Parameters
    ----------
    path : str or Path
        The run's store.
    campaign : str or Path, optional
        Where the campaign lies, if it has moved.
    verify : bool
        Compare checksums of everything that is recorded, not only sizes.
    """
    root = Path(path)
    plan = plan_of_run(root, campaign)
    ledger = Ledger(root)
    summary = Summary(fingerprint=plan.fingerprint)
    for unit, _, _ in plan.units():
        summary.total += 1
        record = ledger.read(unit)
        fingerprints = plan.fingerprints(plan.campaign.facts(unit.exposure, unit.detector))
        fresh = record.fresh(root, fingerprints, checksum=verify)
        if len(fresh) == len(fingerprints):
            summary.done += 1
        elif record.failure is not None:
            summary.failures.append({"exposure": unit.exposure, "detector": unit.detector, **record.failure})
        elif verify and (damaged := _damaged(record.steps, fingerprints, fresh)):
            reason = "what is on disk differs from its record: run it again"
            summary.failures.append(
                {"exposure": unit.exposure, "detector": unit.detector, "step": damaged, "reason": reason}
            )
    return summary


def _damaged(recorded: Any, fingerprints: dict[str, str], fresh: list[str]) -> str | None:
    """Return the first step that is recorded with the right fingerprint and yet not fresh."""
    for name, value in fingerprints.items():
        if name not in fresh and name in recorded and recorded[name].fingerprint == value:
            return name
    return None
