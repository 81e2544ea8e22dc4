"""The reference catalogue of rendered fields: positions at J2016.0, proper motions and AB magnitudes in several bands.

The true magnitudes of a star are those of its black body, in the bands of the camera: the true colour term is 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csstdask.instrument import Instrument
from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.recipe import Recipe
from csstdask.mock.schedule import exposure_start, years_since_2016
from csstdask.mock.sky import band_magnitude
from csstdask.mock.unit_catalogue import field_sources, field_wcs
from csstdask.mock.zeropoint_stars import catalogue_errors
from csstdask.mock.zeropoint_units import require_zeropoint

Float = npt.NDArray[np.float64]

_MAS = 1 / 3.6e6
"""[deg]"""


def reference_columns(recipe: Recipe, instrument: Instrument, index: int, detector: int) -> dict[str, Float]:
    """Return the reference stars of the field that an exposure sees, on one detector (``--reference``).

    Stars are those of the field that are bright enough, around the frame too, as far as dithers reach. A share of them
    was brighter or fainter when the catalogue was made.
    """
    about, number = require_zeropoint(recipe).stars, recipe.field_index(index)
    sources = field_sources(recipe, instrument, index, detector)
    own = instrument.bands[str(instrument.detector(detector).band)]
    # Magnitudes are drawn in r, and those in other bands follow from the temperature.
    color = band_magnitude(np.zeros(len(sources)), sources.temperature, _middle(own.wavelength))
    r_magnitude = sources.mag - color
    stars = sources.select(sources.is_star & (r_magnitude < about.magnitudes[1]))
    r_magnitude = r_magnitude[sources.is_star & (r_magnitude < about.magnitudes[1])]
    n = len(stars)
    rng = stream(recipe.seed, Purpose.REFERENCE_CATALOGUE, number, detector, 1)
    pmra, pmdec = rng.normal(0, about.proper_motion, (2, n))
    error_x, error_y = rng.normal(0, about.position_error / 3600, (2, n))
    change = np.where(rng.random(n) < about.outlier_share, about.outlier_size * rng.normal(size=n), 0.0)
    ra, dec = (
        np.asarray(one) for one in field_wcs(recipe, instrument, index, detector).all_pix2world(stars.x, stars.y, 0)
    )
    # Frames have the positions of the first exposure, and the catalogue's epoch is J2016.0.
    years = years_since_2016(exposure_start(recipe, 0))
    cosine = np.cos(np.radians(dec))
    columns = {
        "ra": (ra - pmra * years * _MAS / cosine + error_x / cosine) % 360,
        "dec": dec - pmdec * years * _MAS + error_y,
        "pmra": pmra,
        "pmdec": pmdec,
    }
    for position, band in enumerate(about.bands):
        true = band_magnitude(r_magnitude, stars.temperature, _middle(instrument.bands[band].wavelength))
        own_rng = stream(recipe.seed, Purpose.REFERENCE_CATALOGUE, number, detector, 2 + position)
        columns[f"mag_{band}"], columns[f"mag_{band}_err"] = catalogue_errors(about, own_rng, true + change)
    return columns


def _middle(wavelength: tuple[float, float]) -> float:
    return sum(wavelength) / 2
