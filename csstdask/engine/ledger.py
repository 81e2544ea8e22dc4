"""The ledger of a run: one record per unit lists what the unit has finished.

*Precondition*: the writer of a record owns the unit (see ``lock.py``).

*Why the order survives a kill.* A step writes the objects of a unit (shards, tables, files), flushes each to disk and
computes its size and checksum. Then the record that lists them is written, by an atomic rename. A unit that was killed
before the rename has no record, or its old one, whose sizes do not match the files on disk or whose fingerprint
differs: the unit is pending. After the rename it is finished. No other state can be observed.

*Finished means recorded.* A step of a unit is finished if the record has the step's fingerprint and every object listed
there is on disk with its size. A resumed run compares sizes, which is cheap; ``--verify`` compares checksums, which
reads everything.

A record also keeps the last failure: the steps before it stay finished, and the unit is pending.
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
    """A file that a unit owns."""

    path: str
    """Path relative to the store."""
    bytes: int
    """Size [byte]."""
    sha256: str
    """SHA-256 of its content."""

    @classmethod
    def of(cls, root: Path, path: Path) -> OwnedObject:
        """Flush a file to disk and describe it."""
        flush_file(path, root)
        return cls(path.relative_to(root).as_posix(), path.stat().st_size, sha256_file(path))

    def is_intact(self, root: Path, *, checksum: bool = False) -> bool:
        """Return whether the file is on disk with its size and, with `checksum`, its content."""
        path = f"{root}/{self.path}"  # creating a Path takes longer than reading the size
        try:
            if os.stat(path).st_size != self.bytes:  # noqa: PTH116
                return False
            return not checksum or sha256_file(Path(path)) == self.sha256
        except OSError:  # lost or unreadable
            return False


@dataclass(frozen=True)
class StepRecord:
    """Record of one finished step of a unit."""

    fingerprint: str
    """Fingerprint of everything that decides its result."""
    objects: tuple[OwnedObject, ...] = ()
    """Files that it wrote."""
    metrics: dict[str, float | int | None] = field(default_factory=dict)
    """Values of the run's (exposure, detector) arrays."""
    kernel_seconds: float = 0.0
    """Wall time of its body, including reading and excluding writing [s]."""
    usage: Usage = field(default_factory=Usage)
    """Usage of the whole step, including writing."""
    software: dict[str, str] = field(default_factory=dict)
    """Versions of libraries: recorded, not fingerprinted."""


@dataclass(frozen=True)
class UnitRecord:
    """The ledger's record of one unit."""

    unit: Unit
    steps: dict[str, StepRecord] = field(default_factory=dict)
    failure: dict[str, str] | None = None
    """``step`` and ``reason`` of the last failure, if the last attempt failed."""
    attempt: str = ""
    """Token of the attempt that wrote the record."""
    unreadable: bool = False
    """Whether the file of the record exists but cannot be read."""

    def recorded(self, fingerprints: Mapping[str, str]) -> list[str]:
        """Return the steps that the record lists as finished; their objects may be damaged."""
        return [
            name
            for name, fingerprint in fingerprints.items()
            if (step := self.steps.get(name)) is not None and step.fingerprint == fingerprint
        ]

    def up_to_date(self, root: Path, fingerprints: Mapping[str, str], *, checksum: bool = False) -> list[str]:
        """Return the steps that need no work: recorded, with all objects on disk."""
        return [
            name
            for name in self.recorded(fingerprints)
            if all(item.is_intact(root, checksum=checksum) for item in self.steps[name].objects)
        ]

    def damaged(
        self, root: Path, fingerprints: Mapping[str, str], *, checksum: bool = False
    ) -> tuple[str, OwnedObject] | None:
        """Return the first object that differs from its record, with its step; None if there is none."""
        for name in self.recorded(fingerprints):
            for item in self.steps[name].objects:
                if not item.is_intact(root, checksum=checksum):
                    return name, item
        return None


def _outdated(steps: Mapping[str, Any]) -> dict[str, StepRecord]:
    """Return the steps in a record of another version: unfinished, with the objects that are to be deleted."""
    return {
        name: StepRecord("", tuple(OwnedObject(**item) for item in step["objects"])) for name, step in steps.items()
    }


class Ledger:
    """The folder of records in a run's store.

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
        """Return a unit's record; an empty one if there is none or it cannot be read (`unreadable`)."""
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
            return UnitRecord(unit, unreadable=True)

    def write(self, record: UnitRecord) -> None:
        """Write a unit's record: the last act of an attempt."""
        data: dict[str, Any] = asdict(record) | {
            "version": LEDGER_VERSION,
            "exposure": record.unit.exposure,
            "detector": record.unit.detector,
        }
        del data["unit"], data["unreadable"]
        write_atomic(self.path(record.unit), json.dumps(data, indent=1, sort_keys=True).encode())
