"""Raw FITS files in xarray: ``xr.open_dataset("frame.fits", engine="csst")``.

The lazy dataset has the form of a campaign. Planes, units and coordinates follow the rules of an ingest. Only the
pixels that are used are read.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from csstdask.core.errors import CsstdaskError, InputError
from csstdask.instrument import Instrument, footprint, load_instrument, power_of_units
from csstdask.store.campaign_creation import flag_attributes
from csstdask.store.fits_planes import Window, read_flag, read_headers, read_sci, read_weight
from csstdask.store.fits_recognise import recognise_file
from csstdask.store.fits_scan import scan_file
from csstdask.store.fits_unit import UnitSource
from csstdask.store.schema import CAMPAIGN_COORDINATES, NO_TIME, PIXEL_DIMS, UNIT_DIMS
from csstdask.store.unit_metadata import FOOTPRINT

Grid = dict[tuple[int, int], UnitSource]
"""Units of a file by (exposure, detector) index."""


class CsstBackend(BackendEntrypoint):
    """xarray backend for FITS files of known cameras."""

    description = "FITS frames of known cameras, in the form of a campaign"
    url = "https://csstdask.readthedocs.io"
    open_dataset_parameters = ("filename_or_obj", "drop_variables", "instrument")

    def open_dataset(  # type: ignore[override]
        self,
        filename_or_obj: str | os.PathLike[Any],
        *,
        drop_variables: str | Iterable[str] | None = None,
        instrument: str | Path | Instrument | None = None,
    ) -> xr.Dataset:
        """Open a FITS file as a lazy dataset.

        Parameters
        ----------
        filename_or_obj : path
            FITS file; in a layout of separate files, the science file.
        drop_variables : str or iterable of str, optional
            Variables to drop.
        instrument : str, path or Instrument, optional
            Camera: a built-in name or a TOML file; default: recognised from the headers.

        Returns
        -------
        xarray.Dataset
            ``sci``, ``wht``, ``flag`` over (exposure, detector, y, x), with the coordinates of a campaign.

        Raises
        ------
        InputError
            If the file cannot be used, or its camera is unknown.

        Examples
        --------
        >>> frame = xr.open_dataset("raw.fits", engine="csst")  # doctest: +SKIP
        >>> frame["sci"].isel(y=slice(100, 200)).values  # doctest: +SKIP
        """
        path = Path(filename_or_obj)
        camera = instrument if isinstance(instrument, Instrument) else _camera(path, instrument)
        found = scan_file(path, camera)
        if not found.units:
            raise found.problems[0] if found.problems else InputError(path, "no science image", "at least one")
        for problem in found.problems:
            warnings.warn(f"left out: {problem}", stacklevel=2)
        dropped = {drop_variables} if isinstance(drop_variables, str) else set(drop_variables or ())
        return _dataset(path, found.units, camera).drop_vars(dropped, errors="ignore")

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Return whether this is a FITS file of exactly one known camera."""
        try:
            path = Path(filename_or_obj)
            return ".fit" in path.name.lower() and len(recognise_file(path)) == 1
        except (CsstdaskError, TypeError, OSError):
            return False


def _camera(path: Path, given: str | Path | None) -> Instrument:
    """Return the given camera, or the one that the headers identify."""
    if given is not None:
        return load_instrument(given)
    names = recognise_file(path)
    if len(names) != 1:
        found = f"headers of {', '.join(names)}" if names else "no known camera"
        raise InputError(path, found, "instrument= with the name of one, or a TOML")
    return load_instrument(names[0])


def _dataset(path: Path, units: list[UnitSource], camera: Instrument) -> xr.Dataset:
    """Return the units of a file as a dataset over (exposure, detector, y, x)."""
    first = units[0]
    for unit in units:
        if (unit.shape, unit.units) != (first.shape, first.units):
            found = f"frames of {first.shape} in {first.units} and of {unit.shape} in {unit.units}"
            raise InputError(path, found, "one shape and unit (csstdask ingest copies each into a separate campaign)")
    exposures = list(dict.fromkeys(unit.exposure for unit in units))
    detectors = sorted({unit.detector for unit in units})
    grid = {(exposures.index(unit.exposure), detectors.index(unit.detector)): unit for unit in units}
    shape = (len(exposures), len(detectors), *first.shape)
    coordinates: dict[str, Any] = {
        "exposure": ("exposure", np.array(exposures, dtype=object)),
        "detector": ("detector", np.array(detectors, dtype=np.int32)),
        "y": np.arange(first.shape[0], dtype=np.int32),
        "x": np.arange(first.shape[1], dtype=np.int32),
    }
    for spec in CAMPAIGN_COORDINATES:
        attributes = {key: value for key, value in spec.attributes.items() if spec.name != "time" or key == "long_name"}
        coordinates[spec.name] = (spec.dims, _coordinate(spec.name, spec.fill, shape, grid), attributes)
    attributes = {
        "csstdask": "frame",
        "instrument": camera.model_dump_json(exclude_none=True),
        "path": str(path),
    }
    return xr.Dataset(_pixel_variables(grid, shape, camera) | _header_variables(grid, shape), coordinates, attributes)


