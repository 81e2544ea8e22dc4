"""Spectra of all catalogue stars on one slitless frame.

Light of a star in column X of its first order: counts(X) times the profile across the trace (`csstdask.flux.profile`),
on a background that is linear across the trace. Steps: traces; a first extraction; profile and offset of the traces
from bright isolated stars; light of other stars, first and zeroth orders; optimal extraction (Horne 1986, PASP 98, 609)
with outliers rejected; shifts along the dispersion.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from csstdask.errors import InputError
from csstdask.flux.frame_kernels import BACKGROUND_FROM, add_light, cut, extract_stars
from csstdask.flux.predicted import PredictedLight, Traces, find_traces
from csstdask.flux.profile import CrossProfile, fit_profile
from csstdask.flux.spectrum_flag import SpectrumFlag
from csstdask.flux.wavelength_shift import fit_shifts
from csstdask.instrument.dispersion import Dispersion
from csstdask.numerics.polynomials import unit_coordinate
from csstdask.numerics.robust import nan_median, robust_polynomial

Float = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Int = npt.NDArray[np.int64]

HALF_ROWS = 12
"""Rows of a window on each side of the trace."""
CONTAMINATION_LIMIT = 0.05
"""Light of others over a star's own from which a pixel is rejected ..."""
CONTAMINATION_SIGMA = 0.3
"""... if it is also more than this in units of the pixel's noise."""
CONTAMINATION_ERROR = 0.15
"""Relative 1-sigma error of the predicted light of other stars."""
_BATCH = 512
_PROFILE_COLUMNS = 900
"""Columns that the profile is fitted to."""
_PROFILE_STARS = 40
_BRIGHT = 15.0
"""Median signal-to-noise ratio of a column from which a star is bright."""
_ISOLATED_COLUMNS = 40
"""Columns without light of others near the trace that a star needs to take part in the profile."""
_OFFSET_STARS = 12
"""Bright stars from which the offset of the traces is a plane over the field rather than a constant."""
_ZEROTH_RADIUS = 5.0
"""Distance from a zeroth order of unknown brightness within which pixels are rejected [pixel]."""


@dataclass(frozen=True)
class FrameSpectra:
    """Spectra of n stars, padded to a common number of columns.

    Columns off the frame or outside of the order have counts NaN, sigma inf and the flag NO_DATA.
    """

    column: Int
    """(n, column) Column of the frame, zero-based."""
    row: Float
    """(n, column) Row of the trace, offset included [pixel]."""
    wavelength: Float
    """(n, column) At the centre of the column, shift included [Angstrom]."""
    angstrom_per_pixel: Float
    """(n, column) Local dispersion."""
    counts: Float
    """(n, column) [e-]"""
    sigma: Float
    """(n, column) 1 sigma [e-]."""
    background: Float
    """(n, column) At the trace [e-/pixel], in addition to what had been subtracted."""
    flag: Int
    """(n, column) `SpectrumFlag`."""
    shift: Float
    """(n,) Of the spectrum along x [pixel]; combined with the frame's shift by their errors."""
    shift_sigma: Float
    """(n,) 1 sigma; inf without predicted spectra."""
    shift_measured: Float
    """(n,) Of the star alone; NaN = not measurable."""
    shift_measured_sigma: Float
    """(n,) 1 sigma; inf = not measurable."""
    y_offset: Float
    """(n,) Of the trace along y [pixel]."""
    chi2: Float
    """(n,) Of the pixels within 5 of the trace, per degree of freedom."""
    contaminated: Float
    """(n,) Share of the star's light in pixels that were rejected for the light of others."""
    coverage: Float
    """(n,) Share of the columns of the order with a measurement."""
    snr: Float
    """(n,) Median of counts / sigma over the columns; NaN without a measurement."""
    rejected: Bool
    """(y, x) Usable pixels of the frame that were rejected as outliers or for the light of others."""
    profile: CrossProfile
    """Profile across the traces."""
    n_profile_stars: int
    """Stars that profile and offset were fitted to; 0: not fitted."""

    def __len__(self) -> int:
        return len(self.counts)


