"""Labels from repeated exposures of one field: ``csstdask label repeats``.

Cosmic rays do not come back; the sky does. Each exposure is foretold by the others: they are registered by their
headers' positions, refined by shifts, resampled to its own pixels, and their median is made as sharp as the exposure
is. What stands above the forecast by more than its noise, and more than a share of its slope (where stars are as sharp
as a pixel, interpolation is not exact: the ``driz_cr`` of Fruchter & Hook 2002, PASP 114, 144), is a cosmic ray. Where
nobody can tell, a label says so: it is NaN.

The exposures of a field are in memory together, about five times over, one detector after another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
from astropy.io.fits import Header
from astropy.wcs import WCS
from scipy.ndimage import find_objects, maximum_filter, minimum_filter, spline_filter

from csstdask.arrays.background import estimate_background
from csstdask.arrays.median import fill_masked
from csstdask.arrays.morphology import dilate, hysteresis_threshold, label_components, min_recurrences
from csstdask.core.errors import InputError
from csstdask.instrument import celestial_wcs, pixel_of
from csstdask.store.campaign import Campaign
from csstdask.store.campaign_pixels import write_unit_pixels
from csstdask.store.campaign_truth import add_truth, label_identity, record_label
from csstdask.store.electrons import electrons_per_data_unit, read_electrons
from csstdask.store.unit_metadata import read_header
from csstdask.training.labels.registration import combine, fit_pixel_map, nan_median, register, resample

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

#: Raised whenever the same exposures would give other labels.
LABELS_VERSION = 1
#: So many exposures, the labelled one among them, have to cover a pixel.
MIN_EXPOSURES = 3
#: How far a forecast is off, as a share of its steepest step to a neighbour: where that cannot be told, and at least.
_ROUGH_SLOPE_ERROR, _LEAST_SLOPE_ERROR = 0.2, 0.02
#: It is measured where forecasts are alike, between such steepest steps [sigma], from so many pixels or more: this
#: share of those that lie below their forecast does so by less than so many errors.
_STEEPNESS, _LEAST_TELLING, _BELOW_SHARE, _BELOW_SIGMA = (3.0, 10.0, 30.0, 100.0), 50, 0.99, 3.0
#: From so steep a step on [sigma] exposures are combined by filters, and not by their median, which is less noisy.
_STEEP = 5.0
#: Where the slope's share is more than this many times the noise, no cosmic ray is seen to begin.
_BLIND = 0.5
#: What moves on the sky and is no cosmic ray, where the flags know of it; a trail that they do not know is longer than
#: any cosmic ray [pixel].
_PASSING, _LONGEST = ("satellite_trail", "ghost", "scattered_light"), 150
#: Of a median of many, beside a mean's.
_MEDIAN_VARIANCE = np.pi / 2


@dataclass(frozen=True)
class Exposure:
    """One exposure of a field on one detector."""

    light: Image
    """Sky subtracted, unusable pixels filled from their neighbours [e-/s]."""
    sky: Image
    """[e-/s]"""
    noise: Image
    """Of the sky [e-/s]."""
    ignore: Mask
    passing: Mask
    """Where flags know of what is neither sky nor cosmic ray."""
    position: WCS
    exptime: float
    """[s]"""

    def error(self, prediction: Image) -> Image:
        """Return the noise of this exposure if it shows what is foretold [e-/s]."""
        above = np.maximum(np.nan_to_num(prediction), 0) / np.float32(self.exptime)
        return np.asarray(np.sqrt(self.noise**2 + above))


@dataclass(frozen=True)
class Label:
    """What is believed of one exposure."""

    clean: Image
    """Without cosmic rays, sky included; where they were, the forecast [e-/s]."""
    error: Image
    """Of a frame like it [e-/s]."""
    charge: Image
    """Of cosmic rays [e-], NaN where nobody can tell."""
    repaired: Mask
    """Where `clean` is the forecast."""


@dataclass(frozen=True)
class Prediction:
    """What the other exposures tell of one."""

    light: Image
    """[e-/s]; 0 where there is none."""
    exposures: npt.NDArray[np.int64]
    """How many of them show a pixel."""
    error: Image
    """Of the difference between exposure and forecast: photons, read noise, and the slope's share [e-/s]."""
    slope_dominated: Mask
    """Where the slope's share hides what noise alone would show."""


