"""The reductions of a run: from the partials of its units to arrays, each recorded last."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from csstdask.core.atomic_io import flush_folder
from csstdask.core.errors import CsstdaskError, LostDriverError
from csstdask.engine.cluster import Slots, limit_threads
from csstdask.engine.events import Listener, ReductionDone, ReductionFailed, ReductionStarted
from csstdask.engine.ledger import Ledger, OwnedObject
from csstdask.engine.lock import check_owner
from csstdask.engine.partials import Manifest, ReductionRecord
from csstdask.engine.reduce import reduce_partials
from csstdask.pipeline.plan import Plan
from csstdask.pipeline.reduction import ReductionProduct
from csstdask.pipeline.reduction_status import CurrentPartials, ReductionPart, ReductionSummary, split_reduction
from csstdask.store.shards import rewrite_array, write_detector_chunk

log = logging.getLogger("csstdask")


def run_reductions(
    plan: Plan, ledger: Ledger, slots: Slots, token: str, emit: Listener, *, verify: bool, redo: bool
) -> list[ReductionSummary]:
    """Compute the reductions of a run that are not recorded for its present partials.

    A part that fails is recorded with its reason; the others are still computed.

    Parameters
    ----------
    plan : Plan
        The run.
    ledger : Ledger
        Ledger of the run.
    slots : Slots
        Cluster of the run.
    token : str
        Token of the driver's lock.
    emit : callable
        Receives the events of reductions.
    verify : bool
        Compare the results with their checksums.
    redo : bool
        Compute reductions again even if they are finished.
    """
    reducer, summaries = _Reducer(slots, token, emit, verify, redo), []
    for reduction in plan.active_reductions:
        summary = ReductionSummary(reduction.name)
        for part in split_reduction(plan, ledger, reduction):
            reducer.run(part, summary)
        summaries.append(summary.with_state())
    return summaries


@dataclass(frozen=True)
class _Reducer:
    """Computes the parts of reductions one after another."""

    slots: Slots
    token: str
    """Token of the driver's lock."""
    emit: Listener
    verify: bool
    redo: bool

    def run(self, part: ReductionPart, summary: ReductionSummary) -> None:
        """Compute a part, unless its result is that of the present partials; add its state to the summary."""
        partials = CurrentPartials(part)
        manifest = Manifest.write(part.manifest_path, partials)
        outdated = partials.n_outdated
        summary.n_inputs += manifest.count
        summary.n_outdated += outdated
        wanted, before = part.fingerprint(manifest.digest), ReductionRecord.read(part.record_path)
        if not manifest.count:
            if outdated or before.objects:
                summary.pending.append(part.detector)
            elif part.has_done_units():
                reason = part.reduction.without_inputs(part.plan.config)
                _fail(part, self.emit, summary, ReductionRecord(wanted), reason)
            return
        if not self.redo and before.is_current(part.ledger.root, wanted, checksum=self.verify):
            summary.note(part.reduction, before)
            return
        self.emit(ReductionStarted(part.name, manifest.count))
        started = ReductionRecord(wanted, manifest.count, outdated)
        try:
            record = self._compute(part, manifest, started)
        except LostDriverError:
            raise
        except Exception as error:
            log.debug("reduction %s", part.name, exc_info=True)
            reason = str(error) if isinstance(error, CsstdaskError) else f"{type(error).__name__}: {error}"
            _fail(part, self.emit, summary, started, " ".join(reason.split()))
        else:
            summary.note(part.reduction, record)

    def _compute(self, part: ReductionPart, manifest: Manifest, started: ReductionRecord) -> ReductionRecord:
        """Reduce the partials, write the products, and record them last."""
        root, reduction, plan = part.ledger.root, part.reduction, part.plan
        start = time.perf_counter()
        algorithm = reduction.algorithm(plan.config, plan.campaign, part.detectors)
        key = f"{part.name.replace(' ', '-')}-{self.token[:8]}"
        solution, passes = reduce_partials(self.slots, root, manifest, algorithm, self.emit, name=part.name, key=key)
        limit_threads(plan.config.engine.threads_per_unit)  # the driver rounds as a worker does
        reduced = reduction.result(solution, plan.config, plan.campaign, part.detectors)
        objects: list[OwnedObject] = []
        # The old record is deleted before its arrays are overwritten: their sizes may be the same.
        part.record_path.unlink(missing_ok=True)
        flush_folder(part.record_path.parent)
        for product in reduction.products:
            check_owner(part.ledger.lock_path, self.token, root)
            objects += [OwnedObject.of(root, path) for path in _write(part, product, reduced.arrays[product.name])]
        seconds = time.perf_counter() - start
        check_owner(part.ledger.lock_path, self.token, root)
        record = replace(
            started, passes=passes, objects=tuple(objects), metrics=reduced.metrics, seconds=round(seconds, 3)
        )
        record.write(part.record_path)
        self.emit(ReductionDone(part.name, manifest.count, passes, seconds))
        return record


def _write(part: ReductionPart, product: ReductionProduct, values: npt.NDArray[Any]) -> list[Path]:
    """Write a product of a part: the chunk of its detector, or the whole array; return the files."""
    root, campaign = part.ledger.root, part.plan.campaign
    if part.detector is None:
        return rewrite_array(root, product.name, values)
    return [write_detector_chunk(root, product.name, campaign.detectors.index(part.detector), values)]


def _fail(part: ReductionPart, emit: Listener, summary: ReductionSummary, record: ReductionRecord, reason: str) -> None:
    """Record why a part has no result."""
    summary.failures[part.detector] = reason
    with contextlib.suppress(OSError):
        replace(record, failure=reason).write(part.record_path)
    emit(ReductionFailed(part.name, reason))
