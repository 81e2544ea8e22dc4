"""Usage: what a stage takes is measured, not what came before it."""

from __future__ import annotations

import mmap
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from csstdask.engine import usage
from csstdask.engine.usage import Meter, peak_bytes, reset_peak


def work(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(1000))


def test_sleeping_is_wall_time_and_working_is_cpu_time():
    meter = Meter(exclusive=True)
    time.sleep(0.1)
    work(0.1)
    used = meter.usage(bytes_written=7)
    assert used.seconds >= 0.2
    assert 0.1 <= used.cpu_seconds <= used.seconds
    assert (used.bytes_read, used.bytes_written) == (0, 7)


@pytest.mark.parametrize("exclusive", [True, False])
def test_work_of_other_threads_counts_in_a_process_of_ones_own(exclusive):
    meter = Meter(exclusive=exclusive)
    other = threading.Thread(target=work, args=(0.2,))
    other.start()
    other.join()
    assert (meter.usage().cpu_seconds > 0.15) == exclusive


@contextmanager
def resident(mebibytes):
    """Hold memory that goes back to the system at the end, which freed arrays need not do."""
    with mmap.mmap(-1, mebibytes << 20) as block:
        pages = np.frombuffer(block, dtype=np.uint8)
        pages[:: mmap.PAGESIZE] = 1
        yield
        del pages


def test_a_peak_is_that_of_the_stage():
    with resident(300):
        held = peak_bytes()
        assert held > 300 << 20
    resets = reset_peak()
    meter = Meter(exclusive=True)
    with resident(50):
        found = meter.usage().peak_bytes
    assert found > 50 << 20
    if resets:
        assert found < held - (150 << 20)
    else:
        assert found >= held


def test_a_system_that_ignores_the_reset_is_noticed(monkeypatch):
    status = {"VmHWM": 900 << 20, "VmRSS": 600 << 20}
    monkeypatch.setattr(usage, "read_process_status", status.get)
    assert not reset_peak()
    status["VmHWM"] = status["VmRSS"]
    assert reset_peak() == Path("/proc/self/clear_refs").exists()
