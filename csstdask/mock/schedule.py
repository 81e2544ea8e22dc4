"""Start times of the exposures of a mock survey."""

from __future__ import annotations

import numpy as np

from csstdask.core.constants import DAYS_PER_YEAR, J2016, SECONDS_PER_DAY
from csstdask.mock.recipe import Recipe

LAUNCH = np.datetime64("2027-06-01T00:00:00", "us")
"""Launch of the telescope in mocks, UTC."""
_CADENCE = 210.0
"""Time between the starts of consecutive exposures of a recipe without `span` [s]."""
_SECONDS_PER_YEAR = DAYS_PER_YEAR * SECONDS_PER_DAY


def exposure_start(recipe: Recipe, index: int) -> np.datetime64:
    """Return the start of an exposure, UTC."""
    seconds = recipe.epoch_of(index) * _SECONDS_PER_YEAR + (0 if recipe.span else index * _CADENCE)
    return LAUNCH + np.timedelta64(round(seconds), "s")


def years_since_2016(time: np.datetime64) -> float:
    """Return the Julian years from J2016.0 to a time.

    Examples
    --------
    >>> round(years_since_2016(np.datetime64("2027-01-01T12:00:00")) * 365.25, 6)
    4018.0
    """
    return float((time - J2016) / np.timedelta64(1, "s")) / _SECONDS_PER_YEAR
