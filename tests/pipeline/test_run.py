"""Runs: the same bits however they are made, and work only where work is due."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import xarray as xr
import zarr
from own_model import write_own_model
from quick import quick_run as run
from quick import quick_settings
from store_equality import differences

import csstdask
from csstdask.core.errors import InputError, MemoryProjectionError, RunLockedError, StoreError
from csstdask.engine.events import UnitDone, UnitSkipped
from csstdask.engine.ledger import Ledger
from csstdask.engine.lock import DriverLock
from csstdask.engine.work_units import Unit, parse_selection
from csstdask.nn.models import find_card
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.run import run as full_run
from csstdask.pipeline.score import score_run
from csstdask.pipeline.status import status
from csstdask.store.campaign_pixels import write_unit_pixels
from csstdask.store.shards import shard_path


@pytest.fixture(scope="module")
def reference(small_campaign, tmp_path_factory):
    """An uninterrupted quick run with one worker."""
    path = tmp_path_factory.mktemp("reference") / "run.zarr"
    summary = run(small_campaign, path, workers=1)
    assert (summary.done, summary.failed) == (4, 0)
    return path


@pytest.fixture(scope="module")
def full_reference(small_campaign, tmp_path_factory):
    """The same with the default settings."""
    path = tmp_path_factory.mktemp("reference") / "run.zarr"
    summary = full_run(small_campaign, path, workers=1)
    assert (summary.done, summary.failed) == (4, 0)
    return path


@pytest.mark.parametrize(("scheduler", "workers"), [("threads", 2), ("processes", 1), ("processes", 2)])
def test_same_bits_for_any_scheduler_and_number_of_workers(
    small_campaign, full_reference, tmp_path, scheduler, workers
):
    full_run(small_campaign, tmp_path / "run.zarr", scheduler=scheduler, workers=workers)
    assert differences(full_reference, tmp_path / "run.zarr") == []


def test_same_bits_in_any_order(small_campaign, full_reference, tmp_path):
    """Units done one by one, last first, in four runs."""
    for exposure in ("10100000002", "10100000001"):
        for detector in (8, 7):
            selection = parse_selection(f"exposure={exposure},detector={detector}")
            assert full_run(small_campaign, tmp_path / "run.zarr", selection=selection, workers=1).done == 1
    assert full_run(small_campaign, tmp_path / "run.zarr", workers=1).skipped == 4
    assert differences(full_reference, tmp_path / "run.zarr") == []


def test_products_and_contract(small_campaign, full_reference):
    dataset = csstdask.open_run(full_reference)
    assert dataset["cr_mask"].dtype == bool
    hit = dataset["cr_mask"].values
    assert 0.005 < hit.mean() < 0.05
    for name in ("repair", "repair_variance"):
        assert dataset[name].dtype == np.float32
        assert np.isnan(dataset[name].values[~hit]).all()
        assert not np.isnan(dataset[name].values[hit]).any()
    assert dataset["background"].dims == ("exposure", "detector", "y_mesh", "x_mesh")
    assert dataset["repair"].attrs["units"] == "electron s-1"
    campaign = csstdask.open_campaign(small_campaign)
    clean = dataset["clean"].values
    assert np.array_equal(clean[~hit], campaign["sci"].values[~hit])
    assert np.array_equal(clean[hit], dataset["repair"].values[hit])
    np.testing.assert_allclose(dataset["clean_wht"].values[hit], 1 / dataset["repair_variance"].values[hit])
    assert xr.open_zarr(full_reference)["n_cr_pixels"].sum() == hit.sum()


def test_tables(reference):
    import pyarrow.parquet as pq

    table = pq.read_table(reference / "tables/sources/10100000001/7.parquet")
    first = ["exposure", "detector", "id", "x", "y", "ra", "dec", "flux", "flux_err", "flag", "n_cr_pixels"]
    assert set(first) <= set(table.column_names)
    assert table.schema.field("flux").metadata == {b"unit": b"electron s-1"}
    assert table["id"].to_pylist() == list(range(table.num_rows))
    assert table.num_rows > 3
    assert np.abs(np.array(table["ra"]) - 60).max() < 0.5
    assert np.abs(np.array(table["dec"]) + 30).max() < 0.5


def test_score_against_truth(full_reference):
    """Small numbers of a small scene: far from chance, and the repair's variance is honest."""
    score = score_run(full_reference)
    assert score.precision > 0.9
    assert score.recall_visible > 0.65
    assert 0.7 < score.repair_pull < 1.3


