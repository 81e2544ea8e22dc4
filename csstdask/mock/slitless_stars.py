"""Stars of slitless frames: what is true of them, and what their catalogue and SEDs say.

Stars are drawn once for each field and detector: exposures of one field see the same ones, shifted by their dithers and
their proper motions. A position (x, y) on a frame is that of the star without the grating. Stars off the frame whose
first or zeroth order falls on it are drawn too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from csstdask.instrument import Instrument
from csstdask.instrument.dispersion import dispersion_of, slitless_order
from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.recipe import Recipe
from csstdask.mock.recipe_tables import Slitless
from csstdask.mock.schedule import exposure_start, years_since_2016
from csstdask.mock.sed_library import SedLibrary, find_library, load_library, reference_mean
from csstdask.mock.slitless_camera import require_slitless
from csstdask.mock.unit_catalogue import exposure_dither, field_wcs

Float = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_MARGIN = 16.0
"""Reach of a spectrum's profile beyond its trace [pixel]."""
_MAS = 1 / 3.6e6
"""[deg]"""
_SED_REFERENCE = 5556.0
_SED_SCALE = 3400.0
"""`sed_sigma` is the error of an SED at this wavelength, in GU [Angstrom]."""
_VARIABILITY = 0.3
"""Of a variable star's flux, one sigma of its natural log."""
_TRIES = 200


@dataclass(frozen=True)
class FieldStars:
    """Stars of a field on one detector, true and as their catalogue has them; all arrays (star,)."""

    id: npt.NDArray[np.object_]
    ra: Float
    """At J2016.0 [deg]."""
    dec: Float
    pmra: Float
    """With cos(dec) [mas/yr]."""
    pmdec: Float
    flux_5556: Float
    """True mean flux in 5526-5586 Angstrom [erg s-1 cm-2 A-1]."""
    sed: npt.NDArray[np.intp]
    """The true SED's number in the library."""
    bad: Mask
    """Variable or misidentified: the catalogue's flux or its SED is another star's."""
    catalogue_flux_5556: Float
    catalogue_sed: npt.NDArray[np.intp]
    sed_error: Float
    """Of the catalogue's SED, in units of `sed_mode`."""

    def __len__(self) -> int:
        return len(self.id)


def recipe_library(recipe: Recipe, data: Path | None = None) -> SedLibrary:
    """Return the library of SEDs that a recipe names."""
    return load_library(find_library(require_slitless(recipe).seds, data))


def order_reach(instrument: Instrument, detector: int, shape: tuple[int, int]) -> dict[int, tuple[float, float]]:
    """Return the least and greatest offset along x of each order's light on a frame [pixel]."""
    band = instrument.slitless[str(instrument.detector(detector).band)]
    x, y = np.meshgrid(np.array([0, 0.5, 1]) * shape[1], np.array([0, 0.5, 1]) * shape[0])
    reach = {}
    for order in (one.order for one in band.orders):
        found = slitless_order(instrument, detector, order)
        waves = np.array([found.throughput[0][0], found.throughput[-1][0]])[:, None, None]
        offset = dispersion_of(instrument, detector, shape, order).position(x, y, waves)[0] - x
        reach[order] = float(offset.min()), float(offset.max())
    return reach


