"""Extract one spectrum from a rectified stamp: box sums, or optimal weights (Horne 1986, PASP 98, 609).

For the spectra of all stars of a frame see `csstdask.flux.extract_frame`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from csstdask.arrays.adapter import InputArrays, adapt, convert_column, namespace_of_adapter
from csstdask.arrays.namespace import ArrayAdapter, to_host
from csstdask.core.errors import InputError
from csstdask.flux.spectrum_flag import MIN_PROFILE_FRACTION, PARTIAL_PROFILE_FRACTION, SpectrumFlag
from csstdask.flux.stamp_noise import difference_noise, estimate_variance, fit_background, smooth_variance
from csstdask.flux.stamp_profile import fit_stamp_profile, smooth_counts
from csstdask.numerics.robust import mad_scale

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
Int = npt.NDArray[np.int64]
Method = Literal["optimal", "box"]

OUTLIER_SIGMA = 5.0
"""Residual above which a pixel is an outlier [sigma]."""
PROFILE_ERROR = 0.05
"""Relative error of the profile that is allowed for when outliers are searched."""
_MAX_OUTLIERS = 4
"""Largest number of pixels rejected in one column."""
_MIN_KEPT_SHARE = 0.5
"""Share of a column's usable profile that rejection must leave."""
_WING_ROWS = 2.0
"""Distance beyond the half width where the star's wings end, if the stamp is high enough [pixel]."""
_MIN_CLEAR_ROWS = 6
"""Rows without the star's wings from which the background is fitted to them alone."""
_ITERATIONS = 4
"""Iterations of profile, variances and outliers."""


@dataclass(frozen=True)
class Spectrum:
    """An extracted spectrum, in the unit of the stamp and as the caller's kind of array."""

    counts: Any
    """(x,) Counts within the half width; NaN without a usable pixel."""
    sigma: Any
    """(x,) 1 sigma, the error of the background included; inf without a usable pixel."""
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
        Pixels as NumPy, torch or CuPy array; the result is of the same kind.
    error : array-like (y, x), optional
        1 sigma, Poisson noise included. By default a constant noise, and one that grows with the light, are estimated
        from the residuals.
    mask : array-like of bool (y, x), optional
        True = ignore. Pixels that are not finite are ignored as well.
    center : float or array-like (x,)
        Row of the trace, zero-based; pixel r covers r - 0.5 to r + 0.5.
    method : "optimal" or "box"
        "box" sums the rows within `half_width`, with fractions of the rows at its edges; ignored pixels are filled in
        from the profile. "optimal" weights pixels by profile over variance and rejects outliers. The profile is
        normalised within the half width, so that both methods measure the same counts.
    half_width : float
        Half width of the extracted rows [pixel].
    background : bool
        Whether to subtract a background that is linear in y, fitted robustly to the rows beyond the half width in each
        column together with its eight neighbours on each side.

    Returns
    -------
    Spectrum

    Raises
    ------
    InputError
        If the method is unknown, the half width is not positive, or the center has a wrong length or is off the stamp.
    ValueError, TypeError
        If arrays do not match (`csstdask.arrays.adapter.adapt`).

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
    found = _extract(_prepare(given, center, half_width), optimal=method == "optimal", subtract=background)
    return Spectrum(*(_to_caller(given.adapter, one) for one in found))


@dataclass(frozen=True)
class _Stamp:
    """A rectified spectrum as arrays of the host."""

    data: Float
    """(y, x) 0 where unusable."""
    variance: Float | None
    """(y, x) None: to be estimated from the residuals."""
    usable: Bool
    """(y, x)"""
    distance: Float
    """(y, x) Distance from the trace [pixel]."""
    box: Float
    """(y, x) Share of each pixel within the half width."""
    half_width: float

    @property
    def star(self) -> Bool:
        """(y, x) Usable pixels within the half width."""
        return self.usable & (self.box > 0)

    @property
    def background(self) -> Bool:
        """(y, x) Usable pixels beyond the half width."""
        return self.usable & ~(self.box > 0)


def _prepare(given: InputArrays, center: Any, half_width: float) -> _Stamp:
    """Return pixels and geometry of a stamp."""
    data = np.asarray(to_host(given.data), dtype=np.float64)
    usable = ~np.asarray(to_host(given.ignore), dtype=bool)
    distance = np.arange(data.shape[0])[:, None] - _trace_rows(center, data.shape, half_width)
    variance = None
    if given.error is not None:
        sigma = np.asarray(to_host(given.error), dtype=np.float64)
        usable &= np.isfinite(sigma) & (sigma > 0)
        variance = np.where(usable, sigma, 1.0) ** 2
    box = np.clip(np.minimum(distance + 0.5, half_width) - np.maximum(distance - 0.5, -half_width), 0.0, 1.0)
    return _Stamp(np.where(usable, data, 0.0), variance, usable, distance, box, half_width)


