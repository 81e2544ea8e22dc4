"""Files that survive: written whole, flushed to disk, and only then given their name.

The two rooms that own files, the store and the engine's ledger, both write through these few functions.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path

_BLOCK = 1 << 22


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part.

    The order is what survives a kill: the bytes go to a temporary name in the same folder, are flushed to
    disk, take their final name in one rename, and the rename itself is flushed with the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def flush_file(path: Path, root: Path) -> None:
    """Flush a file that somebody else has written, and its folders up to a root, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    for folder in path.parents:
        flush_folder(folder)
        if folder == root:
            return


def flush_folder(path: Path) -> None:
    """Flush a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
