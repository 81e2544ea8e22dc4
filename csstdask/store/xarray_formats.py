"""Exchange with xarray and netCDF: units of time, and datasets that other formats can store."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from csstdask.core.errors import StoreError
from csstdask.store.schema import NO_TIME

if TYPE_CHECKING:
    import xarray as xr

# Units of time of a store, in microseconds.
_TIME_UNITS = {
    "days": 86_400_000_000, "hours": 3_600_000_000, "minutes": 60_000_000, "seconds": 1_000_000, "milliseconds": 1000,
    "microseconds": 1, "nanoseconds": 1e-3,
}  # fmt: skip


def decode_time(value: Any, attributes: dict[str, Any]) -> int:
    """Return a stored time in microseconds since 1970. Stores written by xarray may have other units.

    Examples
    --------
    >>> decode_time(1.5, {"units": "seconds since 1970-01-01"})
    1500000
    """
    if not np.isfinite(value) or value == attributes.get("_FillValue", NO_TIME):
        return NO_TIME
    start, scale = _time_units(attributes)
    exact = isinstance(value, np.integer) and isinstance(scale, int)
    return start + (int(value) * int(scale) if exact else round(float(value) * scale))


def encode_time(time: int, attributes: dict[str, Any]) -> int | float:
    """Return microseconds since 1970 in the time units of a store: the inverse of `decode_time`.

    Examples
    --------
    >>> encode_time(1500000, {"units": "seconds since 1970-01-01"})
    1.5
    """
    start, scale = _time_units(attributes)
    if (start, scale) == (0, 1):
        return time
    return float("nan") if time == NO_TIME else (time - start) / scale


def _time_units(attributes: dict[str, Any]) -> tuple[int, float]:
    """Return the origin [microseconds since 1970] and the unit [microsecond] of the times of a store."""
    units = str(attributes.get("units", "microseconds since 1970-01-01"))
    found = re.fullmatch(r"(\w+) since (\d{4}-\d\d-\d\d)(?:[ T](\d\d:\d\d:\d\d(?:\.\d+)?))?", units)
    if found is None or found[1] not in _TIME_UNITS:
        raise StoreError(f"time: found {units!r}; wanted microseconds since 1970-01-01")
    start = np.datetime64(f"{found[2]}T{found[3] or '00:00:00'}", "us").astype(np.int64)
    return int(start), _TIME_UNITS[found[1]]


_TEXT = np.dtype("O", metadata={"element_type": str})
"""Python strings, marked so that xarray need not inspect the values before it writes them."""


def make_portable(dataset: xr.Dataset) -> xr.Dataset:
    """Return a dataset that netCDF and other formats can store and that `where` can mask.

    Text becomes Python objects, and attributes that are neither text nor numbers become JSON text. Times are stored as
    seconds in double precision, because netCDF 3 has no 64-bit integers.
    """
    text = {name: dataset[name].astype(_TEXT) for name in dataset.variables if dataset[name].dtype.kind in "TO"}
    dataset = dataset.assign({name: values for name, values in text.items() if name in dataset.data_vars})
    dataset = dataset.assign_coords({name: values for name, values in text.items() if name in dataset.coords})
    for name in text:
        dataset[name].encoding = {}
    if "time" in dataset.variables:
        dataset["time"].encoding = {"units": "seconds since 1970-01-01", "dtype": "float64"}
    for key, value in dataset.attrs.items():
        if not _is_plain(value):
            dataset.attrs[key] = json.dumps(value)
    return dataset


def _is_plain(value: object) -> bool:
    """Return whether an attribute is text, a number, or a list of numbers."""
    return isinstance(value, str | int | float) or (
        isinstance(value, list) and len(value) > 0 and all(isinstance(item, int | float) for item in value)
    )
