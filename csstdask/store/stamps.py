"""A stamp set: cut-outs round the sources of mock units, one Zarr group over ``(exposure, detector, stamp, y, x)``.

It is for training and tests, and no campaign: nothing runs on it. What is known of each stamp (where it lies, the
truth of its source) is beside it over ``(exposure, detector, stamp)``; the clean twin, the cosmic ray and the PSF are
in the child group ``truth``. A unit owns one chunk of each array; ``n_stamps`` says how many it filled and is written
last, by the driver: -1 for a unit that was never finished.
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
from csstdask.store.zarr_arrays import consolidate, create_array, get_array, open_group, write_shard

STAMP_DIMS = (*UNIT_DIMS, "stamp", "y", "x")
PSF_DIMS = (*UNIT_DIMS, "stamp", "v", "u")
#: Half pixels along the edge of a PSF.
PSF_SIZE = 64
_NOT_YET = -1


def _specs(columns: Mapping[str, str]) -> list[tuple[ArraySpec, str | None]]:
    rate, weight = "electron s-1", "electron-2 s2"
    pixels = [
        (ArraySpec("sci", STAMP_DIMS, "float32", float("nan")), rate),
        (ArraySpec("wht", STAMP_DIMS, "float32", 0.0), weight),
        (ArraySpec("flag", STAMP_DIMS, "int32", 0, "mask"), None),
    ]
    known = [
        (ArraySpec(name, (*UNIT_DIMS, "stamp"), "float64", float("nan"), "table"), unit or None)
        for name, unit in columns.items()
    ]
    of_units = [
        (ArraySpec("n_stamps", UNIT_DIMS, "int32", _NOT_YET, "table"), None),
        (ArraySpec("band", UNIT_DIMS, "str", "", "table"), None),
        (ArraySpec("gain", UNIT_DIMS, "float64", float("nan"), "table"), "electron adu-1"),
        (ArraySpec("read_noise", UNIT_DIMS, "float64", float("nan"), "table"), "electron"),
        (ArraySpec("exptime", ("exposure",), "float64", float("nan"), "table"), "s"),
        (ArraySpec("epoch", ("exposure",), "float64", float("nan"), "table"), "yr"),
        (ArraySpec("exposure", ("exposure",), "str", "", "table"), None),
        (ArraySpec("detector", ("detector",), "int32", -1, "table"), None),
    ]
    return [*pixels, *known, *of_units]


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
    instrument : Instrument
    identity : str
        Of the recipe: a set made with another is refused by `check_stamps_identity`.
    exposures : dict
        Id: (exposure time [s], epoch [years after launch]).
    detectors : sequence of int
    per_unit : int
        Most stamps of a unit.
    size : int
        Of a stamp [pixel].
    columns : dict
        What is told of each stamp: name and unit.
    with_psf : bool
        Whether the truth has PSFs.
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
    """Raise InputError if a stamp set was made with another recipe."""
    if open_group(path, "stamps").attrs["identity"] != identity:
        raise InputError(path, "stamps of another recipe", "a new name for this recipe")


def finished_units(path: Path) -> npt.NDArray[np.bool_]:
    """Return which units are done (exposure, detector)."""
    return np.asarray(get_array(open_group(path, "stamps"), "n_stamps")[...]) != _NOT_YET


def write_unit_stamps(path: Path, row: int, column: int, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write the stamps of a unit, padded to the room there is: a worker's part, flushed to disk."""
    group = open_group(path, "stamps")
    for name, values in arrays.items():
        array = get_array(group, name)
        padded = np.full(array.shape[2:], array.fill_value, dtype=array.dtype)
        padded[: len(values)] = values
        flush_file(write_shard(path, name, row, column, padded), path)


def record_stamps(path: Path, row: int, column: int, n: int) -> None:
    """Record that a unit is done: the driver's part."""
    get_array(open_group(path, "stamps", "r+"), "n_stamps")[row, column] = n


def open_stamps(path: str | Path) -> xr.Dataset:
    """Open a stamp set, lazily; its truth is in the variables ``truth_sci``, ``truth_cr`` and perhaps ``truth_psf``.

    Raises
    ------
    StoreError
        If there is none.
    """
    root = Path(path)
    open_group(root, "stamps")
    truth = xr.open_zarr(root, group="truth", chunks={})
    return xr.open_zarr(root, chunks={}).assign({f"truth_{name}": truth[name] for name in truth.data_vars})
