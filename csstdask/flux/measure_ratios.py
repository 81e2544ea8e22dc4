"""Ratios of extracted to predicted counts on the wavelength grid of a band."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError
from csstdask.flux.extract_frame import FrameSpectra
from csstdask.flux.predicted_spectra import PredictedSpectra
from csstdask.flux.ratios import StarRatios
from csstdask.flux.spectrum_flag import SpectrumFlag

Float = npt.NDArray[np.float64]

UNUSABLE = SpectrumFlag.NO_DATA | SpectrumFlag.UNRELIABLE
"""Columns with one of these flags give no ratio."""
UNKNOWN_SHIFT = 0.5
"""1 sigma of shifts along x that were not fitted [pixel]."""
_DERIVATIVE_STEP = 0.25
"""Of the derivative of predicted counts [pixel]."""


def measure_ratios(
    spectra: FrameSpectra,
    grid: npt.ArrayLike,
    predicted: PredictedSpectra,
    *,
    star: npt.ArrayLike,
    grey_error: npt.ArrayLike | None = None,
    variance_sed: npt.ArrayLike | None = None,
    modes: npt.ArrayLike | None = None,
    shape: tuple[int, int] | None = None,
    origin: tuple[float, float] = (0.0, 0.0),
    detector: int | None = None,
    least_snr: float = 0.0,
    most_contaminated: float = 0.3,
) -> StarRatios:
    """Return observed over predicted counts of the stars of a frame.

    For each wavelength of the grid the nearest column is taken, and the prediction is evaluated at the wavelength of
    that column: data are not interpolated, so the noise of different wavelengths stays independent. As predictions
    contain the nominal sensitivity, ratios are near 1.

    Parameters
    ----------
    spectra : FrameSpectra
        Of n stars.
    grid : array-like (wave,)
        Wavelengths of the band, ascending [Angstrom].
    predicted : PredictedLight
        Of the same stars.
    star : array-like (n,)
        Ids, int or str.
    grey_error : array-like (n,), optional
        Relative 1-sigma errors of the normalisations (flux at 5556 Angstrom).
    variance_sed : array-like (n, wave), optional
        Relative variances of the predicted spectra, independent between wavelengths.
    modes : array-like (n, rank, wave), optional
        Relative 1-sigma errors of the predicted spectra, each fully correlated over wavelength.
    shape : (int, int), optional
        (y, x) of the detector; by default that of the frame.
    origin : (float, float)
        (x, y) of the frame's first pixel on the detector [pixel].
    detector : int, optional
        Its id.
    least_snr : float
        Stars whose median signal-to-noise ratio per column is lower are left out.
    most_contaminated : float
        Stars with a larger share of contaminated light are left out.

    Returns
    -------
    StarRatios
        Of the stars with at least one ratio, in float32.

    Raises
    ------
    InputError
        If shapes do not agree.
    """
    grid = np.asarray(grid, dtype=np.float64)
    n, wave = len(spectra), len(grid)
    ids = np.asarray(star)
    zero = np.zeros((n, wave))
    of_sed = zero if variance_sed is None else np.asarray(variance_sed, dtype=np.float64)
    grey = np.zeros(n) if grey_error is None else np.asarray(grey_error, dtype=np.float64)
    errors = np.zeros((n, 0, wave)) if modes is None else np.asarray(modes, dtype=np.float64)
    for name, found, wanted in (
        ("star", ids.shape, (n,)),
        ("predicted.flux", (len(predicted.flux),), (n,)),
        ("grey_error", grey.shape, (n,)),
        ("variance_sed", of_sed.shape, (n, wave)),
        ("modes", (errors.shape[0], errors.shape[-1]), (n, wave)),
    ):
        if found != wanted:
            raise InputError(name, f"shape {found}", f"{wanted}")
    model, slope = _predicted_counts(spectra, predicted)
    index, near = _nearest(spectra.wavelength, spectra.angstrom_per_pixel, grid)
    row = np.arange(n)[:, None]
    counts, sigma = spectra.counts[row, index], spectra.sigma[row, index]
    expected, change = model[row, index], slope[row, index]
    usable = near & np.isfinite(counts) & np.isfinite(sigma) & (expected > 0) & np.isfinite(change)
    usable &= (spectra.flag[row, index] & int(UNUSABLE)) == 0
    with np.errstate(invalid="ignore"):
        good = (spectra.snr >= least_snr) & (spectra.contaminated <= most_contaminated)
    usable &= good[:, None]
    safe = np.where(usable, expected, 1.0)
    error = np.where(np.isfinite(spectra.shift_sigma), spectra.shift_sigma, UNKNOWN_SHIFT)[:, None]
    ratio = np.where(usable, counts / safe, np.nan)
    variance = np.where(usable, (sigma / safe) ** 2 + (np.where(usable, change, 0.0) / safe * error) ** 2, np.nan)
    kept = usable.any(axis=1)
    parts = {
        "x": spectra.column[row, index] + origin[0],
        "y": spectra.row[row, index] + origin[1],
        "ratio": ratio,
        "variance_observed": variance,
        "variance_sed": of_sed,
        "grey_error": grey,
        "modes": errors,
    }
    single = {name: np.asarray(one, dtype=np.float32)[kept] for name, one in parts.items()}
    whole = shape or (spectra.rejected.shape[0], spectra.rejected.shape[1])
    return StarRatios(wavelength=grid, star=ids[kept], **single, shape=whole, detector=detector)


def _predicted_counts(spectra: FrameSpectra, predicted: PredictedSpectra) -> tuple[Float, Float]:
    """Return predicted counts per column and their change per pixel of shift [e-], [e-/pixel]."""
    at, step = spectra.wavelength, _DERIVATIVE_STEP * spectra.angstrom_per_pixel
    model = predicted.counts(at, spectra.angstrom_per_pixel)
    ahead = predicted.counts(at + step, spectra.angstrom_per_pixel)
    behind = predicted.counts(at - step, spectra.angstrom_per_pixel)
    return model, (ahead - behind) / (2 * _DERIVATIVE_STEP)


def _nearest(wavelength: Float, per_pixel: Float, grid: Float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the column nearest to each wavelength of the grid, and whether it is within half a pixel."""
    n, m = wavelength.shape
    index = np.zeros((n, len(grid)), dtype=np.int64)
    for i, one in enumerate(wavelength):
        falling = one[0] > one[-1]
        ascending = one[::-1] if falling else one
        right = np.clip(np.searchsorted(ascending, grid), 1, m - 1)
        left_nearer = grid - ascending[right - 1] < ascending[right] - grid
        found = right - left_nearer
        index[i] = m - 1 - found if falling else found
    row = np.arange(n)[:, None]
    distance = np.abs(wavelength[row, index] - grid)
    return index, distance <= 0.55 * per_pixel[row, index]
