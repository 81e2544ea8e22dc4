"""Draw the stars of a globular cluster: King profile, old and metal-poor population."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS

from csstdask.mock.catalogue import Catalogue
from csstdask.mock.recipe_tables import Cluster, Sky
from csstdask.mock.sky import DrawingArea

Float = npt.NDArray[np.float64]


def _cluster_radii(rng: np.random.Generator, cluster: Cluster, n: int) -> Float:
    """Draw n distances from the centre with the surface density of King (1962, AJ 67, 471, eq. 14) [arcsec]."""
    radius = np.linspace(0, cluster.tidal_radius, 4096)
    edge = 1 / np.sqrt(1 + (cluster.tidal_radius / cluster.core_radius) ** 2)
    density = (1 / np.sqrt(1 + (radius / cluster.core_radius) ** 2) - edge) ** 2
    mass = np.cumsum(density * radius)
    return np.interp(rng.random(n), mass / mass[-1], radius)


def _cluster_members(rng: np.random.Generator, cluster: Cluster, sky: Sky) -> tuple[Float, Float]:
    """Draw magnitudes in r and temperatures of an old, metal-poor population."""
    n = cluster.stars
    above = sky.faintest - cluster.turn_off
    evolved = rng.random(n) < 0.12  # subgiants, red giants and horizontal branch
    main = cluster.turn_off + above * rng.random(n) ** (1 / 1.6)
    giant = np.maximum(cluster.turn_off - rng.exponential(1.4, n), max(sky.brightest, cluster.turn_off - 6))
    magnitude = np.where(evolved, giant, main)
    depth = (magnitude - cluster.turn_off) / max(above, 1)
    temperature = np.where(
        evolved, 5900 - 300 * (cluster.turn_off - magnitude), 6400 - 2900 * np.clip(depth, 0, 1) ** 0.8
    )
    on_branch = evolved & (rng.random(n) < 0.12)
    magnitude = np.where(on_branch, cluster.turn_off - 3.2 + rng.normal(0, 0.15, n), magnitude)
    temperature = np.where(on_branch, rng.uniform(7000, 12000, n), temperature + rng.normal(0, 60, n))
    return magnitude, np.clip(temperature, 3200, 13000)


def draw_cluster_stars(rng: np.random.Generator, area: DrawingArea, cluster: Cluster, wcs: WCS, sky: Sky) -> Catalogue:
    """Draw the members of a cluster that fall on an area, given the WCS of the frame."""
    distance, azimuth = _cluster_radii(rng, cluster, cluster.stars), rng.uniform(0, 2 * np.pi, cluster.stars)
    magnitude, temperature = _cluster_members(rng, cluster, sky)
    centre = SkyCoord(*cluster.centre, unit="deg")
    positions = centre.spherical_offsets_by(
        distance * np.cos(azimuth) * units.arcsec, distance * np.sin(azimuth) * units.arcsec
    )
    x, y = (np.asarray(part, dtype=np.float64) for part in wcs.world_to_pixel(positions))
    ny, nx = area.shape
    inside = (x > -0.5 - area.margin) & (x < nx - 0.5 + area.margin) & (y > -0.5 - area.margin)
    inside &= (y < ny - 0.5 + area.margin) & np.isfinite(x + y)
    return area.stars(x[inside], y[inside], magnitude[inside], temperature[inside])
