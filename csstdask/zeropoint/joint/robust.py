"""Robust weights of star observations, and the scatter that quoted errors do not explain.

For zero points z, the calibrated magnitudes of a star, a_i = m_i + z_u(i), and its reference magnitude r measure one
number M. It is an M-estimate that starts from the weighted median, with Huber's weights first and Tukey's at the end.
The standardised residual of observation i with variance s_i^2 = v_i + t (v quoted, t intrinsic) and precision
b_i = 1 / s_i^2 is

    z_i = (a_i - M) / (s_i sqrt(1 - b_i / sum b)),

so that both observations of a star that was observed twice have the same abs(z): one pair does not show which of them
is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from csstdask.numerics.robust import HUBER_CUTOFF, TUKEY_CUTOFF, huber_weights, mad_scale, tukey_weights
from csstdask.zeropoint.joint.observations import GroupedObservations

Float = npt.NDArray[np.float64]

LOCATION_STEPS = 6
"""Largest number of reweightings of the magnitude of one star."""
LOCATION_TOLERANCE = 1e-3
"""Change of the magnitude of a star at which the iteration ends, in units of its error."""
SAMPLE_SIZE = 500_000
"""Observations that measure scale and scatter, those of every n-th star; an accuracy of 0.2 % of the scale."""
MIN_FREEDOM = 1e-9
"""Smallest 1 - b_i / sum b: the residual of a single measurement carries no information."""
MIN_WEIGHT = 1e-4
"""Tukey weights below this are 0: such a star would tie an exposure to the others in name only."""
MIN_KEPT_FRACTION = 0.25
"""Smallest fraction of its observations that an exposure has to keep."""


class Loss(IntEnum):
    """Weighting of residuals; kernels take its number."""

    SQUARE = 0
    HUBER = 1
    TUKEY = 2


@dataclass(frozen=True)
class Precision:
    """Precision of each measurement times its robust weight; 0 where it is ignored."""

    observation: Float
    """(n,) Precision of the observations [mag^-2]."""
    reference: Float
    """(star,) Precision of the reference magnitudes [mag^-2]."""


def measurement_precision(
    grouped: GroupedObservations, zero_point: Float, *, scatter: float, scale: float, loss: Loss
) -> Precision:
    """Return the precision of each observation and reference magnitude, with robust weights.

    Parameters
    ----------
    grouped : GroupedObservations
        Observations, grouped by star.
    zero_point : float64 array (u,)
        Current zero points [mag].
    scatter : float
        Intrinsic scatter [mag].
    scale : float
        Scale of the standardised residuals, by which cutoffs are multiplied.
    loss : Loss
        Weighting of residuals.
    """
    observation, reference = np.empty(len(grouped.unit)), np.empty(grouped.n_stars)
    _weigh(_arrays(grouped), zero_point, scatter**2, scale, int(loss), observation, reference)
    return Precision(observation, reference)


def residual_scale(
    grouped: GroupedObservations, zero_point: Float, *, scatter: float, scale: float, loss: Loss
) -> float:
    """Return the scale of the standardised residuals, from the median of abs(z): at least 1."""
    sample = _sample(_arrays(grouped), zero_point, scatter**2, scale, int(loss), _stride(grouped))
    return float(mad_scale(sample, center=0.0, floor=1.0))


def intrinsic_scatter(
    grouped: GroupedObservations,
    zero_point: Float,
    *,
    scatter: float,
    scale: float,
    floor: float,
    with_reference: bool = True,
) -> float:
    """Return the intrinsic scatter [mag] that makes residuals agree with their errors.

    One step towards the solution t of sum w_i [c r_i^2 / (1 - h_i) - v_i - t] / (v_i + t)^2 = 0 over observations,
    the likelihood equation of a normal distribution. Here w are Tukey's weights, r_i residuals about the mean of the
    measurements of the star that the robust fit keeps, h_i = b_i / sum b, and c corrects for the normal residuals that
    w removes. Residuals about robust means of three or four observations would give too small a t: these lie closer to
    the majority than errors allow. Without `with_reference` the reference magnitude is not used: t is the scatter of
    the observations of one star about each other.
    """
    mean_weight, mean_square = _expectations(Loss.TUKEY)
    observed, stride = _arrays(grouped), _stride(grouped)
    numerator, denominator = _scatter_sums(
        observed, zero_point, scatter**2, scale, stride, mean_weight / mean_square, with_reference
    )
    return float(np.sqrt(max(numerator / denominator, floor**2))) if denominator > 0 else max(scatter, floor)


def drop_inconsistent_exposures(
    grouped: GroupedObservations, precision: Precision, exposure: npt.ArrayLike
) -> Precision | None:
    """Return the precisions without exposures that disagree with all others; None if there are none.

    Even if the magnitudes of an exposure are unrelated to those of others, a few agree by chance, and Tukey's weights
    would make a zero point of these. An exposure has to keep a quarter of its observations: less than half, because a
    good exposure loses those of each star that only it and a bad one observed.

    Parameters
    ----------
    grouped : GroupedObservations
        Observations, grouped by star.
    precision : Precision
        Precisions with the final weights.
    exposure : array-like of int (unit,)
        Exposure of each unit.
    """
    exposure = np.asarray(exposure)
    n = int(exposure.max(initial=-1)) + 1
    observed = np.bincount(grouped.unit, minlength=len(exposure))
    kept = np.bincount(grouped.unit, precision.observation > 0, minlength=len(exposure))
    fraction = np.bincount(exposure, kept, n) / np.maximum(np.bincount(exposure, observed, n), 1)
    bad = (fraction > 0) & (fraction < MIN_KEPT_FRACTION)
    if not bad.any():
        return None
    return Precision(np.where(bad[exposure[grouped.unit]], 0.0, precision.observation), precision.reference)


def weighted_chi2(
    grouped: GroupedObservations, precision: Precision, zero_point: Float, loss: Loss
) -> tuple[float, int]:
    """Return the sum of weighted squared residuals, and the number of measurements of positive weight minus stars.

    The sum is divided by E[w z^2], so that for normal errors its expectation is that number.
    """
    chi2 = _chi2(
        grouped.start,
        grouped.unit,
        grouped.magnitude,
        grouped.reference,
        zero_point,
        precision.observation,
        precision.reference,
    )
    kept, known = precision.observation > 0, precision.reference > 0
    stars = np.logical_or.reduceat(kept, grouped.start[:-1]) | known if grouped.n_stars else known
    n_observations, n_references, n_stars = (int(np.count_nonzero(flag)) for flag in (kept, known, stars))
    return float(chi2) / _expectations(loss)[1], n_observations + n_references - n_stars


def _arrays(grouped: GroupedObservations) -> tuple[Any, ...]:
    """Return the columns that the kernels take."""
    return (
        grouped.start,
        grouped.unit,
        grouped.magnitude,
        grouped.variance,
        grouped.reference,
        grouped.reference_variance,
    )


def _stride(grouped: GroupedObservations) -> int:
    """Return the stride through the stars with which scale and scatter are sampled."""
    return max(1, len(grouped.unit) // SAMPLE_SIZE)


def _expectations(loss: Loss) -> tuple[float, float]:
    """Return E[w] and E[w z^2] of a standard normal z."""
    if loss is Loss.SQUARE:
        return 1.0, 1.0
    z = np.linspace(-10, 10, 20001)
    density = np.exp(-z * z / 2)
    density /= density.sum()
    weight = huber_weights(z) if loss is Loss.HUBER else tukey_weights(z)
    return float((weight * density).sum()), float((weight * z * z * density).sum())


@njit(cache=True, nogil=True)
def _robust_weight(z: float, loss: int, scale: float) -> float:  # pragma: no cover
    """Return the robust weight of one standardised residual, as in `csstdask.numerics.robust`."""
    size = abs(z) / scale
    if loss == 0:
        return 1.0
    if loss == 1:
        return 1.0 if size <= HUBER_CUTOFF else HUBER_CUTOFF / size
    weight = max(1.0 - (size / TUKEY_CUTOFF) ** 2, 0.0) ** 2
    return weight if weight > MIN_WEIGHT else 0.0


@njit(cache=True, nogil=True)
def _weighted_median(value: Any, precision: Any, n: int, order: Any) -> float:  # pragma: no cover
    """Return the smallest value at which half of the total precision is reached."""
    total = 0.0
    for i in range(n):
        order[i] = i
        total += precision[i]
    for i in range(1, n):
        k = order[i]
        j = i - 1
        while j >= 0 and value[order[j]] > value[k]:
            order[j + 1] = order[j]
            j -= 1
        order[j + 1] = k
    reached = 0.0
    for i in range(n):
        reached += precision[order[i]]
        if reached >= 0.5 * total:
            return float(value[order[i]])
    return float(value[order[n - 1]])


@njit(cache=True, nogil=True)
def _standardise(
    value: Any, precision: Any, n: int, loss: int, scale: float, z: Any, root: Any, order: Any
) -> None:  # pragma: no cover
    """Write the standardised residuals of one star's measurements."""
    total = 0.0
    mean = 0.0
    for i in range(n):
        total += precision[i]
        mean += precision[i] * value[i]
    mean /= total
    robust = loss > 0 and n > 2
    center = _weighted_median(value, precision, n, order) if robust else mean
    for i in range(n):
        root[i] = np.sqrt(precision[i] / max(1.0 - precision[i] / total, MIN_FREEDOM))
    for step in range(LOCATION_STEPS if robust else 0):
        moment = 0.0
        weights = 0.0
        for i in range(n):
            weight = precision[i] * _robust_weight((value[i] - center) * root[i], 1 if step == 0 else loss, scale)
            moment += weight * (value[i] - center)
            weights += weight
        if not weights > 0.0:
            break
        center += moment / weights
        if step > 0 and moment * moment * total < (LOCATION_TOLERANCE * weights) ** 2:
            break
    for i in range(n):
        z[i] = (value[i] - center) * root[i]


