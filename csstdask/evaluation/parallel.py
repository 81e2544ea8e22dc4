"""Map a function over the units of a recipe, in worker processes."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from csstdask.core.errors import ClusterError
from csstdask.engine.cluster import open_cluster
from csstdask.engine.events import Event, UnitDone, UnitFailed
from csstdask.engine.window import Task, run_window
from csstdask.engine.work_units import Unit
from csstdask.mock import Recipe

Result = TypeVar("Result")

#: Number of progress messages over all units.
_MESSAGES = 5


def map_units(
    recipe: Recipe,
    function: Callable[[Recipe, int, int], Result],
    *,
    on_progress: Callable[[str], None],
    workers: int | None = None,
) -> Iterator[Result]:
    """Apply a function to each unit of a recipe, and yield the results in order.

    Parameters
    ----------
    recipe : Recipe
    function : callable
        Takes the recipe, the index of the exposure and the id of the detector.
    on_progress : callable
        Receives about five lines, unless the units are evaluated in this process.
    workers : int, optional
        Number of worker processes, by default one per CPU core; 0: no workers, the units are evaluated in this process.

    Yields
    ------
    object
        Result of the function for each unit. With workers, results are yielded after all units are done.

    Raises
    ------
    Exception
        The first exception that the function raises. Units that have not started are cancelled.
    ClusterError
        If a worker process dies.
    """
    units = [(index, detector) for index in range(recipe.exposures) for detector in recipe.detectors]
    if workers == 0:
        yield from (function(recipe, index, detector) for index, detector in units)
        return
    results: dict[Unit, Result] = {}

    def collect(event: Event) -> None:
        if isinstance(event, UnitFailed):
            raise ClusterError(f"{recipe.name}, {event.unit}: {event.reason}")
        if not isinstance(event, UnitDone):
            return
        if "error" in event.result:
            raise event.result["error"]
        results[event.unit] = event.result["value"]
        if len(results) % -(-len(units) // _MESSAGES) == 0:
            on_progress(f"{recipe.name}: {len(results)} of {len(units)} frames")

    tasks = [Task(Unit(str(index), detector), (index, detector)) for index, detector in units]
    with open_cluster("processes", min(len(units), workers or os.cpu_count() or 1)) as slots:
        outcome = run_window(slots, tasks, partial(_apply, recipe, function), collect, key=f"evaluate-{recipe.name}")
    if outcome.stopped is not None:
        raise ClusterError(f"{recipe.name}: {outcome.stopped}")
    yield from (results[task.unit] for task in tasks)


def _apply(recipe: Recipe, function: Callable[[Recipe, int, int], Result], unit: tuple[int, int]) -> dict[str, Any]:
    """Evaluate one unit on a worker; an exception is returned, with the worker's traceback as a note."""
    try:
        return {"value": function(recipe, *unit)}
    except Exception as error:  # noqa: BLE001  the driver raises it
        error.add_note(traceback.format_exc())
        return {"error": error}
