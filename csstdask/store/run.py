"""A run: the output store, with the same units as its campaign.

The driver creates the arrays and grows them with the campaign. Workers write the shards of their units. Metrics, whose
chunks span units, are written by the driver only. The arrays contain no times, hosts or attempt numbers: two runs of
the same input and settings are equal bit for bit.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from csstdask.core.atomic_io import write_atomic
from csstdask.core.errors import StoreError
from csstdask.store.campaign import Campaign
from csstdask.store.schema import RENAMED_METRICS, SCHEMA_VERSION, UNIT_DIMS, ArraySpec
from csstdask.store.store_metadata import (
    ATTRIBUTES_COPY,
    damaged_arrays,
    damaged_file_error,
    open_group,
    read_attributes_copy,
    restore_metadata,
    root_metadata,
)
from csstdask.store.zarr_arrays import array_names, consolidate, create_array, get_array, read_small, resize


def prepare_run(
    path: Path,
    campaign: Campaign,
    specs: Sequence[tuple[ArraySpec, str | None]],
    sizes: Mapping[str, int],
    metrics: Sequence[str],
    attributes: Mapping[str, Any],
    *,
    whole: bool,
    repair: bool = False,
) -> list[str]:
    """Create a run, or extend one to the exposures of its campaign and to new arrays.

    Parameters
    ----------
    path : Path
        Folder of the run.
    campaign : Campaign
        Campaign with the units of the run.
    specs : sequence of (ArraySpec, units)
        Product arrays.
    sizes : mapping
        Lengths of the dimensions of a unit.
    metrics : sequence of str
        Names of the metrics, arrays over (exposure, detector).
    attributes : mapping
        Attributes of the run: configuration, steps, fingerprint.
    whole : bool
        Whether the run processes all units. Only then may it change the mesh, which all units share.
    repair : bool
        Rebuild damaged metadata of the store, arrays whose metadata is lost, and damaged metrics. Damaged metadata of
        an array is always restored if the store has a copy.

    Returns
    -------
    list of str
        Metrics that were reset. Their values are in the records of the units.

    Raises
    ------
    StoreError
        If the store contains products of another campaign. Nothing is changed then.
    """
    sizes = {**sizes, "exposure": len(campaign.exposures), "detector": len(campaign.detectors)}
    restored = _repair(path) if repair else []
    if (path / "zarr.json").exists() and not repair:
        for name in restore_metadata(path):
            raise damaged_file_error(open_group(path, "run"), path / name / "zarr.json", "damaged metadata")
    if (path / "zarr.json").exists():
        _check_same_units(path, campaign, specs, sizes, whole=whole)
        resize(path, sizes["exposure"])
        group = open_group(path, "run", "r+")
    else:
        # Marked as a run immediately: the next driver completes a run whose creation was interrupted.
        group = zarr.create_group(path, attributes={"csstdask": "run", "schema_version": SCHEMA_VERSION})
    known = set(array_names(path))
    if "exposure" not in known:
        create_array(group, ArraySpec("exposure", ("exposure",), "str", "", "table"), sizes)
    if "detector" not in known:
        create_array(group, ArraySpec("detector", ("detector",), "int32", -1, "table"), sizes)
    if campaign.exposures:
        get_array(group, "exposure")[:] = np.array(campaign.exposures, dtype=object)
    get_array(group, "detector")[:] = np.array(campaign.detectors, dtype=np.int32)
    for spec, units in specs:
        if spec.name in known and get_array(group, spec.name).shape != tuple(sizes[dim] for dim in spec.dims):
            del group[spec.name]  # different mesh or cube: its units are pending
            known.discard(spec.name)
        if spec.name not in known:
            create_array(group, spec, sizes, units)
    for name in metrics:
        if name not in known:
            create_array(group, ArraySpec(name, UNIT_DIMS, "float64", float("nan"), "table"), sizes)
            for old in [old for old, new in RENAMED_METRICS.items() if new == name and old in known]:
                get_array(group, name)[:] = get_array(group, old)[:]  # a run of an earlier version
    group.attrs.update(
        {
            "csstdask": "run",
            "schema_version": SCHEMA_VERSION,
            "campaign": _relative_path(campaign.path, path),
            **attributes,
        }
    )
    consolidate(path)
    write_atomic(path / ATTRIBUTES_COPY, json.dumps(dict(group.attrs)).encode())
    return restored


def _repair(path: Path) -> list[str]:
    """Restore the metadata of a damaged run and remove unreadable metrics.

    Shards, tables and the ledger are not touched; their checksums show which of them are intact.

    Returns
    -------
    list of str
        Names of the metrics that were removed.
    """
    if not path.is_dir():
        return []
    if not (path / "zarr.json").exists() or root_metadata(path) is None:
        (path / "zarr.json").unlink(missing_ok=True)
        zarr.create_group(
            path, attributes={"csstdask": "run", "schema_version": SCHEMA_VERSION, **read_attributes_copy(path)}
        )
    lost = restore_metadata(path)
    for name in lost:
        shutil.rmtree(path / name)
    damaged = damaged_small_arrays(path)
    for name in damaged:
        shutil.rmtree(path / name / "c", ignore_errors=True)
    return [name for name in (*damaged, *lost) if name not in UNIT_DIMS]


def damaged_small_arrays(path: Path) -> list[str]:
    """Return the metrics and coordinates of a run that have an unreadable chunk."""
    group, damaged = open_group(path, "run"), []
    for name in array_names(path):
        if _is_small(group, name):
            try:
                read_small(group, name)
            except StoreError:
                damaged.append(name)
    return damaged


def _is_small(group: zarr.Group, name: str) -> bool:
    """Return whether an array is a coordinate or a metric, which only the driver writes and no record lists."""
    dims = tuple(get_array(group, name).metadata.dimension_names or ())  # type: ignore[union-attr]
    return dims in {("exposure",), ("detector",), UNIT_DIMS}


def check_metadata(path: Path) -> None:
    """Check the metadata and metrics of a run.

    Raises
    ------
    StoreError
        If a file is damaged. The message names it.
    """
    group = open_group(path, "run")
    for name in damaged_arrays(path):
        raise damaged_file_error(group, path / name / "zarr.json", "damaged metadata")
    for name in array_names(path):
        if _is_small(group, name):
            read_small(group, name)


def _relative_path(campaign: Path, run: Path) -> str:
    """Return the path of a campaign relative to its run, without symbolic links on the way.

    After a link, ``..`` would lead to the parent of its target. If the campaign itself is a link, it is kept.
    """
    target = campaign.absolute()
    return os.path.relpath(target.parent.resolve() / target.name, run.resolve())


def _check_same_units(
    path: Path,
    campaign: Campaign,
    specs: Sequence[tuple[ArraySpec, str | None]],
    sizes: Mapping[str, int],
    *,
    whole: bool,
) -> None:
    """Raise StoreError unless a run has the units, the units of measurement and the mesh of this campaign."""
    group = open_group(path, "run")
    known = set(array_names(path))
    wanted = f"the run of {campaign.path}, or a new name"
    check_same_campaign(path, campaign)
    for spec, units in specs:
        if spec.name not in known:
            continue
        array = get_array(group, spec.name)
        if array.attrs.get("units") != units:
            raise StoreError(f"{path}: found {spec.name} in {array.attrs.get('units')}; wanted {units}: {wanted}")
        same = array.shape[1:] == tuple(sizes[dim] for dim in spec.dims[1:]) or spec.detector_chunk
        if not same and "y" in spec.dims:
            raise StoreError(f"{path}: found frames of {array.shape[2:]}; wanted {campaign.shape}: {wanted}")
        if not same and not whole:
            raise StoreError(
                f"{path}: found a mesh of {array.shape[2:]} boxes; wanted all units for another background.box"
            )


def check_same_campaign(path: Path, campaign: Campaign) -> None:
    """Check that a campaign has the exposures and detectors of a run.

    Raises
    ------
    StoreError
        If it has not.
    """
    group = open_group(path, "run")
    known = set(array_names(path))
    wanted = f"the run of {campaign.path}, or a new name"
    if "exposure" in known:
        named = [str(name) for name in read_small(group, "exposure") if str(name)]
        if named != campaign.exposures[: len(named)]:
            raise StoreError(f"{path}: found a run over other exposures ({', '.join(named[:3])} ...); wanted {wanted}")
    if "detector" in known:
        detectors = [int(value) for value in read_small(group, "detector")]
        if detectors != campaign.detectors and detectors != [-1] * len(detectors):
            raise StoreError(f"{path}: found a run over detectors {detectors}; wanted {wanted}")


def campaign_path(path: Path, campaign: str | Path | None = None) -> Path:
    """Return the folder of the campaign of a run.

    Parameters
    ----------
    path : Path
        Folder of the run.
    campaign : path, optional
        Folder of the campaign; default: the relative path that the run recorded.

    Raises
    ------
    StoreError
        If there is no campaign.
    """
    if campaign is not None:
        found = Path(campaign)
    else:
        group = open_group(path, "run")
        if "campaign" not in group.attrs:
            raise StoreError(
                f"{path}: found a run that was interrupted while it was created; wanted a complete one (run it again)"
            )
        recorded = str(group.attrs["campaign"])
        # The path recorded by older runs may lead through symbolic links.
        candidates = [Path(os.path.normpath(root / recorded)) for root in (path, path.resolve(), path.absolute())]
        found = next((folder for folder in candidates if (folder / "zarr.json").exists()), candidates[0])
    if not (found / "zarr.json").exists():
        raise StoreError(
            f"{found}: found no campaign; wanted that of {path} "
            "(moved? give its path: --campaign PATH, or campaign=PATH in Python)"
        )
    return found


class MetricsWriter:
    """Collect metrics of units and write them in batches. Used by the driver only.

    Parameters
    ----------
    path : Path
        Folder of the run.
    names : sequence of str
        Names of the metrics.
    flush_every : int
        Number of units per batch.
    """

    def __init__(self, path: Path, names: Sequence[str], flush_every: int = 512) -> None:
        self._path, self._names, self._flush_every = path, tuple(names), flush_every
        self._pending: dict[tuple[int, int], Mapping[str, float | int | None]] = {}

    def put(self, row: int, column: int, metrics: Mapping[str, float | int | None]) -> None:
        """Add the metrics of one unit; missing values become NaN."""
        self._pending[row, column] = metrics

    def discard(self) -> None:
        """Discard the collected metrics."""
        self._pending.clear()

    @property
    def due(self) -> bool:
        """Return whether enough is gathered to be written."""
        return len(self._pending) >= self._flush_every

    def flush(self) -> None:
        """Write the collected metrics."""
        if not self._pending:
            return
        group = open_group(self._path, "run", "r+")
        rows = sorted({row for row, _ in self._pending})
        span = slice(rows[0], rows[-1] + 1)
        for name in self._names:
            array = get_array(group, name)
            values: npt.NDArray[np.float64] = read_small(group, name, span)
            for (row, column), metrics in self._pending.items():
                value = metrics.get(name)
                values[row - span.start, column] = np.nan if value is None else value
            array[span] = values
        self._pending.clear()
