"""Evaluate detection methods on frames of test recipes.

A frame is rendered, evaluated by all methods, counted and discarded, in a separate task on a worker process: an
evaluation of hundreds of frames needs the memory of a few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

from csstdask.arrays.morphology import label_components
from csstdask.evaluation.cosmicray.methods import Method
from csstdask.evaluation.cosmicray.stars import StarPhotometry
from csstdask.evaluation.cosmicray.truth_frame import SNR_PIXELS, TruthFrame, render_truth_frame
from csstdask.evaluation.parallel import map_units
from csstdask.evaluation.runner import ProgressCallback
from csstdask.metrics.detection import Bool, DetectionCase
from csstdask.metrics.detection_histograms import LEVELS, VISIBLE, classify_pixels, count_pixels, label_regions
from csstdask.mock import Recipe

Counts = npt.NDArray[np.int64]

#: Lower edges of the bins of the distance from a source [pixel].
DISTANCE_BINS = (0.0, 1.5, 3.0, 5.0, 8.0, 12.0, 20.0, 40.0)
#: Lower edges of the bins of the charge of a pixel [e-].
CHARGE_BINS = tuple(float(value) for value in np.geomspace(1, 1e5, 41))
#: Lower edges of the classes of the length of an event [pixel].
LENGTH_BINS = (0, 3, 6, 15, 40)
#: Smallest length of a track [pixel].
MIN_TRACK_LENGTH = 5
#: Smallest charge of a pixel that belongs to an event [e-].
_EVENT_CHARGE = 1
#: Signal-to-noise ratio of the sources to which distances are measured.
_BRIGHT_SNR = 20


@dataclass
class FrameCounts:
    """Counts of one frame; dictionaries are by method unless they say otherwise."""

    exposure: int
    """Index of the exposure."""
    detector: int
    """Id of the detector."""
    counts: dict[str, Counts] = field(default_factory=dict)
    """Pixels by (class, region, bin of probability); see `csstdask.metrics.detection_histograms`."""
    rescaled: dict[str, Counts] = field(default_factory=dict)
    """The same, with probabilities rescaled to the density of cosmic rays of the frame."""
    by_charge: dict[str, Counts] = field(default_factory=dict)
    """(pixels, found) in bins of charge."""
    by_distance: dict[str, Counts] = field(default_factory=dict)
    """(visible, visible and found, found, false) in bins of the distance from a source."""
    by_length: dict[str, Counts] = field(default_factory=dict)
    """(events, found) in classes of length."""
    charges: Counts | None = None
    """(all pixels, pixels of tracks) in bins of charge."""
    clean_counts: dict[str, Counts] = field(default_factory=dict)
    """As `counts`, of the frame without cosmic rays."""
    false_on: dict[str, dict[str, Counts]] = field(default_factory=dict)
    """By method and artefact: (pixels, found) in the frame without cosmic rays."""
    stars: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    """Columns of `csstdask.evaluation.cosmicray.stars.StarPhotometry`."""
    gallery: list[dict[str, Any]] = field(default_factory=list)
    """Cut-outs of stars whose repaired flux is wrong."""


@dataclass(frozen=True)
class EvaluationRequest:
    """The evaluations of a frame."""

    methods: tuple[Method, ...]
    clean: bool = False
    """Whether the frame without cosmic rays is evaluated as well."""
    photometry: bool = False
    """Whether stars are measured."""


def evaluate_frame(
    recipe: Recipe, index: int, detector: int, request: EvaluationRequest, data: Path | None = None
) -> FrameCounts:
    """Render a unit, apply all methods, and count.

    Parameters
    ----------
    recipe : Recipe
    index, detector : int
        Index of the exposure and id of the detector.
    request : EvaluationRequest
    data : Path, optional
        Folder of real cosmic-ray events.
    """
    truth = render_truth_frame(recipe, index, detector, data)
    case = truth.case
    classes = classify_pixels(case.charge, truth.clean_error)
    levels = label_regions(truth.clean, truth.sky, truth.rms)
    distance = _distance_bins(truth)
    events = _Events.of(case)
    result = FrameCounts(index, detector, charges=_charges(case, events))
    stars = StarPhotometry.of(truth, levels) if request.photometry else None
    for method in request.methods:
        probability = method.probability(case)
        found = (probability >= method.threshold) & case.use
        result.counts[method.name] = count_pixels(classes, levels, case.use, probability)
        result.by_charge[method.name] = _by_charge(case, found)
        result.by_distance[method.name] = _by_distance(case, classes, found, distance)
        result.by_length[method.name] = events.found(found, case)
        rescaled = method.rescaled(probability, case)
        if rescaled is not None:
            result.rescaled[method.name] = count_pixels(classes, levels, case.use, rescaled)
        if stars is not None:
            stars.measure(method.name, found, result.gallery)
        if request.clean:
            _evaluate_clean(result, method, truth, levels, stars)
    if stars is not None:
        result.stars = stars.columns
    return result


def _evaluate_clean(
    result: FrameCounts,
    method: Method,
    truth: TruthFrame,
    levels: npt.NDArray[np.int8],
    stars: StarPhotometry | None,
) -> None:
    """Count the false pixels of a method in the frame without cosmic rays."""
    case = truth.case
    probability = method.probability(replace(case, data=truth.clean, error=truth.clean_error))
    result.clean_counts[method.name] = count_pixels(np.zeros_like(levels), levels, case.use, probability)
    false = (probability >= method.threshold) & case.use
    result.false_on[method.name] = {
        name: np.array([pixels.sum(), (pixels & false).sum()]) for name, pixels in truth.artefacts.items()
    }
    if stars is not None:
        stars.check(method.name, false)


def evaluate_frames(
    recipe: Recipe,
    request: Callable[[int], EvaluationRequest],
    *,
    data: Path | None = None,
    on_progress: ProgressCallback,
    workers: int | None = None,
) -> Iterator[FrameCounts]:
    """Yield the counts of all units of a recipe, in order.

    Parameters
    ----------
    recipe : Recipe
    request : callable
        Takes the index of an exposure, and returns what is evaluated on its frames. It is called in this process.
    data : Path, optional
        Folder of real cosmic-ray events.
    on_progress, workers
        As for `csstdask.evaluation.parallel.map_units`.
    """
    requests = tuple(request(index) for index in range(recipe.exposures))
    function = partial(_evaluate_unit, requests=requests, data=data)
    yield from map_units(recipe, function, on_progress=on_progress, workers=workers)


def _evaluate_unit(
    recipe: Recipe, index: int, detector: int, *, requests: Sequence[EvaluationRequest], data: Path | None
) -> FrameCounts:
    return evaluate_frame(recipe, index, detector, requests[index], data)


def _distance_bins(truth: TruthFrame) -> npt.NDArray[np.int64]:
    """Return the bin of the distance of each pixel from a source with a signal-to-noise ratio above 20."""
    catalogue = truth.catalogue
    bright = catalogue.flux * truth.exptime > _BRIGHT_SNR * np.sqrt(SNR_PIXELS) * truth.rms
    ny, nx = truth.clean.shape
    x, y = np.rint(catalogue.x[bright]).astype(int), np.rint(catalogue.y[bright]).astype(int)
    inside = (x >= 0) & (y >= 0) & (x < nx) & (y < ny)
    no_source = np.ones((ny, nx), dtype=bool)
    no_source[y[inside], x[inside]] = False
    if no_source.all():
        return np.full((ny, nx), len(DISTANCE_BINS) - 1)
    return np.searchsorted(DISTANCE_BINS, distance_transform_edt(no_source), side="right") - 1


def _by_distance(case: DetectionCase, classes: npt.NDArray[np.int8], found: Bool, distance: Counts) -> Counts:
    visible = (classes == VISIBLE) & case.use
    masks = (visible, visible & found, found, found & (case.charge == 0))
    return np.stack([np.bincount(distance[mask], minlength=len(DISTANCE_BINS)) for mask in masks])


def _by_charge(case: DetectionCase, found: Bool) -> Counts:
    charged = (case.charge >= CHARGE_BINS[0]) & case.use
    bins = np.searchsorted(CHARGE_BINS, case.charge[charged], side="right") - 1
    return np.stack(
        [np.bincount(bins, minlength=len(CHARGE_BINS)), np.bincount(bins[found[charged]], minlength=len(CHARGE_BINS))]
    )


def _charges(case: DetectionCase, events: _Events) -> Counts:
    charged = case.charge >= CHARGE_BINS[0]
    bins = np.searchsorted(CHARGE_BINS, case.charge[charged], side="right") - 1
    track = events.length[events.parts[charged]] >= MIN_TRACK_LENGTH
    return np.stack(
        [np.bincount(bins, minlength=len(CHARGE_BINS)), np.bincount(bins[track], minlength=len(CHARGE_BINS))]
    )


@dataclass(frozen=True)
class _Events:
    """Connected cosmic-ray events of a frame."""

    parts: npt.NDArray[np.int32]
    """(y, x) Number of the event of each pixel; 0: none."""
    length: npt.NDArray[np.float64]
    """(n,) Longer side of the bounding box of each event [pixel]."""

    @classmethod
    def of(cls, case: DetectionCase) -> _Events:
        parts, n = label_components(case.charge > _EVENT_CHARGE)
        y, x = np.nonzero(parts)
        owner = parts[y, x]
        low = np.full((2, n + 1), 10**9)
        high = np.full((2, n + 1), -1)
        for axis, position in enumerate((y, x)):
            np.minimum.at(low[axis], owner, position)
            np.maximum.at(high[axis], owner, position)
        length = np.where(high[0] >= 0, (high - low).max(axis=0) + 1, 0)
        return cls(parts, length.astype(float))

    def found(self, mask: Bool, case: DetectionCase) -> Counts:
        """Return the numbers of events, and of events of which half of the charge is found, by length."""
        n = len(self.length)
        use = case.use & (self.parts > 0)
        charge = np.bincount(self.parts[use], case.charge[use], n)
        found = np.bincount(self.parts[use & mask], case.charge[use & mask], n)
        present = charge > 0
        kind = np.searchsorted(LENGTH_BINS, self.length, side="right") - 1
        half = present & (found >= 0.5 * charge)
        return np.stack(
            [
                np.bincount(kind[present], minlength=len(LENGTH_BINS)),
                np.bincount(kind[half], minlength=len(LENGTH_BINS)),
            ]
        )


def sum_counts(frames: Sequence[FrameCounts], name: str) -> dict[str, Counts]:
    """Return the counts of one field of `FrameCounts`, summed over frames, by method."""
    methods = list(getattr(frames[0], name))
    return {method: np.sum([getattr(one, name)[method] for one in frames], axis=0) for method in methods}


def region_levels() -> list[tuple[str, int]]:
    """Return the names of the regions, and the number of the lowest level of each."""
    return [("whole frame", 0), *((f"above {k} rms", number) for number, k in enumerate(LEVELS, start=1))]
