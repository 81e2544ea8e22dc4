"""What a worker does with one unit: read, step after step, write what it owns, record.

*Precondition*: the driver that sent the job holds the run's lock. The order is the ledger's (see
``engine/ledger.py``): objects first, each flushed and checksummed, the record last; the claim is checked
before each write. Old objects of steps that will run again, and of steps that read from them, are deleted
first, so that a unit that then fails shows nothing, rather than something old.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from csstdask.core.atomic_io import write_atomic
from csstdask.core.errors import LostOwnershipError
from csstdask.engine.cluster import limit_threads
from csstdask.engine.ledger import Ledger, OwnedObject, StepRecord, UnitRecord
from csstdask.engine.lock import Attempt
from csstdask.engine.usage import Meter
from csstdask.engine.window import describe_failure
from csstdask.engine.work_units import Unit
from csstdask.instrument import Instrument
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.frame import Frame, Table
from csstdask.pipeline.provenance import software_versions
from csstdask.pipeline.step import Output, Step
from csstdask.pipeline.steps import STEPS
from csstdask.store.campaign import UnitMetadata, read_header, read_unit_pixels
from csstdask.store.schema import RENAMED_METRICS
from csstdask.store.tables import read_table, table_path, unit_file_path, write_table
from csstdask.store.zarr_arrays import read_shard, shard_path, write_shard

log = logging.getLogger("csstdask")


@dataclass(frozen=True)
class UnitJob:
    """Everything a worker needs for one unit: small, and without arrays."""

    unit: Unit
    row: int
    column: int
    campaign: str
    run: str
    units: str
    metadata: UnitMetadata
    instrument: Instrument
    config: RunConfig
    fingerprints: Mapping[str, str]
    """Of the steps to take, in order."""
    driver: str
    """Token of the driver's lock."""
    alone: bool = False
    """Whether its process works on one unit at a time."""
    verify: bool = False
    """Whether it may turn out to be done: its objects are compared with their checksums first."""
    redo: bool = False
    """Whether steps run again that are done."""


def process_unit(job: UnitJob) -> dict[str, Any]:
    """Take one unit through its steps.

    Returns
    -------
    dict
        ``metrics``, and ``kernel_seconds`` and ``usage`` by step; ``unchanged``, with the metrics, for a unit that was
        to be verified and is done; or ``describe_failure`` (see ``engine/window.py``).
    """
    if any("torch" in STEPS[name].libraries(job.config) for name in job.fingerprints):
        import torch  # noqa: F401  its threads can be limited only once it is imported
    limit_threads(job.config.engine.threads_per_unit)
    root, ledger = Path(job.run), Ledger(Path(job.run))
    step_name = "claim"
    try:
        before = ledger.read(job.unit)
        # What is built on was made by an earlier run: its content is compared, not only its size.
        fresh = [] if job.redo else before.fresh(root, job.fingerprints, checksum=True)
        if job.verify and len(fresh) == len(job.fingerprints):
            return {"unchanged": {"metrics": recorded_metrics(before.steps)}}
        attempt = Attempt(ledger.claim_path(job.unit), ledger.lock_path, job.driver)
        stale = _stale(before, job.fingerprints, fresh)
        done = {name: step for name, step in before.steps.items() if name not in stale}
        for old in stale.values():
            for item in old.objects:
                (root / item.path).unlink(missing_ok=True)
    except (OSError, LostOwnershipError) as error:
        return describe_failure(step_name, error)
    meter = Meter(alone=job.alone)

    def count_bytes(path: Path) -> None:
        meter.bytes_read += path.stat().st_size if path.exists() else 0

    frame = _frame(job, count_bytes)
    problem: dict[str, Any] = {}
    written: list[str] = []
    for step_name, fingerprint in job.fingerprints.items():
        if step_name in fresh:
            continue
        try:
            step = STEPS[step_name]
            meter = Meter(alone=job.alone)
            output = step.body(frame, job.config)
            done[step_name] = _write(job, attempt, root, step, output, fingerprint, meter)
            written.append(step_name)
            for name in _outdated_by(step_name, before, done[step_name]):
                if name in fresh:
                    fresh.remove(name)
                for item in done.pop(name).objects if name in done else ():
                    (root / item.path).unlink(missing_ok=True)
            frame.add_results(output.arrays, output.tables, dict.fromkeys(step.owned_files) | output.files)
        except Exception as error:
            log.debug("unit %s, step %s", job.unit, step_name, exc_info=True)
            problem = describe_failure(step_name, error)
            break
    return _record(job, ledger, attempt, done, problem, written)


