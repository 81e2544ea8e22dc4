"""Suppression of warnings, such as those of astropy about FITS keywords that are harmless here.

Warning filters belong to the process, not to a thread, so that a lock is needed to change them.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.RLock()


@contextmanager
def suppress_warnings() -> Iterator[None]:
    """Ignore warnings in a ``with`` block, which should be short: other threads that enter one wait for it."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
