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
from csstdask.store.schema import ROWS_PER_CHUNK, ArraySpec
from csstdask.store.store_metadata import DAMAGE_ERRORS, damaged_file_error, group_path

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
