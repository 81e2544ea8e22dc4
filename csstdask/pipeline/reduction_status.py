"""Determine the state of reductions: finished for the present partials, pending or failed. No Dask is imported."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from csstdask.engine.fingerprint import fingerprint
from csstdask.engine.ledger import Ledger, StepRecord
from csstdask.engine.partials import Manifest, Partial, ReductionRecord, reduction_record_path
from csstdask.engine.work_units import Unit
from csstdask.pipeline.plan import Plan
from csstdask.pipeline.reduction import Reduction
from csstdask.store.tables import unit_file_path

State = Literal["done", "pending", "failed"]


@dataclass
class ReductionSummary:
    """State of a reduction of a run."""

    name: str
    state: State = "done"
    n_inputs: int = 0
    """Number of partials, of all detectors."""
    n_outdated: int = 0
    """Number of partials of other settings, which are left out until their units are redone."""
    failures: dict[int | None, str] = field(default_factory=dict)
    """Reasons of failures, by detector; None: the whole campaign."""
    pending: list[int | None] = field(default_factory=list)
    """Detectors whose result is not that of the present partials; None: the campaign's is not."""
    remarks: list[str] = field(default_factory=list)
    """Remarks on the results, for the user."""

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``--json`` prints."""
        failures = [{"detector": detector, "reason": reason} for detector, reason in self.failures.items()]
        return {
            "name": self.name,
            "state": self.state,
            "n_inputs": self.n_inputs,
            "n_outdated": self.n_outdated,
            "pending": self.pending,
            "failures": failures,
        }

    def with_state(self) -> ReductionSummary:
        """Set the state from the failures and pending parts."""
        self.state = "failed" if self.failures else "pending" if self.pending or not self.n_inputs else "done"
        return self

    def line(self) -> str:
        """Return the state as a line of text."""
        outdated = [f"{self.n_outdated} of other settings left out"] if self.n_outdated else []
        parts = [self.state, f"{self.n_inputs} inputs", *outdated, *self.remarks]
        return f"reduction {self.name}: {', '.join(parts)}"

    def failure_lines(self) -> list[str]:
        """Return a line for each failure."""
        return [
            f"failed reduction {self.name}{'' if detector is None else f', detector {detector}'}: {reason}"
            for detector, reason in self.failures.items()
        ]

    def note(self, reduction: Reduction, record: ReductionRecord) -> None:
        """Add the remark on a result, if there is one."""
        if record.objects and (remark := reduction.remark(record.metrics)):
            self.remarks.append(remark)


@dataclass(frozen=True)
class ReductionPart:
    """A reduction of one detector or of the whole campaign, with its present partials."""

    plan: Plan
    ledger: Ledger
    reduction: Reduction
    detector: int | None
    """None: the whole campaign."""

    @property
    def name(self) -> str:
        """Return its name in events."""
        return self.reduction.name if self.detector is None else f"{self.reduction.name} {self.detector}"

    @property
    def detectors(self) -> tuple[int, ...]:
        """Return the detectors whose partials it reads."""
        return tuple(sorted(self.plan.campaign.detectors)) if self.detector is None else (self.detector,)

    @property
    def record_path(self) -> Path:
        """Return the file of its record."""
        return reduction_record_path(self.ledger.root, self.reduction.name, self.detector)

    @property
    def manifest_path(self) -> Path:
        """Return the file that lists its partials."""
        return self.record_path.with_suffix(".inputs")

    def steps(self) -> Iterator[tuple[Unit, StepRecord, bool]]:
        """Yield recorded steps that write partials, sorted by exposure and detector, and whether each is current."""
        campaign, exposures = self.plan.campaign, self.plan.campaign.exposures
        columns = [campaign.detectors.index(detector) for detector in self.detectors]
        kinds = np.asarray(campaign.read("kind"), dtype=object)[: len(exposures), columns].astype(str)
        chosen = np.isin(kinds, sorted(self.reduction.kinds)) & campaign.present[:, columns]
        for row, position in sorted(np.argwhere(chosen).tolist(), key=lambda item: (exposures[item[0]], item[1])):
            unit = Unit(exposures[row], self.detectors[position])
            step = self.ledger.read(unit).steps.get(self.reduction.step)
            if step is not None:
                wanted = self.plan.fingerprints(campaign.metadata(unit.exposure, unit.detector))[self.reduction.step]
                yield unit, step, step.fingerprint == wanted

    def recorded(self) -> Iterator[tuple[Partial, bool]]:
        """Yield the recorded partials, sorted by exposure and detector, and whether each is current."""
        for unit, step, current in self.steps():
            path = unit_file_path(self.ledger.root, self.reduction.partial, unit.exposure, unit.detector)
            name = path.relative_to(self.ledger.root).as_posix()
            found = next((item for item in step.objects if item.path == name), None)
            if found is not None:
                yield Partial(found.path, found.sha256), current

    def has_done_units(self) -> bool:
        """Return whether a unit has finished the step that writes partials, with the present settings."""
        return any(current for _, _, current in self.steps())

    def wanted(self) -> str | None:
        """Return the fingerprint of the result of the present partials; None if there are none."""
        count, digest = Manifest.identity(CurrentPartials(self))
        return self.fingerprint(digest) if count else None

    def fingerprint(self, digest: str) -> str:
        """Return the fingerprint of its result: settings and all inputs."""
        return fingerprint(
            {
                "reduction": self.reduction.name,
                **self.plan.reduction_parts(self.reduction),
                "detector": self.detector,
                "inputs": digest,
            }
        )


def split_reduction(plan: Plan, ledger: Ledger, reduction: Reduction) -> list[ReductionPart]:
    """Return the parts of a reduction: one for each detector that has frames of its kind, or one for the campaign."""
    if reduction.scope == "campaign":
        return [ReductionPart(plan, ledger, reduction, None)]
    kinds = np.isin(np.asarray(plan.campaign.read("kind"), dtype=object).astype(str), sorted(reduction.kinds))
    columns = np.flatnonzero((kinds & np.asarray(plan.campaign.present, dtype=bool)).any(axis=0))
    return [ReductionPart(plan, ledger, reduction, plan.campaign.detectors[column]) for column in columns]


def current_fingerprints(
    plan: Plan, ledger: Ledger, reduction: Reduction, detectors: Collection[int] | None = None
) -> dict[int | None, str]:
    """Return the fingerprints of those parts of a reduction whose results are of the present partials.

    Parameters
    ----------
    plan : Plan
        As the run remembers it (`csstdask.pipeline.status.load_plan`).
    ledger : Ledger
        Ledger of the run: the records of all units of the reduction are read, about 0.2 ms each.
    reduction : Reduction
    detectors : collection of int, optional
        Detectors of interest; default: all. The part of a whole campaign is always included.

    Returns
    -------
    dict
        By detector; None: of the whole campaign. Parts that are pending or have failed are absent.
    """
    if reduction.name not in {one.name for one in plan.active_reductions}:
        return {}
    found = {}
    for part in split_reduction(plan, ledger, reduction):
        if detectors is not None and part.detector is not None and part.detector not in detectors:
            continue
        record = ReductionRecord.read(part.record_path)
        wanted = part.wanted() if record.objects else None
        if wanted is not None and record.is_current(ledger.root, wanted):
            found[part.detector] = wanted
    return found


def reduction_status(plan: Plan, ledger: Ledger, *, verify: bool = False) -> list[ReductionSummary]:
    """Report the state of the reductions of a run; with `verify`, compare the checksums of their products."""
    summaries = []
    for reduction in plan.active_reductions:
        summary = ReductionSummary(reduction.name)
        for part in split_reduction(plan, ledger, reduction):
            record, partials = ReductionRecord.read(part.record_path), CurrentPartials(part)
            count, digest = Manifest.identity(partials)
            summary.n_inputs += count
            summary.n_outdated += partials.n_outdated
            wanted = part.fingerprint(digest)
            if record.failure is not None and record.fingerprint == wanted:
                summary.failures[part.detector] = record.failure
            elif count and record.is_current(ledger.root, wanted, checksum=verify):
                summary.note(reduction, record)
            elif count or partials.n_outdated or record.objects:
                summary.pending.append(part.detector)
        summaries.append(summary.with_state())
    return summaries


class CurrentPartials:
    """Iterate over the partials of the present settings, in order; those of other settings are counted.

    Parameters
    ----------
    part : ReductionPart
    """

    def __init__(self, part: ReductionPart) -> None:
        self.n_outdated = 0
        self._part = part

    def __iter__(self) -> Iterator[Partial]:
        self.n_outdated = 0
        for partial, current in self._part.recorded():
            if current:
                yield partial
            else:
                self.n_outdated += 1
