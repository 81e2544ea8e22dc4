"""Read the results of reductions that belong to the present units of a run: zero points and flat-field cubes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt

from csstdask.engine.ledger import Ledger
from csstdask.flux.flat import Flat
from csstdask.pipeline.plan import Plan
from csstdask.pipeline.reduction_status import current_fingerprints
from csstdask.pipeline.reductions.flat import FLAT, read_cube
from csstdask.pipeline.reductions.zeropoints import ZEROPOINTS, read_zero_points
from csstdask.pipeline.status import load_plan


def current_zero_points(root: Path, plan: Plan) -> dict[str, npt.NDArray[Any]] | None:
    """Return the zero points of a run (exposure, detector), by name; None if they are not those of its present units.

    Zero points of other settings, of other pixels or of units that are pending are not returned.

    Parameters
    ----------
    root : Path
        Store of the run.
    plan : Plan
        As the run remembers it (`csstdask.pipeline.status.load_plan`).

    Raises
    ------
    StoreError
        If an array is damaged.
    """
    return read_zero_points(root, current_fingerprints(plan, Ledger(root), ZEROPOINTS).get(None))


def current_flat(root: Path, detector: int, plan: Plan | None = None) -> Flat | None:
    """Return the flat-field cube of a detector from a run; None if it is not that of its present units.

    Parameters
    ----------
    root : Path
        Store of the run.
    detector : int
        Its id.
    plan : Plan, optional
        Plan of the run; default: read from the store.

    Raises
    ------
    StoreError
        If an array is damaged.
    """
    remembered = load_plan(root) if plan is None else plan
    wanted = current_fingerprints(remembered, Ledger(root), FLAT, (detector,)).get(detector)
    return read_cube(root, detector, wanted)
