"""Create, open, grow and consolidate the Zarr arrays of a store.

Metadata belongs to the driver. It consolidates the metadata after each change, because readers must neither list
folders nor see an old length.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.core.array_spec import ArrayConfigParams

from csstdask.core.errors import StoreError
from csstdask.store.chunks import inner_chunk, shard_length
from csstdask.store.schema import READABLE_VERSIONS, ROWS_PER_CHUNK, SCHEMA_VERSION, ArraySpec

_WRITE_EMPTY: ArrayConfigParams = {"write_empty_chunks": True}
"""Chunks of fill values are written too, so that a missing chunk means that nothing was written."""


def _codecs(spec: ArraySpec) -> tuple[BytesBytesCodec, ...]:
    """Return the compressor of an array and a checksum, with which every reader notices a damaged chunk."""
    compressor: BytesBytesCodec = ZstdCodec(level=1)
    if spec.codec == "pixels":
        compressor = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")
    elif spec.codec == "mask":
        compressor = BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")
    return (compressor, Crc32cCodec())


def create_array(group: zarr.Group, spec: ArraySpec, sizes: Mapping[str, int], units: str | None = None) -> None:
    """Create one array of a store.

    Parameters
    ----------
    group : zarr.Group
        Group of the array.
    spec : ArraySpec
        Name, dimensions, type and codec.
    sizes : mapping
        Length of each dimension.
    units : str, optional
        Attribute ``units``.
    """
    shape = tuple(sizes[dim] for dim in spec.dims)
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None
    if spec.sharded:
        chunks = (1, 1, inner_chunk(shape[2]), inner_chunk(shape[3]))
        shards = (1, 1, shard_length(shape[2]), shard_length(shape[3]))
    elif spec.owned_chunk:
        chunks = (1, 1, *shape[2:])
    elif spec.detector_chunk:
        chunks = (1, *shape[1:])
    elif spec.dtype == "str" and spec.dims == ("exposure", "detector") and not spec.words:
        chunks = (1, max(shape[1], 1))  # headers are long: one exposure per chunk
    else:
        chunks = tuple(ROWS_PER_CHUNK if dim == "exposure" else max(sizes[dim], 1) for dim in spec.dims)
    attributes = dict(spec.attributes)
    if units is not None:
        attributes["units"] = units
    group.create_array(
        spec.name,
        shape=shape,
        chunks=chunks,
        shards=shards,
        dtype=str if spec.dtype == "str" else spec.dtype,
        fill_value=spec.fill,
        compressors=_codecs(spec),
        dimension_names=spec.dims,
        attributes=cast("Any", attributes),
    )


def get_array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """Return an array of a group, configured to write empty chunks.

    Raises
    ------
    StoreError
        If it is absent or its metadata is damaged.
    """
    if not path.is_dir():
        raise StoreError(f"{path}: found {'a file' if path.exists() else 'nothing'}; wanted a csstdask {kind}")
    if not (path / "zarr.json").exists():
        raise StoreError(f"{path}: found a folder without a Zarr group (no zarr.json); wanted a csstdask {kind}")
    if root_metadata(path) is None:
        raise _damaged(path / "zarr.json", "damaged metadata", kind, path)
    try:
        group = zarr.open_group(path, mode=mode, use_consolidated=False)  # type: ignore[arg-type]
    except _DAMAGE:
        raise _damaged(path / "zarr.json", "damaged metadata", kind, path) from None
    found = group.attrs.get("csstdask")
    if found != kind:
        raise StoreError(
            f"{path}: found {f'a csstdask {found}' if found else 'a foreign Zarr group'}; wanted a csstdask {kind}"
        )
    version = group.attrs.get("schema_version")
    if version not in READABLE_VERSIONS:
        raise StoreError(
            f"{path}: found schema version {version}; wanted {SCHEMA_VERSION} "
            f"(make the {kind} again with this version of csstdask, or read it with the one that wrote it)"
        )
    return group


ATTRIBUTES_COPY = "attributes.json"
"""A second copy of a run's attributes: settings, steps and selections survive damage to its ``zarr.json``."""


def root_metadata(path: Path) -> dict[str, Any] | None:
    """Return the content of a store's own ``zarr.json``; None if it cannot be read as that of a group."""
    try:
        content = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
    except ValueError:
        return None
    whole = isinstance(content, dict) and content.get("node_type") == "group"
    return content if whole and isinstance(content.get("attributes", {}), dict) else None


def _path_of(group: zarr.Group) -> Path:
    return Path(str(group.store_path.store).removeprefix("file://")) / group.path


def _kind_of(group: zarr.Group) -> str:
    return str(group.attrs.get("csstdask", "store"))


