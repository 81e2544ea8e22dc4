"""Parsing that must not chatter: astropy warns of keywords that are harmless here.

A warning filter belongs to the process, not to a thread, so changing it is one thread's business at a time.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.RLock()


@contextmanager
def suppress_warnings() -> Iterator[None]:
    """Ignore warnings within; meant for short work, since other threads that want the same wait."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
