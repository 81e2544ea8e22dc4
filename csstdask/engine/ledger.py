"""The ledger: what is done. One record a unit, written last.

*Precondition*: whoever writes a record owns the unit (see ``lock.py``).

*Why the order survives a kill.* A unit's step writes its objects (shards, tables), flushes each to disk,
computes its size and checksum, and only then does the record that lists them take its name in one atomic
rename. Killed before the rename, the unit has no record, or its old one, whose sizes no longer match what
lies on disk or whose fingerprint is another: it is pending. Killed after, it is done. Nothing in between
can be seen.

*Done means recorded, not present.* A unit is done for a step if its record holds the step's fingerprint and
every object listed there is on disk with its size. Resuming checks sizes, which is cheap; `verify` checks
checksums, which reads everything.

A record also keeps the last failure: the steps before it stay done, and the unit is pending.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from csstdask.core.atomic_io import flush_file, sha256_file, write_atomic
from csstdask.engine.usage import Usage
from csstdask.engine.work_units import Unit

LEDGER_VERSION = 2


@dataclass(frozen=True)
class OwnedObject:
    """A file that a unit owns, relative to the store."""

    path: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, root: Path, path: Path) -> OwnedObject:
        """Flush a file to disk and describe it."""
        flush_file(path, root)
        return cls(path.relative_to(root).as_posix(), path.stat().st_size, sha256_file(path))

    def is_intact(self, root: Path, *, checksum: bool = False) -> bool:
        """Return whether the file is on disk with its size and, if asked, its content."""
        path = f"{root}/{self.path}"  # a Path takes longer to make than the file's size to read
        try:
            if os.stat(path).st_size != self.bytes:  # noqa: PTH116
                return False
            return not checksum or sha256_file(Path(path)) == self.sha256
        except OSError:  # lost, or not to be read any more
            return False


@dataclass(frozen=True)
class StepRecord:
    """A step that a unit has been through."""

    fingerprint: str
    """Of everything that decides what it wrote."""
    objects: tuple[OwnedObject, ...] = ()
    """What it wrote."""
    metrics: dict[str, float | int | None] = field(default_factory=dict)
    """Numbers for the run's metrics arrays."""
    kernel_seconds: float = 0.0
    """Wall time of its body, reading included and writing not."""
    usage: Usage = field(default_factory=Usage)
    """Of the whole step, writing included."""
    software: dict[str, str] = field(default_factory=dict)
    """Library versions it ran with: recorded, not fingerprinted."""


@dataclass(frozen=True)
class UnitRecord:
    """The ledger's record of one unit."""

    unit: Unit
    steps: dict[str, StepRecord] = field(default_factory=dict)
    failure: dict[str, str] | None = None
    """``step`` and ``reason`` of the last failure, if the last attempt failed."""
    attempt: str = ""
    """Token of the attempt that wrote this."""
    torn: bool = False
    """Whether there is a file that cannot be read as a record."""

    def recorded(self, fingerprints: Mapping[str, str]) -> list[str]:
        """Return the steps, among those asked for, that the record says are done: their objects may be damaged."""
        return [
            name
            for name, fingerprint in fingerprints.items()
            if (step := self.steps.get(name)) is not None and step.fingerprint == fingerprint
        ]

    def fresh(self, root: Path, fingerprints: Mapping[str, str], *, checksum: bool = False) -> list[str]:
        """Return the steps, among those asked for, that need no work."""
        return [
            name
            for name in self.recorded(fingerprints)
            if all(item.is_intact(root, checksum=checksum) for item in self.steps[name].objects)
        ]

    def damaged(
        self, root: Path, fingerprints: Mapping[str, str], *, checksum: bool = False
    ) -> tuple[str, OwnedObject] | None:
        """Return the first object that is not as recorded, with its step; None if there is none."""
        for name in self.recorded(fingerprints):
            for item in self.steps[name].objects:
                if not item.is_intact(root, checksum=checksum):
                    return name, item
        return None


def _outdated(steps: Mapping[str, Any]) -> dict[str, StepRecord]:
    """Return steps of another version's record: not done, but the objects they own are known, and can be deleted."""
    return {
        name: StepRecord("", tuple(OwnedObject(**item) for item in step["objects"])) for name, step in steps.items()
    }


class Ledger:
    """The folder of records inside a store.

    Parameters
    ----------
    root : Path
        The store.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "ledger"

    def path(self, unit: Unit) -> Path:
        """Return the file of a unit's record."""
        return self.folder / unit.exposure / f"{unit.detector}.json"

    def claim_path(self, unit: Unit) -> Path:
        """Return the file of a unit's claim."""
        return self.folder / unit.exposure / f"{unit.detector}.claim"

    @property
    def lock_path(self) -> Path:
        """Return the file of the driver's lock."""
        return self.root / "driver.json"

    def read(self, unit: Unit) -> UnitRecord:
        """Return a unit's record; an empty one if there is none, or none that can be read (`torn`)."""
        try:
            data = json.loads(self.path(unit).read_text(encoding="utf-8"))
            if data["version"] != LEDGER_VERSION:
                return UnitRecord(unit, _outdated(data["steps"]))
            steps = {
                name: StepRecord(
                    step["fingerprint"],
                    tuple(OwnedObject(**item) for item in step["objects"]),
                    step["metrics"],
                    step["kernel_seconds"],
                    Usage(**step["usage"]),
                    step["software"],
                )
                for name, step in data["steps"].items()
            }
            return UnitRecord(unit, steps, data["failure"], data["attempt"])
        except FileNotFoundError:
            return UnitRecord(unit)
        except (ValueError, KeyError, TypeError, AttributeError):
            return UnitRecord(unit, torn=True)

    def write(self, record: UnitRecord) -> None:
        """Write a unit's record: the last act of an attempt."""
        data: dict[str, Any] = asdict(record) | {
            "version": LEDGER_VERSION,
            "exposure": record.unit.exposure,
            "detector": record.unit.detector,
        }
        del data["unit"], data["torn"]
        write_atomic(self.path(record.unit), json.dumps(data, indent=1, sort_keys=True).encode())
