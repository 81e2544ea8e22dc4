"""Cut the stamps of a rendered unit, with the truth of their sources."""

from __future__ import annotations

import numpy as np

from csstdask.instrument import Instrument
from csstdask.mock.expected_image import exposure_optics, optical_state, psf_model
from csstdask.mock.recipe import Recipe
from csstdask.mock.render import MockUnit
from csstdask.mock.scene_psf import Window
from csstdask.mock.stamps import StampSet, cut_stamps

TRUTH_COLUMNS = (
    *("x", "y", "mag", "flux", "is_star", "temperature", "half_light_radius", "axis_ratio", "angle"),
    *("bulge_share", "bulge_radius", "knot_share"),
)


def unit_stamps(recipe: Recipe, instrument: Instrument, index: int, detector: int, unit: MockUnit) -> StampSet:
    """Cut the stamps of a unit, with the truth of their sources.

    The truth of isolated stars includes their effective PSFs at half-pixel sampling.

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
    unit : MockUnit
        The rendered unit.
    """
    if recipe.stamps is None or unit.targets is None:
        raise ValueError(f"{recipe.name}: a recipe without stamps")
    size, targets = recipe.stamps.size, unit.targets
    chosen = unit.catalogue.select(targets.source)
    frames = {"sci": unit.sci, "wht": unit.wht, "flag": unit.flag, "truth/sci": unit.truth_sci}
    frames["truth/cr"] = unit.truth_cr
    planes = {name: cut_stamps(frame, chosen.x, chosen.y, size) for name, frame in frames.items()}
    columns = {name: getattr(chosen, name).astype(np.float64) for name in TRUTH_COLUMNS}
    columns["snr"] = targets.snr
    window = Window.of(recipe.frame_shape, instrument)
    columns["x_detector"], columns["y_detector"] = chosen.x + window.x, chosen.y + window.y
    if targets.x is not None and targets.y is not None and targets.electrons is not None:
        columns["cr_distance"] = np.hypot(targets.x - chosen.x, targets.y - chosen.y)
        columns["cr_charge"] = targets.electrons.astype(np.float64)
        columns["cr_charge_inside"] = planes["truth/cr"].sum(axis=(1, 2), dtype=np.float64)
    if recipe.stamps.kind == "isolated":
        model = psf_model(exposure_optics(recipe, index), instrument.model_dump_json())
        psf = model.effective(
            detector,
            columns["x_detector"],
            columns["y_detector"],
            temperature=chosen.temperature,
            state=optical_state(recipe, index),
        )
        planes["truth/psf"] = psf.image
        columns["psf_outside"] = psf.outside.astype(np.float64)
    return StampSet(planes, columns)
