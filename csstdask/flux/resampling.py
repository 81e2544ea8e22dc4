"""Matrices that bring spectra to another resolution or grid, and what they do to missing data.

Every matrix is sparse, of shape (out, pixel): one spectrum or thousands on the same grid cost one product.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from csstdask.flux.spectral_grids import INPUT_RANGE, INPUT_RESOLUTION, INPUT_WAVELENGTH, N_INPUT

Float = npt.NDArray[np.float64]

FWHM_PER_SIGMA = 2.3548200450309493
"""Full width at half maximum of a Gaussian over its standard deviation."""
_KERNEL_RADIUS = 4.5
"""Distance from its centre at which a Gaussian is cut off [sigma]."""
_MAX_FINE_PIXEL = 0.6
"""Width of an input pixel over that of an output pixel below which pixels are averaged; wider ones are interpolated."""


def degradation_matrix(
    wavelength: npt.ArrayLike, centres: npt.ArrayLike, resolution: float | Float, fwhm: npt.ArrayLike = 0.0
) -> tuple[csr_array, Float]:
    """Return the matrix that convolves a spectrum with a Gaussian and samples it at `centres`.

    The instrument's own width is subtracted in quadrature; where it is the larger one, the spectrum is interpolated.

    Parameters
    ----------
    wavelength : array-like (pixel,)
        Wavelengths of the spectrum, increasing [A].
    centres : array-like (out,)
        Wavelengths of the samples [A].
    resolution : float or array (out,)
        Resolving power of the samples.
    fwhm : float or array-like (pixel,)
        Width of the spectrum's line-spread function, including its pixel [A].

    Returns
    -------
    matrix : sparse array (out, pixel)
        Rows sum to one; rows of centres outside the spectrum are empty.
    coverage : float64 array (out,)
        Share of the Gaussian that lies on the spectrum: 1 in its middle, 1/2 at its ends, 0 outside.
    """
    wave, at = np.asarray(wavelength, dtype=float), np.asarray(centres, dtype=float)
    instrument = np.interp(at, wave, np.broadcast_to(np.asarray(fwhm, dtype=float), wave.shape))
    width = np.gradient(wave)
    min_sigma = 0.5 * np.interp(at, wave, width)  # narrower Gaussians fall between pixels
    sigma = np.sqrt(np.maximum((at / resolution) ** 2 - instrument**2, 0.0)) / FWHM_PER_SIGMA
    narrow = sigma < min_sigma
    sigma = np.maximum(sigma, min_sigma)
    first = np.searchsorted(wave, at - _KERNEL_RADIUS * sigma)
    last = np.searchsorted(wave, at + _KERNEL_RADIUS * sigma)
    rows, columns, values = [], [], []
    coverage = np.zeros(len(at))
    for k, centre in enumerate(at):
        if not wave[0] <= centre <= wave[-1]:
            continue
        if narrow[k]:
            j = min(max(int(np.searchsorted(wave, centre)), 1), len(wave) - 1)
            share = (centre - wave[j - 1]) / (wave[j] - wave[j - 1])
            rows += [k, k]
            columns += [j - 1, j]
            values += [1 - share, share]
            coverage[k] = 1.0
            continue
        near = slice(first[k], last[k])
        kernel = np.exp(-0.5 * ((wave[near] - centre) / sigma[k]) ** 2) * width[near]
        coverage[k] = min(1.0, kernel.sum() / (sigma[k] * np.sqrt(2 * np.pi)))
        rows += [k] * len(kernel)
        columns += list(range(first[k], last[k]))
        values += list(kernel / kernel.sum())
    return csr_array((values, (rows, columns)), shape=(len(at), len(wave))), coverage


def degrade(
    wavelength: npt.ArrayLike,
    flux: npt.ArrayLike,
    centres: npt.ArrayLike,
    resolution: float | Float,
    *,
    fwhm: npt.ArrayLike = 0.0,
    min_coverage: float = 0.9,
) -> Float:
    """Convolve spectra to a lower resolution and sample them on a grid.

    Parameters
    ----------
    wavelength : array-like (pixel,)
        Increasing wavelengths [A].
    flux : array-like (pixel,) or (n, pixel)
        Flux densities; NaN where data are missing.
    centres : array-like (out,)
        Wavelengths of the samples [A].
    resolution : float or array (out,)
        Resolving power of the samples.
    fwhm : float or array-like (pixel,)
        Width of the line-spread function that the spectra have [A]; subtracted in quadrature.
    min_coverage : float
        Samples with a smaller share of the Gaussian on valid pixels are NaN.

    Returns
    -------
    float64 array (out,) or (n, out)
        NaN outside the observed range.

    Examples
    --------
    >>> wave = np.arange(3900.0, 7100.0, 0.5)
    >>> flat = degrade(wave, np.full(len(wave), 2.0), INPUT_WAVELENGTH, INPUT_RESOLUTION)
    >>> flat.shape, round(float(flat.mean()), 6)
    ((2238,), 2.0)
    """
    matrix, coverage = degradation_matrix(wavelength, centres, resolution, fwhm)
    values = np.atleast_2d(np.asarray(flux, dtype=float))
    valid = np.isfinite(values)
    valid_share = matrix @ valid.T.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        out = (matrix @ np.where(valid, values, 0.0).T) / valid_share
    out[valid_share * coverage[:, None] < min_coverage] = np.nan
    return out.T if np.ndim(flux) > 1 else out[:, 0]


def input_grid_matrix(wavelength: Float, resolution: float | None) -> csr_array:
    """Return the matrix that brings a spectrum onto the networks' input grid.

    Spectra of a higher resolution than 2000 are degraded, others averaged over pixels or, where their own pixels are
    wide, interpolated by cubics.

    Parameters
    ----------
    wavelength : float64 array (pixel,)
        Increasing wavelengths that cover 4000-7000 A [A].
    resolution : float, optional
        Resolving power of the spectrum; None: about 2000.

    Returns
    -------
    sparse array (2238, pixel)
    """
    pixel_width = np.interp(INPUT_WAVELENGTH, wavelength, np.gradient(wavelength))
    if resolution is not None and resolution > INPUT_RESOLUTION:
        per_element = pixel_width / (INPUT_WAVELENGTH / INPUT_RESOLUTION)
        if (per_element < _MAX_FINE_PIXEL).all():
            return degradation_matrix(wavelength, INPUT_WAVELENGTH, INPUT_RESOLUTION, wavelength / resolution)[0]
    step = pixel_width / (INPUT_WAVELENGTH / (2 * INPUT_RESOLUTION))
    return _pixel_average_matrix(wavelength) if (step < _MAX_FINE_PIXEL).all() else _cubic_matrix(wavelength)


def _pixel_average_matrix(wave: Float) -> csr_array:
    """Average fine pixels over each pixel of the input grid, with fractions of the pixels at its edges."""
    edges = INPUT_RANGE[0] * np.exp(np.arange(N_INPUT + 1) / (2 * INPUT_RESOLUTION))
    bounds = np.concatenate(
        [wave[:1] - (wave[1] - wave[0]) / 2, (wave[1:] + wave[:-1]) / 2, wave[-1:] + (wave[-1] - wave[-2]) / 2]
    )
    rows, columns, values = [], [], []
    for k in range(N_INPUT):
        i, j = np.searchsorted(bounds, edges[k], "right") - 1, np.searchsorted(bounds, edges[k + 1], "left")
        i, j = max(i, 0), min(j, len(wave))
        overlap = np.minimum(bounds[i + 1 : j + 1], edges[k + 1]) - np.maximum(bounds[i:j], edges[k])
        rows += [k] * (j - i)
        columns += list(range(i, j))
        values += list(overlap / overlap.sum())
    return csr_array((values, (rows, columns)), shape=(N_INPUT, len(wave)))


def _cubic_matrix(wave: Float) -> csr_array:
    """Interpolate with Lagrange's cubic through the four nearest pixels."""
    start = np.clip(np.searchsorted(wave, INPUT_WAVELENGTH) - 2, 0, len(wave) - 4)
    nodes = wave[start[:, None] + np.arange(4)]
    weights = np.ones((N_INPUT, 4))
    for j in range(4):
        for m in range(4):
            if m != j:
                weights[:, j] *= (INPUT_WAVELENGTH - nodes[:, m]) / (nodes[:, j] - nodes[:, m])
    rows = np.repeat(np.arange(N_INPUT), 4)
    columns = (start[:, None] + np.arange(4)).ravel()
    return csr_array((weights.ravel(), (rows, columns)), shape=(N_INPUT, len(wave)))
