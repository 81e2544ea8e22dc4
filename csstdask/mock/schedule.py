"""When the exposures of a mock survey begin."""

from __future__ import annotations

import numpy as np

from csstdask.mock.recipe import Recipe

LAUNCH = np.datetime64("2027-06-01T00:00:00", "us")
"""When the telescope was launched, in mocks (UTC)."""
_J2016 = np.datetime64("2016-01-01T12:00:00", "us")
"""Epoch J2016.0 of catalogues (the minute between TT and UTC is left out)."""
_CADENCE = 210.0
_YEAR = 365.25 * 86400


def exposure_start(recipe: Recipe, index: int) -> np.datetime64:
    """Return when an exposure begins."""
    seconds = recipe.epoch_of(index) * _YEAR + (0 if recipe.span else index * _CADENCE)
    return LAUNCH + np.timedelta64(round(seconds), "s")


def years_since_2016(time: np.datetime64) -> float:
    """Return the Julian years from J2016.0 to a time.

    Examples
    --------
    >>> years_since_2016(np.datetime64("2027-01-01T12:00:00")) * 365.25
    4018.0
    """
    return float((time - _J2016) / np.timedelta64(1, "s")) / _YEAR
