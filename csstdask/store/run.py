"""A run: the output store, laid out over the same units as its campaign.

The driver makes the arrays and grows them with the campaign; workers write the shards of their units; the
driver alone writes metrics, for their chunks span units. Nothing in the arrays tells when, where or in
which attempt a number was made: two runs of the same input and settings are equal bit for bit.
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
from csstdask.store.schema import SCHEMA_VERSION, UNIT_DIMS, ArraySpec
from csstdask.store.zarr_arrays import (
    ATTRIBUTES_COPY,
    array_names,
    consolidate,
    create_array,
    damaged_arrays,
    damaged_file_error,
    get_array,
    open_group,
    read_attributes_copy,
    read_small,
    resize,
    restore_metadata,
    root_metadata,
)


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
    """Create a run's store, or bring one up to its campaign's exposures and to the arrays of this run.

    Parameters
    ----------
    path : Path
        The folder.
    campaign : Campaign
        Whose units it is about.
    specs : sequence of (ArraySpec, units)
        Product arrays.
    sizes : mapping
        Lengths of a unit's dimensions.
    metrics : sequence of str
        Names of (exposure, detector) arrays.
    attributes : mapping
        What this run is: configuration, steps, fingerprint.
    whole : bool
        The run is about all units: only then may it change the mesh, which all units share.
    repair : bool
        Make damaged metadata of the store anew; begin arrays anew whose metadata is lost, and damaged metrics. Damaged
        metadata of an array is restored in any case, from the copy that the store holds.

    Returns
    -------
    list of str
        Metrics that were begun anew: their values are in the records of the units.

    Raises
    ------
    StoreError
        If the store holds another campaign's products: nothing of it is touched then.
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
        # Marked at birth: a driver killed while it makes the arrays leaves a run that the next one completes.
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
            del group[spec.name]  # another mesh, or another cube: pending
            known.discard(spec.name)
        if spec.name not in known:
            create_array(group, spec, sizes, units)
    for name in metrics:
        if name not in known:
            create_array(group, ArraySpec(name, UNIT_DIMS, "float64", float("nan"), "table"), sizes)
    group.attrs.update(
        {
            "csstdask": "run",
            "schema_version": SCHEMA_VERSION,
            "campaign": _relative(campaign.path, path),
            **attributes,
        }
    )
    consolidate(path)
    write_atomic(path / ATTRIBUTES_COPY, json.dumps(dict(group.attrs)).encode())
    return restored


def _repair(path: Path) -> list[str]:
    """Restore the metadata of a damaged run, and remove what metrics cannot be read; return the names of these.

    Shards, tables and the ledger are not touched: which of them hold is for their checksums to say.
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
    """Return the metrics and coordinates of a run with a chunk that cannot be read."""
    group, damaged = open_group(path, "run"), []
    for name in array_names(path):
        if _is_small(group, name):
            try:
                read_small(group, name)
            except StoreError:
                damaged.append(name)
    return damaged


def _is_small(group: zarr.Group, name: str) -> bool:
    """Return whether an array is a coordinate or holds metrics: the driver alone writes it, and no record lists it."""
    dims = tuple(get_array(group, name).metadata.dimension_names or ())  # type: ignore[union-attr]
    return dims in {("exposure",), ("detector",), UNIT_DIMS}


def check_metadata(path: Path) -> None:
    """Raise StoreError, naming the file, if metadata or metrics of a run are damaged."""
    group = open_group(path, "run")
    for name in damaged_arrays(path):
        raise damaged_file_error(group, path / name / "zarr.json", "damaged metadata")
    for name in array_names(path):
        if _is_small(group, name):
            read_small(group, name)


def _relative(campaign: Path, run: Path) -> str:
    """Return where a campaign lies as seen from its run, with no symbolic link on the way.

    ``..`` leads to the parent of the folder that a link points to. The campaign itself may be a link: it is kept.
    """
    there = campaign.absolute()
    return os.path.relpath(there.parent.resolve() / there.name, run.resolve())


def _check_same_units(
    path: Path,
    campaign: Campaign,
    specs: Sequence[tuple[ArraySpec, str | None]],
    sizes: Mapping[str, int],
    *,
    whole: bool,
) -> None:
    """Raise StoreError unless a run's store is about this campaign's units."""
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
    """Raise StoreError unless a campaign has the exposures and detectors of a run."""
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
    """Return the campaign of a run: as given, or as the run remembers it, relative to itself.

    Raises
    ------
    StoreError
        If it is not there.
    """
    if campaign is not None:
        found = Path(campaign)
    else:
        group = open_group(path, "run")
        if "campaign" not in group.attrs:
            raise StoreError(
                f"{path}: found a run that was stopped before it began; wanted one to look at (run it again)"
            )
        remembered = str(group.attrs["campaign"])
        # Older runs remember a path that may lead through symbolic links.
        places = [Path(os.path.normpath(root / remembered)) for root in (path, path.resolve(), path.absolute())]
        found = next((place for place in places if (place / "zarr.json").exists()), places[0])
    if not (found / "zarr.json").exists():
        raise StoreError(
            f"{found}: found no campaign; wanted that of {path} "
            "(moved? give its path: --campaign PATH, or campaign=PATH in Python)"
        )
    return found


class MetricsWriter:
    """Gather metrics of units and write them in few strokes: the driver's alone."""

    def __init__(self, path: Path, names: Sequence[str], flush_every: int = 512) -> None:
        self._path, self._names, self._flush_every = path, tuple(names), flush_every
        self._pending: dict[tuple[int, int], Mapping[str, float | int | None]] = {}

    def put(self, row: int, column: int, metrics: Mapping[str, float | int | None]) -> None:
        """Take one unit's metrics; a name without a value becomes NaN."""
        self._pending[row, column] = metrics

    def discard(self) -> None:
        """Forget what was gathered."""
        self._pending.clear()

    @property
    def due(self) -> bool:
        """Return whether enough is gathered to be written."""
        return len(self._pending) >= self._flush_every

    def flush(self) -> None:
        """Write what was gathered."""
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
