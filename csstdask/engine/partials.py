"""Partials of reductions: a file that lists them, and the record of the result. Nothing here imports Dask."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from csstdask.core.atomic_io import flush_file, write_atomic
from csstdask.engine.ledger import OwnedObject

GROUP_SIZE = 32
"""Number of partials whose sum is one task. It decides rounding: changing it changes results."""
RECORD_VERSION = 1


@dataclass(frozen=True)
class Partial:
    """A file that a unit contributes to a reduction."""

    path: str
    """Path relative to the store."""
    sha256: str
    """SHA-256 of its content."""

    @property
    def line(self) -> bytes:
        """Return the line of the manifest that lists it."""
        return f"{self.sha256} {self.path}\n".encode()


@dataclass(frozen=True)
class Manifest:
    """The sorted partials of a reduction, in a text file with one line each: checksum and path."""

    path: Path
    count: int
    digest: str
    """SHA-256 of the list: the identity of all inputs."""

    @classmethod
    def write(cls, path: Path, partials: Iterable[Partial]) -> Manifest:
        """Write a list of partials, which must be sorted."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.partial")
        digest, count = hashlib.sha256(), 0
        with draft.open("wb") as stream:
            for partial in partials:
                digest.update(partial.line)
                stream.write(partial.line)
                count += 1
        flush_file(draft, path.parent)
        draft.replace(path)
        return cls(path, count, digest.hexdigest())

    @staticmethod
    def identity(partials: Iterable[Partial]) -> tuple[int, str]:
        """Return number and digest of a list of partials without writing it."""
        digest, count = hashlib.sha256(), 0
        for partial in partials:
            digest.update(partial.line)
            count += 1
        return count, digest.hexdigest()

    def groups(self, size: int = GROUP_SIZE) -> Iterator[tuple[Partial, ...]]:
        """Yield groups of partials, in order."""
        group: list[Partial] = []
        with self.path.open(encoding="utf-8") as lines:
            for line in lines:
                sha256, _, path = line.rstrip("\n").partition(" ")
                group.append(Partial(path, sha256))
                if len(group) == size:
                    yield tuple(group)
                    group = []
        if group:
            yield tuple(group)


def reduction_record_path(root: Path, name: str, detector: int | None) -> Path:
    """Return the file of the record of a reduction of one detector; None: of the whole campaign."""
    return root / "reductions" / name / f"{'all' if detector is None else detector}.json"


@dataclass(frozen=True)
class ReductionRecord:
    """Record of a reduction, written last."""

    fingerprint: str = ""
    """Fingerprint of its settings and all its inputs."""
    n_inputs: int = 0
    """Number of partials."""
    n_outdated: int = 0
    """Number of partials of other settings, which were left out."""
    passes: int = 0
    objects: tuple[OwnedObject, ...] = ()
    """Files that it wrote."""
    metrics: dict[str, float | int | None] = field(default_factory=dict)
    seconds: float = 0.0
    failure: str | None = None
    """Reason why there is no result; None unless the last attempt failed."""

    def is_current(self, root: Path, fingerprint: str, *, checksum: bool = False) -> bool:
        """Return whether the result of a fingerprint is recorded, with its objects on disk."""
        same = self.failure is None and self.fingerprint == fingerprint
        return same and all(item.is_intact(root, checksum=checksum) for item in self.objects)

    @classmethod
    def read(cls, path: Path) -> ReductionRecord:
        """Return a record; an empty one if there is none or it cannot be read."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data.pop("version") != RECORD_VERSION:
                return cls()
            objects = tuple(OwnedObject(**item) for item in data.pop("objects"))
            return cls(**data, objects=objects)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls()

    def write(self, path: Path) -> None:
        """Write the record atomically, after everything else."""
        data = asdict(self) | {"version": RECORD_VERSION}
        write_atomic(path, json.dumps(data, indent=1, sort_keys=True).encode())