def test_done_is_done_and_a_new_step_recomputes_nothing_upstream(small_campaign, reference, tmp_path):
    path = tmp_path / "run.zarr"
    first = run(small_campaign, path, steps=["detect"])
    assert first.done == 4
    mask = shard_path(path, "cr_mask", 0, 0)
    before = mask.stat().st_mtime_ns
    second = run(small_campaign, path)
    assert (second.done, second.skipped) == (4, 0)
    assert mask.stat().st_mtime_ns == before
    record = Ledger(path).read(Unit("10100000001", 7))
    assert set(record.steps) == {"background", "detect", "psf", "repair", "sources"}
    assert run(small_campaign, path).skipped == 4
    assert differences(reference, path) == []


def test_a_step_reads_the_tables_and_files_of_an_earlier_run(small_campaign, full_reference, tmp_path):
    path = tmp_path / "run.zarr"
    assert full_run(small_campaign, path, steps=["psf"]).done == 4
    assert full_run(small_campaign, path).done == 4
    assert differences(full_reference, path) == []


def test_a_run_of_before_there_were_psfs_can_be_looked_at(small_campaign, reference, tmp_path):
    path = tmp_path / "run.zarr"
    shutil.copytree(reference, path)
    stored = json.loads((path / "zarr.json").read_text())
    config = stored["attributes"]["config"]
    del config["psf"]
    (path / "zarr.json").write_text(json.dumps(stored))
    summary = status(path, campaign=small_campaign)
    assert summary.total == 4


def test_a_setting_reopens_what_lies_below_it_and_nothing_else(small_campaign, tmp_path):
    path = tmp_path / "run.zarr"
    run(small_campaign, path)
    mask, repair = shard_path(path, "cr_mask", 0, 0), shard_path(path, "repair", 0, 0)
    before = mask.stat().st_mtime_ns, repair.stat().st_mtime_ns
    config = quick_settings(sources={"threshold": 5.0})
    assert run(small_campaign, path, config=config).done == 4
    assert (mask.stat().st_mtime_ns, repair.stat().st_mtime_ns) == before
    config = quick_settings(background={"box": 64})
    assert run(small_campaign, path, config=config).done == 4
    assert repair.stat().st_mtime_ns > before[1]
    assert csstdask.open_run(path).sizes["y_mesh"] == 3


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


def test_verify_sees_what_sizes_do_not(small_campaign, reference, tmp_path):
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


def test_new_exposures_are_picked_up(small_recipe, tmp_path):
    from csstdask.pipeline.mock_survey import mock

    recipe = small_recipe.model_copy(update={"shape": (96, 96)})
    campaign, path = tmp_path / "c.zarr", tmp_path / "run.zarr"
    mock(recipe.model_copy(update={"exposures": 1}), campaign)
    assert run(campaign, path).done == 2
    mock(recipe, campaign)
    summary = run(campaign, path)
    assert (summary.done, summary.skipped) == (2, 2)
    assert csstdask.open_run(path).sizes["exposure"] == 2


def test_a_live_driver_is_respected(small_campaign, tmp_path):
    path = tmp_path / "run.zarr"
    path.mkdir()
    with DriverLock(Ledger(path).lock_path), pytest.raises(RunLockedError, match="live driver"):
        run(small_campaign, path)
    assert run(small_campaign, path, steps=["background"]).done == 4


def test_a_moved_campaign(small_campaign, reference, tmp_path):
    path = tmp_path / "elsewhere" / "deep" / "run.zarr"
    shutil.copytree(reference, path)
    with pytest.raises(StoreError, match=r"campaign\.zarr"):
        csstdask.open_run(path)
    assert "clean" in csstdask.open_run(path, campaign=small_campaign)


