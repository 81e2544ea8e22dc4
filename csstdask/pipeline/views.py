"""Open a run with calibrated frames as lazy views.

``clean`` is the science plane with repaired pixels, ``clean_wht`` its inverse variance, ``flag_out`` the flags as they
are exported, ``cr_mask_input`` the cosmic rays flagged in the input. None of them is stored; export writes these views.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from csstdask.arrays.frame import frame_variance
from csstdask.arrays.mesh import Mesh
from csstdask.engine.ledger import Ledger
from csstdask.instrument import Instrument, electrons_per_unit, validate_instrument
from csstdask.pipeline.completed_units import done_units
from csstdask.pipeline.plan import Plan
from csstdask.pipeline.reduction_status import current_fingerprints
from csstdask.pipeline.reductions import REDUCTIONS
from csstdask.pipeline.status import load_plan
from csstdask.pipeline.steps import STEPS
from csstdask.store.campaign_dataset import open_campaign
from csstdask.store.run import campaign_path
from csstdask.store.schema import RENAMED_METRICS
from csstdask.store.store_metadata import open_group
from csstdask.store.unit_metadata import FOOTPRINT
from csstdask.store.xarray_formats import make_portable


def open_run(path: str | Path, campaign: str | Path | None = None, *, check: bool = True) -> xr.Dataset:
    """Open a run, lazily, with calibrated views on its campaign.

    Parameters
    ----------
    path : str or Path
        The run's store.
    campaign : str or Path, optional
        Path of the campaign, if it has moved.
    check : bool
        Read the records of all units (about 0.2 ms each, and again for each reduction) to determine which are finished.
        Without it ``done`` is absent, the views of unfinished units are undefined, and results of reductions may be of
        other settings or pixels.

    Returns
    -------
    xarray.Dataset
        The run's products and metrics, its campaign's coordinates, and the views ``clean``, ``clean_wht``,
        ``flag_out`` and ``cr_mask_input``. Methods of the ``.csst`` accessor that need raw planes are not available.
        The coordinate ``done`` (exposure, detector) marks the units that are finished for the present pixels of the
        campaign: for others, ``clean`` is NaN, ``clean_wht`` 0, and ``flag_out`` the campaign's flags. Results of
        reductions (``zp``, ``zp_sigma``, ``zp_method``, ``flat`` ...) that do not belong to the present units, which
        ``csstdask status`` lists as pending or failed, are replaced by their fill values: NaN, or an empty string.

    Raises
    ------
    StoreError
        If there is no run or no campaign.
    """
    root = Path(path)
    open_group(root, "run")
    dataset = _with_present_names(make_portable(xr.open_zarr(root, chunks={})))
    source_path = campaign_path(root, campaign)
    source = open_campaign(source_path)
    source = source.isel(exposure=slice(0, dataset.sizes["exposure"]))
    coordinates = {name: source[name] for name in source.coords if name not in dataset.coords}
    dataset = dataset.assign_coords(coordinates)
    dataset.attrs |= {"path": str(root), "campaign_path": str(source_path), "instrument": source.attrs["instrument"]}
    flags = validate_instrument(source.attrs["instrument"], str(root)).flags
    for step in STEPS.values():
        if any(product.name in dataset for product in step.products):
            dataset = dataset.assign_coords(step.coordinates((source.sizes["y"], source.sizes["x"])))
    incoming = np.int32(flags.incoming_cosmic_ray_mask)
    for name in ("header", *FOOTPRINT, "planes", "file_units", "unit_scale"):
        if name in source:
            dataset[name] = source[name]
    dataset["cr_mask_input"] = (source["flag"] & incoming) != 0
    if check:
        plan = load_plan(root, source_path)
        done = done_units(root, plan, dataset.sizes["exposure"])
        dataset = _only_current(dataset, root, plan).assign_coords(done=(("exposure", "detector"), done))
    if "repair" not in dataset:
        return dataset
    repaired = dataset["cr_mask"] & np.isfinite(dataset["repair_variance"])
    dataset["clean"] = xr.where(repaired, dataset["repair"], source["sci"], keep_attrs=False)
    dataset["clean"].attrs = dict(source["sci"].attrs) | {"long_name": "science plane, cosmic rays repaired"}
    weight = _restored_weight(source, dataset)
    dataset["clean_wht"] = xr.where(dataset["cr_mask"], 1 / dataset["repair_variance"], weight, keep_attrs=False)
    dataset["clean_wht"].attrs = dict(source["wht"].attrs)
    ours = dataset["cr_mask"] * np.int32(flags.cosmic_ray_mask) | repaired * np.int32(flags.inpainted_mask)
    if "satellite_mask" in dataset and "satellite_trail" in flags.bits:
        ours = ours | dataset["satellite_mask"] * np.int32(flags.mask("satellite_trail"))
    dataset["flag_out"] = (source["flag"] & ~incoming) | ours
    dataset["flag_out"].attrs = dict(source["flag"].attrs)
    return mask_unfinished(dataset, source["flag"]) if check else dataset


def _with_present_names(dataset: xr.Dataset) -> xr.Dataset:
    """Return a run of an earlier version with its metrics under their present names."""
    for old, new in RENAMED_METRICS.items():
        if old in dataset:
            dataset = dataset.drop_vars(old) if new in dataset else dataset.rename({old: new})
    return dataset


def _only_current(dataset: xr.Dataset, root: Path, plan: Plan) -> xr.Dataset:
    """Replace the results of reductions that do not belong to the present units by fill values."""
    ledger, replaced = Ledger(root), {}
    detectors = dataset["detector"].values.tolist()
    for reduction in REDUCTIONS.values():
        stored = [product for product in reduction.products if product.name in dataset]
        if not stored:
            continue
        current = current_fingerprints(plan, ledger, reduction)
        kept = np.array([None in current or detector in current for detector in detectors], dtype=bool)
        for product in [] if kept.all() else stored:
            values = dataset[product.name]
            fill = xr.full_like(values, product.fill)
            if reduction.scope == "detector":
                fill = xr.where(xr.DataArray(kept, dims="detector"), values, fill).transpose(*values.dims)
            replaced[product.name] = values.copy(data=fill.data)
    return dataset.assign(replaced)


def mask_unfinished(dataset: xr.Dataset, flag: xr.DataArray) -> xr.Dataset:
    """Replace the views of unfinished units by fill values.

    A block belongs to one unit, which is looked up in one block of all units, so that no tasks are added to those of
    the views. That block is the result of a separate task: otherwise Dask (`fuse_roots`) would expand the graph of
    all blocks before it drops those that are not needed.
    """
    done = dataset["done"].values[:, :, None, None]
    table = da.from_delayed(dask.delayed(np.asarray)(done), shape=done.shape, dtype=bool)
    blank = {"clean": np.float32(np.nan), "clean_wht": np.float32(0)}
    for name in ("clean", "clean_wht", "flag_out"):
        view = dataset[name].transpose(*flag.dims)
        others = [] if name in blank else [flag.data.rechunk(view.data.chunks)]
        shown = da.map_blocks(_shown, view.data, table, *others, blank=blank.get(name), dtype=view.dtype)
        dataset[name] = view.copy(data=shown)
    return dataset


def _shown(
    block: npt.NDArray[Any],
    done: npt.NDArray[np.bool_],
    *otherwise: npt.NDArray[Any],
    blank: np.float32 | None,
    block_id: tuple[int, ...],
) -> npt.NDArray[Any]:
    """Return a block of a view, or its replacement if the unit is unfinished."""
    if done[block_id[:2]].all():
        return block
    return otherwise[0] if otherwise else np.full_like(block, blank)


def _restored_weight(source: xr.Dataset, run: xr.Dataset) -> xr.DataArray:
    """Return the weights, re-estimated from counts and noise where they were set to 0 for a cosmic ray."""
    instrument = validate_instrument(source.attrs["instrument"], "campaign")
    units = str(source["sci"].attrs["units"])
    exptime = source["exptime"] if "exptime" in source.coords else xr.full_like(source["gain"], np.nan)
    frame_dims = [["y", "x"], ["y", "x"], ["y", "x"], ["y_mesh", "x_mesh"], ["y_mesh", "x_mesh"], [], []]
    # Coordinates are dropped: chunk() would make them Dask arrays, which are computed to be compared.
    planes = [source[name].reset_coords(drop=True).chunk({"y": -1, "x": -1}) for name in ("sci", "wht", "flag")]
    meshes = [run[name].reset_coords(drop=True).chunk({"y_mesh": -1, "x_mesh": -1}) for name in ("background", "noise")]
    restored = xr.apply_ufunc(
        restore_weight,
        *planes,
        *meshes,
        exptime.reset_coords(drop=True),
        source["gain"].reset_coords(drop=True),
        kwargs={"units": units, "instrument": instrument},
        input_core_dims=frame_dims,
        output_core_dims=[["y", "x"]],
        vectorize=True,
        dask="parallelized",
        output_dtypes=[np.float32],
    )
    # Chunked as in the store, so that a cut-out of a view reads only a cut-out of its planes.
    return restored.chunk(
        dict(zip(("y", "x"), (source["wht"].chunksizes["y"], source["wht"].chunksizes["x"]), strict=True))
    )


def restore_weight(
    sci: npt.NDArray[Any],
    wht: npt.NDArray[Any],
    flag: npt.NDArray[Any],
    background: npt.NDArray[Any],
    noise: npt.NDArray[Any],
    exptime: float,
    gain: float,
    *,
    units: str,
    instrument: Instrument,
) -> npt.NDArray[np.float32]:
    """Return the weights of a frame [units^-2], re-estimated where they are 0 under an incoming cosmic-ray bit."""
    flags = instrument.flags
    zeroed = (wht == 0) & ((flag & flags.incoming_cosmic_ray_mask) != 0) & np.isfinite(sci)
    zeroed &= (flag & flags.ignore_mask) == 0  # pixels that are bad for another reason stay unusable
    if not zeroed.any() or not np.isfinite(noise).all():
        return wht
    scale = electrons_per_unit(units, float(exptime), float(gain))
    mesh = Mesh(background * np.float32(scale), noise * np.float32(scale), sci.shape)
    variance = frame_variance(sci * np.float32(scale), None, mesh)
    return np.where(zeroed, np.float32(scale**2) / variance, wht).astype(np.float32)
