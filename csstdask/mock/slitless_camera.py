"""The true response of a slitless camera: its large-scale flat and its sensitivity.

The flat of a detector is

    F(x, y, wavelength) = 1 + sum_k c_k(wavelength) L_a(u) L_b(v),    1 <= a + b <= degree,

with Legendre polynomials L, u = 2 (x + 1/2) / nx - 1 and v = 2 (y + 1/2) / ny - 1 over the frame. Its mean over the
detector is 1 at every wavelength. The coefficients are quadratic in t = (wavelength - first) / (last - first) over the
band. The sensitivity is the nominal one times 1 plus a cubic in t. Outside of the band t is clamped to [0, 1].
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from numpy.polynomial import legendre

from csstdask.instrument import Instrument
from csstdask.instrument.dispersion import nominal_sensitivity, slitless_order
from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.recipe import Recipe
from csstdask.mock.recipe_tables import Slitless

Float = npt.NDArray[np.float64]

_FLAT_AMPLITUDES = np.array([1.0, 0.5, 0.3])
"""1 sigma of mean, linear and quadratic part of a flat coefficient over the band, relative to the amplitude."""
_SENSITIVITY_TERMS = 3
"""Degree of the polynomial deviation of the sensitivity."""
_MAX_TERMS = 66
"""Terms for which random numbers are drawn, so that a higher degree adds terms without changing the others."""


def flat_terms(degree: int) -> tuple[tuple[int, int], ...]:
    """Return the degrees in u and v of the terms of a flat, the constant first.

    Examples
    --------
    >>> flat_terms(2)
    ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))
    """
    return tuple((total - b, b) for total in range(degree + 1) for b in range(total + 1))


def flat_coefficients(recipe: Recipe, instrument: Instrument, detector: int, wavelength: npt.ArrayLike) -> Float:
    """Return the coefficients of the true flat.

    Parameters
    ----------
    recipe : Recipe
        Recipe with a table ``[slitless]``.
    instrument : Instrument
        Camera of the recipe.
    detector : int
        Detector id.
    wavelength : array-like (...)
        Wavelength [Angstrom].

    Returns
    -------
    float64 array (..., term)
        Coefficients of the terms of `flat_terms`; the constant is 1.
    """
    settings = require_slitless(recipe)
    t = _scaled_wavelength(instrument, detector, wavelength)
    drawn = _flat_draws(settings, detector)[: len(flat_terms(settings.flat_degree))]
    found = legendre.legvander(2 * t - 1, drawn.shape[1] - 1) @ drawn.T
    found[..., 0] = 1.0
    return np.asarray(found.reshape(*t.shape, -1))


@lru_cache(maxsize=64)
def _flat_draws(settings: Slitless, detector: int) -> Float:
    """Draw mean, linear and quadratic part of each term of the flat (_MAX_TERMS, 3)."""
    rng = stream(settings.seed, Purpose.SLITLESS_FLAT, detector)
    drawn = rng.normal(size=(_MAX_TERMS, len(_FLAT_AMPLITUDES)))
    return np.asarray(settings.flat_amplitude * _FLAT_AMPLITUDES * drawn)


def require_slitless(recipe: Recipe) -> Slitless:
    """Return the table ``[slitless]`` of a recipe.

    Raises
    ------
    ValueError
        If it has none.
    """
    if recipe.slitless is None:
        raise ValueError(f"{recipe.name}: found no table [slitless]; wanted a recipe of slitless frames")
    return recipe.slitless


def _scaled_wavelength(instrument: Instrument, detector: int, wavelength: npt.ArrayLike) -> Float:
    """Return t, the wavelength scaled to 0..1 over the first order and clamped."""
    first, last = slitless_order(instrument, detector).wavelength
    return np.clip((np.asarray(wavelength, dtype=np.float64) - first) / (last - first), 0, 1)


def true_flat(
    recipe: Recipe,
    instrument: Instrument,
    detector: int,
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    wavelength: npt.ArrayLike,
) -> Float:
    """Return the true large-scale flat.

    Parameters
    ----------
    recipe : Recipe
        Recipe with a table ``[slitless]``.
    instrument : Instrument
        Camera of the recipe.
    detector : int
        Detector id.
    x, y : array-like
        Zero-based positions on the frame [pixel].
    wavelength : array-like
        Wavelength [Angstrom]; broadcast with `x` and `y`.

    Returns
    -------
    float64 array
        Flat, of mean 1 over the detector at every wavelength.
    """
    x, y, wavelength = np.broadcast_arrays(*(np.asarray(part, dtype=np.float64) for part in (x, y, wavelength)))
    degree = require_slitless(recipe).flat_degree
    ny, nx = recipe.frame_shape
    in_u = legendre.legvander(2 * (x + 0.5) / nx - 1, degree).reshape(*x.shape, -1)
    in_v = legendre.legvander(2 * (y + 0.5) / ny - 1, degree).reshape(*x.shape, -1)
    coefficients = flat_coefficients(recipe, instrument, detector, wavelength)
    terms = enumerate(flat_terms(degree))
    return np.asarray(sum(coefficients[..., k] * in_u[..., a] * in_v[..., b] for k, (a, b) in terms))


def band_flat(recipe: Recipe, detector: int) -> npt.NDArray[np.float32]:
    """Return the true flat of a frame (y, x), averaged over the wavelengths of the band."""
    degree = require_slitless(recipe).flat_degree
    ny, nx = recipe.frame_shape
    # Legendre polynomials of t have mean 0, except the constant.
    mean = _flat_draws(require_slitless(recipe), detector)[:, 0]
    matrix = np.zeros((degree + 1, degree + 1))
    for k, (a, b) in enumerate(flat_terms(degree)):
        matrix[b, a] = mean[k] if k else 1.0
    in_u, in_v = (legendre.legvander(2 * (np.arange(n) + 0.5) / n - 1, degree) for n in (nx, ny))
    return np.asarray(in_v.astype(np.float32) @ (matrix @ in_u.T).astype(np.float32))


def true_sensitivity(
    recipe: Recipe, instrument: Instrument, detector: int, wavelength: npt.ArrayLike, order: int = 1
) -> Float:
    """Return the true sensitivity of an order [(e-/s/Angstrom) / (erg/s/cm2/Angstrom)].

    Parameters
    ----------
    recipe : Recipe
        Recipe with a table ``[slitless]``.
    instrument : Instrument
        Camera of the recipe.
    detector : int
        Detector id.
    wavelength : array-like
        Wavelength [Angstrom]; the sensitivity is 0 without throughput.
    order : int
        Diffraction order; the relative deviation from nominal is the same for all orders.
    """
    settings = require_slitless(recipe)
    drawn = stream(settings.seed, Purpose.SLITLESS_SENSITIVITY, detector).normal(size=_SENSITIVITY_TERMS + 1)
    t = _scaled_wavelength(instrument, detector, wavelength)
    deviation = settings.sensitivity_error * legendre.legval(2 * t - 1, drawn / np.arange(1, len(drawn) + 1))
    return np.asarray(nominal_sensitivity(instrument, detector, wavelength, order) * (1 + deviation))