@dataclass(frozen=True)
class _Windows:
    """Pixels round the traces of some stars (star, column, row)."""

    data: Single
    squared: Single
    usable: Bool
    first_row: Int


@dataclass(frozen=True)
class _Extracted:
    counts: Float
    sigma: Float
    background: Float
    flag: Int
    chi2: Float
    smooth: Float
    """Smoothed counts."""
    rejected: Bool
    """Of the windows."""


@dataclass(frozen=True)
class _Frame:
    height: Single
    error: Single
    mask: Bool


def extract_frame(
    height: npt.ArrayLike,
    error: npt.ArrayLike,
    mask: npt.ArrayLike | None,
    dispersion: Dispersion,
    zeroth: Dispersion | None,
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    predicted: PredictedLight | None = None,
    profile: CrossProfile | None = None,
    fit: bool = True,
) -> FrameSpectra:
    """Extract the first-order spectra of all stars on a frame.

    Parameters
    ----------
    height : array-like (y, x)
        Electrons above the sky.
    error : array-like (y, x)
        1 sigma, Poisson noise included [e-].
    mask : array-like of bool (y, x), optional
        True = unusable.
    dispersion : Dispersion
        Of the first order on this frame.
    zeroth : Dispersion, optional
        Of the zeroth order.
    x, y : array-like (n,)
        Positions of the stars without the grating, zero-based [pixel]. Stars off the frame, whose spectra may reach
        into it, belong to the list; NaN gives a spectrum without data.
    predicted : PredictedLight, optional
        Expected spectra: they weigh contamination, smooth the variances, and give shifts along x. Without them
        contamination is judged by the extracted counts, and no shift is fitted.
    profile : CrossProfile, optional
        First guess, and what is used when bright isolated stars are too few.
    fit : bool
        Whether to fit profile and offset.

    Returns
    -------
    FrameSpectra

    Raises
    ------
    InputError
        If shapes do not agree.
    """
    frame = _checked(height, error, mask)
    x, y = np.atleast_1d(np.asarray(x, dtype=np.float64)), np.atleast_1d(np.asarray(y, dtype=np.float64))
    if x.shape != y.shape or x.ndim != 1:
        raise InputError("x, y", f"shapes {x.shape} and {y.shape}", "one position per star, (n,) each")
    n = len(x)
    if predicted is not None and len(predicted.flux) != n:
        raise InputError("predicted.flux", f"{len(predicted.flux)} spectra", f"one per star ({n})")
    traces = find_traces(dispersion, x, y)
    shape = profile or CrossProfile(reference=float(np.mean(dispersion.limits)))
    expected = np.full(traces.wavelength.shape, np.nan)
    if predicted is not None:
        expected = predicted.counts(traces.wavelength, traces.angstrom_per_pixel)
    nothing = np.zeros(n)
    at = _shape_of(traces, shape, nothing)
    first = _extract(frame, traces, at, None, np.full_like(expected, np.nan), 1.0, reject=False)
    light = np.where(np.isfinite(expected), expected, first.smooth)
    spots = _zeroth_orders(zeroth, predicted, x, y)
    n_used, offset = 0, nothing
    if fit:
        others = _light_of_all(frame, traces, shape, at, light, spots)
        shape, offset, n_used = _fit_shape(frame, traces, shape, first, others, light, x, y)
        at = _shape_of(traces, shape, offset)
    others = _light_of_all(frame, traces, shape, at, light, spots)
    expected = _scaled(expected, first)
    poisson = _poisson_factor(frame, traces, at, first)
    rejected = np.zeros(frame.height.shape, dtype=bool)
    contaminated = np.zeros(n)
    final = _extract(
        frame, traces, at, others, expected, poisson, reject=True, light=light, rejected=rejected,
        contaminated=contaminated,
    )  # fmt: skip
    return _assemble(dispersion, predicted, traces, final, x, y, offset, shape, n_used, rejected, contaminated)


