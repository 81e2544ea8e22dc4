"""Tables of a unit: Parquet files with units in the schema. Equal content gives equal bytes."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from csstdask.core.atomic_io import flush_file, write_atomic
from csstdask.core.errors import StoreError
from csstdask.store.schema import RENAMED_COLUMNS

# Units of columns, written into the schema.
COLUMN_UNITS = {
    "x": "pixel", "y": "pixel", "ra": "deg", "dec": "deg", "theta": "deg", "a": "pixel", "b": "pixel",
    "half_light_radius": "pixel", "area": "pixel",
    "flux": "electron s-1", "flux_err": "electron s-1", "flux_aperture": "electron s-1",
    "flux_aperture_err": "electron s-1", "peak": "electron s-1",
}  # fmt: skip
# Units of columns whose names have a different meaning in these tables.
_TABLE_UNITS = {
    "cosmic_rays": {
        "charge": "electron", "charge_err": "electron", "peak": "electron", "length": "pixel", "width": "pixel",
        "angle": "deg",
    },
    "straight_features": {"length": "pixel", "width": "pixel", "angle": "deg"},
    "psf_stars": {"size": "pixel", "model_size": "pixel"},
    "spectra": {
        "wavelength": "Angstrom", "rate": "electron s-1 Angstrom-1", "rate_err": "electron s-1 Angstrom-1",
        "background": "electron pixel-1", "column": "pixel", "row": "pixel", "shift": "pixel", "shift_err": "pixel",
        "shift_measured": "pixel", "shift_measured_err": "pixel", "y_offset": "pixel",
        "flux_5556": "erg s-1 cm-2 Angstrom-1", "flux_5556_err": "erg s-1 cm-2 Angstrom-1",
    },
    "detections": {"flux": "electron", "flux_err": "electron", "peak": "electron"},
    "catalogue": {
        "pmra": "mas yr-1", "pmdec": "mas yr-1",
        "flux_5556": "erg s-1 cm-2 Angstrom-1", "flux_5556_err": "erg s-1 cm-2 Angstrom-1",
    },
    "reference": {"pmra": "mas yr-1", "pmdec": "mas yr-1"},
    "telemetry": {
        "detector_temperature": "K", "focus": "um", "jitter": "arcsec", "earth_limb_angle": "deg", "sun_angle": "deg",
        "background": "electron s-1 pixel-1", "days_since_launch": "d", "contamination": "nm",
    },
    "truth_zp": {"zp": "mag"},
    "truth_spectra": {"flux_5556": "erg s-1 cm-2 Angstrom-1", "dispersion_shift": "pixel"},
}  # fmt: skip


def column_units(table: str) -> dict[str, str]:
    """Return the units of the columns of a table.

    Examples
    --------
    >>> column_units("detections")["flux"]
    'electron'
    """
    return COLUMN_UNITS | _TABLE_UNITS.get(table, {})


def table_path(root: Path, table: str, exposure: str, detector: int) -> Path:
    """Return the path of a table of a unit."""
    return root / "tables" / table / exposure / f"{detector}.parquet"


def unit_file_path(root: Path, name: str, exposure: str, detector: int) -> Path:
    """Return the path of a safetensors file of a unit."""
    return root / "files" / name / exposure / f"{detector}.safetensors"


def _as_table(columns: Mapping[str, npt.NDArray[Any]], units: Mapping[str, str] = COLUMN_UNITS) -> pa.Table:
    fields, arrays = [], []
    for name, values in columns.items():
        # Unknown values are null, not NaN: nulls are equal, so that tables can be compared.
        if values.ndim == 2:
            array = _lists(values)
        else:
            array = pa.array(values, type=pa.string() if values.dtype == object else None, from_pandas=True)
        metadata = {"unit": units[name]} if name in units else None
        fields.append(pa.field(name, array.type, metadata=metadata))
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _lists(values: npt.NDArray[Any]) -> pa.ListArray:
    """Return the rows of a matrix as lists, with null for unknown values."""
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(values).ravel(), from_pandas=True))


def write_table(path: Path, columns: Mapping[str, npt.NDArray[Any]], units: Mapping[str, str] = COLUMN_UNITS) -> None:
    """Write a table atomically.

    Parameters
    ----------
    path : Path
        File to write.
    columns : dict
        Columns (n,), or (n, m) for lists; NaN becomes null.
    units : dict
        Units of the columns.
    """
    buffer = io.BytesIO()
    pq.write_table(_as_table(columns, units), buffer, compression="zstd")
    write_atomic(path, buffer.getvalue())


def read_table(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read the columns of a table; null becomes NaN.

    Raises
    ------
    StoreError
        If the table is damaged.
    """
    table = read_arrow(path)
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}


def read_arrow(path: Path) -> pa.Table:
    """Read a table as an Arrow table, with the units of its columns; old columns get their present names.

    Raises
    ------
    StoreError
        If the table is damaged.
    """
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        reason = str(error).partition(".")[0]
        raise StoreError(
            f"{path}: found a damaged table ({reason}); wanted Parquet (run again with --verify)"
        ) from None
    renamed = RENAMED_COLUMNS.get(path.parts[-3], {}) if len(path.parts) > 2 else {}
    return table.rename_columns([renamed.get(name, name) for name in table.column_names]) if renamed else table


def is_complete_table(path: Path) -> bool:
    """Return whether a table exists and its footer is readable, which a torn file has not."""
    try:
        pq.read_metadata(path)
    except (OSError, pa.ArrowInvalid):
        return False
    return True


def write_table_parts(
    path: Path,
    parts: Iterable[Mapping[str, npt.NDArray[Any]]],
    units: Mapping[str, str] = COLUMN_UNITS,
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a table atomically in parts, so that it is never completely in memory.

    Parameters
    ----------
    path : Path
        File to write.
    parts : iterable of dict
        One or more parts with columns of the same names and types. Matrices become columns of lists.
    units : dict
        Units of the columns, stored in the schema.
    metadata : dict, optional
        Metadata of the schema.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.partial")
    tables = (_as_table(part, units).replace_schema_metadata(metadata) for part in parts)
    first = next(tables)
    with pq.ParquetWriter(draft, first.schema, compression="zstd") as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table)
    flush_file(draft, path.parent)
    draft.replace(path)
