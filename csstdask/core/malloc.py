"""Freed memory that is kept: the kernel clears every page that it hands out anew.

Networks on a host allocate and free arrays of a hundred megabytes in every layer. glibc maps each of them anew, and
the kernel then clears its pages: up to two fifths of the time of a training or a detection
(`benchmarks/kept_memory.py`).
"""

from __future__ import annotations

import ctypes
import platform

#: Of glibc's ``mallopt``: what is set, and to what. No mapping of its own for a large block, nothing given back, and
#: one arena for all threads, for those of other threads cannot hold a large block.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_NEVER, _TOP_PAD = -1, 1 << 28


def retain_freed_memory() -> bool:
    """Let this process hold on to memory that it frees, from here on; tell whether its C library can.

    For processes of csstdask's own, and before they start threads: their memory stays near its peak. Never for a
    caller's process.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _TOP_PAD))
    taken = [mallopt(name, value) == 1 for name, value in settings]
    return all(taken)
