"""The reductions of a run: from the partials of its units to arrays over detectors, each recorded last."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import replace

from csstdask.durable import flush_folder
from csstdask.engine.cluster import Slots
from csstdask.engine.events import Listener, ReductionDone, ReductionFailed, ReductionStarted
from csstdask.engine.ledger import Ledger, OwnedObject
from csstdask.engine.lock import read_owner
from csstdask.engine.partials import Manifest, ReductionRecord
from csstdask.engine.reduce import reduce_partials
from csstdask.errors import CsstdaskError, LostDriverError
from csstdask.pipeline.plan import Plan
from csstdask.pipeline.reduction_status import CurrentPartials, DetectorReduction, ReductionSummary, parts_of
from csstdask.store.zarr_arrays import write_detector_chunk

log = logging.getLogger("csstdask")


def run_reductions(
    plan: Plan, ledger: Ledger, slots: Slots, token: str, emit: Listener, *, verify: bool, redo: bool
) -> list[ReductionSummary]:
    """Compute the reductions of a run that are not recorded for its present partials.

    A detector that fails is recorded with its reason; the others are still computed.
    """
    summaries = []
    for reduction in plan.active_reductions:
        summary = ReductionSummary(reduction.name)
        for part in parts_of(plan, ledger, reduction):
            _run_part(part, slots, token, emit, summary, verify=verify, redo=redo)
        summaries.append(summary.with_state())
    return summaries


def _run_part(
    part: DetectorReduction,
    slots: Slots,
    token: str,
    emit: Listener,
    summary: ReductionSummary,
    *,
    verify: bool,
    redo: bool,
) -> None:
    root, reduction, plan = part.ledger.root, part.reduction, part.plan
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
            _fail(part, emit, summary, ReductionRecord(wanted), reduction.without_inputs(plan.config))
        return
    if not redo and before.holds(root, wanted, checksum=verify):
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
        # What is overwritten is no longer what its record says, even where sizes are the same.
        part.record_path.unlink(missing_ok=True)
        flush_folder(part.record_path.parent)
        for product in reduction.products:
            _check_driver(part.ledger, token)
            path = write_detector_chunk(root, product.name, column, reduced.arrays[product.name])
            objects.append(OwnedObject.of(root, path))
        seconds = time.perf_counter() - start
        _check_driver(part.ledger, token)
        record = ReductionRecord(
            wanted, manifest.count, outdated, passes, tuple(objects), reduced.metrics, round(seconds, 3)
        )
        record.write(part.record_path)
        emit(ReductionDone(part.name, manifest.count, passes, seconds))
    except LostDriverError:
        raise
    except Exception as error:
        log.debug("reduction %s", part.name, exc_info=True)
        reason = str(error) if isinstance(error, CsstdaskError) else f"{type(error).__name__}: {error}"
        _fail(part, emit, summary, ReductionRecord(wanted, manifest.count, outdated), " ".join(reason.split()))


def _fail(
    part: DetectorReduction, emit: Listener, summary: ReductionSummary, record: ReductionRecord, reason: str
) -> None:
    """Record why a detector has no result."""
    summary.failures[part.detector] = reason
    with contextlib.suppress(OSError):
        replace(record, failure=reason).write(part.record_path)
    emit(ReductionFailed(part.name, reason))


def _check_driver(ledger: Ledger, token: str) -> None:
    """Raise LostDriverError if another driver owns the run now: its results are not to be replaced."""
    owner = read_owner(ledger.lock_path)
    if owner is None or owner["token"] != token:
        raise LostDriverError(f"{ledger.root}: this driver no longer holds the run")
