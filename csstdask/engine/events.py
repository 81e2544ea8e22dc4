"""What happens in a run, as a stream of small frozen events.

The runner emits them and does nothing else with them: the progress bar, log lines, the JSON log, the
metrics writer and the tests are listeners.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from csstdask.engine.work_units import Unit


@dataclass(frozen=True)
class RunStarted:
    """The run begins; everything is known but the results."""

    title: str
    """What is done, for people: a verb and its object."""
    total: int
    """Units in the selection."""
    pixels_per_unit: int
    """For rates in Mpix/s."""
    slots: int
    """Units that are worked on at the same time."""
    dashboard: str | None = None
    """Address of Dask's dashboard, or how to have one."""


@dataclass(frozen=True)
class UnitSkipped:
    """A unit was done before, with the same fingerprint."""

    unit: Unit
    """Which one."""
    record: dict[str, Any]
    """Its ledger record."""


@dataclass(frozen=True)
class UnitSubmitted:
    """A unit entered the window."""

    unit: Unit
    """Which one."""


@dataclass(frozen=True)
class UnitDone:
    """A unit is finished and recorded."""

    unit: Unit
    """Which one."""
    result: dict[str, Any]
    """What its task returned: small."""


@dataclass(frozen=True)
class UnitFailed:
    """A unit failed; the run goes on."""

    unit: Unit
    """Which one."""
    step: str
    """In which step, or ``worker`` if the process died."""
    reason: str
    """Why, in one line."""


@dataclass(frozen=True)
class UnitRetried:
    """A unit is submitted again after a failure of the machinery."""

    unit: Unit
    """Which one."""
    reason: str
    """What went wrong."""


@dataclass(frozen=True)
class ReductionStarted:
    """A reduction begins to read its partials."""

    name: str
    """Which one, and of which detector; that of a whole campaign has none."""
    n_inputs: int
    """Number of partials."""


@dataclass(frozen=True)
class ReductionPass:
    """A reduction has read all its partials once, and solved."""

    name: str
    """Which one, and of which detector; that of a whole campaign has none."""
    number: int
    """Of the pass, from 1."""
    finished: bool
    """Whether it was the last."""


@dataclass(frozen=True)
class ReductionDone:
    """A reduction is finished and recorded."""

    name: str
    """Which one, and of which detector; that of a whole campaign has none."""
    n_inputs: int
    """Number of partials."""
    passes: int
    seconds: float
    """Wall time."""


@dataclass(frozen=True)
class ReductionFailed:
    """A reduction failed, for a detector or for the campaign; the others are still computed."""

    name: str
    """Which one, and of which detector; that of a whole campaign has none."""
    reason: str
    """Why, in one line."""


@dataclass(frozen=True)
class RunFinished:
    """The run ends, whole or not."""

    done: int
    """Units finished in this run."""
    skipped: int
    """Units that were done before."""
    failed: int
    """Units that failed."""
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