def _trace_rows(center: Any, shape: tuple[int, ...], half_width: float) -> Float:
    """Return the row of the trace in every column (x,)."""
    rows = convert_column(np.atleast_1d(center) if np.isscalar(center) else center, "center")
    if rows.size == 1:
        rows = np.full(shape[1], float(rows.reshape(-1)[0]))
    if rows.shape != (shape[1],):
        raise InputError("center", f"shape {rows.shape}", f"one row, or one per column ({shape[1]})")
    if not np.all(np.isfinite(rows)):
        raise InputError("center", f"{np.count_nonzero(~np.isfinite(rows))} values that are not finite", "rows")
    if np.any(rows < -0.5 - half_width) or np.any(rows > shape[0] - 0.5 + half_width):
        found = f"rows {rows.min():g} to {rows.max():g}"
        raise InputError("center", found, f"rows of the stamp, 0 to {shape[0] - 1}")
    return rows


def _extract(stamp: _Stamp, *, optimal: bool, subtract: bool) -> tuple[Float, Float, Float, Int]:
    """Return counts, sigma, background and flags (x,)."""
    flag = np.zeros(stamp.data.shape[1], dtype=np.int64)
    level, slope, level_variance = np.zeros((3, stamp.data.shape[1]))
    if subtract:
        level, slope, level_variance, fitted = _fit_stamp_background(stamp)
        flag[~fitted] |= int(SpectrumFlag.NO_BACKGROUND)
    data = stamp.data - level - slope * stamp.distance
    profile, variance, good, unreliable = _fit_profile_and_outliers(stamp, data)
    share = np.where(good, stamp.box * profile, 0.0).sum(axis=0)
    counts, counts_variance, background_weight = _optimal_counts(data, variance, profile, good)
    if optimal:
        total_variance = counts_variance + background_weight**2 * level_variance
    else:
        counts, total_variance = _box_counts(stamp, data, variance, profile, good, counts, counts_variance)
        total_variance += stamp.box.sum(axis=0) ** 2 * level_variance
    flag[(stamp.star & ~good).any(axis=0)] |= int(SpectrumFlag.REJECTED)
    flag[unreliable] |= int(SpectrumFlag.UNRELIABLE)
    flag[share < PARTIAL_PROFILE_FRACTION] |= int(SpectrumFlag.PARTIAL)
    lost = (share < MIN_PROFILE_FRACTION) | ~np.isfinite(counts)
    flag[lost] |= int(SpectrumFlag.NO_DATA)
    total_variance[unreliable] *= _reduced_chi2(data, variance, counts, profile, good)[unreliable]
    sigma = np.sqrt(np.where(lost, np.inf, total_variance))
    counts = np.where(lost, np.nan, counts)
    with np.errstate(invalid="ignore"):
        flag[counts < -3 * sigma] |= int(SpectrumFlag.NEGATIVE)
    return counts, sigma, np.where(lost, np.nan, level), flag


def _fit_stamp_background(stamp: _Stamp) -> tuple[Float, Float, Float, Bool]:
    """Fit the background to rows without the star's wings where there are enough, else to all rows beyond the box."""
    clear = stamp.background & (np.abs(stamp.distance) >= stamp.half_width + _WING_ROWS)
    rows = clear if clear.any(axis=1).sum() >= _MIN_CLEAR_ROWS else stamp.background
    return fit_background(stamp.data, _first_variance(stamp), rows, stamp.distance)


def _first_variance(stamp: _Stamp) -> Float:
    if stamp.variance is not None:
        return stamp.variance
    return np.full(stamp.data.shape, difference_noise(stamp.data, stamp.background, stamp.usable) ** 2)


