"""Whole frames: what repair leaves of the photometry and of the catalogue (CSST rejection paper, section 4.3).

A frame is treated in every way, its background measured, its sources found and measured by the same kernels as in a
run. Cosmic rays are those that detection finds. The treatments:

* ``direct``: cosmic rays are left in;
* ``masked``: hit pixels take no part, neither in detection nor in sums (a sum is scaled to its whole ellipse);
* ``affected sources rejected``: the same, and a source with a masked pixel in its ellipse is thrown away;
* ``median`` and networks: repaired;
* ``clean twin``: the same photons without cosmic rays, what the best repair would come to.

Everything is told of catalogue sources that were *hit*: with a pixel of more than 5 e- of true charge within 5 pixels,
no ignored one as near, and bright enough to be found at all, at a S/N of 5 in 49 pixels. A source is found when a
measured one lies within 2 pixels and 0.75 mag of it; each measured one serves one source. Purity is of measured sources
that were hit by the same rule: the share that is some source of the catalogue, however faint. What chance finds is told
by a catalogue that is moved by 37 pixels, round the frame's edges, its sources hit where they then lie.
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
from csstdask.metrics.detection import Bool, Float
from csstdask.metrics.similarity import structural_similarity
from csstdask.mock import Recipe
from csstdask.nn.models import NO_PSF
from csstdask.psf.frame import supports_band

Column = npt.NDArray[np.float64]

#: A source is hit by so much charge of a pixel [e-] within so many pixels.
_HIT_ABOVE, _REACH = 5.0, 5.0
#: A measured source is a true one within so many pixels and magnitudes; places that are asked.
MATCH_RADIUS, MATCH_TOLERANCE, _NEAREST = 2.0, 0.75, 4
#: By how much the catalogue is moved to see what chance finds [pixel].
_MOVED = 37.0
#: Magnitudes at which bins begin, and the fewest sources of one.
MAGNITUDE_BINS = tuple(float(edge) for edge in np.arange(15, 27.5, 0.5))
_LEAST = 20
#: Of number counts, the window of the structural similarity [bin].
WINDOW = 7
DIRECT, MASKED, REJECTED = "direct", "masked", "affected sources rejected"


@dataclass
class TreatmentResult:
    """What a treatment made of one unit; magnitudes are AB, NaN where there is none."""

    found: Bool
    """(catalogue,) Whether a source is found."""
    by_chance: Bool
    """(catalogue,) The same of the catalogue moved elsewhere."""
    magnitude: Column
    """(catalogue,) Measured, re-detected."""
    forced: Column
    """(catalogue,) Measured in the clean twin's own ellipse."""
    measured: Column
    """(measured,) Magnitude."""
    hit: Bool
    """(measured,)"""
    true: Bool
    """(measured,) Whether it is a catalogue source."""
    true_by_chance: Bool


@dataclass
class Unit:
    """One unit in all treatments."""

    magnitude: Column
    """(catalogue,) True."""
    is_star: Bool
    bright: Bool
    """Whether it can be found at all."""
    hit: Bool
    hit_elsewhere: Bool
    """The same of the catalogue moved elsewhere."""
    treated: dict[str, TreatmentResult] = field(default_factory=dict)


@dataclass(frozen=True)
class _Frame:
    data: Float
    mask: Bool
    error: Float
    repaired: Bool


def measure_unit(recipe: Recipe, index: int, detector: int, *, models: Sequence[str]) -> Unit:
    """Render a unit, treat it in every way, and measure its sources."""
    known = render_truth_frame(recipe, index, detector)
    catalogue, (ny, nx) = known.catalogue, known.clean.shape
    counts = catalogue.flux * known.exptime
    inside = (catalogue.x > -0.5) & (catalogue.y > -0.5) & (catalogue.x < nx - 0.5) & (catalogue.y < ny - 0.5)
    catalogue, counts = catalogue.select(inside), counts[inside]
    near = _near(known.case.charge > _HIT_ABOVE) & ~_near(known.case.ignore)
    place = _Place(catalogue.x, catalogue.y, catalogue.mag)
    elsewhere = _Place(np.mod(place.x + _MOVED, nx - 1), np.mod(place.y + _MOVED, ny - 1), place.magnitude)
    usable = ~_at(_near(known.case.ignore), place.x, place.y)
    bright = source_snr(counts, known.rms) > MIN_SNR
    hit, hit_elsewhere = (bright & _at(near, one.x, one.y) for one in (place, elsewhere))
    unit = Unit(catalogue.mag, catalogue.is_star, bright & usable, hit, hit_elsewhere)
    zero_point = catalogue.mag + 2.5 * np.log10(counts)  # of the whole light, the same for all
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
        forced = _magnitudes(_forced(sky, frame, twin, place, zero), zero)
        unit.treated[name] = _compared(found, forced, place, elsewhere, zero, near)
    return unit


