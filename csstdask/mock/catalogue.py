"""The true sources of a unit: field stars, a cluster's stars, galaxies, or stars on nodes.

Stars and galaxies of a field are drawn once for each detector, in coordinates that the dithers of its exposures
only shift; exposures of one field see one sky. Magnitudes are drawn in r; a source's colour is that of a black
body, so that a star is faint in the ultraviolet if it is red.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS

from csstdask.instrument import Instrument, nominal_header
from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.recipe import Cluster, Nodes, Recipe, Sky
from csstdask.mock.zeropoint_units import star_density_factor, unit_conditions
from csstdask.optics.blackbody import photon_rate

Float = npt.NDArray[np.float64]

#: Sources are drawn so far beyond the frame's edge, for their light [pixel].
_MARGIN = 40
#: Where magnitudes are drawn [nm], and that of a band is its middle.
_REFERENCE = 620.0
#: A clumpy galaxy has so many knots, with this share of its disk's light.
_KNOTS, _KNOT_SHARE = (6, 18), 0.45


@dataclass(frozen=True)
class Catalogue:
    """True sources: zero-based positions [pixel], fluxes [e-/s], shapes."""

    x: Float
    y: Float
    mag: Float
    """AB, in the band."""
    flux: Float
    is_star: npt.NDArray[np.bool_]
    temperature: Float
    """Of the black body that the colour is of [K]."""
    half_light_radius: Float
    """Of the disk, along its major axis [pixel]; 0 for stars."""
    axis_ratio: Float
    angle: Float
    """Of the major axis from x to y [rad]."""
    bulge_share: Float
    """Of the light, in a de Vaucouleurs bulge."""
    bulge_radius: Float
    """Half-light, along the major axis [pixel]."""
    knot_share: Float
    """Of the disk's light, in knots along its arms."""

    def __len__(self) -> int:
        return len(self.x)

    def select(self, keep: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> Catalogue:
        """Return some of the sources."""
        return Catalogue(**{field.name: getattr(self, field.name)[keep] for field in fields(self)})

    def shifted(self, dx: float, dy: float) -> Catalogue:
        """Return the sources with other positions."""
        return replace(self, x=self.x + dx, y=self.y + dy)


def empty_catalogue() -> Catalogue:
    """Return a catalogue without sources."""
    columns = {field.name: np.empty(0) for field in fields(Catalogue)}
    return Catalogue(**{**columns, "is_star": np.empty(0, dtype=bool)})


def joined(parts: list[Catalogue]) -> Catalogue:
    """Return several catalogues as one."""
    return Catalogue(
        **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Catalogue)}
    )


def band_magnitude(r_magnitude: Float, temperature: Float, wavelength: float) -> Float:
    """Return the AB magnitude of black bodies at a wavelength [nm], from that in r."""

    def energy(length: float) -> Float:  # a unit of frequency
        return photon_rate(np.array([length]), temperature)[:, 0] * length

    return np.asarray(r_magnitude - 2.5 * np.log10(energy(wavelength) / energy(_REFERENCE)))


def _magnitudes(rng: np.random.Generator, n: int, sky: Sky, slope: float) -> Float:
    """Draw from N(<m) ~ 10^(slope m) between the limits."""
    low, high = 10 ** (slope * sky.brightest), 10 ** (slope * sky.faintest)
    return np.asarray(np.log10(rng.uniform(low, high, n)) / slope)


@dataclass(frozen=True)
class _Place:
    """Where sources are drawn: a frame with a margin, in one band."""

    shape: tuple[int, int]
    margin: float
    wavelength: float
    zero_point: float

    @property
    def mpix(self) -> float:
        return (self.shape[0] + 2 * self.margin) * (self.shape[1] + 2 * self.margin) / 1e6

    def positions(self, rng: np.random.Generator, n: int) -> tuple[Float, Float]:
        x = rng.uniform(-0.5 - self.margin, self.shape[1] - 0.5 + self.margin, n)
        return x, rng.uniform(-0.5 - self.margin, self.shape[0] - 0.5 + self.margin, n)

    def stars(self, x: Float, y: Float, r_magnitude: Float, temperature: Float) -> Catalogue:
        mag = band_magnitude(r_magnitude, temperature, self.wavelength)
        zero, one = np.zeros(len(x)), np.ones(len(x))
        flux = 10 ** (-0.4 * (mag - self.zero_point))
        return Catalogue(x, y, mag, flux, one > 0, temperature, zero, one, zero, zero, zero, zero)


