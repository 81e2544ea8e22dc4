"""Read a unit of a campaign in electrons, for measurements outside a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.instrument import electrons_per_unit
from csstdask.store.campaign import Campaign
from csstdask.store.shards import read_shard
from csstdask.store.unit_metadata import UnitMetadata


@dataclass(frozen=True)
class ElectronFrame:
    """Pixels of a unit, or of a range of its rows, in electrons."""

    data: npt.NDArray[np.float32]
    """Counts with sky [e-], also of ignored pixels."""
    error: npt.NDArray[np.float32]
    """1-sigma error [e-]; inf where the weight is 0."""
    ignore: npt.NDArray[np.bool_]
    """Pixels that are unusable by flag, weight or value."""
    flag: npt.NDArray[np.int32]


def electrons_per_data_unit(campaign: Campaign, metadata: UnitMetadata) -> np.float32:
    """Return the factor from the units of ``sci`` to electrons for one unit."""
    return np.float32(electrons_per_unit(campaign.units, metadata.exptime, metadata.gain))


def read_electrons(campaign: Campaign, metadata: UnitMetadata, rows: slice = slice(None)) -> ElectronFrame:
    """Read a unit in electrons.

    Parameters
    ----------
    campaign : Campaign
        Campaign that contains the unit.
    metadata : UnitMetadata
        Metadata of the unit.
    rows : slice
        Rows to read; default: all.

    Returns
    -------
    ElectronFrame

    Raises
    ------
    StoreError
        If its pixels are missing or damaged.
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
