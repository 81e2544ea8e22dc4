"""Usage: what a stage takes is measured, not what came before it."""

from __future__ import annotations

import threading
import time
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
    meter = Meter(alone=True)
    time.sleep(0.1)
    work(0.1)
    used = meter.usage(bytes_written=7)
    assert used.seconds >= 0.2
    assert 0.1 <= used.cpu_seconds <= used.seconds
    assert (used.bytes_read, used.bytes_written) == (0, 7)


@pytest.mark.parametrize("alone", [True, False])
def test_work_of_other_threads_counts_in_a_process_of_ones_own(alone):
    meter = Meter(alone=alone)
    other = threading.Thread(target=work, args=(0.2,))
    other.start()
    other.join()
    assert (meter.usage().cpu_seconds > 0.15) == alone


def test_a_peak_is_that_of_the_stage():
    block = np.ones(300 << 17)  # 300 MiB
    held = peak_bytes()
    assert held > block.nbytes
    del block
    resets = reset_peak()
    meter = Meter(alone=True)
    block = np.ones(50 << 17)
    found = meter.usage().peak_bytes
    assert found > block.nbytes
    if resets:
        assert found < held - (150 << 20)
    else:
        assert found >= held


def test_a_system_that_ignores_the_reset_is_noticed(monkeypatch):
    status = {"VmHWM": 900 << 20, "VmRSS": 600 << 20}
    monkeypatch.setattr(usage, "_status", status.get)
    assert not reset_peak()
    status["VmHWM"] = status["VmRSS"]
    assert reset_peak() == Path("/proc/self/clear_refs").exists()
