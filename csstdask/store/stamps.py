"""Stamp sets: cut-outs of the sources of mock units, over ``(exposure, detector, stamp, y, x)``.

Stamp sets are for training and tests; a run does not process them. Position and truth of each source are arrays over
``(exposure, detector, stamp)``. The frame without cosmic rays, their charge and the PSF are in the child group
``truth``. A unit owns one chunk of each array. ``n_stamps``, the number of stamps, is written last by the driver; it is
-1 for unfinished units.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr

from csstdask.core.atomic_io import flush_file
from csstdask.core.errors import InputError
from csstdask.instrument import Instrument
from csstdask.store.schema import SCHEMA_VERSION, UNIT_DIMS, ArraySpec
from csstdask.store.shards import write_shard
from csstdask.store.store_metadata import open_group
from csstdask.store.zarr_arrays import consolidate, create_array, get_array

STAMP_DIMS = (*UNIT_DIMS, "stamp", "y", "x")
PSF_DIMS = (*UNIT_DIMS, "stamp", "v", "u")
PSF_SIZE = 64
"""Side length of a PSF image [half pixel]."""
_UNFINISHED = -1
"""Value of ``n_stamps`` of units that are not finished."""


def _specs(columns: Mapping[str, str]) -> list[tuple[ArraySpec, str | None]]:
    rate, weight = "electron s-1", "electron-2 s2"
    pixels = [
        (ArraySpec("sci", STAMP_DIMS, "float32", float("nan")), rate),
        (ArraySpec("wht", STAMP_DIMS, "float32", 0.0), weight),
        (ArraySpec("flag", STAMP_DIMS, "int32", 0, "mask"), None),
    ]
    source_columns = [
        (ArraySpec(name, (*UNIT_DIMS, "stamp"), "float64", float("nan"), "table"), unit or None)
        for name, unit in columns.items()
    ]
    unit_columns = [
        (ArraySpec("n_stamps", UNIT_DIMS, "int32", _UNFINISHED, "table"), None),
        (ArraySpec("band", UNIT_DIMS, "str", "", "table"), None),
        (ArraySpec("gain", UNIT_DIMS, "float64", float("nan"), "table"), "electron adu-1"),
        (ArraySpec("read_noise", UNIT_DIMS, "float64", float("nan"), "table"), "electron"),
        (ArraySpec("exptime", ("exposure",), "float64", float("nan"), "table"), "s"),
        (ArraySpec("epoch", ("exposure",), "float64", float("nan"), "table"), "yr"),
        (ArraySpec("exposure", ("exposure",), "str", "", "table"), None),
        (ArraySpec("detector", ("detector",), "int32", -1, "table"), None),
    ]
    return [*pixels, *source_columns, *unit_columns]


def create_stamps(
    path: Path,
    instrument: Instrument,
    *,
    identity: str,
    exposures: Mapping[str, tuple[float, float]],
    detectors: Sequence[int],
    per_unit: int,
    size: int,
    columns: Mapping[str, str],
    with_psf: bool,
) -> None:
    """Create an empty stamp set.

    Parameters
    ----------
    path : Path
        Folder to create.
    instrument : Instrument
        Camera; its complete description is stored.
    identity : str
        Identity of the recipe; `check_stamps_identity` refuses a set of another recipe.
    exposures : dict
        Exposure id to (exposure time [s], years after launch).
    detectors : sequence of int
        Detector ids.
    per_unit : int
        Largest number of stamps per unit.
    size : int
        Side length of a stamp [pixel].
    columns : dict
        Name and unit of each column of the sources.
    with_psf : bool
        Whether the truth contains PSFs.
    """
    sizes = {"exposure": len(exposures), "detector": len(detectors), "stamp": per_unit, "y": size, "x": size}
    sizes |= {"v": PSF_SIZE, "u": PSF_SIZE}
    draft = path.with_name(f".{path.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    group = zarr.create_group(draft)
    for spec, unit in _specs(columns):
        create_array(group, spec, sizes, unit)
    truth = group.require_group("truth")
    create_array(truth, ArraySpec("sci", STAMP_DIMS, "float32", float("nan")), sizes, "electron s-1")
    create_array(truth, ArraySpec("cr", STAMP_DIMS, "float32", 0.0), sizes, "electron")
    if with_psf:
        create_array(truth, ArraySpec("psf", PSF_DIMS, "float32", float("nan")), sizes)
    get_array(group, "exposure")[:] = np.array(list(exposures), dtype=object)
    get_array(group, "detector")[:] = np.array(detectors, dtype=np.int32)
    get_array(group, "exptime")[:] = np.array([value[0] for value in exposures.values()])
    get_array(group, "epoch")[:] = np.array([value[1] for value in exposures.values()])
    for column, detector in enumerate(detectors):
        values = instrument.values(detector)
        get_array(group, "band")[:, column] = np.full(len(exposures), instrument.detector(detector).band, dtype=object)
        get_array(group, "gain")[:, column] = values.gain or 1.0
        get_array(group, "read_noise")[:, column] = values.read_noise or 0.0
    coordinates = [*columns, "n_stamps", "band", "gain", "read_noise", "exptime", "epoch"]
    group.attrs.update(
        {
            "csstdask": "stamps",
            "schema_version": SCHEMA_VERSION,
            "coordinates": " ".join(coordinates),
            "identity": identity,
            "instrument": json.loads(instrument.model_dump_json(exclude_none=True)),
        }
    )
    consolidate(draft)
    draft.rename(path)


def check_stamps_identity(path: Path, identity: str) -> None:
    """Raise InputError if a stamp set belongs to another recipe."""
    if open_group(path, "stamps").attrs["identity"] != identity:
        raise InputError(path, "stamps of another recipe", "a new name for this recipe")


def finished_units(path: Path) -> npt.NDArray[np.bool_]:
    """Return which units are finished, a bool array (exposure, detector)."""
    return np.asarray(get_array(open_group(path, "stamps"), "n_stamps")[...]) != _UNFINISHED


def write_unit_stamps(path: Path, row: int, column: int, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write the stamps of a unit, padded to the array, and flush them to disk. Called by the worker."""
    group = open_group(path, "stamps")
    for name, values in arrays.items():
        array = get_array(group, name)
        padded = np.full(array.shape[2:], array.fill_value, dtype=array.dtype)
        padded[: len(values)] = values
        flush_file(write_shard(path, name, row, column, padded), path)


def record_stamps(path: Path, row: int, column: int, n: int) -> None:
    """Record the number of stamps of a finished unit. Called by the driver."""
    get_array(open_group(path, "stamps", "r+"), "n_stamps")[row, column] = n


def open_stamps(path: str | Path) -> xr.Dataset:
    """Open a stamp set as a lazy dataset, with its truth as ``truth_sci``, ``truth_cr`` and ``truth_psf``.

    Parameters
    ----------
    path : path
        Folder of the stamp set.

    Returns
    -------
    xarray.Dataset
        ``truth_psf`` is absent in sets without PSFs.

    Raises
    ------
    StoreError
        If there is no stamp set.

    Examples
    --------
    >>> stamps = open_stamps("psf.zarr")  # doctest: +SKIP
    >>> stamps.sel(detector=13).isel(exposure=0, stamp=slice(0, 100))["truth_psf"]  # doctest: +SKIP
    """
    root = Path(path)
    open_group(root, "stamps")
    truth = xr.open_zarr(root, group="truth", chunks={})
    return xr.open_zarr(root, chunks={}).assign({f"truth_{name}": truth[name] for name in truth.data_vars})
