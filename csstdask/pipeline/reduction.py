"""Declare a reduction: the partials it reads, the arrays it writes, its algorithm; and read its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import StoreError
from csstdask.engine.partials import ReductionRecord, reduction_record_path
from csstdask.instrument import Instrument
from csstdask.pipeline.config import RunConfig
from csstdask.store.campaign import Campaign
from csstdask.store.store_metadata import open_group
from csstdask.store.zarr_arrays import get_array

if TYPE_CHECKING:  # engine.reduce imports Dask, which `status` and `--dry-run` do not need
    from csstdask.engine.reduce import Algorithm
    from csstdask.pipeline.plan import Plan


Scope = Literal["detector", "campaign"]
"""Whether each detector has a result, or the whole campaign."""


@dataclass(frozen=True)
class ReductionProduct:
    """An array that a reduction writes."""

    name: str
    """Name of the array in the run's store."""
    dims: tuple[str, ...]
    """Dimensions; of a reduction per detector, those after ``detector``."""
    dtype: str
    """NumPy type."""
    fill: object
    """Value of elements that have not been written."""
    units: str | None = None
    long_name: str = ""
    """Description."""


@dataclass(frozen=True)
class Reduced:
    """Result of a reduction for one detector, or for the campaign."""

    arrays: dict[str, npt.NDArray[Any]]
    """Products, without the dimension ``detector``."""
    metrics: dict[str, float | int | None] = field(default_factory=dict)
    """Numbers for the record."""


@dataclass(frozen=True)
class Reduction:
    """Declaration of one reduction, of each detector or of the whole campaign."""

    name: str
    """Name in ``--steps``, records and fingerprints."""
    step: str
    """Step whose partials it reads."""
    partial: str
    """Partial of that step."""
    kinds: frozenset[str]
    """Kinds of frames that contribute."""
    numerics_version: int
    """Raised whenever the same partials would give other numbers."""
    settings: Callable[[RunConfig], dict[str, Any]]
    """Settings that decide the result."""
    camera: Callable[[Instrument], dict[str, Any]]
    """Properties of the camera that decide the result."""
    algorithm: Callable[[RunConfig, Campaign, tuple[int, ...]], Algorithm[Any, Any]]
    """Algorithm for some detectors: one, or all of the campaign."""
    result: Callable[[Any, RunConfig, Campaign, tuple[int, ...]], Reduced]
    """Products for these detectors, from the last solution."""
    sizes: Callable[[RunConfig, Campaign], Mapping[str, int]]
    """Lengths of the dimensions of the products."""
    without_inputs: Callable[[RunConfig], str]
    """Error and cure if units are finished and none has a partial."""
    products: tuple[ReductionProduct, ...]
    """Arrays that it writes."""
    inputs: tuple[str, ...] = ()
    """Input tables, besides those of its step, without which it is left out of a default run."""
    check: Callable[[Plan], None] = lambda _: None
    """Raises InputError before a run whose reduction could not succeed."""
    panel: str = ""
    """Panel of the report that shows its results; empty: none."""
    scope: Scope = "detector"
    """Whether each detector has a result, from its own units, or the campaign has one, from all units."""
    remark: Callable[[Mapping[str, float | int | None]], str] = lambda _: ""
    """Remark for its line of a summary, from the metrics of a record."""

    def array_dims(self, product: ReductionProduct) -> tuple[str, ...]:
        """Return all dimensions of a product."""
        return ("detector", *product.dims) if self.scope == "detector" else product.dims


def read_result(
    root: Path, reduction: Reduction, detector: int | None, wanted: str | None
) -> tuple[dict[str, npt.NDArray[Any]], ReductionRecord] | None:
    """Read the arrays of a reduction from a run's store, and verify them.

    Parameters
    ----------
    root : Path
        Store of the run.
    reduction : Reduction
        Which reduction.
    detector : int or None
        Id of the detector; None for a reduction of the whole campaign.
    wanted : str or None
        Fingerprint of the result of the present partials (`csstdask.pipeline.reduction_status.current_fingerprints`);
        None if there is none.

    Returns
    -------
    arrays, record
        Arrays by name, without the dimension ``detector``, and the record. None if the run has no result of its
        present partials.

    Raises
    ------
    StoreError
        If an array is damaged.
    """
    record = ReductionRecord.read(reduction_record_path(root, reduction.name, detector))
    if wanted is None or not record.objects or not record.is_current(root, wanted):
        return None
    for item in record.objects:
        if not item.is_intact(root, checksum=True):
            raise StoreError(
                f"{root / item.path}: found content that differs from its record; wanted that of the run (run --verify)"
            )
    group = open_group(root, "run")
    where: Any = ...
    if detector is not None:
        where = np.asarray(get_array(group, "detector")[:]).tolist().index(detector)
    arrays = {product.name: np.asarray(get_array(group, product.name)[where]) for product in reduction.products}
    return arrays, record
