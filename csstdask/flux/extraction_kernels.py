"""Loops over the pixels of spectra: optimal extraction with background and outliers, and the light of a frame."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from csstdask.flux.spectrum_flag import MIN_PROFILE_FRACTION, PARTIAL_PROFILE_FRACTION, SpectrumFlag
from csstdask.numerics.robust import NORMAL_MAD

NO_DATA = int(SpectrumFlag.NO_DATA)
PARTIAL = int(SpectrumFlag.PARTIAL)
REJECTED = int(SpectrumFlag.REJECTED)
UNRELIABLE = int(SpectrumFlag.UNRELIABLE)
NEGATIVE = int(SpectrumFlag.NEGATIVE)

BLOCK = 24
"""Columns over which the background is one straight line across the trace."""
BACKGROUND_FROM = 6.0
"""Distance from the trace from which rows are background [pixel]."""
CORE = 5.0
"""Distance from the trace within which chi2 is counted [pixel]."""
OUTLIER_SIGMA = 5.0
"""Residual from which a pixel is an outlier [sigma]."""
PROFILE_ERROR = 0.03
"""Relative error of a profile's pixels that is allowed for when outliers are sought."""
_MOST_OUTLIERS = 4
"""Pixels of one column that may be rejected."""
_PARTIAL_SIGMA = 6.0
"""Difference from the neighbouring columns that makes a column with part of its profile unreliable [sigma]."""
_SMOOTH = 4
"""Columns on each side over which counts are smoothed for their variance."""


@njit(cache=True, nogil=True)
def add_light(frame: Any, first_column: Any, first_row: Any, counts: Any, profile: Any) -> None:  # pragma: no cover
    """Add counts (n, column) times profile (n, column, row) to a frame, from given first columns and rows."""
    ny, nx = frame.shape
    for i in range(counts.shape[0]):
        for j in range(counts.shape[1]):
            x = first_column[i] + j
            if x < 0 or x >= nx or not counts[i, j] > 0:
                continue
            for k in range(profile.shape[2]):
                y = first_row[i, j] + k
                if 0 <= y < ny:
                    frame[y, x] += counts[i, j] * profile[i, j, k]


@njit(cache=True, nogil=True)
def cut(frame: Any, first_column: Any, first_row: Any, fill: float, out: Any) -> None:  # pragma: no cover
    """Copy windows (n, column, row) from a frame; `fill` off the frame."""
    ny, nx = frame.shape
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            x = first_column[i] + j
            for k in range(out.shape[2]):
                y = first_row[i, j] + k
                out[i, j, k] = frame[y, x] if 0 <= x < nx and 0 <= y < ny else fill


@njit(cache=True, nogil=True)
def _smoothed(counts: Any, out: Any) -> None:  # pragma: no cover
    """Write the running mean of the running median of the finite counts, not negative."""
    n = len(counts)
    middle = np.empty(n)
    buffer = np.empty(2 * _SMOOTH + 1)
    for j in range(n):
        m = 0
        for i in range(max(0, j - _SMOOTH), min(n, j + _SMOOTH + 1)):
            if np.isfinite(counts[i]):
                buffer[m] = counts[i]
                m += 1
        middle[j] = np.median(buffer[:m]) if m else 0.0
    for j in range(n):
        low, high = max(0, j - 1), min(n, j + 2)
        out[j] = max(0.0, middle[low:high].mean())


@njit(cache=True, nogil=True)
def _fit_background(  # pragma: no cover
    data: Any, usable: Any, profile: Any, distance: Any, variance: Any, counts: Any, low: int, high: int, first: bool
) -> tuple[float, float, float]:
    """Return level, slope across the trace and variance of the level of a block, robustly."""
    level, slope = 0.0, 0.0
    s0 = 0.0
    for step in range(3):
        cutoff = 1e30 if step == 0 and first else (4.0 if step > 0 else 8.0)
        s0, s1, s2, r0, r1 = 0.0, 0.0, 0.0, 0.0, 0.0
        for j in range(low, high):
            f = counts[j] if np.isfinite(counts[j]) else 0.0
            for k in range(data.shape[1]):
                d = distance[j] + k
                if not usable[j, k] or abs(d) < BACKGROUND_FROM:
                    continue
                rest = data[j, k] - f * profile[j, k]
                z = abs(rest - level - slope * d) / np.sqrt(variance[j, k])
                w = (1.0 if z < 1.345 else 1.345 / z) if z < cutoff else 0.0
                if step == 0 and first:
                    w = 1.0
                w /= variance[j, k]
                s0 += w
                s1 += w * d
                s2 += w * d * d
                r0 += w * rest
                r1 += w * rest * d
        if not s0 > 0:
            return 0.0, 0.0, 0.0
        # a weak prior keeps the slope of one-sided rows from running away
        s2 += s0 * 4.0
        determinant = s0 * s2 - s1 * s1
        level = (r0 * s2 - r1 * s1) / determinant
        slope = (s0 * r1 - s1 * r0) / determinant
        s0 = determinant / s2
    return level, slope, 1.0 / s0