def _checked(height: npt.ArrayLike, error: npt.ArrayLike, mask: npt.ArrayLike | None) -> _Frame:
    image = np.ascontiguousarray(height, dtype=np.float32)
    if image.ndim != 2:
        raise InputError("height", f"{image.ndim} dimensions", "a frame (y, x)")
    sigma = np.ascontiguousarray(error, dtype=np.float32)
    bad = np.zeros(image.shape, dtype=bool) if mask is None else np.ascontiguousarray(mask, dtype=bool)
    for name, one in (("error", sigma), ("mask", bad)):
        if one.shape != image.shape:
            raise InputError(name, f"shape {one.shape}", f"that of the frame, {image.shape}")
    return _Frame(image, sigma, bad)


def _cut(frame: _Frame, traces: Traces, first_row: Int) -> _Windows:
    n, m = traces.column.shape
    size = (n, m, 2 * HALF_ROWS + 1)
    data, sigma, bad = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, bool)
    column = np.ascontiguousarray(traces.column[:, 0])
    for source, out, fill in ((frame.height, data, 0.0), (frame.error, sigma, -1.0), (frame.mask, bad, 1.0)):
        cut(source, column, first_row, fill, out)
    usable = ~bad & np.isfinite(data) & np.isfinite(sigma) & (sigma > 0)
    data[~usable] = 0.0
    sigma[~usable] = 1.0
    return _Windows(data, sigma * sigma, usable, first_row)


@dataclass(frozen=True)
class _Shape:
    """The profile in the windows of all stars."""

    distance: Float
    """(star, column) Of row 0 of the windows from the trace [pixel]."""
    pixels: Single
    """(star, column, row)"""


def _shape_of(traces: Traces, profile: CrossProfile, offset: Float) -> _Shape:
    distance = _first_rows(traces) - traces.row - offset[:, None]
    return _Shape(distance, profile.pixels(-distance, traces.wavelength, 2 * HALF_ROWS + 1))


def _first_rows(traces: Traces) -> Int:
    """Return the first rows of the windows; the offset of the traces does not move them."""
    return np.floor(traces.row + 0.5).astype(np.int64) - HALF_ROWS


def _extract(
    frame: _Frame,
    traces: Traces,
    shape: _Shape,
    others: Single | None,
    expected: Float,
    poisson: float,
    *,
    reject: bool,
    light: Float | None = None,
    rejected: Bool | None = None,
    contaminated: Float | None = None,
) -> _Extracted:
    """Extract all spectra, some at a time; mark rejected pixels in the frame and return contaminated shares."""
    n, m = traces.column.shape
    out = _Extracted(
        np.full((n, m), np.nan), np.full((n, m), np.inf), np.zeros((n, m)), np.zeros((n, m), np.int64), np.zeros(n),
        np.zeros((n, m)), np.zeros((0, 0, 0), bool),
    )  # fmt: skip
    first_rows = _first_rows(traces)
    for start in range(0, n, _BATCH):
        part = slice(start, start + _BATCH)
        some = traces.take(part)
        windows = _cut(frame, some, first_rows[part])
        distance, pixels = shape.distance[part], shape.pixels[part]
        foreign = np.zeros_like(windows.data)
        usable = windows.usable
        if others is not None and light is not None:
            foreign, bad = _foreign_light(others, some, windows, pixels, light[part])
            if contaminated is not None:
                contaminated[part] = _share(
                    pixels, bad & usable & some.inside[..., None], usable & some.inside[..., None]
                )
            usable = usable & ~bad
        marked = np.zeros(windows.usable.shape, dtype=bool)
        extract_stars(
            windows.data - foreign, windows.squared, usable, pixels, distance, foreign, CONTAMINATION_ERROR,
            expected[part], poisson, reject, True, out.counts[part], out.sigma[part], out.background[part],
            out.flag[part], out.chi2[part], out.smooth[part], marked,
        )  # fmt: skip
        if others is not None and light is not None:
            hit = (bad & windows.usable & (pixels > 0.02)).any(axis=2)
            out.flag[part][hit] |= int(SpectrumFlag.CONTAMINATED)
            marked |= (
                bad & windows.usable & (np.abs(distance[..., None] + np.arange(pixels.shape[2])) < BACKGROUND_FROM)
            )
        if rejected is not None:
            i, j, k = np.nonzero(marked & some.inside[..., None])
            rejected[windows.first_row[i, j] + k, some.column[i, j]] = True
    return out


