"""Stars of slitless frames: their true properties, catalogue and SEDs.

Stars are drawn once for each field and detector. Exposures of one field show the same stars, shifted by dithers and
proper motions. The position (x, y) of a star is that without the grating. Stars outside the frame whose first or zeroth
order falls on it are included.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from csstdask.core.constants import DEG_PER_MAS
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
"""Extent of the profile of a spectrum beyond its trace [pixel]."""
_SED_REFERENCE = 5556.0
"""Wavelength at which SEDs have no error [Angstrom]."""
_SED_SIGMA_WAVELENGTH = 3400.0
"""Wavelength at which `sed_sigma` is defined, in GU [Angstrom]."""
_VARIABILITY = 0.3
"""Scatter of the flux of variable stars, 1 sigma of its natural log."""
_MAX_ATTEMPTS = 200
"""Attempts to place stars with the required separation."""


@dataclass(frozen=True)
class FieldStars:
    """Stars of a field on one detector, with true and catalogue properties; all arrays (star,)."""

    id: npt.NDArray[np.object_]
    """Name of the star."""
    ra: Float
    """Right ascension at J2016.0 [deg]."""
    dec: Float
    """Declination at J2016.0 [deg]."""
    pmra: Float
    """Proper motion in right ascension, with cos(dec) [mas/yr]."""
    pmdec: Float
    """Proper motion in declination [mas/yr]."""
    flux_5556: Float
    """True mean flux in 5526-5586 Angstrom [erg s-1 cm-2 A-1]."""
    sed: npt.NDArray[np.intp]
    """Index of the true SED in the library."""
    bad: Mask
    """Whether the star is variable (wrong flux) or misidentified (wrong SED) in the catalogue."""
    catalogue_flux_5556: Float
    """Flux in the catalogue [erg s-1 cm-2 A-1]."""
    catalogue_sed: npt.NDArray[np.intp]
    """Index of the SED in the catalogue."""
    sed_error: Float
    """Error of the SED in the catalogue, in units of `sed_mode`."""

    def __len__(self) -> int:
        return len(self.id)


def recipe_library(recipe: Recipe, data: Path | None = None) -> SedLibrary:
    """Return the SED library of a recipe."""
    return load_library(find_library(require_slitless(recipe).seds, data))


def order_extent(instrument: Instrument, detector: int, shape: tuple[int, int]) -> dict[int, tuple[float, float]]:
    """Return the smallest and largest offset along x of the light of each order [pixel]."""
    band = instrument.slitless[str(instrument.detector(detector).band)]
    x, y = np.meshgrid(np.array([0, 0.5, 1]) * shape[1], np.array([0, 0.5, 1]) * shape[0])
    extent = {}
    for order in (one.order for one in band.orders):
        found = slitless_order(instrument, detector, order)
        waves = np.array([found.throughput[0][0], found.throughput[-1][0]])[:, None, None]
        offset = dispersion_of(instrument, detector, shape, order).position(x, y, waves)[0] - x
        extent[order] = float(offset.min()), float(offset.max())
    return extent


def field_stars(recipe: Recipe, instrument: Instrument, index: int, detector: int, library: SedLibrary) -> FieldStars:
    """Return the stars of the field of an exposure on one detector.

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
    library : SedLibrary
        SED library of the recipe.

    Returns
    -------
    FieldStars
    """
    settings, number = require_slitless(recipe), recipe.field_index(index)
    rng = stream(recipe.seed, Purpose.SLITLESS_STARS, number, detector)
    x, y = _draw_positions(rng, recipe, settings, order_extent(instrument, detector, recipe.frame_shape))
    n = len(x)
    faint, bright = np.log(settings.flux_5556)
    flux = np.exp(rng.uniform(faint, bright, n))
    sed = rng.integers(0, len(library), n)
    pmra, pmdec = rng.normal(0, settings.proper_motion, (2, n))
    # Positions are drawn at launch; the epoch of the catalogue is J2016.0.
    ra, dec = field_wcs(recipe, instrument, index, detector).all_pix2world(x, y, 0)
    years = years_since_2016(exposure_start(recipe, 0))
    ra, dec = _apply_proper_motion(np.asarray(ra), np.asarray(dec), pmra, pmdec, -years)
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
    """Return the zero-based positions (x, y) of stars in an exposure, without the grating [pixel].

    They follow from positions and proper motions of the catalogue and the true WCS of the unit, including its dither.
    """
    ra, dec = _apply_proper_motion(
        stars.ra, stars.dec, stars.pmra, stars.pmdec, years_since_2016(exposure_start(recipe, index))
    )
    x, y = field_wcs(recipe, instrument, index, detector).all_world2pix(ra, dec, 0)
    dx, dy = exposure_dither(recipe, index)
    return np.asarray(x) + dx, np.asarray(y) + dy


def _apply_proper_motion(ra: Float, dec: Float, pmra: Float, pmdec: Float, years: float) -> tuple[Float, Float]:
    """Return ra and dec [deg] after a number of years."""
    moved = ra + pmra * years * DEG_PER_MAS / np.cos(np.radians(dec))
    return np.asarray(moved % 360), np.asarray(dec + pmdec * years * DEG_PER_MAS)


def _draw_positions(
    rng: np.random.Generator, recipe: Recipe, settings: Slitless, extent: dict[int, tuple[float, float]]
) -> tuple[Float, Float]:
    """Draw positions on the frame, and around it with the same density."""
    ny, nx = recipe.frame_shape
    dither = recipe.pointing.dither
    x0 = -0.5 - dither - _MARGIN - max(0.0, *(high for _, high in extent.values()))
    x1 = nx - 0.5 + dither + _MARGIN - min(0.0, *(low for low, _ in extent.values()))
    y0, y1 = -0.5 - dither - _MARGIN, ny - 0.5 + dither + _MARGIN
    wanted = settings.stars
    if wanted is None:
        wanted = int(rng.poisson((settings.stars_per_mpix or 0.0) * nx * ny / 1e6))
    around = round(wanted * ((x1 - x0) * (y1 - y0) / (nx * ny) - 1))
    frame, outer = (-0.5, nx - 0.5, -0.5, ny - 0.5), (x0, x1, y0, y1)
    stars = np.empty((0, 2))
    for count, inside in ((wanted, True), (around, False)):
        target = len(stars) + count
        for _ in range(_MAX_ATTEMPTS):
            if len(stars) >= target:
                break
            low_x, high_x, low_y, high_y = frame if inside else outer
            n = (target - len(stars)) * (1 if inside else 4)
            new = np.column_stack([rng.uniform(low_x, high_x, n), rng.uniform(low_y, high_y, n)])
            if not inside:
                on_frame = (abs(new[:, 0] - nx / 2 + 0.5) < nx / 2) & (abs(new[:, 1] - ny / 2 + 0.5) < ny / 2)
                new = new[~on_frame]
            stars = _separated(stars, new, settings.separation, extent)[:target]
    return stars[:, 0], stars[:, 1]


def _separated(stars: Float, new: Float, separation: float, extent: dict[int, tuple[float, float]]) -> Float:
    """Return stars, and those new ones whose spectra do not overlap with other spectra or zeroth orders."""
    if separation == 0:
        return np.concatenate([stars, new])
    accepted = np.empty((len(stars) + len(new), 2))
    accepted[: len(stars)] = stars
    n = len(stars)
    first = extent[1]
    for one in new:
        dx = abs(one[0] - accepted[:n, 0])
        close = abs(one[1] - accepted[:n, 1]) < separation
        overlap = dx < first[1] - first[0] + separation
        if 0 in extent:  # a zeroth order on another first order
            overlap |= (dx > first[0] - extent[0][1] - separation) & (dx < first[1] - extent[0][0] + separation)
        if not (close & overlap).any():
            accepted[n] = one
            n += 1
    return accepted[:n]


def sed_mode(settings: Slitless, wavelength: npt.ArrayLike) -> Float:
    """Return the relative error of SEDs, 1 sigma, fully correlated like that of a wrong temperature.

    It is `sed_sigma` at 3400 Angstrom and proportional to 1 / wavelength - 1 / 5556 Angstrom.
    """
    inverse = 1 / np.asarray(wavelength, dtype=np.float64) - 1 / _SED_REFERENCE
    return np.asarray(settings.sed_sigma * inverse / (1 / _SED_SIGMA_WAVELENGTH - 1 / _SED_REFERENCE))


def catalogue_columns(settings: Slitless, stars: FieldStars) -> dict[str, npt.NDArray[np.generic]]:
    """Return the columns of the star catalogue, the input ``--catalogue`` of a run."""
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
    """Return the columns of the SEDs, the input ``--spectra`` of a run.

    ``mean`` (star, m) is in units of the mean flux in 5526-5586 Angstrom. In the same units, ``modes`` (star, rank * m;
    here of rank 1) are fully correlated errors, and ``sigma`` (star, m) is the total error, 1 sigma.
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
    """Return the columns of the true stars of a unit: positions without the grating, fluxes and SEDs."""
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
    """Return the shift of the first orders of an exposure along x relative to the wavelength solution [pixel]."""
    sigma = require_slitless(recipe).dispersion_shift
    return float(stream(recipe.seed, Purpose.DISPERSION, index).normal() * sigma)
