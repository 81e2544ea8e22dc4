"""The flat as a lazy array: values are computed chunk by chunk when they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from csstdask.flux.flat import Flat

if TYPE_CHECKING:
    import xarray as xr

CHUNKS = (16, 1024, 1024)
"""Wavelengths, rows and columns of a chunk: 67 MB."""


def flat_array(flat: Flat, *, detector: int | None = None, chunks: Any = None) -> xr.DataArray:
    """Return the flat over (wavelength, y, x) in float32, without computing any value.

    Parameters
    ----------
    flat : Flat
        Of one detector.
    detector : int, optional
        Id that becomes a coordinate; by default that of the flat.
    chunks : optional
        As dask has it.
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
    """Return one chunk."""
    (first, last), (top, bottom), (left, right) = block_info[None]["array-location"]
    return flat.planes(np.arange(left, right), np.arange(top, bottom), flat.wavelength[first:last]).astype(np.float32)
