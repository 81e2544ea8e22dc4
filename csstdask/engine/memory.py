"""Project the memory of a run before it starts, and refuse a run that cannot fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from csstdask.core.errors import MemoryProjectionError
from csstdask.engine.schedulers import default_workers

#: Memory of a worker before its first unit: interpreter, Dask, Zarr, numerical libraries, compiled kernels [byte].
LIBRARY_BYTES = 440 << 20
#: Memory of a driver whose workers are other processes: interpreter, Dask, Zarr [byte].
DRIVER_BYTES = 160 << 20
#: Fraction of the free memory that a run may use: projections are accurate to a quarter.
MEMORY_FRACTION = 0.8


@dataclass(frozen=True)
class Projection:
    """Projected memory of a run."""

    per_unit: int
    """Peak memory of one unit [byte]."""
    slots: int
    """Number of units processed at the same time."""
    libraries: int
    """Memory of a process before its first unit [byte]."""
    processes: bool
    """Whether each slot is a process separate from the driver."""

    @property
    def total(self) -> int:
        """Return the peak memory of the whole run on this machine [byte]."""
        if self.processes:
            return DRIVER_BYTES + (self.per_unit + self.libraries) * self.slots
        return self.libraries + self.per_unit * self.slots

    def fitting_slots(self, budget: int) -> int:
        """Return the number of units that fit into a memory [byte] at the same time; 0 if not even one does."""
        if self.processes:
            return max(0, (budget - DRIVER_BYTES) // max(self.per_unit + self.libraries, 1))
        return max(0, (budget - self.libraries) // max(self.per_unit, 1))


def budget_bytes() -> int:
    """Return the memory that a run may use [byte]."""
    return int(available_bytes() * MEMORY_FRACTION)


def available_bytes() -> int:
    """Return the memory that this process may still allocate, on the machine and in its control groups [byte]."""
    free = int(psutil.virtual_memory().available)
    for folder in _control_groups():
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            try:
                limit, used = (int((folder / name).read_text()) for name in (limit_name, used_name))
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # no such file, or no limit ("max")
                continue
            # Cached pages of files count as used, but are freed when memory is needed.
            cache = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
            free = min(free, limit - used + cache)
    return max(free, 0)


def _control_groups() -> list[Path]:
    """Return the folders of the memory control groups of this process, and of their parents."""
    folders: list[Path] = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = Path("/sys/fs/cgroup/memory" if controllers else "/sys/fs/cgroup")
        inner = root / name.lstrip("/")
        folders += [folder for folder in (inner, *inner.parents) if folder == root or root in folder.parents]
    return folders


def check_projection(projection: Projection, budget: int | None = None) -> None:
    """Refuse a run that does not fit into memory.

    Raises
    ------
    MemoryProjectionError
        Names the projected memory, and the number of workers that would fit.
    """
    budget = budget_bytes() if budget is None else budget
    if projection.total > budget:
        fits = projection.fitting_slots(budget)
        advice = f"--workers {fits} fits" if fits else "not even one unit fits"
        each = " in each process" if projection.processes else ""
        raise MemoryProjectionError(
            f"the run would need {projection.total / 2**30:.2f} GiB "
            f"({projection.slots} units x {projection.per_unit / 2**30:.2f} GiB, and "
            f"{projection.libraries / 2**30:.2f} GiB of libraries{each}); "
            f"{budget / 2**30:.2f} GiB are free to plan with: {advice}"
        )


def choose_workers(scheduler: str, per_unit: int, libraries: int = LIBRARY_BYTES, *, wanted: int | None) -> int:
    """Return the number of units to process at the same time.

    Parameters
    ----------
    scheduler : str
        Memory is checked for ``threads`` and ``processes``, which run on this machine.
    per_unit : int
        Peak memory of one unit [byte].
    libraries : int
        Memory of a process before its first unit [byte].
    wanted : int or None
        Requested number; None: as many as cores and memory allow.

    Raises
    ------
    MemoryProjectionError
        If that number, at least one, does not fit into memory.
    """
    if scheduler not in {"threads", "processes"}:
        return wanted or default_workers()
    one = Projection(per_unit, 1, libraries, processes=scheduler == "processes")
    workers = wanted or max(1, min(default_workers(), one.fitting_slots(budget_bytes())))
    check_projection(replace(one, slots=workers))
    return workers
