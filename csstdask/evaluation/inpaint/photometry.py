"""Evaluate photometry of sources of known brightness, each hit a hundred times (CSST rejection paper, figure 5).

Each cosmic ray falls on a separate copy of its source, with its own photon noise and position within the pixel. The
same copy without the cosmic ray, its clean twin, is measured in the same way, so the difference is due to the repair.
Fluxes are sums in an aperture at the true position. Sources with an ignored pixel in the aperture are excluded. Each
bin has

* the shift, the median of ``-2.5 log10(repaired / clean twin)``;
* the scatter, half the width of the central 68 % of (repaired / median flux of the copies), photon noise included, and
  that of the clean twins; for stars also

  * *oracle*: the PSF and the position are known exactly, only the flux is fitted to the unmasked pixels;
  * *oracle without position*: the PSF is known exactly, flux and position are fitted;
  * the Cramer-Rao bound on the flux for a known PSF, which no sum in an aperture reaches.

For sources with a masked pixel in the aperture, errors of the shape are measured as well: size and ellipticity by
adaptive moments, minus those of the clean twin.
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

#: Radius of the aperture, and half the side of the window of a source [pixel].
APERTURE, _HALF_WINDOW = 5.0, 16
#: Lower edges of the bins of the distance of a source from the nearest pixel with charge [pixel].
DISTANCES = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 15.0)
#: Height above the sky from which a pixel belongs to a source [sigma].
_SOURCE_SIGMA = 3.0
#: Pulls are clipped to this value, so that few outliers do not dominate a standard deviation.
_MAX_PULL = 20.0
#: Smallest number of sources in a bin.
_MIN_SOURCES = 8
CLEAN, ORACLE, ORACLE_POSITION, FLUX_BOUND = "clean twin", "known_star_scatter", "unplaced_star_scatter", "bound"
#: Columns of stars only.
STAR_COLUMNS = (ORACLE, ORACLE_POSITION, FLUX_BOUND)
#: Shift of the stars for derivatives with respect to their position [pixel].
_STEP = 0.1

#: Columns that are not fluxes.
_FACTS = {"magnitude", "is_star", "distance", "masked", "usable", *STAR_COLUMNS}


@dataclass
class UnitMeasurements:
    """Measurements of the sources of one unit, by column or method."""

    columns: dict[str, Column] = field(default_factory=dict)
    """For each source ``magnitude``, ``is_star``, ``distance`` from the nearest charge [pixel], the fraction ``masked``
    of the charge within 16 pixels, whether it is ``usable``; for stars the scatters of `oracle_scatter`; by method
    the flux [e-]."""
    pulls: dict[str, dict[str, Column]] = field(default_factory=dict)
    """By method: (repaired - clean) / sigma of the pixels of ``star``, ``galaxy`` and ``background``."""
    flux_pulls: dict[str, Column] = field(default_factory=dict)
    """By method: the same for aperture fluxes, with the correlation of the model card; NaN without repaired pixels."""
    shapes: dict[str, Column] = field(default_factory=dict)
    """By method (n, 3): relative error of the size, errors of the two distortions. NaN where the moments do not
    converge, and for sources without masked pixels or whose clean twin has no moments."""
    shaped: Column = field(default_factory=lambda: np.empty(0))
    """(n,) 1 for sources with masked pixels whose clean twin has moments, else 0."""


def measure_unit(
    recipe: Recipe, index: int, detector: int, *, models: Sequence[str], mask: Mask, peers: bool = True
) -> UnitMeasurements:
    """Render a unit, repair it with all methods, and measure its sources.

    Parameters
    ----------
    recipe : Recipe
        Recipe with cosmic rays on sources.
    index, detector : int
        Index of the exposure and id of the detector.
    models : sequence of str
        Networks, by name or card.
    mask : str
        ``true``: all pixels with charge; ``detected``: the pixels that detection finds.
    peers : bool
        Whether other tools are evaluated as well.

    Raises
    ------
    ValueError
        If the mask is unknown.
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
    light = _ExpectedLight.of(recipe, index, detector, known)
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
        repaired = hit & np.isfinite(variance) & (variance > 0)
        pull = np.zeros_like(known.clean)
        pull[repaired] = (fixed - known.clean)[repaired] / np.sqrt(variance[repaired])
        measured.pulls[name] = {
            kind: pull[repaired & (region == number)].astype(float) for kind, number in _KINDS.items()
        }
        sigma = np.sqrt(np.where(repaired, variance, 0)).astype(np.float32)
        together = shared_repair_error(fixed - np.float32(known.sky), sigma, np.float32(known.rms), repaired)
        whole = aperture_flux(sigma**2, x, y)
        whole += sum_covariance(together, correlations.get(name, 0.0), partial(aperture_flux, x=x, y=y))
        with np.errstate(divide="ignore", invalid="ignore"):
            measured.flux_pulls[name] = np.where(whole > 0, (flux - columns[CLEAN]) / np.sqrt(whole), np.nan)
    return measured


