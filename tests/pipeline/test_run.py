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
from csstdask.core.errors import InputError
from csstdask.engine.ledger import Ledger
from csstdask.engine.work_units import Unit, parse_selection
from csstdask.nn.models import find_card
from csstdask.pipeline.config import RunConfig, load_run_settings
from csstdask.pipeline.prepare import recorded_precision
from csstdask.pipeline.run import run as full_run
from csstdask.pipeline.score import score_run
from csstdask.pipeline.status import status
from csstdask.store.shards import shard_path


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


def test_finished_steps_are_skipped_and_a_new_step_recomputes_none_upstream(small_campaign, reference, tmp_path):
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


def test_a_changed_setting_reopens_only_dependent_steps(small_campaign, tmp_path):
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


def test_no_variable_contains_time_or_attempt(reference):
    names = set(xr.open_zarr(reference).data_vars)
    assert not {name for name in names if "time" in name or "host" in name or "attempt" in name}
    attributes = json.dumps(dict(zarr.open_group(reference).attrs))
    assert "token" not in attributes


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


def test_status_covers_all_units_and_steps_so_far(small_campaign, tmp_path):
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


def test_dry_run_reports_the_pending_units(small_campaign, reference, tmp_path):
    from csstdask.pipeline.prepare import estimate

    path = tmp_path / "run.zarr"
    shutil.copytree(reference, path)
    (path / "ledger/10100000001/7.json").unlink()
    metadata = estimate(small_campaign, path, config=quick_settings())
    assert metadata["units"] == {"total": 4, "done": 0, "skipped": 3, "failed": 0, "pending": 1}
    assert metadata["bytes_read"] == 192 * 160 * 12
    with pytest.raises(InputError, match="--select"):
        estimate(small_campaign, path, selection=parse_selection("detector=30"))


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


def test_a_run_keeps_the_arithmetic_it_began_with(small_campaign, tmp_path, monkeypatch):
    """`auto` is decided once: a run that is resumed on another machine goes on as it began."""
    automatic = quick_settings(detect={"precision": "auto"})
    monkeypatch.setattr("csstdask.pipeline.prepare.fastest_precision", lambda card, device: "bfloat16")
    path = tmp_path / "run.zarr"
    first = run(
        small_campaign, path, steps=["detect"], config=automatic, selection=parse_selection("exposure=10100000001")
    )
    assert first.done > 0
    monkeypatch.setattr("csstdask.pipeline.prepare.fastest_precision", lambda card, device: "float32")
    second = run(small_campaign, path, steps=["detect"], config=automatic)
    assert second.skipped == first.done
    assert load_run_settings(path).detect.precision == "bfloat16"
    other = run(small_campaign, path, steps=["detect"], config=quick_settings())  # float32, explicitly
    assert other.skipped == 0
    assert load_run_settings(path).detect.precision == "float32"


def test_the_arithmetic_of_one_kind_of_device_is_not_used_on_another(small_campaign, tmp_path):
    """A run that began with int8 on a host is resumed on a GPU in the precision of the GPU."""
    path = tmp_path / "run.zarr"
    run(small_campaign, path, steps=["detect"], config=quick_settings(detect={"precision": "int8"}))
    card = find_card("cosmicray", "unet-fast")
    assert recorded_precision(path, card, "cpu") == "int8"
    assert recorded_precision(path, card, "cuda:0") is None
    assert recorded_precision(path, find_card("cosmicray", "deepcr"), "cpu") is None
    assert recorded_precision(tmp_path / "none.zarr", card, "cpu") is None
