"""Stellar spectra as the SED networks see them: grids, resolution, air and vacuum, normalisation.

Every other module takes these definitions from here. All wavelengths are in Angstrom, vacuum, in the rest frame of
the star; all fluxes are per unit wavelength. NaN means that there is no valid datum. Nothing is ever extrapolated.

Two logarithmic grids follow from the published numbers of pixels (UaRA-net, section 3):

* input: R = 2000, 4000-7000 A, floor(2 R ln(7000/4000)) = 2238 pixels, centre k at 4000 exp((k + 1/2) / 4000);
* output: R = 200, 2500-10500 A, floor(2 R ln(10500/2500)) = 574 pixels, centre k at 2500 exp((k + 1/2) / 400).

Pixels are point samples: the Gaussian line-spread function (FWHM = wavelength / R) already contains the pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from csstdask.core.errors import InputError

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Medium = Literal["vacuum", "air"]

#: Speed of light [km/s].
LIGHT_SPEED = 299792.458
#: Full width at half maximum of a Gaussian, in standard deviations.
FWHM_PER_SIGMA = 2.3548200450309493
#: Resolving power and range [A] of the networks' input.
INPUT_RESOLUTION = 2000.0
INPUT_RANGE = (4000.0, 7000.0)
#: Resolving power and range [A] of the SEDs.
SED_RESOLUTION = 200.0
SED_RANGE = (2500.0, 10500.0)
#: Width of the moving average that normalises an input [pixel].
AVERAGE = 51
#: Range of the mean flux that normalises an SED [A], and the pixels whose centres lie in it.
REFERENCE_RANGE = (5526.0, 5586.0)
REFERENCE_PIXELS = slice(317, 322)
#: Slitless bands of the CSST as the paper has them [A].
BANDS = {"GU": (2550.0, 4200.0), "GV": (4000.0, 6500.0), "GI": (6200.0, 10000.0)}
#: A Gaussian ends here [sigma].
_REACH = 4.5
#: An input pixel that is narrower than this share of an output pixel is averaged, a wider one interpolated.
_FINE = 0.6
#: Pixels of an input that may lack a datum, as a share of 2238.
_MOST_ABSENT = 0.2


def log_grid(start: float, resolution: float, n: int) -> Float:
    """Return the centres of a grid with two pixels per resolution element [A], ``start exp((k + 1/2) / 2R)``."""
    return start * np.exp((np.arange(n) + 0.5) / (2 * resolution))


def _n_pixels(span: tuple[float, float], resolution: float) -> int:
    return int(np.floor(2 * resolution * np.log(span[1] / span[0])))


#: Centres of the input pixels (2238,) [A].
INPUT_WAVELENGTH = log_grid(INPUT_RANGE[0], INPUT_RESOLUTION, _n_pixels(INPUT_RANGE, INPUT_RESOLUTION))
#: Centres of the SED pixels (574,) [A].
SED_WAVELENGTH = log_grid(SED_RANGE[0], SED_RESOLUTION, _n_pixels(SED_RANGE, SED_RESOLUTION))
N_INPUT = len(INPUT_WAVELENGTH)
N_SED = len(SED_WAVELENGTH)


def in_band(band: str) -> npt.NDArray[np.bool_]:
    """Return which SED pixels lie in a band, ``GU``, ``GV`` or ``GI`` (574,)."""
    low, high = BANDS[band]
    return (low <= SED_WAVELENGTH) & (high >= SED_WAVELENGTH)


def air_to_vacuum(wavelength: npt.ArrayLike) -> Float:
    """Convert wavelengths in standard air to vacuum [A].

    The refractive index is that of Ciddor (1996, Applied Optics 35, 1566), evaluated at the vacuum wavelength by
    iteration.

    Examples
    --------
    >>> round(float(air_to_vacuum(4861.323)), 2)
    4862.68
    """
    air = np.asarray(wavelength, dtype=float)
    vacuum = air.copy()
    for _ in range(3):
        vacuum = air * _refractive_index(vacuum)
    return vacuum


def vacuum_to_air(wavelength: npt.ArrayLike) -> Float:
    """Convert vacuum wavelengths to standard air [A]; the inverse of `air_to_vacuum`."""
    vacuum = np.asarray(wavelength, dtype=float)
    return vacuum / _refractive_index(vacuum)


def _refractive_index(vacuum: Float) -> Float:
    s2 = (1e4 / vacuum) ** 2
    return 1 + 0.05792105 / (238.0185 - s2) + 0.00167917 / (57.362 - s2)


def to_vacuum(wavelength: npt.ArrayLike, medium: str) -> Float:
    """Return vacuum wavelengths [A] for wavelengths in a `medium`, ``vacuum`` or ``air``.

    Raises
    ------
    ValueError
        If the medium is neither.
    """
    if medium not in get_args(Medium):
        raise ValueError(f"medium: found {medium!r}; wanted 'vacuum' or 'air'")
    given = np.asarray(wavelength, dtype=float)
    return air_to_vacuum(given) if medium == "air" else given


def degradation_matrix(
    wavelength: npt.ArrayLike, centres: npt.ArrayLike, resolution: float | Float, fwhm: npt.ArrayLike = 0.0
) -> tuple[csr_array, Float]:
    """Return the matrix that convolves a spectrum with a Gaussian and samples it at `centres`.

    The instrument's own width is subtracted in quadrature; where it is the larger one, the spectrum is interpolated.

    Parameters
    ----------
    wavelength : array (pixel,)
        Of the spectrum, increasing [A].
    centres : array (out,)
        Of the samples [A].
    resolution : float or array (out,)
        Resolving power afterwards.
    fwhm : float or array (pixel,)
        Of the spectrum's line-spread function, including its pixel [A].

    Returns
    -------
    matrix : sparse array (out, pixel)
        Rows sum to one; rows of centres outside the spectrum are empty.
    coverage : array (out,)
        Share of the Gaussian that lies on the spectrum: 1 in its middle, 1/2 at its ends, 0 outside.
    """
    wave, at = np.asarray(wavelength, dtype=float), np.asarray(centres, dtype=float)
    own = np.interp(at, wave, np.broadcast_to(np.asarray(fwhm, dtype=float), wave.shape))
    width = np.gradient(wave)
    least = 0.5 * np.interp(at, wave, width)  # narrower Gaussians fall between pixels
    sigma = np.sqrt(np.maximum((at / resolution) ** 2 - own**2, 0.0)) / FWHM_PER_SIGMA
    narrow = sigma < least
    sigma = np.maximum(sigma, least)
    first = np.searchsorted(wave, at - _REACH * sigma)
    last = np.searchsorted(wave, at + _REACH * sigma)
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
    least_coverage: float = 0.9,
) -> Float:
    """Convolve spectra to a lower resolution and sample them on a grid.

    Parameters
    ----------
    wavelength : array (pixel,)
        Increasing [A].
    flux : array (pixel,) or (n, pixel)
        NaN where there is no datum.
    centres : array (out,)
        Of the samples [A].
    resolution : float
        Resolving power afterwards.
    fwhm : float or array (pixel,)
        Of the line-spread function that the spectra have [A]; subtracted in quadrature.
    least_coverage : float
        Samples with less of the Gaussian on valid pixels are NaN.

    Returns
    -------
    array (out,) or (n, out)
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
    reached = matrix @ valid.T.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        out = (matrix @ np.where(valid, values, 0.0).T) / reached
    out[reached * coverage[:, None] < least_coverage] = np.nan
    return out.T if np.ndim(flux) > 1 else out[:, 0]


