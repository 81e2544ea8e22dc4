"""Draw the stars and galaxies of a field from number counts and colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.mock.catalogue import Catalogue, concatenate
from csstdask.mock.recipe_tables import Sky
from csstdask.optics.blackbody import photon_rate

Float = npt.NDArray[np.float64]

MARGIN = 40
"""Margin around a frame in which sources are drawn, because their light reaches the frame [pixel]."""
_R_WAVELENGTH = 620.0
"""Wavelength at which magnitudes are drawn: the centre of r [nm]."""
_KNOT_FRACTION = 0.45
"""Fraction of the disk light of a clumpy galaxy in its knots."""


def band_magnitude(r_magnitude: Float, temperature: Float, wavelength: float) -> Float:
    """Return the AB magnitude of black bodies at a wavelength.

    Parameters
    ----------
    r_magnitude : float64 array (n,)
        Magnitude in r [mag].
    temperature : float64 array (n,)
        Temperature [K].
    wavelength : float
        Wavelength [nm].

    Examples
    --------
    >>> band_magnitude(np.array([20.0]), np.array([3500.0]), 900.0).round(2)
    array([18.96])
    """

    def energy(length: float) -> Float:  # per unit frequency
        return photon_rate(np.array([length]), temperature)[:, 0] * length

    return np.asarray(r_magnitude - 2.5 * np.log10(energy(wavelength) / energy(_R_WAVELENGTH)))


def _draw_r_magnitudes(rng: np.random.Generator, n: int, sky: Sky, slope: float) -> Float:
    """Draw n magnitudes from N(<m) ~ 10^(slope m) between the limits of the sky."""
    low, high = 10 ** (slope * sky.brightest), 10 ** (slope * sky.faintest)
    return np.asarray(np.log10(rng.uniform(low, high, n)) / slope)


@dataclass(frozen=True)
class DrawingArea:
    """The area in which sources are drawn: a frame with a margin, in one band."""

    shape: tuple[int, int]
    """Shape (y, x) of the frame."""
    margin: float
    """Margin on each side [pixel]."""
    wavelength: float
    """Centre of the band [nm]."""
    zero_point: float
    """AB magnitude of 1 e-/s [mag]."""

    @property
    def mpix(self) -> float:
        """Return the area with margins [million pixels]."""
        return (self.shape[0] + 2 * self.margin) * (self.shape[1] + 2 * self.margin) / 1e6

    def positions(self, rng: np.random.Generator, n: int) -> tuple[Float, Float]:
        """Draw n positions (x, y)."""
        x = rng.uniform(-0.5 - self.margin, self.shape[1] - 0.5 + self.margin, n)
        return x, rng.uniform(-0.5 - self.margin, self.shape[0] - 0.5 + self.margin, n)

    def stars(self, x: Float, y: Float, r_magnitude: Float, temperature: Float) -> Catalogue:
        """Return a catalogue of stars with given positions, magnitudes in r and temperatures."""
        mag = band_magnitude(r_magnitude, temperature, self.wavelength)
        zero, one = np.zeros(len(x)), np.ones(len(x))
        flux = 10 ** (-0.4 * (mag - self.zero_point))
        return Catalogue(x, y, mag, flux, one > 0, temperature, zero, one, zero, zero, zero, zero)


def _draw_temperatures(rng: np.random.Generator, r_magnitude: Float) -> Float:
    """Draw temperatures of stars at high galactic latitude: the fraction of red dwarfs grows with magnitude."""
    n = len(r_magnitude)
    red = rng.random(n) < np.clip(0.15 + 0.08 * (r_magnitude - 16), 0.15, 0.85)
    blue = rng.random(n) < 0.01  # white dwarfs and hot subdwarfs
    temperature = np.where(red, rng.normal(3500, 250, n), rng.normal(5700, 500, n))
    return np.clip(np.where(blue, rng.uniform(9000, 20000, n), temperature), 2600, 20000)


def draw_field_stars(rng: np.random.Generator, area: DrawingArea, sky: Sky, factor: float) -> Catalogue:
    """Draw the stars of an area; `factor` multiplies their density."""
    n = int(rng.poisson(sky.stars_per_mpix * factor * area.mpix))
    magnitude = _draw_r_magnitudes(rng, n, sky, sky.star_slope)
    return area.stars(*area.positions(rng, n), magnitude, _draw_temperatures(rng, magnitude))


def draw_galaxies(rng: np.random.Generator, area: DrawingArea, sky: Sky, factor: float) -> Catalogue:
    """Draw the galaxies of an area; `factor` multiplies their density."""
    n = int(rng.poisson(sky.galaxies_per_mpix * factor * area.mpix))
    n_large = int(rng.poisson(sky.large_galaxies_per_mpix * factor * area.mpix))
    magnitude = np.concatenate([_draw_r_magnitudes(rng, n, sky, sky.galaxy_slope), rng.uniform(14.5, 18.5, n_large)])
    n += n_large
    large = np.arange(n) >= n - n_large
    # 0.25 arcsec at 24 mag, doubling over five magnitudes, with 40 % scatter: close to deep fields.
    radius = 3.4 * 2 ** ((24 - magnitude) / 5) * np.exp(rng.normal(0, 0.4, n))
    radius = np.where(large, rng.uniform(35, 90, n), np.clip(radius, 0.8, 25))
    # (1 - q) / (1 + q). Faint galaxies are flatter, because fewer of them are dominated by a bulge.
    width = np.interp(magnitude, [19, 25], [0.2, 0.33])
    ellipticity = np.minimum(np.hypot(*rng.normal(0, 1, (2, n))) * width, 0.85)
    # A third of the bright galaxies is dominated by a bulge; faint galaxies are almost pure disks.
    bulge = np.clip(rng.beta(0.8, 2.5, n) * np.clip((27 - magnitude) / 6, 0.2, 1.3), 0, 1)
    bulge = np.where(bulge < 0.03, 0, bulge)
    temperature = np.clip(rng.normal(5600, 900, n) - 1500 * bulge, 3300, 12000)
    mag = band_magnitude(magnitude, temperature, area.wavelength)
    x, y = area.positions(rng, n)
    clumpy = (sky.morphology == "clumpy") & (radius > 1.5)
    return Catalogue(
        x=x,
        y=y,
        mag=mag,
        flux=10 ** (-0.4 * (mag - area.zero_point)),
        is_star=np.zeros(n, dtype=bool),
        temperature=temperature,
        half_light_radius=radius,
        axis_ratio=np.maximum((1 - ellipticity) / (1 + ellipticity), 0.1),
        angle=rng.uniform(0, np.pi, n),
        bulge_share=bulge,
        bulge_radius=radius * np.exp(rng.normal(-0.9, 0.3, n)),
        knot_share=np.where(clumpy, _KNOT_FRACTION, 0.0),
    )


def draw_sky(
    rng: np.random.Generator,
    sky: Sky,
    shape: tuple[int, int],
    *,
    wavelength: float = _R_WAVELENGTH,
    zero_point: float = 26.04,
    margin: float = MARGIN,
    stars: float = 1.0,
    galaxies: float = 1.0,
) -> Catalogue:
    """Draw the stars and galaxies of a frame that is not part of a survey.

    Parameters
    ----------
    rng : numpy.random.Generator
        Random stream.
    sky : Sky
        Densities and magnitude limits.
    shape : (int, int)
        Shape (y, x) of the frame.
    wavelength : float
        Centre of the band [nm].
    zero_point : float
        AB magnitude of 1 e-/s [mag].
    margin : float
        Margin beyond the edges of the frame [pixel].
    stars, galaxies : float
        Factors on the densities.

    Examples
    --------
    >>> sources = draw_sky(np.random.default_rng(1), Sky(), (256, 256))
    >>> len(sources) > 0
    True
    """
    area = DrawingArea(shape, margin, wavelength, zero_point)
    return concatenate([draw_field_stars(rng, area, sky, stars), draw_galaxies(rng, area, sky, galaxies)])
