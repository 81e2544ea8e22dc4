"""Extract the spectra of all catalogue stars on one slitless frame.

The light of a star in column X of its first order is counts(X) times the profile across the trace
(`csstdask.flux.profile`), on a background that is linear across the trace. Steps:

1. find the traces, and extract once with a nominal profile;
2. fit profile and offset of the traces to bright isolated stars (`csstdask.flux.trace_offset`);
3. render the light of all stars, and reject pixels with too much light of others (`csstdask.flux.contamination`);
4. extract optimally (Horne 1986, PASP 98, 609) and reject outliers (`csstdask.flux.extraction_kernels`);
5. fit shifts along the dispersion to predicted spectra (`csstdask.flux.wavelength_shift`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError
from csstdask.flux.contamination import contaminating_light, find_zeroth_orders, rejected_share, render_stars
from csstdask.flux.extraction_kernels import BACKGROUND_DISTANCE, Extraction, StarPixels, extract_stars
from csstdask.flux.predicted_spectra import PredictedSpectra
from csstdask.flux.profile import CrossProfile
from csstdask.flux.spectrum_flag import SpectrumFlag
from csstdask.flux.trace_offset import fit_profile_and_offset
from csstdask.flux.traces import Traces, find_traces
from csstdask.flux.wavelength_shift import Shifts, fit_shifts, no_shifts
from csstdask.flux.windows import Frame, WindowProfile, Windows, check_frame, cut_windows, window_profile
from csstdask.instrument.dispersion import Dispersion
from csstdask.numerics.polynomials import normalised_coordinate
from csstdask.numerics.robust import nan_median

Float = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Int = npt.NDArray[np.int64]

CONTAMINATION_ERROR = 0.15
"""Relative 1-sigma error of the predicted light of other stars."""
_BATCH_SIZE = 512
"""Stars whose windows are in memory at a time."""
_POISSON_STARS = 40
"""Brightest stars, from which the variance per count is measured."""
_MIN_POISSON_PIXELS = 30
"""Pixels needed to measure the variance per count; with fewer it is 1."""
_MIN_REJECTED_PROFILE = 0.02
"""Share of the profile above which a contaminated pixel flags its column."""


@dataclass(frozen=True)
class FrameSpectra:
    """Spectra of n stars, padded to a common number of columns.

    Columns off the frame or outside the order have counts NaN, sigma inf and the flag NO_DATA.
    """

    column: Int
    """(n, column) Column of the frame, zero-based."""
    row: Float
    """(n, column) Row of the trace, with its fitted offset [pixel]."""
    wavelength: Float
    """(n, column) Wavelength at the centre of the column, with the fitted shift [Angstrom]."""
    angstrom_per_pixel: Float
    """(n, column) Local dispersion."""
    counts: Float
    """(n, column) [e-]"""
    sigma: Float
    """(n, column) 1 sigma [e-]."""
    background: Float
    """(n, column) Background at the trace, in addition to what was subtracted before [e-/pixel]."""
    flag: Int
    """(n, column) `SpectrumFlag`."""
    shift: Float
    """(n,) Shift of the spectrum along x [pixel]: that of the star combined with that of the frame."""
    shift_sigma: Float
    """(n,) 1 sigma; inf without predicted spectra."""
    shift_measured: Float
    """(n,) Shift of the star alone [pixel]; NaN = not measurable."""
    shift_measured_sigma: Float
    """(n,) 1 sigma; inf = not measurable."""
    y_offset: Float
    """(n,) Offset of the trace along y [pixel]."""
    chi2: Float
    """(n,) chi2 per degree of freedom of the pixels within 5 of the trace."""
    contaminated: Float
    """(n,) Share of the star's light on pixels that were rejected because of other stars."""
    coverage: Float
    """(n,) Share of the columns of the order with a measurement."""
    snr: Float
    """(n,) Median of counts / sigma over the columns; NaN without a measurement."""
    rejected: Bool
    """(y, x) Usable pixels of the frame that were rejected as outliers or because of other stars."""
    profile: CrossProfile
    """Profile across the traces."""
    n_profile_stars: int
    """Number of stars that profile and offset were fitted to; 0: not fitted."""

    def __len__(self) -> int:
        return len(self.counts)


