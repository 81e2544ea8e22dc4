"""Lights: expectations are data of a camera or a recipe, and overlapping events are not taken for few."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from csstdask.core.errors import InputError
from csstdask.evaluation.run_requirements import (
    Expectation,
    check_requirements,
    compare_with_limits,
    expectations_of,
    expected_hits,
    expected_rates,
)
from csstdask.instrument import builtin_names, load_instrument
from csstdask.instrument.registry import parse_instrument
from csstdask.metrics.drift import Alarm
from csstdask.mock import Recipe
from csstdask.pipeline.status import Summary

CAMERA = """
name = "test"
pixel_size = [10.0, 10.0]
[flags]
bits = { bad = 1, cosmic_ray = 16, inpainted = 2097152 }
[[layouts]]
name = "one"
sci = { hdu = ["SCI"] }
[[detectors]]
id = 1
"""


def night(fraction, events, *, exptime=1350.0, rate=1.0):
    """Return a run of one detector, as `open_run` gives it."""
    n = len(fraction)
    column = {name: (("exposure", "detector"), np.array(values, dtype=float)[:, None]) for name, values in (
        ("cr_fraction", fraction), ("n_cr_events", events), ("cr_rate", np.broadcast_to(rate, n)),
    )}  # fmt: skip
    coords = {"exposure": [f"e{i}" for i in range(n)], "detector": [1], "exptime": ("exposure", np.full(n, exptime))}
    return xr.Dataset(column, coords)


def lights_of(dataset, camera, *, alarms=(), recipe=None, summary=None, folder):
    expectations = expectations_of(load_instrument(camera))
    hits, rates = expected_hits(dataset, expectations, recipe), expected_rates(dataset, expectations, recipe)
    done = summary or Summary(total=1, done=1)
    found = check_requirements(dataset, done, alarms, hits, rates, folder / "r.zarr", ["csstdask run c --to r"])
    return {light.title.split(" [")[0]: light for light in found}


def test_builtin_expectations_say_where_they_come_from():
    for name in builtin_names():
        found = load_instrument(name).expectations
        if found is not None:
            assert len(found.source) > 20, name
    assert load_instrument("hst_nicmos").expectations is None


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('cosmic_ray_rate = [2.0, 1.0]\nsource = "x"', "expectations.cosmic_ray_rate: .*ascending"),
        ("cosmic_ray_rate = [1.0, 2.0]", "expectations.source: Field required"),
        ('source = "x"', "found neither cosmic_ray_rate nor hit_rate"),
        ('cosmic_rays = [1.0, 2.0]\nsource = "x"', "expectations.cosmic_rays: unknown key"),
    ],
)
def test_wrong_expectations_are_one_clear_error(table, message):
    with pytest.raises(InputError, match=message):
        parse_instrument(f"{CAMERA}[expectations]\n{table}\n", "test.toml")


def test_the_share_of_pixels_grows_with_time_as_independent_hits_do():
    text = CAMERA + '[expectations]\nhit_rate = [1e-5, 1e-4]\nsource = "a test"\n'
    expectations = parse_instrument(text, "test.toml").expectations
    assert expectations.hit_fraction(1000.0) == pytest.approx((1 - np.exp(-0.01), 1 - np.exp(-0.1)))
    assert expectations.hit_fraction(0.0) is None
    assert expectations.hit_fraction(float("nan")) is None


def test_a_frame_whose_events_overlap_is_judged_by_its_pixels(tmp_path):
    """Of real STIS frames: 45 % of the pixels hit, and the lowest rate of all, for events overlap."""
    lights = lights_of(night([0.105, 0.453], [7129, 3081], rate=[1.17, 0.1]), "hst_stis", folder=tmp_path)
    assert lights["Pixels hit"].state == "fail"
    assert [str(unit) for unit in lights["Pixels hit"].units] == ["e1/1"]
    rate = lights["Cosmic-ray events"]
    assert rate.state == "pass"  # of the other
    assert "lower limit" in rate.details[0]
    assert rate.found.startswith("0.1 to 1.17")


def test_a_camera_without_expectations_has_no_light_and_no_alarm(tmp_path):
    alarms = (Alarm("e1", "rate", "exposure e1: found 9", "exposure e1: found 9: look"),)
    lights = lights_of(night([0.1, 0.9], [50, 90], rate=[1.0, 9.0]), "hst_nicmos", alarms=alarms, folder=tmp_path)
    assert {title: light.state for title, light in lights.items()} == {
        "Units": "pass",
        "Pixels hit": "none",
        "Cosmic-ray events": "none",
        "Rates and spectra within the run": "none",
    }


def test_a_mock_is_compared_with_its_recipe(tmp_path):
    """At 2.5 % of the pixels in 150 s a mock has more events than any camera: its recipe says so."""
    recipe = Recipe(name="m", seed=1, exposures=3, cosmic_rays={"pixel_fraction": (0.025,)})
    dataset = night([0.022, 0.05, 0.005], [4000, 4000, 4000], exptime=150.0, rate=9.0)
    dataset = dataset.assign_coords(exposure=list(recipe.exposure_ids))
    lights = lights_of(dataset, "csst", recipe=recipe, folder=tmp_path)
    assert "units above: 1, below: 1" in lights["Pixels hit"].found
    assert "1.25 to 3.75 (by exposure, 0.5 to 1.5 times the pixels" in lights["Pixels hit"].expected
    assert lights["Cosmic-ray events"].state == "none"


def test_counting_statistics_are_allowed_for():
    expected = Expectation(np.full((1, 3), 1.0), np.full((1, 3), 2.0), "a test")
    values = np.array([[2.5, 2.5, np.nan]])
    assert compare_with_limits(values, np.array([[100.0, 10_000.0, 0.0]]), expected).tolist() == [[0, 1, 0]]
    assert compare_with_limits(values / 5, np.array([[4.0, 10_000.0, 0.0]]), expected).tolist() == [[0, -1, 0]]


def test_unfinished_runs_and_foreign_detectors_are_named(tmp_path):
    failure = {"exposure": "e0", "detector": 1, "step": "detect", "reason": "x"}
    alarms = (Alarm("e0", "detector", "found detector 1, expected 8", "look"),)
    summary = Summary(total=3, done=1, failures=[failure])
    lights = lights_of(night([0.1], [900]), "hst_stis", alarms=alarms, summary=summary, folder=tmp_path)
    assert lights["Units"].state == "fail"
    assert lights["Units"].advice == "csstdask run c --to r"
    assert lights["Model made for these units"].details == ("found detector 1, expected 8",)
    pending = lights_of(night([0.1], [900]), "hst_stis", summary=Summary(total=3, done=1), folder=tmp_path)
    assert pending["Units"].state == "warn"
