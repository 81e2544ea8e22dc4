"""Names, types and codecs of the arrays on disk (described in ``docs/reference/on-disk-format.md``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

#: Raised whenever something in a store is renamed, or gets another meaning.
SCHEMA_VERSION = 3
#: Versions that can be read: stores of version 1 under the new names of their columns and metrics. The table
#: ``cosmic_rays`` has had the column ``origin``, and rows of satellites and trailed stars, since version 3.
READABLE_VERSIONS = (1, 2, 3)
#: Columns of tables that version 2 renamed, by table.
RENAMED_COLUMNS = {"psf_stars": {"reserve": "held_out"}}
#: Metrics that version 2 renamed.
RENAMED_METRICS = {"n_psf_reserve": "n_psf_held_out"}
"""Raised whenever older stores can no longer be read."""

PIXEL_DIMS = ("exposure", "detector", "y", "x")
MESH_DIMS = ("exposure", "detector", "y_mesh", "x_mesh")
PSF_DIMS = ("exposure", "detector", "y_psf", "x_psf", "v", "u")
UNIT_DIMS = ("exposure", "detector")
ROWS_PER_CHUNK = 1024
"""Exposures per chunk of the arrays whose chunks span units."""
NO_TIME = int(np.iinfo(np.int64).min)
"""Unknown time."""

Codec = Literal["pixels", "mask", "sparse", "table"]


@dataclass(frozen=True)
class ArraySpec:
    """Specification of one array of a store."""

    name: str
    """Name in the group."""
    dims: tuple[str, ...]
    """Dimensions, outermost first."""
    dtype: str
    """NumPy type, or ``str`` for variable-length text."""
    fill: object
    """Fill value of elements that were not written."""
    codec: Codec = "pixels"
    """``pixels``: lz4 with bitshuffle; ``mask``: zstd-1 with bitshuffle; ``sparse`` and ``table``: zstd-1."""
    attributes: dict[str, object] = field(default_factory=dict)
    """Attributes, such as units and long name."""
    words: bool = False
    """Whether the text is short, such as one word per unit: `ROWS_PER_CHUNK` exposures then share a chunk."""

    @property
    def sharded(self) -> bool:
        """Return whether each unit owns one shard with inner chunks."""
        return self.dims[:2] == UNIT_DIMS and len(self.dims) == 4

    @property
    def owned_chunk(self) -> bool:
        """Return whether each unit owns one chunk: small arrays such as stamps or PSFs."""
        return self.dims[:2] == UNIT_DIMS and len(self.dims) in (3, 5, 6)

    @property
    def detector_chunk(self) -> bool:
        """Return whether each detector owns one chunk: products of reductions."""
        return self.dims[0] == "detector" and len(self.dims) > 1


CAMPAIGN_PIXELS = (
    ArraySpec("sci", PIXEL_DIMS, "float32", float("nan")),
    ArraySpec("wht", PIXEL_DIMS, "float32", 0.0, attributes={"long_name": "inverse variance, 0 = unusable"}),
    ArraySpec("flag", PIXEL_DIMS, "int32", 0, "mask"),
)

# Small arrays of a campaign. Their chunks span units, so only the driver writes them.
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
    ArraySpec("source", UNIT_DIMS, "str", "", "table", {"long_name": "files of the unit"}),
    ArraySpec("source_stat", UNIT_DIMS, "str", "", "table", {"long_name": "sizes and modification times of the files"}),
    ArraySpec("source_folder", UNIT_DIMS, "str", "", "table", {"long_name": "folder of the files"}),
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
