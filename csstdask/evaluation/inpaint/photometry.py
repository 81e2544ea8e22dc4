"""The science test of repair: sources of known brightness, each hit a hundred times (CSST rejection paper, figure 5).

Each cosmic ray falls on a copy of its source with photons and a place within the pixel of its own, and the same copy
without it, photon by photon, is measured alike: what differs is the repair. Fluxes are sums in an aperture at the true
place; sources with an ignored pixel in it (saturated, bad) are left out, for nobody repairs those. Told of each bin:

* the shift, the median of ``-2.5 log10(repaired / clean twin)``;
* the scatter, half of the central 68 % of (repaired / what such a source has in the median), photon noise in it;
  beside it that of the clean twins, and for stars three more: that of a repair which knows the star's image but for its
  brightness, or but for brightness and place, and takes these from the pixels which are left; and the bound of Cramer
  and Rao on the brightness itself for a known point spread function, which no sum in an aperture reaches.

Of sources with a masked pixel in the aperture also what became of their shape: size and ellipticity by adaptive
moments, less those of the clean twin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import sep

from csstdask.arrays.moments import adaptive_moments
from csstdask.arrays.sources import shared_repair_error, sum_covariance
from csstdask.arrays.stamps import centre_pixels, cut_stamps
from csstdask.cosmicray.detect import detect
from csstdask.evaluation.cosmicray.truth_frame import TruthFrame, render_truth_frame
from csstdask.evaluation.inpaint.methods import MaskedImage, own_methods, repair_methods
from csstdask.evaluation.parallel import map_units
from csstdask.evaluation.runner import ProgressCallback
from csstdask.instrument import load_instrument
from csstdask.metrics.detection import Bool, Float
from csstdask.mock import Recipe
from csstdask.mock.catalogue import Catalogue
from csstdask.mock.expected_image import expected_light
from csstdask.nn.models import find_card
from csstdask.psf.frame import supports_band

Mask = Literal["true", "detected"]
MASKS: tuple[Mask, ...] = get_args(Mask)
Column = npt.NDArray[np.float64]

#: Radius of the aperture [pixel], and half the side of what belongs to a source.
APERTURE, _HALF = 5.0, 16
#: Distances of the nearest pixel with charge from a source [pixel], at which bins begin.
DISTANCES = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 15.0)
#: Sigma of the sky above which a pixel is a source's.
_SOURCE = 3.0
#: Pulls beyond this count as this: a few misses must not be all that a deviation tells.
_FURTHEST = 20.0
_LEAST = 8
CLEAN, ORACLE, ORACLE_POSITION, FLUX_BOUND = "clean twin", "known_star_scatter", "unplaced_star_scatter", "bound"
#: What is told of stars alone.
STAR_COLUMNS = (ORACLE, ORACLE_POSITION, FLUX_BOUND)
#: Moves of all stars, for slopes in their place [pixel].
_STEP = 0.1

#: Columns that are no flux.
_FACTS = {"magnitude", "is_star", "distance", "masked", "usable", *STAR_COLUMNS}


@dataclass
class UnitMeasurements:
    """What repair made of the sources of one unit."""

    columns: dict[str, Column] = field(default_factory=dict)
    """Of each source ``magnitude``, ``is_star``, ``distance`` of the nearest charge [pixel], the share ``masked`` of
    the charge within 16 pixels, whether it is ``usable``; of stars the scatters of `oracle_scatter`; by method flux
    [e-].
    """
    pulls: dict[str, dict[str, Column]] = field(default_factory=dict)
    """By method: (repaired - clean) / sigma of pixels of ``star``, ``galaxy`` and ``background``."""
    flux_pulls: dict[str, Column] = field(default_factory=dict)
    """By method: the same of aperture fluxes, correlated as a card says; NaN where nothing was repaired.
    """
    shapes: dict[str, Column] = field(default_factory=dict)
    """By method (n, 3): relative error of the size, errors of the two distortions; NaN where its moments did not
    converge, and of sources that no mask touches or whose clean twin has none."""
    shaped: Column = field(default_factory=lambda: np.empty(0))
    """1 of the sources that a mask touches and whose clean twin has moments, else 0."""


def measure_unit(
    recipe: Recipe, index: int, detector: int, *, models: Sequence[str], mask: Mask, peers: bool = True
) -> UnitMeasurements:
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
    peers : bool
        Whether what people use instead is measured as well.

    Returns
    -------
    Measured

    Raises
    ------
    ValueError
        If the mask is neither.
    """
    if mask not in MASKS:
        raise ValueError(f"mask: found {mask!r}; wanted one of {', '.join(MASKS)}")
    known = render_truth_frame(recipe, index, detector)
    case = known.case
    charged = (case.charge > 0) & ~case.ignore
    hit = charged if mask == "true" else np.asarray(detect(case.data, case.error, case.ignore).mask)
    psf = supports_band(recipe.instrument, detector)
    frame = MaskedImage(case.data, case.error, case.ignore, detector if psf else None)
    x, y, is_star = known.catalogue.x, known.catalogue.y, known.catalogue.is_star
    light = _Light.of(recipe, index, detector, known)
    columns = {"magnitude": known.catalogue.mag, "is_star": is_star.astype(float)}
    columns |= _hits(charged, hit, case.charge, x, y)
    columns["usable"] = (aperture_flux(case.ignore.astype(np.float32), x, y) == 0).astype(float)
    columns |= light.scatters(hit, x, y, is_star)
    columns[CLEAN] = aperture_flux(known.clean - np.float32(known.sky), x, y)
    measured = UnitMeasurements(columns)
    region = light.regions(x, y, is_star)
    touched = (aperture_flux(hit.astype(np.float32), x, y) > 0) & (columns["usable"] > 0)
    twin = measure_shapes(known.clean - np.float32(known.sky), x, y)
    measured.shaped = (touched & np.isfinite(twin).all(axis=1)).astype(float)
    correlations = {
        name: find_card("inpaint", model).calibration.get("correlation", 0.0)
        for name, (model, _) in own_methods(models, psf=psf).items()
    }
    for name, fill in repair_methods(models, psf=psf, peers=peers).items():
        fixed, variance = fill(frame, hit)
        flux = aperture_flux(fixed - np.float32(known.sky), x, y)
        columns[name] = flux
        change = measure_shapes(fixed - np.float32(known.sky), x, y) - twin
        change[:, 0] /= twin[:, 0]
        measured.shapes[name] = np.where(touched[:, None], change, np.nan)
        if variance is None:
            continue
        told = hit & np.isfinite(variance) & (variance > 0)
        pull = np.zeros_like(known.clean)
        pull[told] = (fixed - known.clean)[told] / np.sqrt(variance[told])
        measured.pulls[name] = {kind: pull[told & (region == number)].astype(float) for kind, number in _KINDS.items()}
        sigma = np.sqrt(np.where(told, variance, 0)).astype(np.float32)
        together = shared_repair_error(fixed - np.float32(known.sky), sigma, np.float32(known.rms), told)
        whole = aperture_flux(sigma**2, x, y)
        whole += sum_covariance(together, correlations.get(name, 0.0), partial(aperture_flux, x=x, y=y))
        with np.errstate(divide="ignore", invalid="ignore"):
            measured.flux_pulls[name] = np.where(whole > 0, (flux - columns[CLEAN]) / np.sqrt(whole), np.nan)
    return measured