@njit(cache=True, nogil=True)
def _gather(
    s: int,
    observed: Any,
    zero_point: Any,
    scatter2: float,
    value: Any,
    precision: Any,
) -> int:  # pragma: no cover
    """Copy a star's calibrated magnitudes, and its reference magnitude last; return their number."""
    start, unit, magnitude, variance, reference, reference_variance = observed
    n = 0
    for i in range(start[s], start[s + 1]):
        value[n] = magnitude[i] + zero_point[unit[i]]
        precision[n] = 1.0 / (variance[i] + scatter2)
        n += 1
    if reference_variance[s] < np.inf:
        value[n] = reference[s]
        precision[n] = 1.0 / reference_variance[s]
        n += 1
    return n


@njit(cache=True, nogil=True)
def _max_measurements(start: Any) -> int:  # pragma: no cover
    """Return the largest number of measurements of one star."""
    size = 0
    for s in range(len(start) - 1):
        size = max(size, start[s + 1] - start[s])
    return size + 1


@njit(cache=True, nogil=True)
def _weigh(
    observed: Any,
    zero_point: Any,
    scatter2: float,
    scale: float,
    loss: int,
    observation: Any,
    reference_precision: Any,
) -> None:  # pragma: no cover
    """Write the precision times the robust weight of all observations and reference magnitudes."""
    start = observed[0]
    size = _max_measurements(start)
    value, precision, z, root = np.empty(size), np.empty(size), np.empty(size), np.empty(size)
    order = np.empty(size, dtype=np.int64)
    for s in range(len(start) - 1):
        n = _gather(s, observed, zero_point, scatter2, value, precision)
        _standardise(value, precision, n, loss, scale, z, root, order)
        low = start[s]
        n_observed = start[s + 1] - low
        for i in range(n_observed):
            observation[low + i] = precision[i] * _robust_weight(z[i], loss, scale)
        has_reference = n > n_observed
        last = n_observed
        reference_precision[s] = precision[last] * _robust_weight(z[last], loss, scale) if has_reference else 0.0