def _stale(before: UnitRecord, wanted: Mapping[str, str], fresh: list[str]) -> dict[str, StepRecord]:
    """Return recorded steps whose products no longer hold: those to be done again, and all that read from them.

    A step that is done again with the same fingerprint gives the same products as a rule: what reads from it stays,
    until the new products are seen to differ (`_outdated_by`).
    """
    undone = set(wanted) - set(fresh)
    changed = undone - set(before.recorded(wanted))
    for name, step in STEPS.items():  # in order: what a step reads from comes before it
        if changed.intersection(step.requires) and name not in fresh:
            changed.add(name)
    return {name: step for name, step in before.steps.items() if name in undone | changed}


def _outdated_by(name: str, before: UnitRecord, now: StepRecord) -> list[str]:
    """Return the steps that read from one whose new products differ from the recorded ones."""
    old = before.steps.get(name)
    if old is None or old.fingerprint != now.fingerprint or old.objects == now.objects:
        return []
    reached = {name}
    for other, step in STEPS.items():
        if reached.intersection(step.requires):
            reached.add(other)
    return [other for other in STEPS if other in reached and other != name]


def recorded_metrics(steps: Mapping[str, StepRecord]) -> dict[str, float | int | None]:
    """Return the metrics of the steps of a unit, those of an earlier version under their present names."""
    return {RENAMED_METRICS.get(name, name): value for step in steps.values() for name, value in step.metrics.items()}


def _frame(job: UnitJob, count: Callable[[Path], None]) -> Frame:
    """Return the frame of a unit; each file that it reads is counted."""
    campaign, run = Path(job.campaign), Path(job.run)

    def read_plane(name: str) -> npt.NDArray[Any]:
        count(shard_path(campaign, name, job.row, job.column))
        return read_unit_pixels(campaign, job.row, job.column, name)

    def read_product(name: str) -> npt.NDArray[Any]:
        values = read_shard(run, name, job.row, job.column)
        count(shard_path(run, name, job.row, job.column, values.ndim))
        return values

    def header() -> str:
        return read_header(campaign, job.row, job.column)

    def read_unit_table(name: str) -> Table:
        path = table_path(run, name, job.unit.exposure, job.unit.detector)
        count(path)
        return read_table(path)

    def read_unit_file(name: str) -> bytes | None:
        path = unit_file_path(run, name, job.unit.exposure, job.unit.detector)
        count(path)
        return path.read_bytes() if path.exists() else None

    readers = (read_plane, read_product, header, read_unit_table, read_unit_file)
    return Frame(job.metadata, job.instrument, job.units, *readers)


def _write(
    job: UnitJob, attempt: Attempt, root: Path, step: Step, output: Output, fingerprint: str, meter: Meter
) -> StepRecord:
    """Write what a step made, each object checked for ownership before and described after."""
    kernel_seconds = meter.usage().seconds
    objects: list[OwnedObject] = []
    for product in step.products:
        attempt.check()
        path = write_shard(root, product.name, job.row, job.column, output.arrays[product.name])
        objects.append(OwnedObject.of(root, path))
    for name, units in step.tables.items():
        attempt.check()
        path = table_path(root, name, job.unit.exposure, job.unit.detector)
        write_table(path, output.tables[name], units)
        objects.append(OwnedObject.of(root, path))
    for name in step.owned_files:
        attempt.check()
        path = unit_file_path(root, name, job.unit.exposure, job.unit.detector)
        if (content := output.files.get(name)) is None:
            path.unlink(missing_ok=True)  # of an attempt that was killed before its record
        else:
            write_atomic(path, content)
            objects.append(OwnedObject.of(root, path))
    usage = meter.usage(bytes_written=sum(item.bytes for item in objects))
    return StepRecord(fingerprint, tuple(objects), output.metrics, kernel_seconds, usage, software_versions())


def _record(
    job: UnitJob,
    ledger: Ledger,
    attempt: Attempt,
    done: dict[str, StepRecord],
    problem: dict[str, Any],
    written: list[str],
) -> dict[str, Any]:
    """Write the record, the last act, and return what the driver needs."""
    reason = {key: problem["failure"][key] for key in ("step", "reason")} if problem else None
    try:
        attempt.check()
        ledger.write(UnitRecord(job.unit, done, reason, attempt.token))
        attempt.release()
    except (OSError, LostOwnershipError) as error:
        return problem or describe_failure("record", error)
    if problem:
        return problem
    return {
        "metrics": recorded_metrics(done),
        "kernel_seconds": {name: done[name].kernel_seconds for name in written},
        "usage": {name: asdict(done[name].usage) for name in written},
    }
