"""Read and write the shards and chunks that a unit or a detector owns.

A worker writes only shards it owns. It deletes the old shard first and writes the new one completely, so that a shard
torn by an interruption can never be read back and never blocks a write.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from csstdask.core.errors import StoreError
from csstdask.store.store_metadata import DAMAGE_ERRORS
from csstdask.store.zarr_arrays import get_array


def shard_path(root: Path, name: str, row: int, column: int, rank: int = 2) -> Path:
    """Return the file of a unit in an array.

    Parameters
    ----------
    root : Path
        Folder of the store.
    name : str
        Name of the array.
    row, column : int
        Indices of the unit.
    rank : int
        Number of dimensions of the unit's part.
    """
    return root.joinpath(name, "c", str(row), str(column), *["0"] * rank)


def write_shard(root: Path, name: str, row: int, column: int, values: npt.NDArray[Any]) -> Path:
    """Replace the shard of a unit and return its file."""
    path = shard_path(root, name, row, column, values.ndim)
    path.unlink(missing_ok=True)
    for stray in path.parent.glob("*.partial"):  # left by an interrupted writer
        stray.unlink(missing_ok=True)
    group = zarr.open_group(root, mode="r+", use_consolidated=False)
    get_array(group, name)[row, column] = values
    return path


def write_detector_chunk(root: Path, name: str, column: int, values: npt.NDArray[Any]) -> Path:
    """Replace the chunk of a detector and return its file."""
    path = root.joinpath(name, "c", str(column), *["0"] * values.ndim)
    path.unlink(missing_ok=True)
    for stray in path.parent.glob("*.partial"):  # left by an interrupted writer
        stray.unlink(missing_ok=True)
    group = zarr.open_group(root, mode="r+", use_consolidated=False)
    get_array(group, name)[column] = values
    return path


def rewrite_array(root: Path, name: str, values: npt.NDArray[Any]) -> list[Path]:
    """Replace all chunks of an array and return its files, sorted by name."""
    chunks = root / name / "c"
    shutil.rmtree(chunks, ignore_errors=True)
    group = zarr.open_group(root, mode="r+", use_consolidated=False)
    get_array(group, name)[...] = values
    return sorted(path for path in chunks.rglob("*") if path.is_file())


def read_shard(root: Path, name: str, row: int, column: int, rows: slice = slice(None)) -> npt.NDArray[Any]:
    """Read the shard or chunk of a unit, or a range of its rows.

    Raises
    ------
    StoreError
        If it is missing, where Zarr would return fill values, or damaged.
    """
    array = get_array(zarr.open_group(root, mode="r", use_consolidated=False), name)
    check_shard(array, root, name, row, column)
    try:
        return np.asarray(array[row, column, rows])
    except DAMAGE_ERRORS as error:
        path = shard_path(root, name, row, column, array.ndim - 2)
        reason = str(error).partition(".")[0]
        raise StoreError(f"{path}: found damaged pixels ({reason}); wanted intact pixels of {name}") from None


def check_shard(array: zarr.Array[Any], root: Path, name: str, row: int, column: int) -> None:
    """Raise StoreError if the shard of a unit is missing or empty.

    Arrays written by `xarray.Dataset.to_zarr` lack the shards that contain only fill values. They are recognised by the
    attribute ``coordinates``, which only xarray writes.
    """
    path = shard_path(root, name, row, column, array.ndim - 2)
    if not path.is_file() and "coordinates" not in array.attrs:
        raise StoreError(f"{path}: found no shard; wanted the pixels of {name}")
    if path.is_file() and path.stat().st_size == 0:  # Zarr would read fill values
        raise StoreError(f"{path}: found an empty file; wanted the pixels of {name}")
