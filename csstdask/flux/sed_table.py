"""Read and write SEDs of stars as a Parquet table, the output of ``csstdask sed`` and input of ``run --spectra``.

Each star has one row: ``id``; ``mean`` and ``sigma`` relative to the mean flux density in 5526-5586 Angstrom;
``modes``, rank times as long, errors that are each fully correlated over wavelength, in the same unit;
``out_of_domain``. The wavelengths [Angstrom, vacuum] are JSON in the schema metadata, under ``wavelength``.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from csstdask.core.atomic_io import write_atomic
from csstdask.core.errors import InputError

Single = npt.NDArray[np.float32]

ROW_GROUP_SIZE = 64
"""Stars in a row group, the smallest unit that is read."""
_EXPECTED_TABLE = "a table that `csstdask sed` wrote (id, mean, sigma, modes, out_of_domain)"
_LISTS = ("mean", "sigma")


@dataclass(frozen=True)
class SedTable:
    """SEDs of n stars on one grid of m wavelengths.

    The covariance of a star is diag(sigma^2 - sum of modes^2) + modes^T modes: `sigma` is the total 1-sigma error.
    """

    id: npt.NDArray[np.object_]
    """(n,) Ids of the stars, as in the catalogue."""
    wavelength: npt.NDArray[np.float64]
    """(m,) Vacuum wavelengths [Angstrom]."""
    mean: Single
    """(n, m) SED relative to its mean flux density in 5526-5586 Angstrom."""
    sigma: Single
    """(n, m) 1 sigma, all errors included."""
    modes: Single
    """(n, rank, m) Errors that are each fully correlated over wavelength."""
    out_of_domain: npt.NDArray[np.bool_]
    """(n,) Spectra unlike those of the training: the errors may be too small."""

    def __len__(self) -> int:
        return len(self.id)

    @property
    def usable(self) -> npt.NDArray[np.bool_]:
        """(n,) Stars with finite and positive values that are not out of the domain."""
        finite = np.isfinite(self.mean).all(axis=1) & np.isfinite(self.sigma).all(axis=1)
        finite &= np.isfinite(self.modes).all(axis=(1, 2)) & (self.sigma >= 0).all(axis=1)
        return np.asarray(finite & (self.mean > 0).all(axis=1) & ~self.out_of_domain)


def check_seds(path: Path) -> None:
    """Raise InputError unless a file is a table of SEDs; only its schema is read."""
    _schema(path)


def _schema(path: Path) -> npt.NDArray[np.float64]:
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(path, f"no readable Parquet table ({type(error).__name__})", _EXPECTED_TABLE) from None
    absent = [name for name in ("id", *_LISTS) if name not in schema.names]
    if absent:
        raise InputError(path, f"no column {', '.join(absent)}", _EXPECTED_TABLE)
    try:
        wavelength = np.array(json.loads((schema.metadata or {})[b"wavelength"]), dtype=np.float64)
    except (KeyError, ValueError):
        raise InputError(path, "no wavelengths in the metadata of its schema", _EXPECTED_TABLE) from None
    if wavelength.ndim != 1 or len(wavelength) < 4 or np.any(np.diff(wavelength) <= 0):
        raise InputError(path, "wavelengths that do not ascend", _EXPECTED_TABLE)
    return wavelength


def read_seds(path: Path, ids: Collection[str] | None = None) -> SedTable:
    """Read SEDs.

    Parameters
    ----------
    path : Path
        Parquet file.
    ids : collection of str, optional
        Stars to read; ids that are not in the table are ignored. By default all stars.

    Raises
    ------
    InputError
        If the file is no table of SEDs, a list has another length than the grid, or an id occurs twice.
    """
    wavelength = _schema(path)
    m = len(wavelength)
    table = pq.read_table(path) if ids is None else _rows_of(path, ids)
    n = table.num_rows
    found = [str(value) for value in table["id"].to_pylist()]
    if len(set(found)) < n:
        twice = next(name for name in found if found.count(name) > 1)
        raise InputError(path, f"a duplicate id ({twice})", "each star once")

    def lists(name: str) -> Single:
        column = table[name].combine_chunks()
        lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
        length = m if name in _LISTS else int(lengths[0]) if n and lengths[0] == lengths[0] else m
        wrong = np.flatnonzero((lengths != length) | (length % m != 0))
        if len(wrong):
            wish = f"{m}" if name in _LISTS else f"{length}, as of the first star" if length % m == 0 else f"{m} a mode"
            raise InputError(path, f"{lengths[wrong[0]]} values of {name} for star {found[wrong[0]]}", wish)
        values = column.flatten().to_numpy(zero_copy_only=False)
        return np.asarray(values, dtype=np.float32).reshape(n, length // m, m)

    has_modes = "modes" in table.column_names
    outside = table["out_of_domain"].to_pylist() if "out_of_domain" in table.column_names else [False] * n
    return SedTable(
        id=np.array(found, dtype=object),
        wavelength=wavelength,
        mean=lists("mean").reshape(n, m),
        sigma=lists("sigma").reshape(n, m),
        modes=lists("modes") if has_modes else np.zeros((n, 0, m), dtype=np.float32),
        out_of_domain=np.array([bool(value) for value in outside], dtype=bool),
    )


def _rows_of(path: Path, ids: Collection[str]) -> pa.Table:
    """Return the rows of some stars; only their row groups are read."""
    with pq.ParquetFile(path) as file:
        names = file.read(columns=["id"])["id"].cast(pa.string())
        rows = pc.indices_nonzero(pc.is_in(names, value_set=pa.array(list(ids), type=pa.string()))).to_numpy()
        lengths = np.array([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)], dtype=int)
        first = np.cumsum(lengths) - lengths
        group = np.searchsorted(first, rows, side="right") - 1
        groups = np.unique(group)
        if not len(groups):
            return file.schema_arrow.empty_table()
        # Row numbers within the groups that are read: skipped groups shift later rows up.
        shift = np.cumsum(lengths[groups]) - lengths[groups] - first[groups]
        at = rows.astype(int) + shift[np.searchsorted(groups, group)]
        return file.read_row_groups(groups.tolist()).take(pa.array(at))


def write_seds(path: Path, seds: SedTable) -> None:
    """Write SEDs atomically; equal content gives equal bytes."""

    def lists(values: npt.NDArray[Any]) -> pa.Array:
        n = len(values)
        flat = np.ascontiguousarray(values, dtype=np.float32).reshape(n, -1)
        width = flat.shape[1]
        return pa.ListArray.from_arrays(np.arange(n + 1, dtype=np.int32) * width, pa.array(flat.ravel()))

    columns = {
        "id": pa.array([str(value) for value in seds.id], type=pa.string()),
        **{name: lists(getattr(seds, name)) for name in (*_LISTS, "modes")},
        "out_of_domain": pa.array(seds.out_of_domain, type=pa.bool_()),
    }
    table = pa.table(columns).replace_schema_metadata({"wavelength": json.dumps([float(w) for w in seds.wavelength])})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=ROW_GROUP_SIZE)
    write_atomic(path, sink.getvalue().to_pybytes())
