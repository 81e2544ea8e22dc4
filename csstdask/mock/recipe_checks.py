"""Refuse recipes that the simulator cannot render."""

from __future__ import annotations

from pathlib import Path

from csstdask.core.errors import InputError
from csstdask.instrument import Instrument
from csstdask.mock.cosmic_rays import generator_of
from csstdask.mock.event_libraries import load_event_library
from csstdask.mock.recipe import Recipe
from csstdask.mock.recipe_tables import Stamps
from csstdask.mock.slitless import check_slitless
from csstdask.mock.unit_catalogue import max_copies
from csstdask.mock.zeropoint_settings import ZeroPoints


def check_recipe(recipe: Recipe, instrument: Instrument, data: Path | None = None) -> None:
    """Check that the simulator can render a recipe.

    Parameters
    ----------
    recipe : Recipe
        The mock survey.
    instrument : Instrument
        Camera of the recipe.
    data : Path, optional
        Folder of real cosmic-ray events and SED libraries.

    Raises
    ------
    InputError
        If it cannot.
    """
    if instrument.geometry is None or instrument.telescope is None or not instrument.bands:
        raise InputError(
            f"{recipe.name}: instrument", f"{instrument.name}", "one with geometry, telescope and bands, such as csst"
        )
    for detector in recipe.detectors:
        if detector not in instrument.detector_ids:
            raise InputError(f"{recipe.name}: detectors", f"{detector}", f"detectors of {instrument.name}")
        band = instrument.detector(detector).band
        if recipe.slitless is None and band not in instrument.bands:
            wanted = f"imaging bands {', '.join(instrument.bands)}"
            if band in instrument.slitless:
                wanted += ", or a recipe with a table [slitless]"
            raise InputError(f"{recipe.name}: detectors", f"{detector} (band {band})", wanted)
    for index in range(recipe.exposures):
        generator = generator_of(recipe, index)
        if generator in ("stis", "itl"):
            load_event_library(generator, recipe.cosmic_rays.events_from or recipe.split_of(index), data)
    if recipe.slitless is not None:
        check_slitless(recipe, instrument, data)
    if recipe.stamps is not None:
        _check_stamps(recipe, recipe.stamps)
    if recipe.zeropoint is not None:
        _check_zeropoint(recipe, recipe.zeropoint, instrument)


def _check_zeropoint(recipe: Recipe, wanted: ZeroPoints, instrument: Instrument) -> None:
    """Raise InputError for a table [zeropoint] that cannot be rendered."""
    others = {"slitless": recipe.slitless, "nodes": recipe.nodes, "stamps": recipe.stamps}
    for name, table in others.items():
        if table is not None:
            raise InputError(f"{recipe.name}: zeropoint", f"a table [{name}] too", "frames of imaging detectors")
    for band in wanted.stars.bands:
        if band not in instrument.bands:
            known = ", ".join(instrument.bands)
            raise InputError(f"{recipe.name}: zeropoint.stars.bands", band, f"bands of {instrument.name}: {known}")


def _check_stamps(recipe: Recipe, wanted: Stamps) -> None:
    """Raise InputError for stamps that do not fit or cosmic rays that cannot be aimed."""
    if wanted.size > min(recipe.frame_shape):
        raise InputError(f"{recipe.name}: stamps.size", f"{wanted.size}", f"at most the frame's {recipe.frame_shape}")
    if wanted.kind != "isolated" and set(recipe.cosmic_rays.generators) & {"stis", "itl"}:
        found = f"{', '.join(recipe.cosmic_rays.generators)} for stamps of kind {wanted.kind}"
        raise InputError(f"{recipe.name}: cosmic_rays.generators", found, "tracks or slab: these can be aimed")
    if wanted.kind == "brightness":
        sources = len(wanted.magnitudes) * wanted.cosmic_rays_each
        room = min(wanted.per_unit, max_copies(recipe.frame_shape))
        if sources > room:
            found = f"{sources} sources, and room for {room}"
            raise InputError(f"{recipe.name}: stamps", found, "a larger shape, or more per_unit")
