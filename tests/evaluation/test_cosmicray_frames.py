"""What is known of a frame of a test recipe, and what is counted on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from csstdask.evaluation.cosmicray.frames import EvaluationRequest, evaluate_frame
from csstdask.evaluation.cosmicray.summaries import false_pixels_on
from csstdask.evaluation.cosmicray.truth_frame import render_truth_frame
from csstdask.instrument import load_instrument
from csstdask.mock.recipe import load_recipe

STORES = Path(__file__).parents[2] / "stores"


class EveryOther:
    """A method that flags every other column."""

    name, threshold = "every other", 0.5

    def probability(self, case):
        return np.broadcast_to(np.arange(case.data.shape[1]) % 2 == 0, case.data.shape).astype(np.float32)

    def rescaled(self, _probability, _case):
        return None


@pytest.fixture(scope="module")
def recipe():
    """A frame that satellites cross."""
    field = load_recipe(STORES / "cr-detection-test.toml", scale=0.0417)
    return field.model_copy(
        update={"artefacts": field.artefacts.model_copy(update={"satellites": 3.0}), "exposures": 1}
    )


def test_artefacts_are_where_the_flags_say(recipe):
    known = render_truth_frame(recipe, 0, 8)
    assert set(known.artefacts) == {"satellite trail", "ghost", "beside saturated pixels"}
    trail = known.artefacts["satellite trail"]
    assert trail.sum() > 300
    assert not any((place & known.case.ignore).any() for place in known.artefacts.values())
    assert np.median(known.clean[trail]) > known.sky


def test_false_pixels_on_artefacts_are_a_share_of_theirs(recipe):
    """A method that flags half of all columns flags about half of any place, cosmic rays or none."""
    seen = evaluate_frame(recipe, 0, 8, EvaluationRequest((EveryOther(),), clean=True))
    found = false_pixels_on([seen, seen])["satellite trail"]
    assert found["pixels"] == 2 * render_truth_frame(recipe, 0, 8).artefacts["satellite trail"].sum()
    assert found["per_mpix"]["every other"] == pytest.approx(5e5, rel=0.2)


def test_a_camera_that_flags_no_trails_has_none(recipe):
    instrument = load_instrument("csst")
    bits = {name: bit for name, bit in instrument.flags.bits.items() if name not in ("satellite_trail", "ghost")}
    flags = instrument.flags.model_copy(update={"bits": bits})
    camera = instrument.model_copy(update={"flags": flags})
    assert not render_truth_frame(recipe, 0, 8, instrument=camera).artefacts["satellite trail"].any()
