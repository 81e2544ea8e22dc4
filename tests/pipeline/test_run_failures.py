"""Units that fail, are damaged or have no usable pixels: recorded by name, and tried again."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import xarray as xr
import zarr
from quick import quick_run as run
from store_equality import differences

import csstdask
from csstdask.engine.events import UnitDone, UnitSkipped
from csstdask.engine.ledger import Ledger
from csstdask.engine.work_units import Unit
from csstdask.pipeline.status import status
from csstdask.store.campaign_pixels import write_unit_pixels
from csstdask.store.shards import shard_path


@pytest.mark.parametrize("damage", ["lost", "truncated", "table", "record", "record cut"])
def test_damage_makes_exactly_its_unit_pending(small_campaign, reference, tmp_path, damage):
    path = tmp_path / "run.zarr"
    shutil.copytree(reference, path)
    shard = shard_path(path, "repair", 1, 0)
    record = path / "ledger/10100000002/7.json"
    if damage == "lost":
        shard.unlink()
    elif damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "table":
        (path / "tables/sources/10100000002/7.parquet").unlink()
    elif damage == "record":
        record.unlink()
    else:
        record.write_text(record.read_text()[:100])
    assert (status(path, campaign=small_campaign).done, status(path, campaign=small_campaign).pending) == (3, 1)
    redone = []
    summary = run(
        small_campaign, path, listeners=[lambda e: redone.append(e.unit) if isinstance(e, UnitDone) else None]
    )
    assert redone == [Unit("10100000002", 7)]
    assert summary.skipped == 3
    assert differences(reference, path) == []


def test_verify_detects_changes_that_keep_the_size(small_campaign, reference, tmp_path):
    path = tmp_path / "run.zarr"
    shutil.copytree(reference, path)
    shard = shard_path(path, "repair", 0, 1)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 255
    shard.write_bytes(data)
    assert status(path, campaign=small_campaign).done == 4
    summary = status(path, campaign=small_campaign, verify=True)
    assert summary.done == 3
    assert summary.failures[0]["detector"] == 8
    assert "differs from its record" in summary.failures[0]["reason"]


def test_a_failing_unit_is_recorded_and_tried_again(small_campaign, tmp_path, monkeypatch):
    from csstdask.pipeline.steps import STEPS

    def fail_on_8(frame, config):
        if frame.metadata.detector == 8:
            raise ArithmeticError("no numbers left")
        return original(frame, config)

    original = STEPS["repair"].body
    path = tmp_path / "run.zarr"
    object.__setattr__(STEPS["repair"], "body", fail_on_8)
    try:
        summary = run(small_campaign, path)
    finally:
        object.__setattr__(STEPS["repair"], "body", original)
    assert (summary.done, summary.failed, summary.pending) == (2, 2, 0)
    assert summary.failures[0]["step"] == "repair"
    assert summary.failures[0]["reason"] == "ArithmeticError: no numbers left"
    seen = status(path)
    assert (seen.done, seen.failed) == (2, 2)
    assert seen.failures[0]["reason"] == "ArithmeticError: no numbers left"
    dataset = csstdask.open_run(path)
    assert np.isnan(dataset["n_unrepaired_pixels"].values[:, 1]).all()
    assert np.isfinite(dataset["n_cr_pixels"].values).all()
    again = run(small_campaign, path)
    assert (again.done, again.skipped, again.failed) == (2, 2, 0)
    assert status(path).failures == []


def test_max_failures(small_campaign, tmp_path, monkeypatch):
    from csstdask.pipeline.steps import STEPS

    def fail(frame, config):
        raise ArithmeticError("always")

    original = STEPS["background"].body
    object.__setattr__(STEPS["background"], "body", fail)
    try:
        summary = run(small_campaign, tmp_path / "run.zarr", workers=1, max_failures=1)
    finally:
        object.__setattr__(STEPS["background"], "body", original)
    assert "max-failures 1" in summary.stopped
    assert summary.failed + summary.pending == 4


def test_metrics_come_back_from_records_after_a_kill(small_campaign, reference, tmp_path):
    """The driver writes metrics last: lost with it, they are rebuilt from the ledger."""
    path = tmp_path / "run.zarr"
    shutil.copytree(reference, path)
    group = zarr.open_group(path, use_consolidated=False)
    group["n_cr_pixels"][:] = np.nan
    skipped = []
    run(small_campaign, path, listeners=[lambda e: skipped.append(e) if isinstance(e, UnitSkipped) else None])
    assert len(skipped) == 4
    assert differences(reference, path) == []


def test_a_hopeless_frame_is_done_not_failed(small_campaign, tmp_path):
    """All pixels masked, and all pixels NaN: no cosmic rays, no sources, no error."""
    campaign = tmp_path / "c.zarr"
    shutil.copytree(small_campaign, campaign)
    shape = (192, 160)
    write_unit_pixels(campaign, 0, 0, "flag", np.ones(shape, np.int32))
    write_unit_pixels(campaign, 0, 1, "sci", np.full(shape, np.nan, np.float32))
    write_unit_pixels(campaign, 1, 0, "wht", np.zeros(shape, np.float32))
    sci = csstdask.open_campaign(campaign)["sci"].values[1, 1]
    sci[10, 10], sci[20, 20] = np.nan, np.inf
    write_unit_pixels(campaign, 1, 1, "sci", sci)
    summary = run(campaign, tmp_path / "run.zarr")
    assert (summary.done, summary.failed) == (4, 0)
    dataset = csstdask.open_run(tmp_path / "run.zarr")
    assert dataset["n_cr_pixels"].values[0].tolist() == [0, 0]
    assert dataset["n_sources"].values[1, 0] == 0
    assert np.isnan(dataset["sky_level"].values[0, 1])
    assert dataset["n_cr_pixels"].values[1, 1] > 100
    assert not dataset["cr_mask"].values[1, 1][[10, 20], [10, 20]].any()


def test_a_lost_shard_of_the_campaign_fails_its_unit(small_campaign, tmp_path):
    campaign = tmp_path / "c.zarr"
    shutil.copytree(small_campaign, campaign)
    shard_path(campaign, "sci", 0, 1).unlink()
    summary = run(campaign, tmp_path / "run.zarr")
    assert (summary.done, summary.failed) == (3, 1)
    assert "no shard" in summary.failures[0]["reason"]


def test_a_driver_that_lost_its_run_stops_and_writes_nothing_more(small_campaign, tmp_path):
    """Another driver's token in the lock: no records, no metrics, a reason."""
    path = tmp_path / "run.zarr"
    lock = Ledger(path).lock_path

    def usurp(event):
        if isinstance(event, UnitDone) and json.loads(lock.read_text())["token"] != "theirs":
            lock.write_text(json.dumps(json.loads(lock.read_text()) | {"token": "theirs"}))

    summary = run(small_campaign, path, workers=1, listeners=[usurp])
    assert "no longer holds" in summary.stopped
    assert summary.done <= 2
    assert len(list(path.glob("ledger/*/*.json"))) <= 2
    assert not [p for p in path.glob("ledger/*/*.json") if json.loads(p.read_text())["failure"]]
    assert json.loads(lock.read_text())["token"] == "theirs"


def test_metrics_of_steps_before_a_failure_stay(small_campaign, tmp_path):
    from csstdask.pipeline.steps import STEPS

    def fail(frame, config):
        raise ArithmeticError("always")

    original = STEPS["detect"].body
    object.__setattr__(STEPS["detect"], "body", fail)
    try:
        assert run(small_campaign, tmp_path / "run.zarr").failed == 4
    finally:
        object.__setattr__(STEPS["detect"], "body", original)
    dataset = xr.open_zarr(tmp_path / "run.zarr")
    assert np.isfinite(dataset["sky_level"].values).all()
    assert np.isnan(dataset["n_cr_pixels"].values).all()
