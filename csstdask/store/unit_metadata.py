"""Metadata of one unit of a campaign: what is recorded of it besides its pixels."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from csstdask.core.errors import StoreError
from csstdask.instrument import shifted_header
from csstdask.store.schema import NO_TIME
from csstdask.store.store_metadata import open_group
from csstdask.store.zarr_arrays import get_array, read_small


@dataclass(frozen=True)
class UnitMetadata:
    """Metadata of one unit of a campaign.

    Examples
    --------
    >>> unit = UnitMetadata("101", 7, "imaging", "i", 150.0, 0, 1.5, 5.0, digest="")
    >>> unit.when
    np.datetime64('1970-01-01T00:00:00.000000')
    """

    exposure: str
    detector: int
    kind: str
    band: str
    exptime: float
    """Exposure time [s]; NaN if the file does not state it."""
    time: int
    """Start of the exposure in microseconds since 1970, UTC; `NO_TIME` if unknown."""
    gain: float
    """Gain [e-/adu]."""
    read_noise: float
    """Read noise [e-]."""
    digest: str
    """SHA-256 of everything that decides the pixels: the identity of the unit in fingerprints."""
    source: str = ""
    """Names of the files, separated by spaces."""
    source_stat: str = ""
    """Sizes and modification times of the files (JSON)."""
    source_folder: str = ""
    """Folder of the files."""
    exposure_id: str = ""
    """Exposure id as stated in the file; `exposure` is a valid folder name."""
    planes: str = ""
    """JSON: HDU of each plane, and what decided it."""
    file_units: str = ""
    """Units stated in the file."""
    unit_scale: float = 1.0
    """Factor from pixels of the file to pixels of the campaign."""
    header: str = field(default="", repr=False)
    primary_header: str = field(default="", repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary of plain types that a worker can send to the driver."""
        return asdict(self)

    @property
    def when(self) -> np.datetime64 | None:
        """Return the start of the exposure as datetime64, or None if unknown."""
        return None if self.time == NO_TIME else np.datetime64(self.time, "us")


FOOTPRINT = ("s_ra", "s_dec", "s_fov", "s_region")
"""Records of the position of a unit on the sky."""

UNIT_RECORDS = (
    "gain",
    "read_noise",
    "band",
    "kind",
    "header",
    "primary_header",
    "source",
    "source_stat",
    "source_folder",
    "exposure_id",
    "planes",
    "file_units",
    "unit_scale",
    "digest",
)


def read_header(path: Path, row: int, column: int, name: str = "header") -> str:
    """Return a FITS header of a unit as text, one card per line.

    In a campaign that is a cut-out of another, the reference pixels of the header are shifted accordingly.

    Parameters
    ----------
    path : Path
        Folder of the campaign.
    row, column : int
        Indices of the unit.
    name : str
        ``header`` (science plane) or ``primary_header``.
    """
    group = open_group(path, "campaign")
    text = str(read_small(group, name, (row, column)).item())
    x, y = _origin(group, path)
    if not text or name != "header" or (x, y) == (0, 0):
        return text
    from astropy.io.fits import Header  # noqa: PLC0415

    header = shifted_header(Header.fromstring(text, sep="\n"), x, y)
    return "\n".join(str(card) for card in header.cards)


def _origin(group: zarr.Group, path: Path) -> tuple[int, int]:
    """Return the position (x, y) of the first pixel of this campaign in the original frame.

    Raises
    ------
    StoreError
        If the pixels are not contiguous in the original frame, so that no header describes them.
    """
    found = []
    for axis in ("x", "y"):
        pixels = np.asarray(get_array(group, axis)[...]) if axis in group else np.zeros(1, dtype=int)
        if len(pixels) > 1 and (np.diff(pixels) != 1).any():
            raise StoreError(
                f"{path}: found pixels {pixels[1] - pixels[0]} apart along {axis}; wanted contiguous pixels"
            )
        found.append(int(pixels[0]))
    return found[0], found[1]
