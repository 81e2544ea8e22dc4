"""Cut-outs of all units that cover a position on the sky."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from astropy import units as u
from astropy.coordinates import Angle, SkyCoord

from csstdask.instrument import pixel_of
from csstdask.store.sky_index import units_near, wcs_of


def cut_out(dataset: xr.Dataset, ra: Any, dec: Any, size: Any) -> list[xr.Dataset]:
    """Return lazy cut-outs of all units that cover a position.

    Parameters
    ----------
    dataset : xarray.Dataset
        Campaign or run, or a selection from one.
    ra, dec : float or Quantity
        Position, ICRS [deg].
    size : float or Quantity
        Side length of the cut-outs [arcsec].

    Returns
    -------
    list of xarray.Dataset
        One for each unit, cropped at the edges of the detector. Units without a usable WCS are left out.
    """
    position = SkyCoord(Angle(ra, u.deg), Angle(dec, u.deg))
    side = Angle(size, u.arcsec).deg
    found = []
    for row, column in units_near(dataset, position, side):
        indices = {"exposure": row, "detector": column}
        one = dataset.isel({dim: indices[dim] for dim in indices if dim in dataset.sizes})
        wcs = wcs_of(str(one["header"].values))
        rows, columns = _frame_pixels(one, "y"), _frame_pixels(one, "x")
        if not (len(rows) and len(columns)):
            continue
        pixel = None if wcs is None else pixel_of(wcs, position, (int(rows.max()) + 1, int(columns.max()) + 1))
        if wcs is None or pixel is None:
            continue
        half = 0.5 * side / np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix)))
        windows = {"y": _window(rows, pixel[1], half), "x": _window(columns, pixel[0], half)}
        if all(window.stop > window.start for window in windows.values()):
            found.append(one.isel(windows))
    return found


def _frame_pixels(dataset: xr.Dataset, axis: str) -> npt.NDArray[Any]:
    """Return the pixels of the complete frame that a dataset contains along an axis."""
    return np.asarray(dataset[axis].values if axis in dataset.coords else np.arange(dataset.sizes[axis]))


def _window(pixels: npt.NDArray[Any], centre: float, half: float) -> slice:
    """Return the slice of the pixels within `half` of a centre; empty if there are none. Pixels may be in any order."""
    if not np.isfinite(centre):
        return slice(0, 0)
    inside = np.flatnonzero((pixels >= round(centre - half)) & (pixels <= round(centre + half)))
    return slice(int(inside.min()), int(inside.max()) + 1) if len(inside) else slice(0, 0)