def extract_frame(
    data: npt.ArrayLike,
    error: npt.ArrayLike,
    mask: npt.ArrayLike | None,
    dispersion: Dispersion,
    zeroth: Dispersion | None,
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    predicted: PredictedSpectra | None = None,
    profile: CrossProfile | None = None,
    fit: bool = True,
) -> FrameSpectra:
    """Extract the first-order spectra of all stars on a frame.

    Parameters
    ----------
    data : array-like (y, x)
        Electrons above the sky.
    error : array-like (y, x)
        1 sigma, Poisson noise included [e-].
    mask : array-like of bool (y, x), optional
        True = unusable.
    dispersion : Dispersion
        Dispersion relation of the first order on this frame.
    zeroth : Dispersion, optional
        Dispersion relation of the zeroth order.
    x, y : array-like (n,)
        Positions of the stars without the grating, zero-based [pixel]. Include stars off the frame whose spectra may
        reach into it; NaN gives a spectrum without data.
    predicted : PredictedSpectra, optional
        Expected spectra of the stars: they determine contamination, smooth the variances, and give shifts along x.
        Without them contamination is estimated from the extracted counts, and no shift is fitted.
    profile : CrossProfile, optional
        First guess of the profile, used as it is where there are too few bright isolated stars.
    fit : bool
        Whether to fit profile and offset of the traces.

    Returns
    -------
    FrameSpectra

    Raises
    ------
    InputError
        If shapes do not agree.
    """
    frame = check_frame(data, error, mask)
    x, y = _check_positions(x, y, predicted)
    traces = find_traces(dispersion, x, y)
    if profile is None:
        profile = CrossProfile(reference=float(np.mean(dispersion.limits)))
    expected = np.full(traces.wavelength.shape, np.nan)
    if predicted is not None:
        expected = predicted.counts(traces.wavelength, traces.angstrom_per_pixel)
    offset, n_profile_stars = np.zeros(len(x)), 0
    shape = window_profile(traces, profile, offset)
    first = _extract_uncleaned(frame, traces, shape)
    light = np.where(np.isfinite(expected), expected, first.smooth)
    zeroth_orders = find_zeroth_orders(zeroth, predicted, x, y)
    if fit:
        all_light = render_stars(frame, traces, profile, shape, light, zeroth_orders)
        profile, offset, n_profile_stars = fit_profile_and_offset(
            frame, traces, profile, first.counts, first.sigma, all_light, light, x, y
        )
        shape = window_profile(traces, profile, offset)
    all_light = render_stars(frame, traces, profile, shape, light, zeroth_orders)
    final = _extract_cleaned(
        frame, traces, shape, all_light, light, _scale_to_counts(expected, first),
        _variance_per_count(frame, traces, shape, first),
    )  # fmt: skip
    return _assemble(final, traces, dispersion, predicted, x, y, offset, profile, n_profile_stars)


def _check_positions(x: npt.ArrayLike, y: npt.ArrayLike, predicted: PredictedSpectra | None) -> tuple[Float, Float]:
    x, y = np.atleast_1d(np.asarray(x, dtype=np.float64)), np.atleast_1d(np.asarray(y, dtype=np.float64))
    if x.shape != y.shape or x.ndim != 1:
        raise InputError("x, y", f"shapes {x.shape} and {y.shape}", "one position per star, (n,) each")
    if predicted is not None and len(predicted.flux) != len(x):
        raise InputError("predicted.flux", f"{len(predicted.flux)} spectra", f"one per star ({len(x)})")
    return x, y


@dataclass(frozen=True)
class _Cleaned:
    """Spectra without contaminating light and outliers."""

    spectra: Extraction
    rejected: Bool
    """(y, x) Rejected pixels of the frame."""
    contaminated: Float
    """(n,) Share of each profile on pixels that were rejected because of other stars."""


def _extract_uncleaned(frame: Frame, traces: Traces, shape: WindowProfile) -> Extraction:
    """Extract all spectra without regard to other stars and outliers."""
    n, m = traces.column.shape
    out = _empty_extraction(n, m)
    for start in range(0, n, _BATCH_SIZE):
        part = slice(start, start + _BATCH_SIZE)
        windows = cut_windows(frame, traces.take(part))
        unknown = np.full(windows.first_row.shape, np.nan)
        _extract_batch(
            windows, shape.take(part), np.zeros_like(windows.data), unknown, 1.0, reject=False, out=_part_of(out, part)
        )
    return out


