"""The window: bounded, complete, in order of drawing, and deaf to nothing that goes wrong."""

from __future__ import annotations

import errno
import os

import pytest

from csstdask.core.errors import InputError
from csstdask.engine.cluster import limit_threads, open_cluster
from csstdask.engine.events import UnitDone, UnitFailed, UnitRetried, UnitSubmitted
from csstdask.engine.window import IN_FLIGHT_PER_SLOT, Task, describe_failure, run_window
from csstdask.engine.work_units import Unit


@pytest.fixture(scope="module")
def slots():
    with open_cluster("threads", 2) as opened:
        yield opened


def tasks(n):
    return (Task(Unit(f"e{i:05d}", 1), i) for i in range(n))


def double(i):
    return {"twice": 2 * i}


def test_every_unit_once_and_never_too_many_in_flight(slots):
    flying, most, seen = 0, 0, []

    def listen(event):
        nonlocal flying, most
        if isinstance(event, UnitSubmitted):
            flying += 1
            most = max(most, flying)
        elif isinstance(event, UnitDone):
            flying -= 1
            seen.append((event.unit.exposure, event.result["twice"]))

    outcome = run_window(slots, tasks(200), double, listen, key="a")
    assert (outcome.done, outcome.failed) == (200, 0)
    assert sorted(seen) == [(f"e{i:05d}", 2 * i) for i in range(200)]
    assert most == IN_FLIGHT_PER_SLOT * slots.count


def fail_odd(i):
    return describe_failure("step", InputError("file", "odd", "even")) if i % 2 else {}


def test_failures_are_collected_and_the_rest_goes_on(slots):
    failed = []
    outcome = run_window(
        slots, tasks(20), fail_odd, lambda e: failed.append(e) if isinstance(e, UnitFailed) else None, key="b"
    )
    assert (outcome.done, outcome.failed, outcome.stopped) == (10, 10, None)
    assert failed[0].reason == "file: found odd; wanted even"
    assert failed[0].step == "step"


def test_max_failures_stops_drawing(slots):
    drawn = []
    source = (drawn.append(task) or task for task in tasks(1000))
    outcome = run_window(slots, source, fail_odd, lambda _: None, key="c", max_failures=3)
    assert "max-failures 3" in outcome.stopped
    assert len(drawn) < 20


attempts: dict[int, int] = {}


def flaky(i):
    attempts[i] = attempts.get(i, 0) + 1
    if i == 3 and attempts[i] < 3:
        return describe_failure("write", OSError(errno.EIO, "bad cable"))
    return {}


def test_only_failures_of_the_machinery_are_tried_again(slots):
    again = []
    listen = lambda e: again.append(e.reason) if isinstance(e, UnitRetried) else None  # noqa: E731
    assert run_window(slots, tasks(6), flaky, listen, key="d").failed == 0
    assert again == ["OSError: [Errno 5] bad cable"] * 2
    assert attempts == {0: 1, 1: 1, 2: 1, 3: 3, 4: 1, 5: 1}


def full(_):
    return describe_failure("write", OSError(errno.ENOSPC, "No space left on device"))


def test_a_full_disk_stops_the_run(slots):
    outcome = run_window(slots, tasks(1000), full, lambda _: None, key="e")
    assert "No space left" in outcome.stopped
    assert outcome.failed <= IN_FLIGHT_PER_SLOT * slots.count


def raise_anything(_):
    raise RuntimeError("from the machinery")


def test_an_exception_is_a_failed_unit(slots):
    failed = []
    run_window(
        slots, tasks(1), raise_anything, lambda e: failed.append(e) if isinstance(e, UnitFailed) else None, key="f"
    )
    assert failed[0].reason == "RuntimeError: from the machinery"
    assert failed[0].step == "worker"


def die_on_three(i):
    if i == 3:
        os._exit(1)
    return {}


@pytest.mark.timeout(180)
def test_a_unit_that_kills_its_workers_is_given_up():
    """Three deaths, then the unit is recorded as failed and the others are done."""
    failed = []
    with open_cluster("processes", 1) as slots:
        outcome = run_window(
            slots, tasks(6), die_on_three, lambda e: failed.append(e) if isinstance(e, UnitFailed) else None, key="h"
        )
    assert (outcome.done, outcome.failed) == (5, 1)
    assert failed[0].unit == Unit("e00003", 1)
    assert "died" in failed[0].reason


def test_schedulers_that_do_not_exist(monkeypatch):
    monkeypatch.setattr("csstdask.engine.cluster.CONNECT_SECONDS", 1)
    with pytest.raises(InputError, match="threads, processes"), open_cluster("magic", 1):
        pass
    with pytest.raises(InputError, match=r"\.\[slurm\]"), open_cluster("slurm", 1):
        pass
    with pytest.raises(InputError, match="no answer"), open_cluster("tcp://127.0.0.1:9", 1):
        pass


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_losing_the_scheduler_stops_the_run_and_says_so():
    """The scheduler goes away in the middle: no traceback, a reason, the rest stays pending."""
    with open_cluster("processes", 1) as other, open_cluster(other.client.scheduler.address, 1) as ours:
        seen = []

        def close_after_two(event):
            seen.append(event)
            if sum(isinstance(e, UnitDone) for e in seen) == 2:
                other.client.cluster.close()

        outcome = run_window(ours, tasks(500), double, close_after_two, key="lost")
        assert outcome.stopped is not None
        assert outcome.done < 500


def test_an_address_is_a_scheduler(slots):
    del slots
    with open_cluster("processes", 1) as other, open_cluster(other.client.scheduler.address, 5) as ours:
        assert ours.count == 1
        assert run_window(ours, tasks(5), double, lambda _: None, key="i").done == 5


def pools_of_a_task(threads):
    import threadpoolctl

    limit_threads(threads)
    return {"pools": [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]}


def test_intra_op_threads_are_limited_and_put_back():
    import threadpoolctl

    before = [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]
    seen = []
    with open_cluster("threads", 1) as slots:
        keep = lambda e: seen.append(e.result["pools"]) if isinstance(e, UnitDone) else None  # noqa: E731
        run_window(slots, iter([Task(Unit("e", 1), 1)]), pools_of_a_task, keep, key="j")
    assert seen[0]
    assert set(seen[0]) == {1}
    assert [pool["num_threads"] for pool in threadpoolctl.threadpool_info()] == before


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_nothing_listens_beyond_loopback(scheduler):
    import psutil

    with open_cluster(scheduler, 1):
        me = psutil.Process()
        sockets = [c for p in [me, *me.children(recursive=True)] for c in p.net_connections() if c.status == "LISTEN"]
        assert {c.laddr.ip for c in sockets} <= {"127.0.0.1", "::1"}