def aperture_flux(frame: Float, x: Column, y: Column) -> Column:
    """Return the sum of a frame in a circle round each place [the frame's units]."""
    return np.asarray(sep.sum_circle(np.ascontiguousarray(frame, dtype=np.float32), x, y, APERTURE, subpix=5)[0])


def measure_shapes(frame: Float, x: Column, y: Column) -> Column:
    """Return size [pixel] and the two distortions of sources, (n, 3), by adaptive moments; NaN where there are none."""
    stamps = cut_stamps(frame, centre_pixels(y), centre_pixels(x), 2 * _HALF)
    found = adaptive_moments(stamps)
    return np.column_stack([found.sigma, found.e1, found.e2])


_KINDS = {"background": 0, "star": 1, "galaxy": 2}


@dataclass(frozen=True)
class _Light:
    """What is expected of a unit, before photons are counted [e-]."""

    sources: Float
    """Of all sources."""
    stars: Float
    slopes: tuple[Float, Float]
    """By how much that of stars changes as they move along x and y [e-/pixel]."""
    variance: Float
    """Of each pixel, as measured [e-^2]."""

    @classmethod
    def of(cls, recipe: Recipe, index: int, detector: int, known: TruthFrame) -> _Light:
        instrument, catalogue = load_instrument(recipe.instrument), known.catalogue

        def drawn(some: Catalogue) -> Float:
            return expected_light(recipe, instrument, index, detector, some)[0] * np.float32(recipe.exptime)

        stars = catalogue.select(catalogue.is_star)
        moved = {
            axis: [drawn(replace(stars, **{axis: getattr(stars, axis) + step})) for step in (-_STEP, _STEP)]
            for axis in ("x", "y")
        }
        in_x, in_y = ((ahead - behind) / np.float32(2 * _STEP) for behind, ahead in moved.values())
        everything, sky = drawn(catalogue), drawn(catalogue.select(np.zeros(len(catalogue), dtype=bool)))
        read_noise = np.float32(instrument.values(detector).read_noise or 0.0)
        return cls(everything - sky, drawn(stars) - sky, (in_x, in_y), everything + read_noise**2)

    def regions(self, x: Column, y: Column, is_star: Bool) -> npt.NDArray[np.int8]:
        """Return what each pixel is of: background, or a star or galaxy that is expected above 3 sigma there."""
        bright = self.sources > _SOURCE * np.sqrt(self.variance - self.sources)
        region = np.zeros(bright.shape, dtype=np.int8)
        for column, row, kind in zip(x, y, is_star, strict=True):
            window = _window(column, row)
            region[window][bright[window]] = _KINDS["star" if kind else "galaxy"]
        return region

    def scatters(self, lost: Bool, x: Column, y: Column, is_star: Bool) -> dict[str, Column]:
        """Return the relative scatters of stars as `oracle_scatter` has them; NaN of galaxies."""
        columns = np.full((3, len(x)), np.nan)
        for star in np.flatnonzero(is_star):
            window = _window(x[star], y[star])
            light, variance, there = self.stars[window], self.variance[window], lost[window]
            rows, across = np.indices(light.shape)
            inside = np.hypot(rows + window[0].start - y[star], across + window[1].start - x[star]) < APERTURE
            placed, bound = oracle_scatter(light[None], variance, there, inside)
            unknown = np.stack([light, *(slope[window] for slope in self.slopes)])
            columns[:, star] = placed, oracle_scatter(unknown, variance, there, inside)[0], bound
        return dict(zip(STAR_COLUMNS, columns, strict=True))


