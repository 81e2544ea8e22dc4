"""Extract spectra optimally (Horne 1986, PASP 98, 609): compiled loops over stars, columns and pixels.

In column j the light of a star is f_j p_jk + b_j + a_j d_jk, with counts f, profile p, and a background of level b and
slope a over the distance d from the trace. Level and slope are constant in blocks of columns. Counts are

    f_j = sum_k (p_k / v_k) (data_k - b - a d_k) / sum_k p_k^2 / v_k.

Variances v follow from the given ones, with the noise of the star's own light replaced by that of its smoothed counts:
weights that follow the noise of single pixels would bias the counts. Variances, background and counts are iterated,
and from the second step on the worst pixel of a column is rejected while it is an outlier.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from csstdask.flux.spectrum_flag import MIN_PROFILE_FRACTION, PARTIAL_PROFILE_FRACTION, SpectrumFlag
from csstdask.flux.window_kernels import smooth_columns
from csstdask.numerics.robust import HUBER_CUTOFF, NORMAL_MAD

NO_DATA = int(SpectrumFlag.NO_DATA)
PARTIAL = int(SpectrumFlag.PARTIAL)
REJECTED = int(SpectrumFlag.REJECTED)
UNRELIABLE = int(SpectrumFlag.UNRELIABLE)
NEGATIVE = int(SpectrumFlag.NEGATIVE)

BACKGROUND_DISTANCE = 6.0
"""Distance from the trace beyond which rows belong to the background [pixel]."""
CORE_DISTANCE = 5.0
"""Distance from the trace within which chi2 is counted [pixel]."""
OUTLIER_SIGMA = 5.0
"""Residual above which a pixel is an outlier [sigma]."""
PROFILE_ERROR = 0.03
"""Relative error of the profile that is allowed for when outliers are searched."""
_BLOCK_COLUMNS = 24
"""Columns over which the background is one straight line across the trace."""
_MIN_FLOOR_PIXELS = 12
"""Background pixels of a block needed to measure its noise; with fewer, all its pixels are used."""
_MAX_OUTLIERS = 4
"""Largest number of pixels rejected in one column."""
_MIN_KEPT_SHARE = 0.5
"""Share of a column's usable profile that rejection must leave."""
_PARTIAL_SIGMA = 6.0
"""Difference from the neighbouring columns that makes a partial column unreliable [sigma]."""
_SLOPE_PRIOR = 4.0
"""Variance added to the squared distances [pixel^2]: holds the slope where rows lie on one side only."""


class StarPixels(NamedTuple):
    """Windows of n stars as the kernels take them; of one star without the first axis."""

    data: Any
    """(n, column, row) Pixels without the light of other stars [e-]."""
    variance: Any
    """(n, column, row) Squares of the given errors [e-^2]."""
    usable: Any
    """(n, column, row)"""
    profile: Any
    """(n, column, row) Share of a column's light in each pixel."""
    distance: Any
    """(n, column) Distance of row 0 from the trace [pixel]."""
    contamination: Any
    """(n, column, row) Light of other stars that was subtracted [e-]."""


class Extraction(NamedTuple):
    """Results of `extract_stars`, written in place."""

    counts: Any
    """(n, column) [e-]; NaN without data."""
    sigma: Any
    """(n, column) 1 sigma [e-]; inf without data."""
    background: Any
    """(n, column) Background at the trace [e-/pixel]."""
    flag: Any
    """(n, column) `SpectrumFlag`."""
    chi2: Any
    """(n,) chi2 per degree of freedom of the pixels near the trace."""
    smooth: Any
    """(n, column) Smoothed counts [e-]."""
    rejected: Any
    """(n, column, row) Pixels rejected as outliers."""


class _Fit(NamedTuple):
    """Current estimates of one star; the arrays are reused for the next star."""

    counts: Any
    light: Any  # smoothed counts
    level: Any
    slope: Any
    level_variance: Any
    flag: Any
    variance: Any
    allowed: Any  # variance with an allowance for errors of the profile
    good: Any  # usable pixels that are not rejected
    buffer: Any


