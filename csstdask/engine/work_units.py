"""Units of work, ``(exposure, detector)``, and their selection on the command line."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from csstdask.core.errors import InputError


@dataclass(frozen=True, order=True)
class Unit:
    """One ``(exposure, detector)``: the unit of work, ownership on disk, retry and provenance."""

    exposure: str
    """Id of the exposure."""
    detector: int
    """Id of the detector."""

    def __str__(self) -> str:
        return f"{self.exposure}/{self.detector}"


@dataclass(frozen=True, order=True)
class PartialGroup(Unit):
    """A group of partials, the unit of work of a reduction; `exposure` is its name, `detector` the group's number."""

    def __str__(self) -> str:
        return f"{self.exposure}, group {self.detector}"


@dataclass(frozen=True)
class Selection:
    """A selection of units; an empty one selects all."""

    exposures: tuple[str, ...] = ()
    """Ids, or patterns with ``*`` and ``?``."""
    detectors: frozenset[int] = frozenset()
    """Ids."""

    @property
    def selects_all(self) -> bool:
        """Return whether all units are selected."""
        return not self.exposures and not self.detectors

    def __contains__(self, unit: Unit) -> bool:
        if self.detectors and unit.detector not in self.detectors:
            return False
        return not self.exposures or any(fnmatch.fnmatchcase(unit.exposure, name) for name in self.exposures)


@dataclass(frozen=True)
class SelectionUnion:
    """Union of several selections."""

    selections: tuple[Selection, ...]

    def __contains__(self, unit: Unit) -> bool:
        return any(unit in selection for selection in self.selections)


def parse_selection(text: str | None) -> Selection:
    """Read a selection such as ``exposure=a,b*,detector=6-9,13``.

    Raises
    ------
    InputError
        Names the part that is not a selection.

    Examples
    --------
    >>> sorted(parse_selection("exposure=n1*,detector=6-8").detectors)
    [6, 7, 8]
    """
    exposures: list[str] = []
    detectors: set[int] = set()
    key = ""
    for part in (text or "").split(","):
        head, equals, value = part.strip().rpartition("=")
        key = head.strip() if equals else key
        value = value.strip()
        if not value and not equals:
            continue
        if key == "exposure" and value:
            exposures.append(value)
        elif key == "detector" and value:
            detectors.update(_range(part, value))
        else:
            raise InputError("--select", repr(part.strip()), "exposure=ID[,ID...] and detector=N or N-M")
    return Selection(tuple(exposures), frozenset(detectors))


def _range(part: str, value: str) -> Sequence[int]:
    first, _, last = value.partition("-")
    try:
        numbers = range(int(first), int(last or first) + 1)
    except ValueError:
        numbers = range(0)
    if not numbers:
        raise InputError("--select", repr(part.strip()), "detector=N or detector=N-M")
    return numbers
