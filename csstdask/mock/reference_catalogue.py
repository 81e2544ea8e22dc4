"""The reference catalogue of rendered fields: positions at J2016.0, proper motions and AB magnitudes.

The true magnitudes of a star are those of its black body in the bands of the camera, so the true colour term is 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csstdask.core.constants import DEG_PER_MAS
from csstdask.instrument import Instrument
from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.recipe import Recipe
from csstdask.mock.schedule import exposure_start, years_since_2016
from csstdask.mock.sky import band_magnitude
from csstdask.mock.unit_catalogue import field_sources, field_wcs
from csstdask.mock.zeropoint_stars import catalogue_errors
from csstdask.mock.zeropoint_units import require_zeropoint

Float = npt.NDArray[np.float64]


def reference_columns(recipe: Recipe, instrument: Instrument, index: int, detector: int) -> dict[str, Float]:
    """Return the reference stars of the field of an exposure on one detector (input ``--reference``).

    They are the bright stars of the field, including those around the frame that dithers reach. A fraction of them is
    variable and had a different magnitude in the catalogue.

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

    Returns
    -------
    dict
        Columns ``ra``, ``dec`` [deg, J2016.0], ``pmra``, ``pmdec`` [mas/yr], and ``mag_<band>``, ``mag_<band>_err``
        [AB mag].
    """
    settings, number = require_zeropoint(recipe).stars, recipe.field_index(index)
    sources = field_sources(recipe, instrument, index, detector)
    own = instrument.bands[str(instrument.detector(detector).band)]
    # Magnitudes are drawn in r; those in other bands follow from the temperature.
    color = band_magnitude(np.zeros(len(sources)), sources.temperature, _band_centre(own.wavelength))
    r_magnitude = sources.mag - color
    stars = sources.select(sources.is_star & (r_magnitude < settings.magnitudes[1]))
    r_magnitude = r_magnitude[sources.is_star & (r_magnitude < settings.magnitudes[1])]
    n = len(stars)
    rng = stream(recipe.seed, Purpose.REFERENCE_CATALOGUE, number, detector, 1)
    pmra, pmdec = rng.normal(0, settings.proper_motion, (2, n))
    error_x, error_y = rng.normal(0, settings.position_error / 3600, (2, n))
    change = np.where(rng.random(n) < settings.outlier_share, settings.outlier_size * rng.normal(size=n), 0.0)
    ra, dec = (
        np.asarray(one) for one in field_wcs(recipe, instrument, index, detector).all_pix2world(stars.x, stars.y, 0)
    )
    # Frames show the positions at the first exposure; the epoch of the catalogue is J2016.0.
    years = years_since_2016(exposure_start(recipe, 0))
    cosine = np.cos(np.radians(dec))
    columns = {
        "ra": (ra - pmra * years * DEG_PER_MAS / cosine + error_x / cosine) % 360,
        "dec": dec - pmdec * years * DEG_PER_MAS + error_y,
        "pmra": pmra,
        "pmdec": pmdec,
    }
    for position, band in enumerate(settings.bands):
        true = band_magnitude(r_magnitude, stars.temperature, _band_centre(instrument.bands[band].wavelength))
        band_stream = stream(recipe.seed, Purpose.REFERENCE_CATALOGUE, number, detector, 2 + position)
        columns[f"mag_{band}"], columns[f"mag_{band}_err"] = catalogue_errors(settings, band_stream, true + change)
    return columns


def _band_centre(wavelength: tuple[float, float]) -> float:
    """Return the centre of a passband [nm]."""
    return sum(wavelength) / 2