@njit(cache=True, nogil=True)
def extract_stars(  # noqa: PLR0915  # pragma: no cover
    data: Any, squared: Any, usable: Any, profile: Any, distance: Any, contamination: Any, contamination_error: float,
    expected: Any, poisson: float, reject: bool, with_background: bool,
    counts: Any, sigma: Any, background: Any, flag: Any, chi2: Any, smooth: Any, rejected: Any,
) -> None:  # fmt: skip
    """Extract spectra optimally.

    `data` (n, column, row) [e-] with contaminating light subtracted; `squared`: squares of the errors given; `profile`;
    `distance` (n, column): of row 0 from the trace; `expected` (n, column): counts for the variances, or NaN: smoothed
    counts; `poisson`: variance per count, which scales the light in the variances. The rest is output.
    """
    n, m, rows = data.shape
    variance = np.empty((m, rows))
    allowed = np.empty((m, rows))
    values = np.empty(m * rows)
    for i in range(n):
        d, p, c = data[i], profile[i], contamination[i]
        good = usable[i].copy()
        f, light = np.full(m, np.nan), np.zeros(m)
        n_good = 0
        for j in range(m):
            for k in range(rows):
                if good[j, k]:
                    n_good += 1
        background[i, :] = 0.0
        flag[i, :] = 0
        chi2[i] = np.nan
        smooth[i, :] = 0.0
        if n_good == 0:
            counts[i, :], sigma[i, :], flag[i, :], background[i, :] = np.nan, np.inf, NO_DATA, np.nan
            continue
        level, slope, level_variance = np.zeros(m), np.zeros(m), np.zeros(m)
        n_steps = 4 if reject else 2
        scale = 1.0
        for step in range(n_steps):
            # variances: the errors given, with the light of the star smoothed
            for low in range(0, m, BLOCK):
                high = min(low + BLOCK, m)
                n_values = 0
                for j in range(low, high):
                    for k in range(rows):
                        if usable[i, j, k] and abs(distance[i, j] + k) >= BACKGROUND_FROM:
                            values[n_values] = squared[i, j, k] - poisson * light[j] * p[j, k]
                            n_values += 1
                if n_values < 12:
                    n_values = 0
                    for j in range(low, high):
                        for k in range(rows):
                            if usable[i, j, k]:
                                values[n_values] = max(
                                    squared[i, j, k] - poisson * light[j] * p[j, k], 0.05 * squared[i, j, k]
                                )
                                n_values += 1
                floor = np.median(values[:n_values]) if n_values else 1.0
                for j in range(low, high):
                    for k in range(rows):
                        model = floor + poisson * (light[j] * p[j, k] + c[j, k])
                        given = squared[i, j, k]
                        if model <= 0 or given > 2.0 * model + 6.0 * np.sqrt(max(model, 0.0) * max(poisson, 0.0)):
                            model = given
                        variance[j, k] = model
                        allowed[j, k] = model + (PROFILE_ERROR * light[j] * p[j, k]) ** 2
            if with_background:
                for low in range(0, m, BLOCK):
                    high = min(low + BLOCK, m)
                    b, a, v = _fit_background(d, usable[i], p, distance[i], variance, f, low, high, step == 0)
                    level[low:high], slope[low:high], level_variance[low:high] = b, a, v
            if reject and step >= 2:
                # scatter of the core, so that a wrong profile is not taken for outliers
                n_values = 0
                for j in range(m):
                    for k in range(rows):
                        at = distance[i, j] + k
                        if usable[i, j, k] and abs(at) < CORE and np.isfinite(f[j]):
                            rest = d[j, k] - level[j] - slope[j] * at - f[j] * p[j, k]
                            values[n_values] = abs(rest) / np.sqrt(allowed[j, k])
                            n_values += 1
                scale = max(1.0, np.median(values[:n_values]) / NORMAL_MAD) if n_values else 1.0
            for j in range(m):
                if reject:
                    good[j] = usable[i, j]
                flag[i, j] &= ~(REJECTED | UNRELIABLE)
                start_share, n_rejected = 0.0, 0
                while True:
                    power, sum_p, top, share = 0.0, 0.0, 0.0, 0.0
                    for k in range(rows):
                        if not good[j, k]:
                            continue
                        w = p[j, k] / variance[j, k]
                        power += w * p[j, k]
                        sum_p += w
                        share += p[j, k]
                        top += w * (d[j, k] - level[j] - slope[j] * (distance[i, j] + k))
                    if n_rejected == 0:
                        start_share = share
                    f[j] = (
                        top / power
                        if power > 0 and share >= min(MIN_PROFILE_FRACTION, 0.5 * start_share) and share > 0
                        else np.nan
                    )
                    if not reject or step == 0 or not np.isfinite(f[j]):
                        break
                    worst, worst_k = OUTLIER_SIGMA * scale, -1
                    for k in range(rows):
                        if good[j, k] and abs(distance[i, j] + k) < BACKGROUND_FROM + 2:
                            z = abs(d[j, k] - level[j] - slope[j] * (distance[i, j] + k) - f[j] * p[j, k])
                            z /= np.sqrt(allowed[j, k])
                            if z > worst:
                                worst, worst_k = z, k
                    if worst_k < 0:
                        break
                    n_rejected += 1
                    if n_rejected > _MOST_OUTLIERS or share - p[j, worst_k] < 0.5 * start_share:
                        good[j] = usable[i, j]
                        flag[i, j] |= UNRELIABLE
                        flag[i, j] &= ~REJECTED
                        power, top = 0.0, 0.0
                        for k in range(rows):
                            if good[j, k]:
                                w = p[j, k] / variance[j, k]
                                power += w * p[j, k]
                                top += w * (d[j, k] - level[j] - slope[j] * (distance[i, j] + k))
                        f[j] = top / power
                        break
                    good[j, worst_k] = False
                    flag[i, j] |= REJECTED
            _smoothed(f, light)
            for j in range(m):
                if np.isfinite(expected[i, j]):
                    light[j] = max(expected[i, j], 0.0)
        total, n_pixels, n_columns = 0.0, 0, 0
        for j in range(m):
            power, sum_p, share, other = 0.0, 0.0, 0.0, 0.0
            for k in range(rows):
                at = distance[i, j] + k
                rejected[i, j, k] = usable[i, j, k] and not good[j, k]
                if good[j, k]:
                    w = p[j, k] / variance[j, k]
                    power += w * p[j, k]
                    sum_p += w
                    share += p[j, k]
                    other += w * c[j, k]
            smooth[i, j] = light[j]
            background[i, j] = level[j]
            if not power > 0 or share < MIN_PROFILE_FRACTION or not np.isfinite(f[j]):
                counts[i, j], sigma[i, j] = np.nan, np.inf
                flag[i, j] |= NO_DATA
                continue
            counts[i, j] = f[j]
            sigma[i, j] = np.sqrt(
                1 / power + level_variance[j] * (sum_p / power) ** 2 + (contamination_error * other / power) ** 2
            )
            if share < PARTIAL_PROFILE_FRACTION:
                flag[i, j] |= PARTIAL
                # an outlier among the last few pixels shows only in comparison with other columns
                apart = abs(f[j] - light[j])
                if apart > _PARTIAL_SIGMA * sigma[i, j] + 0.5 * light[j]:
                    flag[i, j] |= UNRELIABLE
                    sigma[i, j] = apart
            if f[j] < -3 * sigma[i, j]:
                flag[i, j] |= NEGATIVE
            of_column, n_column = 0.0, 0
            for k in range(rows):
                at = distance[i, j] + k
                if good[j, k] and abs(at) < CORE:
                    of_column += (d[j, k] - level[j] - slope[j] * at - f[j] * p[j, k]) ** 2 / variance[j, k]
                    n_column += 1
            if flag[i, j] & UNRELIABLE:
                sigma[i, j] *= np.sqrt(max(1.0, of_column / max(n_column - 1, 1)))
                continue
            n_columns += 1
            total += of_column
            n_pixels += n_column
        if n_pixels > n_columns:
            chi2[i] = total / (n_pixels - n_columns)