@njit(cache=True, nogil=True)
def extract_stars(  # pragma: no cover
    stars: Any, expected: Any, poisson: float, contamination_error: float, reject: bool, out: Any
) -> None:
    """Extract spectra optimally.

    Parameters
    ----------
    stars : StarPixels
        Windows of n stars.
    expected : float64 array (n, column)
        Counts that set the variances [e-]; NaN: smoothed counts are used.
    poisson : float
        Variance per count [e-]: 1 for errors in electrons.
    contamination_error : float
        Relative 1-sigma error of the light of other stars.
    reject : bool
        Whether to reject outliers.
    out : Extraction
        Filled in place.
    """
    n, m, rows = stars.data.shape
    fit = _Fit(
        np.empty(m), np.empty(m), np.empty(m), np.empty(m), np.empty(m), np.empty(m, np.int64), np.empty((m, rows)),
        np.empty((m, rows)), np.empty((m, rows), np.bool_), np.empty(m * rows),
    )  # fmt: skip
    for i in range(n):
        star = StarPixels(
            stars.data[i], stars.variance[i], stars.usable[i], stars.profile[i], stars.distance[i],
            stars.contamination[i],
        )  # fmt: skip
        out.chi2[i] = np.nan
        if not star.usable.any():
            out.counts[i, :], out.sigma[i, :], out.background[i, :], out.smooth[i, :] = np.nan, np.inf, np.nan, 0.0
            out.flag[i, :] = NO_DATA
            continue
        _fit_star(star, fit, expected[i], poisson, reject)
        out.chi2[i] = _write_star(star, fit, contamination_error, out, i)


@njit(cache=True, nogil=True)
def _fit_star(star: Any, fit: Any, expected: Any, poisson: float, reject: bool) -> None:  # pragma: no cover
    """Iterate variances, background and counts of one star."""
    m = len(fit.counts)
    fit.counts[:], fit.light[:] = np.nan, 0.0
    fit.level[:], fit.slope[:], fit.level_variance[:], fit.flag[:] = 0.0, 0.0, 0.0, 0
    for step in range(4 if reject else 2):
        _set_variances(star, fit, poisson)
        _fit_background(star, fit, step == 0)
        scale = _core_scatter(star, fit) if reject and step >= 2 else 1.0
        for j in range(m):
            fit.flag[j] &= ~(REJECTED | UNRELIABLE)
            _fit_column(star, fit, j, OUTLIER_SIGMA * scale, reject and step > 0)
        smooth_columns(fit.counts, fit.light)
        for j in range(m):
            if np.isfinite(expected[j]):
                fit.light[j] = max(expected[j], 0.0)


@njit(cache=True, nogil=True)
def _set_variances(star: Any, fit: Any, poisson: float) -> None:  # pragma: no cover
    """Set variances to the noise floor of each block plus the Poisson noise of the smoothed light.

    Given variances that are much larger (bad pixels, bright neighbours) are kept.
    """
    m, rows = star.data.shape
    for low in range(0, m, _BLOCK_COLUMNS):
        high = min(low + _BLOCK_COLUMNS, m)
        floor = _noise_floor(star, fit, poisson, low, high)
        for j in range(low, high):
            light = fit.light[j]
            for k in range(rows):
                model = floor + poisson * (light * star.profile[j, k] + star.contamination[j, k])
                given = star.variance[j, k]
                if model <= 0 or given > 2.0 * model + 6.0 * np.sqrt(max(model, 0.0) * max(poisson, 0.0)):
                    model = given
                fit.variance[j, k] = model
                fit.allowed[j, k] = model + (PROFILE_ERROR * light * star.profile[j, k]) ** 2


@njit(cache=True, nogil=True)
def _noise_floor(star: Any, fit: Any, poisson: float, low: int, high: int) -> float:  # pragma: no cover
    """Return the median variance of a block's background pixels, without the noise of the star's light [e-^2]."""
    n_values = 0
    for j in range(low, high):
        for k in range(star.data.shape[1]):
            if star.usable[j, k] and abs(star.distance[j] + k) >= BACKGROUND_DISTANCE:
                fit.buffer[n_values] = star.variance[j, k] - poisson * fit.light[j] * star.profile[j, k]
                n_values += 1
    if n_values < _MIN_FLOOR_PIXELS:
        n_values = 0
        for j in range(low, high):
            for k in range(star.data.shape[1]):
                if star.usable[j, k]:
                    dark = star.variance[j, k] - poisson * fit.light[j] * star.profile[j, k]
                    fit.buffer[n_values] = max(dark, 0.05 * star.variance[j, k])
                    n_values += 1
    return np.median(fit.buffer[:n_values]) if n_values else 1.0


@njit(cache=True, nogil=True)
def _fit_background(star: Any, fit: Any, first: bool) -> None:  # pragma: no cover
    """Fit level and slope of the background in every block of columns."""
    m = len(fit.level)
    for low in range(0, m, _BLOCK_COLUMNS):
        high = min(low + _BLOCK_COLUMNS, m)
        level, slope, level_variance = _fit_background_block(star, fit, low, high, first)
        fit.level[low:high], fit.slope[low:high], fit.level_variance[low:high] = level, slope, level_variance


