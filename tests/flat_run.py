"""Runs of the flat-field reduction for tests: a linear flat, and no PSF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr
from quick import quick_settings

from csstdask.pipeline.run import run
from csstdask.pipeline.status import Summary

SETTINGS = quick_settings(flat={"degree": 1})


def run_flat(campaign: Path, path: Path, **options: Any) -> Summary:
    """Run the steps of the reduction `flat` over a campaign."""
    return run(campaign, path, steps=("flat",), config=options.pop("config", SETTINGS), **options)


def first_exposure(campaign: Path) -> str:
    """Return the first exposure of a campaign, by name."""
    return str(sorted(xr.open_zarr(campaign)["exposure"].values.tolist())[0])