def _star_temperatures(rng: np.random.Generator, r_magnitude: Float) -> Float:
    """Return colours as at high latitude: turn-off stars when bright, ever more red dwarfs when faint."""
    n = len(r_magnitude)
    red = rng.random(n) < np.clip(0.15 + 0.08 * (r_magnitude - 16), 0.15, 0.85)
    blue = rng.random(n) < 0.01  # white dwarfs and their like
    heat = np.where(red, rng.normal(3500, 250, n), rng.normal(5700, 500, n))
    return np.clip(np.where(blue, rng.uniform(9000, 20000, n), heat), 2600, 20000)


def _field_stars(rng: np.random.Generator, place: _Place, sky: Sky, factor: float) -> Catalogue:
    n = int(rng.poisson(sky.stars_per_mpix * factor * place.mpix))
    magnitude = _magnitudes(rng, n, sky, sky.star_slope)
    return place.stars(*place.positions(rng, n), magnitude, _star_temperatures(rng, magnitude))


def _galaxies(rng: np.random.Generator, place: _Place, sky: Sky, factor: float) -> Catalogue:
    n = int(rng.poisson(sky.galaxies_per_mpix * factor * place.mpix))
    n_large = int(rng.poisson(sky.large_galaxies_per_mpix * factor * place.mpix))
    magnitude = np.concatenate([_magnitudes(rng, n, sky, sky.galaxy_slope), rng.uniform(14.5, 18.5, n_large)])
    n += n_large
    large = np.arange(n) >= n - n_large
    # 0.25 arcsec at 24 mag, doubling over five magnitudes, scattered by 40 % (close to what deep fields show).
    radius = 3.4 * 2 ** ((24 - magnitude) / 5) * np.exp(rng.normal(0, 0.4, n))
    radius = np.where(large, rng.uniform(35, 90, n), np.clip(radius, 0.8, 25))
    # (1 - q) / (1 + q): faint galaxies are flatter on the sky, for fewer of them are bulges.
    width = np.interp(magnitude, [19, 25], [0.2, 0.33])
    ellipticity = np.minimum(np.hypot(*rng.normal(0, 1, (2, n))) * width, 0.85)
    # Bulges: a third of bright galaxies is dominated by one, faint ones are nearly all disk.
    bulge = np.clip(rng.beta(0.8, 2.5, n) * np.clip((27 - magnitude) / 6, 0.2, 1.3), 0, 1)
    bulge = np.where(bulge < 0.03, 0, bulge)
    heat = np.clip(rng.normal(5600, 900, n) - 1500 * bulge, 3300, 12000)
    mag = band_magnitude(magnitude, heat, place.wavelength)
    x, y = place.positions(rng, n)
    clumpy = (sky.morphology == "clumpy") & (radius > 1.5)
    return Catalogue(
        x=x,
        y=y,
        mag=mag,
        flux=10 ** (-0.4 * (mag - place.zero_point)),
        is_star=np.zeros(n, dtype=bool),
        temperature=heat,
        half_light_radius=radius,
        axis_ratio=np.maximum((1 - ellipticity) / (1 + ellipticity), 0.1),
        angle=rng.uniform(0, np.pi, n),
        bulge_share=bulge,
        bulge_radius=radius * np.exp(rng.normal(-0.9, 0.3, n)),
        knot_share=np.where(clumpy, _KNOT_SHARE, 0.0),
    )


