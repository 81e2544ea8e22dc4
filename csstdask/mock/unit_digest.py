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

#: Raised whenever the same recipe would give other pixels.
NUMERICS_VERSION = 2

SLITLESS_VERSION = 1
"""The same of what slitless frames alone have."""

ZEROPOINT_VERSION = 1
"""The same of what frames alone have whose throughput follows telemetry."""

#: What the pixels of a unit do not depend on, or what `unit_digest` adds where a recipe has it.
_NOT_DECISIVE = {"name", "exposures", "span", "detectors", "fields", "slitless", "zeropoint"}


def unit_digest(recipe: Recipe, instrument: Instrument, index: int, detector: int, data: Path | None = None) -> str:
    """Return the identity of a unit: all that decides its pixels."""
    decisive = recipe.model_dump_json(exclude=_NOT_DECISIVE)
    if not recipe.optics.drawn:  # as it was before any were
        decisive = decisive.replace(',"drawn":false', "")
    if recipe.sensor.gain_error == Sensor().gain_error:  # as it was before it could be set
        decisive = decisive.replace(f',"gain_error":{recipe.sensor.gain_error}', "")
    # What takes turns depends on how many exposures there are: it is told here as it falls to this one.
    place = f"{recipe.epoch_of(index)} {recipe.field_index(index)} {recipe.field_of(index)!r}"
    place += f" {generator_of(recipe, index)} {pixel_fraction(recipe, index)!r}"
    camera = instrument.model_dump_json(exclude={"description", "expectations", "slitless"}, exclude_defaults=True)
    text = f"{NUMERICS_VERSION} {decisive} {place} {camera} {index} {detector}"
    if recipe.zeropoint is not None:
        text += f" {ZEROPOINT_VERSION} {fingerprint_settings(recipe, index)}"
    if recipe.slitless is not None:
        text += f" {SLITLESS_VERSION} {recipe.slitless.model_dump_json(exclude={'seds'})} {exposure_start(recipe, 0)}"
        text += f" {recipe_library(recipe, data).sha256}"
        text += instrument.slitless[str(instrument.detector(detector).band)].model_dump_json()
    return hashlib.sha256(text.encode()).hexdigest()
