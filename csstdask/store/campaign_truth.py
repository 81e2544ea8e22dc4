"""Truth and labels of a campaign: child groups that the steps of a run never read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import zarr

from csstdask.store.schema import PIXEL_DIMS, UNIT_DIMS, ArraySpec
from csstdask.store.store_metadata import open_group
from csstdask.store.zarr_arrays import array_names, consolidate, create_array, get_array

TRUTH_GROUPS = ("truth", "labels")
"""Child groups: the truth of a simulation, and labels derived from repeated exposures."""
LABEL_IDENTITY = ArraySpec("identity", UNIT_DIMS, "str", "", "table", {"long_name": "SHA-256 of what they came from"})


def add_truth(path: Path, units: str, name: Literal["truth", "labels"] = "truth") -> None:
    """Create the missing arrays of the group ``truth`` or ``labels``.

    ``sci`` is the scene with the same noise and without cosmic rays, ``cr`` is their charge. Labels are estimates: NaN
    in ``labels/cr`` marks unknown pixels, and ``labels/identity`` identifies the input of each unit.

    Parameters
    ----------
    path : Path
        Folder of the campaign.
    units : str
        Units of ``sci``.
    name : str
        ``truth`` or ``labels``.
    """
    root = open_group(path, "campaign", "r+")
    sizes = dict(zip(PIXEL_DIMS, get_array(root, "sci").shape, strict=True))
    group = root.require_group(name)
    existing = array_names(path / name)
    fill = 0.0 if name == "truth" else float("nan")
    specs = [(ArraySpec("sci", PIXEL_DIMS, "float32", float("nan")), units)]
    specs.append((ArraySpec("cr", PIXEL_DIMS, "float32", fill), "electron"))
    for spec, unit in specs:
        if spec.name not in existing:
            create_array(group, spec, sizes, unit)
    if name == "labels" and LABEL_IDENTITY.name not in existing:
        create_array(group, LABEL_IDENTITY, sizes)
    consolidate(path)


def write_truth_arrays(path: Path, arrays: Mapping[str, tuple[ArraySpec, npt.NDArray[Any]]]) -> None:
    """Write small arrays of the group ``truth`` completely, such as a flat (detector, wavelength, term)."""
    root = open_group(path, "campaign", "r+")
    group = root.require_group("truth")
    for name, (spec, values) in arrays.items():
        if name not in array_names(path / "truth"):
            create_array(group, spec, dict(zip(spec.dims, values.shape, strict=True)))
        get_array(group, name)[...] = values
    consolidate(path)


def label_identity(path: Path, row: int, column: int) -> str:
    """Return the identity of the input of a unit's labels; empty if it has none."""
    return str(np.asarray(_label_identities(path, "r")[row, column]).item())


def record_label(path: Path, row: int, column: int, identity: str) -> None:
    """Record the identity of the input of a unit's labels.

    Write an empty identity before the labels are rewritten, and the new one once they are on disk.
    """
    _label_identities(path, "r+")[row, column] = identity


def _label_identities(path: Path, mode: str) -> zarr.Array[Any]:
    return get_array(open_group(path, "campaign", mode), f"labels/{LABEL_IDENTITY.name}")
