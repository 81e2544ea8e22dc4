"""The sky of one unit: a catalogue of stars and galaxies, and its image before noise.

Stars are drawn as the integral over each pixel of a core and a halo, both Gaussian; galaxies are exponential
disks, sampled five times finer than a pixel, blurred with the same two Gaussians and binned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from scipy.special import erf

from csstdask.mock.recipe import Sky

#: AB zero points [mag for 1 e-/s] and skies [e-/s/pixel]. g, r, i, z after an independent public simulator;
#: NUV, u and y are plausible numbers, nobody's measurement.
ZERO_POINTS = {"NUV": 24.0, "u": 25.0, "g": 26.23, "r": 26.04, "i": 25.85, "z": 25.27, "y": 24.4}
SKY_RATES = {"NUV": 0.01, "u": 0.04, "g": 0.159, "r": 0.206, "i": 0.214, "z": 0.127, "y": 0.06}

#: Gaussians that sum to a point spread function: (share of the light, sigma [pixel]) of each.
GaussianPsf = tuple[tuple[float, float], ...]
#: Full width at half maximum near 1.9 pixels.
PSF: GaussianPsf = ((0.85, 0.78), (0.15, 2.0))
_OVERSAMPLING = 5
_LARGEST_STAMP = 60


@dataclass(frozen=True)
class Catalogue:
    """Sources of one unit: zero-based positions [pixel], fluxes [e-/s], shapes."""

    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    mag: npt.NDArray[np.float64]
    flux: npt.NDArray[np.float64]
    is_star: npt.NDArray[np.bool_]
    half_light_radius: npt.NDArray[np.float64]
    """[pixel], 0 for stars."""
    axis_ratio: npt.NDArray[np.float64]
    angle: npt.NDArray[np.float64]
    """Of the major axis from x to y [rad]."""


def _magnitudes(rng: np.random.Generator, n: int, sky: Sky, slope: float) -> npt.NDArray[np.float64]:
    """Draw from N(<m) ~ 10^(slope m) between the limits."""
    low, high = 10 ** (slope * sky.brightest), 10 ** (slope * sky.faintest)
    return np.log10(rng.uniform(low, high, n)) / slope


def draw_catalogue(rng: np.random.Generator, sky: Sky, shape: tuple[int, int], band: str) -> Catalogue:
    """Draw the sources of one unit."""
    mpix = shape[0] * shape[1] / 1e6
    n_stars, n_galaxies = (int(rng.poisson(density * mpix)) for density in (sky.stars_per_mpix, sky.galaxies_per_mpix))
    n = n_stars + n_galaxies
    is_star = np.arange(n) < n_stars
    mag = np.concatenate(
        [_magnitudes(rng, n_stars, sky, sky.star_slope), _magnitudes(rng, n_galaxies, sky, sky.galaxy_slope)]
    )
    # Galaxies grow with brightness: 0.25 arcsec at 24 mag, doubling over five magnitudes, scattered by 40 %.
    radius = 3.4 * 2 ** ((24 - mag) / 5) * np.exp(rng.normal(0, 0.4, n))
    return Catalogue(
        x=rng.uniform(-0.5, shape[1] - 0.5, n),
        y=rng.uniform(-0.5, shape[0] - 0.5, n),
        mag=mag,
        flux=10 ** (-0.4 * (mag - ZERO_POINTS[band])),
        is_star=is_star,
        half_light_radius=np.where(is_star, 0.0, np.clip(radius, 0.8, 40.0)),
        axis_ratio=np.where(is_star, 1.0, rng.uniform(0.25, 1.0, n)),
        angle=np.where(is_star, 0.0, rng.uniform(0, np.pi, n)),
    )


def draw_scene(
    catalogue: Catalogue, shape: tuple[int, int], sky_rate: float, psf: GaussianPsf = PSF
) -> npt.NDArray[np.float64]:
    """Return the expected image [e-/s/pixel], sky included."""
    image = np.full(shape, sky_rate)
    for i in range(len(catalogue.x)):
        if catalogue.is_star[i]:
            half, stamp = _star(catalogue.x[i], catalogue.y[i], psf)
        else:
            half, stamp = _galaxy(catalogue, i, psf)
        _add(image, catalogue.flux[i] * stamp, round(catalogue.y[i]) - half, round(catalogue.x[i]) - half)
    return image


def _star(x: float, y: float, psf: GaussianPsf, half: int = 14) -> tuple[int, npt.NDArray[np.float64]]:
    edges = np.arange(-half, half + 2) - 0.5
    total = np.zeros((2 * half + 1, 2 * half + 1))
    for share, sigma in psf:
        in_x, in_y = (np.diff(erf((edges - (centre - round(centre))) / (sigma * 2**0.5))) / 2 for centre in (x, y))
        total += share * np.outer(in_y, in_x)
    return half, total


def _galaxy(catalogue: Catalogue, i: int, psf: GaussianPsf) -> tuple[int, npt.NDArray[np.float64]]:
    radius, ratio, angle = catalogue.half_light_radius[i], catalogue.axis_ratio[i], catalogue.angle[i]
    half = int(min(_LARGEST_STAMP, np.ceil(4 * radius) + 6))
    n = _OVERSAMPLING * (2 * half + 1)
    fine = (np.arange(n) + 0.5) / _OVERSAMPLING - half - 0.5
    dx = fine[None, :] - (catalogue.x[i] - round(catalogue.x[i]))
    dy = fine[:, None] - (catalogue.y[i] - round(catalogue.y[i]))
    along = dx * np.cos(angle) + dy * np.sin(angle)
    across = (dy * np.cos(angle) - dx * np.sin(angle)) / ratio
    disk = np.exp(-1.678 * np.hypot(along, across) / radius)  # half of the light within `radius`
    disk /= disk.sum()
    blurred = sum(share * gaussian_filter(disk, sigma * _OVERSAMPLING, mode="constant") for share, sigma in psf)
    side = 2 * half + 1
    binned: npt.NDArray[Any] = np.asarray(blurred).reshape(side, _OVERSAMPLING, side, _OVERSAMPLING).sum(axis=(1, 3))
    return half, binned


def _add(image: npt.NDArray[np.float64], stamp: npt.NDArray[np.float64], y: int, x: int) -> None:
    """Add a stamp whose corner lies at (y, x), cut at the image's edges."""
    top, left = max(0, -y), max(0, -x)
    bottom, right = min(stamp.shape[0], image.shape[0] - y), min(stamp.shape[1], image.shape[1] - x)
    if bottom > top and right > left:
        image[y + top : y + bottom, x + left : x + right] += stamp[top:bottom, left:right]
