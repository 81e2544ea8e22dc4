"""Memory, projected before a run and compared with what there is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from csstdask.errors import MemoryProjectionError

#: What a worker process holds before its first unit: interpreter, libraries, compiled kernels.
BASE_BYTES = 400 << 20
#: Part of the free memory that a run may plan with.
SHARE = 0.9


@dataclass(frozen=True)
class Projection:
    """The memory a run will need."""

    per_unit: int
    """Peak bytes of one unit in work."""
    slots: int
    """Units at the same time."""
    processes: int
    """Processes that hold the libraries."""

    @property
    def total(self) -> int:
        """Return the peak bytes of the whole run on this machine."""
        return self.per_unit * self.slots + BASE_BYTES * self.processes


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


def fitting_slots(per_unit: int, *, processes: bool, budget: int | None = None) -> int:
    """Return how many units fit into memory at once; 0 if not even one does."""
    budget = int(available_bytes() * SHARE) if budget is None else budget
    each = per_unit + (BASE_BYTES if processes else 0)
    return max(0, (budget - BASE_BYTES) // max(each, 1))


def check(projection: Projection, budget: int | None = None) -> None:
    """Refuse a run that cannot fit.

    Raises
    ------
    MemoryProjectionError
        With the sum, and with the number of workers that would fit.
    """
    budget = int(available_bytes() * SHARE) if budget is None else budget
    if projection.total > budget:
        fits = fitting_slots(projection.per_unit, processes=projection.processes > 1, budget=budget)
        advice = f"--workers {fits} fits" if fits else "not even one unit fits"
        raise MemoryProjectionError(
            f"the run would need {projection.total / 2**30:.2f} GiB "
            f"({projection.slots} units x {projection.per_unit / 2**30:.2f} GiB, "
            f"{projection.processes} process(es)); "
            f"{budget / 2**30:.2f} GiB are free to plan with: {advice}"
        )
