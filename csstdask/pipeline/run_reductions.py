"""The reductions of a run: from the partials of its units to arrays over detectors, each recorded last."""

from __future__ import annotations

import contextlib
import logging
import time

from csstdask.engine.cluster import Slots
from csstdask.engine.events import Listener, ReductionDone, ReductionFailed, ReductionStarted
from csstdask.engine.ledger import Ledger, OwnedObject
from csstdask.engine.lock import read_owner
from csstdask.engine.partials import Manifest, Partial, ReductionRecord
from csstdask.engine.reduce import reduce_partials
from csstdask.errors import CsstdaskError, LostDriverError
from csstdask.pipeline.plan import Plan
from csstdask.pipeline.reduction_status import Part, ReductionSummary, current_partials, parts_of
from csstdask.store.zarr_arrays import write_detector_chunk

log = logging.getLogger("csstdask")


def run_reductions(
    plan: Plan, ledger: Ledger, slots: Slots, token: str, emit: Listener, *, verify: bool, redo: bool
) -> list[ReductionSummary]:
    """Compute the reductions of a run that are not recorded for its present partials.

    A detector that fails is recorded with its reason; the others go on.
    """
    summaries = []
    for reduction in plan.active_reductions:
        summary = ReductionSummary(reduction.name)
        for part in parts_of(plan, ledger, reduction):
            _run_part(part, slots, token, emit, summary, verify=verify, redo=redo)
        summaries.append(summary.settle())
    return summaries


def _run_part(
    part: Part, slots: Slots, token: str, emit: Listener, summary: ReductionSummary, *, verify: bool, redo: bool
) -> None:
    root, reduction, plan = part.ledger.root, part.reduction, part.plan
    outdated: list[Partial] = []
    manifest = Manifest.write(part.manifest_path, current_partials(part, outdated))
    summary.n_inputs += manifest.count
    summary.n_outdated += len(outdated)
    if not manifest.count:
        _report_empty(part, emit, summary, len(outdated))
        return
    wanted, before = part.fingerprint(manifest.digest), ReductionRecord.read(part.record_path)
    if not redo and before.holds(root, wanted, checksum=verify):
        summary.metrics[part.detector] = before.metrics
        return
    start = time.perf_counter()
    emit(ReductionStarted(part.name, manifest.count))
    try:
        algorithm = reduction.algorithm(plan.config, plan.campaign, part.detector)
        solution, passes = reduce_partials(
            slots, root, manifest, algorithm, emit, name=part.name, key=f"{reduction.name}-{part.detector}-{token[:8]}"
        )
        reduced = reduction.result(solution, plan.config, plan.campaign, part.detector)
        column = plan.campaign.detectors.index(part.detector)
        objects = []
        for product in reduction.products:
            _check_driver(part.ledger, token)
            path = write_detector_chunk(root, product.name, column, reduced.arrays[product.name])
            objects.append(OwnedObject.of(root, path))
        seconds = time.perf_counter() - start
        _check_driver(part.ledger, token)
        record = ReductionRecord(
            wanted, manifest.count, len(outdated), passes, tuple(objects), reduced.metrics, round(seconds, 3)
        )
        record.write(part.record_path)
        summary.metrics[part.detector] = reduced.metrics
        emit(ReductionDone(part.name, manifest.count, passes, seconds))
    except LostDriverError:
        raise
    except Exception as error:
        log.debug("reduction %s", part.name, exc_info=True)
        reason = str(error) if isinstance(error, CsstdaskError) else f"{type(error).__name__}: {error}"
        reason = " ".join(reason.split())
        summary.failures[part.detector] = reason
        with contextlib.suppress(OSError):
            ReductionRecord(wanted, manifest.count, len(outdated), failure=reason).write(part.record_path)
        emit(ReductionFailed(part.name, reason))


def _report_empty(part: Part, emit: Listener, summary: ReductionSummary, outdated: int) -> None:
    """Record a failure where units are done and none of them has a partial."""
    if outdated or not part.has_done_units():
        return
    reason = part.reduction.without_inputs(part.plan.config)
    summary.failures[part.detector] = reason
    ReductionRecord(failure=reason).write(part.record_path)
    emit(ReductionFailed(part.name, reason))


def _check_driver(ledger: Ledger, token: str) -> None:
    """Raise LostDriverError if another driver owns the run now: its results are not to be replaced."""
    owner = read_owner(ledger.lock_path)
    if owner is None or owner["token"] != token:
        raise LostDriverError(f"{ledger.root}: this driver no longer holds the run")
