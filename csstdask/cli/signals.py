"""Ctrl-C and SIGTERM: say so at once, and end within two seconds without losing finished work.

The first signal prints a message and raises an exception in the main thread, so that a run releases its lock and writes
its metrics. Whatever has not ended by itself after a grace period is ended by force, workers included: records of units
are written last and atomically, so that the next run resumes as after any crash. A second signal ends at once.
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

#: Time that a command has to release locks and to write metrics.
GRACE_SECONDS = 1.2
_OF_THE_CLUSTER = ("distributed", "tornado", "asyncio")
"""Loggers that report callbacks which the end of a cluster has interrupted."""
_NAMES: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class TerminatedError(BaseException):
    """SIGTERM arrived."""


def install_handlers() -> None:
    """Handle SIGTERM, and Ctrl-C unless the parent process had it ignored."""
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _stop)


def end_now(code: int) -> NoReturn:
    """End this process and its workers at once; nothing may keep it from ending."""
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
    for name in _OF_THE_CLUSTER:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    message = f"\ncsstdask: {_NAMES[number]}; finished units are kept, run the command again to resume\n"
    # Written past Python's buffers: the signal may have arrived in the middle of another message. The stream may be
    # closed, or a pipe without a reader.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.write(sys.stderr.fileno(), message.encode())
    raise KeyboardInterrupt if number == signal.SIGINT else TerminatedError
