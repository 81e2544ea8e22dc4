"""Find the cosmic rays of dithered exposures of one field.

Each exposure is predicted from the others: they are registered, resampled to its pixels, and combined by their median
or, at steep gradients, by linear filters. A cosmic ray is what exceeds the prediction by more than its noise and more
than a fraction of its gradient: where stars are undersampled, interpolation is inexact (``driz_cr``: Fruchter & Hook
2002, PASP 114, 144). Pixels that cannot be decided are labelled NaN.

All exposures of a field are in memory, about five times over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from astropy.wcs import WCS
from scipy.ndimage import find_objects, maximum_filter, minimum_filter, spline_filter

from csstdask.arrays.morphology import dilate, hysteresis_threshold, label_components, min_recurrences
from csstdask.training.labels.filter_prediction import predict_by_filters
from csstdask.training.labels.registration import fit_pixel_map, register, resample
from csstdask.training.labels.stack import MEDIAN_VARIANCE, nan_median

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

#: Smallest number of exposures, the labelled one among them, that cover a labelled pixel.
MIN_EXPOSURES = 3
#: Error of a prediction as a fraction of its gradient, where it cannot be measured.
DEFAULT_SLOPE_ERROR = 0.2
#: Smallest error of a prediction as a fraction of its gradient.
MIN_SLOPE_ERROR = 0.02
#: Limits of the bins of gradients [sigma] in which this error is measured.
GRADIENT_BINS = (3.0, 10.0, 30.0, 100.0)
#: Smallest number of pixels below their prediction in a bin.
MIN_PIXELS = 50
#: With the measured error, this fraction of the pixels below their prediction deviates by less than `DEFICIT_SIGMA`.
DEFICIT_QUANTILE = 0.99
#: See `DEFICIT_QUANTILE` [sigma].
DEFICIT_SIGMA = 3.0
#: Gradient from which exposures are combined by filters and not by their median, which has less noise [sigma].
STEEP_GRADIENT = 5.0
#: Error from the gradient over noise, above which a cosmic ray may not start in a pixel.
MAX_SLOPE_SHARE = 0.5
#: Longest cosmic ray [pixel]: what is longer is a trail of a satellite.
MAX_LENGTH = 150


@dataclass(frozen=True)
class Exposure:
    """One exposure of a field on one detector. All arrays are (y, x)."""

    light: Image
    """Rate, sky subtracted, unusable pixels filled from their neighbours [e-/s]."""
    sky: Image
    """Sky [e-/s]."""
    noise: Image
    """Noise of the sky [e-/s]."""
    ignore: Mask
    """Unusable pixels."""
    passing: Mask
    """Pixels flagged as neither sky nor cosmic ray: trails, ghosts, scattered light."""
    coordinates: WCS
    """Celestial coordinates in the header."""
    exptime: float
    """Exposure time [s]."""

    def error(self, prediction: Image) -> Image:
        """Return the noise of this exposure if its light is as predicted [e-/s]."""
        photon_variance = np.maximum(np.nan_to_num(prediction), 0) / np.float32(self.exptime)
        return np.asarray(np.sqrt(self.noise**2 + photon_variance))


@dataclass(frozen=True)
class Label:
    """Labels of one exposure. All arrays are (y, x)."""

    clean: Image
    """Rate without cosmic rays, sky included; the prediction where they were [e-/s]."""
    error: Image
    """Noise of `clean` as that of an exposure [e-/s]."""
    charge: Image
    """Charge of cosmic rays [e-]; NaN where it is undecided."""
    repaired: Mask
    """Pixels in which `clean` is the prediction."""


@dataclass(frozen=True)
class Prediction:
    """Prediction of one exposure from the others. All arrays are (y, x)."""

    light: Image
    """Predicted rate [e-/s]; 0 where there is none."""
    exposures: npt.NDArray[np.int64]
    """Number of exposures behind it; 0 where there is no prediction."""
    error: Image
    """Error of exposure minus prediction: photons, read noise and gradient [e-/s]."""
    slope_dominated: Mask
    """Pixels in which the error from the gradient would hide a cosmic ray."""


def label_exposures(exposures: Sequence[Exposure], *, sigma: float = 5.0, grow: float = 3.0) -> Iterator[Label]:
    """Find the cosmic rays of exposures of one field.

    Parameters
    ----------
    exposures : sequence of Exposure
        Three or more exposures of one shape.
    sigma : float
        A cosmic ray has at least one pixel this far above its prediction [sigma].
    grow : float
        Connected pixels this far above their prediction belong to it [sigma].

    Yields
    ------
    Label
        Labels of each exposure, in order.
    """
    noise = [float(np.median(one.noise)) for one in exposures]
    coordinates = register([one.light for one in exposures], [one.coordinates for one in exposures], noise)
    # Linear interpolation first: cosmic rays of one exposure then stay small in the prediction of another.
    planes = [one.light for one in exposures]
    linear = [_predict(index, exposures, coordinates, planes, order=1) for index in range(len(exposures))]
    hits, repaired = _repair(exposures, linear, sigma, grow)
    del linear
    # Cubic interpolation of the repaired exposures; once more after a second repair.
    predictions: list[Prediction] = []
    for _ in range(2):
        splines = [spline_filter(plane, order=3, output=np.float32) for plane in repaired]
        predictions = [
            _predict(index, exposures, coordinates, splines, order=3, hits=hits) for index in range(len(exposures))
        ]
        hits, repaired = _repair(exposures, predictions, sigma, grow)
    hot = _hot_pixels(exposures, predictions, grow)
    high = [hit & ~hot for hit in hits]
    hits = [
        _cosmic_rays(one, prediction, plane, sigma)
        for one, prediction, plane in zip(exposures, predictions, high, strict=True)
    ]
    for index, (one, prediction) in enumerate(zip(exposures, predictions, strict=True)):
        hit = hits[index] & ~_variable_sources(index, hits, coordinates)
        yield _label(one, prediction, hit, high[index], hot, grow)


def _predict(
    index: int,
    exposures: Sequence[Exposure],
    coordinates: Sequence[WCS],
    planes: Sequence[Image],
    *,
    order: int,
    hits: Sequence[Mask] | None = None,
) -> Prediction:
    """Predict an exposure from all others; with known hits, steep gradients by filters."""
    target, shape = exposures[index], exposures[index].light.shape
    stack, covered = _resample_others(index, exposures, coordinates, planes, order=order, hits=hits)
    count = covered.sum(axis=0)
    usable = (count >= MIN_EXPOSURES - 1) & ~target.ignore
    light = np.nan_to_num(nan_median(np.where(covered, stack, np.float32(np.nan))))
    error = target.error(light)
    filtered = np.zeros(shape, dtype=bool)
    if hits is not None:
        steep = _gradient(light) > STEEP_GRADIENT * error
        combined = predict_by_filters(stack, target.light, error, usable & ~hits[index], steep)
        if combined is not None:
            filtered = np.isfinite(combined) & usable
            light = np.where(filtered, combined, light)
            error = target.error(light)
    del stack
    noise = error * np.sqrt(1 + MEDIAN_VARIANCE / np.maximum(count, 1)).astype(np.float32)
    gradient = _gradient(light)
    relative = np.full(shape, DEFAULT_SLOPE_ERROR, dtype=np.float32)
    for pixels in (filtered, usable & ~filtered) if hits is not None else ():
        relative[pixels] = _slope_errors((light - target.light)[pixels], noise[pixels], gradient[pixels])
    slope = relative * gradient
    return Prediction(light, np.where(usable, count, 0), noise + slope, slope > MAX_SLOPE_SHARE * noise)


def _resample_others(
    index: int,
    exposures: Sequence[Exposure],
    coordinates: Sequence[WCS],
    planes: Sequence[Image],
    *,
    order: int,
    hits: Sequence[Mask] | None,
) -> tuple[Image, Mask]:
    """Return the other exposures on the pixels of one, and where they are usable, both (exposure, y, x)."""
    shape = exposures[index].light.shape
    stack = np.full((len(exposures) - 1, *shape), np.nan, dtype=np.float32)
    covered = np.zeros(stack.shape, dtype=bool)
    others = [other for other in range(len(exposures)) if other != index]
    for plane, mask, other in zip(stack, covered, others, strict=True):
        positions = fit_pixel_map(coordinates[index], coordinates[other], (shape[0], shape[1])).positions()
        plane[:] = resample(planes[other], positions, order=order)
        unusable = exposures[other].ignore if hits is None else exposures[other].ignore | hits[other]
        mask[:] = np.isfinite(plane) & ~(resample(unusable.astype(np.float32), positions, order=0) > 0)
    return stack, covered


def _slope_errors(deficit: Image, noise: Image, gradient: Image) -> Image:
    """Return the errors of predictions as fractions of their gradients, for some pixels (pixel,).

    A pixel below its prediction is not a cosmic ray: its deficit beyond the noise measures the error of predictions
    with such a gradient.
    """
    relative = np.full(deficit.shape, MIN_SLOPE_ERROR, dtype=np.float32)
    bins = np.digitize(gradient / noise, GRADIENT_BINS)
    for number in range(len(GRADIENT_BINS) + 1):
        in_bin = bins == number
        below = in_bin & (deficit > 0)
        if below.sum() >= MIN_PIXELS:
            excess = deficit[below] / DEFICIT_SIGMA - noise[below]
            ratio = excess / np.maximum(gradient[below], 1e-3 * noise[below])
            relative[in_bin] = max(MIN_SLOPE_ERROR, float(np.quantile(ratio, DEFICIT_QUANTILE)))
        elif number > 0:
            relative[in_bin] = DEFAULT_SLOPE_ERROR
    return relative


def _gradient(light: Image) -> Image:
    """Return the largest difference between each pixel and its neighbours."""
    return np.asarray(np.maximum(maximum_filter(light, 3) - light, light - minimum_filter(light, 3)))


def _repair(
    exposures: Sequence[Exposure], predictions: Sequence[Prediction], sigma: float, grow: float
) -> tuple[list[Mask], list[Image]]:
    """Return where exposures exceed their predictions, and their light with the prediction there."""
    hits, repaired = [], []
    for one, prediction in zip(exposures, predictions, strict=True):
        height = np.where(prediction.exposures > 0, (one.light - prediction.light) / prediction.error, 0)
        hits.append(hysteresis_threshold(height > sigma, height > grow))
        replaced = (hits[-1] | one.ignore) & (prediction.exposures > 0)
        repaired.append(np.where(replaced, prediction.light, one.light))
    return hits, repaired


def _hot_pixels(exposures: Sequence[Exposure], predictions: Sequence[Prediction], grow: float) -> Mask:
    """Return detector pixels that exceed their predictions in too many exposures."""
    high = [
        (one.light - prediction.light > grow * prediction.error) & (prediction.exposures > 0)
        for one, prediction in zip(exposures, predictions, strict=True)
    ]
    return np.sum(high, axis=0) >= min_recurrences([float(plane.mean()) for plane in high])


def _cosmic_rays(one: Exposure, prediction: Prediction, high: Mask, sigma: float) -> Mask:
    """Return the high pixels that belong to cosmic rays.

    A cosmic ray needs a pixel with a good prediction: on the core of a star alone it may be the star. Trails are left
    out.
    """
    seed = high & ~prediction.slope_dominated & (one.light - prediction.light > sigma * prediction.error)
    return hysteresis_threshold(seed, high) & ~_trails(high) & ~one.passing


def _trails(high: Mask) -> Mask:
    """Return the parts that are longer than cosmic rays, across gaps of a few pixels."""
    parts, _ = label_components(dilate(high, 2))
    lengths = np.array([max(side.stop - side.start for side in box) for box in find_objects(parts)])
    return high & np.isin(parts, 1 + np.flatnonzero(lengths > MAX_LENGTH))


def _variable_sources(index: int, hits: Sequence[Mask], coordinates: Sequence[WCS]) -> Mask:
    """Return the hits connected to positions on the sky that are hit in too many exposures."""
    shape = (hits[index].shape[0], hits[index].shape[1])
    count = hits[index].astype(np.int64)
    for other in range(len(hits)):
        if other != index:
            positions = fit_pixel_map(coordinates[index], coordinates[other], shape).positions()
            count += resample(hits[other].astype(np.float32), positions, order=0) > 0
    recurrent = count >= min_recurrences([float(plane.mean()) for plane in hits])
    return hysteresis_threshold(recurrent, hits[index])


def _label(one: Exposure, prediction: Prediction, hit: Mask, high: Mask, hot: Mask, grow: float) -> Label:
    """Return the labels of an exposure, with NaN where a pixel cannot be decided."""
    height = one.light - prediction.light
    border = dilate(high) & ~hit
    undecided = (height > grow * prediction.error) & ~hot
    unknown = ~hit & (border | undecided | prediction.slope_dominated | one.passing) | (prediction.exposures == 0)
    charge = np.where(hit, np.maximum(height, 0) * np.float32(one.exptime), 0).astype(np.float32)
    charge[unknown] = np.nan
    repaired = dilate(hit) & (prediction.exposures > 0)
    clean = np.where(repaired, prediction.light, one.light) + one.sky
    return Label(clean, one.error(prediction.light), charge, repaired)
