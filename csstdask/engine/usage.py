"""What a stage of a unit uses: wall time, CPU time, peak memory, bytes read and written."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

RESET_TOLERANCE = 16 << 20
"""How far a peak may lie above the present memory just after it was reset [bytes]: the kernel counts pages late."""


@dataclass(frozen=True)
class Usage:
    """What one stage of one unit has used."""

    seconds: float = 0.0
    """Wall time."""
    cpu_seconds: float = 0.0
    """CPU time: of the whole process where the unit has it for itself, else of the unit's own thread."""
    peak_bytes: int = 0
    """Largest resident memory of the process until the end of the stage, libraries and other units included. A process
    that keeps freed memory shows the peaks of its stages only in its first unit."""
    bytes_read: int = 0
    """From stores, as they lie on disk."""
    bytes_written: int = 0
    """To the store, as they lie on disk."""


class Meter:
    """Measures the usage from its creation on.

    Parameters
    ----------
    alone : bool
        Whether the process works on one unit at a time. Only then can its CPU time and its peak memory be attributed
        to the unit.
    """

    def __init__(self, *, alone: bool) -> None:
        self.alone = alone
        self.bytes_read = 0
        if alone:
            reset_peak()
        self._cpu = self._clock()
        self._start = time.perf_counter()

    def usage(self, bytes_written: int = 0) -> Usage:
        """Return what has been used so far."""
        seconds, cpu = time.perf_counter() - self._start, self._clock() - self._cpu
        return Usage(seconds, cpu, peak_bytes(), self.bytes_read, bytes_written)

    def _clock(self) -> float:
        return time.process_time() if self.alone else time.thread_time()


def reset_peak() -> bool:
    """Reset the peak of `peak_bytes` to the present memory, if the system supports it.

    Returns
    -------
    bool
        Whether the peak now is that of the present memory. Systems other than Linux and some containers do not allow
        it, or accept the request and ignore it; peaks are then those since the process began.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    peak, resident = read_process_status("VmHWM"), read_process_status("VmRSS")
    return peak is not None and resident is not None and peak - resident < RESET_TOLERANCE


def peak_bytes() -> int:
    """Return the largest resident memory of this process since it began, or since `reset_peak`."""
    peak = read_process_status("VmHWM")
    if peak is not None:
        return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def read_process_status(key: str) -> int | None:
    """Return a value of the process's status [bytes], None where the system has no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:")), None)