def _window(x: float, y: float) -> tuple[slice, slice]:
    return slice(max(0, int(y) - _HALF), int(y) + _HALF), slice(max(0, int(x) - _HALF), int(x) + _HALF)


def oracle_scatter(unknown: Float, variance: Float, lost: Bool, inside: Bool) -> tuple[float, float]:
    """Return the relative scatter of a star's flux in an aperture, and of its brightness, if its image is known.

    Parameters
    ----------
    unknown : float array (k, y, x)
        How the star's image changes with what is not known of it: first with its brightness, which is the light that
        is expected of it [e-]; perhaps with its place along x and y.
    variance : float array (y, x)
        Of each pixel, as measured [e-^2].
    lost, inside : bool arrays (y, x)
        Pixels to be foretold; those of the aperture.

    Returns
    -------
    float
        Of the sum in the aperture, its lost pixels foretold by what all others tell of the unknown: the bound of Cramer
        and Rao on these, carried over to the sum.
    float
        Of the brightness: the bound itself, ``1 / sqrt(sum(light^2 / variance))`` over pixels not lost where nothing
        else is unknown.
    """
    kept = ~lost
    planes = unknown.astype(float)
    information = (planes[:, kept] / variance[kept]) @ planes[:, kept].T
    told = np.linalg.pinv(information, hermitian=True)
    foretold, seen = planes[:, inside & lost].sum(axis=1), planes[:, inside & kept].sum(axis=1)
    # What is foretold was learnt from pixels that are in the sum as well.
    total = float(variance[inside & kept].sum()) + float(foretold @ told @ (foretold + 2 * seen))
    if not information[0, 0] > 0:
        return np.inf, np.inf
    return float(np.sqrt(total)) / max(float(planes[0][inside].sum()), 1e-9), float(np.sqrt(told[0, 0]))