@njit(cache=True, nogil=True)
def _sample(
    observed: Any, zero_point: Any, scatter2: float, scale: float, loss: int, stride: int
) -> Any:  # pragma: no cover
    """Return the standardised residuals of one star in `stride`."""
    start = observed[0]
    size = _max_measurements(start)
    value, precision, z, root = np.empty(size), np.empty(size), np.empty(size), np.empty(size)
    order = np.empty(size, dtype=np.int64)
    total = 0
    for s in range(0, len(start) - 1, stride):
        total += start[s + 1] - start[s]
    sample = np.empty(total)
    filled = 0
    for s in range(0, len(start) - 1, stride):
        n = _gather(s, observed, zero_point, scatter2, value, precision)
        _standardise(value, precision, n, loss, scale, z, root, order)
        for i in range(start[s + 1] - start[s]):
            sample[filled] = z[i]
            filled += 1
    return sample


@njit(cache=True, nogil=True)
def _scatter_sums(
    observed: Any, zero_point: Any, scatter2: float, scale: float, stride: int, consistency: float, with_reference: bool
) -> Any:  # pragma: no cover
    """Return numerator and denominator of the next intrinsic variance, from one star in `stride`."""
    start = observed[0]
    size = _max_measurements(start)
    value, precision, z, root = np.empty(size), np.empty(size), np.empty(size), np.empty(size)
    order = np.empty(size, dtype=np.int64)
    numerator = 0.0
    denominator = 0.0
    for s in range(0, len(start) - 1, stride):
        n = _gather(s, observed, zero_point, scatter2, value, precision)
        if not with_reference:
            n = start[s + 1] - start[s]
        _standardise(value, precision, n, 2, scale, z, root, order)
        total = 0.0
        mean = 0.0
        for i in range(n):
            if _robust_weight(z[i], 2, scale) > 0.0:
                total += precision[i]
                mean += precision[i] * value[i]
        for i in range(start[s + 1] - start[s]):
            freedom = 1.0 - precision[i] / total if total > 0.0 else 0.0
            if freedom > MIN_FREEDOM and _robust_weight(z[i], 2, scale) > 0.0:
                b = precision[i]
                square = (value[i] - mean / total) ** 2 / freedom
                weight = b * b * _robust_weight(np.sqrt(square * b), 2, scale)
                numerator += weight * (consistency * square - observed[3][start[s] + i])
                denominator += weight
    return numerator, denominator


@njit(cache=True, nogil=True)
def _chi2(
    start: Any, unit: Any, magnitude: Any, reference: Any, zero_point: Any, precision: Any, reference_precision: Any
) -> float:  # pragma: no cover
    """Return the weighted squares of residuals about the weighted mean of each star."""
    chi2 = 0.0
    for s in range(len(start) - 1):
        total = reference_precision[s]
        mean = reference_precision[s] * reference[s] if reference_precision[s] > 0.0 else 0.0
        for i in range(start[s], start[s + 1]):
            total += precision[i]
            mean += precision[i] * (magnitude[i] + zero_point[unit[i]])
        if not total > 0.0:
            continue
        mean /= total
        for i in range(start[s], start[s + 1]):
            chi2 += precision[i] * (magnitude[i] + zero_point[unit[i]] - mean) ** 2
        if reference_precision[s] > 0.0:
            chi2 += reference_precision[s] * (reference[s] - mean) ** 2
    return chi2
