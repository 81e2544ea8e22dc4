"""Listeners that show progress: a bar on a terminal, log lines elsewhere, or a JSON log."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from csstdask.engine.events import (
    Event,
    Listener,
    ReductionDone,
    ReductionFailed,
    ReductionPass,
    ReductionStarted,
    RunFinished,
    RunStarted,
    UnitDone,
    UnitFailed,
    UnitRetried,
    UnitSkipped,
    UnitSubmitted,
)

log = logging.getLogger("csstdask")


class ProgressBar:
    """Show finished units, Mpix/s and the remaining time on a terminal (standard error)."""

    def __init__(self, *, show_failures: bool = True) -> None:
        self.show_failures = show_failures
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None
        self._reduction: TaskID | None = None
        self._pixels = 0
        self._done = 0
        self._start = 0.0

    def __call__(self, event: Event) -> None:
        """Handle one event."""
        if isinstance(event, RunStarted):
            self._pixels, self._start, self._done = event.pixels_per_unit, time.perf_counter(), 0
            self._task = self._progress.add_task(event.title, total=event.total, rate="")
            self._progress.start()
            if event.dashboard:
                self._progress.console.print(f"dashboard {event.dashboard}", markup=False)
        if self._task is None:
            return
        if isinstance(event, UnitDone):
            self._done += 1
            rate = self._done * self._pixels / 1e6 / max(time.perf_counter() - self._start, 1e-9)
            self._progress.update(self._task, advance=1, rate=f"{rate:.1f} Mpix/s")
        elif isinstance(event, UnitSkipped | UnitFailed):
            self._progress.update(self._task, advance=1)
            if isinstance(event, UnitFailed) and self.show_failures:
                self._progress.console.print(f"failed {event.unit} [{event.step}]: {event.reason}", markup=False)
        elif isinstance(event, ReductionStarted):
            self._reduction = self._progress.add_task(f"reduce {event.name}", total=None, rate="")
        elif isinstance(event, ReductionPass) and self._reduction is not None:
            self._progress.update(self._reduction, completed=event.number, rate="passes")
        elif isinstance(event, ReductionDone | ReductionFailed):
            if self._reduction is not None:
                self._progress.update(self._reduction, total=getattr(event, "passes", None))
                self._progress.stop_task(self._reduction)
                self._reduction = None
            if isinstance(event, ReductionFailed) and self.show_failures:
                self._progress.console.print(f"failed reduction {event.name}: {event.reason}", markup=False)
        elif isinstance(event, RunFinished):
            self._progress.stop()


class LogLines:
    """Log plain lines, at most one every few seconds, for batch jobs."""

    def __init__(self, interval: float = 10.0, *, show_failures: bool = True) -> None:
        self.interval, self.show_failures = interval, show_failures
        self._last = 0.0
        self._start = 0.0
        self._count = {"done": 0, "skipped": 0, "failed": 0}
        self._started: RunStarted | None = None

    def __call__(self, event: Event) -> None:
        """Handle one event."""
        if isinstance(event, RunStarted):
            self._started, self._start, self._last = event, time.perf_counter(), time.perf_counter()
            self._count = dict.fromkeys(self._count, 0)
            log.info("%s: %d units on %d slots", event.title, event.total, event.slots)
            if event.dashboard:
                log.info("dashboard %s", event.dashboard)
        elif isinstance(event, UnitFailed):
            self._count["failed"] += 1
            if self.show_failures:
                log.warning("failed %s [%s]: %s", event.unit, event.step, event.reason)
        elif isinstance(event, UnitRetried):
            log.warning("retry %s: %s", event.unit, event.reason)
        elif isinstance(event, UnitSkipped):
            self._count["skipped"] += 1
            if (
                self._started is not None and time.perf_counter() - self._last >= self.interval
            ):  # verified units take time
                self._last = time.perf_counter()
                log.info("%d of %d units", sum(self._count.values()), self._started.total)
        elif isinstance(event, UnitDone):
            self._count["done"] += 1
            if time.perf_counter() - self._last >= self.interval:
                self._line()
        elif isinstance(event, ReductionDone):
            log.info(
                "reduced %s: %d inputs, %d passes, %.1f s", event.name, event.n_inputs, event.passes, event.seconds
            )
        elif isinstance(event, ReductionFailed):
            if self.show_failures:
                log.warning("failed reduction %s: %s", event.name, event.reason)
        elif isinstance(event, RunFinished):
            log.info(
                "finished in %.1f s: %d done, %d skipped, %d failed",
                event.seconds,
                event.done,
                event.skipped,
                event.failed,
            )

    def _line(self) -> None:
        if self._started is None:
            return
        self._last = time.perf_counter()
        elapsed = self._last - self._start
        finished = sum(self._count.values())
        rate = self._count["done"] * self._started.pixels_per_unit / 1e6 / elapsed
        remaining = (self._started.total - finished) * elapsed / max(self._count["done"] + self._count["failed"], 1)
        log.info("%d of %d units, %.1f Mpix/s, %.0f s left", finished, self._started.total, rate, remaining)


class JsonLog:
    """Append each event to a file, as one line of JSON with its time."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("a", encoding="utf-8")

    def __call__(self, event: Event) -> None:
        """Handle one event."""
        if isinstance(event, UnitSkipped | UnitSubmitted):
            return
        entry: dict[str, Any] = {"event": type(event).__name__, "time": time.time()}
        entry |= dataclasses.asdict(event)
        self._stream.write(json.dumps(entry, default=str) + "\n")
        self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()


def progress_listener(*, show_failures: bool = True) -> Listener:
    """Return a progress bar if standard error is a terminal, else log lines.

    Parameters
    ----------
    show_failures : bool
        Show failures as they happen; False for commands that list them at the end.
    """
    kind = ProgressBar if sys.stderr.isatty() else LogLines
    return kind(show_failures=show_failures)