def _hits(charged: Bool, hit: Bool, charge: Float, x: Column, y: Column) -> dict[str, Column]:
    """Return how far the nearest pixel with charge is from each source, and what share of the charge is masked."""
    distance, masked = np.full(len(x), np.inf), np.ones(len(x))
    for number, (column, row) in enumerate(zip(x, y, strict=True)):
        window = _window(column, row)
        rows, across = np.nonzero(charged[window])
        if len(rows):
            distance[number] = np.hypot(rows + window[0].start - row, across + window[1].start - column).min()
            near = np.where(charged[window], charge[window], 0)
            masked[number] = near[hit[window]].sum() / near.sum()
    return {"distance": distance, "masked": masked}


def science_part(
    recipe: Recipe,
    models: Sequence[str],
    on_progress: ProgressCallback,
    *,
    mask: Mask = "true",
    peers: bool = True,
    workers: int | None = None,
) -> dict[str, Any]:
    """Return shifts, scatters and pulls of all methods over the units of a recipe.

    Parameters
    ----------
    recipe : Recipe
    models : sequence of str
    announce : callable
    mask, peers
        As `measure_unit` takes them.
    workers : int, optional
        Processes; 0 for none but this one.

    Returns
    -------
    dict
        ``bins``, each of a kind, a magnitude and a distance of the nearest pixel with charge, with a row a method;
        ``pulls`` of the methods that tell a variance; ``shapes`` by method and kind.
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
                if chosen.sum() < _LEAST:
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
    pulls = {name: _pulls(units, name) for name in units[0].pulls}
    shapes = {name: _shapes(units, name) for name in units[0].shapes}
    return {"mask": mask, "aperture": APERTURE, "bins": bins, "pulls": pulls, "shapes": shapes}


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


def _pulls(units: Sequence[UnitMeasurements], name: str) -> dict[str, dict[str, float]]:
    parts = {kind: np.concatenate([unit.pulls[name][kind] for unit in units]) for kind in _KINDS}
    flux = np.concatenate([unit.flux_pulls[name] for unit in units])
    is_star, usable = (np.concatenate([unit.columns[key] for unit in units]) > 0 for key in ("is_star", "usable"))
    known = np.isfinite(flux) & usable
    parts |= {"star, flux": flux[known & is_star], "galaxy, flux": flux[known & ~is_star]}
    return {kind: summarise_pulls(pull) for kind, pull in parts.items() if len(pull)}


def _shapes(units: Sequence[UnitMeasurements], name: str) -> dict[str, dict[str, float]]:
    """Return mean and deviation of the errors of shapes, beyond 1 counted as 1, and the share without one, by kind."""
    change = np.clip(np.concatenate([unit.shapes[name] for unit in units]), -1, 1)
    is_star = np.concatenate([unit.columns["is_star"] for unit in units]) > 0
    asked = np.concatenate([unit.shaped for unit in units]) > 0
    known = np.isfinite(change).all(axis=1)
    rows: dict[str, dict[str, float]] = {}
    for kind, some in (("star", known & is_star), ("galaxy", known & ~is_star)):
        if some.any():
            mean, deviation = change[some].mean(axis=0), change[some].std(axis=0)
            there = asked & (is_star if kind == "star" else ~is_star)
            rows[kind] = {"n": int(there.sum()), "lost": float(1 - known[there].mean())}
            for place, column in enumerate(("size", "e1", "e2")):
                rows[kind] |= {f"{column}_mean": float(mean[place]), f"{column}_sd": float(deviation[place])}
    return rows


def summarise_pulls(pull: Column) -> dict[str, float]:
    """Return number, mean and deviation of pulls; those beyond 20 count as 20."""
    near = np.clip(pull, -_FURTHEST, _FURTHEST)
    return {"n": len(pull), "mean": float(near.mean()), "sd": float(near.std())}
