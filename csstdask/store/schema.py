"""Names, types and codecs of everything csstdask keeps on disk (prose in ``stores/README.md``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

#: Raised whenever a store written before can no longer be read as it is.
SCHEMA_VERSION = 1

PIXEL_DIMS = ("exposure", "detector", "y", "x")
MESH_DIMS = ("exposure", "detector", "y_mesh", "x_mesh")
PSF_DIMS = ("exposure", "detector", "y_psf", "x_psf", "v", "u")
UNIT_DIMS = ("exposure", "detector")
#: Rows of `(exposure, ...)` arrays that share one chunk.
ROWS_PER_CHUNK = 1024
NO_TIME = int(np.iinfo(np.int64).min)

Codec = Literal["pixels", "mask", "sparse", "table"]


@dataclass(frozen=True)
class ArraySpec:
    """One array of a store."""

    name: str
    """Its name in the group."""
    dims: tuple[str, ...]
    """Its dimensions, outermost first."""
    dtype: str
    """A NumPy type, or ``str`` for variable-length text."""
    fill: object
    """What an element that nobody wrote reads as."""
    codec: Codec = "pixels"
    """pixels: lz4 + bitshuffle; mask: zstd-1 + bitshuffle; sparse (mostly fill values) and table: zstd-1."""
    attributes: dict[str, object] = field(default_factory=dict)
    """Units and meaning."""
    words: bool = False
    """Whether its text is a word per unit: as many exposures share a chunk as of numbers."""

    @property
    def sharded(self) -> bool:
        """Return whether each unit owns one shard of it, with chunks inside."""
        return self.dims[:2] == UNIT_DIMS and len(self.dims) == 4

    @property
    def owned_chunk(self) -> bool:
        """Return whether each unit owns one chunk of it: small arrays of a unit, such as its stamps or PSFs."""
        return self.dims[:2] == UNIT_DIMS and len(self.dims) in (3, 5, 6)

    @property
    def detector_chunk(self) -> bool:
        """Return whether each detector has one chunk of it: what reductions write."""
        return self.dims[0] == "detector" and len(self.dims) > 1


CAMPAIGN_PIXELS = (
    ArraySpec("sci", PIXEL_DIMS, "float32", float("nan")),
    ArraySpec("wht", PIXEL_DIMS, "float32", 0.0, attributes={"long_name": "inverse variance, 0 = unusable"}),
    ArraySpec("flag", PIXEL_DIMS, "int32", 0, "mask"),
)

#: Coordinates and records of a campaign: small, their chunks span units, written by the driver alone.
CAMPAIGN_COORDINATES = (
    ArraySpec(
        "time",
        ("exposure",),
        "int64",
        NO_TIME,
        "table",
        {
            "units": "microseconds since 1970-01-01T00:00:00",
            "calendar": "proleptic_gregorian",
            "_FillValue": NO_TIME,
            "long_name": "start of the exposure, UTC",
        },
    ),
    ArraySpec("exptime", ("exposure",), "float64", float("nan"), "table", {"units": "s"}),
    ArraySpec("band", UNIT_DIMS, "str", "", "table"),
    ArraySpec("kind", UNIT_DIMS, "str", "", "table"),
    ArraySpec("gain", UNIT_DIMS, "float64", float("nan"), "table", {"units": "electron adu-1"}),
    ArraySpec("read_noise", UNIT_DIMS, "float64", float("nan"), "table", {"units": "electron"}),
    ArraySpec("present", UNIT_DIMS, "bool", False, "table"),
)
CAMPAIGN_RECORDS = (
    ArraySpec("header", UNIT_DIMS, "str", "", "table", {"long_name": "FITS header of the science plane"}),
    ArraySpec("primary_header", UNIT_DIMS, "str", "", "table", {"long_name": "FITS primary header"}),
    ArraySpec("source", UNIT_DIMS, "str", "", "table", {"long_name": "the file or files the unit came from"}),
    ArraySpec("source_stat", UNIT_DIMS, "str", "", "table", {"long_name": "their sizes and times of change"}),
    ArraySpec("source_folder", UNIT_DIMS, "str", "", "table", {"long_name": "where the file or files were"}),
    ArraySpec("exposure_id", UNIT_DIMS, "str", "", "table", {"long_name": "id of the exposure as the file states it"}),
    ArraySpec(
        "planes", UNIT_DIMS, "str", "", "table", {"long_name": "JSON: which HDU each plane was read from, and why"}
    ),
    ArraySpec("file_units", UNIT_DIMS, "str", "", "table", {"long_name": "units that the file states"}),
    ArraySpec("unit_scale", UNIT_DIMS, "float64", 1.0, "table", {"long_name": "pixels here / pixels of the file"}),
    ArraySpec("s_ra", UNIT_DIMS, "float64", float("nan"), "table", {"units": "deg", "long_name": "centre, ICRS"}),
    ArraySpec("s_dec", UNIT_DIMS, "float64", float("nan"), "table", {"units": "deg", "long_name": "centre, ICRS"}),
    ArraySpec(
        "s_fov",
        UNIT_DIMS,
        "float64",
        float("nan"),
        "table",
        {"units": "deg", "long_name": "diameter of the circle around the frame; 0: no usable WCS, NaN: not recorded"},
    ),
    ArraySpec("s_region", UNIT_DIMS, "str", "", "table", {"long_name": "corners of the frame (STC-S)"}),
    ArraySpec("digest", UNIT_DIMS, "str", "", "table", {"long_name": "SHA-256 of what the unit was made from"}),
)