def _foreign_light(
    others: Single, traces: Traces, windows: _Windows, shape: Single, light: Float
) -> tuple[Single, Bool]:
    """Return the light of other stars in windows [e-], and where it is too much."""
    foreign = np.empty_like(windows.data)
    cut(others, np.ascontiguousarray(traces.column[:, 0]), windows.first_row, 0.0, foreign)
    own = (np.maximum(light, 0.0)[..., None] * shape).astype(np.float32)
    unknown = ~np.isfinite(foreign)
    foreign = np.where(unknown, 0.0, np.maximum(foreign - own, 0.0)).astype(np.float32)
    foreign[foreign < 1e-5 * own] = 0.0  # rounding of the sum
    bad = (foreign > CONTAMINATION_LIMIT * own) & (foreign**2 > CONTAMINATION_SIGMA**2 * windows.squared)
    foreign[bad] = 0.0
    return foreign, bad | unknown


def _share(shape: Single, bad: Bool, usable: Bool) -> Float:
    """Return the share of the profiles that is bad."""
    total = (shape * usable).sum(axis=(1, 2), dtype=np.float64)
    return np.asarray((shape * bad).sum(axis=(1, 2), dtype=np.float64) / np.maximum(total, 1e-30))


@dataclass(frozen=True)
class _Spots:
    """Zeroth orders."""

    x: Float
    y: Float
    counts: Float
    """[e-]; NaN = unknown."""
    wavelength: float


def _zeroth_orders(zeroth: Dispersion | None, predicted: PredictedLight | None, x: Float, y: Float) -> _Spots | None:
    if zeroth is None:
        return None
    middle = float(np.mean(zeroth.limits))
    at_x, at_y = zeroth.position(x, y, middle)
    counts = np.full(len(x), np.nan)
    if predicted is not None and predicted.zeroth_sensitivity is not None:
        counts = predicted.zeroth_counts((0.9 * zeroth.limits[0], 1.1 * zeroth.limits[1]))
    return _Spots(at_x, at_y, counts, middle)


def _light_of_all(
    frame: _Frame, traces: Traces, profile: CrossProfile, shape: _Shape, light: Float, spots: _Spots | None
) -> Single:
    """Return the predicted light of all stars on the frame [e-]; NaN round zeroth orders of unknown brightness."""
    total = np.zeros(frame.height.shape, dtype=np.float32)
    counts = np.where(np.isfinite(light), light, 0.0)
    add_light(total, np.ascontiguousarray(traces.column[:, 0]), _first_rows(traces), counts, shape.pixels)
    if spots is not None:
        _add_spots(total, profile, spots)
    return total


def _add_spots(total: Single, profile: CrossProfile, spots: _Spots) -> None:
    """Add zeroth orders: round images with the widths of the profile."""
    ny, nx = total.shape
    reach = HALF_ROWS
    near = (spots.x > -reach) & (spots.x < nx + reach) & (spots.y > -reach) & (spots.y < ny + reach)
    parts = [
        (share, replace(profile, core=width, wing=width, share=0.5))
        for share, width in ((1 - profile.share, profile.core), (profile.share, profile.wing))
    ]
    for i in np.flatnonzero(near):
        left, bottom = round(float(spots.x[i])) - reach, round(float(spots.y[i])) - reach
        rows, columns = np.arange(bottom, bottom + 2 * reach + 1), np.arange(left, left + 2 * reach + 1)
        if np.isfinite(spots.counts[i]):
            image = spots.counts[i] * sum(
                share * np.outer(
                    one.pixels(spots.y[i] - bottom, spots.wavelength, len(rows)),
                    one.pixels(spots.x[i] - left, spots.wavelength, len(columns)),
                )
                for share, one in parts
            )  # fmt: skip
        else:
            far = np.hypot(rows[:, None] - spots.y[i], columns[None, :] - spots.x[i]) > _ZEROTH_RADIUS
            image = np.where(far, 0.0, np.nan)
        on_y, on_x = (rows >= 0) & (rows < ny), (columns >= 0) & (columns < nx)
        total[np.ix_(rows[on_y], columns[on_x])] += np.asarray(image, dtype=np.float32)[np.ix_(on_y, on_x)]


