"""Measure what a step uses: wall time, CPU time, peak memory, bytes read and written."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

RESET_TOLERANCE = 16 << 20
"""Excess of the peak over the present memory just after a reset that counts as none: the kernel counts late [byte]."""


@dataclass(frozen=True)
class Usage:
    """Usage of one step of one unit."""

    seconds: float = 0.0
    """Wall time [s]."""
    cpu_seconds: float = 0.0
    """CPU time [s]: of the process if it has one unit at a time, else of the unit's thread."""
    peak_bytes: int = 0
    """Largest resident memory of the process until the end of the step, including libraries and other units [byte]. A
    process that retains freed memory shows the peaks of its steps in its first unit only."""
    bytes_read: int = 0
    """Bytes read from stores, compressed."""
    bytes_written: int = 0
    """Bytes written to the store, compressed."""


class Meter:
    """Measure the usage from the creation of the object on.

    Parameters
    ----------
    exclusive : bool
        Whether the process has one unit at a time. Only then can its CPU time and peak memory be attributed to it.
    """

    def __init__(self, *, exclusive: bool) -> None:
        self.exclusive = exclusive
        self.bytes_read = 0
        if exclusive:
            reset_peak()
        self._cpu = self._clock()
        self._start = time.perf_counter()

    def usage(self, bytes_written: int = 0) -> Usage:
        """Return the usage so far."""
        seconds, cpu = time.perf_counter() - self._start, self._clock() - self._cpu
        return Usage(seconds, cpu, peak_bytes(), self.bytes_read, bytes_written)

    def _clock(self) -> float:
        return time.process_time() if self.exclusive else time.thread_time()


def reset_peak() -> bool:
    """Reset the peak of `peak_bytes` to the present memory, if the system supports it.

    Returns
    -------
    bool
        Whether the peak was reset. Systems other than Linux and some containers do not allow it, or ignore the request;
        peaks are then those since the start of the process.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    peak, resident = read_process_status("VmHWM"), read_process_status("VmRSS")
    return peak is not None and resident is not None and peak - resident < RESET_TOLERANCE


def peak_bytes() -> int:
    """Return the largest resident memory of this process since its start, or since `reset_peak` [byte]."""
    peak = read_process_status("VmHWM")
    if peak is not None:
        return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def read_process_status(key: str) -> int | None:
    """Return a value of the process's status [byte]; None where the system has no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:")), None)
