"""The few things csstdask does with Zarr itself: create, grow, own a shard, consolidate.

Two rules hold everywhere. A worker writes only shards it owns, deletes the old shard first and writes the
new one whole: a torn shard of a killed run can then never be read back or block a write. Metadata belongs
to the driver, which consolidates it after each change, for readers must neither list folders nor see an
old length.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.core.array_spec import ArrayConfigParams

from csstdask.core.atomic_io import write_atomic
from csstdask.core.errors import StoreError
from csstdask.store.chunks import inner_chunk, shard_length
from csstdask.store.schema import ROWS_PER_CHUNK, SCHEMA_VERSION, ArraySpec

#: Writes of all-fill chunks are facts on disk, not absences.
_WRITE_EMPTY: ArrayConfigParams = {"write_empty_chunks": True}


#: What Zarr and its codecs raise for metadata or chunks that are torn.
_DAMAGE = (ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError)


def _codecs(spec: ArraySpec) -> tuple[BytesBytesCodec, ...]:
    """Return the compressor of an array, and a checksum: every reader notices a damaged chunk."""
    compressor: BytesBytesCodec = ZstdCodec(level=1)
    if spec.codec == "pixels":
        compressor = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")
    elif spec.codec == "mask":
        compressor = BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")
    return (compressor, Crc32cCodec())


def create_array(group: zarr.Group, spec: ArraySpec, sizes: Mapping[str, int], units: str | None = None) -> None:
    """Create one array of a store from its specification."""
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
        chunks = (1, max(shape[1], 1))  # a header is kilobytes: one exposure a chunk
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


def open_group(path: Path, kind: str, mode: str = "r") -> zarr.Group:
    """Open a store's root group and check that it is what it should be.

    Raises
    ------
    StoreError
        If there is no Zarr group, its metadata is damaged, it is no campaign or run, or its schema is another
        version's.
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
    if version != SCHEMA_VERSION:
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
    except _DAMAGE:
        raise damaged_file_error(group, _path_of(group) / name / "zarr.json", "damaged metadata") from None
    if not isinstance(array, zarr.Array):
        raise StoreError(f"{group.store_path}: found no array {name}; wanted a whole store")
    return array.with_config(_WRITE_EMPTY)


def read_small(group: zarr.Group, name: str, selection: Any = ...) -> npt.NDArray[Any]:
    """Read from an array whose chunks span units, such as a coordinate or a metric.

    Raises
    ------
    StoreError
        If a chunk of it is damaged.
    """
    array = get_array(group, name)
    try:
        return np.asarray(array[selection])
    except _DAMAGE as error:
        found = f"a damaged chunk ({str(error).partition('.')[0]})"
        raise damaged_file_error(group, _path_of(group) / name, found) from None


def array_names(root: Path) -> list[str]:
    """Return the arrays of a group, found on disk: Zarr's own listing warns of the ledger and the tables."""
    return sorted(path.parent.name for path in root.glob("*/zarr.json") if b'"array"' in path.read_bytes())


def resize(root: Path, exposures: int) -> None:
    """Grow every array along the exposure axis, the axis' own names last: they decide the length."""
    group = zarr.open_group(root, mode="r+", use_consolidated=False)
    for name in sorted(array_names(root), key=lambda item: item == "exposure"):
        array = get_array(group, name)
        dims = array.metadata.dimension_names or ()  # type: ignore[union-attr]
        if dims and dims[0] == "exposure" and array.shape[0] < exposures:
            array.resize((exposures, *array.shape[1:]))


def shard_path(root: Path, name: str, row: int, column: int, rank: int = 2) -> Path:
    """Return the file that unit ``(row, column)`` owns in array ``name``; `rank` is that of the unit's part."""
    return root.joinpath(name, "c", str(row), str(column), *["0"] * rank)


def write_shard(root: Path, name: str, row: int, column: int, values: npt.NDArray[Any]) -> Path:
    """Delete the shard of a unit, write it whole, and return its file."""
    path = shard_path(root, name, row, column, values.ndim)
    path.unlink(missing_ok=True)
    for stray in path.parent.glob("*.partial"):  # of a writer that was killed
        stray.unlink(missing_ok=True)
    group = zarr.open_group(root, mode="r+", use_consolidated=False)
    get_array(group, name)[row, column] = values
    return path


def write_detector_chunk(root: Path, name: str, column: int, values: npt.NDArray[Any]) -> Path:
    """Delete the chunk of a detector, write it whole, and return its file."""
    path = root.joinpath(name, "c", str(column), *["0"] * values.ndim)
    path.unlink(missing_ok=True)
    for stray in path.parent.glob("*.partial"):  # of a writer that was killed
        stray.unlink(missing_ok=True)
    group = zarr.open_group(root, mode="r+", use_consolidated=False)
    get_array(group, name)[column] = values
    return path


def rewrite_array(root: Path, name: str, values: npt.NDArray[Any]) -> list[Path]:
    """Delete all chunks of an array, write it whole, and return its files, sorted by name."""
    chunks = root / name / "c"
    shutil.rmtree(chunks, ignore_errors=True)
    group = zarr.open_group(root, mode="r+", use_consolidated=False)
    get_array(group, name)[...] = values
    return sorted(path for path in chunks.rglob("*") if path.is_file())


def read_shard(root: Path, name: str, row: int, column: int, rows: slice = slice(None)) -> npt.NDArray[Any]:
    """Read the shard or chunk of a unit, or some of its rows.

    Raises
    ------
    StoreError
        If it is not there (Zarr would return fill values), or is damaged.
    """
    array = get_array(zarr.open_group(root, mode="r", use_consolidated=False), name)
    check_shard(array, root, name, row, column)
    try:
        return np.asarray(array[row, column, rows])
    except _DAMAGE as error:
        path = shard_path(root, name, row, column, array.ndim - 2)
        reason = str(error).partition(".")[0]
        raise StoreError(f"{path}: found damaged pixels ({reason}); wanted those of {name}") from None


def check_shard(array: zarr.Array[Any], root: Path, name: str, row: int, column: int) -> None:
    """Raise StoreError if the shard of a unit is not on disk.

    Arrays that xarray has saved (`Dataset.to_zarr`) lack the shards that hold only the fill value. They are told by
    their attribute ``coordinates``, which xarray alone writes.
    """
    path = shard_path(root, name, row, column, array.ndim - 2)
    if not path.is_file() and "coordinates" not in array.attrs:
        raise StoreError(f"{path}: found no shard; wanted the pixels of {name}")
    if path.is_file() and path.stat().st_size == 0:  # Zarr would read fill values
        raise StoreError(f"{path}: found an empty file; wanted the pixels of {name}")


def consolidate(root: Path) -> None:
    """Write consolidated metadata; tables and ledger lie inside the store and are no concern of Zarr's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Object at .* is not recognized as a component of a Zarr hierarchy")
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(root)
