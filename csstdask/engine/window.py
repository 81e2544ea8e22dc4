"""Submit tasks through a sliding window: a bounded number of units is in flight at any time.

Dask does not queue tasks that carry resources, and each submitted task costs memory on the scheduler and the client.
The client therefore limits them: about two units per slot are in flight, and a finished unit lets the next one in. The
memory of driver and scheduler does not depend on the number of units.

A task returns a small dict, even if its unit failed. Exceptions that reach the driver come from the cluster (a worker
died, a connection broke), never from a step.
"""

from __future__ import annotations

import contextlib
import errno
import queue
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from distributed import Future
from distributed.client import ClosedClientError, FutureCancelledError
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker

from csstdask.core.errors import CsstdaskError, LostDriverError
from csstdask.engine.cluster import Slots
from csstdask.engine.events import Listener, UnitDone, UnitFailed, UnitRetried, UnitSkipped, UnitSubmitted
from csstdask.engine.work_units import Unit

#: Units in flight per slot. With one, workers idle while results travel: efficiency 0.83 at 50 ms per unit, 0.96 with
#: two.
IN_FLIGHT_PER_SLOT = 2

#: System errors that may be temporary; all others concern the input or the disk, and a retry would not help.
TRANSIENT = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EAGAIN,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
}


#: The client cannot reach its scheduler: nothing can be submitted or cancelled.
_LOST = (ClosedClientError, CommClosedError)

#: Exceptions of the cluster, not of the unit: the task is retried.
_CLUSTER_ERRORS = (CommClosedError, FutureCancelledError, TimeoutError)

#: Step in the failure of a unit that could not be recorded, because another driver owns the store now.
OWNERSHIP_LOST = "ownership"

#: Step in the failure of a unit whose worker died.
WORKER_DIED = "worker died"
_ISOLATED = -1
"""Attempt number of a unit that runs alone, after workers have died with it."""


@dataclass(frozen=True)
class Task:
    """Work on one unit."""

    unit: Unit
    """The unit; part of the Dask key."""
    argument: Any
    """Argument of the task function: small and picklable, without arrays."""


@dataclass
class Outcome:
    """Numbers of tasks at the end of a window."""

    done: int = 0
    unchanged: int = 0
    """Number of tasks that found nothing to do."""
    failed: int = 0
    stopped: str | None = None
    """Reason why no more tasks were submitted; None if all were."""


def describe_failure(step: str, error: BaseException) -> dict[str, Any]:
    """Return the result of a task whose unit failed in ``step``."""
    transient = isinstance(error, _CLUSTER_ERRORS) or (isinstance(error, OSError) and error.errno in TRANSIENT)
    reason = str(error) or type(error).__name__
    if not isinstance(error, CsstdaskError):
        reason = f"{type(error).__name__}: {reason}"
    fatal = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
    if isinstance(error, LostDriverError):  # another driver owns the store: nothing more may be written
        step, fatal = OWNERSHIP_LOST, True
    return {"failure": {"step": step, "reason": " ".join(reason.split()), "transient": transient, "fatal": fatal}}


def run_window(
    slots: Slots,
    tasks: Iterable[Task],
    function: Callable[[Any], dict[str, Any]],
    emit: Listener,
    *,
    key: str,
    retries: int = 2,
    max_failures: int | None = None,
) -> Outcome:
    """Run tasks, a bounded number at a time, in the order in which they are drawn.

    Parameters
    ----------
    slots : Slots
        The cluster.
    tasks : iterable of Task
        Drawn one at a time, as slots become free.
    function : callable
        Runs on a worker; takes ``Task.argument``, returns a small dict: with `describe_failure` if the unit failed,
        with `unchanged` if there was nothing to do.
    emit : callable
        Receives the events, on the calling thread.
    key : str
        Prefix of the Dask keys. The rest is the unit: a second submission of a unit in flight joins the first.
    retries : int
        Number of retries after failures of the cluster. A unit that is present at three deaths of workers is isolated:
        it is tried once more, alone, after all others.
    max_failures : int, optional
        Number of failed units after which no more tasks are submitted.

    Returns
    -------
    Outcome
    """
    window = _Window(slots, iter(tasks), function, emit, key, retries, max_failures)
    try:
        window.fill()
        while window.flying:
            window.settle(*window.next_finished())
            window.fill()
    except _LOST as error:
        window.outcome.stopped = f"the connection to the scheduler is lost ({type(error).__name__})"
    finally:
        window.cancel()
    return window.outcome