@dataclass(frozen=True)
class _Place:
    """Where the sources of a catalogue are, and how bright."""

    x: Column
    y: Column
    magnitude: Column


def _near(mask: Bool) -> Bool:
    """Return where a pixel of a mask is within reach."""
    if not mask.any():
        return np.zeros(mask.shape, dtype=bool)
    return np.asarray(distance_transform_edt(~mask) <= _REACH)


def _at(mask: Bool, x: Column, y: Column) -> Bool:
    rows, columns = (
        np.clip(np.rint(place).astype(int), 0, length - 1) for place, length in zip((y, x), mask.shape, strict=True)
    )
    return np.asarray(mask[rows, columns])


def _treatments(known: TruthFrame, models: Sequence[str], detector: int | None) -> dict[str, _Frame]:
    """Return the frame in every treatment, the clean twin first; stars by PSF where a detector's id is told."""
    case = known.case
    error = np.ones_like(case.data) if case.error is None else case.error
    hit = np.asarray(detect(case.data, case.error, case.ignore).mask)
    nothing = np.zeros_like(hit)
    frames = {
        CLEAN: _Frame(known.clean, case.ignore, known.clean_error, nothing),
        DIRECT: _Frame(case.data, case.ignore, error, nothing),
        MASKED: _Frame(case.data, case.ignore | hit, error, nothing),
        REJECTED: _Frame(case.data, case.ignore | hit, error, nothing),
    }
    for name, (model, by_psf) in own_methods(models, psf=detector is not None).items():
        psf = None if by_psf else NO_PSF
        fixed = inpaint(case.data, hit, case.error, case.ignore, model=model, detector=detector, psf=psf)
        variance = np.asarray(fixed.variance)
        repaired = hit & np.isfinite(variance)
        frames[name] = _Frame(
            np.asarray(fixed.data),
            case.ignore | (hit & ~repaired),
            np.where(repaired, np.sqrt(np.where(repaired, variance, 0)), error).astype(np.float32),
            repaired,
        )
    return frames


def _measured(frame: _Frame) -> tuple[Float, dict[str, npt.NDArray[Any]]]:
    mesh = estimate_background(frame.data, frame.mask)
    sky = (frame.data - mesh.background_at()).astype(np.float32)
    sky[frame.mask] = 0
    return sky, measure_sources(sky, frame.error, mesh.noise_at(), frame.mask, repaired=frame.repaired)


def _ellipse_sum(frame: npt.NDArray[Any], found: dict[str, Any], mask: Bool | None = None) -> Column:
    shape = (found["x"], found["y"], found["a"], found["b"], np.radians(found["theta"]), found["kron_radius"])
    if not len(shape[0]):
        return np.empty(0)
    return np.asarray(sep.sum_ellipse(frame.astype(np.float32), *shape, mask=mask, subpix=5)[0])


def _forced(sky: Float, frame: _Frame, twin: dict[str, Any], place: _Place, zero: float) -> Column:
    """Return fluxes of the catalogue's sources in the ellipses of the clean twin's, round its places; NaN for none."""
    flux = np.full(len(place.x), np.nan)
    which = match_to_catalogue(twin["x"], twin["y"], _magnitudes(twin["flux"], zero), place.x, place.y, place.magnitude)
    flux[which[which >= 0]] = _ellipse_sum(sky, twin, frame.mask)[which >= 0]
    return flux


def _compared(
    found: dict[str, Any], forced: Column, place: _Place, elsewhere: _Place, zero: float, near: Bool
) -> TreatmentResult:
    magnitude = _magnitudes(found["flux"], zero)
    which, chance = (
        match_to_catalogue(found["x"], found["y"], magnitude, one.x, one.y, one.magnitude) for one in (place, elsewhere)
    )
    number = np.arange(len(place.x))
    of_source = np.full(len(place.x), np.nan)
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
    """Return the catalogue source that each measured one is, -1 for none; each serves one, the nearest pairs first."""
    which = np.full(len(x), -1, dtype=np.int64)
    if not len(x) or not len(true_x):
        return which
    count = min(_NEAREST, len(true_x))
    tree = cKDTree(np.column_stack([true_x, true_y]))
    distance, near = tree.query(np.column_stack([x, y]), k=range(1, count + 1), distance_upper_bound=MATCH_RADIUS)
    measured, place = np.nonzero(np.isfinite(distance))
    source = near[measured, place]
    alike = np.abs(magnitude[measured] - true_magnitude[source]) < MATCH_TOLERANCE
    measured, place, source = measured[alike], place[alike], source[alike]
    taken = np.zeros(len(true_x), dtype=bool)
    for one in np.argsort(distance[measured, place], kind="stable"):
        if which[measured[one]] < 0 and not taken[source[one]]:
            which[measured[one]], taken[source[one]] = source[one], True
    return which


