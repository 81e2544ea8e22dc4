"""One spectrum from a rectified two-dimensional one: box sums, or optimal weights (Horne 1986, PASP 98, 609).

For the spectra of all stars of a frame see `csstdask.flux.extract_frame`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from csstdask.arrays.adapter import adapt, convert_column, namespace_of_adapter
from csstdask.arrays.namespace import ArrayAdapter, to_host
from csstdask.core.errors import InputError
from csstdask.flux.spectrum_flag import MIN_PROFILE_FRACTION, PARTIAL_PROFILE_FRACTION, SpectrumFlag
from csstdask.numerics.polynomials import legendre_values
from csstdask.numerics.robust import huber_weights, mad_scale, nan_median

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
Method = Literal["optimal", "box"]

BACKGROUND_REACH = 8
"""Columns on each side that take part in the background of a column."""
WINGS = 2.0
"""Distance from the box from which rows are free of the star, where the stamp is high enough [pixel]."""
_CLEAR_ROWS = 6
OUTLIER_SIGMA = 5.0
"""Residual from which a pixel is an outlier [sigma]."""
PROFILE_ERROR = 0.05
"""Relative error of a profile's pixels that is allowed for when outliers are sought."""
_MOST_OUTLIERS = 4
_STEPS = 4
_MOST_COEFFICIENTS = 150
"""Of the profile."""
_PROFILE_DEGREES = (0, 1, 2, 4, 6, 8, 10)
"""Degrees along x of the change of the profile; the one of the best Bayesian information criterion is taken."""


@dataclass(frozen=True)
class Spectrum:
    """An extracted spectrum, in the unit of the stamp and the caller's kind of array."""

    counts: Any
    """(x,) Light within the half width; NaN without a usable pixel."""
    sigma: Any
    """(x,) 1 sigma, with that of the background; inf without a usable pixel."""
    background: Any
    """(x,) Background at the trace, per pixel."""
    flag: Any
    """(x,) `SpectrumFlag`."""


def extract_spectrum(
    stamp: Any,
    error: Any = None,
    mask: Any = None,
    *,
    center: Any,
    method: Method = "optimal",
    half_width: float = 4.5,
    background: bool = True,
) -> Spectrum:
    """Extract a spectrum from a rectified stamp: signal along x, trace at row `center`.

    Parameters
    ----------
    stamp : array-like (y, x)
        NumPy, torch or CuPy; the result is of the same kind.
    error : array-like (y, x), optional
        1 sigma, Poisson noise included. By default a constant noise and one that grows with the light are estimated
        from the residuals.
    mask : array-like of bool (y, x), optional
        True = ignore. Pixels that are not finite are ignored, too.
    center : float or array-like (x,)
        Row of the trace, zero-based; pixel r covers r - 0.5 to r + 0.5.
    method : "optimal" or "box"
        "box" sums the rows within `half_width`, with fractions of the rows at its edges; ignored pixels are replaced
        by the profile. "optimal" weighs pixels by profile over variance and rejects outliers. The profile is normalised
        within the half width, so that both methods measure the same light.
    half_width : float
        [pixel]
    background : bool
        Whether to fit and subtract a background, linear in y, from the rows beyond the half width: robustly, in each
        column together with its eight neighbours on each side.

    Returns
    -------
    Spectrum

    Raises
    ------
    InputError
        If the method is unknown, the half width is not positive, or the centre has another length or is off the stamp.
    ValueError, TypeError
        If arrays do not fit together (`csstdask.arrays.adapter.adapt`).

    Examples
    --------
    >>> rows = np.arange(15.0)[:, None]
    >>> stamp = 100 * np.exp(-0.5 * (rows - 7) ** 2) / np.sqrt(2 * np.pi) * np.ones(50) + 3
    >>> spectrum = extract_spectrum(stamp, np.ones_like(stamp), center=7.0)
    >>> float(spectrum.counts[20].round(2)), float(spectrum.background[20].round(2))
    (100.0, 3.0)
    """
    if method not in ("optimal", "box"):
        raise InputError("method", repr(method), "'optimal' or 'box'")
    if not half_width > 0:
        raise InputError("half_width", f"{half_width}", "a positive number of pixels")
    given = adapt(stamp, error, mask)
    data = np.asarray(to_host(given.data), dtype=np.float64)
    usable = ~np.asarray(to_host(given.ignore), dtype=bool)
    middle = _centers(center, data.shape, half_width)
    squared = None
    if given.error is not None:
        sigma = np.asarray(to_host(given.error), dtype=np.float64)
        usable &= np.isfinite(sigma) & (sigma > 0)
        squared = np.where(usable, sigma, 1.0) ** 2
    data = np.where(usable, data, 0.0)
    rows = np.arange(data.shape[0])[:, None]
    distance = rows - middle
    found = _extract(
        data, squared, usable, distance, half_width, optimal=method == "optimal", with_background=background
    )
    return Spectrum(*(_to_caller(given.adapter, one) for one in found))