def test_refusals(small_campaign, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="background, detect"):
        run(small_campaign, tmp_path / "r.zarr", steps=["detekt"])
    with pytest.raises(InputError, match="campaign itself"):
        run(small_campaign, small_campaign)
    with pytest.raises(StoreError, match="found nothing"):
        run(tmp_path / "none.zarr", tmp_path / "r.zarr")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("mine")
    with pytest.raises(StoreError, match="no run"):
        run(small_campaign, tmp_path / "full")
    monkeypatch.setattr("csstdask.engine.memory.available_bytes", lambda: 100 << 20)
    with pytest.raises(MemoryProjectionError, match="not even one unit fits"):
        run(small_campaign, tmp_path / "r.zarr")
    assert not (tmp_path / "r.zarr").exists()


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


def test_no_variable_tells_time_or_attempt(reference):
    names = set(xr.open_zarr(reference).data_vars)
    assert not {name for name in names if "time" in name or "host" in name or "attempt" in name}
    attributes = json.dumps(dict(zarr.open_group(reference).attrs))
    assert "token" not in attributes


def test_another_campaign_never_touches_a_run(small_recipe, small_campaign, reference, tmp_path):
    """Another shape, fewer exposures, other detectors: refused, and all products are still there."""
    from csstdask.pipeline.mock_survey import mock

    path = tmp_path / "run.zarr"
    shutil.copytree(reference, path)
    for name, change in (("a", {"shape": (96, 96)}), ("b", {"exposures": 1}), ("c", {"detectors": (7, 9)})):
        other = tmp_path / f"{name}.zarr"
        mock(small_recipe.model_copy(update=change), other)
        with pytest.raises(StoreError, match=r"the run of .*, or a new name"):
            run(other, path)
    assert differences(reference, path) == []


def test_another_mesh_only_for_all_units(small_campaign, reference, tmp_path):
    path = tmp_path / "run.zarr"
    shutil.copytree(reference, path)
    config = quick_settings(background={"box": 64})
    with pytest.raises(StoreError, match=r"background\.box"):
        run(small_campaign, path, config=config, selection=parse_selection("detector=8"))
    assert differences(reference, path) == []


def test_products_whose_input_changed_are_not_shown(small_campaign, reference, tmp_path):
    """A new background alone takes the masks, repairs and tables that were made with the old one away."""
    path = tmp_path / "run.zarr"
    shutil.copytree(reference, path)
    run(small_campaign, path, steps=["background"], config=quick_settings(background={"box": 64}))
    assert int(xr.open_zarr(path)["cr_mask"].sum()) == 0
    assert np.isnan(xr.open_zarr(path)["n_cr_pixels"]).all()
    assert not list(path.glob("tables/sources/*/*.parquet"))
    seen = status(path, campaign=small_campaign)
    assert (seen.total, seen.done, seen.pending) == (4, 0, 4)


def test_status_knows_all_units_and_steps_so_far(small_campaign, tmp_path):
    path = tmp_path / "run.zarr"
    run(small_campaign, path)
    run(small_campaign, path, selection=parse_selection("detector=7"), steps=["detect"])
    assert (status(path).total, status(path).done) == (4, 4)


def test_a_default_and_its_value_are_the_same(small_campaign, tmp_path):
    full_run(small_campaign, tmp_path / "run.zarr")
    threshold = find_card("cosmicray", "unet").threshold
    named = RunConfig.model_validate(
        {
            "detect": {"model": "unet", "threshold": threshold},
            "repair": {"model": "median"},
            "engine": {"device": "cpu"},
        }
    )
    assert full_run(small_campaign, tmp_path / "run.zarr", config=named).skipped == 4


def test_a_lost_shard_of_the_campaign_fails_its_unit(small_campaign, tmp_path):
    campaign = tmp_path / "c.zarr"
    shutil.copytree(small_campaign, campaign)
    shard_path(campaign, "sci", 0, 1).unlink()
    summary = run(campaign, tmp_path / "run.zarr")
    assert (summary.done, summary.failed) == (3, 1)
    assert "no shard" in summary.failures[0]["reason"]


