"""Memory, projected before a run and compared with what there is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from csstdask.core.errors import MemoryProjectionError
from csstdask.engine.schedulers import default_workers

#: Memory of a worker process before its first unit: interpreter, Dask, Zarr, numerical libraries, compiled kernels.
LIBRARY_BYTES = 440 << 20
#: Memory of a driver that has workers in other processes: interpreter, Dask, Zarr.
DRIVER_BYTES = 160 << 20
#: Part of the free memory that a run may plan with: projections are good to a quarter.
MEMORY_FRACTION = 0.8


@dataclass(frozen=True)
class Projection:
    """The memory a run will need."""

    per_unit: int
    """Peak bytes of one unit in work."""
    slots: int
    """Units at the same time."""
    libraries: int
    """Bytes that a process holds before its first unit."""
    processes: bool
    """Whether each unit has a process, besides the driver's."""

    @property
    def total(self) -> int:
        """Return the peak bytes of the whole run on this machine."""
        if self.processes:
            return DRIVER_BYTES + (self.per_unit + self.libraries) * self.slots
        return self.libraries + self.per_unit * self.slots

    def fitting_slots(self, budget: int) -> int:
        """Return how many units at the same time fit into a number of bytes; 0 if not even one does."""
        if self.processes:
            return max(0, (budget - DRIVER_BYTES) // max(self.per_unit + self.libraries, 1))
        return max(0, (budget - self.libraries) // max(self.per_unit, 1))


def budget_bytes() -> int:
    """Return the memory that a run may plan with."""
    return int(available_bytes() * MEMORY_FRACTION)


def available_bytes() -> int:
    """Return the memory this process may still take: of the machine and of its control groups."""
    free = int(psutil.virtual_memory().available)
    for folder in _control_groups():
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            try:
                limit, used = (int((folder / name).read_text()) for name in (limit_name, used_name))
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # no such file, or "max": no limit
                continue
            # Pages of files that were read count as used, and give way when memory is wanted.
            cache = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
            free = min(free, limit - used + cache)
    return max(free, 0)


def _control_groups() -> list[Path]:
    """Return the folders of this process's memory control groups, each with its parents."""
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
    """Refuse a run that cannot fit.

    Raises
    ------
    MemoryProjectionError
        With the sum, and with the number of workers that would fit.
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