def fields_part(
    recipe: Recipe, models: Sequence[str], on_progress: ProgressCallback, *, workers: int | None = None
) -> dict[str, Any]:
    """Return photometry, completeness, purity and number counts of all treatments over the units of a recipe.

    Parameters
    ----------
    recipe : Recipe
    models : sequence of str
        Networks that repair, by name or card.
    announce : callable
    workers : int, optional
        Processes; 0 for none but this one.

    Returns
    -------
    dict
        ``hit``, how many sources were; ``photometry`` of these by kind, treatment and magnitude; ``catalogue``, by
        kind and treatment; ``number_counts``, the same of all sources.
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
        kind: {name: number_counts(one["magnitude"][some], true[some]) for name, one in columns.items()}
        for kind, some in kinds.items()
    }
    counted["everything"] = {name: number_counts(one["measured"], true) for name, one in columns.items()}
    return {
        "sources": {kind: int(some.sum()) for kind, some in kinds.items()},
        "hit": {kind: int((some & hit).sum()) for kind, some in kinds.items()},
        "photometry": {
            how: {
                kind: photometry(
                    {name: one[how] for name, one in columns.items() if name != REJECTED}, true, some & hit
                )
                for kind, some in kinds.items()
            }
            for how in ("magnitude", "forced")
        },
        "catalogue": {name: _catalogue_row(one, kinds, hit & bright, elsewhere) for name, one in columns.items()},
        "number_counts": counted,
    }


def _catalogue_row(columns: dict[str, Any], kinds: dict[str, Bool], hit: Bool, elsewhere: Bool) -> dict[str, float]:
    measured = columns["hit"]
    row = {
        "found": int(sum(columns["found"][some].sum() for some in kinds.values())),
        "found_hit": int(columns["found"][hit].sum()),
        "completeness": _share(columns["found"][hit]),
        "by_chance": _share(columns["by_chance"][elsewhere]),
        "measured_hit": int(measured.sum()),
        "purity": _share(columns["true"][measured]),
        "purity_by_chance": _share(columns["true_by_chance"][measured]),
    }
    return row | {f"completeness_{kind}": _share(columns["found"][hit & some]) for kind, some in kinds.items()}


def _share(which: Bool) -> float:
    return float(which.mean()) if len(which) else float("nan")


def photometry(measured: dict[str, Column], true: Column, chosen: Bool) -> dict[str, list[dict[str, float]]]:
    """Return percentiles of (measured - true) of each treatment by true magnitude [mag] (figure 6).

    All are of the same sources, those that each treatment measured; ``lost`` is the share of what the clean twin
    measured that a treatment did not.
    """
    everywhere = chosen & np.all([np.isfinite(one) for one in measured.values()], axis=0)
    in_twin = chosen & np.isfinite(measured[CLEAN])
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in measured}
    for low, high in pairwise(MAGNITUDE_BINS):
        inside = (true >= low) & (true < high)
        if (inside & everywhere).sum() < _LEAST:
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
    """Return how counts by measured magnitude follow those of the catalogue (figure 7).

    Of a kind they are of sources that were found: only the catalogue tells a star from a galaxy. Of everything they
    are of all that was measured, what is no source in it.

    ``ssim`` of the two curves in windows of 7 bins of 0.5 mag, the span that of the catalogue's counts; ``chi2`` their
    mean squared difference in units of the catalogue's Poisson error, of bins without a source that of one.
    """
    counts, _ = np.histogram(measured[np.isfinite(measured)], MAGNITUDE_BINS)
    wanted, _ = np.histogram(true, MAGNITUDE_BINS)
    facts: dict[str, Any] = {"counts": counts.tolist(), "catalogue": wanted.tolist()}
    if wanted.any():
        facts["chi2"] = float(((counts - wanted) ** 2 / np.maximum(wanted, 1)).mean())
        facts["ssim"] = structural_similarity(counts, wanted, span=float(wanted.max()), window=WINDOW)
    return facts