class _Window:
    """Units in flight, and the decision on each of them when it finishes."""

    def __init__(
        self,
        slots: Slots,
        source: Iterator[Task],
        function: Callable[[Any], dict[str, Any]],
        emit: Listener,
        key: str,
        retries: int,
        max_failures: int | None,
    ) -> None:
        self._client, self._limit = slots.client, IN_FLIGHT_PER_SLOT * slots.count
        self._source, self._function, self._emit, self._key = source, function, emit, key
        self._retries, self._max_failures = retries, max_failures
        self._quarantine: list[Task] = []
        self._finished: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.flying: dict[str, tuple[Task, Future, int]] = {}
        self.outcome = Outcome()

    def fill(self) -> None:
        """Submit units until the window is full."""
        while len(self.flying) < self._limit and self.outcome.stopped is None:
            task = next(self._source, None)
            if task is None:
                break
            self._submit(task, 0)
            self._emit(UnitSubmitted(task.unit))
        if not self.flying and self._quarantine and self.outcome.stopped is None:
            # Units that shared a worker with the one that killed it are suspected too: each is tried once more, alone,
            # when all others are finished.
            self._submit(self._quarantine.pop(), _ISOLATED)

    def _submit(self, task: Task, attempt: int) -> None:
        name = f"{self._key}-{task.unit.exposure}-{task.unit.detector}-{attempt}"
        future = self._client.submit(self._function, task.argument, key=name, pure=False)
        self.flying[name] = (task, future, attempt)
        future.add_done_callback(lambda _: self._finished.put(name))

    def next_finished(self) -> tuple[Task, int, dict[str, Any]]:
        """Wait for a unit to finish; return its task, attempt and result."""
        task, future, attempt = self.flying.pop(self._finished.get())
        result = _result(future)
        future.release()
        return task, attempt, result

    def settle(self, task: Task, attempt: int, result: dict[str, Any]) -> None:
        """Count a unit as done or failed, or submit it again."""
        problem = result.get("failure")
        if "unchanged" in result:
            self.outcome.unchanged += 1
            self._emit(UnitSkipped(task.unit, result["unchanged"]))
        elif problem is None:
            self.outcome.done += 1
            self._emit(UnitDone(task.unit, result))
        elif problem["step"] == WORKER_DIED and attempt != _ISOLATED:
            self._emit(UnitRetried(task.unit, problem["reason"]))
            self._quarantine.append(task)
        elif problem["transient"] and 0 <= attempt < self._retries and self.outcome.stopped is None:
            self._emit(UnitRetried(task.unit, problem["reason"]))
            time.sleep(min(0.1 * 2**attempt, 5))
            self._submit(task, attempt + 1)
        else:
            self.outcome.failed += 1
            self._emit(UnitFailed(task.unit, problem["step"], problem["reason"]))
            if problem["fatal"]:
                self.outcome.stopped = problem["reason"]
            elif self._max_failures is not None and self.outcome.failed >= self._max_failures:
                self.outcome.stopped = f"{self.outcome.failed} failed units (--max-failures {self._max_failures})"

    def cancel(self) -> None:
        """Cancel what is still in flight."""
        with contextlib.suppress(*_LOST):
            self._client.cancel([future for _, future, _ in self.flying.values()], force=True)


def _result(future: Future) -> dict[str, Any]:
    """Return the result of a task, or a failure if the cluster failed."""
    try:
        value = future.result()
    except KilledWorker as error:
        reason = f"its workers died {error.allowed_failures + 1} times (out of memory, or a crash in native code)"
        return {"failure": {"step": WORKER_DIED, "reason": reason, "transient": False, "fatal": False}}
    except Exception as error:  # noqa: BLE001  any error of the cluster fails the unit, not the run
        return describe_failure("worker", error)
    return value if isinstance(value, dict) else {"value": value}
