"""Profile and offset of the traces of a frame, from columns of bright stars without light of others."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csstdask.flux.contamination import foreign_light
from csstdask.flux.extraction_kernels import BACKGROUND_FROM
from csstdask.flux.profile import CrossProfile, fit_profile
from csstdask.flux.traces import Traces
from csstdask.flux.windows import HALF_ROWS, Frame, Windows, cut_windows, first_rows
from csstdask.numerics.polynomials import normalised_coordinate
from csstdask.numerics.robust import nan_median, robust_linear_fit

Float = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Int = npt.NDArray[np.int64]

_PROFILE_COLUMNS = 900
"""Columns that the profile is fitted to."""
_PROFILE_STARS = 40
_BRIGHT = 15.0
"""Median signal-to-noise ratio of a column from which a star is bright."""
_ISOLATED_COLUMNS = 40
"""Columns without light of others near the trace that a star needs to take part in the profile."""
_OFFSET_STARS = 12
"""Bright stars from which the offset of the traces is a plane over the field rather than a constant."""


def fit_shape(
    frame: Frame,
    traces: Traces,
    start: CrossProfile,
    counts: Float,
    sigma: Float,
    others: Single,
    light: Float,
    x: Float,
    y: Float,
) -> tuple[CrossProfile, Float, int]:
    """Fit profile and offset of the traces to bright stars.

    Parameters
    ----------
    frame : Frame
    traces : Traces
        Of n stars.
    start : CrossProfile
        First guess, and the result where there are no such stars.
    counts, sigma : float64 arrays (n, column)
        A first extraction [e-].
    others : float32 array (y, x)
        Light of all stars [e-].
    light : float64 array (n, column)
        Of each star in it.
    x, y : float64 arrays (n,)
        Positions without the grating [pixel].

    Returns
    -------
    profile : CrossProfile
    offset : float64 array (n,)
        Of each trace along y [pixel]: a plane over the frame, or a constant.
    n_stars : int
        That took part; 0: nothing was fitted.
    """
    none = np.zeros(len(x))
    with np.errstate(invalid="ignore"):
        ratio = np.where(traces.inside & np.isfinite(counts), counts / sigma, np.nan)
    snr = np.where(np.isfinite(ratio).sum(axis=1) > 20, np.nan_to_num(nan_median(ratio, axis=1)), 0.0)
    bright = np.flatnonzero(snr > _BRIGHT)
    bright = bright[np.argsort(-snr[bright], kind="stable")][: 4 * _PROFILE_STARS]
    if not len(bright):
        return start, none, 0
    some = traces.take(bright)
    windows = cut_windows(frame, some, first_rows(some))
    offset = _centroid(windows, some, start)
    distance = windows.first_row - some.row
    shape = start.pixels(-distance, some.wavelength, windows.data.shape[2])
    foreign, bad = foreign_light(others, some, windows, shape, light[bright])
    core = np.abs(distance[..., None] + np.arange(shape.shape[2])) < BACKGROUND_FROM
    alone = some.inside & ~(bad & core).any(axis=2) & np.isfinite(counts[bright])
    kept = np.flatnonzero(alone.sum(axis=1) >= _ISOLATED_COLUMNS)[:_PROFILE_STARS]
    if not len(kept):
        return start, none, 0
    bright, some, distance, alone = bright[kept], some.take(kept), distance[kept], alone[kept]
    clean = (windows.usable & ~bad)[kept]
    windows = Windows(windows.data[kept] - foreign[kept], windows.squared[kept], clean, windows.first_row[kept])
    variance = np.where(clean, windows.squared, np.inf)
    chosen = np.argwhere(alone & (clean.sum(axis=2) > HALF_ROWS))
    if len(chosen) < _ISOLATED_COLUMNS:
        return start, none, 0
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(len(chosen), _PROFILE_COLUMNS)).round().astype(np.int64)]
    i, j = chosen[:, 0], chosen[:, 1]
    profile, extra = fit_profile(
        windows.data[i, j], variance[i, j], -distance[i, j] + offset, some.wavelength[i, j], start
    )
    total = offset + extra
    steps, spread = _offsets(windows, alone, some, profile, total)
    u, v = _unit_positions(frame, x, y)
    plane = len(bright) >= _OFFSET_STARS
    terms = np.stack([np.ones(len(x)), u, v], axis=1) if plane else np.ones((len(x), 1))
    coefficients, _ = robust_linear_fit(terms[bright], steps, spread**2 + 0.01**2)
    if plane:  # another profile fit with the field's slope taken out
        moved = (terms @ coefficients)[bright][i]
        profile, extra = fit_profile(
            windows.data[i, j], variance[i, j], -distance[i, j] + total + moved, some.wavelength[i, j], profile
        )
        total += extra
    return profile, total + terms @ coefficients, len(bright)


def _centroid(windows: Windows, traces: Traces, profile: CrossProfile) -> float:
    """Return the median distance of the light from the traces [pixel], to better than a pixel."""
    rows = np.arange(windows.data.shape[2])
    distance = windows.first_row[..., None] - traces.row[..., None] + rows
    center = 0.0
    edge = np.abs(distance) > BACKGROUND_FROM + 2
    level = nan_median(np.where(edge & windows.usable, windows.data, np.nan), axis=(1, 2))
    level = np.nan_to_num(level)[:, None, None]
    for reach in (6.0, 4.0, 3.0, 3.0):
        core = (np.abs(distance - center) < reach) & windows.usable & traces.inside[..., None]
        light = np.where(core, windows.data - level, 0.0).sum(axis=1)
        moment = np.where(core, (windows.data - level) * distance, 0.0).sum(axis=1)
        total = light.sum(axis=1)
        fine = total > 0
        if not fine.any():
            return 0.0
        center = float(np.median(moment.sum(axis=1)[fine] / total[fine]))
    return float(np.clip(center, -4, 4)) if profile.core > 0 else 0.0


def _offsets(
    windows: Windows, alone: Bool, traces: Traces, profile: CrossProfile, offset: float
) -> tuple[Float, Float]:
    """Return the offset of each trace from the common one and its error [pixel], to first order."""
    center = traces.row + offset - windows.first_row
    n_rows = windows.data.shape[2]
    shape = profile.pixels(center, traces.wavelength, n_rows)
    above, below = (profile.pixels(center + step, traces.wavelength, n_rows) for step in (0.05, -0.05))
    slope = (above - below) / 0.1
    weight = np.where(windows.usable & alone[..., None], 1 / windows.squared, 0.0)
    # level, amplitude and slope of each column; the last over the amplitude is the offset
    terms = np.stack([np.ones_like(shape), shape, slope]).astype(np.float64)
    normal = np.einsum("aijk,ijk,bijk->ijab", terms, weight, terms)
    vector = np.einsum("aijk,ijk,ijk->ija", terms, weight, windows.data)
    with np.errstate(invalid="ignore", divide="ignore"):
        amplitude = vector[..., 1] - normal[..., 0, 1] * vector[..., 0] / normal[..., 0, 0]
        amplitude /= normal[..., 1, 1] - normal[..., 0, 1] ** 2 / normal[..., 0, 0]
        rest = vector[..., 2] - amplitude * normal[..., 1, 2]
        level = (vector[..., 0] - amplitude * normal[..., 0, 1]) / normal[..., 0, 0]
        rest -= level * normal[..., 0, 2]
        fine = np.isfinite(amplitude) & np.isfinite(rest) & (amplitude > 0)
        power = np.where(fine, amplitude**2 * normal[..., 2, 2], 0.0)
        steps = np.where(fine, rest / (amplitude * normal[..., 2, 2]), np.nan)
    found, spread = np.full(len(steps), np.nan), np.full(len(steps), np.inf)
    for index, one in enumerate(steps):
        have = np.isfinite(one) & (power[index] > 0)
        if have.sum() > 10:
            (value,), _ = robust_linear_fit(np.ones((int(have.sum()), 1)), one[have], 1 / power[index][have])
            found[index], spread[index] = value, power[index][have].sum() ** -0.5
    return found, spread


def _unit_positions(frame: Frame, x: Float, y: Float) -> tuple[Float, Float]:
    ny, nx = frame.height.shape
    u, v = normalised_coordinate(x, nx), normalised_coordinate(y, ny)
    return np.nan_to_num(u), np.nan_to_num(v)
