"""Open a campaign as a lazy xarray dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from csstdask.store.store_metadata import open_group
from csstdask.store.xarray_formats import make_portable

if TYPE_CHECKING:
    import xarray as xr


MAX_EAGER_EXPOSURES = 10_000
"""Coordinates of campaigns with more exposures stay lazy."""


def open_campaign(path: str | Path) -> xr.Dataset:
    """Open a campaign as a lazy dataset.

    Parameters
    ----------
    path : str or Path
        Folder of the campaign.

    Returns
    -------
    xarray.Dataset
        ``sci`` (attribute ``units``), ``wht`` (inverse variance) and ``flag`` over (exposure, detector, y, x), with
        coordinates. ``y`` and ``x`` count the pixels of the complete frame, so that a cut-out keeps its position on
        the sky. The accessor ``.csst`` provides the methods of `csstdask.accessor.CsstAccessor`.

    Raises
    ------
    StoreError
        If there is no campaign, or it has another schema version.

    Examples
    --------
    >>> campaign = open_campaign("campaign.zarr")  # doctest: +SKIP
    >>> campaign["sci"].sel(exposure="10100000001", detector=8).mean().compute()  # doctest: +SKIP
    """
    import xarray as xr  # noqa: PLC0415  it takes half a second to import

    root = Path(path)
    open_group(root, "campaign")
    dataset = make_portable(xr.open_zarr(root, chunks={}))
    if dataset["flag"].dtype.kind == "f":  # saved after masking with `where`
        attributes = dataset["flag"].attrs
        dataset["flag"] = dataset["flag"].fillna(0).astype(np.int32).assign_attrs(attributes)
    if dataset.sizes["exposure"] <= MAX_EAGER_EXPOSURES:
        dataset = dataset.assign_coords({name: dataset[name].load() for name in dataset.coords})
    pixels = {axis: np.arange(dataset.sizes[axis], dtype=np.int32) for axis in ("y", "x") if axis not in dataset.coords}
    dataset = dataset.assign_coords(pixels)  # record which pixels a cut-out contains
    dataset.attrs["path"] = str(root)
    return dataset
