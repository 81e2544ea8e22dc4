"""Spectra of all catalogue stars on one slitless frame.

Light of a star in column X of its first order: counts(X) times the profile across the trace (`csstdask.flux.profile`),
on a background that is linear across the trace. Steps: traces; a first extraction; profile and offset of the traces
from bright isolated stars; light of other stars, first and zeroth orders; optimal extraction (Horne 1986, PASP 98, 609)
with outliers rejected; shifts along the dispersion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError
from csstdask.flux.contamination import bad_share, foreign_light, light_of_all, zeroth_orders
from csstdask.flux.extraction_kernels import BACKGROUND_FROM, extract_stars
from csstdask.flux.predicted_spectra import PredictedSpectra
from csstdask.flux.profile import CrossProfile
from csstdask.flux.spectrum_flag import SpectrumFlag
from csstdask.flux.trace_offset import fit_shape
from csstdask.flux.traces import Traces, find_traces
from csstdask.flux.wavelength_shift import fit_shifts
from csstdask.flux.windows import Frame, Shape, check_frame, cut_windows, first_rows, shape_of
from csstdask.instrument.dispersion import Dispersion
from csstdask.numerics.robust import nan_median

Float = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Int = npt.NDArray[np.int64]

CONTAMINATION_ERROR = 0.15
"""Relative 1-sigma error of the predicted light of other stars."""
_BATCH = 512
_BRIGHTEST = 40
"""Stars from which the variance per count is measured."""


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


def extract_frame(
    height: npt.ArrayLike,
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
    frame = check_frame(height, error, mask)
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
    at = shape_of(traces, shape, nothing)
    first = _extract(frame, traces, at, None, np.full_like(expected, np.nan), 1.0, reject=False)
    light = np.where(np.isfinite(expected), expected, first.smooth)
    spots = zeroth_orders(zeroth, predicted, x, y)
    n_used, offset = 0, nothing
    if fit:
        others = light_of_all(frame, traces, shape, at, light, spots)
        shape, offset, n_used = fit_shape(frame, traces, shape, first.counts, first.sigma, others, light, x, y)
        at = shape_of(traces, shape, offset)
    others = light_of_all(frame, traces, shape, at, light, spots)
    expected = _scaled(expected, first)
    poisson = _poisson_factor(frame, traces, at, first)
    rejected = np.zeros(frame.height.shape, dtype=bool)
    contaminated = np.zeros(n)
    final = _extract(
        frame, traces, at, others, expected, poisson, reject=True, light=light, rejected=rejected,
        contaminated=contaminated,
    )  # fmt: skip
    return _assemble(dispersion, predicted, traces, final, x, y, offset, shape, n_used, rejected, contaminated)


def _extract(
    frame: Frame,
    traces: Traces,
    shape: Shape,
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
    rows = first_rows(traces)
    for start in range(0, n, _BATCH):
        part = slice(start, start + _BATCH)
        some = traces.take(part)
        windows = cut_windows(frame, some, rows[part])
        distance, pixels = shape.distance[part], shape.pixels[part]
        foreign = np.zeros_like(windows.data)
        usable = windows.usable
        if others is not None and light is not None:
            foreign, bad = foreign_light(others, some, windows, pixels, light[part])
            if contaminated is not None:
                contaminated[part] = bad_share(
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


def _scaled(expected: Float, first: _Extracted) -> Float:
    """Return expected counts scaled to the first extraction, star by star."""
    usable = np.isfinite(expected) & np.isfinite(first.counts)
    power = np.where(usable, 1 / np.where(usable, first.sigma, 1.0) ** 2, 0.0)
    top = (power * np.where(usable, expected * first.counts, 0.0)).sum(axis=1)
    bottom = (power * np.where(usable, expected, 0.0) ** 2).sum(axis=1)
    factor = np.where(bottom > 0, top / np.maximum(bottom, 1e-300), 1.0)
    return expected * np.clip(factor, 0.0, None)[:, None]


def _poisson_factor(frame: Frame, traces: Traces, at: Shape, first: _Extracted) -> float:
    """Return the variance per count by which the errors given grow with the light: 1 for electrons."""
    peak = np.where(traces.inside, first.smooth, 0.0).max(axis=1)
    chosen = np.argsort(-peak, kind="stable")[:_BRIGHTEST]
    chosen = chosen[peak[chosen] > 0]
    if not len(chosen):
        return 1.0
    some = traces.take(chosen)
    windows = cut_windows(frame, some, first_rows(some))
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
    predicted: PredictedSpectra | None,
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
