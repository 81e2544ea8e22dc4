"""Atomic writes: files are written completely, flushed to disk and only then renamed to their final name.

The store and the ledger of the engine write all their files with these functions.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path

#: Number of bytes that are read at once.
_BLOCK_SIZE = 1 << 22


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file such that readers see either the old or the new content, never a part.

    The order of operations makes this hold even if the process is killed: the bytes are written to a temporary file in
    the same folder and flushed to disk, the file is renamed in one operation, and the rename is flushed with the
    folder.
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
    """Flush a file that another library has written, and its folders up to a root, to disk."""
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
    """Flush the entries of a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of the content of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_SIZE):
            digest.update(block)
    return digest.hexdigest()
