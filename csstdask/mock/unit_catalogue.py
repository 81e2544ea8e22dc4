"""The true sources of one unit: field, cluster, stars on a grid, or copies of sources.

Stars and galaxies of a field are drawn once per detector. Dithers only shift them, so exposures of one field show the
same sky. Magnitudes are drawn in r; the colour of a source is that of a black body.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from astropy.wcs import WCS

from csstdask.instrument import Instrument, nominal_header
from csstdask.mock.catalogue import APERTURE_PIXELS, Catalogue, concatenate
from csstdask.mock.globular_cluster import draw_cluster_stars
from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.recipe import Recipe
from csstdask.mock.recipe_tables import Nodes, Sky
from csstdask.mock.sky import MARGIN, DrawingArea, draw_field_stars, draw_galaxies, draw_sky
from csstdask.mock.zeropoint_units import star_density_factor, unit_conditions


def _node_stars(rng: np.random.Generator, area: DrawingArea, nodes: Nodes, exptime: float, noise: float) -> Catalogue:
    """Return stars near the nodes of a grid, with random sub-pixel positions and the requested S/N."""
    ny, nx = area.shape
    axis = (np.arange(nodes.per_axis) + 0.5) / nodes.per_axis
    x, y = (part.ravel() for part in np.meshgrid(axis * nx - 0.5, axis * ny - 0.5))
    x, y = np.rint(x) + rng.uniform(-0.5, 0.5, x.size), np.rint(y) + rng.uniform(-0.5, 0.5, y.size)
    snr = np.exp(rng.uniform(np.log(nodes.snr[0]), np.log(nodes.snr[1]), x.size))
    # Solve S/N = F / sqrt(F + n noise^2) for the counts F in an aperture of n pixels.
    counts = (snr**2 + np.sqrt(snr**4 + 4 * snr**2 * APERTURE_PIXELS * noise**2)) / 2
    temperature = rng.uniform(4000, 7500, x.size)
    stars = area.stars(x, y, np.full(x.size, 20.0), temperature)
    flux = counts / exptime
    return replace(stars, flux=flux, mag=area.zero_point - 2.5 * np.log10(flux))


_CELL_SIZE = 96
"""Spacing of copies of sources [pixel]."""


def max_copies(shape: tuple[int, int]) -> int:
    """Return the largest number of copies of sources that fit on a frame."""
    return (shape[0] // _CELL_SIZE) * (shape[1] // _CELL_SIZE)


def _source_copies(
    rng: np.random.Generator, area: DrawingArea, sky: Sky, magnitudes: tuple[float, ...], count: int
) -> Catalogue:
    """Return `count` copies of a source of each magnitude on a grid, alternately stars and galaxies.

    The papers area a hundred cosmic rays on one source. Here each cosmic ray hits a separate copy with independent
    photon noise.
    """
    first = int(rng.integers(2))
    parts = []
    for number, mag in enumerate(magnitudes):
        # A pool of sources near the requested magnitude in this band, of any colour.
        limits = {"brightest": mag - 7, "faintest": mag + 2, "star_slope": 0.05, "galaxy_slope": 0.05}
        densities = {"stars_per_mpix": 3000.0, "galaxies_per_mpix": 3000.0, "large_galaxies_per_mpix": 0.0}
        pool_sky = sky.model_copy(update=limits | densities)
        pool = draw_sky(rng, pool_sky, (1000, 1000), wavelength=area.wavelength, zero_point=area.zero_point)
        wanted = pool.is_star if (number + first) % 2 else ~pool.is_star
        nearest = np.flatnonzero(wanted)[np.argmin(abs(pool.mag[wanted] - mag))]
        flux = np.full(count, 10 ** (-0.4 * (mag - area.zero_point)))
        parts.append(replace(pool.select(np.repeat(nearest, count)), mag=np.full(count, mag), flux=flux))
    sources = concatenate(parts)
    nx = area.shape[1]
    cells = rng.permutation(max_copies(area.shape))[: len(sources)]
    y, x = np.divmod(cells, nx // _CELL_SIZE)
    centre = _CELL_SIZE // 2
    return replace(
        sources.select(np.arange(len(cells))),
        x=x * _CELL_SIZE + centre + rng.uniform(-0.5, 0.5, len(cells)),
        y=y * _CELL_SIZE + centre + rng.uniform(-0.5, 0.5, len(cells)),
    )


def field_wcs(recipe: Recipe, instrument: Instrument, index: int, detector: int) -> WCS:
    """Return the WCS of a detector in an exposure, without dither."""
    field = recipe.field_of(index)
    return WCS(nominal_header(instrument, detector, field.pointing, recipe.frame_shape))


def exposure_dither(recipe: Recipe, index: int) -> tuple[float, float]:
    """Return the shift of the sources of an exposure relative to its field, along x and y [pixel]."""
    if recipe.pointing.dither == 0:
        return 0.0, 0.0
    x, y = stream(recipe.seed, Purpose.POINTING, index).uniform(-recipe.pointing.dither, recipe.pointing.dither, 2)
    return float(x), float(y)


def unit_catalogue(recipe: Recipe, instrument: Instrument, index: int, detector: int) -> Catalogue:
    """Return the true sources of a unit, including those just beyond its edges.

    Fluxes include the true zero point of the unit.

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
    """
    offset = unit_conditions(recipe, index, detector).offset
    if recipe.nodes is not None:
        band = instrument.bands[str(instrument.detector(detector).band)]
        noise = (band.sky * recipe.sky.level + recipe.sensor.dark) * recipe.exptime
        noise = np.sqrt(noise + (instrument.values(detector).read_noise or 0.0) ** 2)
        rng = stream(recipe.seed, Purpose.STARS, index, detector)
        return _node_stars(
            rng, _drawing_area(recipe, instrument, detector, offset), recipe.nodes, recipe.exptime, noise
        )
    if recipe.stamps is not None and recipe.stamps.kind == "brightness":
        rng = stream(recipe.seed, Purpose.STARS, index, detector)
        area = _drawing_area(recipe, instrument, detector, offset)
        return _source_copies(rng, area, recipe.sky, recipe.stamps.magnitudes, recipe.stamps.cosmic_rays_each)
    drawn = field_sources(recipe, instrument, index, detector, offset=offset)
    return drawn.shifted(*exposure_dither(recipe, index))


def _drawing_area(recipe: Recipe, instrument: Instrument, detector: int, offset: float) -> DrawingArea:
    """Return the area in which the sources of a detector are drawn; `offset` is that of the zero point [mag]."""
    band = instrument.bands[str(instrument.detector(detector).band)]
    margin = MARGIN + recipe.pointing.dither
    return DrawingArea(recipe.frame_shape, margin, sum(band.wavelength) / 2, band.zero_point + offset)


def field_sources(
    recipe: Recipe, instrument: Instrument, index: int, detector: int, *, offset: float = 0.0
) -> Catalogue:
    """Return the sources of the field of an exposure on one detector, without dither.

    Parameters
    ----------
    recipe, instrument, index, detector
        As for `unit_catalogue`.
    offset : float
        Offset of the zero point from nominal [mag].
    """
    area, number = _drawing_area(recipe, instrument, detector, offset), recipe.field_index(index)
    field = recipe.field_of(index)
    density = field.stars * star_density_factor(recipe, detector)
    parts = [
        draw_field_stars(stream(recipe.seed, Purpose.STARS, number, detector), area, recipe.sky, density),
        draw_galaxies(stream(recipe.seed, Purpose.GALAXIES, number, detector), area, recipe.sky, field.galaxies),
    ]
    if field.cluster is not None:
        wcs = field_wcs(recipe, instrument, index, detector)
        rng = stream(recipe.seed, Purpose.CLUSTER, number)  # the same for all detectors
        parts.append(draw_cluster_stars(rng, area, field.cluster, wcs, recipe.sky))
    return concatenate(parts)
