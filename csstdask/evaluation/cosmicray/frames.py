"""Frames of test recipes with all that is known of them, and what a method makes of one.

A frame is rendered, looked at by every method, counted and forgotten, each in a task of its own on another process:
a test of hundreds of frames needs the memory of a few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sep
from scipy.ndimage import binary_dilation, distance_transform_edt, label

from csstdask.arrays.morphology import EIGHT_NEIGHBOURS
import torch
from scipy.ndimage import binary_dilation, distance_transform_edt
from threadpoolctl import threadpool_limits
from csstdask.arrays.frame import poisson_variance, to_electrons
from csstdask.arrays.morphology import dilate, label_components
from csstdask.core.malloc import retain_freed_memory
from csstdask.cosmicray.inpaint import inpaint
from csstdask.evaluation.cosmicray.methods import Method
from csstdask.evaluation.parallel import map_units
from csstdask.evaluation.runner import ProgressCallback
from csstdask.instrument import load_instrument
from csstdask.metrics.detection import RECALL_CHARGE, Bool, DetectionCase, Float, visible_pixels
from csstdask.metrics.detection_histograms import LEVELS, VISIBLE, classify_pixels, count_pixels, label_regions
from csstdask.mock import Recipe, render_unit
from csstdask.mock.catalogue import Catalogue
from csstdask.nn.models import NO_PSF
from csstdask.numerics.robust import mad_scale

#: Distances from a source [pixel], and charges of a pixel [e-], at which bins begin.
DISTANCE_BINS = (0.0, 1.5, 3.0, 5.0, 8.0, 12.0, 20.0, 40.0)
CHARGE_BINS = tuple(float(value) for value in np.geomspace(1, 1e5, 41))
#: Events longer than this are tracks [pixel]; and where classes of length begin.
MIN_TRACK_LENGTH = 5
LENGTH_BINS = (0, 3, 6, 15, 40)
#: Flags of light that is no source's; how near to a saturated pixel lies beside it [pixel].
_ARTEFACTS, _BESIDE = ("satellite_trail", "ghost"), 3
#: A star that is looked at: its S/N in 49 pixels, its distance from the edge, its aperture [pixel].
_LEAST_SNR, _EDGE, _APERTURE = 5.0, 16, 4.0
#: Cut-outs of a gallery: half their side [pixel], and from which flux ratio on.
_HALF, _ODD_RATIO = 20, 0.8


@dataclass(frozen=True)
class TruthFrame:
    """A frame of a test recipe, and what is true of it."""

    case: DetectionCase
    clean: Float
    """Without cosmic rays [e-]."""
    clean_error: Float
    sky: float
    rms: float
    """Of the sky [e-]."""
    catalogue: Catalogue
    exptime: float
    odd: dict[str, Bool]
    """Pixels, none of them ignored, of what is neither sky nor source, by its name."""


@dataclass
class FrameCounts:
    """What methods made of one frame."""

    exposure: int
    detector: int
    counts: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """By method: (truth, region, bin of probability)."""
    rescaled: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """The same with probabilities rescaled to the frame's own density."""
    by_charge: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """(pixels, found) in bins of charge."""
    by_distance: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """(visible, found of them, found at all, found wrongly) in bins of distance from a source."""
    by_length: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """(events, found) in classes of length."""
    charges: npt.NDArray[np.int64] | None = None
    """(all pixels, those of tracks) in bins of charge."""
    clean_counts: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """Of the frame without cosmic rays."""
    false_on: dict[str, dict[str, npt.NDArray[np.int64]]] = field(default_factory=dict)
    """By method, of the same frame: (pixels, found) on satellite trails, on ghosts and beside saturated pixels."""
    stars: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    """A row a star: photometry."""
    gallery: list[dict[str, Any]] = field(default_factory=list)
    """Stars whose flux went wrong."""


@dataclass(frozen=True)
class EvaluationRequest:
    """What is asked of each frame."""

    methods: tuple[Method, ...]
    clean: bool = False
    """Whether methods see the frame without cosmic rays, too."""
    photometry: bool = False


@lru_cache(maxsize=2)
def _instrument(name: str) -> Any:
    return load_instrument(name)


