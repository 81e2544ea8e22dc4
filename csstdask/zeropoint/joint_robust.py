"""Robust weights of star observations, and the scatter that quoted errors do not explain.

For zero points z the calibrated magnitudes of a star, a_i = m_i + z_u(i), and its reference magnitude r measure one
number M. M is an M-estimate that starts from the weighted median: Huber's weights first, Tukey's at the end. The
standardised residual of observation i with variance s_i^2 = v_i + t (v quoted, t intrinsic) and precision
b_i = 1 / s_i^2 is

    z_i = (a_i - M) / (s_i sqrt(1 - b_i / sum b)),

so that both observations of a star that was seen twice have the same abs(z): one pair does not show which of them is
wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from csstdask.numerics.robust import HUBER_CUTOFF, TUKEY_CUTOFF, huber_weights, mad_scale, tukey_weights
from csstdask.zeropoint.joint_observations import StarRows

Float = npt.NDArray[np.float64]

LOCATION_STEPS = 6
"""Most reweightings of the magnitude of one star, from the median on."""
LOCATION_TOLERANCE = 1e-3
"""Change of the magnitude of a star at which it is final, as a share of its error."""
SAMPLE = 500_000
"""Observations that measure scale and scatter: all of every n-th star, in random order; 0.2 % of the scale."""
LEAST_SHARE = 1e-9
"""Least 1 - b_i / sum b: of a measurement without a second one the residual says nothing."""

LEAST_WEIGHT = 1e-4
"""Tukey weights below this are 0: such a star would tie an exposure to the others in name only."""

LEAST_KEPT = 0.25
"""Least share of its observations that an exposure has to keep."""


class Loss(IntEnum):
    """How residuals are weighted."""

    SQUARE = 0
    HUBER = 1
    TUKEY = 2


@dataclass(frozen=True)
class Precision:
    """Precision of each measurement with its robust weight; 0 where it is ignored."""

    observation: Float
    """(n,) [mag^-2]."""
    reference: Float
    """(star,) [mag^-2]."""


def measurement_precision(rows: StarRows, zero_point: Float, *, scatter: float, scale: float, loss: Loss) -> Precision:
    """Return the precision of each observation and reference magnitude, with robust weights.

    Parameters
    ----------
    rows : StarRows
        Observations by star.
    zero_point : float64 array (u,)
        Present zero points [mag].
    scatter : float
        Intrinsic scatter [mag].
    scale : float
        Scale of the standardised residuals: cutoffs are multiplied by it.
    loss : Loss
        Which weights.
    """
    observation, reference = np.empty(len(rows.unit)), np.empty(rows.n_stars)
    _weigh(_arrays(rows), zero_point, scatter**2, scale, int(loss), observation, reference)
    return Precision(observation, reference)


def residual_scale(rows: StarRows, zero_point: Float, *, scatter: float, scale: float, loss: Loss) -> float:
    """Return the scale of the standardised residuals: 1.4826 times the median of abs(z), at least 1."""
    sample = _sample(_arrays(rows), zero_point, scatter**2, scale, int(loss), _stride(rows))
    return float(mad_scale(sample, center=0.0, floor=1.0))


def intrinsic_scatter(
    rows: StarRows, zero_point: Float, *, scatter: float, scale: float, floor: float, with_reference: bool = True
) -> float:
    """Return the intrinsic scatter [mag] that makes residuals agree with their errors.

    It is one step to the solution t of sum w_i [c r_i^2 / (1 - h_i) - v_i - t] / (v_i + t)^2 = 0 over observations,
    the likelihood equation of a normal distribution. Here w are Tukey's weights, r_i residuals about the mean of those
    measurements of the star that the robust fit keeps, h_i = b_i / sum b, and c corrects for the residuals that w
    takes from a normal distribution. Robust means of three or four observations lie closer to the majority than
    errors allow: with residuals about them t would be too small. Without `with_reference` the reference magnitude is no
    measurement: t is the scatter of the observations of one star about each other.
    """
    kept, of_squares = _expectations(Loss.TUKEY)
    observed, stride = _arrays(rows), _stride(rows)
    above, below = _moments(observed, zero_point, scatter**2, scale, stride, kept / of_squares, with_reference)
    return float(np.sqrt(max(above / below, floor**2))) if below > 0 else max(scatter, floor)


def drop_inconsistent_exposures(rows: StarRows, precision: Precision, exposure: npt.ArrayLike) -> Precision | None:
    """Return the precisions without exposures that disagree with everything else; None if there are none.

    Of magnitudes that have no relation to those of other exposures a few agree by chance, and Tukey's weights would
    make a zero point of these. An exposure has to keep a quarter of its observations: less than half, because those
    of a good one are lost with each star that only it and a bad one observed.

    Parameters
    ----------
    rows : StarRows
        Observations by star.
    precision : Precision
        With the last weights.
    exposure : array-like of int (unit,)
        Exposure of each unit.
    """
    exposure = np.asarray(exposure)
    n = int(exposure.max(initial=-1)) + 1
    of_unit = np.bincount(rows.unit, minlength=len(exposure))
    kept = np.bincount(rows.unit, precision.observation > 0, minlength=len(exposure))
    share = np.bincount(exposure, kept, n) / np.maximum(np.bincount(exposure, of_unit, n), 1)
    bad = (share > 0) & (share < LEAST_KEPT)
    if not bad.any():
        return None
    return Precision(np.where(bad[exposure[rows.unit]], 0.0, precision.observation), precision.reference)


def weighted_chi2(rows: StarRows, precision: Precision, zero_point: Float, loss: Loss) -> tuple[float, int]:
    """Return the sum of weighted squared residuals, and the number of measurements of positive weight less stars.

    The sum is divided by E[w z^2], so that for normal errors its expectation is that number.
    """
    chi2 = _chi2(
        rows.start, rows.unit, rows.magnitude, rows.reference, zero_point, precision.observation, precision.reference
    )
    kept, known = precision.observation > 0, precision.reference > 0
    stars = np.logical_or.reduceat(kept, rows.start[:-1]) | known if rows.n_stars else known
    counts = [int(np.count_nonzero(one)) for one in (kept, known, stars)]
    return float(chi2) / _expectations(loss)[1], counts[0] + counts[1] - counts[2]


def _arrays(rows: StarRows) -> tuple[Any, ...]:
    """Return the observations as the kernels take them."""
    return rows.start, rows.unit, rows.magnitude, rows.variance, rows.reference, rows.reference_variance


def _stride(rows: StarRows) -> int:
    """Return of how many stars one is taken."""
    return max(1, len(rows.unit) // SAMPLE)


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
    """Return the weight of one standardised residual, as in `csstdask.numerics.robust`."""
    size = abs(z) / scale
    if loss == 0:
        return 1.0
    if loss == 1:
        return 1.0 if size <= HUBER_CUTOFF else HUBER_CUTOFF / size
    weight = max(1.0 - (size / TUKEY_CUTOFF) ** 2, 0.0) ** 2
    return weight if weight > LEAST_WEIGHT else 0.0


@njit(cache=True, nogil=True)
def _weighted_median(value: Any, precision: Any, n: int, order: Any) -> float:  # pragma: no cover
    """Return the least value at which half of the total precision is reached."""
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
        root[i] = np.sqrt(precision[i] / max(1.0 - precision[i] / total, LEAST_SHARE))
    for step in range(LOCATION_STEPS if robust else 0):
        above = 0.0
        below = 0.0
        for i in range(n):
            weight = precision[i] * _robust_weight((value[i] - center) * root[i], 1 if step == 0 else loss, scale)
            above += weight * (value[i] - center)
            below += weight
        if not below > 0.0:
            break
        center += above / below
        if step > 0 and above * above * total < (LOCATION_TOLERANCE * below) ** 2:
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
    """Copy a star's calibrated magnitudes, and its reference magnitude last; return how many."""
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
def _largest(start: Any) -> int:  # pragma: no cover
    """Return the most measurements of one star."""
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
    of_reference: Any,
) -> None:  # pragma: no cover
    start = observed[0]
    size = _largest(start)
    value, precision, z, root = np.empty(size), np.empty(size), np.empty(size), np.empty(size)
    order = np.empty(size, dtype=np.int64)
    for s in range(len(start) - 1):
        n = _gather(s, observed, zero_point, scatter2, value, precision)
        _standardise(value, precision, n, loss, scale, z, root, order)
        low = start[s]
        seen = start[s + 1] - low
        for i in range(seen):
            observation[low + i] = precision[i] * _robust_weight(z[i], loss, scale)
        of_reference[s] = precision[seen] * _robust_weight(z[seen], loss, scale) if n > seen else 0.0


