"""The expected light of a slitless frame: first orders, zeroth orders and sky.

Column X of the trace of a star receives the rate

    r(X) = F(wavelength) S(wavelength) |d wavelength / d x|    [e-/s],

where the wavelength follows from the position of the star and X by the dispersion relation. The SED F has R = 200 with
the pixel included, so that the spectrum is not smoothed along x. Across the trace the rate is distributed by a
pixel-integrated profile that sums to 1. Each pixel is multiplied by the flat at its position and wavelength.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
import numpy.typing as npt
from numpy.polynomial import legendre

from csstdask.core.errors import InputError
from csstdask.instrument import Instrument
from csstdask.instrument.dispersion import dispersion_of, slitless_order
from csstdask.mock.expected_image import sky_gradient
from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.recipe import Recipe
from csstdask.mock.sed_library import SedLibrary, check_coverage, find_library
from csstdask.mock.sensor import Frame
from csstdask.mock.slitless_camera import band_flat, flat_coefficients, flat_terms, require_slitless, true_sensitivity
from csstdask.mock.slitless_stars import dispersion_shift, field_stars, recipe_library, unit_positions
from csstdask.numerics.spectral import interpolate_spectrum

Float = npt.NDArray[np.float64]

PROFILE_SHARES = (0.85, 0.15)
"""Fractions of the light across a trace in the core and in the wings."""
PROFILE_SIGMAS = (0.95, 2.3)
"""Widths of core and wings at 5500 Angstrom, 1 sigma: 80 % of the light within 0.15 arcsec (assumed) [pixel]."""
PROFILE_WAVELENGTH = 5500.0
"""Wavelength of `PROFILE_SIGMAS` [Angstrom]."""
PROFILE_EXPONENT = 0.3
"""Widths grow as wavelength^0.3, between detector diffusion (0) and diffraction (1)."""
_HALF_WIDTH = 15
"""Rows on each side of a trace, 5 sigma of the wings at 10500 Angstrom [pixel]."""
_BATCH_SIZE = 256
"""Number of stars rendered at a time."""
_WAVELENGTH_STEP = 2.0
"""Step of the integral over an undispersed spectrum [Angstrom]."""


@dataclass(frozen=True)
class TracedStars:
    """Stars of a frame at their positions without the grating."""

    x: Float
    """Zero-based position along x (star,) [pixel]."""
    y: Float
    """Zero-based position along y (star,) [pixel]."""
    flux_5556: Float
    """Mean flux in 5526-5586 Angstrom (star,) [erg s-1 cm-2 A-1]."""
    sed: Float
    """SED in units of `flux_5556` (star, m)."""

    def __len__(self) -> int:
        return len(self.x)


def unit_stars(recipe: Recipe, instrument: Instrument, index: int, detector: int, library: SedLibrary) -> TracedStars:
    """Return the stars of a unit."""
    stars = field_stars(recipe, instrument, index, detector, library)
    x, y = unit_positions(recipe, instrument, index, detector, stars)
    return TracedStars(x, y, stars.flux_5556, library.sed[stars.sed])


def check_slitless(recipe: Recipe, instrument: Instrument, data: Path | None = None) -> None:
    """Raise InputError for a slitless recipe that cannot be rendered."""
    where = f"{recipe.name}: detectors"
    for detector in recipe.detectors:
        band = instrument.detector(detector).band
        if band not in instrument.slitless:
            known = ", ".join(sorted(instrument.slitless)) or "none"
            found = f"{detector} (band {band}) in a recipe with [slitless]"
            raise InputError(where, found, f"detectors of slitless bands ({known}), or no table [slitless]")
    clusters = any(field.cluster for field in recipe.fields)
    unused = {"stamps": recipe.stamps is not None, "nodes": recipe.nodes is not None, "fields.cluster": clusters}
    for name, given in unused.items():
        if given:
            raise InputError(f"{recipe.name}: {name}", "a table that slitless frames do not use", "none")
    file = find_library(require_slitless(recipe).seds, data)
    library = recipe_library(recipe, data)
    for band in {str(instrument.detector(detector).band) for detector in recipe.detectors}:
        first = next(one for one in instrument.slitless[band].orders if one.order == 1)
        check_coverage(library, first.wavelength, band, file)


def expected_spectra(
    recipe: Recipe, instrument: Instrument, index: int, detector: int, data: Path | None = None
) -> Frame:
    """Return the expected light of a slitless unit with sky [e-/s/pixel].

    Parameters
    ----------
    recipe : Recipe
        The mock survey.
    instrument : Instrument
        Camera of the recipe.
    index : int
        Index of the exposure.
    detector : int
        Detector id.
    data : Path, optional
        Folder of SED libraries.

    Returns
    -------
    float32 array (y, x)
    """
    library = recipe_library(recipe, data)
    stars = unit_stars(recipe, instrument, index, detector, library)
    rng = stream(recipe.seed, Purpose.ARTEFACTS, index, detector)
    light = sky_gradient(rng, recipe.sky.gradient, recipe.frame_shape)
    light *= np.float32(instrument.slitless[str(instrument.detector(detector).band)].sky * recipe.sky.level)
    add_zeroth_orders(light, recipe, instrument, detector, stars, library.wavelength)
    light *= band_flat(recipe, detector)
    shift = dispersion_shift(recipe, index)
    add_first_orders(light, recipe, instrument, detector, stars, library.wavelength, shift=shift)
    return np.maximum(light, 0, out=light)  # splines may undershoot at deep lines


def add_first_orders(
    light: Frame,
    recipe: Recipe,
    instrument: Instrument,
    detector: int,
    stars: TracedStars,
    wavelength: Float,
    *,
    shift: float = 0.0,
) -> None:
    """Add the first orders of stars to a frame, multiplied by the flat.

    Parameters
    ----------
    light : float32 array (y, x)
        Expected light, modified in place [e-/s/pixel].
    recipe : Recipe
        Recipe with a table ``[slitless]``.
    instrument : Instrument
        Camera of the recipe.
    detector : int
        Detector id.
    stars : TracedStars
        The stars.
    wavelength : float64 array (m,)
        Wavelengths of their SEDs [Angstrom].
    shift : float
        Shift of the spectra along x [pixel].
    """
    shape = (light.shape[0], light.shape[1])
    relation = dispersion_of(instrument, detector, shape)
    order = slitless_order(instrument, detector)
    limits = np.array([order.throughput[0][0], order.throughput[-1][0]])
    degree = require_slitless(recipe).flat_degree
    for batch in range(0, len(stars), _BATCH_SIZE):
        part = slice(batch, batch + _BATCH_SIZE)
        x, y = stars.x[part, None], stars.y[part, None]
        ends = relation.position(x, y, limits)[0] + shift
        first = np.floor(ends.min(axis=1)).astype(np.int64)
        column = first[:, None] + np.arange(int(np.ceil((ends.max(axis=1) - first).max())) + 1)
        wave = relation.wavelength(x, y, column - shift)
        seds = zip(stars.sed[part], wave, strict=True)
        rate = np.nan_to_num(np.array([interpolate_spectrum(wavelength, sed, at) for sed, at in seds]))
        rate *= stars.flux_5556[part, None] * true_sensitivity(recipe, instrument, detector, wave)
        rate *= np.abs(relation.angstrom_per_pixel(x, y, wave))
        in_u = legendre.legvander(2 * (column + 0.5) / shape[1] - 1, degree)
        coefficients = flat_coefficients(recipe, instrument, detector, wave)
        in_v = np.zeros((*column.shape, degree + 1))
        for k, (a, b) in enumerate(flat_terms(degree)):
            in_v[..., b] += coefficients[..., k] * in_u[..., a]
        trace = relation.position(x, y, wave)[1]
        _add_spectra(light, first, trace, rate, _relative_width(wave), in_v)


def add_zeroth_orders(
    light: Frame, recipe: Recipe, instrument: Instrument, detector: int, stars: TracedStars, wavelength: Float
) -> None:
    """Add the zeroth orders of stars to a frame, without flat: compact images with the light of the band.

    Parameters as for `add_first_orders`. Nothing is added for a grating without a zeroth order.
    """
    band = instrument.slitless[str(instrument.detector(detector).band)]
    if not any(one.order == 0 for one in band.orders) or not len(stars):
        return
    order = slitless_order(instrument, detector, 0)
    wave = np.arange(order.throughput[0][0], order.throughput[-1][0], _WAVELENGTH_STEP) + _WAVELENGTH_STEP / 2
    response = true_sensitivity(recipe, instrument, detector, wave, 0)
    middle = float(np.average(wave, weights=response))
    x, y = dispersion_of(instrument, detector, light.shape, 0).position(stars.x, stars.y, middle)
    wave = wave[(wave >= wavelength[0]) & (wave <= wavelength[-1])]
    response = true_sensitivity(recipe, instrument, detector, wave, 0) * _WAVELENGTH_STEP
    near = (abs(x - light.shape[1] / 2) < light.shape[1] / 2 + _HALF_WIDTH) & (
        abs(y - light.shape[0] / 2) < light.shape[0] / 2 + _HALF_WIDTH
    )
    rows = np.flatnonzero(near)
    sigmas = np.array(PROFILE_SIGMAS) * float(_relative_width(np.array(middle)))
    offsets = np.arange(-_HALF_WIDTH, _HALF_WIDTH + 1)
    for i in rows:
        rate = stars.flux_5556[i] * (interpolate_spectrum(wavelength, stars.sed[i], wave) @ response)
        column, row = round(float(x[i])) + offsets, round(float(y[i])) + offsets
        image = np.zeros((len(row), len(column)))
        for share, sigma in zip(PROFILE_SHARES, sigmas, strict=True):
            image += share * np.outer(_pixel_fractions(row - y[i], sigma), _pixel_fractions(column - x[i], sigma))
        on_y, on_x = (row >= 0) & (row < light.shape[0]), (column >= 0) & (column < light.shape[1])
        light[np.ix_(row[on_y], column[on_x])] += (rate * image[np.ix_(on_y, on_x)]).astype(np.float32)


def _relative_width(wavelength: Float) -> Float:
    """Return the widths of profiles relative to those at 5500 Angstrom."""
    return np.asarray((np.maximum(wavelength, 1.0) / PROFILE_WAVELENGTH) ** PROFILE_EXPONENT)


def _pixel_fractions(distance: Float, sigma: float) -> Float:
    """Return the fraction of a Gaussian in pixels at distances from its centre [pixel]."""
    from scipy.special import erf  # noqa: PLC0415  slow to import

    scale = 1 / (sigma * math.sqrt(2))
    return np.asarray(0.5 * (erf((distance + 0.5) * scale) - erf((distance - 0.5) * scale)))


@numba.njit(cache=True)
def _cumulative(distance: float, scale: float) -> float:
    """Return the fraction of the profile below a distance from its centre [pixel]."""
    total = 0.0
    for k in range(len(PROFILE_SHARES)):
        total += PROFILE_SHARES[k] * 0.5 * math.erf(distance / (PROFILE_SIGMAS[k] * scale * math.sqrt(2.0)))
    return total


@numba.njit(cache=True)
def _add_spectra(
    light: npt.NDArray[np.float32],
    first: npt.NDArray[np.int64],
    trace: Float,
    rate: Float,
    scale: Float,
    in_v: Float,
) -> None:
    """Add `rate` (star, column) across `trace` to a frame, times the Legendre series `in_v` of the flat."""
    ny, nx = light.shape
    for i in range(trace.shape[0]):
        for j in range(trace.shape[1]):
            x = first[i] + j
            if x < 0 or x >= nx or rate[i, j] == 0:
                continue
            centre = trace[i, j]
            middle = int(np.rint(centre))
            low, high = max(0, middle - _HALF_WIDTH), min(ny - 1, middle + _HALF_WIDTH)
            below = _cumulative(low - 0.5 - centre, scale[i, j])
            for y in range(low, high + 1):
                above = _cumulative(y + 0.5 - centre, scale[i, j])
                v = 2 * (y + 0.5) / ny - 1
                before, now = 0.0, 1.0
                flat = in_v[i, j, 0]
                for k in range(1, in_v.shape[2]):
                    before, now = now, ((2 * k - 1) * v * now - (k - 1) * before) / k
                    flat += in_v[i, j, k] * now
                light[y, x] += rate[i, j] * (above - below) * flat
                below = above