def _centers(center: Any, shape: tuple[int, ...], half_width: float) -> Float:
    """Return the row of the trace in every column."""
    middle = convert_column(np.atleast_1d(center) if np.isscalar(center) else center, "center")
    if middle.size == 1:
        middle = np.full(shape[1], float(middle.reshape(-1)[0]))
    if middle.shape != (shape[1],):
        raise InputError("center", f"shape {middle.shape}", f"one row, or one per column ({shape[1]})")
    if not np.all(np.isfinite(middle)):
        raise InputError("center", f"{np.count_nonzero(~np.isfinite(middle))} values that are not finite", "rows")
    if np.any(middle < -0.5 - half_width) or np.any(middle > shape[0] - 0.5 + half_width):
        found = f"rows {middle.min():g} to {middle.max():g}"
        raise InputError("center", found, f"rows of the stamp, 0 to {shape[0] - 1}")
    return middle


def _extract(
    data: Float,
    squared: Float | None,
    usable: Bool,
    distance: Float,
    half_width: float,
    *,
    optimal: bool,
    with_background: bool,
) -> tuple[Float, Float, Float, npt.NDArray[np.int64]]:
    """Return counts, sigma, background and flags."""
    flag = np.zeros(data.shape[1], dtype=np.int64)
    box = np.clip(np.minimum(distance + 0.5, half_width) - np.maximum(distance - 0.5, -half_width), 0.0, 1.0)
    inner = box > 0
    outer = ~inner & usable
    variance = np.full(data.shape, _scatter(data, outer, usable) ** 2) if squared is None else squared
    level, slope, level_variance = np.zeros((3, data.shape[1]))
    if with_background:
        clear = outer & (np.abs(distance) >= half_width + WINGS)
        clear = clear if clear.any(axis=1).sum() >= _CLEAR_ROWS else outer
        level, slope, level_variance, fitted = _background(data, variance, clear, distance)
        flag[~fitted] |= int(SpectrumFlag.NO_BACKGROUND)
    rest = data - level - slope * distance
    good = usable & inner
    counts = np.where(usable, box * rest, 0.0).sum(axis=0)
    profile = np.zeros(data.shape)
    for _ in range(_STEPS):
        smooth = _smooth(counts)
        profile = _profile(rest, variance, good, smooth, distance, box)
        model = smooth * profile
        if squared is None:
            variance = _estimated_variance(rest, model, outer, good)
        else:
            variance = _smooth_variance(squared, model, outer, inner & usable)
        good, unreliable = _without_outliers(rest, variance, profile, smooth, usable & inner)
        counts = _weighted(rest, variance, profile, good)[0]
    rejected = (usable & inner & ~good).any(axis=0)
    share = (np.where(good, box * profile, 0.0)).sum(axis=0)
    best, best_variance, spread = _weighted(rest, variance, profile, good)
    if optimal:
        total_variance = best_variance + spread**2 * level_variance
    else:
        filled = np.where(good, rest, best * profile)
        lost_share = np.where(good, 0.0, box * profile).sum(axis=0)
        # the fill depends on the same pixels: twice their covariance
        of_filled = (lost_share**2 + 2 * lost_share * share) * np.where(np.isfinite(best_variance), best_variance, 0.0)
        best = (box * filled).sum(axis=0)
        area = box.sum(axis=0)
        total_variance = np.where(good, box**2 * variance, 0.0).sum(axis=0) + of_filled + area**2 * level_variance
    flag[rejected] |= int(SpectrumFlag.REJECTED)
    flag[unreliable] |= int(SpectrumFlag.UNRELIABLE)
    flag[share < PARTIAL_PROFILE_FRACTION] |= int(SpectrumFlag.PARTIAL)
    lost = (share < MIN_PROFILE_FRACTION) | ~np.isfinite(best)
    flag[lost] |= int(SpectrumFlag.NO_DATA)
    total_variance[unreliable] *= _misfit(rest, variance, best, profile, good)[unreliable]
    sigma = np.sqrt(np.where(lost, np.inf, total_variance))
    best = np.where(lost, np.nan, best)
    with np.errstate(invalid="ignore"):
        flag[best < -3 * sigma] |= int(SpectrumFlag.NEGATIVE)
    return best, sigma, np.where(lost, np.nan, level), flag


