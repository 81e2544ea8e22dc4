"""Statistics of photometry and shapes of repaired sources over the units of a recipe, in bins."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from csstdask.evaluation.inpaint.photometry import (
    APERTURE,
    CLEAN,
    KINDS,
    STAR_COLUMNS,
    Column,
    Mask,
    UnitMeasurements,
    measure_unit,
)
from csstdask.evaluation.parallel import map_units
from csstdask.evaluation.runner import ProgressCallback
from csstdask.metrics.detection import Bool
from csstdask.mock import Recipe

#: Lower edges of the bins of the distance of a source from the nearest pixel with charge [pixel].
DISTANCES = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 15.0)
#: Pulls are clipped to this value, so that few outliers do not dominate a standard deviation.
_MAX_PULL = 20.0
#: Smallest number of sources in a bin.
_MIN_SOURCES = 8
#: Columns that are not fluxes.
_FACTS = {"magnitude", "is_star", "distance", "masked", "usable", *STAR_COLUMNS}


def science_part(
    recipe: Recipe,
    models: Sequence[str],
    on_progress: ProgressCallback,
    *,
    mask: Mask = "true",
    peers: bool = True,
    workers: int | None = None,
) -> dict[str, Any]:
    """Evaluate shifts, scatters, pulls and shapes of all methods over the units of a recipe.

    Parameters
    ----------
    recipe : Recipe
        Recipe with cosmic rays on sources.
    models : sequence of str
        Networks, by name or card.
    on_progress : callable
        Receives lines about the progress.
    mask, peers
        As for `measure_unit`.
    workers : int, optional
        Number of worker processes, by default one per CPU core; 0: none.

    Returns
    -------
    dict
        ``bins`` by kind, magnitude and distance from the nearest pixel with charge, each with a row per method;
        ``pulls`` of the methods that return a variance; ``shapes`` by method and kind.
    """
    look = partial(measure_unit, models=tuple(models), mask=mask, peers=peers)
    units = list(map_units(recipe, look, on_progress=on_progress, workers=workers))
    columns = {name: np.concatenate([unit.columns[name] for unit in units]) for name in units[0].columns}
    relative = _relative([unit.columns for unit in units])
    names = [name for name in columns if name not in _FACTS]
    bins = []
    for kind, is_star in (("star", 1.0), ("galaxy", 0.0)):
        for magnitude in np.unique(np.round(columns["magnitude"], 2)):
            for near, far in pairwise((*DISTANCES, np.inf)):
                chosen = (columns["usable"] > 0) & (columns["is_star"] == is_star)
                chosen &= np.abs(columns["magnitude"] - magnitude) < 0.01
                chosen &= (columns["distance"] >= near) & ((columns["distance"] < far) | (far == np.inf))
                if chosen.sum() < _MIN_SOURCES:
                    continue
                of_stars = {name: float(np.median(columns[name][chosen])) for name in STAR_COLUMNS} if is_star else {}
                bins.append(
                    {
                        "kind": kind,
                        "magnitude": float(magnitude),
                        "distance": [near, far],
                        "n": int(chosen.sum()),
                        "masked_charge": float(columns["masked"][chosen].mean()),
                        **of_stars,
                        "methods": {name: _row(columns, relative, name, chosen) for name in names},
                    }
                )
    pulls = {name: pull_statistics(units, name) for name in units[0].pulls}
    shapes = {name: shape_statistics(units, name) for name in units[0].shapes}
    return {"mask": mask, "aperture": APERTURE, "bins": bins, "pulls": pulls, "shapes": shapes}


def _relative(units: Sequence[dict[str, Column]]) -> dict[str, Column]:
    """Return fluxes relative to the median flux of the clean twins of the same source."""
    parts: list[dict[str, Column]] = []
    for columns in units:
        usual = np.empty(len(columns["magnitude"]))
        for magnitude in np.unique(columns["magnitude"]):
            same = columns["magnitude"] == magnitude
            usual[same] = np.median(columns[CLEAN][same])
        parts.append({name: flux / usual for name, flux in columns.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _row(columns: dict[str, Column], relative: dict[str, Column], name: str, chosen: Bool) -> dict[str, float]:
    flux, twin = columns[name][chosen], columns[CLEAN][chosen]
    good = (flux > 0) & (twin > 0)
    shift = np.full(len(flux), np.nan)
    shift[good] = -2.5 * np.log10(flux[good] / twin[good])
    low, high = np.percentile(relative[name][chosen], [15.865, 84.135])
    five, middle, most = np.nanpercentile(shift, [5, 50, 95]) if good.any() else (np.nan,) * 3
    return {
        "shift": float(middle),
        "shift_5": float(five),
        "shift_95": float(most),
        "scatter": float(high - low) / 2,
        "lost": float((~good).mean()),
    }


def pull_statistics(units: Sequence[UnitMeasurements], name: str) -> dict[str, dict[str, float]]:
    """Return number, mean and standard deviation of the pulls of a method: of pixels and of fluxes, by kind."""
    parts = {kind: np.concatenate([unit.pulls[name][kind] for unit in units]) for kind in KINDS}
    flux = np.concatenate([unit.flux_pulls[name] for unit in units])
    is_star, usable = (np.concatenate([unit.columns[key] for unit in units]) > 0 for key in ("is_star", "usable"))
    known = np.isfinite(flux) & usable
    parts |= {"star, flux": flux[known & is_star], "galaxy, flux": flux[known & ~is_star]}
    return {kind: summarise_pulls(pull) for kind, pull in parts.items() if len(pull)}


def shape_statistics(units: Sequence[UnitMeasurements], name: str) -> dict[str, dict[str, float]]:
    """Return mean and standard deviation of the shape errors, clipped to 1, and the fraction without shape, by kind."""
    change = np.clip(np.concatenate([unit.shapes[name] for unit in units]), -1, 1)
    is_star = np.concatenate([unit.columns["is_star"] for unit in units]) > 0
    asked = np.concatenate([unit.shaped for unit in units]) > 0
    known = np.isfinite(change).all(axis=1)
    rows: dict[str, dict[str, float]] = {}
    for kind, chosen in (("star", known & is_star), ("galaxy", known & ~is_star)):
        if chosen.any():
            mean, deviation = change[chosen].mean(axis=0), change[chosen].std(axis=0)
            there = asked & (is_star if kind == "star" else ~is_star)
            rows[kind] = {"n": int(there.sum()), "lost": float(1 - known[there].mean())}
            for index, column in enumerate(("size", "e1", "e2")):
                rows[kind] |= {f"{column}_mean": float(mean[index]), f"{column}_sd": float(deviation[index])}
    return rows


def summarise_pulls(pull: Column) -> dict[str, float]:
    """Return number, mean and standard deviation of pulls, which are clipped to 20."""
    near = np.clip(pull, -_MAX_PULL, _MAX_PULL)
    return {"n": len(pull), "mean": float(near.mean()), "sd": float(near.std())}