def test_nothing_is_written_for_a_run_that_cannot_be(small_campaign, tmp_path):
    with pytest.raises(InputError, match="--scheduler"):
        run(small_campaign, tmp_path / "r.zarr", scheduler="magic")
    with pytest.raises(InputError, match="--select"):
        run(small_campaign, tmp_path / "r.zarr", selection=parse_selection("detector=30"))
    assert not (tmp_path / "r.zarr").exists()


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


def test_what_is_foreseen_is_what_is_left(small_campaign, reference, tmp_path):
    from csstdask.pipeline.prepare import estimate

    path = tmp_path / "run.zarr"
    shutil.copytree(reference, path)
    (path / "ledger/10100000001/7.json").unlink()
    metadata = estimate(small_campaign, path, config=quick_settings())
    assert metadata["units"] == {"total": 4, "done": 0, "skipped": 3, "failed": 0, "pending": 1}
    assert metadata["bytes_read"] == 192 * 160 * 12
    with pytest.raises(InputError, match="--select"):
        estimate(small_campaign, path, selection=parse_selection("detector=30"))


def test_stores_are_not_nested_and_broken_ones_are_named(small_campaign, reference, tmp_path):
    from csstdask.pipeline.export import export

    with pytest.raises(StoreError, match="inside the store"):
        run(small_campaign, small_campaign / "sub.zarr")
    with pytest.raises(StoreError, match="inside the store"):
        export(reference, reference / "fits")
    shutil.copytree(small_campaign, tmp_path / "c.zarr")
    shutil.rmtree(tmp_path / "c.zarr" / "sci")
    with pytest.raises(StoreError, match="no array sci"):
        run(tmp_path / "c.zarr", tmp_path / "r.zarr")
    shutil.copytree(reference, tmp_path / "run.zarr")
    group = zarr.open_group(tmp_path / "run.zarr", use_consolidated=False)
    group.attrs["config"] = {"detect": {"sharpness": 3}}
    with pytest.raises(StoreError, match="settings of another version"):
        status(tmp_path / "run.zarr", campaign=small_campaign)


def test_a_run_keeps_the_model_it_was_made_with(small_campaign, tmp_path):
    """A user's network: its folder may go, or be trained on in, and the run is what it was."""
    path = write_own_model(tmp_path / "training")
    config = RunConfig.model_validate({"detect": {"model": str(path)}})
    done = run(small_campaign, tmp_path / "r.zarr", steps=["detect"], config=config)
    assert (done.done, done.failed) == (4, 0)
    assert len(list((tmp_path / "r.zarr" / "models").glob("own-*"))) == 2
    again = run(small_campaign, tmp_path / "r.zarr", steps=["detect"], config=config)
    assert (again.done, again.skipped) == (0, 4)
    write_own_model(tmp_path / "training", seed=8)  # other weights under the same name: another model
    assert status(tmp_path / "r.zarr").done == 4
    other = run(small_campaign, tmp_path / "r.zarr", steps=["detect"], config=config)
    assert (other.done, other.skipped) == (4, 0)
    (tmp_path / "training").rename(tmp_path / "gone")
    (tmp_path / "r.zarr").rename(tmp_path / "moved.zarr")
    assert status(tmp_path / "moved.zarr", campaign=small_campaign).done == 4
    with pytest.raises(InputError, match=r"own\.json"):
        RunConfig.model_validate({"detect": {"model": str(path)}})


def test_status_with_another_campaign_is_an_error(small_recipe, small_campaign, reference, tmp_path):
    from csstdask.pipeline.mock_survey import mock

    other = small_recipe.model_copy(update={"exposures": 1, "detectors": (9,)})
    mock(other, tmp_path / "other.zarr")
    with pytest.raises(StoreError, match=r"wanted the run of .*other\.zarr"):
        status(reference, campaign=tmp_path / "other.zarr")
    with pytest.raises(StoreError, match="--campaign PATH"):
        status(reference, campaign=tmp_path / "gone.zarr")