def field_stars(recipe: Recipe, instrument: Instrument, index: int, detector: int, library: SedLibrary) -> FieldStars:
    """Return the stars of the field that an exposure sees, on one detector."""
    settings, number = require_slitless(recipe), recipe.field_index(index)
    rng = stream(recipe.seed, Purpose.SLITLESS_STARS, number, detector)
    x, y = _positions(rng, recipe, settings, order_reach(instrument, detector, recipe.frame_shape))
    n = len(x)
    faint, bright = np.log(settings.flux_5556)
    flux = np.exp(rng.uniform(faint, bright, n))
    sed = rng.integers(0, len(library), n)
    pmra, pmdec = rng.normal(0, settings.proper_motion, (2, n))
    # Positions are drawn at launch, and the catalogue's epoch is J2016.0.
    ra, dec = field_wcs(recipe, instrument, index, detector).all_pix2world(x, y, 0)
    years = years_since_2016(exposure_start(recipe, 0))
    ra, dec = _moved(np.asarray(ra), np.asarray(dec), pmra, pmdec, -years)
    inputs = stream(recipe.seed, Purpose.SLITLESS_INPUTS, number, detector)
    bad = inputs.random(n) < settings.bad_share
    variable = inputs.random(n) < 0.5
    change = np.exp(inputs.normal(0, _VARIABILITY, n))
    other = (sed + inputs.integers(1, max(len(library), 2), n)) % len(library)
    error, sed_error = inputs.normal(size=(2, n))
    measured = flux * np.where(bad & variable, change, 1.0) * (1 + settings.flux_error * error)
    return FieldStars(
        id=np.array([f"{number:04d}-{detector:02d}-{i:05d}" for i in range(n)], dtype=object),
        ra=ra,
        dec=dec,
        pmra=pmra,
        pmdec=pmdec,
        flux_5556=flux,
        sed=sed,
        bad=bad,
        catalogue_flux_5556=np.maximum(measured, 0.01 * flux),
        catalogue_sed=np.where(bad & ~variable, other, sed),
        sed_error=sed_error,
    )


def unit_positions(
    recipe: Recipe, instrument: Instrument, index: int, detector: int, stars: FieldStars
) -> tuple[Float, Float]:
    """Return where stars are in an exposure without the grating, zero-based [pixel].

    They follow from the catalogue's positions and proper motions and the unit's true WCS, dither included.
    """
    ra, dec = _moved(stars.ra, stars.dec, stars.pmra, stars.pmdec, years_since_2016(exposure_start(recipe, index)))
    x, y = field_wcs(recipe, instrument, index, detector).all_world2pix(ra, dec, 0)
    dx, dy = exposure_dither(recipe, index)
    return np.asarray(x) + dx, np.asarray(y) + dy


def _moved(ra: Float, dec: Float, pmra: Float, pmdec: Float, years: float) -> tuple[Float, Float]:
    moved = ra + pmra * years * _MAS / np.cos(np.radians(dec))
    return np.asarray(moved % 360), np.asarray(dec + pmdec * years * _MAS)


def _positions(
    rng: np.random.Generator, recipe: Recipe, settings: Slitless, reach: dict[int, tuple[float, float]]
) -> tuple[Float, Float]:
    """Draw positions: the wanted number on the frame, and as many for the same area around it."""
    ny, nx = recipe.frame_shape
    dither = recipe.pointing.dither
    x0 = -0.5 - dither - _MARGIN - max(0.0, *(high for _, high in reach.values()))
    x1 = nx - 0.5 + dither + _MARGIN - min(0.0, *(low for low, _ in reach.values()))
    y0, y1 = -0.5 - dither - _MARGIN, ny - 0.5 + dither + _MARGIN
    wanted = settings.stars
    if wanted is None:
        wanted = int(rng.poisson((settings.stars_per_mpix or 0.0) * nx * ny / 1e6))
    around = round(wanted * ((x1 - x0) * (y1 - y0) / (nx * ny) - 1))
    frame, outer = (-0.5, nx - 0.5, -0.5, ny - 0.5), (x0, x1, y0, y1)
    stars = np.empty((0, 2))
    for count, inside in ((wanted, True), (around, False)):
        target = len(stars) + count
        for _ in range(_TRIES):
            if len(stars) >= target:
                break
            low_x, high_x, low_y, high_y = frame if inside else outer
            n = (target - len(stars)) * (1 if inside else 4)
            new = np.column_stack([rng.uniform(low_x, high_x, n), rng.uniform(low_y, high_y, n)])
            if not inside:
                on_frame = (abs(new[:, 0] - nx / 2 + 0.5) < nx / 2) & (abs(new[:, 1] - ny / 2 + 0.5) < ny / 2)
                new = new[~on_frame]
            stars = _apart(stars, new, settings.separation, reach)[:target]
    return stars[:, 0], stars[:, 1]


