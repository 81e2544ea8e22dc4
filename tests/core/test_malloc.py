"""Memory that is kept is not handed out anew: the kernel clears no page of it twice."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, threading
import numpy as np
from csstdask.core.malloc import retain_freed_memory
if sys.argv[1] == "keep":
    assert retain_freed_memory()
def twice():
    np.ones(8_000_000, dtype=np.float64).sum()
def touch():
    thread = threading.Thread(target=twice)
    thread.start()
    thread.join()
    twice()
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(what: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, what], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a C library without mallopt")
def test_blocks_of_64_megabytes_are_used_again_in_any_thread():
    assert faults("keep") < 100
    assert faults("not") > 100