def label_exposures(exposures: Sequence[Exposure], *, sigma: float = 5.0, grow: float = 3.0) -> Iterator[Label]:
    """Find the cosmic rays of exposures of one field.

    Parameters
    ----------
    exposures : sequence of Exposure
        Of one shape, three or more.
    sigma, grow : float
        A cosmic ray has a pixel above `sigma`; what hangs together with it above `grow` belongs to it.

    Yields
    ------
    Label
        Of each exposure, in order.
    """
    noise = [float(np.median(one.noise)) for one in exposures]
    positions = register([one.light for one in exposures], [one.position for one in exposures], noise)
    # A first look interpolates linearly: cosmic rays of one exposure then stay small in the forecast of another.
    planes = [one.light for one in exposures]
    rough = [_predict(index, exposures, positions, planes, order=1) for index in range(len(exposures))]
    hits, repaired = _repair(exposures, rough, sigma, grow)
    del rough
    # With those repaired, cubic; what then stands out is repaired for a second round.
    predictions: list[Prediction] = []
    for _ in range(2):
        splines = [spline_filter(plane, order=3, output=np.float32) for plane in repaired]
        predictions = [
            _predict(index, exposures, positions, splines, order=3, hits=hits) for index in range(len(exposures))
        ]
        hits, repaired = _repair(exposures, predictions, sigma, grow)
    fixed = _fixed_pixels(exposures, predictions, grow)
    high = [hit & ~fixed for hit in hits]
    hits = [
        _begun(one, prediction, plane, sigma)
        for one, prediction, plane in zip(exposures, predictions, high, strict=True)
    ]
    for index, (one, prediction) in enumerate(zip(exposures, predictions, strict=True)):
        hit = hits[index] & ~_variable(index, hits, positions)
        yield _label(one, prediction, hit, high[index], fixed, grow)


def _begun(one: Exposure, prediction: Prediction, high: Mask, sigma: float) -> Mask:
    """Return what of the high pixels belongs to a cosmic ray.

    It has to begin where forecasts are good: alone on a star's core it may be the star. Trails are left out.
    """
    seed = high & ~prediction.slope_dominated & (one.light - prediction.light > sigma * prediction.error)
    return hysteresis_threshold(seed, high) & ~_long(high) & ~one.passing


def _long(high: Mask) -> Mask:
    """Return the parts that reach further than any cosmic ray does, over gaps of a few pixels."""
    parts, _ = label_components(dilate(high, 2))
    boxes = find_objects(parts)
    reach = [max(side.stop - side.start for side in box) for box in boxes]
    return high & np.isin(parts, 1 + np.flatnonzero(np.array(reach) > _LONGEST))


