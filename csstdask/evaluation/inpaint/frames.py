"""Evaluate photometry and catalogues of whole frames after repair (CSST rejection paper, section 4.3).

Each treatment of a frame is followed by the same estimate of the background and the same detection and measurement of
sources as in a run. Cosmic rays are those that detection finds. The treatments:

* ``direct``: cosmic rays remain in the frame;
* ``masked``: hit pixels are excluded from detection and from sums; sums are scaled to their whole ellipse;
* ``affected sources rejected``: as ``masked``, and sources with a masked pixel in their ellipse are rejected;
* ``median`` and networks: hit pixels are repaired;
* ``clean twin``: the frame with the same photons and without cosmic rays, the limit for any repair.

Results are for catalogue sources that were *hit*: a pixel with more than 5 e- of true charge lies within 5 pixels, no
ignored pixel does, and the signal-to-noise ratio in 49 pixels is above 5. A source is found if a measured one lies
within 2 pixels and 0.75 mag; each measured source matches one catalogue source. Purity is the fraction of hit measured
sources that match any catalogue source. Chance matches are counted with the catalogue shifted by 37 pixels, wrapped at
the edges of the frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import sep
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from csstdask.arrays.background import estimate_background
from csstdask.arrays.sources import measure_sources
from csstdask.cosmicray.detect import detect
from csstdask.cosmicray.inpaint import inpaint
from csstdask.evaluation.cosmicray.truth_frame import MIN_SNR, TruthFrame, render_truth_frame, source_snr
from csstdask.evaluation.inpaint.methods import own_methods
from csstdask.evaluation.inpaint.photometry import CLEAN
from csstdask.evaluation.parallel import map_units
from csstdask.evaluation.runner import ProgressCallback
from csstdask.metrics.detection import RECALL_CHARGE, Bool, Float
from csstdask.metrics.similarity import structural_similarity
from csstdask.mock import Recipe
from csstdask.nn.models import NO_PSF
from csstdask.psf.frame import supports_band

Column = npt.NDArray[np.float64]

#: Largest distance of a source from a hit pixel that affects it [pixel].
_HIT_RADIUS = 5.0
#: Largest distance [pixel] and difference in magnitude of matching sources.
MATCH_RADIUS, MATCH_TOLERANCE = 2.0, 0.75
#: Nearest catalogue sources that are considered for a match.
_NEIGHBOURS = 4
#: Shift of the catalogue with which chance matches are counted [pixel].
_CHANCE_SHIFT = 37.0
#: Edges of the bins of the magnitude, and smallest number of sources in a bin.
MAGNITUDE_BINS = tuple(float(edge) for edge in np.arange(15, 27.5, 0.5))
_MIN_SOURCES = 20
#: Window of the structural similarity of number counts [bin].
WINDOW = 7
DIRECT, MASKED, REJECTED = "direct", "masked", "affected sources rejected"


@dataclass
class TreatmentResult:
    """Result of one treatment of one unit; magnitudes are AB, NaN where there is none."""

    found: Bool
    """(catalogue,) Whether a source is found."""
    by_chance: Bool
    """(catalogue,) Whether the shifted source is found by chance."""
    magnitude: Column
    """(catalogue,) Magnitude of the matching re-detected source."""
    forced: Column
    """(catalogue,) Magnitude in the ellipse of the clean twin."""
    measured: Column
    """(measured,) Magnitudes of all measured sources."""
    hit: Bool
    """(measured,) Whether a measured source was hit."""
    true: Bool
    """(measured,) Whether it matches a catalogue source."""
    true_by_chance: Bool
    """(measured,) Whether it matches a shifted source by chance."""


@dataclass
class Unit:
    """Results of all treatments of one unit."""

    magnitude: Column
    """(catalogue,) True magnitudes."""
    is_star: Bool
    """(catalogue,) Whether a source is a star."""
    bright: Bool
    """(catalogue,) Whether a source is bright enough to be found, and not near an ignored pixel."""
    hit: Bool
    """(catalogue,) Whether a source was hit."""
    hit_elsewhere: Bool
    """(catalogue,) Whether the shifted source was hit."""
    treated: dict[str, TreatmentResult] = field(default_factory=dict)
    """Results by treatment."""


@dataclass(frozen=True)
class TreatedFrame:
    """A frame after one treatment; arrays have the shape (y, x), data and error are in electrons."""

    data: Float
    mask: Bool
    error: Float
    repaired: Bool


def measure_unit(recipe: Recipe, index: int, detector: int, *, models: Sequence[str]) -> Unit:
    """Render a unit, apply all treatments, and measure its sources."""
    known = render_truth_frame(recipe, index, detector)
    catalogue, (ny, nx) = known.catalogue, known.clean.shape
    counts = catalogue.flux * known.exptime
    inside = (catalogue.x > -0.5) & (catalogue.y > -0.5) & (catalogue.x < nx - 0.5) & (catalogue.y < ny - 0.5)
    catalogue, counts = catalogue.select(inside), counts[inside]
    near = _near(known.case.charge > RECALL_CHARGE) & ~_near(known.case.ignore)
    sources = SourcePositions(catalogue.x, catalogue.y, catalogue.mag)
    elsewhere = SourcePositions(
        np.mod(sources.x + _CHANCE_SHIFT, nx - 1), np.mod(sources.y + _CHANCE_SHIFT, ny - 1), sources.magnitude
    )
    usable = ~_at(_near(known.case.ignore), sources.x, sources.y)
    bright = source_snr(counts, known.rms) > MIN_SNR
    hit, hit_elsewhere = (bright & _at(near, one.x, one.y) for one in (sources, elsewhere))
    unit = Unit(catalogue.mag, catalogue.is_star, bright & usable, hit, hit_elsewhere)
    zero_point = catalogue.mag + 2.5 * np.log10(counts)  # of the total flux, the same for all sources
    zero = float(np.median(zero_point)) if len(zero_point) else 0.0
    twin: dict[str, npt.NDArray[Any]] | None = None
    for name, frame in _treatments(
        known, models, detector if supports_band(recipe.instrument, detector) else None
    ).items():
        sky, found = _measured(frame)
        twin = found if twin is None else twin
        keep = np.ones(len(found["x"]), dtype=bool)
        if name == REJECTED:
            keep = _ellipse_sum(frame.mask & ~known.case.ignore, found) == 0
        found = {key: values[keep] for key, values in found.items()}
        forced = _magnitudes(forced_fluxes(sky, frame, twin, sources, zero), zero)
        unit.treated[name] = _compared(found, forced, sources, elsewhere, zero, near)
    return unit


@dataclass(frozen=True)
class SourcePositions:
    """Positions [pixel] and magnitudes of catalogue sources."""

    x: Column
    y: Column
    magnitude: Column


def _near(mask: Bool) -> Bool:
    """Return the pixels within the hit radius of a mask."""
    if not mask.any():
        return np.zeros(mask.shape, dtype=bool)
    return np.asarray(distance_transform_edt(~mask) <= _HIT_RADIUS)


def _at(mask: Bool, x: Column, y: Column) -> Bool:
    rows, columns = (
        np.clip(np.rint(position).astype(int), 0, length - 1)
        for position, length in zip((y, x), mask.shape, strict=True)
    )
    return np.asarray(mask[rows, columns])


def _treatments(known: TruthFrame, models: Sequence[str], detector: int | None) -> dict[str, TreatedFrame]:
    """Return the frame after each treatment, the clean twin first; stars are repaired by PSF if `detector` is given."""
    case = known.case
    error = np.ones_like(case.data) if case.error is None else case.error
    hit = np.asarray(detect(case.data, case.error, case.ignore, precision="float32").mask)
    nothing = np.zeros_like(hit)
    frames = {
        CLEAN: TreatedFrame(known.clean, case.ignore, known.clean_error, nothing),
        DIRECT: TreatedFrame(case.data, case.ignore, error, nothing),
        MASKED: TreatedFrame(case.data, case.ignore | hit, error, nothing),
        REJECTED: TreatedFrame(case.data, case.ignore | hit, error, nothing),
    }
    for name, (model, by_psf) in own_methods(models, psf=detector is not None).items():
        psf = None if by_psf else NO_PSF
        fixed = inpaint(case.data, hit, case.error, case.ignore, model=model, detector=detector, psf=psf)
        variance = np.asarray(fixed.variance)
        repaired = hit & np.isfinite(variance)
        frames[name] = TreatedFrame(
            np.asarray(fixed.data),
            case.ignore | (hit & ~repaired),
            np.where(repaired, np.sqrt(np.where(repaired, variance, 0)), error).astype(np.float32),
            repaired,
        )
    return frames


def _measured(frame: TreatedFrame) -> tuple[Float, dict[str, npt.NDArray[Any]]]:
    mesh = estimate_background(frame.data, frame.mask)
    sky = (frame.data - mesh.background_at()).astype(np.float32)
    sky[frame.mask] = 0
    return sky, measure_sources(sky, frame.error, mesh.noise_at(), frame.mask, repaired=frame.repaired)


def _ellipse_sum(frame: npt.NDArray[Any], found: dict[str, Any], mask: Bool | None = None) -> Column:
    shape = (found["x"], found["y"], found["a"], found["b"], np.radians(found["theta"]), found["kron_radius"])
    if not len(shape[0]):
        return np.empty(0)
    return np.asarray(sep.sum_ellipse(frame.astype(np.float32), *shape, mask=mask, subpix=5)[0])


def forced_fluxes(
    sky: Float, frame: TreatedFrame, twin: dict[str, Any], sources: SourcePositions, zero: float
) -> Column:
    """Return fluxes of the catalogue sources in the ellipses of the clean twin; NaN without a matching one."""
    flux = np.full(len(sources.x), np.nan)
    which = match_to_catalogue(
        twin["x"], twin["y"], _magnitudes(twin["flux"], zero), sources.x, sources.y, sources.magnitude
    )
    flux[which[which >= 0]] = _ellipse_sum(sky, twin, frame.mask)[which >= 0]
    return flux


def _compared(
    found: dict[str, Any], forced: Column, sources: SourcePositions, elsewhere: SourcePositions, zero: float, near: Bool
) -> TreatmentResult:
    magnitude = _magnitudes(found["flux"], zero)
    which, chance = (
        match_to_catalogue(found["x"], found["y"], magnitude, one.x, one.y, one.magnitude)
        for one in (sources, elsewhere)
    )
    number = np.arange(len(sources.x))
    of_source = np.full(len(sources.x), np.nan)
    of_source[which[which >= 0]] = magnitude[which >= 0]
    return TreatmentResult(
        found=np.isin(number, which),
        by_chance=np.isin(number, chance),
        magnitude=of_source,
        forced=forced,
        measured=magnitude,
        hit=_at(near, found["x"], found["y"]),
        true=which >= 0,
        true_by_chance=chance >= 0,
    )


def _magnitudes(flux: Column, zero: float) -> Column:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(flux > 0, zero - 2.5 * np.log10(flux), np.nan)


def match_to_catalogue(
    x: Column, y: Column, magnitude: Column, true_x: Column, true_y: Column, true_magnitude: Column
) -> npt.NDArray[np.int64]:
    """Return the index of the catalogue source that each measured source matches; -1 for none.

    The nearest pairs are matched first, and each source is matched once.
    """
    which = np.full(len(x), -1, dtype=np.int64)
    if not len(x) or not len(true_x):
        return which
    count = min(_NEIGHBOURS, len(true_x))
    tree = cKDTree(np.column_stack([true_x, true_y]))
    distance, near = tree.query(np.column_stack([x, y]), k=range(1, count + 1), distance_upper_bound=MATCH_RADIUS)
    measured, neighbour = np.nonzero(np.isfinite(distance))
    source = near[measured, neighbour]
    alike = np.abs(magnitude[measured] - true_magnitude[source]) < MATCH_TOLERANCE
    measured, neighbour, source = measured[alike], neighbour[alike], source[alike]
    taken = np.zeros(len(true_x), dtype=bool)
    for one in np.argsort(distance[measured, neighbour], kind="stable"):
        if which[measured[one]] < 0 and not taken[source[one]]:
            which[measured[one]], taken[source[one]] = source[one], True
    return which


def fields_part(
    recipe: Recipe, models: Sequence[str], on_progress: ProgressCallback, *, workers: int | None = None
) -> dict[str, Any]:
    """Evaluate photometry, completeness, purity and number counts of all treatments of a recipe.

    Parameters
    ----------
    recipe : Recipe
    models : sequence of str
        Networks for the repair, by name or card.
    on_progress : callable
        Receives lines about the progress.
    workers : int, optional
        Number of worker processes, by default one per CPU core; 0: none.

    Returns
    -------
    dict
        ``sources`` and ``hit``, numbers of sources by kind; ``photometry`` of hit sources by kind, treatment and
        magnitude; ``catalogue`` by treatment; ``number_counts`` of all sources by kind and treatment.
    """
    units = list(
        map_units(recipe, partial(measure_unit, models=tuple(models)), on_progress=on_progress, workers=workers)
    )
    true, is_star, bright, hit, elsewhere = (
        np.concatenate([getattr(unit, name) for unit in units])
        for name in ("magnitude", "is_star", "bright", "hit", "hit_elsewhere")
    )
    kinds = {"star": is_star & bright, "galaxy": ~is_star & bright}
    columns = {
        name: {
            column.name: np.concatenate([getattr(unit.treated[name], column.name) for unit in units])
            for column in dataclass_fields(TreatmentResult)
        }
        for name in units[0].treated
    }
    counted = {
        kind: {name: number_counts(one["magnitude"][chosen], true[chosen]) for name, one in columns.items()}
        for kind, chosen in kinds.items()
    }
    counted["everything"] = {name: number_counts(one["measured"], true) for name, one in columns.items()}
    return {
        "sources": {kind: int(chosen.sum()) for kind, chosen in kinds.items()},
        "hit": {kind: int((chosen & hit).sum()) for kind, chosen in kinds.items()},
        "photometry": {
            how: {
                kind: photometry(
                    {name: one[how] for name, one in columns.items() if name != REJECTED}, true, chosen & hit
                )
                for kind, chosen in kinds.items()
            }
            for how in ("magnitude", "forced")
        },
        "catalogue": {name: _catalogue_row(one, kinds, hit & bright, elsewhere) for name, one in columns.items()},
        "number_counts": counted,
    }


def _catalogue_row(columns: dict[str, Any], kinds: dict[str, Bool], hit: Bool, elsewhere: Bool) -> dict[str, float]:
    measured = columns["hit"]
    row = {
        "found": int(sum(columns["found"][chosen].sum() for chosen in kinds.values())),
        "found_hit": int(columns["found"][hit].sum()),
        "completeness": _share(columns["found"][hit]),
        "by_chance": _share(columns["by_chance"][elsewhere]),
        "measured_hit": int(measured.sum()),
        "purity": _share(columns["true"][measured]),
        "purity_by_chance": _share(columns["true_by_chance"][measured]),
    }
    return row | {f"completeness_{kind}": _share(columns["found"][hit & chosen]) for kind, chosen in kinds.items()}


def _share(which: Bool) -> float:
    return float(which.mean()) if len(which) else float("nan")


def photometry(measured: dict[str, Column], true: Column, chosen: Bool) -> dict[str, list[dict[str, float]]]:
    """Return percentiles of (measured - true) of each treatment in bins of the true magnitude [mag] (figure 6).

    All treatments are evaluated on the same sources, those that each of them measured. ``lost`` is the fraction of the
    sources measured in the clean twin that a treatment did not measure.
    """
    everywhere = chosen & np.all([np.isfinite(one) for one in measured.values()], axis=0)
    in_twin = chosen & np.isfinite(measured[CLEAN])
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in measured}
    for low, high in pairwise(MAGNITUDE_BINS):
        inside = (true >= low) & (true < high)
        if (inside & everywhere).sum() < _MIN_SOURCES:
            continue
        for name, one in measured.items():
            five, middle, most = np.percentile((one - true)[inside & everywhere], [5, 50, 95])
            rows[name].append(
                {
                    "from": low,
                    "to": high,
                    "n": int((inside & everywhere).sum()),
                    "p5": float(five),
                    "p50": float(middle),
                    "p95": float(most),
                    "lost": float(1 - np.isfinite(one[inside & in_twin]).mean()),
                }
            )
    return rows


def number_counts(measured: Column, true: Column) -> dict[str, Any]:
    """Compare number counts by measured magnitude with those of the catalogue (figure 7).

    Counts of stars and of galaxies include only matched sources, because the kind is known from the catalogue. Counts
    of everything include false sources.

    ``ssim`` is the structural similarity of the two curves in windows of 7 bins of 0.5 mag. ``chi2`` is their mean
    squared difference in units of the Poisson error of the catalogue counts, at least that of one source.
    """
    counts, _ = np.histogram(measured[np.isfinite(measured)], MAGNITUDE_BINS)
    wanted, _ = np.histogram(true, MAGNITUDE_BINS)
    facts: dict[str, Any] = {"counts": counts.tolist(), "catalogue": wanted.tolist()}
    if wanted.any():
        facts["chi2"] = float(((counts - wanted) ** 2 / np.maximum(wanted, 1)).mean())
        facts["ssim"] = structural_similarity(counts, wanted, span=float(wanted.max()), window=WINDOW)
    return facts
