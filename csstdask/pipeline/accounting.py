"""Predicted and actual usage of each step of a run, from its plan and its ledger."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from csstdask.engine.ledger import Ledger, UnitRecord
from csstdask.engine.usage import Usage
from csstdask.pipeline.plan import Plan

#: Records that are read at most: means of a sample are as good, and a survey has millions.
_SAMPLE = 200


@dataclass(frozen=True)
class StepUsage:
    """Usage of one step, per unit."""

    step: str
    units: int
    """Number of units that it was measured on."""
    predicted_seconds: float
    """On the reference machine."""
    predicted_bytes: int
    """Peak memory of a process with one unit."""
    actual: Usage
    """Means; the peak is the largest."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def usage_of_run(plan: Plan, ledger: Ledger) -> list[StepUsage]:
    """Return the usage of each step, from a sample of the records of a run."""
    units = [unit for unit, _, _ in plan.units()]
    return usage_of(plan, (ledger.read(unit) for unit in units[:: -(-len(units) // _SAMPLE) or 1]))


def usage_of(plan: Plan, records: Iterable[UnitRecord]) -> list[StepUsage]:
    """Return the usage of each step of a plan, in order; without steps that no record holds."""
    found: dict[str, list[Usage]] = {}
    for record in records:
        for name, done in record.steps.items():
            found.setdefault(name, []).append(done.usage)
    rows = []
    for step in plan.steps:
        if usages := found.get(step.name):
            predicted = plan.predict(step)
            rows.append(StepUsage(step.name, len(usages), predicted.seconds, predicted.peak_bytes, _mean(usages)))
    return rows


def usage_lines(rows: Sequence[StepUsage]) -> list[str]:
    """Return a table of predicted and actual usage as lines of text, with a last line for the whole unit."""
    if not rows:
        return []
    head = "step          s predicted   s actual      CPU s  GiB predicted  GiB peak   MB read  MB written"
    lines = [_line(row.step, row.predicted_seconds, row.predicted_bytes, row.actual) for row in rows]
    whole = whole_unit(rows)
    return [head, *lines, _line(whole.step, whole.predicted_seconds, whole.predicted_bytes, whole.actual)]


def whole_unit(rows: Sequence[StepUsage]) -> StepUsage:
    """Return the usage of all steps of a unit together."""
    usages = [row.actual for row in rows]
    actual = Usage(
        seconds=sum(one.seconds for one in usages),
        cpu_seconds=sum(one.cpu_seconds for one in usages),
        peak_bytes=max(one.peak_bytes for one in usages),
        bytes_read=sum(one.bytes_read for one in usages),
        bytes_written=sum(one.bytes_written for one in usages),
    )
    units = max(row.units for row in rows)
    seconds, peak = sum(row.predicted_seconds for row in rows), max(row.predicted_bytes for row in rows)
    return StepUsage("a unit", units, seconds, peak, actual)


def _line(name: str, seconds: float, peak: int, actual: Usage) -> str:
    return (
        f"{name:<12}{seconds:>13.2f}{actual.seconds:>11.2f}{actual.cpu_seconds:>11.2f}{peak / 2**30:>15.2f}"
        f"{actual.peak_bytes / 2**30:>10.2f}{actual.bytes_read / 1e6:>10.1f}{actual.bytes_written / 1e6:>12.1f}"
    )


def _mean(usages: Sequence[Usage]) -> Usage:
    seconds, cpu, _, read, written = np.mean([list(asdict(one).values()) for one in usages], axis=0)
    return Usage(float(seconds), float(cpu), max(one.peak_bytes for one in usages), round(read), round(written))
