"""Process one unit on a worker: run its steps, write the objects it owns, record them.

*Precondition*: the driver that sent the job holds the run's lock. *Order*, which survives a kill at any moment (see
``engine/ledger.py``): first the old objects of steps that run again, and of steps that read from them, are deleted, so
that a unit that then fails shows nothing rather than outdated results. Then each step writes its objects, each flushed
and checksummed. The record is written last. The claim is checked before each write.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
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
from csstdask.pipeline.frame import Frame
from csstdask.pipeline.provenance import software_versions
from csstdask.pipeline.step import Output, Step, Table
from csstdask.pipeline.steps import STEPS
from csstdask.store.campaign_pixels import read_unit_pixels
from csstdask.store.schema import RENAMED_METRICS
from csstdask.store.shards import read_shard, shard_path, write_shard
from csstdask.store.tables import read_table, table_path, unit_file_path, write_table
from csstdask.store.unit_metadata import UnitMetadata, read_header

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
    """Fingerprints of the steps to run, in order."""
    driver: str
    """Token of the driver's lock."""
    exclusive: bool = False
    """Whether its process has one unit at a time, so that memory and CPU time can be attributed to it."""
    verify: bool = False
    """Whether the record says that it is finished: its objects are compared with their checksums first."""
    redo: bool = False
    """Whether finished steps run again."""


def process_unit(job: UnitJob) -> dict[str, Any]:
    """Process the steps of one unit: the task of a worker.

    Returns
    -------
    dict
        ``metrics``, and ``kernel_seconds`` and ``usage`` by step; ``unchanged``, with the metrics, for a unit that was
        verified and is finished; or ``failure`` (`csstdask.engine.window.describe_failure`).
    """
    if any("torch" in STEPS[name].libraries(job.config) for name in job.fingerprints):
        import torch  # noqa: F401  its threads can be limited only once it is imported
    limit_threads(job.config.engine.threads_per_unit)
    ledger = Ledger(Path(job.run))
    try:
        before = ledger.read(job.unit)
        # Earlier products that steps read may be damaged: their contents are compared, not only their sizes.
        fresh = [] if job.redo else before.up_to_date(ledger.root, job.fingerprints, checksum=True)
        if job.verify and len(fresh) == len(job.fingerprints):
            return {"unchanged": {"metrics": recorded_metrics(before.steps)}}
        work = _UnitWork(job, ledger, before, fresh)
    except (OSError, LostOwnershipError) as error:
        return describe_failure("claim", error)
    return work.run()