def aperture_flux(frame: Float, x: Column, y: Column) -> Column:
    """Return the sums of a frame in a circular aperture around positions, in the units of the frame."""
    return np.asarray(sep.sum_circle(np.ascontiguousarray(frame, dtype=np.float32), x, y, APERTURE, subpix=5)[0])


def measure_shapes(frame: Float, x: Column, y: Column) -> Column:
    """Return sizes [pixel] and both distortions of sources (n, 3), by adaptive moments; NaN if they do not converge."""
    stamps = cut_stamps(frame, centre_pixels(y), centre_pixels(x), 2 * _HALF_WINDOW)
    found = adaptive_moments(stamps)
    return np.column_stack([found.sigma, found.e1, found.e2])


_KINDS = {"background": 0, "star": 1, "galaxy": 2}


@dataclass(frozen=True)
class _ExpectedLight:
    """Expected light of a unit, without noise [e-]."""

    sources: Float
    """(y, x) Light of all sources."""
    stars: Float
    """(y, x) Light of stars."""
    slopes: tuple[Float, Float]
    """Derivatives of the light of stars with respect to x and y [e-/pixel]."""
    variance: Float
    """(y, x) Variance of the measured pixels [e-^2]."""

    @classmethod
    def of(cls, recipe: Recipe, index: int, detector: int, known: TruthFrame) -> _ExpectedLight:
        instrument, catalogue = load_instrument(recipe.instrument), known.catalogue

        def render(sources: Catalogue) -> Float:
            return expected_light(recipe, instrument, index, detector, sources)[0] * np.float32(recipe.exptime)

        stars = catalogue.select(catalogue.is_star)
        moved = {
            axis: [render(replace(stars, **{axis: getattr(stars, axis) + step})) for step in (-_STEP, _STEP)]
            for axis in ("x", "y")
        }
        in_x, in_y = ((ahead - behind) / np.float32(2 * _STEP) for behind, ahead in moved.values())
        everything, sky = render(catalogue), render(catalogue.select(np.zeros(len(catalogue), dtype=bool)))
        read_noise = np.float32(instrument.values(detector).read_noise or 0.0)
        return cls(everything - sky, render(stars) - sky, (in_x, in_y), everything + read_noise**2)

    def regions(self, x: Column, y: Column, is_star: Bool) -> npt.NDArray[np.int8]:
        """Return the region of each pixel: background, or a star or galaxy that is 3 sigma above it."""
        bright = self.sources > _SOURCE_SIGMA * np.sqrt(self.variance - self.sources)
        region = np.zeros(bright.shape, dtype=np.int8)
        for column, row, kind in zip(x, y, is_star, strict=True):
            window = _window(column, row)
            region[window][bright[window]] = _KINDS["star" if kind else "galaxy"]
        return region

    def scatters(self, lost: Bool, x: Column, y: Column, is_star: Bool) -> dict[str, Column]:
        """Return the relative scatters of stars by `oracle_scatter`; NaN for galaxies."""
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
    return slice(max(0, int(y) - _HALF_WINDOW), int(y) + _HALF_WINDOW), slice(
        max(0, int(x) - _HALF_WINDOW), int(x) + _HALF_WINDOW
    )


def oracle_scatter(derivatives: Float, variance: Float, lost: Bool, inside: Bool) -> tuple[float, float]:
    """Return the relative scatter of the aperture flux of a star with a known PSF, and the bound on its flux.

    The Fisher information of the unmasked pixels bounds the errors of the unknown parameters. These are propagated to
    the sum in the aperture, whose masked pixels are predicted from the parameters.

    Parameters
    ----------
    derivatives : float array (k, y, x)
        Derivatives of the image with respect to the unknown parameters: first the relative flux, whose derivative is
        the expected light [e-]; optionally the position along x and y.
    variance : float array (y, x)
        Variance of the measured pixels [e-^2].
    lost, inside : bool arrays (y, x)
        Masked pixels, and pixels of the aperture.

    Returns
    -------
    aperture : float
        Relative scatter of the sum in the aperture.
    bound : float
        Cramer-Rao bound on the relative flux: ``1 / sqrt(sum(light^2 / variance))`` over unmasked pixels if only the
        flux is unknown.
    """
    kept = ~lost
    planes = derivatives.astype(float)
    information = (planes[:, kept] / variance[kept]) @ planes[:, kept].T
    covariance = np.linalg.pinv(information, hermitian=True)
    predicted, measured = planes[:, inside & lost].sum(axis=1), planes[:, inside & kept].sum(axis=1)
    # The second term is the covariance: the parameters are fitted to pixels that are also in the sum.
    total = float(variance[inside & kept].sum()) + float(predicted @ covariance @ (predicted + 2 * measured))
    if not information[0, 0] > 0:
        return np.inf, np.inf
    return float(np.sqrt(total)) / max(float(planes[0][inside].sum()), 1e-9), float(np.sqrt(covariance[0, 0]))


def _hits(charged: Bool, hit: Bool, charge: Float, x: Column, y: Column) -> dict[str, Column]:
    """Return the distance of each source from the nearest pixel with charge, and the masked fraction of the charge."""
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
    parts = {kind: np.concatenate([unit.pulls[name][kind] for unit in units]) for kind in _KINDS}
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
