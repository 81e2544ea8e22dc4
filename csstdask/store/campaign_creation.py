"""Create the arrays of a campaign."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from csstdask.instrument import Instrument, power_of_units
from csstdask.store.schema import (
    CAMPAIGN_COORDINATES,
    CAMPAIGN_PIXELS,
    CAMPAIGN_RECORDS,
    PIXEL_DIMS,
    SCHEMA_VERSION,
    ArraySpec,
)
from csstdask.store.store_metadata import open_group
from csstdask.store.zarr_arrays import consolidate, create_array, get_array


def create_campaign(
    path: Path,
    instrument: Instrument,
    shape: tuple[int, int],
    units: str,
    detectors: Sequence[int] | None = None,
) -> None:
    """Create an empty campaign.

    Parameters
    ----------
    path : Path
        Folder to create.
    instrument : Instrument
        Camera; its complete description is stored in the campaign.
    shape : (int, int)
        Shape (y, x) of every frame.
    units : str
        Units of ``sci``; ``wht`` is in units^-2.
    detectors : sequence of int, optional
        Ids along the detector axis; default: all detectors of the instrument.
    """
    ids = tuple(detectors) if detectors is not None else instrument.detector_ids
    sizes = dict(zip(PIXEL_DIMS, (0, len(ids), *shape), strict=True))
    # Created under a temporary name and renamed, so that a campaign is complete or absent.
    draft = path.with_name(f".{path.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    group = zarr.create_group(draft)
    for spec in CAMPAIGN_PIXELS:
        create_array(group, _add_flag_attributes(spec, instrument), sizes, _plane_units(spec.name, units))
    for spec in (
        ArraySpec("exposure", ("exposure",), "str", "", "table"),
        *CAMPAIGN_COORDINATES,
        *CAMPAIGN_RECORDS,
    ):
        create_array(group, spec, sizes)
    create_array(group, ArraySpec("detector", ("detector",), "int32", -1, "table"), sizes)
    get_array(group, "detector")[:] = np.array(ids, dtype=np.int32)
    group.attrs.update(
        {
            "csstdask": "campaign",
            "schema_version": SCHEMA_VERSION,
            "coordinates": " ".join(spec.name for spec in CAMPAIGN_COORDINATES),
            "instrument": json.loads(instrument.model_dump_json(exclude_none=True)),
        }
    )
    consolidate(draft)
    draft.rename(path)


def _plane_units(name: str, units: str) -> str | None:
    return {"sci": units, "wht": power_of_units(units, -2)}.get(name)


def flag_attributes(instrument: Instrument) -> dict[str, Any]:
    """Return the attributes that define the bits of ``flag`` (CF conventions)."""
    bits = sorted(instrument.flags.bits.items(), key=lambda item: item[1])
    return {"flag_masks": [mask for _, mask in bits], "flag_meanings": " ".join(name for name, _ in bits)}


def _add_flag_attributes(spec: ArraySpec, instrument: Instrument) -> ArraySpec:
    if spec.name != "flag":
        return spec
    return replace(spec, attributes=flag_attributes(instrument))


def write_recipe(path: Path, kind: str, recipe: str) -> None:
    """Store the recipe of a mock store in its attributes.

    Parameters
    ----------
    path : Path
        Folder of the store.
    kind : str
        ``campaign`` or ``stamps``.
    recipe : str
        The recipe as JSON.
    """
    open_group(path, kind, "r+").attrs["recipe"] = json.loads(recipe)
    consolidate(path)