def draw_sky(
    rng: np.random.Generator,
    sky: Sky,
    shape: tuple[int, int],
    *,
    wavelength: float = _REFERENCE,
    zero_point: float = 26.04,
    margin: float = _MARGIN,
    stars: float = 1.0,
    galaxies: float = 1.0,
) -> Catalogue:
    """Draw stars and galaxies round a frame, without regard to any survey.

    Parameters
    ----------
    rng : numpy.random.Generator
    sky : Sky
    shape : (int, int)
        (y, x)
    wavelength, zero_point : float
        Of the band [nm, mag for 1 e-/s].
    margin : float
        Beyond the frame's edges [pixel].
    stars, galaxies : float
        Factors on the densities.
    """
    place = _Place(shape, margin, wavelength, zero_point)
    return joined([_field_stars(rng, place, sky, stars), _galaxies(rng, place, sky, galaxies)])


def _cluster_radii(rng: np.random.Generator, cluster: Cluster, n: int) -> Float:
    """Draw distances from the centre, as King (1962, AJ 67, 471, eq. 14) has the surface density [arcsec]."""
    radius = np.linspace(0, cluster.tidal_radius, 4096)
    edge = 1 / np.sqrt(1 + (cluster.tidal_radius / cluster.core_radius) ** 2)
    density = (1 / np.sqrt(1 + (radius / cluster.core_radius) ** 2) - edge) ** 2
    mass = np.cumsum(density * radius)
    return np.interp(rng.random(n), mass / mass[-1], radius)


def _cluster_members(rng: np.random.Generator, cluster: Cluster, sky: Sky) -> tuple[Float, Float]:
    """Draw magnitudes in r and temperatures of an old, metal-poor population."""
    n = cluster.stars
    above = sky.faintest - cluster.turn_off
    evolved = rng.random(n) < 0.12  # subgiants, the red giant branch, and in it the horizontal branch
    main = cluster.turn_off + above * rng.random(n) ** (1 / 1.6)
    giant = np.maximum(cluster.turn_off - rng.exponential(1.4, n), max(sky.brightest, cluster.turn_off - 6))
    magnitude = np.where(evolved, giant, main)
    depth = (magnitude - cluster.turn_off) / max(above, 1)
    heat = np.where(evolved, 5900 - 300 * (cluster.turn_off - magnitude), 6400 - 2900 * np.clip(depth, 0, 1) ** 0.8)
    on_branch = evolved & (rng.random(n) < 0.12)
    magnitude = np.where(on_branch, cluster.turn_off - 3.2 + rng.normal(0, 0.15, n), magnitude)
    heat = np.where(on_branch, rng.uniform(7000, 12000, n), heat + rng.normal(0, 60, n))
    return magnitude, np.clip(heat, 3200, 13000)


def _cluster_stars(rng: np.random.Generator, place: _Place, cluster: Cluster, wcs: WCS, sky: Sky) -> Catalogue:
    distance, turn = _cluster_radii(rng, cluster, cluster.stars), rng.uniform(0, 2 * np.pi, cluster.stars)
    magnitude, heat = _cluster_members(rng, cluster, sky)
    centre = SkyCoord(*cluster.centre, unit="deg")
    at = centre.spherical_offsets_by(distance * np.cos(turn) * units.arcsec, distance * np.sin(turn) * units.arcsec)
    x, y = (np.asarray(part, dtype=np.float64) for part in wcs.world_to_pixel(at))
    ny, nx = place.shape
    seen = (x > -0.5 - place.margin) & (x < nx - 0.5 + place.margin) & (y > -0.5 - place.margin)
    seen &= (y < ny - 0.5 + place.margin) & np.isfinite(x + y)
    return place.stars(x[seen], y[seen], magnitude[seen], heat[seen])