def _extract_cleaned(
    frame: Frame, traces: Traces, shape: WindowProfile, all_light: Single, light: Float, expected: Float, poisson: float
) -> _Cleaned:
    """Extract all spectra; reject outliers, and pixels with too much light of other stars."""
    n, m = traces.column.shape
    out = _empty_extraction(n, m)
    rejected = np.zeros(frame.data.shape, dtype=bool)
    contaminated = np.zeros(n)
    for start in range(0, n, _BATCH_SIZE):
        part = slice(start, start + _BATCH_SIZE)
        batch, profile = traces.take(part), shape.take(part)
        windows = cut_windows(frame, batch)
        inside = batch.inside[..., None]
        foreign, bad = contaminating_light(all_light, batch, windows, profile.pixels, light[part])
        contaminated[part] = rejected_share(profile.pixels, bad & windows.usable & inside, windows.usable & inside)
        clean = replace(windows, data=windows.data - foreign, usable=windows.usable & ~bad)
        spectra = _part_of(out, part)
        outliers = _extract_batch(clean, profile, foreign, expected[part], poisson, reject=True, out=spectra)
        bad &= windows.usable
        spectra.flag[(bad & (profile.pixels > _MIN_REJECTED_PROFILE)).any(axis=2)] |= int(SpectrumFlag.CONTAMINATED)
        outliers |= bad & (np.abs(profile.row_distance) < BACKGROUND_DISTANCE)
        i, j, k = np.nonzero(outliers & inside)
        rejected[windows.first_row[i, j] + k, batch.column[i, j]] = True
    return _Cleaned(out, rejected, contaminated)


def _empty_extraction(n: int, m: int) -> Extraction:
    return Extraction(
        counts=np.full((n, m), np.nan), sigma=np.full((n, m), np.inf), background=np.zeros((n, m)),
        flag=np.zeros((n, m), np.int64), chi2=np.zeros(n), smooth=np.zeros((n, m)), rejected=np.zeros((n, 0, 0), bool),
    )  # fmt: skip


def _part_of(extraction: Extraction, part: slice) -> Extraction:
    """Return views of some stars."""
    return Extraction(*(one[part] for one in extraction))


def _extract_batch(
    windows: Windows,
    shape: WindowProfile,
    foreign: Single,
    expected: Float,
    poisson: float,
    *,
    reject: bool,
    out: Extraction,
) -> Bool:
    """Extract the stars of a batch into `out`; return the pixels that were rejected as outliers."""
    outliers = np.zeros(windows.usable.shape, dtype=bool)
    stars = StarPixels(windows.data, windows.variance, windows.usable, shape.pixels, shape.distance, foreign)
    extract_stars(stars, expected, poisson, CONTAMINATION_ERROR, reject, out._replace(rejected=outliers))
    return outliers


def _scale_to_counts(expected: Float, first: Extraction) -> Float:
    """Return expected counts scaled to the first extraction, star by star."""
    usable = np.isfinite(expected) & np.isfinite(first.counts)
    power = np.where(usable, 1 / np.where(usable, first.sigma, 1.0) ** 2, 0.0)
    top = (power * np.where(usable, expected * first.counts, 0.0)).sum(axis=1)
    bottom = (power * np.where(usable, expected, 0.0) ** 2).sum(axis=1)
    factor = np.where(bottom > 0, top / np.maximum(bottom, 1e-300), 1.0)
    return expected * np.clip(factor, 0.0, None)[:, None]


def _variance_per_count(frame: Frame, traces: Traces, shape: WindowProfile, first: Extraction) -> float:
    """Return by how much the given variances grow with the light [e-]: 1 for Poisson noise of electrons."""
    peak = np.where(traces.inside, first.smooth, 0.0).max(axis=1)
    chosen = np.argsort(-peak, kind="stable")[:_POISSON_STARS]
    chosen = chosen[peak[chosen] > 0]
    if not len(chosen):
        return 1.0
    windows, profile = cut_windows(frame, traces.take(chosen)), shape.take(chosen)
    far = np.abs(profile.row_distance) >= BACKGROUND_DISTANCE
    floor = nan_median(np.where(far & windows.usable, windows.variance, np.nan), axis=(1, 2))[:, None, None]
    light = first.smooth[chosen][..., None] * profile.pixels
    bright = windows.usable & (light > floor) & ~far
    if bright.sum() < _MIN_POISSON_PIXELS:
        return 1.0
    return float(max(0.0, np.median((windows.variance - floor)[bright] / light[bright])))


