"""The job loop of run, ingest, export and mock.

A command that processes units builds a stream of tasks and a `Collector`; the rest is here. A `Driver` starts the
cluster when it is first needed and holds the lock of the store. Its job loop keeps a bounded number of tasks in flight
(``window.py``: retries, quarantine of units that kill their workers), gives each result to the collector, and each
event to the listeners.

*Why finished work survives an interruption.* Ctrl-C and SIGTERM raise an exception in the driver's thread, at any
line. The job loop ends first: the collector writes what it has gathered. Only then are the lock released and the
cluster closed, in the reverse order in which they were opened.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from csstdask.engine.cluster import Slots, open_cluster
from csstdask.engine.collector import Collector, JobSummary, collect_events
from csstdask.engine.events import Listener, RunFinished, RunStarted, broadcast
from csstdask.engine.lock import DriverLock
from csstdask.engine.window import Task, run_window


class Driver:
    """Owns the cluster and the store's lock while a command processes units, as a context manager.

    Parameters
    ----------
    scheduler : str
        ``threads``, ``processes``, ``cuda``, ``slurm`` or the address of a Dask scheduler.
    workers : int
        Number of units processed at the same time (`csstdask.engine.memory.choose_workers`).
    threads_per_unit : int
        Number of intra-op threads of one unit.

    Examples
    --------
    >>> from csstdask.engine.collector import Counts
    >>> from csstdask.engine.work_units import Unit
    >>> class Sum:
    ...     def __init__(self):
    ...         self.summary, self.total = JobSummary(), 0
    ...     def add(self, unit, result):
    ...         self.total += result["square"]
    ...     def skip(self, unit, record): ...
    ...     def fail(self, unit, step, reason): ...
    ...     def flush(self): ...
    ...     def counts(self):
    ...         return Counts(1, 0, 0)
    >>> tasks = [Task(Unit("exposure", detector), detector) for detector in (1, 2, 3)]
    >>> collector = Sum()
    >>> with Driver("threads", 2) as driver, driver.job_loop("add", 3, 1, collector, []) as loop:
    ...     loop.process(tasks, lambda number: {"square": number**2}, key="example")
    >>> collector.total
    14
    """

    def __init__(self, scheduler: str, workers: int, *, threads_per_unit: int = 1) -> None:
        self.scheduler, self.workers, self.threads_per_unit = scheduler, workers, threads_per_unit
        self._stack = ExitStack()
        self._slots: Slots | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def slots(self) -> Slots:
        """Return the cluster; the first call starts it.

        Raises
        ------
        InputError, ClusterError
            If it cannot be started (`csstdask.engine.cluster.open_cluster`).
        """
        if self._slots is None:
            cluster = open_cluster(self.scheduler, self.workers, threads_per_unit=self.threads_per_unit)
            self._slots = self._stack.enter_context(cluster)
        return self._slots

    def lock(self, path: Path) -> str:
        """Hold a store's lock until the driver ends; return the token that proves it.

        Raises
        ------
        RunLockedError
            If another live driver holds the lock.
        """
        return self._stack.enter_context(DriverLock(path)).token

    @contextmanager
    def job_loop(
        self, title: str, total: int, pixels_per_unit: int, collector: Collector, listeners: Sequence[Listener]
    ) -> Iterator[JobLoop]:
        """Open the job loop: the listeners hear its start and, whatever happens, its end.

        Parameters
        ----------
        title : str
            Label of the progress display.
        total : int
            Number of units, finished ones included.
        pixels_per_unit : int
            Number of pixels of one unit, for rates.
        collector : Collector
            Receives the results; flushed at the end.
        listeners : sequence of callable
            Receive all events, after the collector.
        """
        collect = collect_events(collector)
        loop = JobLoop(self, collector.summary, broadcast([collect, *listeners]), collect)
        started = RunStarted(title, total, pixels_per_unit, self.workers)
        if self._slots is not None:
            started = replace(started, slots=self._slots.count, dashboard=self._slots.dashboard)
        start = time.perf_counter()
        loop.emit(started)
        try:
            yield loop
        finally:
            try:
                collector.flush()
            finally:
                loop.summary.seconds = time.perf_counter() - start
                counts = collector.counts()
                loop.emit(RunFinished(counts.done, counts.skipped, counts.failed, loop.summary.seconds))


@dataclass(frozen=True)
class JobLoop:
    """An open job loop (`Driver.job_loop`)."""

    driver: Driver
    summary: JobSummary
    """Summary of the collector: `stopped` and `seconds` are set here."""
    emit: Listener
    """Passes an event to the collector and all listeners."""
    collect: Listener
    """Passes an event to the collector alone."""

    @property
    def stopped(self) -> bool:
        """Return whether the loop has ended early, after a fatal failure or too many failed units."""
        return self.summary.stopped is not None

    def process(
        self,
        tasks: Iterable[Task],
        function: Callable[[Any], dict[str, Any]],
        *,
        key: str,
        max_failures: int | None = None,
        progress: bool = True,
    ) -> None:
        """Process tasks; return at once if there are none or the loop has stopped.

        Parameters
        ----------
        tasks : iterable of Task
            Drawn one at a time, as slots become free.
        function : callable
            Runs on a worker (`csstdask.engine.window.run_window`).
        key : str
            Prefix of the Dask keys; unique for each job loop.
        max_failures : int, optional
            Number of failed units after which no more tasks are drawn.
        progress : bool
            Whether the listeners hear of these tasks; the collector always does.
        """
        if self.stopped:
            return
        remaining = iter(tasks)
        first = next(remaining, None)
        if first is None:  # the cluster is not needed
            return
        outcome = run_window(
            self.driver.slots,
            itertools.chain([first], remaining),
            function,
            self.emit if progress else self.collect,
            key=key,
            max_failures=max_failures,
        )
        self.summary.stopped = outcome.stopped
