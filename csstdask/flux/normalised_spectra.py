"""Stellar spectra as the SED networks take them: on the input grid, divided by their moving average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError
from csstdask.flux.resampling import input_grid_matrix
from csstdask.flux.spectral_grids import INPUT_WAVELENGTH, to_vacuum
from csstdask.numerics.robust import mad_scale

Float = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]

AVERAGING_PIXELS = 51
"""Width of the moving average that normalises an input [pixel]."""
MAX_MISSING_SHARE = 0.2
"""Largest share of the 2238 input pixels that may lack data."""
_MAX_MISSING_WEIGHT = 1e-3
"""Largest weight of missing pixels in a sample that still counts as observed."""


def moving_average(flux: npt.NDArray[Any], width: int = AVERAGING_PIXELS) -> npt.NDArray[Any]:
    """Return the mean over pixels k - width//2 .. k + width//2 that exist and are finite, along the last axis."""
    half = width // 2
    valid = np.isfinite(flux)
    n = flux.shape[-1]
    low, high = np.clip(np.arange(n) - half, 0, None), np.clip(np.arange(n) + half + 1, None, n)
    start = np.zeros((*flux.shape[:-1], 1))
    total = np.concatenate([start, np.cumsum(np.where(valid, flux, 0.0), axis=-1, dtype=float)], axis=-1)
    count = np.concatenate([start, np.cumsum(valid, axis=-1, dtype=float)], axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (total[..., high] - total[..., low]) / (count[..., high] - count[..., low])
    return mean.astype(flux.dtype)


@dataclass(frozen=True)
class NormalisedSpectra:
    """Spectra on the input grid, divided by their moving average."""

    flux: Single
    """(n, 2238) Flux over moving average; 1 where data are missing."""
    error: Single
    """(n, 2238) 1 sigma of `flux`; inf where data are missing."""

    def __len__(self) -> int:
        return len(self.flux)


def normalise_spectra(
    wavelength: npt.ArrayLike,
    flux: npt.ArrayLike,
    error: npt.ArrayLike | None = None,
    *,
    medium: str = "vacuum",
    resolution: float | None = None,
    source: str = "spectrum",
) -> NormalisedSpectra:
    """Bring spectra onto the input grid and divide them by their moving average.

    Parameters
    ----------
    wavelength : array-like (pixel,) or (n, pixel)
        Rest-frame wavelengths [A] on any grid that covers 4000-7000 A.
    flux : array-like (pixel,) or (n, pixel)
        Flux densities in any unit per Angstrom; NaN where data are missing.
    error : array-like, shape of flux, optional
        1 sigma, positive; inf for pixels to ignore. By default it is estimated from the differences of neighbouring
        pixels, which overestimates it where lines are strong.
    medium : str
        Medium of the wavelengths, ``vacuum`` or ``air``.
    resolution : float, optional
        Resolving power of the spectra. Spectra of a higher one than 2000 are degraded; by default it is assumed to be
        about 2000, and spectra are only resampled.
    source : str
        Name of the spectra in error messages.

    Raises
    ------
    ValueError
        If the medium is unknown or shapes differ.
    InputError
        If spectra do not cover 4000-7000 A, more than a fifth of their pixels lack data, or errors are NaN, zero or
        negative.

    Examples
    --------
    >>> wave = np.arange(3990.0, 7010.0, 1.0)
    >>> spectra = normalise_spectra(wave, np.full(len(wave), 7.0), np.full(len(wave), 0.7))
    >>> spectra.flux.shape, float(spectra.flux[0, 1000])
    ((1, 2238), 1.0)
    """
    wave = to_vacuum(wavelength, medium)
    values = np.atleast_2d(np.asarray(flux, dtype=float))
    if values.ndim > 2 or wave.shape not in (values.shape[-1:], values.shape):
        raise ValueError(f"flux: found shape {np.shape(flux)}; wanted (n, {wave.shape[-1]}), as wavelength has pixels")
    sigma = None if error is None else np.atleast_2d(np.asarray(error, dtype=float))
    if sigma is not None:
        _check_errors(values, sigma, source)
    if wave.ndim == 1 or len(wave) == 1 or (wave == wave[0]).all():
        return _normalise_on_grid(wave if wave.ndim == 1 else wave[0], values, sigma, resolution, source)
    rows = [
        _normalise_on_grid(wave[i], values[i : i + 1], None if sigma is None else sigma[i : i + 1], resolution, source)
        for i in range(len(values))
    ]
    return NormalisedSpectra(*(np.concatenate([getattr(row, name) for row in rows]) for name in ("flux", "error")))


def _check_errors(values: Float, sigma: Float, source: str) -> None:
    if sigma.shape != values.shape:
        raise ValueError(f"error: found shape {sigma.shape}; wanted {values.shape}, as flux")
    bad = np.isfinite(values) & ~(sigma > 0)
    if bad.any():
        n_nan = int(np.isnan(sigma[bad]).sum())
        raise InputError(
            f"{source}, error",
            f"{n_nan} NaN and {int(bad.sum()) - n_nan} zero or negative values where flux is finite",
            "positive errors, and inf for pixels to ignore",
        )


def _normalise_on_grid(
    wave: Float, values: Float, sigma: Float | None, resolution: float | None, source: str
) -> NormalisedSpectra:
    """Normalise spectra (n, pixel) that share their wavelengths (pixel,)."""
    order = np.argsort(wave)
    if not (np.diff(wave[order]) > 0).all() or not np.isfinite(wave).all():
        raise InputError(f"{source}, wavelength", "NaN or repeated values", "distinct wavelengths in Angstrom")
    wave, values = wave[order], values[:, order]
    sigma = None if sigma is None else sigma[:, order]
    if wave[0] > INPUT_WAVELENGTH[0] or wave[-1] < INPUT_WAVELENGTH[-1]:
        raise InputError(
            source, f"wavelengths of {wave[0]:.1f}-{wave[-1]:.1f} A (vacuum)", "a range that covers 4000-7000 A"
        )
    missing = ~np.isfinite(values)
    if sigma is not None:
        missing |= np.isinf(sigma)
    matrix = input_grid_matrix(wave, resolution)
    lost = abs(matrix) @ missing.T.astype(float) > _MAX_MISSING_WEIGHT
    if (share := lost.mean(axis=0).max(initial=0.0)) > MAX_MISSING_SHARE:
        raise InputError(
            source, f"no usable flux in {100 * share:.0f} % of 4000-7000 A", f"at most {100 * MAX_MISSING_SHARE:.0f} %"
        )
    out = (matrix @ np.where(missing, 0.0, values).T).T
    out[lost.T] = np.nan
    if sigma is None:
        noise = _estimated_error(out)
    else:
        noise = np.sqrt((matrix.power(2) @ np.where(missing, 0.0, sigma).T ** 2).T)
    mean = moving_average(out)
    if not (mean > 0).all():
        raise InputError(source, "a mean flux that is zero, negative or unknown within 4000-7000 A", "positive fluxes")
    flux = np.where(lost.T, 1.0, out / mean).astype(np.float32)
    error = np.where(lost.T, np.inf, noise / mean).astype(np.float32)
    return NormalisedSpectra(flux, error)


def _estimated_error(flux: Float) -> Float:
    """Return one error for each spectrum, from third differences of its neighbouring pixels (n, 2238).

    A third difference of independent pixels has 20 times their variance.
    """
    third = flux[:, 3:] - 3 * flux[:, 2:-1] + 3 * flux[:, 1:-2] - flux[:, :-3]
    noise = mad_scale(third, axis=1, center=0.0)[:, None] / np.sqrt(20.0)
    floor = 1e-3 * np.nanmedian(flux, axis=1, keepdims=True)
    return np.broadcast_to(np.maximum(noise, floor), flux.shape).copy()