def _node_stars(rng: np.random.Generator, place: _Place, nodes: Nodes, exptime: float, noise: float) -> Catalogue:
    """Return stars near the nodes of a grid, each at a sub-pixel position of its own and as bright as its S/N asks."""
    ny, nx = place.shape
    axis = (np.arange(nodes.per_axis) + 0.5) / nodes.per_axis
    x, y = (part.ravel() for part in np.meshgrid(axis * nx - 0.5, axis * ny - 0.5))
    x, y = np.rint(x) + rng.uniform(-0.5, 0.5, x.size), np.rint(y) + rng.uniform(-0.5, 0.5, y.size)
    snr = np.exp(rng.uniform(np.log(nodes.snr[0]), np.log(nodes.snr[1]), x.size))
    # S/N in an aperture of 49 pixels: F / sqrt(F + 49 noise^2).
    counts = (snr**2 + np.sqrt(snr**4 + 4 * snr**2 * 49 * noise**2)) / 2
    heat = rng.uniform(4000, 7500, x.size)
    stars = place.stars(x, y, np.full(x.size, 20.0), heat)
    flux = counts / exptime
    return replace(stars, flux=flux, mag=place.zero_point - 2.5 * np.log10(flux))


#: Copies of a source stand so far apart [pixel].
_CELL = 96


