"""A small imaging campaign whose exposures overlap, and a reference catalogue of its true stars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import xarray as xr

from csstdask.instrument import sky_positions
from csstdask.mock import load_recipe
from csstdask.pipeline.mock_survey import mock
from csstdask.store.campaign import Campaign
from csstdask.store.tables import write_table
from csstdask.store.unit_metadata import read_header

DETECTORS = (7, 8)
"""Of the bands i and g."""
SAME_STAR = 0.5
"""Distance within which true stars of two exposures are one [arcsec]."""


def make_campaign(path: Path, *, exposures: int = 3, shape: tuple[int, int] = (320, 320), seed: int = 5) -> Path:
    """Render a field several times, dithered, and write ``tables/reference.parquet`` unless it is there."""
    recipe = load_recipe("demo").model_dump()
    recipe |= {
        "exposures": exposures, "detectors": DETECTORS, "shape": shape, "seed": seed, "scale": 1.0,
        "fields": [{"pointing": (150.0, 2.0)}], "pointing": {"dither": 40.0},
    }  # fmt: skip
    recipe["sky"] |= {"stars_per_mpix": 900.0, "galaxies_per_mpix": 200.0}
    recipe["cosmic_rays"] |= {"pixel_fraction": [0.003]}
    mock(type(load_recipe("demo")).model_validate(recipe), path)
    if not (path / "tables" / "reference.parquet").exists():
        write_reference(path)
    return path


def write_reference(path: Path, target: Path | None = None, **columns: Any) -> Path:
    """Write the true stars of a mock as a reference catalogue, with other columns in place of some."""
    target = target or path / "tables" / "reference.parquet"
    write_table(target, true_stars(path) | columns, {})
    return target


def true_stars(path: Path) -> dict[str, np.ndarray]:
    """Return positions and magnitudes of the true stars of a mock, each once."""
    campaign, sources = Campaign(path), pq.read_table(path / "tables" / "truth_sources.parquet").to_pandas()
    found: dict[str, list[float]] = {name: [] for name in ("ra", "dec", "mag", "detector")}
    for (exposure, detector), unit in sources[sources["is_star"] > 0].groupby(["exposure", "detector"]):
        row, column = campaign.index(str(exposure), int(detector))
        ra, dec = sky_positions(read_header(path, row, column), unit["x"].to_numpy(), unit["y"].to_numpy())
        for one in zip(ra, dec, unit["mag"], np.full(len(ra), detector), strict=True):
            near = np.hypot(
                (np.array(found["ra"]) - one[0]) * np.cos(np.radians(one[1])), np.array(found["dec"]) - one[1]
            )
            if not len(near) or near.min() * 3600 > SAME_STAR:
                for name, value in zip(found, one, strict=True):
                    found[name].append(float(value))
    ra, dec, mag, detector = (np.array(values) for values in found.values())
    in_i = detector == DETECTORS[0]
    color = np.random.default_rng(3).normal(0.6, 0.3, len(mag))  # of the reference: the true colour term is 0
    return {
        "ra": ra, "dec": dec,
        "mag_g": np.where(in_i, mag + color, mag), "mag_i": np.where(in_i, mag, mag - color),
        "mag_g_err": np.full(len(mag), 0.01), "mag_i_err": np.full(len(mag), 0.01),
    }  # fmt: skip


def zero_points(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a run that the reduction `zeropoints` and its step write."""
    run = xr.open_zarr(path, chunks=None)
    return {name: run[name].values for name in run.data_vars if str(name).startswith("zp")}