def _fit_profile_and_outliers(stamp: _Stamp, data: Float) -> tuple[Float, Float, Bool, Int]:
    """Iterate profile, variances and rejection of outliers.

    Returns
    -------
    profile, variance : float64 arrays (y, x)
        Profile, and variances of the pixels.
    good : bool array (y, x)
        Usable pixels within the half width that were not rejected.
    unreliable : int array
        Columns with too many outliers, whose pixels were all kept.
    """
    good = stamp.star
    counts = np.where(stamp.star, stamp.box * data, 0.0).sum(axis=0)
    profile, variance, unreliable = np.zeros(data.shape), _first_variance(stamp), np.zeros(0, dtype=np.int64)
    for _ in range(_ITERATIONS):
        smooth = smooth_counts(counts)
        profile = fit_stamp_profile(data, variance, good, smooth, stamp.distance, stamp.box)
        model = smooth * profile
        if stamp.variance is None:
            variance = estimate_variance(data, model, stamp.background, good)
        else:
            variance = smooth_variance(stamp.variance, model, stamp.background, stamp.star)
        good, unreliable = _reject_outliers(data, variance, profile, smooth, stamp.star)
        counts = _optimal_counts(data, variance, profile, good)[0]
    return profile, variance, good, unreliable


def _optimal_counts(data: Float, variance: Float, profile: Float, good: Bool) -> tuple[Float, Float, Float]:
    """Return optimal counts, their variance, and their derivative with respect to the background level (x,)."""
    weight = np.where(good, profile / variance, 0.0)
    power = (weight * profile).sum(axis=0)
    safe = np.where(power > 0, power, 1.0)
    counts = np.where(power > 0, (weight * data).sum(axis=0) / safe, np.nan)
    return counts, np.where(power > 0, 1 / safe, np.inf), weight.sum(axis=0) / safe


def _box_counts(
    stamp: _Stamp, data: Float, variance: Float, profile: Float, good: Bool, optimal: Float, optimal_variance: Float
) -> tuple[Float, Float]:
    """Return box sums and their variance, with bad pixels filled in from optimal counts times profile (x,)."""
    box = stamp.box
    counts = (box * np.where(good, data, optimal * profile)).sum(axis=0)
    share = np.where(good, box * profile, 0.0).sum(axis=0)
    filled_share = np.where(good, 0.0, box * profile).sum(axis=0)
    # the fill depends on the same pixels: twice their covariance
    fill_variance = np.where(np.isfinite(optimal_variance), optimal_variance, 0.0)
    fill_variance = (filled_share**2 + 2 * filled_share * share) * fill_variance
    return counts, np.where(good, box**2 * variance, 0.0).sum(axis=0) + fill_variance


def _reject_outliers(data: Float, variance: Float, profile: Float, smooth: Float, usable: Bool) -> tuple[Bool, Int]:
    """Reject the worst pixel of each column while it is an outlier.

    Returns
    -------
    good : bool array (y, x)
        Pixels that are kept.
    unreliable : int array
        Columns that would have lost too much of their profile; all their pixels are kept.
    """
    good = usable.copy()
    allowed = np.sqrt(variance + (PROFILE_ERROR * smooth * profile) ** 2)
    start = np.where(usable, profile, 0.0).sum(axis=0)
    counts = _optimal_counts(data, variance, profile, good)[0]
    z = np.abs(data - counts * profile) / allowed
    scale = float(mad_scale(np.where(good, z, np.nan), center=0.0, floor=1.0))
    columns = np.arange(data.shape[1])
    unreliable = np.zeros(data.shape[1], dtype=bool)
    for step in range(_MAX_OUTLIERS + 1):
        z = np.where(good, np.abs(data - counts * profile) / allowed, 0.0)
        worst = np.argmax(z, axis=0)
        hit = (z[worst, columns] > OUTLIER_SIGMA * scale) & ~unreliable
        if not hit.any():
            break
        kept = np.where(good, profile, 0.0).sum(axis=0) - profile[worst, columns]
        lost = hit & ((kept < _MIN_KEPT_SHARE * start) | (step == _MAX_OUTLIERS))
        unreliable |= lost
        good[:, lost] = usable[:, lost]
        rejected = hit & ~lost
        good[worst[rejected], columns[rejected]] = False
        counts = _optimal_counts(data, variance, profile, good)[0]
    return good, np.flatnonzero(unreliable)


def _reduced_chi2(data: Float, variance: Float, counts: Float, profile: Float, good: Bool) -> Float:
    """Return chi2 per degree of freedom of each column, at least 1."""
    chi2 = np.where(good, (data - np.nan_to_num(counts) * profile) ** 2 / variance, 0.0).sum(axis=0)
    return np.maximum(1.0, chi2 / np.maximum(good.sum(axis=0) - 1, 1))


def _to_caller(adapter: ArrayAdapter, values: npt.NDArray[Any]) -> Any:
    """Return an array as the caller's kind; floats get the caller's type."""
    if values.dtype.kind == "f":
        values = values.astype(adapter.dtype)
    return adapter.to_caller(namespace_of_adapter(adapter).asarray(values))