def _assemble(
    final: _Cleaned,
    traces: Traces,
    dispersion: Dispersion,
    predicted: PredictedSpectra | None,
    x: Float,
    y: Float,
    offset: Float,
    profile: CrossProfile,
    n_profile_stars: int,
) -> FrameSpectra:
    """Fit the shifts, and collect all results."""
    spectra = final.spectra
    counts = np.where(traces.inside, spectra.counts, np.nan)
    sigma = np.where(traces.inside, spectra.sigma, np.inf)
    flag = np.where(traces.inside, spectra.flag, int(SpectrumFlag.NO_DATA))
    shifts, wavelength, per_pixel = no_shifts(len(x)), traces.wavelength, traces.angstrom_per_pixel
    if predicted is not None and len(x):
        clean = np.where(flag & ~int(SpectrumFlag.REJECTED), np.nan, counts)
        shifts = _fit_shifts(clean, sigma, traces, dispersion, predicted, x, y, final.rejected.shape)
        wavelength, per_pixel = _shifted_wavelengths(traces, dispersion, shifts, x, y)
    usable = np.isfinite(counts)
    return FrameSpectra(
        column=traces.column,
        row=traces.row + offset[:, None],
        wavelength=wavelength,
        angstrom_per_pixel=per_pixel,
        counts=counts,
        sigma=sigma,
        background=np.where(usable, spectra.background, np.nan),
        flag=flag,
        shift=shifts.shift,
        shift_sigma=shifts.sigma,
        shift_measured=shifts.measured,
        shift_measured_sigma=shifts.measured_sigma,
        y_offset=np.array(offset),
        chi2=np.where(usable.any(axis=1), spectra.chi2, np.nan),
        contaminated=final.contaminated,
        coverage=usable.sum(axis=1) / np.maximum(traces.inside.sum(axis=1), 1),
        snr=nan_median(np.where(usable, counts / sigma, np.nan), axis=1),
        rejected=final.rejected,
        profile=profile,
        n_profile_stars=n_profile_stars,
    )


def _fit_shifts(
    counts: Float,
    sigma: Float,
    traces: Traces,
    dispersion: Dispersion,
    predicted: PredictedSpectra,
    x: Float,
    y: Float,
    frame_shape: tuple[int, ...],
) -> Shifts:
    """Fit the shift of every spectrum along x to its predicted spectrum."""
    known_x, known_y = np.nan_to_num(x), np.nan_to_num(y)
    # signed, unlike `traces.angstrom_per_pixel`
    slope = dispersion.angstrom_per_pixel(known_x[:, None], known_y[:, None], traces.wavelength)

    def shifted_counts(shift: Float) -> Float:
        return predicted.counts(traces.wavelength - shift[:, None] * slope, traces.angstrom_per_pixel)

    u, v = normalised_coordinate(known_x, frame_shape[1]), normalised_coordinate(known_y, frame_shape[0])
    return fit_shifts(counts, sigma, shifted_counts, u, v)


def _shifted_wavelengths(
    traces: Traces, dispersion: Dispersion, shifts: Shifts, x: Float, y: Float
) -> tuple[Float, Float]:
    """Return wavelengths [Angstrom] and dispersions [Angstrom/pixel] of the columns of shifted spectra."""
    known_x, known_y = np.nan_to_num(x)[:, None], np.nan_to_num(y)[:, None]
    wavelength = dispersion.wavelength(known_x, known_y, traces.column - shifts.shift[:, None])
    per_pixel = np.abs(dispersion.angstrom_per_pixel(known_x, known_y, wavelength))
    off_frame = traces.off_frame[:, None]
    return np.where(off_frame, traces.wavelength, wavelength), np.where(off_frame, traces.angstrom_per_pixel, per_pixel)
