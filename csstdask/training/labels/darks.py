"""Events cut from dark frames: ``csstdask label darks``.

Nothing shines on a dark: what stands above its dark current is a cosmic ray, or a pixel that is hot now and then. The
dark current is the median over a detector's exposures, taken again without what stood out of it; pixels that are hot,
that stand out more often than chance would have it, or that scatter too much are nobody's events. A big event meets
such a pixel sooner than a small one: each is drawn with one over the chance that one of its size is left.

Rows are read in bands of all exposures, then each exposure alone: memory does not grow with their number.
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
from csstdask.training.labels.registration import nan_median

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

#: Of a detector: of two exposures nobody can tell which one a hot pixel is hot in.
MIN_FRAMES = 3
#: A single pixel is a hot one as often as a hit.
_LEAST_PIXELS = 2
#: Of pixels whose scatter is noise, how many are taken for variable.
_ACCIDENTS = 1e-4
#: Of a median of many, beside a mean's.
_MEDIAN_VARIANCE = np.pi / 2
#: Rows that are read at once; places that tell the chance of a size, and events of it that are tried there.
_BAND, _PLACES, _TRIED = 512, 64, 64


@dataclass(frozen=True)
class Dark:
    """What is known of a dark frame besides its pixels."""

    exptime: float
    """[s]"""
    level: Mesh
    """Pedestal and mean dark current, and the noise of a pixel that is not hot [e-]."""


@dataclass(frozen=True)
class Reference:
    """What the exposures of a detector tell of its pixels."""

    rate: Image
    """Dark current above the mean of the neighbourhood [e-/s]."""
    frames: npt.NDArray[np.int64]
    """How many exposures tell it."""
    excluded: Mask
    """Hot or variable: no event may hold such a pixel."""

    def error(self, dark: Dark, rows: slice = slice(None)) -> Image:
        """Return the noise of a dark's difference to this [e-]: read noise, dark current, and the reference's own."""
        one = dark.level.noise_at(rows) ** 2 + np.maximum(self.rate * np.float32(dark.exptime), 0)
        return np.asarray(np.sqrt(one * (1 + _MEDIAN_VARIANCE / np.maximum(self.frames, 1))), dtype=np.float32)


def build_reference(stack: Image, darks: Sequence[Dark], rows: slice, *, sigma: float, grow: float) -> Reference:
    """Measure the dark current of some rows, and which of their pixels are hot or variable.

    Parameters
    ----------
    stack : float32 array (exposure, y, x)
        Of those rows [e-]; NaN where a pixel is unusable.
    darks : sequence of Dark
    rows : slice
        Of the frames.
    sigma, grow : float
        See `extract_events`.
    """
    times = np.array([dark.exptime for dark in darks], dtype=np.float32)
    flat = stack - np.stack([dark.level.background_at(rows) for dark in darks])
    rates = flat / times[:, None, None]
    found = _reference(rates)
    hits = [_stands_out(plane, found, dark, rows, sigma, grow) for plane, dark in zip(flat, darks, strict=True)]
    # A hit exposure draws a median of few upwards: it is left out, where others remain.
    hit = np.stack(hits)
    hit &= ~(hit | ~np.isfinite(rates)).all(axis=0)
    found = _reference(np.where(hit, np.float32(np.nan), rates))
    hits = [_stands_out(plane, found, dark, rows, sigma, grow) for plane, dark in zip(flat, darks, strict=True)]
    hit = np.stack(hits)
    errors = np.stack([found.error(dark, rows) for dark in darks])
    pull = np.where(hit | ~np.isfinite(flat), 0, (flat - found.rate * times[:, None, None]) / errors)
    quiet = np.maximum((~hit & np.isfinite(flat)).sum(axis=0), 2)
    scatter = (pull**2).sum(axis=0) > chi2.isf(_ACCIDENTS, quiet)
    repeats = hit.sum(axis=0) >= min_recurrences([float(plane.mean()) for plane in hit])
    longest = max(darks, key=lambda dark: dark.exptime)
    hot = found.rate * np.float32(longest.exptime) > grow * longest.level.noise_at(rows)
    return Reference(found.rate, found.frames, scatter | repeats | hot | (found.frames < MIN_FRAMES - 1))


def _reference(rates: Image) -> Reference:
    rate = nan_median(rates.copy())
    return Reference(np.nan_to_num(rate), np.isfinite(rates).sum(axis=0), ~np.isfinite(rate))


def _stands_out(plane: Image, reference: Reference, dark: Dark, rows: slice, sigma: float, grow: float) -> Mask:
    height = np.nan_to_num((plane - reference.rate * np.float32(dark.exptime)) / reference.error(dark, rows))
    return hysteresis_threshold(height > sigma, height > grow)


@dataclass(frozen=True)
class Cut:
    """Events of a frame: ragged arrays, one entry a pixel but for `y` and `x`."""

    offset: npt.NDArray[np.int64]
    dy: npt.NDArray[np.int64]
    dx: npt.NDArray[np.int64]
    charge: Image
    y: npt.NDArray[np.int64]
    x: npt.NDArray[np.int64]
    """First row and column of each event."""


def extract_events(
    data: Image, usable: Mask, dark: Dark, reference: Reference, *, sigma: float = 5.0, grow: float = 3.0
) -> Cut:
    """Cut the events of a dark frame.

    Parameters
    ----------
    data : float32 array (y, x)
        [e-]
    usable : bool array (y, x)
    dark : Dark
    reference : Reference
        Of the whole frame.
    sigma, grow : float
        An event has a pixel above `sigma` of its own noise; what hangs together with it above `grow` belongs to it.

    Returns
    -------
    Cut
        Of events of two pixels and more that hold no hot or variable pixel, touch no unusable one, and are whole.
    """
    charge = data - dark.level.background_at() - reference.rate * np.float32(dark.exptime)
    height = np.where(usable, charge / reference.error(dark), 0)
    parts, number = label_components(hysteresis_threshold(height > sigma, height > grow))
    within = np.pad(usable[1:-1, 1:-1], 1)
    refused = dilate(~within) | reference.excluded
    y, x = np.nonzero(parts)
    event = parts[y, x] - 1
    count = np.bincount(event, minlength=number)
    keep = (count >= _LEAST_PIXELS) & (np.bincount(event, weights=refused[y, x], minlength=number) == 0)
    chosen = keep[event]
    order = np.argsort(event[chosen], kind="stable")
    y, x = y[chosen][order], x[chosen][order]
    offset = np.concatenate([[0], np.cumsum(count[keep])])
    if not keep.any():
        return Cut(offset, y, x, charge[y, x], y, x)
    first_y, first_x = (np.minimum.reduceat(at, offset[:-1]) for at in (y, x))
    dy, dx = (at - np.repeat(first, count[keep]) for at, first in ((y, first_y), (x, first_x)))
    return Cut(offset, dy, dx, charge[y, x], first_y, first_x)


def survival(rng: np.random.Generator, cut: Cut, refused: Mask) -> npt.NDArray[np.float64]:
    """Return the chance of each event's size to meet no refused pixel, from events of that size at other places."""
    sizes = np.diff(cut.offset)
    chance = np.ones(len(sizes))
    for size in np.unique(sizes):
        same = np.flatnonzero(sizes == size)
        pixels = cut.offset[rng.choice(same, _TRIED)][:, None] + np.arange(size)
        dy, dx = cut.dy[pixels][:, None], cut.dx[pixels][:, None]
        y = rng.integers(0, np.maximum(1, refused.shape[0] - dy.max(axis=2)), (_TRIED, _PLACES))[..., None] + dy
        x = rng.integers(0, np.maximum(1, refused.shape[1] - dx.max(axis=2)), (_TRIED, _PLACES))[..., None] + dx
        free = ~refused[np.minimum(y, refused.shape[0] - 1), np.minimum(x, refused.shape[1] - 1)].any(axis=2)
        chance[same] = max(float(free.mean()), 1 / free.size)
    return chance