class _UnitWork:
    """One attempt at a unit: it owns the unit's claim from its creation on.

    Parameters
    ----------
    job : UnitJob
    ledger : Ledger
        Ledger of the run.
    before : UnitRecord
        Record of the unit.
    fresh : list of str
        Steps that need no work.

    Raises
    ------
    OSError, LostOwnershipError
        If the unit cannot be claimed, or outdated products cannot be deleted.
    """

    def __init__(self, job: UnitJob, ledger: Ledger, before: UnitRecord, fresh: list[str]) -> None:
        self._job, self._ledger, self._before, self._fresh = job, ledger, before, fresh
        self._attempt = Attempt(ledger.claim_path(job.unit), ledger.lock_path, job.driver)
        stale = _stale(before, job.fingerprints, fresh)
        self._done = {name: step for name, step in before.steps.items() if name not in stale}
        self._written: list[str] = []
        for old in stale.values():
            self._delete(old)
        self._meter = Meter(exclusive=job.exclusive)

    def run(self) -> dict[str, Any]:
        """Run the steps that are not finished, and record the unit; return the result of `process_unit`."""
        frame = self._frame()
        for name, fingerprint in self._job.fingerprints.items():
            if name in self._fresh:
                continue
            try:
                self._run_step(frame, STEPS[name], fingerprint)
            except Exception as error:
                log.debug("unit %s, step %s", self._job.unit, name, exc_info=True)
                return self._record(describe_failure(name, error))
        return self._record({})

    def _run_step(self, frame: Frame, step: Step, fingerprint: str) -> None:
        self._meter = Meter(exclusive=self._job.exclusive)
        output = step.body(frame, self._job.config)
        self._done[step.name] = self._write(step, output, fingerprint)
        self._written.append(step.name)
        for name in _outdated_by(step.name, self._before, self._done[step.name]):
            if name in self._fresh:
                self._fresh.remove(name)
            if name in self._done:
                self._delete(self._done.pop(name))
        frame.add_results(output.arrays, output.tables, dict.fromkeys(step.owned_files) | output.files)

    def _delete(self, record: StepRecord) -> None:
        for item in record.objects:
            (self._ledger.root / item.path).unlink(missing_ok=True)

    def _frame(self) -> Frame:
        """Return the frame of the unit; the bytes of each file that it reads are counted."""
        job, campaign, run = self._job, Path(self._job.campaign), self._ledger.root
        unit = job.unit.exposure, job.unit.detector

        def count(path: Path) -> None:
            self._meter.bytes_read += path.stat().st_size if path.exists() else 0

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
            path = table_path(run, name, *unit)
            count(path)
            return read_table(path)

        def read_unit_file(name: str) -> bytes | None:
            path = unit_file_path(run, name, *unit)
            count(path)
            return path.read_bytes() if path.exists() else None

        readers = (read_plane, read_product, header, read_unit_table, read_unit_file)
        return Frame(job.metadata, job.instrument, job.units, *readers)

    def _write(self, step: Step, output: Output, fingerprint: str) -> StepRecord:
        """Write the results of a step; ownership is checked before each object, and its checksum taken after."""
        job, root = self._job, self._ledger.root
        unit = job.unit.exposure, job.unit.detector
        kernel_seconds = self._meter.usage().seconds
        objects: list[OwnedObject] = []
        for product in step.products:
            self._attempt.check()
            path = write_shard(root, product.name, job.row, job.column, output.arrays[product.name])
            objects.append(OwnedObject.of(root, path))
        for name, units in step.tables.items():
            self._attempt.check()
            path = table_path(root, name, *unit)
            write_table(path, output.tables[name], units)
            objects.append(OwnedObject.of(root, path))
        for name in step.owned_files:
            self._attempt.check()
            path = unit_file_path(root, name, *unit)
            if (content := output.files.get(name)) is None:
                path.unlink(missing_ok=True)  # left by an attempt that was killed before its record
            else:
                write_atomic(path, content)
                objects.append(OwnedObject.of(root, path))
        usage = self._meter.usage(bytes_written=sum(item.bytes for item in objects))
        return StepRecord(fingerprint, tuple(objects), output.metrics, kernel_seconds, usage, software_versions())

    def _record(self, problem: dict[str, Any]) -> dict[str, Any]:
        """Write the record, the last act, and return what the driver needs."""
        reason = {key: problem["failure"][key] for key in ("step", "reason")} if problem else None
        try:
            self._attempt.check()
            self._ledger.write(UnitRecord(self._job.unit, self._done, reason, self._attempt.token))
            self._attempt.release()
        except (OSError, LostOwnershipError) as error:
            return problem or describe_failure("record", error)
        if problem:
            return problem
        return {
            "metrics": recorded_metrics(self._done),
            "kernel_seconds": {name: self._done[name].kernel_seconds for name in self._written},
            "usage": {name: asdict(self._done[name].usage) for name in self._written},
        }


def _stale(before: UnitRecord, wanted: Mapping[str, str], fresh: list[str]) -> dict[str, StepRecord]:
    """Return the recorded steps to be redone or invalidated: unfinished ones, and those that read from changed ones.

    A step that is redone with the same fingerprint normally gives the same products: the steps that read from it are
    kept, unless the new products turn out to differ (`_outdated_by`).
    """
    undone = set(wanted) - set(fresh)
    changed = undone - set(before.recorded(wanted))
    for name, step in STEPS.items():  # in order: required steps come first
        if changed.intersection(step.requires) and name not in fresh:
            changed.add(name)
    return {name: step for name, step in before.steps.items() if name in undone | changed}


def _outdated_by(name: str, before: UnitRecord, now: StepRecord) -> list[str]:
    """Return the steps that read from a step whose new products differ from the recorded ones."""
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