def render_truth_frame(recipe: Recipe, index: int, detector: int, data: Path | None = None) -> TruthFrame:
    """Render a unit of a recipe as a case.

    Parameters
    ----------
    recipe : Recipe
    index : int
        Of the exposure.
    detector : int
    data : Path, optional
        Folder of real events.
    """
    instrument = _instrument(recipe.instrument)
    unit = render_unit(recipe, instrument, index, detector, data)
    exptime = np.float32(recipe.exptime)
    read_noise = np.float32(instrument.values(detector).read_noise or 0)
    frame = to_electrons(unit.sci, unit.wht, unit.flag, scale=recipe.exptime, ignore_bits=instrument.flags.ignore_mask)
    ignore = frame.ignore
    clean = unit.truth_sci * exptime
    clean_error = np.sqrt(poisson_variance(clean, read_noise))
    good = clean[~ignore]
    sky = float(np.median(good))
    rms = float(1.4826 * np.median(np.abs(good - sky)))
    hit = unit.truth_cr > RECALL_CHARGE
    case = DetectionCase(
        data=frame.data,
        error=frame.error,
        ignore=ignore,
        hit=hit,
        faint=(unit.truth_cr > 0) & ~hit,
        use=~ignore,
        visible=visible_pixels(unit.truth_cr, clean_error),
        charge=unit.truth_cr,
    )
    bits = instrument.flags.bits
    odd = {name.replace("_", " "): ((unit.flag & bits.get(name, 0)) != 0) & ~ignore for name in _ARTEFACTS}
    full = ((unit.flag & bits.get("saturated", 0)) != 0) & (unit.truth_cr == 0)  # full of its own light
    odd["beside saturated pixels"] = dilate(full, _BESIDE) & ~ignore
    return TruthFrame(case, clean, clean_error, sky, rms, unit.catalogue, recipe.exptime, odd)


def evaluate_frame(
    recipe: Recipe, index: int, detector: int, asked: EvaluationRequest, data: Path | None = None
) -> FrameCounts:
    """Render a unit, let every method look at it, and count."""
    known = render_truth_frame(recipe, index, detector, data)
    case = known.case
    truth = classify_pixels(case.charge, known.clean_error)
    region = label_regions(known.clean, known.sky, known.rms)
    distance = _distance_bins(known)
    events = _Events.of(case)
    seen = FrameCounts(index, detector, charges=_charges(case, events))
    stars = _Stars.of(known, region) if asked.photometry else None
    for method in asked.methods:
        probability = method.probability(case)
        found = (probability >= method.threshold) & case.use
        seen.counts[method.name] = count_pixels(truth, region, case.use, probability)
        seen.by_charge[method.name] = _by_charge(case, found)
        seen.by_distance[method.name] = _by_distance(case, truth, found, distance)
        seen.by_length[method.name] = events.found(found, case)
        rescaled = method.rescaled(probability, case)
        if rescaled is not None:
            seen.rescaled[method.name] = count_pixels(truth, region, case.use, rescaled)
        if stars is not None:
            stars.measure(method.name, found, seen.gallery)
        if asked.clean:
            nothing = replace(case, data=known.clean, error=known.clean_error)
            empty = method.probability(nothing)
            blank = np.zeros_like(truth)
            seen.clean_counts[method.name] = count_pixels(blank, region, case.use, empty)
            false = (empty >= method.threshold) & case.use
            seen.false_on[method.name] = {
                name: np.array([place.sum(), (place & false).sum()]) for name, place in known.odd.items()
            }
            if stars is not None:
                stars.check(method.name, false)
    if stars is not None:
        seen.stars = stars.columns
    return seen


def evaluate_frames(
    recipe: Recipe,
    asked: Callable[[int], EvaluationRequest],
    *,
    data: Path | None = None,
    on_progress: ProgressCallback,
    workers: int | None = None,
) -> Iterator[FrameCounts]:
    """Yield what methods made of all units of a recipe, in order.

    Parameters
    ----------
    recipe : Recipe
    asked : callable
        Says what is asked of an exposure; it is called in this process.
    data : Path, optional
        Folder of real events.
    announce, workers
        As `map_units` takes them.
    """
    looks = tuple(asked(index) for index in range(recipe.exposures))
    yield from map_units(recipe, partial(_look, looks=looks, data=data), on_progress=on_progress, workers=workers)


def _look(
    recipe: Recipe, index: int, detector: int, *, looks: Sequence[EvaluationRequest], data: Path | None
) -> FrameCounts:
    return evaluate_frame(recipe, index, detector, looks[index], data)