def extract_detector_events(
    campaign: Campaign, several: Sequence[UnitMetadata], *, sigma: float = 5.0, grow: float = 3.0
) -> Iterator[tuple[UnitMetadata, Cut, npt.NDArray[np.float64]]]:
    """Yield each dark frame of a detector with its events and the chance of each one's size to be left."""
    darks = [_measured(campaign, metadata) for metadata in several]
    reference = _whole_reference(campaign, several, darks, sigma, grow)
    for number, (metadata, dark) in enumerate(zip(several, darks, strict=True)):
        data, usable = _read(campaign, metadata)
        cut = extract_events(data, usable, dark, reference, sigma=sigma, grow=grow)
        refused = reference.excluded | dilate(~usable)
        yield metadata, cut, survival(np.random.default_rng([metadata.detector, number]), cut, refused)


def label_darks(
    path: Path, to: Path, *, sigma: float = 5.0, grow: float = 3.0, on_progress: Callable[[str], None] | None = None
) -> EventLibrary:
    """Write a library of the events in a campaign's dark frames.

    Parameters
    ----------
    path : Path
        The campaign.
    to : Path
        ``.npz``
    sigma, grow : float
        See `extract_events`.
    announce : callable, optional
        Told in a line how each frame went.

    Raises
    ------
    InputError
        If there are no darks, too few of a detector, or no event in them.
    """
    if not sigma >= grow > 0:
        raise InputError("sigma, grow", f"{sigma:g}, {grow:g}", "sigma at least grow, both above 0")
    campaign = Campaign(path)
    units = _dark_units(campaign)
    total = sum(len(several) for several in units.values())
    cuts: list[Cut] = []
    weights, places = [], []
    for detector, several in units.items():
        for metadata, cut, chance in extract_detector_events(campaign, several, sigma=sigma, grow=grow):
            weights.append(1 / chance)
            places.append((len(cuts) + cut.y / campaign.shape[0]) / total)
            cuts.append(cut)
            if on_progress is not None:
                on_progress(f"{len(cuts)} of {total}: {metadata.exposure}/{detector}, {len(cut.y)} events")
    if not any(len(cut.y) for cut in cuts):
        raise InputError(path, "no event in its darks", f"some above {sigma:g} sigma")
    size = campaign.instrument.pixel_size
    weight = np.concatenate(weights)
    library = EventLibrary(
        f"darks of {campaign.instrument.name}, {path.name}",
        np.concatenate([[0], np.cumsum(np.concatenate([np.diff(cut.offset) for cut in cuts]))]),
        np.concatenate([cut.dy for cut in cuts]),
        np.concatenate([cut.dx for cut in cuts]),
        np.concatenate([cut.charge for cut in cuts]),
        weight / weight.sum(),
        turns=size is not None and size[0] == size[1],
    )
    write_event_library(to, library, np.concatenate(places))
    return library