@njit(cache=True, nogil=True)
def _fit_background_block(  # pragma: no cover
    star: Any, fit: Any, low: int, high: int, first: bool
) -> tuple[float, float, float]:
    """Return level, slope and variance of the level of one block, by least squares with Huber weights and a cutoff."""
    level, slope, precision = 0.0, 0.0, 0.0
    for step in range(3):
        robust = step > 0 or not first
        cutoff = 4.0 if step > 0 else 8.0
        s0, s1, s2, r0, r1 = 0.0, 0.0, 0.0, 0.0, 0.0
        for j in range(low, high):
            counts = fit.counts[j] if np.isfinite(fit.counts[j]) else 0.0
            for k in range(star.data.shape[1]):
                d = star.distance[j] + k
                if not star.usable[j, k] or abs(d) < BACKGROUND_DISTANCE:
                    continue
                residual = star.data[j, k] - counts * star.profile[j, k]
                w = 1.0
                if robust:
                    z = abs(residual - level - slope * d) / np.sqrt(fit.variance[j, k])
                    w = (1.0 if z < HUBER_CUTOFF else HUBER_CUTOFF / z) if z < cutoff else 0.0
                w /= fit.variance[j, k]
                s0 += w
                s1 += w * d
                s2 += w * d * d
                r0 += w * residual
                r1 += w * residual * d
        if not s0 > 0:
            return 0.0, 0.0, 0.0
        s2 += s0 * _SLOPE_PRIOR
        determinant = s0 * s2 - s1 * s1
        level = (r0 * s2 - r1 * s1) / determinant
        slope = (s0 * r1 - s1 * r0) / determinant
        precision = determinant / s2
    return level, slope, 1.0 / precision


@njit(cache=True, nogil=True)
def _core_scatter(star: Any, fit: Any) -> float:  # pragma: no cover
    """Return the scatter of the core's residuals in their errors, at least 1.

    It keeps the pixels of a star with a wrong profile from being taken for outliers.
    """
    n_values = 0
    for j in range(len(fit.counts)):
        for k in range(star.data.shape[1]):
            if star.usable[j, k] and abs(star.distance[j] + k) < CORE_DISTANCE and np.isfinite(fit.counts[j]):
                fit.buffer[n_values] = abs(_residual(star, fit, j, k)) / np.sqrt(fit.allowed[j, k])
                n_values += 1
    return max(1.0, np.median(fit.buffer[:n_values]) / NORMAL_MAD) if n_values else 1.0


@njit(cache=True, nogil=True, inline="always")
def _residual(star: Any, fit: Any, j: int, k: int) -> float:  # pragma: no cover
    """Return pixel - background - counts * profile [e-]."""
    background = fit.slope[j] * (star.distance[j] + k)
    return star.data[j, k] - fit.level[j] - background - fit.counts[j] * star.profile[j, k]


@njit(cache=True, nogil=True)
def _fit_column(star: Any, fit: Any, j: int, limit: float, reject: bool) -> None:  # pragma: no cover
    """Set the counts of a column; reject its worst pixel while it deviates by more than `limit` sigma.

    Where too much of the profile would be lost, all pixels are kept and the column is flagged as unreliable.
    """
    _use_all_pixels(star, fit, j)
    first_share = 0.0
    for n_rejected in range(_MAX_OUTLIERS + 1):
        top, power, share = _profile_sums(star, fit, j)
        if n_rejected == 0:
            first_share = share
        enough = power > 0 and share > 0 and share >= min(MIN_PROFILE_FRACTION, 0.5 * first_share)
        fit.counts[j] = top / power if enough else np.nan
        if not reject or not np.isfinite(fit.counts[j]):
            return
        worst = _worst_pixel(star, fit, j, limit)
        if worst < 0:
            return
        if n_rejected == _MAX_OUTLIERS or share - star.profile[j, worst] < _MIN_KEPT_SHARE * first_share:
            break
        fit.good[j, worst] = False
        fit.flag[j] |= REJECTED
    _use_all_pixels(star, fit, j)
    fit.flag[j] |= UNRELIABLE
    fit.flag[j] &= ~REJECTED
    top, power, share = _profile_sums(star, fit, j)
    fit.counts[j] = top / power


@njit(cache=True, nogil=True, inline="always")
def _use_all_pixels(star: Any, fit: Any, j: int) -> None:  # pragma: no cover
    for k in range(star.data.shape[1]):
        fit.good[j, k] = star.usable[j, k]


