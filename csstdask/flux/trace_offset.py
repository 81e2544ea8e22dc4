"""Fit the profile across the traces and their offset along y, to bright stars without light of others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from csstdask.flux.contamination import contaminating_light
from csstdask.flux.extraction_kernels import BACKGROUND_DISTANCE
from csstdask.flux.profile import CrossProfile, fit_profile
from csstdask.flux.traces import Traces
from csstdask.flux.windows import HALF_ROWS, Frame, Windows, cut_windows, window_profile
from csstdask.numerics.polynomials import normalised_coordinate
from csstdask.numerics.robust import nan_median, robust_linear_fit

Float = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Int = npt.NDArray[np.int64]

_MIN_SNR = 15.0
"""Median signal-to-noise ratio of a column above which a star is bright."""
_MIN_SNR_COLUMNS = 20
"""Columns from which that median is trusted."""
_PROFILE_STARS = 40
"""Largest number of stars that the profile is fitted to."""
_PROFILE_COLUMNS = 900
"""Largest number of their columns that the profile is fitted to."""
_MIN_ISOLATED_COLUMNS = 40
"""Columns without light of others near the trace that a star needs to take part."""
_MIN_PLANE_STARS = 12
"""Stars from which the offset of the traces is a plane over the field rather than a constant."""
_MIN_OFFSET_COLUMNS = 10
"""Columns from which the offset of one trace is measured."""
_OFFSET_SCATTER = 0.01
"""Scatter of true offsets about the plane that is allowed for [pixel]."""
_OFFSET_STEP = 0.05
"""Step for the derivative of the profile along y [pixel]."""
_MAX_OFFSET = 4.0
"""Largest offset of the traces that is searched [pixel]."""


@dataclass(frozen=True)
class _BrightStars:
    """Bright stars with enough columns without light of others."""

    index: Int
    """(star,) Index among all stars."""
    traces: Traces
    windows: Windows
    isolated: Bool
    """(star, column) Columns without light of others near the trace."""
    offset: float
    """Median distance of the light from the nominal traces [pixel]."""


def fit_profile_and_offset(
    frame: Frame,
    traces: Traces,
    start: CrossProfile,
    counts: Float,
    sigma: Float,
    all_light: Single,
    light: Float,
    x: Float,
    y: Float,
) -> tuple[CrossProfile, Float, int]:
    """Fit profile and offset of the traces to bright stars.

    Parameters
    ----------
    frame : Frame
        Pixels.
    traces : Traces
        Nominal traces of n stars.
    start : CrossProfile
        First guess, returned where there are no suitable stars.
    counts, sigma : float64 arrays (n, column)
        First extraction [e-].
    all_light : float32 array (y, x)
        Light of all stars [e-].
    light : float64 array (n, column)
        Counts of each star in it [e-].
    x, y : float64 arrays (n,)
        Positions without the grating [pixel].

    Returns
    -------
    profile : CrossProfile
        Profile across the traces.
    offset : float64 array (n,)
        Offset of each trace along y [pixel]: a plane over the frame, or a constant.
    n_stars : int
        Number of stars that took part; 0: nothing was fitted.
    """
    stars = _select_stars(frame, traces, start, counts, sigma, all_light, light)
    if stars is None:
        return start, np.zeros(len(x)), 0
    windows, nominal_row = stars.windows, stars.traces.row - stars.windows.first_row
    columns = np.argwhere(stars.isolated & (windows.usable.sum(axis=2) > HALF_ROWS))
    if len(columns) < _MIN_ISOLATED_COLUMNS:
        return start, np.zeros(len(x)), 0
    spread_evenly = np.linspace(0, len(columns) - 1, min(len(columns), _PROFILE_COLUMNS)).round().astype(np.int64)
    i, j = columns[spread_evenly].T
    variance = np.where(windows.usable, windows.variance, np.inf)[i, j]

    def fit(center: Float, guess: CrossProfile) -> tuple[CrossProfile, float]:
        return fit_profile(windows.data[i, j], variance, center, stars.traces.wavelength[i, j], guess)

    profile, correction = fit(nominal_row[i, j] + stars.offset, start)
    common = stars.offset + correction
    offsets, offset_sigma = _star_offsets(stars, profile, common)
    ny, nx = frame.data.shape
    u, v = np.nan_to_num(normalised_coordinate(x, nx)), np.nan_to_num(normalised_coordinate(y, ny))
    plane = len(stars.index) >= _MIN_PLANE_STARS
    terms = np.stack([np.ones(len(x)), u, v], axis=1) if plane else np.ones((len(x), 1))
    coefficients, _ = robust_linear_fit(terms[stars.index], offsets, offset_sigma**2 + _OFFSET_SCATTER**2)
    if plane:  # fit the profile again without the smearing by the plane
        profile, correction = fit(nominal_row[i, j] + common + (terms @ coefficients)[stars.index][i], profile)
        common += correction
    return profile, common + terms @ coefficients, len(stars.index)


def _select_stars(
    frame: Frame,
    traces: Traces,
    start: CrossProfile,
    counts: Float,
    sigma: Float,
    all_light: Single,
    light: Float,
) -> _BrightStars | None:
    """Return the brightest stars with enough isolated columns, without contaminating light; None without any."""
    with np.errstate(invalid="ignore"):
        ratio = np.where(traces.inside & np.isfinite(counts), counts / sigma, np.nan)
    enough = np.isfinite(ratio).sum(axis=1) > _MIN_SNR_COLUMNS
    snr = np.where(enough, np.nan_to_num(nan_median(ratio, axis=1)), 0.0)
    bright = np.flatnonzero(snr > _MIN_SNR)
    bright = bright[np.argsort(-snr[bright], kind="stable")][: 4 * _PROFILE_STARS]
    if not len(bright):
        return None
    chosen = traces.take(bright)
    windows = cut_windows(frame, chosen)
    offset = _median_offset(windows, chosen)
    shape = window_profile(chosen, start, np.zeros(len(bright)))
    foreign, bad = contaminating_light(all_light, chosen, windows, shape.pixels, light[bright])
    near_trace = np.abs(shape.row_distance) < BACKGROUND_DISTANCE
    isolated = chosen.inside & ~(bad & near_trace).any(axis=2) & np.isfinite(counts[bright])
    kept = np.flatnonzero(isolated.sum(axis=1) >= _MIN_ISOLATED_COLUMNS)[:_PROFILE_STARS]
    if not len(kept):
        return None
    clean = replace(windows, data=windows.data - foreign, usable=windows.usable & ~bad).take(kept)
    return _BrightStars(bright[kept], chosen.take(kept), clean, isolated[kept], offset)


def _median_offset(windows: Windows, traces: Traces) -> float:
    """Return the median distance of the light from the traces, accurate to better than a pixel [pixel]."""
    rows = np.arange(windows.data.shape[2])
    distance = windows.first_row[..., None] - traces.row[..., None] + rows
    center = 0.0
    edge = np.abs(distance) > BACKGROUND_DISTANCE + 2
    level = nan_median(np.where(edge & windows.usable, windows.data, np.nan), axis=(1, 2))
    level = np.nan_to_num(level)[:, None, None]
    for radius in (6.0, 4.0, 3.0, 3.0):
        core = (np.abs(distance - center) < radius) & windows.usable & traces.inside[..., None]
        light = np.where(core, windows.data - level, 0.0).sum(axis=1)
        moment = np.where(core, (windows.data - level) * distance, 0.0).sum(axis=1)
        total = light.sum(axis=1)
        positive = total > 0
        if not positive.any():
            return 0.0
        center = float(np.median(moment.sum(axis=1)[positive] / total[positive]))
    return float(np.clip(center, -_MAX_OFFSET, _MAX_OFFSET))


def _star_offsets(stars: _BrightStars, profile: CrossProfile, offset: float) -> tuple[Float, Float]:
    """Return the offset of each trace from the common one and its error [pixel], to first order.

    In every column, background level, amplitude and shift of the profile are fitted by least squares; shifts are then
    averaged robustly over the columns of a star.
    """
    windows, wavelength = stars.windows, stars.traces.wavelength
    center = stars.traces.row + offset - windows.first_row
    n_rows = windows.data.shape[2]
    shape = profile.pixels(center, wavelength, n_rows)
    above, below = (profile.pixels(center + step, wavelength, n_rows) for step in (_OFFSET_STEP, -_OFFSET_STEP))
    slope = (above - below) / (2 * _OFFSET_STEP)
    weight = np.where(windows.usable & stars.isolated[..., None], 1 / windows.variance, 0.0)
    # level, amplitude and slope of each column; the last over the amplitude is the shift
    terms = np.stack([np.ones_like(shape), shape, slope]).astype(np.float64)
    normal = np.einsum("aijk,ijk,bijk->ijab", terms, weight, terms)
    vector = np.einsum("aijk,ijk,ijk->ija", terms, weight, windows.data)
    with np.errstate(invalid="ignore", divide="ignore"):
        amplitude = vector[..., 1] - normal[..., 0, 1] * vector[..., 0] / normal[..., 0, 0]
        amplitude /= normal[..., 1, 1] - normal[..., 0, 1] ** 2 / normal[..., 0, 0]
        residual = vector[..., 2] - amplitude * normal[..., 1, 2]
        level = (vector[..., 0] - amplitude * normal[..., 0, 1]) / normal[..., 0, 0]
        residual -= level * normal[..., 0, 2]
        valid = np.isfinite(amplitude) & np.isfinite(residual) & (amplitude > 0)
        weights = np.where(valid, amplitude**2 * normal[..., 2, 2], 0.0)
        shifts = np.where(valid, residual / (amplitude * normal[..., 2, 2]), np.nan)
    offsets, sigma = np.full(len(shifts), np.nan), np.full(len(shifts), np.inf)
    for index, shift in enumerate(shifts):
        measured = np.isfinite(shift) & (weights[index] > 0)
        if measured.sum() > _MIN_OFFSET_COLUMNS:
            constant = np.ones((int(measured.sum()), 1))
            (value,), _ = robust_linear_fit(constant, shift[measured], 1 / weights[index][measured])
            offsets[index], sigma[index] = value, weights[index][measured].sum() ** -0.5
    return offsets, sigma
