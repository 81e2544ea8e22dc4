"""Extract cosmic-ray events from dark frames: ``csstdask label darks``.

A dark has no sources: what exceeds the dark current is a cosmic ray or an unstable pixel. The dark current is the
median over the exposures of a detector, measured again without the hits. Events that touch hot pixels, pixels that
exceed it too often or pixels with too much scatter are left out. Large events touch such a pixel more often than small
ones: each event is weighted by the inverse of the probability that one of its size is kept.

Memory does not grow with the number of exposures: bands of rows are read from all exposures, then exposures one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2

from csstdask.arrays.background import estimate_background
from csstdask.arrays.mesh import Mesh
from csstdask.arrays.morphology import dilate, hysteresis_threshold, label_components, min_recurrences
from csstdask.core.errors import InputError
from csstdask.mock.event_libraries import EventLibrary, write_event_library
from csstdask.store.campaign import Campaign
from csstdask.store.electrons import read_electrons
from csstdask.store.unit_metadata import UnitMetadata
from csstdask.training.labels.stack import MEDIAN_VARIANCE, nan_median

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

#: Smallest number of exposures of a detector: with two, a pixel that is hot in one of them cannot be recognised.
MIN_FRAMES = 3
#: Smallest event [pixel]: single pixels are hot ones as often as hits.
MIN_PIXELS = 2
#: Fraction of stable pixels whose scatter may count as too large.
FALSE_ALARM_RATE = 1e-4
#: Rows that are read at once.
BAND_ROWS = 512
#: Events of each size, and positions of each, that measure the probability that an event is kept.
N_EVENTS, N_POSITIONS = 64, 64


@dataclass(frozen=True)
class DarkFrame:
    """Exposure time and noise of a dark frame."""

    exptime: float
    """Exposure time [s]."""
    level: Mesh
    """Pedestal with mean dark current, and noise of stable pixels [e-]."""


@dataclass(frozen=True)
class DarkReference:
    """Dark current of a detector or of some of its rows, arrays (y, x)."""

    rate: Image
    """Dark current above the mean of the neighbourhood [e-/s]."""
    frames: Int
    """Number of exposures behind it."""
    excluded: Mask
    """Hot or variable pixels: no event may contain one."""

    def error(self, dark: DarkFrame, rows: slice = slice(None)) -> Image:
        """Return the noise of a dark minus this reference [e-]: read noise, dark current, and that of the reference."""
        variance = dark.level.noise_at(rows) ** 2 + np.maximum(self.rate * np.float32(dark.exptime), 0)
        return np.asarray(np.sqrt(variance * (1 + MEDIAN_VARIANCE / np.maximum(self.frames, 1))), dtype=np.float32)


@dataclass(frozen=True)
class DarkEvents:
    """Events of a frame: pixel values of all events in a row, those of event i from offset[i] to offset[i + 1]."""

    offset: Int
    """First pixel of each event, and the number of pixels (event + 1,)."""
    dy: Int
    """Row of each pixel, from the first row of its event (pixel,)."""
    dx: Int
    """Column of each pixel, from the first column of its event (pixel,)."""
    charge: Image
    """Charge of each pixel [e-], (pixel,)."""
    y: Int
    """First row of each event (event,)."""
    x: Int
    """First column of each event (event,)."""


def build_reference(
    stack: Image, darks: Sequence[DarkFrame], rows: slice, *, sigma: float, grow: float
) -> DarkReference:
    """Measure the dark current of some rows, and which pixels are hot or variable.

    Parameters
    ----------
    stack : float32 array (exposure, y, x)
        Rows of all exposures [e-]; NaN where a pixel is unusable.
    darks : sequence of DarkFrame
        Exposures.
    rows : slice
        Position of the rows in the frame.
    sigma, grow : float
        See `extract_events`.

    Returns
    -------
    DarkReference
    """
    times = np.array([dark.exptime for dark in darks], dtype=np.float32)
    flat = stack - np.stack([dark.level.background_at(rows) for dark in darks])
    rates = flat / times[:, None, None]
    reference = _median_reference(rates)
    hit = np.stack([_hits(one, reference, dark, rows, sigma, grow) for one, dark in zip(flat, darks, strict=True)])
    # The median of few exposures is biased by hits: they are left out, unless all exposures of a pixel are hit.
    hit &= ~(hit | ~np.isfinite(rates)).all(axis=0)
    reference = _median_reference(np.where(hit, np.float32(np.nan), rates))
    hit = np.stack([_hits(one, reference, dark, rows, sigma, grow) for one, dark in zip(flat, darks, strict=True)])
    errors = np.stack([reference.error(dark, rows) for dark in darks])
    usable = ~hit & np.isfinite(flat)
    pull = np.where(usable, (flat - reference.rate * times[:, None, None]) / errors, 0)
    scattered = (pull**2).sum(axis=0) > chi2.isf(FALSE_ALARM_RATE, np.maximum(usable.sum(axis=0), 2))
    recurrent = hit.sum(axis=0) >= min_recurrences([float(one.mean()) for one in hit])
    longest = max(darks, key=lambda dark: dark.exptime)
    hot = reference.rate * np.float32(longest.exptime) > grow * longest.level.noise_at(rows)
    excluded = scattered | recurrent | hot | (reference.frames < MIN_FRAMES - 1)
    return DarkReference(reference.rate, reference.frames, excluded)


def _median_reference(rates: Image) -> DarkReference:
    rate = nan_median(rates.copy())
    return DarkReference(np.nan_to_num(rate), np.isfinite(rates).sum(axis=0), ~np.isfinite(rate))


def _hits(data: Image, reference: DarkReference, dark: DarkFrame, rows: slice, sigma: float, grow: float) -> Mask:
    """Return where a dark exceeds the reference; `data` without its pedestal."""
    height = np.nan_to_num((data - reference.rate * np.float32(dark.exptime)) / reference.error(dark, rows))
    return hysteresis_threshold(height > sigma, height > grow)


def extract_events(
    data: Image, usable: Mask, dark: DarkFrame, reference: DarkReference, *, sigma: float = 5.0, grow: float = 3.0
) -> DarkEvents:
    """Extract the events of a dark frame.

    Parameters
    ----------
    data : float32 array (y, x)
        Counts [e-].
    usable : bool array (y, x)
        Usable pixels.
    dark : DarkFrame
        Exposure time and noise of the frame.
    reference : DarkReference
        Dark current of the detector.
    sigma : float
        An event has at least one pixel above this many sigma of its noise.
    grow : float
        Connected pixels above this many sigma belong to it.

    Returns
    -------
    DarkEvents
        Events of two or more pixels that contain no excluded pixel, and touch neither unusable ones nor the border.
    """
    charge = data - dark.level.background_at() - reference.rate * np.float32(dark.exptime)
    height = np.where(usable, charge / reference.error(dark), 0)
    parts, number = label_components(hysteresis_threshold(height > sigma, height > grow))
    interior = np.pad(usable[1:-1, 1:-1], 1)
    refused = dilate(~interior) | reference.excluded
    y, x = np.nonzero(parts)
    event = parts[y, x] - 1
    count = np.bincount(event, minlength=number)
    keep = (count >= MIN_PIXELS) & (np.bincount(event, weights=refused[y, x], minlength=number) == 0)
    chosen = keep[event]
    order = np.argsort(event[chosen], kind="stable")
    y, x = y[chosen][order], x[chosen][order]
    offset = np.concatenate([[0], np.cumsum(count[keep])])
    if not keep.any():
        return DarkEvents(offset, y, x, charge[y, x], y, x)
    first_y, first_x = (np.minimum.reduceat(pixel, offset[:-1]) for pixel in (y, x))
    dy, dx = (pixel - np.repeat(first, count[keep]) for pixel, first in ((y, first_y), (x, first_x)))
    return DarkEvents(offset, dy, dx, charge[y, x], first_y, first_x)


def acceptance_probability(rng: np.random.Generator, events: DarkEvents, refused: Mask) -> Float:
    """Return the probability that an event of the size of each event is kept.

    Events of the same size are put on random positions: kept are those without a refused pixel.

    Parameters
    ----------
    rng : numpy.random.Generator
        Generator of events and positions.
    events : DarkEvents
        Events of a frame.
    refused : bool array (y, x)
        Pixels that an event may not contain.

    Returns
    -------
    float64 array (event,)
    """
    sizes = np.diff(events.offset)
    probability = np.ones(len(sizes))
    ny, nx = refused.shape
    for size in np.unique(sizes):
        same = np.flatnonzero(sizes == size)
        pixels = events.offset[rng.choice(same, N_EVENTS)][:, None] + np.arange(size)
        dy, dx = events.dy[pixels][:, None], events.dx[pixels][:, None]
        y = rng.integers(0, np.maximum(1, ny - dy.max(axis=2)), (N_EVENTS, N_POSITIONS))[..., None] + dy
        x = rng.integers(0, np.maximum(1, nx - dx.max(axis=2)), (N_EVENTS, N_POSITIONS))[..., None] + dx
        kept = ~refused[np.minimum(y, ny - 1), np.minimum(x, nx - 1)].any(axis=2)
        probability[same] = max(float(kept.mean()), 1 / kept.size)
    return probability


def extract_detector_events(
    campaign: Campaign, units: Sequence[UnitMetadata], *, sigma: float = 5.0, grow: float = 3.0
) -> Iterator[tuple[UnitMetadata, DarkEvents, Float]]:
    """Yield each dark frame of a detector with its events and their `acceptance_probability`."""
    darks = [_measure(campaign, unit) for unit in units]
    reference = _detector_reference(campaign, units, darks, sigma, grow)
    for number, (unit, dark) in enumerate(zip(units, darks, strict=True)):
        data, usable = _read(campaign, unit)
        events = extract_events(data, usable, dark, reference, sigma=sigma, grow=grow)
        refused = reference.excluded | dilate(~usable)
        rng = np.random.default_rng([unit.detector, number])
        yield unit, events, acceptance_probability(rng, events, refused)


def label_darks(
    path: Path,
    to: Path,
    *,
    sigma: float = 5.0,
    grow: float = 3.0,
    on_progress: Callable[[str], None] | None = None,
) -> EventLibrary:
    """Write a library of the events in a campaign's dark frames.

    Parameters
    ----------
    path : Path
        Path of the campaign.
    to : Path
        Library to write (.npz).
    sigma, grow : float
        See `extract_events`.
    on_progress : callable, optional
        Receives one line per frame.

    Returns
    -------
    EventLibrary

    Raises
    ------
    InputError
        If there are no darks, fewer than three of a detector, or no event in them.
    """
    if not sigma >= grow > 0:
        raise InputError("sigma, grow", f"{sigma:g}, {grow:g}", "sigma at least grow, both above 0")
    campaign = Campaign(path)
    detectors = _dark_units(campaign)
    total = sum(len(units) for units in detectors.values())
    frames: list[DarkEvents] = []
    weights, positions = [], []
    for units in detectors.values():
        for unit, events, probability in extract_detector_events(campaign, units, sigma=sigma, grow=grow):
            weights.append(1 / probability)
            positions.append((len(frames) + events.y / campaign.shape[0]) / total)
            frames.append(events)
            if on_progress is not None:
                on_progress(f"{len(frames)} of {total}: {unit.exposure}/{unit.detector}, {len(events.y)} events")
    if not any(len(events.y) for events in frames):
        raise InputError(path, "no event in its darks", f"some above {sigma:g} sigma")
    library = _library(campaign, frames, np.concatenate(weights))
    write_event_library(to, library, np.concatenate(positions))
    return library


def _library(campaign: Campaign, frames: Sequence[DarkEvents], weight: Float) -> EventLibrary:
    """Return the events of all frames as a library."""
    size = campaign.instrument.pixel_size
    return EventLibrary(
        f"darks of {campaign.instrument.name}, {campaign.path.name}",
        np.concatenate([[0], np.cumsum(np.concatenate([np.diff(events.offset) for events in frames]))]),
        np.concatenate([events.dy for events in frames]),
        np.concatenate([events.dx for events in frames]),
        np.concatenate([events.charge for events in frames]),
        weight / weight.sum(),
        turns=size is not None and size[0] == size[1],
    )


def _dark_units(campaign: Campaign) -> dict[int, list[UnitMetadata]]:
    """Return the dark frames of each detector; InputError if there are none or too few."""
    detectors: dict[int, list[UnitMetadata]] = {}
    for row, exposure in enumerate(campaign.exposures):
        for column in np.flatnonzero(campaign.present[row]):
            unit = campaign.metadata(exposure, campaign.detectors[column])
            if unit.kind != "dark":
                continue
            if not unit.exptime > 0:
                name = f"{campaign.path}: {exposure}/{unit.detector}"
                raise InputError(name, f"exptime {unit.exptime}", "seconds")
            detectors.setdefault(unit.detector, []).append(unit)
    if not detectors:
        raise InputError(campaign.path, "no dark frame", "units of kind dark")
    for detector, units in sorted(detectors.items()):
        if len(units) < MIN_FRAMES:
            wanted = f"{MIN_FRAMES} or more: two cannot tell hot pixels from cosmic rays"
            raise InputError(f"{campaign.path}: detector {detector}", f"{len(units)} dark frames", wanted)
    return dict(sorted(detectors.items()))


def _read(campaign: Campaign, unit: UnitMetadata) -> tuple[Image, Mask]:
    """Return a frame [e-] and its usable pixels."""
    frame = read_electrons(campaign, unit)
    return np.where(frame.ignore, np.float32(0), frame.data), ~frame.ignore


def _measure(campaign: Campaign, unit: UnitMetadata) -> DarkFrame:
    """Measure pedestal and noise of a dark frame."""
    data, usable = _read(campaign, unit)
    level = estimate_background(data, ~usable)
    if not np.isfinite(level.noise).all():
        raise InputError(f"{campaign.path}: {unit.exposure}/{unit.detector}", "no usable pixel", "a dark frame")
    return DarkFrame(unit.exptime, level)


def _detector_reference(
    campaign: Campaign, units: Sequence[UnitMetadata], darks: Sequence[DarkFrame], sigma: float, grow: float
) -> DarkReference:
    """Measure the dark current of a detector, a band of rows of all exposures at a time."""
    ny, nx = campaign.shape
    bands = []
    for first in range(0, ny, BAND_ROWS):
        rows = slice(first, min(first + BAND_ROWS, ny))
        stack = np.empty((len(units), rows.stop - first, nx), dtype=np.float32)
        for plane, unit in zip(stack, units, strict=True):
            frame = read_electrons(campaign, unit, rows)
            plane[:] = np.where(frame.ignore, np.float32(np.nan), frame.data)
        bands.append(build_reference(stack, darks, rows, sigma=sigma, grow=grow))
    names = ("rate", "frames", "excluded")
    return DarkReference(*(np.concatenate([getattr(band, name) for band in bands]) for name in names))
