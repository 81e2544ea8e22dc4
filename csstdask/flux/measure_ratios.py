"""Measure ratios of extracted to predicted counts on the wavelength grid of a band."""

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
"""Flags of columns that give no ratio."""
UNKNOWN_SHIFT = 0.5
"""1-sigma error of a shift along x that was not measured [pixel]."""
_DERIVATIVE_STEP = 0.25
"""Step for the derivative of predicted counts [pixel]."""
_MAX_DISTANCE = 0.55
"""Largest distance of a column from a wavelength of the grid [pixel]; 0.5 plus a margin for rounding."""


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
    min_snr: float = 0.0,
    max_contaminated: float = 0.3,
) -> StarRatios:
    """Measure observed over predicted counts of the stars of a frame.

    For each wavelength of the grid, the nearest column is taken and the prediction is evaluated at the wavelength of
    that column. Data are not interpolated, so that the noise of different wavelengths stays independent. Predictions
    contain the nominal sensitivity, so that ratios are near 1.

    Parameters
    ----------
    spectra : FrameSpectra
        Extracted spectra of n stars.
    grid : array-like (wave,)
        Ascending wavelengths of the band [Angstrom].
    predicted : PredictedSpectra
        Predicted spectra of the same stars.
    star : array-like (n,)
        Ids of the stars, int or str.
    grey_error : array-like (n,), optional
        Relative 1-sigma errors of the flux at 5556 Angstrom, common to all wavelengths of a star.
    variance_sed : array-like (n, wave), optional
        Relative variances of the predicted spectra, independent between wavelengths.
    modes : array-like (n, rank, wave), optional
        Relative 1-sigma errors of the predicted spectra, each fully correlated over wavelength.
    shape : (int, int), optional
        (y, x) of the detector; by default that of the frame.
    origin : (float, float)
        (x, y) of the frame's first pixel on the detector [pixel].
    detector : int, optional
        Detector id.
    min_snr : float
        Smallest median signal-to-noise ratio per column of the stars that are used.
    max_contaminated : float
        Largest share of contaminated light of the stars that are used.

    Returns
    -------
    StarRatios
        Ratios of the stars that have at least one, in float32.

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
    index, near = _nearest_columns(spectra.wavelength, spectra.angstrom_per_pixel, grid)
    row = np.arange(n)[:, None]
    counts, sigma = spectra.counts[row, index], spectra.sigma[row, index]
    expected, change = model[row, index], slope[row, index]
    usable = near & np.isfinite(counts) & np.isfinite(sigma) & (expected > 0) & np.isfinite(change)
    usable &= (spectra.flag[row, index] & int(UNUSABLE)) == 0
    with np.errstate(invalid="ignore"):
        good = (spectra.snr >= min_snr) & (spectra.contaminated <= max_contaminated)
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
    detector_shape = shape or (spectra.rejected.shape[0], spectra.rejected.shape[1])
    return StarRatios(wavelength=grid, star=ids[kept], **single, shape=detector_shape, detector=detector)


def _predicted_counts(spectra: FrameSpectra, predicted: PredictedSpectra) -> tuple[Float, Float]:
    """Return predicted counts per column and their change per pixel of shift [e-], [e-/pixel]."""
    at, step = spectra.wavelength, _DERIVATIVE_STEP * spectra.angstrom_per_pixel
    model = predicted.counts(at, spectra.angstrom_per_pixel)
    ahead = predicted.counts(at + step, spectra.angstrom_per_pixel)
    behind = predicted.counts(at - step, spectra.angstrom_per_pixel)
    return model, (ahead - behind) / (2 * _DERIVATIVE_STEP)


def _nearest_columns(
    wavelength: Float, per_pixel: Float, grid: Float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the column that is nearest to each wavelength of the grid, and whether that is within half a pixel."""
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
    return index, distance <= _MAX_DISTANCE * per_pixel[row, index]
