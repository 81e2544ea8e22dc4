"""The science test of repair: sources of known brightness, each hit a hundred times (CSST rejection paper, figure 5).

Each cosmic ray falls on a copy of its source with photons and a place within the pixel of its own, and the same copy
without it, photon by photon, is measured alike: what differs is the repair. Fluxes are sums in an aperture at the true
place. Two numbers are told of each bin:

* the shift, the median of ``-2.5 log10(repaired / clean twin)``;
* the scatter, half of the central 68 % of (repaired / what such a source has in the median), photon noise in it;
  beside it that of the clean twins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import sep

from csstdask.cosmicray.detect import detect
from csstdask.cosmicray.evaluate.frames import Known, draw, over_units
from csstdask.cosmicray.evaluate_inpaint.fillers import Damaged, fillers
from csstdask.cosmicray.scoring import Bool, Float
from csstdask.mock import Recipe

Announce = Callable[[str], None]
Column = npt.NDArray[np.float64]

#: Radius of the aperture [pixel], and half the side of what belongs to a source.
APERTURE, _HALF = 5.0, 16
#: Distances of the nearest repaired pixel from a source [pixel], at which bins begin.
DISTANCES = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 15.0)
#: Sigma of the sky above which a pixel is a source's.
_SOURCE = 3.0
#: Pulls beyond this count as this: a few misses must not be all that a deviation tells.
_FURTHEST = 20.0
_LEAST = 8
CLEAN = "clean twin"


@dataclass
class Measured:
    """What repair made of the sources of one unit."""

    columns: dict[str, Column] = field(default_factory=dict)
    """``magnitude``, ``is_star``, ``distance`` [pixel], ``charge`` [e-] of each source; its flux [e-] by method."""
    pulls: dict[str, dict[str, Column]] = field(default_factory=dict)
    """By method: (repaired - clean) / sigma of pixels of ``star``, ``galaxy`` and ``background``."""
    flux_pulls: dict[str, Column] = field(default_factory=dict)
    """By method: the same of aperture fluxes, pixels taken as independent; NaN where nothing was repaired."""


def measure_unit(recipe: Recipe, index: int, detector: int, *, models: Sequence[str], mask: str) -> Measured:
    """Render a unit, repair it in every way, and measure its sources.

    Parameters
    ----------
    recipe : Recipe
        That aims cosmic rays at sources.
    index, detector : int
        Of the unit.
    models : sequence of str
        Networks, by name or card.
    mask : str
        ``true``: all pixels with charge; ``detected``: those that detection finds.
    """
    known = draw(recipe, index, detector)
    case = known.case
    hit = (case.charge > 0) & ~case.ignore
    if mask == "detected":
        hit = np.asarray(detect(case.data, case.error, case.ignore).mask)
    frame = Damaged(case.data, case.error, case.ignore)
    x, y = known.catalogue.x, known.catalogue.y
    measured = Measured({"magnitude": known.catalogue.mag, "is_star": known.catalogue.is_star.astype(float)})
    measured.columns |= _hits(hit, case.charge, x, y)
    measured.columns[CLEAN] = aperture_flux(known.clean - np.float32(known.sky), x, y)
    region = _regions(known)
    for name, fill in fillers(models).items():
        fixed, variance = fill(frame, hit)
        flux = aperture_flux(fixed - np.float32(known.sky), x, y)
        measured.columns[name] = flux
        if variance is None:
            continue
        told = hit & np.isfinite(variance) & (variance > 0)
        pull = np.zeros_like(known.clean)
        pull[told] = (fixed - known.clean)[told] / np.sqrt(variance[told])
        measured.pulls[name] = {kind: pull[told & (region == number)].astype(float) for kind, number in _KINDS.items()}
        whole = aperture_flux(np.where(told, variance, 0), x, y)
        with np.errstate(divide="ignore", invalid="ignore"):
            measured.flux_pulls[name] = np.where(whole > 0, (flux - measured.columns[CLEAN]) / np.sqrt(whole), np.nan)
    return measured


def aperture_flux(frame: Float, x: Column, y: Column) -> Column:
    """Return the sum of a frame in a circle round each place [the frame's units]."""
    return np.asarray(sep.sum_circle(np.ascontiguousarray(frame, dtype=np.float32), x, y, APERTURE, subpix=5)[0])


_KINDS = {"background": 0, "star": 1, "galaxy": 2}


def _regions(known: Known) -> npt.NDArray[np.int8]:
    """Return what each pixel is of: background, a star or a galaxy."""
    region = np.zeros(known.clean.shape, dtype=np.int8)
    for x, y, is_star in zip(known.catalogue.x, known.catalogue.y, known.catalogue.is_star, strict=True):
        row, column = int(np.floor(y + 0.5)), int(np.floor(x + 0.5))
        window = (slice(max(0, row - _HALF), row + _HALF), slice(max(0, column - _HALF), column + _HALF))
        bright = known.clean[window] - known.sky > _SOURCE * known.rms
        region[window][bright] = _KINDS["star" if is_star else "galaxy"]
    return region


def _hits(hit: Bool, charge: Float, x: Column, y: Column) -> dict[str, Column]:
    """Return how far the nearest pixel to repair is from each source, and the charge round it."""
    distance, total = np.full(len(x), np.inf), np.zeros(len(x))
    for number, (column, row) in enumerate(zip(x, y, strict=True)):
        top, left = max(0, int(row) - _HALF), max(0, int(column) - _HALF)
        window = (slice(top, int(row) + _HALF), slice(left, int(column) + _HALF))
        rows, columns = np.nonzero(hit[window])
        total[number] = charge[window].sum()
        if len(rows):
            distance[number] = np.hypot(rows + top - row, columns + left - column).min()
    return {"distance": distance, "charge": total}


def science_part(
    recipe: Recipe, models: Sequence[str], announce: Announce, *, mask: str = "true", workers: int | None = None
) -> dict[str, Any]:
    """Return shifts, scatters and pulls of all methods over the units of a recipe.

    Parameters
    ----------
    recipe : Recipe
    models : sequence of str
    announce : callable
    mask : str
        As `measure_unit` takes it.
    workers : int, optional
        Processes; 0 for none but this one.
    """
    look = partial(measure_unit, models=tuple(models), mask=mask)
    units = list(over_units(recipe, look, announce=announce, workers=workers))
    columns = {name: np.concatenate([unit.columns[name] for unit in units]) for name in units[0].columns}
    relative = _relative([unit.columns for unit in units])
    names = [name for name in columns if name not in {"magnitude", "is_star", "distance", "charge"}]
    bins = []
    for kind, is_star in (("star", 1.0), ("galaxy", 0.0)):
        for magnitude in np.unique(np.round(columns["magnitude"], 2)):
            for near, far in pairwise((*DISTANCES, np.inf)):
                chosen = (
                    (columns["is_star"] == is_star)
                    & (np.abs(columns["magnitude"] - magnitude) < 0.01)
                    & (columns["distance"] >= near)
                    & (columns["distance"] < far)
                )
                if chosen.sum() >= _LEAST:
                    rows = {name: _row(columns, relative, name, chosen) for name in names}
                    bins.append(
                        {"kind": kind, "magnitude": float(magnitude), "distance": [near, far], "n": int(chosen.sum())}
                        | {"methods": rows}
                    )
    return {
        "mask": mask,
        "aperture": APERTURE,
        "bins": bins,
        "pulls": {name: _pulls(units, name) for name in units[0].pulls},
    }


def _relative(units: Sequence[dict[str, Column]]) -> dict[str, Column]:
    """Return fluxes over the median of the same source's clean twins: copies differ by photons and place alone."""
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


def _pulls(units: Sequence[Measured], name: str) -> dict[str, dict[str, float]]:
    parts = {kind: np.concatenate([unit.pulls[name][kind] for unit in units]) for kind in _KINDS}
    flux = np.concatenate([unit.flux_pulls[name] for unit in units])
    is_star = np.concatenate([unit.columns["is_star"] for unit in units]) > 0
    known = np.isfinite(flux)
    parts |= {"star, flux": flux[known & is_star], "galaxy, flux": flux[known & ~is_star]}
    return {
        kind: {
            "n": len(pull),
            "mean": float(pull.clip(-_FURTHEST, _FURTHEST).mean()),
            "sd": float(pull.clip(-_FURTHEST, _FURTHEST).std()),
        }
        for kind, pull in parts.items()
        if len(pull)
    }