def _scatter(data: Float, outer: Bool, usable: Bool) -> float:
    """Return the noise by differences of neighbouring columns, in the rows beyond the box if there are any."""
    pairs = usable[:, 1:] & usable[:, :-1]
    if outer.sum() > 8:
        pairs = outer[:, 1:] & outer[:, :-1]
    scale = float(mad_scale(np.where(pairs, np.diff(data, axis=1), np.nan), center=0.0)) / np.sqrt(2)
    return scale if scale > 0 else max(1e-3 * float(np.abs(data).max(initial=0.0)), 1e-30)


def _background(data: Float, variance: Float, outer: Bool, distance: Float) -> tuple[Float, Float, Float, Bool]:
    """Fit level + slope * distance to the rows beyond the box of each column and its neighbours.

    Returns
    -------
    level, slope, variance of the level, and whether there was enough to fit.
    """
    n = data.shape[1]
    typical = float(np.median(variance[outer])) if outer.any() else 1.0
    # weights that follow the noise of single pixels would bias the mean
    variance = np.where((variance > 0.5 * typical) & (variance < 2 * typical), typical, variance)
    weight = np.where(outer, 1 / variance, 0.0)
    level, slope = np.zeros(n), np.zeros(n)
    scatter = 1.0
    robust = weight
    for step in range(6):
        sums = [_window(np.sum(robust * distance**k, axis=0)) for k in range(3)]
        tops = [_window(np.sum(robust * data * distance**k, axis=0)) for k in range(2)]
        determinant = sums[0] * sums[2] - sums[1] ** 2
        two_sided = determinant > 1e-6 * sums[0] * sums[2]
        safe = np.where(two_sided, determinant, 1.0)
        fitted = sums[0] > 0
        mean = np.where(fitted, tops[0] / np.where(fitted, sums[0], 1.0), 0.0)
        level = np.where(two_sided, (tops[0] * sums[2] - tops[1] * sums[1]) / safe, mean)
        slope = np.where(two_sided, (sums[0] * tops[1] - sums[1] * tops[0]) / safe, 0.0)
        level_variance = np.where(two_sided, sums[2] / safe, 1 / np.where(fitted, sums[0], np.inf))
        z = (data - level - slope * distance) / np.sqrt(variance)
        scatter = float(mad_scale(np.where(outer, z, np.nan), center=0.0, floor=1.0 if step else 0.0) or 1.0)
        robust = weight * np.where(np.abs(z) < 5 * scatter, huber_weights(z / scatter), 0.0)
    return level, slope, level_variance * max(scatter, 1.0) ** 2, fitted


def _window(values: Float) -> Float:
    """Return running sums over a column and its neighbours."""
    return np.convolve(values, np.ones(2 * BACKGROUND_REACH + 1), mode="full")[BACKGROUND_REACH:-BACKGROUND_REACH]