@njit(cache=True, nogil=True)
def _sample(
    observed: Any, zero_point: Any, scatter2: float, scale: float, loss: int, stride: int
) -> Any:  # pragma: no cover
    """Return the standardised residuals of one star in `stride`."""
    start = observed[0]
    size = _largest(start)
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
def _moments(
    observed: Any, zero_point: Any, scatter2: float, scale: float, stride: int, consistency: float, with_reference: bool
) -> Any:  # pragma: no cover
    """Return the two sums whose ratio is the next intrinsic variance, from one star in `stride`."""
    start = observed[0]
    size = _largest(start)
    value, precision, z, root = np.empty(size), np.empty(size), np.empty(size), np.empty(size)
    order = np.empty(size, dtype=np.int64)
    above = 0.0
    below = 0.0
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
            share = 1.0 - precision[i] / total if total > 0.0 else 0.0
            if share > LEAST_SHARE and _robust_weight(z[i], 2, scale) > 0.0:
                b = precision[i]
                square = (value[i] - mean / total) ** 2 / share
                weight = b * b * _robust_weight(np.sqrt(square * b), 2, scale)
                above += weight * (consistency * square - observed[3][start[s] + i])
                below += weight
    return above, below


@njit(cache=True, nogil=True)
def _chi2(
    start: Any, unit: Any, magnitude: Any, reference: Any, zero_point: Any, precision: Any, of_reference: Any
) -> float:  # pragma: no cover
    """Return the weighted squares of residuals about the weighted mean of each star."""
    chi2 = 0.0
    for s in range(len(start) - 1):
        total = of_reference[s]
        mean = of_reference[s] * reference[s] if of_reference[s] > 0.0 else 0.0
        for i in range(start[s], start[s + 1]):
            total += precision[i]
            mean += precision[i] * (magnitude[i] + zero_point[unit[i]])
        if not total > 0.0:
            continue
        mean /= total
        for i in range(start[s], start[s + 1]):
            chi2 += precision[i] * (magnitude[i] + zero_point[unit[i]] - mean) ** 2
        if of_reference[s] > 0.0:
            chi2 += of_reference[s] * (reference[s] - mean) ** 2
    return chi2
