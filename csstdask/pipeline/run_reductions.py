"""The reductions of a run: from the partials of its units to arrays, each recorded last."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import replace
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
    """
    summaries = []
    for reduction in plan.active_reductions:
        summary = ReductionSummary(reduction.name)
        for part in split_reduction(plan, ledger, reduction):
            _run_part(part, slots, token, emit, summary, verify=verify, redo=redo)
        summaries.append(summary.with_state())
    return summaries


def _run_part(
    part: ReductionPart,
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
        summary.note(reduction, before)
        return
    start = time.perf_counter()
    emit(ReductionStarted(part.name, manifest.count))
    try:
        algorithm = reduction.algorithm(plan.config, plan.campaign, part.detectors)
        key = f"{part.name.replace(' ', '-')}-{token[:8]}"
        solution, passes = reduce_partials(slots, root, manifest, algorithm, emit, name=part.name, key=key)
        limit_threads(plan.config.engine.threads_per_unit)  # the driver's bits are those of a worker
        reduced = reduction.result(solution, plan.config, plan.campaign, part.detectors)
        objects: list[OwnedObject] = []
        # What is overwritten is no longer what its record says, even where sizes are the same.
        part.record_path.unlink(missing_ok=True)
        flush_folder(part.record_path.parent)
        for product in reduction.products:
            check_owner(part.ledger.lock_path, token, part.ledger.root)
            objects += [OwnedObject.of(root, path) for path in _write(part, product, reduced.arrays[product.name])]
        seconds = time.perf_counter() - start
        check_owner(part.ledger.lock_path, token, part.ledger.root)
        record = ReductionRecord(
            wanted, manifest.count, outdated, passes, tuple(objects), reduced.metrics, round(seconds, 3)
        )
        record.write(part.record_path)
        summary.note(reduction, record)
        emit(ReductionDone(part.name, manifest.count, passes, seconds))
    except LostDriverError:
        raise
    except Exception as error:
        log.debug("reduction %s", part.name, exc_info=True)
        reason = str(error) if isinstance(error, CsstdaskError) else f"{type(error).__name__}: {error}"
        _fail(part, emit, summary, ReductionRecord(wanted, manifest.count, outdated), " ".join(reason.split()))


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
