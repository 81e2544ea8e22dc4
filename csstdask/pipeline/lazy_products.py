"""Products of a run as lazy arrays: cosmic-ray masks and repaired frames of an xarray dataset.

The steps of a run are applied to one frame per Dask block. On complete frames the results are those that a run stores.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from threadpoolctl import threadpool_limits

from csstdask.core.errors import InputError
from csstdask.core.settings import validate_settings
from csstdask.instrument import Instrument
from csstdask.pipeline.config import RunConfig, load_config
from csstdask.pipeline.frame import Frame
from csstdask.pipeline.prepare import choose_precision
from csstdask.pipeline.step import Step
from csstdask.pipeline.steps import apply_steps
from csstdask.pipeline.steps.detect import DETECT
from csstdask.pipeline.steps.psf import PSF
from csstdask.pipeline.steps.repair import REPAIR
from csstdask.store.schema import NO_TIME
from csstdask.store.unit_metadata import UnitMetadata

RunSettings = RunConfig | Mapping[str, Any] | str | Path | None
"""Settings of a run: a `RunConfig`, a dictionary, the path of a TOML file, or None for the defaults."""

_SOLVER_LOCK = Lock()
"""Linear systems are solved one at a time on one thread, as in a run, so that results are equal bit for bit."""


def lazy_product(dataset: xr.Dataset, instrument: Instrument, settings: RunSettings, *, repair: bool) -> xr.DataArray:
    """Return the cosmic-ray mask or the repaired frames of a campaign as a lazy array.

    Parameters
    ----------
    dataset : xarray.Dataset
        Campaign, or a selection from one.
    instrument : Instrument
        Camera.
    settings : RunConfig, dict, path or None
        Settings of a run.
    repair : bool
        Whether to return repaired frames instead of masks.

    Returns
    -------
    xarray.DataArray
        Bool, or float32 in the units of ``sci``, with one block per detector.

    Raises
    ------
    InputError
        If the dataset has no raw planes, or the settings are invalid.
    """
    if "sci" not in dataset:
        raise InputError("dataset", "no raw planes (sci, wht, flag)", "a campaign; a run has cr_mask and clean already")
    planes = [dataset[name].chunk({"y": -1, "x": -1}) for name in ("sci", "wht", "flag")]
    words, codes = _encode(dataset["kind"], dataset["band"])
    product: xr.DataArray = xr.apply_ufunc(
        _unit_product,
        *planes,
        dataset["exptime"],
        dataset["gain"],
        dataset["read_noise"],
        dataset["detector"],
        *codes,
        kwargs={
            "words": words,
            "units": dataset["sci"].attrs["units"],
            "instrument": instrument,
            "config": choose_precision(_run_config(settings)),
            "repair": repair,
        },
        input_core_dims=[["y", "x"]] * 3 + [[]] * 6,
        output_core_dims=[["y", "x"]],
        vectorize=True,
        dask="parallelized",
        output_dtypes=[np.float32 if repair else bool],
    )
    return product


def _unit_product(
    sci: npt.NDArray[Any],
    wht: npt.NDArray[Any],
    flag: npt.NDArray[Any],
    exptime: float,
    gain: float,
    read_noise: float,
    detector: int,
    kind: int,
    band: int,
    *,
    words: tuple[str, ...],
    units: str,
    instrument: Instrument,
    config: RunConfig,
    repair: bool,
) -> npt.NDArray[Any]:
    """Return the mask or the repaired frame of one unit, or of a cut-out, computed by the steps of a run."""
    metadata = UnitMetadata(
        exposure="",
        detector=int(detector),
        kind=words[int(kind)],
        band=words[int(band)],
        exptime=float(exptime),
        time=NO_TIME,
        gain=float(gain),
        read_noise=float(read_noise),
        digest="",
    )
    if not np.isfinite(sci).any() or metadata.kind not in DETECT.kinds:
        return sci if repair else np.zeros(sci.shape, dtype=bool)
    planes = {"sci": sci, "wht": wht, "flag": flag}
    frame = Frame(metadata, instrument, units, lambda name: planes[name].copy(), lambda name: planes[name])
    apply_steps(frame, [REPAIR.name if repair else DETECT.name], config, _exclusive_if_solving)
    hit = frame.product("cr_mask")
    if not repair:
        return hit
    repaired = hit & np.isfinite(frame.product("repair_variance"))
    return np.where(repaired, frame.product("repair"), sci)


@contextlib.contextmanager
def _exclusive_if_solving(step: Step) -> Iterator[None]:
    """Run a step that solves linear systems exclusively, on one thread."""
    if step.name not in (PSF.name, REPAIR.name):
        yield
        return
    with _SOLVER_LOCK, threadpool_limits(1, "blas"):
        yield


def _run_config(settings: RunSettings) -> RunConfig:
    """Return settings in any of their forms as a RunConfig."""
    if settings is None or isinstance(settings, str | Path):
        return load_config(None if settings is None else Path(settings))
    if isinstance(settings, RunConfig):
        return settings
    return validate_settings(RunConfig, settings, "config", "valid settings")


def _encode(*texts: xr.DataArray) -> tuple[tuple[str, ...], list[xr.DataArray]]:
    """Return the distinct words of text arrays, and the arrays as indices into them, which Dask can handle."""
    words = sorted({str(value) for text in texts for value in np.ravel(text.values)})
    return tuple(words), [
        text.copy(data=np.reshape([words.index(str(value)) for value in np.ravel(text.values)], text.shape))
        for text in texts
    ]