def _predict(
    index: int,
    exposures: Sequence[Exposure],
    positions: Sequence[WCS],
    planes: Sequence[Image],
    *,
    order: int,
    hits: Sequence[Mask] | None = None,
) -> Prediction:
    """Foretell an exposure from all others."""
    one, shape = exposures[index], exposures[index].light.shape
    stack = np.full((len(exposures) - 1, *shape), np.nan, dtype=np.float32)
    shown = np.zeros(stack.shape, dtype=bool)
    others = [other for other in range(len(exposures)) if other != index]
    for slot, seen, other in zip(stack, shown, others, strict=True):
        places = fit_pixel_map(positions[index], positions[other], (shape[0], shape[1])).places()
        slot[:] = resample(planes[other], places, order=order)
        unusable = exposures[other].ignore if hits is None else exposures[other].ignore | hits[other]
        seen[:] = np.isfinite(slot) & ~(resample(unusable.astype(np.float32), places, order=0) > 0)
    count = shown.sum(axis=0)
    usable = (count >= MIN_EXPOSURES - 1) & ~one.ignore
    light = np.nan_to_num(nan_median(np.where(shown, stack, np.float32(np.nan))))
    error = one.error(light)
    better = np.zeros(shape, dtype=bool)
    if hits is not None:
        combined = combine(stack, one.light, error, usable & ~hits[index], _steepest(light) > _STEEP * error)
        if combined is not None:
            better = np.isfinite(combined) & usable
            light = np.where(better, combined, light)
            error = one.error(light)
    del stack
    noise = error * np.sqrt(1 + _MEDIAN_VARIANCE / np.maximum(count, 1)).astype(np.float32)
    steepest = _steepest(light)
    share = np.full(shape, _ROUGH_SLOPE_ERROR, dtype=np.float32)
    for alike in (better, usable & ~better) if hits is not None else ():
        share[alike] = _slope_errors((light - one.light)[alike], noise[alike], steepest[alike])
    slope = share * steepest
    return Prediction(light, np.where(usable, count, 0), noise + slope, slope > _BLIND * noise)


def _slope_errors(below: Image, noise: Image, steepest: Image) -> Image:
    """Return how far forecasts are off, as a share of their steepest step, for each of some pixels.

    What lies below its forecast is no cosmic ray: by how much, beside its noise, tells how far forecasts as steep as
    this one are off.
    """
    share = np.full(below.shape, _LEAST_SLOPE_ERROR, dtype=np.float32)
    steepness = np.digitize(steepest / noise, _STEEPNESS)
    for one in range(len(_STEEPNESS) + 1):
        alike = steepness == one
        told = alike & (below > 0)
        if told.sum() >= _LEAST_TELLING:
            off = (below[told] / _BELOW_SIGMA - noise[told]) / np.maximum(steepest[told], 1e-3 * noise[told])
            share[alike] = max(_LEAST_SLOPE_ERROR, float(np.quantile(off, _BELOW_SHARE)))
        elif one > 0:
            share[alike] = _ROUGH_SLOPE_ERROR
    return share


def _steepest(light: Image) -> Image:
    """Return the greatest difference between each pixel and its neighbours."""
    return np.asarray(np.maximum(maximum_filter(light, 3) - light, light - minimum_filter(light, 3)))


def _repair(
    exposures: Sequence[Exposure], predictions: Sequence[Prediction], sigma: float, grow: float
) -> tuple[list[Mask], list[Image]]:
    """Return where exposures stand above what was foretold, and what they show with the forecast there."""
    hits, repaired = [], []
    for one, prediction in zip(exposures, predictions, strict=True):
        hits.append(_above(one, prediction, sigma, grow))
        known = (hits[-1] | one.ignore) & (prediction.exposures > 0)
        repaired.append(np.where(known, prediction.light, one.light))
    return hits, repaired


def _above(one: Exposure, prediction: Prediction, sigma: float, grow: float) -> Mask:
    """Return where an exposure stands above what was foretold."""
    height = np.where(prediction.exposures > 0, (one.light - prediction.light) / prediction.error, 0)
    return hysteresis_threshold(height > sigma, height > grow)


def _fixed_pixels(exposures: Sequence[Exposure], predictions: Sequence[Prediction], grow: float) -> Mask:
    """Return the pixels of the detector that stand out in too many exposures: hot ones that no flag knows."""
    high = [
        (one.light - prediction.light > grow * prediction.error) & (prediction.exposures > 0)
        for one, prediction in zip(exposures, predictions, strict=True)
    ]
    return np.sum(high, axis=0) >= min_recurrences([float(plane.mean()) for plane in high])