def _fit_shape(
    frame: _Frame,
    traces: Traces,
    start: CrossProfile,
    first: _Extracted,
    others: Single,
    light: Float,
    x: Float,
    y: Float,
) -> tuple[CrossProfile, Float, int]:
    """Fit profile and offset of the traces to bright isolated stars; return them and the number of stars."""
    none = np.zeros(len(x))
    with np.errstate(invalid="ignore"):
        ratio = np.where(traces.inside & np.isfinite(first.counts), first.counts / first.sigma, np.nan)
    snr = np.where(np.isfinite(ratio).sum(axis=1) > 20, np.nan_to_num(nan_median(ratio, axis=1)), 0.0)
    bright = np.flatnonzero(snr > _BRIGHT)
    bright = bright[np.argsort(-snr[bright], kind="stable")][: 4 * _PROFILE_STARS]
    if not len(bright):
        return start, none, 0
    some = traces.take(bright)
    windows = _cut(frame, some, _first_rows(some))
    offset = _centroid(windows, some, start)
    distance = windows.first_row - some.row
    shape = start.pixels(-distance, some.wavelength, windows.data.shape[2])
    foreign, bad = _foreign_light(others, some, windows, shape, light[bright])
    core = np.abs(distance[..., None] + np.arange(shape.shape[2])) < BACKGROUND_FROM
    alone = some.inside & ~(bad & core).any(axis=2) & np.isfinite(first.counts[bright])
    kept = np.flatnonzero(alone.sum(axis=1) >= _ISOLATED_COLUMNS)[:_PROFILE_STARS]
    if not len(kept):
        return start, none, 0
    bright, some, distance, alone = bright[kept], some.take(kept), distance[kept], alone[kept]
    clean = (windows.usable & ~bad)[kept]
    windows = _Windows(windows.data[kept] - foreign[kept], windows.squared[kept], clean, windows.first_row[kept])
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
    coefficients, _ = robust_polynomial(terms[bright], steps, spread**2 + 0.01**2)
    if plane:  # another profile fit with the field's slope taken out
        moved = (terms @ coefficients)[bright][i]
        profile, extra = fit_profile(
            windows.data[i, j], variance[i, j], -distance[i, j] + total + moved, some.wavelength[i, j], profile
        )
        total += extra
    return profile, total + terms @ coefficients, len(bright)


def _centroid(windows: _Windows, traces: Traces, profile: CrossProfile) -> float:
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
    windows: _Windows, alone: Bool, traces: Traces, profile: CrossProfile, offset: float
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
            (value,), _ = robust_polynomial(np.ones((int(have.sum()), 1)), one[have], 1 / power[index][have])
            found[index], spread[index] = value, power[index][have].sum() ** -0.5
    return found, spread


def _unit_positions(frame: _Frame, x: Float, y: Float) -> tuple[Float, Float]:
    ny, nx = frame.height.shape
    u, v = unit_coordinate(x, nx), unit_coordinate(y, ny)
    return np.nan_to_num(u), np.nan_to_num(v)


def _scaled(expected: Float, first: _Extracted) -> Float:
    """Return expected counts scaled to the first extraction, star by star."""
    usable = np.isfinite(expected) & np.isfinite(first.counts)
    power = np.where(usable, 1 / np.where(usable, first.sigma, 1.0) ** 2, 0.0)
    top = (power * np.where(usable, expected * first.counts, 0.0)).sum(axis=1)
    bottom = (power * np.where(usable, expected, 0.0) ** 2).sum(axis=1)
    factor = np.where(bottom > 0, top / np.maximum(bottom, 1e-300), 1.0)
    return expected * np.clip(factor, 0.0, None)[:, None]