def max_copies(shape: tuple[int, int]) -> int:
    """Return how many copies of sources a frame has room for."""
    return (shape[0] // _CELL) * (shape[1] // _CELL)


def _copies(rng: np.random.Generator, place: _Place, sky: Sky, magnitudes: tuple[float, ...], count: int) -> Catalogue:
    """Return sources of given magnitudes, each many times over, on a grid: stars and galaxies take turns.

    The papers put a hundred cosmic rays on one source; here each falls on a copy with photons of its own.
    """
    first = int(rng.integers(2))
    parts = []
    for number, mag in enumerate(magnitudes):
        # Sources near the wanted magnitude in this band, whatever their colour.
        usual = {"brightest": mag - 7, "faintest": mag + 2, "star_slope": 0.05, "galaxy_slope": 0.05}
        many = {"stars_per_mpix": 3000.0, "galaxies_per_mpix": 3000.0, "large_galaxies_per_mpix": 0.0}
        wide = sky.model_copy(update=usual | many)
        pool = draw_sky(rng, wide, (1000, 1000), wavelength=place.wavelength, zero_point=place.zero_point)
        wanted = pool.is_star if (number + first) % 2 else ~pool.is_star
        nearest = np.flatnonzero(wanted)[np.argmin(abs(pool.mag[wanted] - mag))]
        flux = np.full(count, 10 ** (-0.4 * (mag - place.zero_point)))
        parts.append(replace(pool.select(np.repeat(nearest, count)), mag=np.full(count, mag), flux=flux))
    sources = joined(parts)
    nx = place.shape[1]
    taken = rng.permutation(max_copies(place.shape))[: len(sources)]
    y, x = np.divmod(taken, nx // _CELL)
    middle = _CELL // 2
    return replace(
        sources.select(np.arange(len(taken))),
        x=x * _CELL + middle + rng.uniform(-0.5, 0.5, len(taken)),
        y=y * _CELL + middle + rng.uniform(-0.5, 0.5, len(taken)),
    )


def field_wcs(recipe: Recipe, instrument: Instrument, index: int, detector: int) -> WCS:
    """Return where a detector looks in an exposure, before any dither."""
    field = recipe.field_of(index)
    return WCS(nominal_header(instrument, detector, field.pointing, recipe.frame_shape))


def exposure_dither(recipe: Recipe, index: int) -> tuple[float, float]:
    """Return by how much an exposure's sources are shifted against their field, in x and y [pixel]."""
    if recipe.pointing.dither == 0:
        return 0.0, 0.0
    x, y = stream(recipe.seed, Purpose.POINTING, index).uniform(-recipe.pointing.dither, recipe.pointing.dither, 2)
    return float(x), float(y)


def unit_catalogue(recipe: Recipe, instrument: Instrument, index: int, detector: int) -> Catalogue:
    """Return the true sources of a unit, some of them just beyond its edges; fluxes have the unit's true zero point.

    Parameters
    ----------
    recipe : Recipe
    instrument : Instrument
        The recipe's.
    index : int
        Of the exposure.
    detector : int
        Its id.
    """
    offset = unit_conditions(recipe, index, detector).offset
    if recipe.nodes is not None:
        band = instrument.bands[str(instrument.detector(detector).band)]
        noise = (band.sky * recipe.sky.level + recipe.sensor.dark) * recipe.exptime
        noise = np.sqrt(noise + (instrument.values(detector).read_noise or 0.0) ** 2)
        rng = stream(recipe.seed, Purpose.STARS, index, detector)
        return _node_stars(rng, _place_of(recipe, instrument, detector, offset), recipe.nodes, recipe.exptime, noise)
    if recipe.stamps is not None and recipe.stamps.kind == "brightness":
        rng = stream(recipe.seed, Purpose.STARS, index, detector)
        place = _place_of(recipe, instrument, detector, offset)
        return _copies(rng, place, recipe.sky, recipe.stamps.magnitudes, recipe.stamps.cosmic_rays_each)
    drawn = field_sources(recipe, instrument, index, detector, offset=offset)
    return drawn.shifted(*exposure_dither(recipe, index))


def _place_of(recipe: Recipe, instrument: Instrument, detector: int, offset: float) -> _Place:
    band = instrument.bands[str(instrument.detector(detector).band)]
    margin = _MARGIN + recipe.pointing.dither
    return _Place(recipe.frame_shape, margin, sum(band.wavelength) / 2, band.zero_point + offset)


def field_sources(
    recipe: Recipe, instrument: Instrument, index: int, detector: int, *, offset: float = 0.0
) -> Catalogue:
    """Return the sources of the field that an exposure sees, on one detector, before any dither.

    Parameters
    ----------
    recipe, instrument, index, detector
        As for `unit_catalogue`.
    offset : float
        Of the zero point, for the fluxes [mag].
    """
    place, number = _place_of(recipe, instrument, detector, offset), recipe.field_index(index)
    field = recipe.field_of(index)
    density = field.stars * star_density_factor(recipe, detector)
    parts = [
        _field_stars(stream(recipe.seed, Purpose.STARS, number, detector), place, recipe.sky, density),
        _galaxies(stream(recipe.seed, Purpose.GALAXIES, number, detector), place, recipe.sky, field.galaxies),
    ]
    if field.cluster is not None:
        wcs = field_wcs(recipe, instrument, index, detector)
        rng = stream(recipe.seed, Purpose.CLUSTER, number)  # the same stars for all detectors
        parts.append(_cluster_stars(rng, place, field.cluster, wcs, recipe.sky))
    return joined(parts)


@dataclass(frozen=True)
class Knots:
    """Star-forming knots of one galaxy: offsets from its centre [pixel], shares of its light, radii."""

    dx: Float
    dy: Float
    share: Float
    radius: Float


def galaxy_knots(catalogue: Catalogue, i: int) -> Knots:
    """Return the knots of a clumpy galaxy, along two arms that wind through its disk."""
    # Its own stream: the knots of a galaxy do not depend on which others are drawn.
    key = [int(value) for value in np.array([catalogue.flux[i], catalogue.angle[i]]).view(np.uint32)]
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
    n = int(rng.integers(*_KNOTS))
    distance = catalogue.half_light_radius[i] * rng.uniform(0.25, 1.8, n)
    turn = 2.2 * np.log(distance / catalogue.half_light_radius[i] + 0.2) + np.pi * rng.integers(0, 2, n)
    turn += rng.normal(0, 0.25, n)
    along, across = distance * np.cos(turn), distance * np.sin(turn) * catalogue.axis_ratio[i]
    cos, sin = np.cos(catalogue.angle[i]), np.sin(catalogue.angle[i])
    light = rng.exponential(1.0, n)
    share = catalogue.knot_share[i] * (1 - catalogue.bulge_share[i]) * light / light.sum()
    radius = np.maximum(0.06 * catalogue.half_light_radius[i], 0.2) * np.ones(n)
    return Knots(along * cos - across * sin, along * sin + across * cos, share, radius)