@njit(cache=True, nogil=True, inline="always")
def _profile_sums(star: Any, fit: Any, j: int) -> tuple[float, float, float]:  # pragma: no cover
    """Return sum(p (data - background) / v), sum(p^2 / v) and sum(p) over the good pixels of a column."""
    top, power, share = 0.0, 0.0, 0.0
    level, slope, distance = fit.level[j], fit.slope[j], star.distance[j]
    for k in range(star.data.shape[1]):
        if not fit.good[j, k]:
            continue
        w = star.profile[j, k] / fit.variance[j, k]
        power += w * star.profile[j, k]
        share += star.profile[j, k]
        top += w * (star.data[j, k] - level - slope * (distance + k))
    return top, power, share


@njit(cache=True, nogil=True, inline="always")
def _worst_pixel(star: Any, fit: Any, j: int, limit: float) -> int:  # pragma: no cover
    """Return the row of the pixel with the largest residual above `limit` sigma; -1 without one."""
    worst, row = limit, -1
    for k in range(star.data.shape[1]):
        if fit.good[j, k] and abs(star.distance[j] + k) < BACKGROUND_DISTANCE + 2:
            z = abs(_residual(star, fit, j, k)) / np.sqrt(fit.allowed[j, k])
            if z > worst:
                worst, row = z, k
    return row


@njit(cache=True, nogil=True)
def _write_star(star: Any, fit: Any, contamination_error: float, out: Any, i: int) -> float:  # pragma: no cover
    """Write the results of one star; return its chi2 per degree of freedom."""
    m, rows = star.data.shape
    total, n_pixels, n_columns = 0.0, 0, 0
    for j in range(m):
        for k in range(rows):
            out.rejected[i, j, k] = star.usable[j, k] and not fit.good[j, k]
        out.smooth[i, j], out.background[i, j] = fit.light[j], fit.level[j]
        sigma = _column_sigma(star, fit, j, contamination_error)
        if not np.isfinite(sigma):
            out.counts[i, j], out.sigma[i, j] = np.nan, np.inf
            out.flag[i, j] = fit.flag[j] | NO_DATA
            continue
        if fit.counts[j] < -3 * sigma:
            fit.flag[j] |= NEGATIVE
        chi2, n_core = _column_chi2(star, fit, j)
        if fit.flag[j] & UNRELIABLE:
            sigma *= np.sqrt(max(1.0, chi2 / max(n_core - 1, 1)))
        else:
            n_columns += 1
            total += chi2
            n_pixels += n_core
        out.counts[i, j], out.sigma[i, j], out.flag[i, j] = fit.counts[j], sigma, fit.flag[j]
    return total / (n_pixels - n_columns) if n_pixels > n_columns else np.nan


@njit(cache=True, nogil=True)
def _column_sigma(star: Any, fit: Any, j: int, contamination_error: float) -> float:  # pragma: no cover
    """Return the error of a column's counts, with those of background and contamination; inf without data.

    Columns with a part of their profile are flagged, and also as unreliable if they differ from their neighbours: an
    outlier among their few pixels shows only in that comparison.
    """
    power, sum_p, share, foreign = 0.0, 0.0, 0.0, 0.0
    for k in range(star.data.shape[1]):
        if fit.good[j, k]:
            w = star.profile[j, k] / fit.variance[j, k]
            power += w * star.profile[j, k]
            sum_p += w
            share += star.profile[j, k]
            foreign += w * star.contamination[j, k]
    if not power > 0 or share < MIN_PROFILE_FRACTION or not np.isfinite(fit.counts[j]):
        return np.inf
    sigma = np.sqrt(
        1 / power + fit.level_variance[j] * (sum_p / power) ** 2 + (contamination_error * foreign / power) ** 2
    )
    if share < PARTIAL_PROFILE_FRACTION:
        fit.flag[j] |= PARTIAL
        difference = abs(fit.counts[j] - fit.light[j])
        if difference > _PARTIAL_SIGMA * sigma + 0.5 * fit.light[j]:
            fit.flag[j] |= UNRELIABLE
            sigma = difference
    return sigma


@njit(cache=True, nogil=True)
def _column_chi2(star: Any, fit: Any, j: int) -> tuple[float, int]:  # pragma: no cover
    """Return chi2 of a column's good pixels near the trace, and their number."""
    chi2, n_core = 0.0, 0
    for k in range(star.data.shape[1]):
        if fit.good[j, k] and abs(star.distance[j] + k) < CORE_DISTANCE:
            chi2 += _residual(star, fit, j, k) ** 2 / fit.variance[j, k]
            n_core += 1
    return chi2, n_core