def _poisson_factor(frame: _Frame, traces: Traces, at: _Shape, first: _Extracted) -> float:
    """Return the variance per count by which the errors given grow with the light: 1 for electrons."""
    peak = np.where(traces.inside, first.smooth, 0.0).max(axis=1)
    chosen = np.argsort(-peak, kind="stable")[:_PROFILE_STARS]
    chosen = chosen[peak[chosen] > 0]
    if not len(chosen):
        return 1.0
    some = traces.take(chosen)
    windows = _cut(frame, some, _first_rows(some))
    distance, shape = at.distance[chosen], at.pixels[chosen]
    far = np.abs(distance[..., None] + np.arange(shape.shape[2])) >= BACKGROUND_FROM
    floor = nan_median(np.where(far & windows.usable, windows.squared, np.nan), axis=(1, 2))
    light = first.smooth[chosen][..., None] * shape
    use = windows.usable & (light > floor[:, None, None]) & ~far
    if use.sum() < 30:
        return 1.0
    excess = (windows.squared - floor[:, None, None])[use]
    return float(max(0.0, np.median(excess / light[use])))


def _assemble(
    dispersion: Dispersion,
    predicted: PredictedLight | None,
    traces: Traces,
    final: _Extracted,
    x: Float,
    y: Float,
    offset: Float,
    profile: CrossProfile,
    n_used: int,
    rejected: Bool,
    contaminated: Float,
) -> FrameSpectra:
    """Fit the shifts and return the spectra."""
    n = len(x)
    counts = np.where(traces.inside, final.counts, np.nan)
    sigma = np.where(traces.inside, final.sigma, np.inf)
    flag = np.where(traces.inside, final.flag, int(SpectrumFlag.NO_DATA))
    shift, shift_sigma = np.zeros(n), np.full(n, np.inf)
    measured, measured_sigma = np.full(n, np.nan), np.full(n, np.inf)
    wavelength, per_pixel = traces.wavelength, traces.angstrom_per_pixel
    known_x, known_y = (np.nan_to_num(one)[:, None] for one in (x, y))
    if predicted is not None and n:
        clean = np.where(flag & ~int(SpectrumFlag.REJECTED), np.nan, counts)

        def moved(by: Float) -> Float:
            at = traces.wavelength - by[:, None] * _signed(dispersion, known_x, known_y, traces)
            return predicted.counts(at, traces.angstrom_per_pixel)

        u = 2 * (known_x[:, 0] + 0.5) / rejected.shape[1] - 1
        v = 2 * (known_y[:, 0] + 0.5) / rejected.shape[0] - 1
        shifts = fit_shifts(clean, sigma, moved, u, v)
        shift, shift_sigma, measured, measured_sigma = (
            shifts.shift,
            shifts.sigma,
            shifts.measured,
            shifts.measured_sigma,
        )
        wavelength = dispersion.wavelength(known_x, known_y, traces.column - shift[:, None])
        per_pixel = np.abs(dispersion.angstrom_per_pixel(known_x, known_y, wavelength))
        far = traces.column[:, :1] < -100_000
        wavelength = np.where(far, traces.wavelength, wavelength)
        per_pixel = np.where(far, traces.angstrom_per_pixel, per_pixel)
    usable = np.isfinite(counts)
    ratio = np.where(usable, counts / sigma, np.nan)
    snr = nan_median(ratio, axis=1)
    coverage = usable.sum(axis=1) / np.maximum(traces.inside.sum(axis=1), 1)
    background = np.where(usable, final.background, np.nan)
    chi2 = np.where(usable.any(axis=1), final.chi2, np.nan)
    return FrameSpectra(
        traces.column, traces.row + offset[:, None], wavelength, per_pixel, counts, sigma, background, flag, shift,
        shift_sigma, measured, measured_sigma, np.array(offset), chi2, contaminated, coverage, snr, rejected, profile,
        n_used,
    )  # fmt: skip


def _signed(dispersion: Dispersion, x: Float, y: Float, traces: Traces) -> Float:
    """Return d(wavelength)/dx with its sign [Angstrom/pixel]."""
    return dispersion.angstrom_per_pixel(x, y, traces.wavelength)
