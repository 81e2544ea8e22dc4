"""Predicted and actual usage of each step of a run, from its plan and its ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from csstdask.engine.ledger import UnitRecord
from csstdask.engine.usage import Usage
from csstdask.pipeline.plan import Plan

#: Quantities of which means are reported.
_SUMMED = ("seconds", "cpu_seconds", "bytes_read", "bytes_written")


@dataclass(frozen=True)
class StepUsage:
    """Predicted and actual usage of one step, per unit."""

    step: str
    units: int
    """Number of measured units."""
    predicted_seconds: float
    """Time on the reference machine [s]."""
    predicted_bytes: int
    """Peak memory of a process with one unit [byte]."""
    actual: Usage
    """Means over units. The peak is the smallest one, which is that of this step alone: processes retain freed memory,
    so that later units show the peak of the most expensive step."""
    largest_peak: int
    """Largest peak memory of a process [byte]."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


class UsageTotals:
    """Sum the usage of steps over units."""

    def __init__(self) -> None:
        self.units = 0
        """Number of units that have been added."""
        self._sums: dict[str, dict[str, float]] = {}
        self._peaks: dict[str, tuple[int, int]] = {}
        self._counts: dict[str, int] = {}

    def add(self, usages: Mapping[str, Usage]) -> None:
        """Add the usage of the steps of a unit."""
        self.units += 1
        for name, usage in usages.items():
            sums = self._sums.setdefault(name, dict.fromkeys(_SUMMED, 0.0))
            for quantity in _SUMMED:
                sums[quantity] += getattr(usage, quantity)
            smallest, largest = self._peaks.get(name, (usage.peak_bytes, usage.peak_bytes))
            self._peaks[name] = min(smallest, usage.peak_bytes), max(largest, usage.peak_bytes)
            self._counts[name] = self._counts.get(name, 0) + 1

    def rows(self, plan: Plan) -> list[StepUsage]:
        """Return the usage of each measured step of a plan, in order."""
        rows = []
        for step in plan.steps:
            if count := self._counts.get(step.name):
                mean = {quantity: total / count for quantity, total in self._sums[step.name].items()}
                smallest, largest = self._peaks[step.name]
                actual = Usage(
                    mean["seconds"],
                    mean["cpu_seconds"],
                    smallest,
                    round(mean["bytes_read"]),
                    round(mean["bytes_written"]),
                )
                predicted = plan.predict(step)
                rows.append(StepUsage(step.name, count, predicted.seconds, predicted.peak_bytes, actual, largest))
        return rows


def recorded_usage(record: UnitRecord, fresh: Sequence[str]) -> dict[str, Usage]:
    """Return the recorded usage of finished steps."""
    return {name: record.steps[name].usage for name in fresh}


def usage_lines(rows: Sequence[StepUsage]) -> list[str]:
    """Return a table of predicted and actual usage as lines of text, with a last line for the whole unit."""
    if not rows:
        return []
    head = "step          s predicted   s actual      CPU s  GiB predicted  GiB peak   MB read  MB written"
    lines = [_line(row.step, row.predicted_seconds, row.predicted_bytes, row.actual) for row in rows]
    whole = total_usage(rows)
    return [head, *lines, _line(whole.step, whole.predicted_seconds, whole.predicted_bytes, whole.actual)]


def total_usage(rows: Sequence[StepUsage]) -> StepUsage:
    """Return the usage of all steps of a unit together."""
    usages = [row.actual for row in rows]
    actual = Usage(
        seconds=sum(one.seconds for one in usages),
        cpu_seconds=sum(one.cpu_seconds for one in usages),
        peak_bytes=max(row.largest_peak for row in rows),
        bytes_read=sum(one.bytes_read for one in usages),
        bytes_written=sum(one.bytes_written for one in usages),
    )
    units = max(row.units for row in rows)
    seconds, peak = sum(row.predicted_seconds for row in rows), max(row.predicted_bytes for row in rows)
    return StepUsage("a unit", units, seconds, peak, actual, actual.peak_bytes)


def _line(name: str, seconds: float, peak: int, actual: Usage) -> str:
    return (
        f"{name:<12}{seconds:>13.2f}{actual.seconds:>11.2f}{actual.cpu_seconds:>11.2f}{peak / 2**30:>15.2f}"
        f"{actual.peak_bytes / 2**30:>10.2f}{actual.bytes_read / 1e6:>10.1f}{actual.bytes_written / 1e6:>12.1f}"
    )