def read_attributes_copy(root: Path) -> dict[str, Any]:
    """Return the attributes of a run from their second copy; nothing where it has none that can be read."""
    try:
        content = json.loads((root / ATTRIBUTES_COPY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _damaged(file: Path, found: str, kind: str, root: Path) -> StoreError:
    """Return the error of a damaged file of a store, with what mends it."""
    kept = read_attributes_copy(root)
    as_before = f" --config {quote(str(root))} --steps {','.join(kept['steps'])}" if "steps" in kept else ""
    cures = {
        "run": f"csstdask run CAMPAIGN --to {quote(str(root))}{as_before} --verify",
        "campaign": "restore it from a copy, or ingest the files into a new campaign: csstdask ingest FITS... --to NEW",
    }
    cure = cures.get(kind, "make the store again")
    return StoreError(f"{file}: found {found}; wanted a whole csstdask {kind} ({cure})")


def damaged_file_error(group: zarr.Group, file: Path, found: str) -> StoreError:
    """Return the error of a damaged file of a store, with the command that mends it."""
    return _damaged(file, found, _kind_of(group), _path_of(group))


def damaged_arrays(root: Path) -> list[str]:
    """Return the arrays of a store whose own metadata is lost, cannot be read, or is not what the store says of them.

    The store's ``zarr.json`` holds a second copy of each (consolidated metadata).
    """
    copies = _consolidated(root)
    names = sorted({path.parent.name for path in root.glob("*/zarr.json")} | set(copies))
    return [name for name in names if not _is_whole(root, name, copies.get(name))]


def _is_whole(root: Path, name: str, copy: dict[str, Any] | None) -> bool:
    try:
        content = json.loads((root / name / "zarr.json").read_text(encoding="utf-8"))
        if copy is not None:
            return bool(content == copy)
        zarr.open_group(root, mode="r", use_consolidated=False)[name]
    except (OSError, *_DAMAGE):
        return False
    return True


def _consolidated(root: Path) -> dict[str, dict[str, Any]]:
    """Return the metadata of a store's arrays as consolidated; empty if there is none."""
    content = (root_metadata(root) if (root / "zarr.json").exists() else None) or {}
    try:
        entries = content["consolidated_metadata"]["metadata"]
        return {name: entry for name, entry in entries.items() if entry["node_type"] == "array"}
    except (KeyError, TypeError, AttributeError):
        return {}


def restore_metadata(root: Path) -> list[str]:
    """Write damaged metadata of arrays anew from the store's copy; return the arrays of which there is none.

    How the chunks of an array are encoded is known from its metadata alone: without it they are lost.
    """
    copies, lost = _consolidated(root), []
    for name in damaged_arrays(root):
        if name in copies:
            write_atomic(root / name / "zarr.json", json.dumps(copies[name], indent=2).encode())
        else:
            lost.append(name)
    return lost


def store_kind(path: Path) -> str | None:
    """Return what a store says it is: campaign, run or stamps; None for anything else."""
    try:
        kind = json.loads((path / "zarr.json").read_text())["attributes"]["csstdask"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(kind)


def refuse_inside_store(target: Path) -> None:
    """Raise StoreError for a target that lies in a Zarr store: stores are not nested."""
    for folder in (target, *target.absolute().parents):
        if (folder / "zarr.json").exists():
            raise StoreError(f"{target}: found a place inside the store {folder}; wanted one of its own")


def get_array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """Return an array of a group, set to write empty chunks."""
    try:
        array = group.get(name)
    except DAMAGE_ERRORS:
        raise damaged_file_error(group, group_path(group) / name / "zarr.json", "damaged metadata") from None
    if not isinstance(array, zarr.Array):
        raise StoreError(f"{group.store_path}: found no array {name}; wanted a complete store")
    return array.with_config(_WRITE_EMPTY)


def read_small(group: zarr.Group, name: str, selection: Any = ...) -> npt.NDArray[Any]:
    """Read an array whose chunks span units, such as a coordinate or a metric.

    Raises
    ------
    StoreError
        If a chunk of it is damaged.
    """
    array = get_array(group, name)
    try:
        return np.asarray(array[selection])
    except DAMAGE_ERRORS as error:
        found = f"a damaged chunk ({str(error).partition('.')[0]})"
        raise damaged_file_error(group, group_path(group) / name, found) from None


def array_names(root: Path) -> list[str]:
    """Return the names of the arrays of a group on disk. Zarr's listing would warn of ledger and tables."""
    return sorted(path.parent.name for path in root.glob("*/zarr.json") if b'"array"' in path.read_bytes())


def resize(root: Path, exposures: int) -> None:
    """Grow every array along the exposure axis; ``exposure`` itself last, because it defines the length."""
    group = zarr.open_group(root, mode="r+", use_consolidated=False)
    for name in sorted(array_names(root), key=lambda item: item == "exposure"):
        array = get_array(group, name)
        dims = array.metadata.dimension_names or ()  # type: ignore[union-attr]
        if dims and dims[0] == "exposure" and array.shape[0] < exposures:
            array.resize((exposures, *array.shape[1:]))


def consolidate(root: Path) -> None:
    """Write consolidated metadata. Warnings about the tables and the ledger inside the store are ignored."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Object at .* is not recognized as a component of a Zarr hierarchy")
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(root)
