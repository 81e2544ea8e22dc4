"""A unit of a campaign in electrons: what every measurement outside a run begins with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.instrument import electrons_per_unit
from csstdask.store.campaign import Campaign, UnitMetadata
from csstdask.store.zarr_arrays import read_shard


@dataclass(frozen=True)
class ElectronFrame:
    """Pixels of a unit, or of some of its rows."""

    data: npt.NDArray[np.float32]
    """[e-], sky included; as it was read, also where it is ignored."""
    error: npt.NDArray[np.float32]
    """1 sigma [e-]; inf where the weight is 0."""
    ignore: npt.NDArray[np.bool_]
    """Unusable by flag, weight or value."""
    flag: npt.NDArray[np.int32]


def electrons_per_data_unit(campaign: Campaign, metadata: UnitMetadata) -> np.float32:
    """Return how many electrons one unit of the science plane is."""
    return np.float32(electrons_per_unit(campaign.units, metadata.exptime, metadata.gain))


def read_electrons(campaign: Campaign, metadata: UnitMetadata, rows: slice = slice(None)) -> ElectronFrame:
    """Read a unit.

    Parameters
    ----------
    campaign : Campaign
    facts : UnitFacts
        Of the unit.
    rows : slice
        For work in parts.

    Raises
    ------
    StoreError
        If its pixels are not there.
    """
    row, column = campaign.index(metadata.exposure, metadata.detector)
    sci, wht, flag = (read_shard(campaign.path, name, row, column, rows) for name in ("sci", "wht", "flag"))
    scale = electrons_per_data_unit(campaign, metadata)
    data = sci * scale
    ignore = (flag & campaign.instrument.flags.ignore_mask) != 0
    ignore |= ~(wht > 0) | ~np.isfinite(data)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = scale / np.sqrt(np.where(wht > 0, wht, np.float32(0)))
    return ElectronFrame(data, error.astype(np.float32, copy=False), ignore, flag)
