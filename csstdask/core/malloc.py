"""Retention of freed memory by the C library, which saves the clearing of newly mapped pages.

Networks on a host allocate and free arrays of a hundred megabytes in every layer. By default glibc maps each of them
anew and the kernel clears its pages, which takes up to 40 % of the time of a training or a detection
(`benchmarks/kept_memory.py`).
"""

from __future__ import annotations

import ctypes
import platform

#: Parameters of ``mallopt`` in glibc.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
#: Trim threshold that never returns memory to the kernel.
_NEVER = -1
#: Memory that is requested at once [byte].
_TOP_PAD = 1 << 28


def retain_freed_memory() -> bool:
    """Let this process keep the memory that it frees; return whether its C library supports it.

    Large blocks get no separate mappings, nothing is returned to the kernel, and all threads share one arena, because
    the arenas of other threads cannot hold large blocks. The memory of the process stays near its peak. Only for
    processes of csstdask, before they start threads, and never for the process of a caller.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _TOP_PAD))
    taken = [mallopt(name, value) == 1 for name, value in settings]
    return all(taken)
