"""Events of a job loop: small frozen dataclasses.

The driver emits them to listeners: the collector of results, the progress bar, log lines, the JSON log and the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from csstdask.engine.work_units import Unit


@dataclass(frozen=True)
class RunStarted:
    """The job loop begins."""

    title: str
    """What is done, for the display: a verb and its object."""
    total: int
    """Number of selected units."""
    pixels_per_unit: int
    """Number of pixels of one unit, for rates in Mpix/s."""
    slots: int
    """Number of units processed at the same time."""
    dashboard: str | None = None
    """Address of Dask's dashboard; None: there is none."""


@dataclass(frozen=True)
class UnitSkipped:
    """A unit was finished before, with the same fingerprint."""

    unit: Unit
    """The unit."""
    record: dict[str, Any]
    """Small record of it, with its metrics."""


@dataclass(frozen=True)
class UnitSubmitted:
    """A unit entered the window."""

    unit: Unit
    """The unit."""


@dataclass(frozen=True)
class UnitDone:
    """A unit is finished and recorded."""

    unit: Unit
    """The unit."""
    result: dict[str, Any]
    """Result of its task: small."""


@dataclass(frozen=True)
class UnitFailed:
    """A unit failed; the other units are still processed."""

    unit: Unit
    """The unit."""
    step: str
    """Step in which it failed, or ``worker`` if the cluster failed."""
    reason: str
    """Reason, in one line."""


@dataclass(frozen=True)
class UnitRetried:
    """A unit is submitted again after a failure of the cluster."""

    unit: Unit
    """The unit."""
    reason: str
    """Reason, in one line."""


@dataclass(frozen=True)
class ReductionStarted:
    """A reduction begins to read its partials."""

    name: str
    """Name of the reduction and, for that of one detector, its id."""
    n_inputs: int
    """Number of partials."""


@dataclass(frozen=True)
class ReductionPass:
    """A reduction has read all its partials once, and solved for its result."""

    name: str
    """Name of the reduction and, for that of one detector, its id."""
    number: int
    """Number of the pass, from 1."""
    finished: bool
    """Whether it was the last."""


@dataclass(frozen=True)
class ReductionDone:
    """A reduction is finished and recorded."""

    name: str
    """Name of the reduction and, for that of one detector, its id."""
    n_inputs: int
    """Number of partials."""
    passes: int
    seconds: float
    """Wall time."""


@dataclass(frozen=True)
class ReductionFailed:
    """A reduction failed for a detector or for the campaign; the others are still computed."""

    name: str
    """Name of the reduction and, for that of one detector, its id."""
    reason: str
    """Reason, in one line."""


@dataclass(frozen=True)
class RunFinished:
    """The job loop ends, completely or not."""

    done: int
    """Number of units processed now."""
    skipped: int
    """Number of units that were finished before."""
    failed: int
    """Number of units that failed."""
    seconds: float
    """Wall time."""


Event = (
    RunStarted
    | UnitSkipped
    | UnitSubmitted
    | UnitDone
    | UnitFailed
    | UnitRetried
    | ReductionStarted
    | ReductionPass
    | ReductionDone
    | ReductionFailed
    | RunFinished
)
Listener = Callable[[Event], None]


def broadcast(listeners: Sequence[Listener]) -> Listener:
    """Return one listener that passes each event to all."""

    def emit(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return emit