def _variable(index: int, hits: Sequence[Mask], positions: Sequence[WCS]) -> Mask:
    """Return what hangs together with a place of the sky that is hit in too many exposures: a star that varies."""
    shape = (hits[index].shape[0], hits[index].shape[1])
    count = hits[index].astype(np.int64)
    for other in range(len(hits)):
        if other != index:
            places = fit_pixel_map(positions[index], positions[other], shape).places()
            count += resample(hits[other].astype(np.float32), places, order=0) > 0
    return hysteresis_threshold(count >= min_recurrences([float(plane.mean()) for plane in hits]), hits[index])


def _label(one: Exposure, prediction: Prediction, hit: Mask, high: Mask, fixed: Mask, grow: float) -> Label:
    """Say what is known of each pixel, and what is not."""
    height = one.light - prediction.light
    skirt = dilate(high) & ~hit
    undecided = (height > grow * prediction.error) & ~fixed
    unknown = ~hit & (skirt | undecided | prediction.slope_dominated | one.passing) | (prediction.exposures == 0)
    charge = np.where(hit, np.maximum(height, 0) * np.float32(one.exptime), 0).astype(np.float32)
    charge[unknown] = np.nan
    repaired = dilate(hit) & (prediction.exposures > 0)
    clean = np.where(repaired, prediction.light, one.light) + one.sky
    return Label(clean, one.error(prediction.light), charge, repaired)


@dataclass(frozen=True)
class Field:
    """Exposures of one field on one detector."""

    detector: int
    column: int
    exposures: tuple[str, ...]
    rows: tuple[int, ...]
    positions: tuple[WCS, ...]


def find_fields(campaign: Campaign) -> list[Field]:
    """Return the fields of a campaign that have exposures enough: those that lie on the first one's middle.

    Raises
    ------
    InputError
        If there is none.
    """
    fields = []
    for column, detector in enumerate(campaign.detectors):
        groups: dict[tuple[str, str], list[list[tuple[int, WCS]]]] = {}
        for row in np.flatnonzero(campaign.present[:, column]):
            metadata = campaign.metadata(campaign.exposures[row], detector)
            position = _position(campaign.path, int(row), column)
            if metadata.kind not in ("imaging", "slitless") or position is None:
                continue
            known = groups.setdefault((metadata.kind, metadata.band), [])
            near = [group for group in known if _same_field(group[0][1], position, campaign.shape)]
            (near[0] if near else known.append([]) or known[-1]).append((int(row), position))  # type: ignore[func-returns-value]
        for group in (group for known in groups.values() for group in known if len(group) >= MIN_EXPOSURES):
            rows = tuple(row for row, _ in group)
            names = tuple(campaign.exposures[row] for row in rows)
            fields.append(Field(detector, column, names, rows, tuple(position for _, position in group)))
    if not fields:
        wanted = f"{MIN_EXPOSURES} exposures of one field on one detector, with positions in their headers"
        raise InputError(campaign.path, "no repeats", wanted)
    return fields


def _position(path: Path, row: int, column: int) -> WCS | None:
    text = read_header(path, row, column)
    return celestial_wcs(Header.fromstring(text, sep="\n")) if text else None


def _same_field(first: WCS, other: WCS, shape: tuple[int, int]) -> bool:
    """Tell whether the middle of one frame lies less than half a frame from another's."""
    x_middle, y_middle = (shape[1] - 1) / 2, (shape[0] - 1) / 2
    found = pixel_of(first, other.pixel_to_world(x_middle, y_middle), shape)
    return found is not None and abs(found[0] - x_middle) < shape[1] / 2 and abs(found[1] - y_middle) < shape[0] / 2


