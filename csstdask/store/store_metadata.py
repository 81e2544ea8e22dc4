"""Open the root group of a store, and detect and restore damaged metadata."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote
from typing import Any

import zarr

from csstdask.core.atomic_io import write_atomic
from csstdask.core.errors import StoreError
from csstdask.store.schema import READABLE_VERSIONS, SCHEMA_VERSION

DAMAGE_ERRORS = (ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError)
"""Exceptions that Zarr and its codecs raise for damaged metadata or chunks."""


def open_group(path: Path, kind: str, mode: str = "r") -> zarr.Group:
    """Open the root group of a store and check its kind and schema version.

    Parameters
    ----------
    path : Path
        Folder of the store.
    kind : str
        ``campaign``, ``run`` or ``stamps``.
    mode : str
        ``r`` or ``r+``.

    Raises
    ------
    StoreError
        If there is no Zarr group, its metadata is damaged, or its kind or schema version differs.
    """
    if not path.is_dir():
        raise StoreError(f"{path}: found {'a file' if path.exists() else 'nothing'}; wanted a csstdask {kind}")
    if not (path / "zarr.json").exists():
        raise StoreError(f"{path}: found a folder without a Zarr group (no zarr.json); wanted a csstdask {kind}")
    if root_metadata(path) is None:
        raise _damaged_error(path / "zarr.json", "damaged metadata", kind, path)
    try:
        group = zarr.open_group(path, mode=mode, use_consolidated=False)  # type: ignore[arg-type]
    except DAMAGE_ERRORS:
        raise _damaged_error(path / "zarr.json", "damaged metadata", kind, path) from None
    found = group.attrs.get("csstdask")
    if found != kind:
        raise StoreError(
            f"{path}: found {f'a csstdask {found}' if found else 'a foreign Zarr group'}; wanted a csstdask {kind}"
        )
    version = group.attrs.get("schema_version")
    if version not in READABLE_VERSIONS:
        raise StoreError(
            f"{path}: found schema version {version}; wanted {SCHEMA_VERSION} "
            f"(create the {kind} again with this version of csstdask, or read it with the version that wrote it)"
        )
    return group


ATTRIBUTES_COPY = "attributes.json"
"""File with a second copy of a run's attributes, in case its ``zarr.json`` is damaged."""


def root_metadata(path: Path) -> dict[str, Any] | None:
    """Return the content of the root ``zarr.json``; None if it does not describe a group."""
    try:
        content = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
    except ValueError:
        return None
    intact = isinstance(content, dict) and content.get("node_type") == "group"
    return content if intact and isinstance(content.get("attributes", {}), dict) else None


def group_path(group: zarr.Group) -> Path:
    """Return the folder of a group."""
    return Path(str(group.store_path.store).removeprefix("file://")) / group.path


def _kind_of(group: zarr.Group) -> str:
    return str(group.attrs.get("csstdask", "store"))


def read_attributes_copy(root: Path) -> dict[str, Any]:
    """Return the second copy of a run's attributes; empty if it is missing or unreadable."""
    try:
        content = json.loads((root / ATTRIBUTES_COPY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _damaged_error(file: Path, found: str, kind: str, root: Path) -> StoreError:
    """Return the error of a damaged file of a store, with the command that repairs it."""
    kept = read_attributes_copy(root)
    as_before = f" --config {quote(str(root))} --steps {','.join(kept['steps'])}" if "steps" in kept else ""
    cures = {
        "run": f"csstdask run CAMPAIGN --to {quote(str(root))}{as_before} --verify",
        "campaign": "restore it from a copy, or ingest the files into a new campaign: csstdask ingest FITS... --to NEW",
    }
    cure = cures.get(kind, "create the store again")
    return StoreError(f"{file}: found {found}; wanted an intact csstdask {kind} ({cure})")


def damaged_file_error(group: zarr.Group, file: Path, found: str) -> StoreError:
    """Return the error of a damaged file of a store, with the command that repairs it."""
    return _damaged_error(file, found, _kind_of(group), group_path(group))


def damaged_arrays(root: Path) -> list[str]:
    """Return the arrays of a store whose metadata is missing, unreadable, or differs from the consolidated copy."""
    copies = _consolidated_arrays(root)
    names = sorted({path.parent.name for path in root.glob("*/zarr.json")} | set(copies))
    return [name for name in names if not _is_intact(root, name, copies.get(name))]


def _is_intact(root: Path, name: str, copy: dict[str, Any] | None) -> bool:
    try:
        content = json.loads((root / name / "zarr.json").read_text(encoding="utf-8"))
        if copy is not None:
            return bool(content == copy)
        zarr.open_group(root, mode="r", use_consolidated=False)[name]
    except (OSError, *DAMAGE_ERRORS):
        return False
    return True


def _consolidated_arrays(root: Path) -> dict[str, dict[str, Any]]:
    """Return the consolidated metadata of a store's arrays; empty if there is none."""
    content = (root_metadata(root) if (root / "zarr.json").exists() else None) or {}
    try:
        entries = content["consolidated_metadata"]["metadata"]
        return {name: entry for name, entry in entries.items() if entry["node_type"] == "array"}
    except (KeyError, TypeError, AttributeError):
        return {}


def restore_metadata(root: Path) -> list[str]:
    """Restore damaged metadata of arrays from the consolidated copy.

    Returns
    -------
    list of str
        Arrays without a copy. Their chunks are lost, because only the metadata defines the encoding.
    """
    copies, lost = _consolidated_arrays(root), []
    for name in damaged_arrays(root):
        if name in copies:
            write_atomic(root / name / "zarr.json", json.dumps(copies[name], indent=2).encode())
        else:
            lost.append(name)
    return lost


def store_kind(path: Path) -> str | None:
    """Return the kind of a store: ``campaign``, ``run`` or ``stamps``; None for anything else."""
    try:
        kind = json.loads((path / "zarr.json").read_text())["attributes"]["csstdask"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(kind)


def refuse_inside_store(target: Path) -> None:
    """Raise StoreError if a target lies inside a Zarr store: stores are not nested."""
    for folder in (target, *target.absolute().parents):
        if (folder / "zarr.json").exists():
            raise StoreError(f"{target}: found a path inside the store {folder}; wanted one outside")