def _dark_units(campaign: Campaign) -> dict[int, list[UnitMetadata]]:
    """Return the dark frames of each detector, or say what is missing."""
    units: dict[int, list[UnitMetadata]] = {}
    for row, exposure in enumerate(campaign.exposures):
        for column in np.flatnonzero(campaign.present[row]):
            metadata = campaign.metadata(exposure, campaign.detectors[column])
            if metadata.kind == "dark":
                if not metadata.exptime > 0:
                    raise InputError(
                        f"{campaign.path}: {exposure}/{metadata.detector}", f"exptime {metadata.exptime}", "seconds"
                    )
                units.setdefault(metadata.detector, []).append(metadata)
    if not units:
        raise InputError(campaign.path, "no dark frame", "units of kind dark")
    for detector, several in sorted(units.items()):
        if len(several) < MIN_FRAMES:
            wanted = f"{MIN_FRAMES} or more: two cannot tell hot pixels from cosmic rays"
            raise InputError(f"{campaign.path}: detector {detector}", f"{len(several)} dark frames", wanted)
    return dict(sorted(units.items()))


def _read(campaign: Campaign, metadata: UnitMetadata) -> tuple[Image, Mask]:
    """Return a frame [e-] and which of its pixels are usable."""
    unit = read_electrons(campaign, metadata)
    return np.where(unit.ignore, np.float32(0), unit.data), ~unit.ignore


def _measured(campaign: Campaign, metadata: UnitMetadata) -> Dark:
    data, usable = _read(campaign, metadata)
    level = estimate_background(data, ~usable)
    if not np.isfinite(level.noise).all():
        raise InputError(f"{campaign.path}: {metadata.exposure}/{metadata.detector}", "no usable pixel", "a dark frame")
    return Dark(metadata.exptime, level)


def _whole_reference(
    campaign: Campaign, several: Sequence[UnitMetadata], darks: Sequence[Dark], sigma: float, grow: float
) -> Reference:
    """Measure a detector's dark current, a band of rows of all its exposures at a time."""
    bands = []
    for first in range(0, campaign.shape[0], _BAND):
        rows = slice(first, min(first + _BAND, campaign.shape[0]))
        stack = np.empty((len(several), rows.stop - first, campaign.shape[1]), dtype=np.float32)
        for slot, metadata in zip(stack, several, strict=True):
            unit = read_electrons(campaign, metadata, rows)
            slot[:] = np.where(unit.ignore, np.float32(np.nan), unit.data)
        bands.append(build_reference(stack, darks, rows, sigma=sigma, grow=grow))
    return Reference(
        *(np.concatenate([getattr(band, name) for band in bands]) for name in ("rate", "frames", "excluded"))
    )