def read_exposure(campaign: Campaign, exposure: str, detector: int, position: WCS) -> Exposure:
    """Read one exposure, and measure its sky."""
    metadata = campaign.metadata(exposure, detector)
    if not metadata.exptime > 0:
        raise InputError(f"{campaign.path}: {exposure}/{detector}", f"exptime {metadata.exptime}", "seconds")
    unit, flags = read_electrons(campaign, metadata), campaign.instrument.flags
    data, ignore = unit.data / np.float32(metadata.exptime), unit.ignore
    passing = (unit.flag & flags.mask(*(name for name in _PASSING if name in flags.bits))) != 0
    mesh = estimate_background(data, ignore)
    sky, noise = mesh.background_at(), mesh.noise_at()
    if not np.isfinite(noise).all():
        raise InputError(f"{campaign.path}: {exposure}/{detector}", "no usable pixel", "a frame")
    light = fill_masked((data - sky).astype(np.float32), ignore, lambda: np.zeros_like(sky))
    return Exposure(light, sky, noise, ignore, passing, position, metadata.exptime)


def label_repeats(
    path: Path, *, sigma: float = 5.0, grow: float = 3.0, on_progress: Callable[[str], None] | None = None
) -> int:
    """Write labels into a campaign: ``labels/sci`` and ``labels/cr``.

    Labels that were made from the same exposures with the same thresholds are kept.

    Parameters
    ----------
    path : Path
        The campaign.
    sigma, grow : float
        See `label_exposures`.
    announce : callable, optional
        Told in a line how each field went.

    Returns
    -------
    int
        How many units have labels now.

    Raises
    ------
    InputError
        If it holds no field with three exposures.
    """
    if not sigma >= grow > 0:
        raise InputError("sigma, grow", f"{sigma:g}, {grow:g}", "sigma at least grow, both above 0")
    campaign = Campaign(path)
    fields = find_fields(campaign)
    add_truth(path, campaign.units, "labels")
    for number, field in enumerate(fields):
        metadata = [campaign.metadata(name, field.detector) for name in field.exposures]
        settings = [LABELS_VERSION, sigma, grow, *[[one.exposure, one.digest] for one in metadata]]
        identity = sha256(json.dumps(settings).encode()).hexdigest()
        told = f"{number + 1} of {len(fields)}: detector {field.detector}, {len(metadata)} exposures"
        if all(label_identity(path, row, field.column) == identity for row in field.rows):
            told += ", already labelled"
        else:
            told += f", {_label_field(campaign, field, sigma, grow, identity):.2%} of the pixels hit"
        if on_progress is not None:
            on_progress(told)
    return sum(len(field.rows) for field in fields)


def _label_field(campaign: Campaign, field: Field, sigma: float, grow: float, identity: str) -> float:
    """Label the exposures of a field; return the share of pixels that are hit."""
    exposures = [
        read_exposure(campaign, name, field.detector, position)
        for name, position in zip(field.exposures, field.positions, strict=True)
    ]
    shares = []
    for name, row, made in zip(
        field.exposures, field.rows, label_exposures(exposures, sigma=sigma, grow=grow), strict=True
    ):
        metadata = campaign.metadata(name, field.detector)
        # The forecast is smoother than a frame: it gets noise, or smoothness would tell where cosmic rays were.
        # The draw is the exposure's own, whatever else its identity depends on.
        seed = sha256(f"{LABELS_VERSION} {name} {field.detector}".encode()).digest()
        noise = np.random.default_rng(list(seed)).standard_normal(made.clean.shape, dtype=np.float32)
        clean = made.clean + np.where(made.repaired, noise * made.error, 0)
        unit = np.float32(metadata.exptime) / electrons_per_data_unit(campaign, metadata)
        record_label(campaign.path, row, field.column, "")  # a label is whole, or nobody counts it
        write_unit_pixels(campaign.path, row, field.column, "labels/sci", clean * unit)
        write_unit_pixels(campaign.path, row, field.column, "labels/cr", made.charge)
        record_label(campaign.path, row, field.column, identity)
        shares.append(float((made.charge > 0).mean()))
    return float(np.mean(shares))
