"""Collect the results of a job loop. Nothing here imports Dask."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from csstdask.engine.events import Event, Listener, UnitDone, UnitFailed, UnitSkipped
from csstdask.engine.work_units import Unit


@dataclass
class JobSummary:
    """Result of a job loop; commands add their own counts."""

    failures: list[dict[str, Any]] = field(default_factory=list)
    """One entry for each failed unit or file, with its ``reason``."""
    stopped: str | None = None
    """Reason why the loop ended before all units were processed; None if it did not."""
    seconds: float = 0.0
    """Wall time [s]."""


@dataclass(frozen=True)
class Counts:
    """Numbers of units at the end of a job loop."""

    done: int
    """Units processed now."""
    skipped: int
    """Units that were finished before."""
    failed: int
    """Units or files that failed."""


class Collector(Protocol):
    """Takes the results of tasks, one at a time, on the driver's thread."""

    @property
    def summary(self) -> JobSummary:
        """Return the summary that the job loop completes."""

    def counts(self) -> Counts:
        """Return the numbers of units so far."""

    def add(self, unit: Unit, result: dict[str, Any]) -> None:
        """Add the result of a unit that was processed."""

    def skip(self, unit: Unit, record: dict[str, Any]) -> None:
        """Add the record of a unit that was finished before."""

    def fail(self, unit: Unit, step: str, reason: str) -> None:
        """Add the failure of a unit."""

    def flush(self) -> None:
        """Write what has been gathered: called once at the end, also after an interruption."""


def collect_events(collector: Collector) -> Listener:
    """Return a listener that hands the events of units to a collector."""

    def listen(event: Event) -> None:
        if isinstance(event, UnitDone):
            collector.add(event.unit, event.result)
        elif isinstance(event, UnitSkipped):
            collector.skip(event.unit, event.record)
        elif isinstance(event, UnitFailed):
            collector.fail(event.unit, event.step, event.reason)

    return listen
