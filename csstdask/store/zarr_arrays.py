"""The few things csstdask does with Zarr itself: create, grow, own a shard, consolidate.

Two rules hold everywhere. A worker writes only shards it owns, deletes the old shard first and writes the
new one whole: a torn shard of a killed run can then never be read back or block a write. Metadata belongs
to the driver, which consolidates it after each change, for readers must neither list folders nor see an
old length.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, ZstdCodec
from zarr.core.array_spec import ArrayConfigParams

from csstdask.errors import StoreError
from csstdask.store.chunks import inner_chunk, shard_length
from csstdask.store.schema import ROWS_PER_CHUNK, SCHEMA_VERSION, ArraySpec

#: Writes of all-fill chunks are facts on disk, not absences.
_WRITE_EMPTY: ArrayConfigParams = {"write_empty_chunks": True}


def _compressor(spec: ArraySpec) -> BloscCodec | ZstdCodec:
    if spec.codec == "pixels":
        return BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")
    if spec.codec == "mask":
        return BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")
    return ZstdCodec(level=1)


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
    elif spec.dtype == "str" and spec.dims == ("exposure", "detector"):
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
        compressors=_compressor(spec),
        dimension_names=spec.dims,
        attributes=cast("Any", attributes),
    )


def open_group(path: Path, kind: str, mode: str = "r") -> zarr.Group:
    """Open a store's root group and check that it is what it should be.

    Raises
    ------
    StoreError
        If there is no Zarr group, it is no campaign or run, or its schema is another version's.
    """
    if not path.is_dir():
        raise StoreError(f"{path}: found {'a file' if path.exists() else 'nothing'}; wanted a csstdask {kind}")
    try:
        group = zarr.open_group(path, mode=mode, use_consolidated=False)  # type: ignore[arg-type]
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise StoreError(f"{path}: found a folder without a Zarr group ({error}); wanted a csstdask {kind}") from None
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
    array = group.get(name)
    if not isinstance(array, zarr.Array):
        raise StoreError(f"{group.store_path}: found no array {name}; wanted a whole store")
    return array.with_config(_WRITE_EMPTY)


def array_names(root: Path) -> list[str]:
    """Return the arrays of a group, found on disk: Zarr's own listing warns of the ledger and the tables."""
    return sorted(path.parent.name for path in root.glob("*/zarr.json") if '"array"' in path.read_text())


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


def read_shard(root: Path, name: str, row: int, column: int, rows: slice = slice(None)) -> npt.NDArray[Any]:
    """Read the shard of a unit, or some of its rows.

    Raises
    ------
    StoreError
        If it is not there: Zarr would give fill values, and nobody would know.
    """
    path = shard_path(root, name, row, column)
    if not path.is_file():
        raise StoreError(f"{path}: found no shard; wanted the pixels of {name} (ingest or run the unit again)")
    group = zarr.open_group(root, mode="r", use_consolidated=False)
    return np.asarray(get_array(group, name)[row, column, rows])


def consolidate(root: Path) -> None:
    """Write consolidated metadata; tables and ledger lie inside the store and are no concern of Zarr's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Object at .* is not recognized as a component of a Zarr hierarchy")
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(root)
