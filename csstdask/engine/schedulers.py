"""Names of schedulers, and the default number of workers. Nothing here imports Dask."""

from __future__ import annotations

import os

from csstdask.core.errors import InputError

SCHEDULERS = ("threads", "processes", "cuda", "slurm")


def default_workers() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_scheduler(scheduler: str) -> None:
    """Raise InputError for an unknown scheduler, before anything is written."""
    if scheduler not in SCHEDULERS and "://" not in scheduler:
        raise InputError(
            "--scheduler", repr(scheduler), f"{', '.join(SCHEDULERS)}, or an address such as tcp://host:8786"
        )