def _pixel_variables(grid: Grid, shape: tuple[int, ...], camera: Instrument) -> dict[str, Any]:
    """Return the lazy planes ``sci``, ``wht`` and ``flag``."""
    units = next(iter(grid.values())).units
    weight_attributes = {"units": power_of_units(units, -2), "long_name": "inverse variance, 0 = unusable"}
    planes: dict[str, tuple[Callable[[UnitSource, Window], npt.NDArray[Any]], str, float, dict[str, Any]]] = {
        "sci": (read_sci, "float32", np.nan, {"units": units}),
        "wht": (read_weight, "float32", 0, weight_attributes),
        "flag": (_FlagReader(camera), "int32", 0, flag_attributes(camera)),
    }
    variables: dict[str, Any] = {}
    for name, (reader, dtype, fill, attributes) in planes.items():
        data = indexing.LazilyIndexedArray(_Plane(grid, shape, reader, np.dtype(dtype), fill))
        variables[name] = (PIXEL_DIMS, data, attributes)
    return variables


def _header_variables(grid: Grid, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return headers, records of planes and footprints of the units."""
    headers = {key: read_headers(unit) for key, unit in grid.items()}
    variables: dict[str, Any] = {
        name: (UNIT_DIMS, _over_units(shape, "", {key: text[index] for key, text in headers.items()}))
        for index, name in enumerate(("header", "primary_header"))
    }
    variables["planes"] = (UNIT_DIMS, _over_units(shape, "", {key: unit.planes for key, unit in grid.items()}))
    regions = {key: asdict(footprint(header, (shape[2], shape[3]))) for key, (header, _) in headers.items()}
    for name in FOOTPRINT:
        values = {key: region[name] for key, region in regions.items()}
        if name == "s_region":
            variables[name] = (UNIT_DIMS, _over_units(shape, "", values))
        else:
            variables[name] = (UNIT_DIMS, _over_units(shape, np.nan, values).astype(np.float64), {"units": "deg"})
    return variables


def _coordinate(name: str, fill: object, shape: tuple[int, ...], grid: Grid) -> npt.NDArray[Any]:
    """Return the values of a coordinate over (exposure,) or (exposure, detector)."""
    if name == "present":
        return _over_units(shape, False, dict.fromkeys(grid, True)).astype(bool)
    values = {key: getattr(unit, name) for key, unit in grid.items()}
    if name in ("time", "exptime"):
        row = np.array(
            [next(value for (row, _), value in values.items() if row == number) for number in range(shape[0])]
        )
        if name == "exptime":
            return row.astype(np.float64)
        return np.where(row == NO_TIME, np.datetime64("NaT", "us"), row.astype("datetime64[us]"))
    filled = _over_units(shape, fill, values)
    return filled if isinstance(fill, str) else filled.astype(np.float64)


def _over_units(shape: tuple[int, ...], fill: object, values: dict[tuple[int, int], Any]) -> npt.NDArray[Any]:
    """Return values of units as an array (exposure, detector)."""
    filled = np.full(shape[:2], fill, dtype=object)
    for key, value in values.items():
        filled[key] = value
    return filled


class _FlagReader:
    """Read flags as bits of a camera; an object that can be sent to a worker."""

    def __init__(self, camera: Instrument) -> None:
        self.camera = camera

    def __call__(self, source: UnitSource, window: Window) -> npt.NDArray[Any]:
        return read_flag(source, self.camera, window)


class _Plane(BackendArray):
    """Lazy array of one plane of all units of a file; indexing reads the indexed part of the file."""

    def __init__(
        self,
        grid: Grid,
        shape: tuple[int, ...],
        reader: Callable[[UnitSource, Window], npt.NDArray[Any]],
        dtype: np.dtype[Any],
        fill: float,
    ) -> None:
        self.grid, self.shape, self.reader, self.dtype, self.fill = grid, shape, reader, dtype, fill

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._part)

    def _part(self, key: tuple[int | slice, ...]) -> npt.NDArray[Any]:
        rows, columns = (np.atleast_1d(np.arange(self.shape[axis])[key[axis]]) for axis in (0, 1))
        windows = [_ascending(part, self.shape[axis]) for axis, part in enumerate(key[2:], 2)]
        (y, y_rest), (x, x_rest) = windows
        size = (y.stop - y.start, x.stop - x.start)
        part = np.full((len(rows), len(columns), *size), self.fill, dtype=self.dtype)
        for row_index, row in enumerate(rows):
            for column_index, column in enumerate(columns):
                unit = self.grid.get((int(row), int(column)))
                if unit is not None and min(size) > 0:
                    part[row_index, column_index] = self.reader(unit, (y, x))
        units = tuple(0 if isinstance(one, int | np.integer) else slice(None) for one in key[:2])
        return part[(*units, y_rest, x_rest)]


def _ascending(part: int | slice, length: int) -> tuple[slice, int | slice]:
    """Return the contiguous range that contains a selection, and the selection within it."""
    if isinstance(part, int | np.integer):
        return slice(int(part), int(part) + 1), 0
    chosen = np.arange(length)[part]
    if not len(chosen):
        return slice(0, 0), slice(None)
    first, last = int(chosen.min()), int(chosen.max()) + 1
    step = int(chosen[1] - chosen[0]) if len(chosen) > 1 else 1
    return slice(first, last), slice(None, None, step)