def _smooth(counts: Float, reach: int = 3) -> Float:
    """Return a running median, not negative."""
    padded = np.pad(np.where(np.isfinite(counts), counts, np.nan), reach, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    return np.maximum(np.nan_to_num(nan_median(windows, axis=1)), 0.0)


def _profile(rest: Float, variance: Float, good: Bool, counts: Float, distance: Float, box: Float) -> Float:
    """Fit the profile: cubic B-splines of the distance from the trace, whose coefficients change slowly along x.

    Normalised to sum(box * profile) = 1 in each column.
    """
    from scipy.interpolate import BSpline  # noqa: PLC0415  slow to import

    inner = box > 0
    low, high = float(distance[inner].min()), float(distance[inner].max())
    spacing = 1.0 if float(np.ptp(distance[0])) < 0.25 else 0.5
    n_pieces = max(int(np.ceil((high - low) / spacing)), 1)
    knots = low + spacing * np.arange(-3, n_pieces + 4)
    n_columns = rest.shape[1]
    t = np.linspace(-1, 1, n_columns) if n_columns > 1 else np.zeros(1)
    splines = BSpline.design_matrix(np.clip(distance[inner], low, high), knots, 3, extrapolate=True).toarray()
    column = np.nonzero(inner)[1]
    weight, light, target = np.where(good, 1 / variance, 0.0)[inner], counts[column], rest[inner]
    bends = np.diff(np.eye(splines.shape[1]), 2, axis=0)
    shape, worse = np.zeros(len(target)), 0
    best = np.inf
    for degree in _PROFILE_DEGREES:
        n_coefficients = splines.shape[1] * (degree + 1)
        if degree and (degree * 10 > n_columns or n_coefficients > _MOST_COEFFICIENTS or worse > 1):
            break
        along = legendre_values(t, degree)[column]
        design = (splines[:, :, None] * along[:, None, :]).reshape(len(target), -1)
        fitted, misfit = _robust_fit(
            design * light[:, None], target, weight, np.kron(bends.T @ bends, np.eye(degree + 1))
        )
        n_used = int(np.count_nonzero(weight))
        criterion = n_used * math.log(max(misfit, 1e-300)) + design.shape[1] * math.log(max(n_used, 1))
        worse = 0 if criterion < best else worse + 1
        if criterion < best:
            shape, best = design @ fitted, criterion
    profile = np.zeros(rest.shape)
    profile[inner] = np.maximum(shape, 0.0)
    total = (box * profile).sum(axis=0)
    uniform = box / np.maximum(box.sum(axis=0) * 1.0, 1e-30)
    uniform_total = (box * uniform).sum(axis=0)
    return np.where(
        total > 1e-3, profile / np.where(total > 1e-3, total, 1.0), uniform / np.maximum(uniform_total, 1e-30)
    )


def _robust_fit(basis: Float, target: Float, weight: Float, penalty: Any) -> tuple[Float, float]:
    """Return coefficients of a weak-ridge fit with Huber weights, and the mean of Huber's function of its residuals."""
    robust = np.ones(len(target))
    coefficients, misfit = np.zeros(basis.shape[1]), np.inf
    for _ in range(3):
        normal = (basis * (weight * robust)[:, None]).T @ basis
        size = np.trace(normal) / len(normal)
        if not size > 0:
            break
        normal = normal + size * (1e-6 * penalty + 1e-9 * np.eye(len(normal)))
        coefficients = np.linalg.solve(normal, basis.T @ (weight * robust * target))
        z = np.abs(target - basis @ coefficients) * np.sqrt(weight)
        scale = float(mad_scale(np.where(weight > 0, z, np.nan), center=0.0, floor=1e-30))
        robust = huber_weights(z / scale, 2.0)
        misfit = float(np.sum(robust * z**2) / max(np.count_nonzero(weight), 1))
    return coefficients, misfit


def _estimated_variance(rest: Float, model: Float, outer: Bool, inner: Bool) -> Float:
    """Return constant noise plus noise that grows with the light, from the residuals."""
    constant = _scatter(rest, outer, outer | inner) ** 2
    bright = inner & (model > 3 * np.sqrt(constant))
    factor = 0.0
    if bright.sum() > 20:
        scaled = (rest - model)[bright] / np.sqrt(model[bright])
        factor = max(0.0, float(mad_scale(scaled, center=0.0)) ** 2 - constant / float(np.median(model[bright])))
    return np.asarray(constant + factor * model)


def _smooth_variance(squared: Float, model: Float, outer: Bool, inner: Bool) -> Float:
    """Return the given variances with the noise of the star's own light smoothed, which would bias the weights."""
    dark = outer if outer.sum() > 8 else inner & (model <= np.quantile(model[inner], 0.2) if inner.any() else inner)
    if not dark.any():
        return squared
    floor = float(np.median(squared[dark]))
    bright = inner & (model > floor**0.5) & (model > 0)
    factor = 0.0
    if bright.sum() > 20:
        factor = max(0.0, float(np.median((squared[bright] - floor) / model[bright])))
    smooth = floor + factor * model
    return np.where((squared > 2 * smooth) | (squared < 0.5 * smooth), squared, smooth)


def _without_outliers(
    rest: Float, variance: Float, profile: Float, smooth: Float, usable: Bool
) -> tuple[Bool, npt.NDArray[np.int64]]:
    """Reject the worst pixel of each column while it is an outlier; return usable pixels, and columns left alone."""
    good = usable.copy()
    allowed = np.sqrt(variance + (PROFILE_ERROR * smooth * profile) ** 2)
    start = np.where(usable, profile, 0.0).sum(axis=0)
    counts = _weighted(rest, variance, profile, good)[0]
    z = np.abs(rest - counts * profile) / allowed
    scale = float(mad_scale(np.where(good, z, np.nan), center=0.0, floor=1.0))
    columns = np.arange(rest.shape[1])
    given_up = np.zeros(rest.shape[1], dtype=bool)
    for step in range(_MOST_OUTLIERS + 1):
        z = np.where(good, np.abs(rest - counts * profile) / allowed, 0.0)
        worst = np.argmax(z, axis=0)
        hit = (z[worst, columns] > OUTLIER_SIGMA * scale) & ~given_up
        if not hit.any():
            break
        kept = np.where(good, profile, 0.0).sum(axis=0) - profile[worst, columns]
        lost = hit & ((kept < 0.5 * start) | (step == _MOST_OUTLIERS))
        given_up |= lost
        good[:, lost] = usable[:, lost]
        take = hit & ~lost
        good[worst[take], columns[take]] = False
        counts = _weighted(rest, variance, profile, good)[0]
    return good, np.flatnonzero(given_up)


def _misfit(rest: Float, variance: Float, counts: Float, profile: Float, good: Bool) -> Float:
    """Return chi2 per degree of freedom of each column, at least 1."""
    chi2 = np.where(good, (rest - np.nan_to_num(counts) * profile) ** 2 / variance, 0.0).sum(axis=0)
    return np.maximum(1.0, chi2 / np.maximum(good.sum(axis=0) - 1, 1))


def _weighted(rest: Float, variance: Float, profile: Float, good: Bool) -> tuple[Float, Float, Float]:
    """Return optimal counts, their variance, and by how much an error of the background enters."""
    weight = np.where(good, profile / variance, 0.0)
    power = (weight * profile).sum(axis=0)
    safe = np.where(power > 0, power, 1.0)
    counts = np.where(power > 0, (weight * rest).sum(axis=0) / safe, np.nan)
    return counts, np.where(power > 0, 1 / safe, np.inf), weight.sum(axis=0) / safe


def _to_caller(adapter: ArrayAdapter, values: npt.NDArray[Any]) -> Any:
    """Return an array as the caller's kind; floats have the caller's type."""
    if values.dtype.kind == "f":
        values = values.astype(adapter.dtype)
    return adapter.to_caller(namespace_of_adapter(adapter).asarray(values))
