"""Predicted and actual usage of a run: in its records, its status and its report."""

from __future__ import annotations

import json

import pytest
from quick import quick_run, quick_settings
from shell import csstdask_command

from csstdask.engine.work_units import Selection, parse_selection
from csstdask.pipeline.plan import START_SECONDS, make_plan
from csstdask.pipeline.prepare import estimate
from csstdask.pipeline.status import status
from csstdask.pipeline.steps import STEPS, resolve
from csstdask.pipeline.usage_report import UsageTotals, total_usage, usage_lines
from csstdask.store.shards import shard_path

IMAGING = [name for name, step in STEPS.items() if "imaging" in step.kinds and "reference" not in step.inputs]


def test_usage_of_each_step_is_kept_and_shown(small_campaign, tmp_path):
    path = tmp_path / "r.zarr"
    summary = quick_run(small_campaign, path, workers=1)
    assert [row.step for row in summary.usage] == IMAGING
    assert {row.units for row in summary.usage} == {4}
    rows = {row.step: row for row in summary.usage}
    written = shard_path(path, "cr_mask", 0, 0).stat().st_size
    assert 0.3 * written < rows["detect"].actual.bytes_written < 3 * written + 4096  # a mask and a table are empty
    assert rows["background"].actual.bytes_read >= shard_path(small_campaign, "sci", 0, 0).stat().st_size
    for row in summary.usage:
        assert 0 < row.actual.seconds < 60
        assert row.actual.peak_bytes > 50 << 20
        assert row.predicted_seconds >= 0
    whole = total_usage(summary.usage)
    assert whole.actual.seconds == sum(row.actual.seconds for row in summary.usage)
    assert whole.actual.peak_bytes == max(row.largest_peak for row in summary.usage)
    assert all(row.actual.peak_bytes <= row.largest_peak for row in summary.usage)
    lines = usage_lines(summary.usage)
    assert len(lines) == len(IMAGING) + 2
    shown = csstdask_command("status", path)
    assert shown.returncode == 0
    assert lines[1] in shown.stderr.splitlines()
    answer = json.loads(csstdask_command("status", path, "--json").stdout)
    assert [step["step"] for step in answer["usage"]] == IMAGING
    assert answer["usage"][0]["actual"]["bytes_read"] == rows["background"].actual.bytes_read


def test_predictions_grow_with_the_frame(small_campaign):
    plan = make_plan(small_campaign, resolve(None), quick_settings(), Selection())
    for step in plan.steps:
        cost = plan.cost(step)
        assert cost.seconds(10**8) >= cost.seconds(10**6) >= cost.fixed_seconds
        assert cost.peak_bytes(10**8) >= cost.peak_bytes(10**6)
    assert plan.unit_bytes() == max(plan.cost(step).peak_bytes(plan.pixels) for step in plan.steps)
    assert plan.predict(plan.steps[0]).peak_bytes > plan.library_bytes


def test_finished_units_calibrate_the_estimate(small_campaign, tmp_path):
    path, config = tmp_path / "r.zarr", quick_settings()
    before = estimate(small_campaign, path, config=config, workers=1)
    assert before["calibrated_on"] == 0
    quick_run(small_campaign, path, workers=1, selection=parse_selection("detector=7"))
    after = estimate(small_campaign, path, config=config, workers=1)
    assert (after["calibrated_on"], after["units"]["pending"]) == (2, 2)
    each = total_usage(status(path).usage).actual.seconds
    assert after["seconds_estimated"] == pytest.approx(START_SECONDS + 2 * each)


def test_a_run_of_nothing_has_no_table(small_campaign):
    plan = make_plan(small_campaign, resolve(None), quick_settings(), Selection())
    assert UsageTotals().rows(plan) == []
    assert usage_lines([]) == []


def test_only_steps_that_hold_count(small_campaign, tmp_path):
    """Other settings make other costs."""
    path = tmp_path / "r.zarr"
    quick_run(small_campaign, path, workers=1)
    other = estimate(small_campaign, path, config=quick_settings(background={"box": 64}), workers=1)
    assert (other["calibrated_on"], other["usage"]) == (0, [])
