"""Zero points and conditions of rendered units.

    zp(exposure, detector) = nominal(band) + offset(exposure) + grey(detector) + small(exposure, detector)

The offset is that of `csstdask.mock.throughput` at the start times of the exposures. Conditions also act on the
pixels: the throughput on all light, the jitter on the PSF, the background on the sky. The focus does not, because the
defocus of the telescope is part of `optics`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.core.constants import days_since_j2000
from csstdask.instrument import Instrument
from csstdask.mock.conditions import true_conditions
from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.recipe import Recipe
from csstdask.mock.schedule import exposure_start
from csstdask.mock.telemetry import reported_telemetry
from csstdask.mock.throughput import Throughput, throughput
from csstdask.mock.zeropoint_settings import ZeroPoints

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class UnitConditions:
    """Effects of the conditions of an exposure on one unit."""

    offset: float
    """Offset of the zero point from nominal [mag]."""
    sky: float
    """Factor on the sky, without throughput."""
    jitter: float
    """Factor on the jitter."""


NOMINAL = UnitConditions(offset=0.0, sky=1.0, jitter=1.0)
"""Conditions of recipes without a table ``[zeropoint]``."""


def require_zeropoint(recipe: Recipe) -> ZeroPoints:
    """Return the table ``[zeropoint]`` of a recipe.

    Raises
    ------
    ValueError
        If it has none.
    """
    if recipe.zeropoint is None:
        raise ValueError(f"{recipe.name}: a recipe without a table [zeropoint]")
    return recipe.zeropoint


def exposure_days(recipe: Recipe, n: int) -> Float:
    """Return the start times of the first n exposures (n,) [days since J2000]."""
    return days_since_j2000(np.array([exposure_start(recipe, index) for index in range(n)], dtype="datetime64[us]"))


def exposure_throughput(recipe: Recipe, n: int) -> Throughput:
    """Return the parts of the offsets of the first n exposures."""
    settings = require_zeropoint(recipe)
    return throughput(settings, settings.rendered, recipe.seed, exposure_days(recipe, n))


def unit_conditions(recipe: Recipe, index: int, detector: int) -> UnitConditions:
    """Return the effects of the conditions on a unit; `NOMINAL` for recipes without ``[zeropoint]``."""
    if recipe.zeropoint is None:
        return NOMINAL
    settings = recipe.zeropoint
    days = exposure_days(recipe, index + 1)
    conditions = true_conditions(settings, settings.rendered, recipe.seed, days)
    parts = throughput(settings, settings.rendered, recipe.seed, days, conditions)
    grey = stream(recipe.seed, Purpose.ZEROPOINT_UNIT, 0, detector).normal() * settings.grey_sigma
    small = stream(recipe.seed, Purpose.ZEROPOINT_UNIT, 1, detector, index).normal() * settings.small_sigma
    return UnitConditions(
        offset=float(parts.offset[index] + grey + small),
        sky=float(conditions["background"][index] / settings.conditions.background),
        jitter=float(conditions["jitter"][index] / settings.conditions.jitter),
    )


def star_density_factor(recipe: Recipe, detector: int) -> float:
    """Return the factor on the star density of a detector."""
    sparse = recipe.zeropoint is not None and detector in recipe.zeropoint.sparse_detectors
    return recipe.zeropoint.sparse_share if recipe.zeropoint is not None and sparse else 1.0


def true_zero_points(recipe: Recipe, instrument: Instrument) -> Float:
    """Return the true zero points (exposure, detector) [mag]."""
    nominal = [instrument.bands[str(instrument.detector(one).band)].zero_point for one in recipe.detectors]
    offsets = [
        [unit_conditions(recipe, index, detector).offset for detector in recipe.detectors]
        for index in range(recipe.exposures)
    ]
    return np.array(nominal) + np.array(offsets)


def telemetry_columns(recipe: Recipe) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of the telemetry, the input ``--telemetry`` of a run, a row per exposure."""
    settings = require_zeropoint(recipe)
    gaps = settings.reported.model_copy(update={"gap_share": settings.rendered_gap_share})
    settings = settings.model_copy(update={"reported": gaps})
    days = exposure_days(recipe, recipe.exposures)
    starts = np.array([exposure_start(recipe, index) for index in range(recipe.exposures)], dtype="datetime64[us]")
    return {
        "exposure": np.array(recipe.exposure_ids, dtype=object),
        "time": starts,
        **reported_telemetry(settings, settings.rendered, recipe.seed, days),
    }


def fingerprint_settings(recipe: Recipe, index: int) -> str:
    """Return, as text, the settings of ``[zeropoint]`` on which the pixels of an exposure depend."""
    settings = require_zeropoint(recipe)
    starts = [str(exposure_start(recipe, one)) for one in range(index + 1)]
    conditions = settings.model_dump_json(exclude={"reported", "rendered_gap_share", "stars", "surveys", "rendered"})
    survey = settings.survey(settings.rendered).model_dump_json()
    return f"{conditions} {survey} {settings.number(settings.rendered)} {starts}"