def moving_average(flux: npt.NDArray[Any], width: int = AVERAGE) -> npt.NDArray[Any]:
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


def normalise_sed(sed: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Divide SEDs (..., 574) by their mean flux in 5526-5586 A; NaN if that is not observed."""
    mean = sed[..., REFERENCE_PIXELS].mean(axis=-1, keepdims=True)
    return sed / np.where(mean > 0, mean, np.nan)


@dataclass(frozen=True)
class NormalisedSpectra:
    """Spectra on the input grid, divided by their moving average.

    Attributes
    ----------
    flux : float32 array (n, 2238)
        Flux / moving average; 1 where there is no datum.
    error : float32 array (n, 2238)
        1 sigma of it; inf where there is no datum.
    """

    flux: Float32
    error: Float32

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
    """Bring spectra onto the input grid and normalise them.

    Parameters
    ----------
    wavelength : array (pixel,) or (n, pixel)
        Rest frame [A]; any grid that covers 4000-7000 A.
    flux : array (pixel,) or (n, pixel)
        Any unit per Angstrom; NaN where there is no datum.
    error : array like flux, optional
        1 sigma, positive; inf where a pixel is to be ignored. By default it is estimated from the differences of
        neighbouring pixels, which overestimates it where lines are strong.
    medium : str
        Of the wavelengths: ``vacuum`` or ``air``.
    resolution : float, optional
        Resolving power of the spectra. Spectra with a higher one than 2000 are degraded; by default it is assumed to
        be about 2000, and spectra are only resampled.
    source : str
        What the spectra are called in errors.

    Raises
    ------
    ValueError
        If the medium is unknown or shapes differ.
    InputError
        If spectra do not cover 4000-7000 A, more than a fifth of their pixels have no datum, or errors are NaN, zero
        or negative.
    """
    wave = to_vacuum(wavelength, medium)
    values = np.atleast_2d(np.asarray(flux, dtype=float))
    if values.ndim > 2 or wave.shape not in (values.shape[-1:], values.shape):
        raise ValueError(f"flux: found shape {np.shape(flux)}; wanted (n, {wave.shape[-1]}), as wavelength has pixels")
    sigma = None if error is None else np.atleast_2d(np.asarray(error, dtype=float))
    if sigma is not None:
        _check_errors(values, sigma, source)
    if wave.ndim == 1 or len(wave) == 1 or (wave == wave[0]).all():
        return _on_grid(wave if wave.ndim == 1 else wave[0], values, sigma, resolution, source)
    rows = [
        _on_grid(wave[i], values[i : i + 1], None if sigma is None else sigma[i : i + 1], resolution, source)
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


def _on_grid(
    wave: Float, values: Float, sigma: Float | None, resolution: float | None, source: str
) -> NormalisedSpectra:
    order = np.argsort(wave)
    if not (np.diff(wave[order]) > 0).all() or not np.isfinite(wave).all():
        raise InputError(f"{source}, wavelength", "NaN or repeated values", "distinct wavelengths in Angstrom")
    wave, values = wave[order], values[:, order]
    sigma = None if sigma is None else sigma[:, order]
    if wave[0] > INPUT_WAVELENGTH[0] or wave[-1] < INPUT_WAVELENGTH[-1]:
        raise InputError(
            source, f"wavelengths of {wave[0]:.1f}-{wave[-1]:.1f} A (vacuum)", "a range that covers 4000-7000 A"
        )
    absent = ~np.isfinite(values)
    if sigma is not None:
        absent |= np.isinf(sigma)
    matrix = _resampling(wave, resolution)
    lost = abs(matrix) @ absent.T.astype(float) > 1e-3
    if (share := lost.mean(axis=0).max(initial=0.0)) > _MOST_ABSENT:
        raise InputError(
            source, f"no usable flux in {100 * share:.0f} % of 4000-7000 A", f"at most {100 * _MOST_ABSENT:.0f} %"
        )
    out = (matrix @ np.where(absent, 0.0, values).T).T
    out[lost.T] = np.nan
    if sigma is None:
        spread = _estimated_error(out)
    else:
        spread = np.sqrt((matrix.power(2) @ np.where(absent, 0.0, sigma).T ** 2).T)
    mean = moving_average(out)
    if not (mean > 0).all():
        raise InputError(source, "a mean flux that is zero, negative or unknown within 4000-7000 A", "positive fluxes")
    flux = np.where(lost.T, 1.0, out / mean).astype(np.float32)
    error = np.where(lost.T, np.inf, spread / mean).astype(np.float32)
    return NormalisedSpectra(flux, error)


def _resampling(wave: Float, resolution: float | None) -> csr_array:
    """Return the matrix onto the input grid: degraded, averaged over pixels, or interpolated by a local cubic."""
    if resolution is not None and resolution > INPUT_RESOLUTION:
        inside = np.interp(INPUT_WAVELENGTH, wave, np.gradient(wave)) / (INPUT_WAVELENGTH / INPUT_RESOLUTION)
        own = wave / resolution
        if (inside < _FINE).all():
            return degradation_matrix(wave, INPUT_WAVELENGTH, INPUT_RESOLUTION, own)[0]
    step = np.interp(INPUT_WAVELENGTH, wave, np.gradient(wave)) / (INPUT_WAVELENGTH / (2 * INPUT_RESOLUTION))
    return _box_matrix(wave) if (step < _FINE).all() else _cubic_matrix(wave)


def _box_matrix(wave: Float) -> csr_array:
    """Average fine pixels over each output pixel."""
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
    """Interpolate with the cubic through the four nearest pixels."""
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


def _estimated_error(flux: Float) -> Float:
    """Return one error a spectrum, from third differences of its neighbouring pixels (n, 2238)."""
    third = flux[:, 3:] - 3 * flux[:, 2:-1] + 3 * flux[:, 1:-2] - flux[:, :-3]
    noise = 1.4826 * np.nanmedian(np.abs(third), axis=1, keepdims=True) / np.sqrt(20.0)
    least = 1e-3 * np.nanmedian(flux, axis=1, keepdims=True)
    return np.broadcast_to(np.maximum(noise, least), flux.shape).copy()


def extinction_curve(wavelength: npt.ArrayLike, r_v: float = 3.1) -> Float:
    """Return A(wavelength) / A(V) of Cardelli, Clayton & Mathis (1989), with the optical part of O'Donnell (1994).

    Parameters
    ----------
    wavelength : array
        From 1250 to 33000 A.
    r_v : float
        A(V) / E(B - V).

    Examples
    --------
    >>> bool(abs(extinction_curve(5494.5) - 1) < 0.01)
    True
    """
    x = 1e4 / np.asarray(wavelength, dtype=float)
    y = x - 1.82
    a_optical = np.polyval([-0.505, 1.647, -0.827, -1.718, 1.137, 0.701, -0.609, 0.104, 1.0], y)
    b_optical = np.polyval([3.347, -10.805, 5.491, 11.102, -7.985, -3.989, 2.908, 1.952, 0.0], y)
    a_uv = 1.752 - 0.316 * x - 0.104 / ((x - 4.67) ** 2 + 0.341)
    b_uv = -3.090 + 1.825 * x + 1.206 / ((x - 4.62) ** 2 + 0.263)
    conditions = [x < 1.1, x < 3.3]
    a = np.select(conditions, [0.574 * x**1.61, a_optical], a_uv)
    b = np.select(conditions, [-0.527 * x**1.61, b_optical], b_uv)
    return np.asarray(a + b / r_v)


def redden(
    wavelength: npt.ArrayLike,
    mean: npt.NDArray[np.float32],
    sigma: npt.NDArray[np.float32],
    modes: npt.NDArray[np.float32],
    ebv: npt.ArrayLike,
    ebv_error: npt.ArrayLike,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Redden SEDs, relative to the mean flux in 5526-5586 A, by the law of `extinction_curve`.

    Parameters
    ----------
    wavelength : array-like (m,)
        [A], with samples in 5526-5586 A.
    mean, sigma : float32 arrays (n, m)
    modes : float32 array (n, rank, m)
    ebv, ebv_error : array-like (n,)
        E(B - V) and its error [mag].

    Returns
    -------
    mean, sigma, modes
        Of the reddened stars; the error of E(B - V) is one more mode.
    """
    grid = np.asarray(wavelength, dtype=float)
    curve = 0.4 * np.log(10) * 3.1 * extinction_curve(grid)
    curve = curve - curve[(grid >= REFERENCE_RANGE[0]) & (grid <= REFERENCE_RANGE[1])].mean()
    factor = np.exp(-np.asarray(ebv)[:, None] * curve).astype(np.float32)
    mean = mean * factor
    own = (np.asarray(ebv_error)[:, None] * curve).astype(np.float32) * mean
    return mean, np.hypot(sigma * factor, own), np.concatenate([modes * factor[:, None], own[:, None]], axis=1)
