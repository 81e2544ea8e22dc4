"""The identity of a unit: a digest of everything that decides its pixels."""

from __future__ import annotations

import hashlib
from pathlib import Path

from csstdask.instrument import Instrument
from csstdask.mock.cosmic_rays import generator_of, pixel_fraction
from csstdask.mock.recipe import Recipe
from csstdask.mock.recipe_tables import Sensor
from csstdask.mock.schedule import exposure_start
from csstdask.mock.slitless_stars import recipe_library
from csstdask.mock.zeropoint_units import fingerprint_settings

NUMERICS_VERSION = 2
"""Raised whenever the same recipe would give different pixels."""
SLITLESS_VERSION = 1
"""The same for slitless frames only."""

ZEROPOINT_VERSION = 1
"""The same for frames whose throughput follows telemetry only."""

_NOT_DECISIVE = {"name", "exposures", "span", "detectors", "fields", "slitless", "zeropoint"}
"""Keys on which the pixels of a unit do not depend, or that `unit_digest` adds separately."""


def unit_digest(recipe: Recipe, instrument: Instrument, index: int, detector: int, data: Path | None = None) -> str:
    """Return the identity of a unit, a SHA-256 of everything on which its pixels depend.

    Keys that were added later are left out at their defaults, so that digests of older campaigns remain valid.

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
    data : Path, optional
        Folder of SED libraries.
    """
    decisive = recipe.model_dump_json(exclude=_NOT_DECISIVE)
    if not recipe.optics.drawn:
        decisive = decisive.replace(',"drawn":false', "")
    if recipe.sensor.gain_error == Sensor().gain_error:
        decisive = decisive.replace(f',"gain_error":{recipe.sensor.gain_error}', "")
    # Alternatives depend on the number of exposures, so those of this exposure are included explicitly.
    exposure = f"{recipe.epoch_of(index)} {recipe.field_index(index)} {recipe.field_of(index)!r}"
    exposure += f" {generator_of(recipe, index)} {pixel_fraction(recipe, index)!r}"
    camera = instrument.model_dump_json(exclude={"description", "expectations", "slitless"}, exclude_defaults=True)
    text = f"{NUMERICS_VERSION} {decisive} {exposure} {camera} {index} {detector}"
    if recipe.zeropoint is not None:
        text += f" {ZEROPOINT_VERSION} {fingerprint_settings(recipe, index)}"
    if recipe.slitless is not None:
        text += f" {SLITLESS_VERSION} {recipe.slitless.model_dump_json(exclude={'seds'})} {exposure_start(recipe, 0)}"
        text += f" {recipe_library(recipe, data).sha256}"
        text += instrument.slitless[str(instrument.detector(detector).band)].model_dump_json()
    return hashlib.sha256(text.encode()).hexdigest()
