"""Units of a campaign in electrons, for everything that reads pixels outside of a run."""

from __future__ import annotations

import numpy as np

from csstdask.arrays.frame import ElectronFrame, to_electrons
from csstdask.instrument import electrons_per_unit
from csstdask.store.campaign import Campaign
from csstdask.store.shards import read_shard
from csstdask.store.unit_metadata import UnitMetadata


def electrons_per_data_unit(campaign: Campaign, metadata: UnitMetadata) -> np.float32:
    """Return the number of electrons per unit of the science plane."""
    return np.float32(electrons_per_unit(campaign.units, metadata.exptime, metadata.gain))


def read_electrons(campaign: Campaign, metadata: UnitMetadata, rows: slice = slice(None)) -> ElectronFrame:
    """Read the pixels of a unit in electrons.

    Parameters
    ----------
    campaign : Campaign
    metadata : UnitMetadata
        Metadata of the unit.
    rows : slice
        Rows to read, for work in parts.

    Raises
    ------
    StoreError
        If the unit has no pixels in the store.
    """
    row, column = campaign.index(metadata.exposure, metadata.detector)
    sci, wht, flag = (read_shard(campaign.path, name, row, column, rows) for name in ("sci", "wht", "flag"))
    scale = electrons_per_unit(campaign.units, metadata.exptime, metadata.gain)
    return to_electrons(sci, wht, flag, scale=scale, ignore_bits=campaign.instrument.flags.ignore_mask)