# --- what is counted -------------------------------------------------------------------------------------------


def _distance_bins(known: TruthFrame) -> npt.NDArray[np.int64]:
    """Return in which bin of distance from a source of S/N 20 each pixel is."""
    catalogue = known.catalogue
    bright = catalogue.flux * known.exptime > 20 * np.sqrt(49) * known.rms
    ny, nx = known.clean.shape
    x, y = np.rint(catalogue.x[bright]).astype(int), np.rint(catalogue.y[bright]).astype(int)
    inside = (x >= 0) & (y >= 0) & (x < nx) & (y < ny)
    nowhere = np.ones((ny, nx), dtype=bool)
    nowhere[y[inside], x[inside]] = False
    if nowhere.all():
        return np.full((ny, nx), len(DISTANCE_BINS) - 1)
    return np.searchsorted(DISTANCE_BINS, distance_transform_edt(nowhere), side="right") - 1


def _by_distance(
    case: DetectionCase, truth: npt.NDArray[np.int8], found: Bool, distance: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    visible = (truth == VISIBLE) & case.use
    masks = (visible, visible & found, found, found & (case.charge == 0))
    return np.stack([np.bincount(distance[mask], minlength=len(DISTANCE_BINS)) for mask in masks])


def _by_charge(case: DetectionCase, found: Bool) -> npt.NDArray[np.int64]:
    held = (case.charge >= CHARGE_BINS[0]) & case.use
    place = np.searchsorted(CHARGE_BINS, case.charge[held], side="right") - 1
    return np.stack(
        [np.bincount(place, minlength=len(CHARGE_BINS)), np.bincount(place[found[held]], minlength=len(CHARGE_BINS))]
    )


def _charges(case: DetectionCase, events: _Events) -> npt.NDArray[np.int64]:
    held = case.charge >= CHARGE_BINS[0]
    place = np.searchsorted(CHARGE_BINS, case.charge[held], side="right") - 1
    track = events.length[events.parts[held]] >= MIN_TRACK_LENGTH
    return np.stack(
        [np.bincount(place, minlength=len(CHARGE_BINS)), np.bincount(place[track], minlength=len(CHARGE_BINS))]
    )


@dataclass(frozen=True)
class _Events:
    """Connected cosmic rays of a frame."""

    parts: npt.NDArray[np.int32]
    """Number of the event of each pixel; 0: none."""
    length: npt.NDArray[np.float64]
    """Longer side of an event's box [pixel]."""

    @classmethod
    def of(cls, case: DetectionCase) -> _Events:
        parts, n = label_components(case.charge > 1)
        y, x = np.nonzero(parts)
        owner = parts[y, x]
        low = np.full((2, n + 1), 10**9)
        high = np.full((2, n + 1), -1)
        for axis, place in enumerate((y, x)):
            np.minimum.at(low[axis], owner, place)
            np.maximum.at(high[axis], owner, place)
        length = np.where(high[0] >= 0, (high - low).max(axis=0) + 1, 0)
        return cls(parts, length.astype(float))

    def found(self, mask: Bool, case: DetectionCase) -> npt.NDArray[np.int64]:
        """Count events, and those of which half of the charge is found, by length."""
        n = len(self.length)
        use = case.use & (self.parts > 0)
        charge = np.bincount(self.parts[use], case.charge[use], n)
        seen = np.bincount(self.parts[use & mask], case.charge[use & mask], n)
        there = charge > 0
        kind = np.searchsorted(LENGTH_BINS, self.length, side="right") - 1
        half = there & (seen >= 0.5 * charge)
        return np.stack(
            [np.bincount(kind[there], minlength=len(LENGTH_BINS)), np.bincount(kind[half], minlength=len(LENGTH_BINS))]
        )


@dataclass
class _Stars:
    """Stars of a frame, measured at the same places in the same aperture, clean, hit and repaired."""

    known: TruthFrame
    core: npt.NDArray[np.int64]
    """(n, 2) Pixel of each centre."""
    area: npt.NDArray[np.int64]
    """Pixel number of the connected region that each is in."""
    parts: npt.NDArray[np.int32]
    columns: dict[str, npt.NDArray[Any]]

    @classmethod
    def of(cls, known: TruthFrame, region: npt.NDArray[np.int8]) -> _Stars:
        catalogue, (ny, nx) = known.catalogue, known.clean.shape
        counts = catalogue.flux * known.exptime
        snr = counts / np.sqrt(counts + 49 * known.rms**2)
        inside = (catalogue.x > _EDGE) & (catalogue.y > _EDGE) & (catalogue.x < nx - _EDGE) & (catalogue.y < ny - _EDGE)
        chosen = catalogue.is_star & inside & (snr > _LEAST_SNR)
        x, y, snr = catalogue.x[chosen], catalogue.y[chosen], snr[chosen]
        core = np.column_stack([np.rint(y), np.rint(x)]).astype(np.int64)
        bad = binary_dilation(known.case.ignore, iterations=3)
        good = ~bad[core[:, 0], core[:, 1]]
        x, y, snr, core = x[good], y[good], snr[good], core[good]
        parts, _ = label_components(region > 0)
        size = np.bincount(parts.ravel())
        size[0] = 0
        part = parts[core[:, 0], core[:, 1]]
        stars = cls(known, core, part, parts, {"x": x, "y": y, "snr": snr, "area": size[part]})
        stars.columns["clean"] = stars._aperture(known.clean)
        stars.columns["hit"] = stars._aperture(known.case.data)
        variance = np.maximum(known.clean_error, 0) ** 2
        stars.columns["sigma"] = np.sqrt(np.maximum(stars._aperture(variance, sky=0.0), 1e-6))
        return stars

    def _aperture(self, frame: Float, sky: float | None = None) -> npt.NDArray[np.float64]:
        """Return the sum in an aperture, less the sky [e-]."""
        above = np.ascontiguousarray(frame - np.float32(self.known.sky if sky is None else sky))
        if not len(self.columns["x"]):
            return np.empty(0)
        return np.asarray(sep.sum_circle(above, self.columns["x"], self.columns["y"], _APERTURE, subpix=5)[0])

    def measure(self, name: str, found: Bool, gallery: list[dict[str, Any]]) -> None:
        """Measure on the frame that a method's mask was repaired on, and keep the oddest star for a gallery."""
        case = self.known.case
        fixed = np.asarray(inpaint(case.data, found, case.error, case.ignore, model="median", psf=NO_PSF).data)
        flux = self._aperture(fixed)
        self.columns[name] = flux
        clean = self.columns["clean"]
        solid = clean > 20 * self.columns["sigma"]
        ratio = np.where(solid, flux / np.maximum(clean, 1), 1.0)
        if not solid.any() or ratio.min() > _ODD_RATIO:
            return
        worst = int(np.argmin(ratio))
        y, x = self.core[worst]
        ny, nx = case.data.shape
        window = (slice(max(0, y - _HALF), min(ny, y + _HALF)), slice(max(0, x - _HALF), min(nx, x + _HALF)))
        planes = {
            "clean": self.known.clean,
            "hit": case.data,
            "cosmic ray": case.charge,
            "residual": fixed - self.known.clean,
        }
        cut = {key: plane[window].astype(np.float32) for key, plane in planes.items()}
        gallery.append(
            {"method": name, "ratio": float(ratio[worst]), "sky": self.known.sky, "rms": self.known.rms, **cut}
        )

    def check(self, name: str, found: Bool) -> None:
        """Note which stars are flagged in a frame without cosmic rays: in their core, and mostly."""
        n = len(self.core)
        core = np.zeros(n, dtype=bool)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                core |= found[self.core[:, 0] + dy, self.core[:, 1] + dx]
        flagged = np.bincount(self.parts[found], minlength=int(self.parts.max()) + 1)[self.area]
        self.columns[f"{name}: core flagged"] = core
        self.columns[f"{name}: whole flagged"] = (self.area > 0) & (flagged >= 0.5 * self.columns["area"])


def sum_counts(seen: Sequence[FrameCounts], what: str) -> dict[str, npt.NDArray[np.int64]]:
    """Return counts of several frames added up, by method."""
    names = list(getattr(seen[0], what))
    return {name: np.sum([getattr(one, what)[name] for one in seen], axis=0) for name in names}


def region_levels() -> list[tuple[str, int]]:
    """Return the names of regions and the number that each begins with."""
    return [("whole frame", 0), *((f"above {k} rms", number) for number, k in enumerate(LEVELS, start=1))]
