"""Tables of a unit: one Parquet file each, with units in the schema; equal content gives equal bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from csstdask.durable import write_atomic

#: Units of columns, written into the schema.
COLUMN_UNITS = {
    "x": "pixel", "y": "pixel", "ra": "deg", "dec": "deg", "theta": "deg", "a": "pixel", "b": "pixel",
    "half_light_radius": "pixel", "area": "pixel",
    "flux": "electron s-1", "flux_err": "electron s-1", "flux_aperture": "electron s-1",
    "flux_aperture_err": "electron s-1", "peak": "electron s-1",
}  # fmt: skip


def table_path(root: Path, table: str, exposure: str, detector: int) -> Path:
    """Return the file of a unit's table."""
    return root / "tables" / table / exposure / f"{detector}.parquet"


def write_table(path: Path, columns: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a table, whole or not at all."""
    fields, arrays = [], []
    for name, values in columns.items():
        # "Not known" is null, not NaN: nulls are equal to each other, and tables can be compared.
        array = pa.array(values, type=pa.string() if values.dtype == object else None, from_pandas=True)
        metadata = {"unit": COLUMN_UNITS[name]} if name in COLUMN_UNITS else None
        fields.append(pa.field(name, array.type, metadata=metadata))
        arrays.append(array)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)), buffer, compression="zstd")
    write_atomic(path, buffer.getvalue())
