"""Reduce many partial files to one small result, on the run's cluster, with the same bits in any order.

A unit leaves a *partial*, a file that it owns. A reduction maps groups of partials to small sums, adds the sums in a
binary tree whose shape depends only on the number of groups, and solves in the driver. It may need several passes:
each of them sends the solution of the previous one to the workers.

*Same bits.* Partials are sorted, groups have a fixed size, and the tree is fixed. The order in which groups are
finished, the number of workers, and interruptions do not change the result.

*Bounded memory.* A worker holds one partial and one sum. The driver holds the sums of groups in flight and one node for
each level of the tree: the list of partials lies in a file, the manifest, and is read group by group.

*Why the order survives a kill.* The objects of the result are written and flushed first, and the record that lists
them takes its name last, as for a unit (see ``ledger.py``). A reduction that was interrupted has no record of its
inputs, and is computed again from its partials, without reading pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from csstdask.core.errors import ReductionError
from csstdask.engine.cluster import Slots, limit_threads
from csstdask.engine.events import Event, Listener, ReductionPass, UnitDone, UnitFailed
from csstdask.engine.partials import GROUP_SIZE, Manifest, Partial
from csstdask.engine.window import Task, describe_failure, run_window
from csstdask.engine.work_units import PartialGroup

Sums = TypeVar("Sums")
Solution = TypeVar("Solution")


@dataclass(frozen=True)
class Pass(Generic[Solution]):
    """Result of one pass."""

    solution: Solution
    """Solution, sent to the workers for the next pass."""
    finished: bool
    """Whether this is the last one."""


class Algorithm(Protocol[Sums, Solution]):
    """Computation of a reduction. It is sent to the workers: small and picklable."""

    def map(self, partials: Iterable[tuple[Partial, bytes]], solution: Solution | None) -> Sums:
        """Return the sum of some partials, given the solution of the previous pass (None in the first)."""

    def combine(self, first: Sums, second: Sums) -> Sums:
        """Add two sums."""

    def solve(self, total: Sums, solution: Solution | None) -> Pass[Solution]:
        """Return the solution of the sum of all partials."""


class TreeSum(Generic[Sums]):
    """Add values in a binary tree over their positions, in any order of arrival.

    Neighbours 2i and 2i + 1 are added as soon as both have arrived. A last value without a neighbour moves up a level.

    Parameters
    ----------
    combine : callable
        Adds two values.
    count : int
        Number of values; at least 1.

    Examples
    --------
    >>> tree = TreeSum(lambda a, b: f"({a}{b})", 3)
    >>> for position in (2, 1, 0):
    ...     tree.add(position, "abc"[position])
    >>> tree.total
    '((ab)c)'
    """

    def __init__(self, combine: Callable[[Sums, Sums], Sums], count: int) -> None:
        self._combine, self._count = combine, count
        self._nodes: dict[tuple[int, int], Sums] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def add(self, position: int, value: Sums) -> None:
        """Add the value of a position."""
        level, length = 0, self._count
        while length > 1:
            neighbour = position ^ 1
            if neighbour < length:
                if (level, neighbour) not in self._nodes:
                    break
                other = self._nodes.pop((level, neighbour))
                value = self._combine(value, other) if position < neighbour else self._combine(other, value)
            level, position, length = level + 1, position // 2, (length + 1) // 2
        self._nodes[level, position] = value

    @property
    def total(self) -> Sums:
        """Return the sum; ValueError while values are missing."""
        if len(self._nodes) != 1 or next(iter(self._nodes)) != ((self._count - 1).bit_length(), 0):
            raise ValueError(f"the sum of {self._count} values is not complete")
        return next(iter(self._nodes.values()))


@dataclass(frozen=True)
class _GroupJob(Generic[Sums, Solution]):
    root: str
    group: tuple[Partial, ...]
    algorithm: Algorithm[Sums, Solution]
    solution: Solution | None


def map_group(job: _GroupJob[Any, Any]) -> dict[str, Any]:
    """Return the sum of one group of partials: the task of a worker."""
    limit_threads(1)
    try:
        return {"sums": job.algorithm.map(_contents(Path(job.root), job.group), job.solution)}
    except Exception as error:  # noqa: BLE001  the driver reports it
        return describe_failure("map", error)


def _contents(root: Path, group: Sequence[Partial]) -> Iterator[tuple[Partial, bytes]]:
    for partial in group:
        path = root / partial.path
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise ReductionError(f"{path}: found no file; the next run with --verify writes it again") from None
        if hashlib.sha256(content).hexdigest() != partial.sha256:
            raise ReductionError(
                f"{path}: found content that differs from its record; the next run with --verify writes it again"
            )
        yield partial, content


def reduce_partials(
    slots: Slots,
    root: Path,
    manifest: Manifest,
    algorithm: Algorithm[Sums, Solution],
    emit: Listener,
    *,
    name: str,
    key: str,
    max_passes: int = 50,
) -> tuple[Solution, int]:
    """Compute a reduction from its partials.

    Parameters
    ----------
    slots : Slots
        The run's cluster.
    root : Path
        The store that holds the partials.
    manifest : Manifest
        At least one partial.
    algorithm : Algorithm
    emit : callable
        Receives a `ReductionPass` after each pass.
    name : str
        Name in events and messages.
    key : str
        Prefix of the Dask keys.
    max_passes : int
        Maximum number of passes; the solution of the last one is returned.

    Returns
    -------
    solution, passes
        Solution of the last pass, and number of passes.

    Raises
    ------
    ReductionError
        If a partial is lost or damaged, or a group cannot be mapped.
    """
    groups = -(-manifest.count // GROUP_SIZE)
    solution: Solution | None = None
    for number in range(1, max_passes + 1):
        tree: TreeSum[Sums] = TreeSum(algorithm.combine, groups)
        problems: list[str] = []

        def take(event: Event, tree: TreeSum[Sums] = tree, problems: list[str] = problems) -> None:
            if isinstance(event, UnitDone):
                tree.add(event.unit.detector, event.result["sums"])
            elif isinstance(event, UnitFailed):
                problems.append(event.reason)

        tasks = (
            Task(PartialGroup(name, position), _GroupJob(str(root.resolve()), group, algorithm, solution))
            for position, group in enumerate(manifest.groups())
        )
        outcome = run_window(slots, tasks, map_group, take, key=f"{key}-{number}", max_failures=1)
        if problems or outcome.stopped:
            raise ReductionError(problems[0] if problems else str(outcome.stopped))
        found = algorithm.solve(tree.total, solution)
        solution = found.solution
        emit(ReductionPass(name, number, found.finished))
        if found.finished:
            break
    assert solution is not None  # noqa: S101  there is a first pass
    return solution, number
