"""Read, write and check the pixel planes of one unit."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.core.atomic_io import flush_file
from csstdask.core.errors import StoreError
from csstdask.store.schema import CAMPAIGN_PIXELS
from csstdask.store.shards import check_shard, read_shard, write_shard
from csstdask.store.store_metadata import open_group
from csstdask.store.zarr_arrays import get_array, read_small


def write_unit_pixels(path: Path, row: int, column: int, name: str, values: npt.NDArray[Any]) -> None:
    """Write one plane of a unit and flush it to disk. Called by the worker that owns the unit."""
    flush_file(write_shard(path, name, row, column, values), path)


def read_unit_pixels(path: Path, row: int, column: int, name: str) -> npt.NDArray[Any]:
    """Read one plane of a unit.

    Raises
    ------
    StoreError
        If the plane is lost or damaged. The message names the file and the command that restores the unit.
    """
    try:
        values = read_shard(path, name, row, column)
    except StoreError as error:
        raise StoreError(f"{error} ({_recovery_command(path, row, column)})") from None
    dtype = _PLANE_DTYPES.get(name, values.dtype)  # xarray stores flags as floats after `where`
    return values if values.dtype == dtype else np.nan_to_num(values, nan=0.0).astype(dtype)


_PLANE_DTYPES = {spec.name: np.dtype(spec.dtype) for spec in CAMPAIGN_PIXELS}


def check_unit_pixels(path: Path, row: int, column: int) -> None:
    """Check that each plane of a unit has a shard that is not empty.

    Raises
    ------
    StoreError
        If one has not: xarray would read fill values there.
    """
    group = open_group(path, "campaign")
    try:
        for spec in CAMPAIGN_PIXELS:
            check_shard(get_array(group, spec.name), path, spec.name, row, column)
    except StoreError as error:
        raise StoreError(f"{error} ({_recovery_command(path, row, column)})") from None


def _recovery_command(path: Path, row: int, column: int) -> str:
    """Return the command that restores a unit of a campaign."""
    group, campaign = open_group(path, "campaign"), quote(str(path))
    source = str(read_small(group, "source", (row, column)).item())
    if source.startswith("mock "):
        return f"delete it and run: csstdask mock RECIPE --to {campaign}"
    folder = Path(str(read_small(group, "source_folder", (row, column)).item()) if "source_folder" in group else "")
    files = " ".join(quote(str(folder / name)) for name in source.split()) or "FITS"
    return f"run: csstdask ingest {files} --to {campaign} --supersede"
