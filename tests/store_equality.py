"""Two stores are equal when all their arrays, tables and files are; arrays and files bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import xarray as xr


def arrays(path: Path) -> dict[str, np.ndarray]:
    dataset = xr.open_zarr(path, decode_cf=False)
    return {str(name): dataset[name].values for name in dataset.variables}


def tables(path: Path) -> dict[str, object]:
    folder = path / "tables"
    return {p.relative_to(folder).as_posix(): pq.read_table(p) for p in sorted(folder.rglob("*.parquet"))}


def files(path: Path) -> dict[str, bytes]:
    folder = path / "files"
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.*"))}


def differences(first: Path, second: Path) -> list[str]:
    """Return the names of what differs."""
    a, b = arrays(first), arrays(second)
    wrong = sorted(set(a) ^ set(b))
    for name in set(a) & set(b):
        same_type = a[name].dtype == b[name].dtype and a[name].shape == b[name].shape
        if a[name].dtype.kind in "fiub":
            same = same_type and a[name].tobytes() == b[name].tobytes()
        else:
            same = same_type and (a[name] == b[name]).all()
        if not same:
            wrong.append(name)
    left, right = tables(first), tables(second)
    wrong += sorted(set(left) ^ set(right))
    wrong += [name for name in set(left) & set(right) if not left[name].equals(right[name])]
    left_files, right_files = files(first), files(second)
    wrong += sorted(set(left_files) ^ set(right_files))
    wrong += [name for name in set(left_files) & set(right_files) if left_files[name] != right_files[name]]
    return wrong
