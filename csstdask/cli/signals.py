"""Handle Ctrl-C and SIGTERM: end within two seconds without losing finished work.

The first signal prints a message and raises an exception in the main thread, so that a run releases its lock and writes
its metrics. After a grace period the process and its workers are killed: records of units are written last and
atomically, so the next run resumes as after any crash. A second signal kills at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

import psutil

#: Time for a command to release locks and write metrics [s].
GRACE_SECONDS = 1.2
#: Loggers of the cluster, which report callbacks that are interrupted when it closes.
_CLUSTER_LOGGERS = ("distributed", "tornado", "asyncio")
_NAMES: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class TerminatedError(BaseException):
    """SIGTERM arrived."""


def install_handlers() -> None:
    """Handle SIGTERM, and Ctrl-C unless the parent process had it ignored."""
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _stop)


def end_now(code: int) -> NoReturn:
    """Kill this process and its workers, whatever they are doing."""
    try:
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    finally:
        os._exit(code)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    code = 128 + number
    timer = threading.Timer(GRACE_SECONDS, end_now, (code,))
    timer.daemon = True
    timer.start()
    for other in _NAMES:
        if signal.getsignal(other) is _stop:
            signal.signal(other, lambda *_: end_now(code))
    for name in _CLUSTER_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    message = f"\ncsstdask: {_NAMES[number]}; finished units are kept, run the command again to resume\n"
    # Written without Python's buffers: the signal may have interrupted another message. The stream may be closed, or a
    # pipe without a reader.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.write(sys.stderr.fileno(), message.encode())
    raise KeyboardInterrupt if number == signal.SIGINT else TerminatedError
