"""Tune the settings of L.A.Cosmic for a survey whose stars are two pixels wide.

A grid over sigclip, sigfrac and objlim on two frames of a mock night with a separate seed; scored by the
CSST paper's precision and recall and by the share of star centres without charge that are flagged.
``python benchmarks/lacosmic_settings.py`` writes ``results/lacosmic_settings.json`` (two minutes).
"""

from __future__ import annotations

import itertools
from typing import Any

import astroscrappy
import numpy as np
from environment import save

from csstdask.instrument import load_instrument
from csstdask.mock import MockUnit, render_unit
from csstdask.mock.recipe import demo_recipe
from csstdask.mock.scene import Catalogue
from csstdask.mock.unit_catalogue import unit_catalogue
from csstdask.nn.models import find_card

SEED = 777
BRIGHT, SATURATED = 2.0, 400.0  # [e-/s]: stars well above the noise, below full well


def score(frames: list[tuple[MockUnit, Catalogue]], **settings: float) -> dict[str, Any]:
    flagged = right = strong = strong_found = visible = visible_found = 0
    cores = []
    fixed = find_card("cosmicray", "lacosmic").parameters | settings
    for unit, catalogue in frames:
        counts, ignore = unit.sci * 150, (unit.flag & 11) != 0
        variance = np.where(unit.wht > 0, 150**2 / np.maximum(unit.wht, 1e-9), 25).astype(np.float32)
        hit, _ = astroscrappy.detect_cosmics(counts, inmask=ignore, invar=variance, gain=1.0, satlevel=np.inf, **fixed)
        hit, charge = hit & ~ignore, unit.truth_cr
        sigma = np.sqrt(np.maximum(unit.truth_sci * 150, 0) + 25)
        above, seen = (charge > 5) & ~ignore, (charge > 3 * sigma) & ~ignore
        flagged, right = flagged + int(hit.sum()), right + int((hit & (charge > 0)).sum())
        strong, strong_found = strong + int(above.sum()), strong_found + int((above & hit).sum())
        visible, visible_found = visible + int(seen.sum()), visible_found + int((seen & hit).sum())
        star = catalogue.is_star & (catalogue.flux > BRIGHT) & (catalogue.flux < SATURATED)
        y, x = (np.clip(np.rint(a[star]).astype(int), 0, 1023) for a in (catalogue.y, catalogue.x))
        cores.append((hit & (charge == 0))[y, x])
    return {
        **settings,
        "precision": round(right / flagged, 3),
        "recall": round(strong_found / strong, 3),
        "recall_visible": round(visible_found / visible, 3),
        "star_centres_flagged": round(float(np.concatenate(cores).mean()), 3),
    }


def main() -> None:
    recipe, instrument = demo_recipe().model_copy(update={"seed": SEED}), load_instrument("csst")
    frames = [
        (render_unit(recipe, instrument, 0, detector), unit_catalogue(recipe, instrument, 0, detector))
        for detector in (7, 8)
    ]
    grid = itertools.product((4.5, 6.0), (0.1, 0.3), (2.0, 3.0, 5.0, 8.0, 12.0))
    rows = [score(frames, sigclip=clip, sigfrac=share, objlim=contrast) for clip, share, contrast in grid]
    save("lacosmic_settings", {"seed": SEED, "frames": 2, "grid": rows})


if __name__ == "__main__":
    main()