def _apart(stars: Float, new: Float, separation: float, reach: dict[int, tuple[float, float]]) -> Float:
    """Return stars and those new ones whose spectra overlap with no other's, nor with a zeroth order."""
    if separation == 0:
        return np.concatenate([stars, new])
    room = np.empty((len(stars) + len(new), 2))
    room[: len(stars)] = stars
    n = len(stars)
    first = reach[1]
    for one in new:
        dx = abs(one[0] - room[:n, 0])
        close = abs(one[1] - room[:n, 1]) < separation
        overlap = dx < first[1] - first[0] + separation
        if 0 in reach:  # the zeroth order of one on the first order of another
            overlap |= (dx > first[0] - reach[0][1] - separation) & (dx < first[1] - reach[0][0] + separation)
        if not (close & overlap).any():
            room[n] = one
            n += 1
    return room[:n]


def sed_mode(settings: Slitless, wavelength: npt.ArrayLike) -> Float:
    """Return the relative error of SEDs, one sigma: fully correlated, as that of a temperature.

    It is `sed_sigma` at 3400 Angstrom, proportional to 1 / wavelength - 1 / 5556 Angstrom.
    """
    inverse = 1 / np.asarray(wavelength, dtype=np.float64) - 1 / _SED_REFERENCE
    return np.asarray(settings.sed_sigma * inverse / (1 / _SED_SCALE - 1 / _SED_REFERENCE))


def catalogue_columns(settings: Slitless, stars: FieldStars) -> dict[str, npt.NDArray[np.generic]]:
    """Return the catalogue that a reduction is given (``--catalogue``)."""
    return {
        "id": stars.id,
        "ra": stars.ra,
        "dec": stars.dec,
        "pmra": stars.pmra,
        "pmdec": stars.pmdec,
        "flux_5556": stars.catalogue_flux_5556,
        "flux_5556_err": settings.flux_error * stars.catalogue_flux_5556,
    }


def spectra_columns(settings: Slitless, stars: FieldStars, library: SedLibrary) -> dict[str, npt.NDArray[np.generic]]:
    """Return the SEDs that a reduction is given (``--spectra``).

    ``mean`` (star, m) is in units of the mean flux in 5526-5586 Angstrom. In the same units, ``modes`` (star, rank * m;
    here of rank 1) are its fully correlated errors, and ``sigma`` (star, m) its total error, one sigma.
    """
    mode = sed_mode(settings, library.wavelength)
    mean = library.sed[stars.catalogue_sed] * np.exp(stars.sed_error[:, None] * mode)
    mean /= reference_mean(library.wavelength, mean)[:, None]
    return {
        "id": stars.id,
        "mean": mean.astype(np.float32),
        "sigma": np.abs(mean * mode).astype(np.float32),
        "modes": (mean * mode).astype(np.float32),
        "out_of_domain": np.zeros(len(stars), dtype=bool),
    }


def truth_columns(
    recipe: Recipe, instrument: Instrument, index: int, detector: int, library: SedLibrary
) -> dict[str, npt.NDArray[np.generic]]:
    """Return what is true of the stars of a unit: positions without the grating, fluxes and SEDs."""
    stars = field_stars(recipe, instrument, index, detector, library)
    x, y = unit_positions(recipe, instrument, index, detector, stars)
    n = len(stars)
    return {
        "exposure": np.full(n, recipe.exposure_ids[index], dtype=object),
        "detector": np.full(n, detector, dtype=np.int32),
        "id": stars.id,
        "x": x,
        "y": y,
        "bad": stars.bad,
        "flux_5556": stars.flux_5556,
        "sed": library.sed[stars.sed].astype(np.float32),
        "dispersion_shift": np.full(n, dispersion_shift(recipe, index)),
    }


def dispersion_shift(recipe: Recipe, index: int) -> float:
    """Return by how much an exposure's first orders are shifted along x against the wavelength solution [pixel]."""
    sigma = require_slitless(recipe).dispersion_shift
    return float(stream(recipe.seed, Purpose.DISPERSION, index).normal() * sigma)
