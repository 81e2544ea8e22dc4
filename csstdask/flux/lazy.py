"""A flat as a lazy xarray.DataArray: values are computed chunk by chunk on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from csstdask.flux.flat import Flat

if TYPE_CHECKING:
    import xarray as xr

CHUNKS = (16, 1024, 1024)
"""Default chunk: wavelengths, rows and columns; 67 MB in float32."""


def flat_array(flat: Flat, *, detector: int | None = None, chunks: Any = None) -> xr.DataArray:
    """Return a flat over (wavelength, y, x) in float32, without computing any value.

    Parameters
    ----------
    flat : Flat
        Flat of one detector.
    detector : int, optional
        Value of the coordinate ``detector``; by default that of the flat.
    chunks : optional
        Chunk sizes as in Dask; by default `CHUNKS`.
    """
    import dask.array as da  # noqa: PLC0415  only where lazy arrays are asked for
    import xarray as xr  # noqa: PLC0415

    shape = (len(flat.wavelength), *flat.shape)
    sizes = da.core.normalize_chunks(CHUNKS if chunks is None else chunks, shape, dtype=np.float32)
    values = da.map_blocks(_block, flat=flat, chunks=sizes, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
    coordinates: dict[str, Any] = {"wavelength": ("wavelength", flat.wavelength, {"units": "Angstrom"})}
    name = flat.detector if detector is None else detector
    if name is not None:
        coordinates["detector"] = name
    return xr.DataArray(values, dims=("wavelength", "y", "x"), coords=coordinates, name="flat")


def _block(flat: Flat, block_info: Any = None) -> npt.NDArray[np.float32]:
    """Return the values of one chunk."""
    (first, last), (top, bottom), (left, right) = block_info[None]["array-location"]
    return flat.planes(np.arange(left, right), np.arange(top, bottom), flat.wavelength[first:last]).astype(np.float32)
