"""Views of units that are not done, and where a run looks for its campaign."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import dask.array
import numpy as np
import pytest
import xarray as xr
from quick import quick_run as run
from quick import quick_settings

import csstdask
from csstdask.core.errors import StoreError
from csstdask.engine.ledger import Ledger
from csstdask.engine.work_units import Unit, parse_selection
from csstdask.pipeline.export import export
from csstdask.pipeline.status import status
from csstdask.store.campaign import Campaign
from csstdask.store.shards import shard_path


@pytest.fixture(scope="module")
def reference(small_campaign, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "run.zarr"
    assert run(small_campaign, path, workers=1, steps=["repair"]).done == 4
    return path


@pytest.fixture
def product(reference, tmp_path) -> Path:
    return Path(shutil.copytree(reference, tmp_path / "run.zarr"))


def assert_only(dataset: xr.Dataset, source: xr.Dataset, done: np.ndarray) -> None:
    """Assert that exactly the units in `done` are shown."""
    assert dataset["done"].dims == ("exposure", "detector")
    assert dataset["done"].dtype == bool
    assert np.array_equal(dataset["done"].values, done)
    clean, weight = dataset["clean"].values, dataset["clean_wht"].values
    assert clean.dtype == weight.dtype == np.float32
    assert np.isnan(clean[~done]).all()
    assert (weight[~done] == 0).all()
    hit = dataset["cr_mask"].values
    untouched = done[:, :, None, None] & ~hit
    assert np.array_equal(clean[untouched], source["sci"].values[untouched], equal_nan=True)
    assert (weight[done] > 0).mean() > 0.9
    assert dataset["flag_out"].dtype == np.int32
    assert np.array_equal(dataset["flag_out"].values[~done], source["flag"].values[~done])
    assert dataset["clean"].attrs["units"] == "electron s-1"
    assert isinstance(dataset["clean"].data, dask.array.Array)


def test_all_done(small_campaign, reference):
    source = csstdask.open_campaign(small_campaign)
    assert_only(csstdask.open_run(reference, small_campaign), source, np.ones((2, 2), dtype=bool))


def test_pending_units(small_campaign, tmp_path):
    """Units that were not selected, and one whose record is lost, are not shown."""
    product = tmp_path / "run.zarr"
    run(small_campaign, product, selection=parse_selection("detector=7"), steps=["repair"])
    source = csstdask.open_campaign(small_campaign)
    assert_only(csstdask.open_run(product), source, np.array([[True, False], [True, False]]))
    Ledger(product).path(Unit("10100000002", 7)).unlink()
    dataset = csstdask.open_run(product)
    assert_only(dataset, source, np.array([[True, False], [False, False]]))
    assert export(product, tmp_path / "out").written == 1
    one = dataset.isel(exposure=0, y=slice(3, 20), x=slice(5, 9))
    assert np.isfinite(one["clean"].values[0]).any()
    assert np.isnan(one["clean"].values[1]).all()


def test_a_unit_that_was_superseded_is_not_shown(small_campaign, reference, tmp_path):
    """The run is of the pixels that the campaign had before."""
    campaign = Path(shutil.copytree(small_campaign, tmp_path / "c.zarr"))
    store = Campaign(campaign, "r+")
    from dataclasses import replace

    store.mark_present([replace(store.metadata("10100000001", 8), digest="another file")])
    dataset = csstdask.open_run(reference, campaign)
    assert_only(dataset, csstdask.open_campaign(campaign), np.array([[True, False], [True, True]]))
    assert status(reference, campaign=campaign).done == 3
    assert export(reference, tmp_path / "out", campaign=campaign).pending == 1


def test_a_lost_shard_is_not_shown(small_campaign, product):
    shard_path(product, "cr_mask", 1, 1).unlink()
    dataset = csstdask.open_run(product, small_campaign)
    assert dataset["done"].values.tolist() == [[True, True], [True, False]]
    assert np.isnan(dataset["clean"].values[1, 1]).all()


def test_other_settings_for_some_units(small_campaign, product):
    """The run has the settings of its last command: what was made with others is outdated, as for status."""
    config = quick_settings(detect={"threshold": 0.5})
    run(small_campaign, product, config=config, selection=parse_selection("detector=7"), steps=["repair"])
    dataset = csstdask.open_run(product, small_campaign)
    assert dataset["done"].values.tolist() == [[True, False], [True, False]]
    assert status(product, campaign=small_campaign).done == 2


def test_frames_that_a_run_does_not_process_are_not_done(small_campaign, tmp_path):
    from dataclasses import replace

    campaign = Path(shutil.copytree(small_campaign, tmp_path / "c.zarr"))
    store = Campaign(campaign, "r+")
    store.mark_present([replace(store.metadata("10100000001", 8), kind="flat")])
    run(campaign, tmp_path / "run.zarr", steps=["repair"])
    dataset = csstdask.open_run(tmp_path / "run.zarr")
    assert dataset["done"].values.tolist() == [[True, False], [True, True]]


def test_a_run_without_repair_has_a_done_coordinate(small_campaign, tmp_path):
    run(small_campaign, tmp_path / "run.zarr", steps=["background"], selection=parse_selection("exposure=10100000002"))
    dataset = csstdask.open_run(tmp_path / "run.zarr")
    assert dataset["done"].values.tolist() == [[False, False], [True, True]]
    assert "clean" not in dataset


def test_unchecked_views_read_no_records(small_campaign, product):
    shutil.rmtree(product / "ledger")
    dataset = csstdask.open_run(product, small_campaign, check=False)
    assert "done" not in dataset.coords
    assert np.isfinite(dataset["clean"].values).any()


def test_a_run_through_a_symbolic_link(small_recipe, tmp_path):
    """The link leads to another folder, so `..` after it is not the folder of the link."""
    from csstdask.pipeline.mock_survey import mock

    (tmp_path / "disk" / "deep" / "runs").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "runs").symlink_to(tmp_path / "disk" / "deep" / "runs")
    campaign = tmp_path / "work" / "c.zarr"
    mock(small_recipe.model_copy(update={"exposures": 1, "detectors": (7,), "shape": (96, 96)}), campaign)
    run(campaign, tmp_path / "work" / "runs" / "r.zarr", steps=["repair"])
    for path in (tmp_path / "work" / "runs" / "r.zarr", tmp_path / "disk" / "deep" / "runs" / "r.zarr"):
        assert status(path).done == 1
        assert csstdask.open_run(path)["done"].values.tolist() == [[True]]
    folder = Path.cwd()
    os.chdir(tmp_path / "work" / "runs")
    try:
        assert status("r.zarr").done == 1
    finally:
        os.chdir(folder)
    (tmp_path / "work" / "runs" / "night").mkdir()
    (tmp_path / "disk" / "deep" / "runs" / "night" / "link").symlink_to("../r.zarr")
    assert status(tmp_path / "work" / "runs" / "night" / "link").done == 1


def test_a_campaign_that_is_a_link_stays_one(small_campaign, tmp_path):
    """Campaign and run move together with the link."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "c.zarr").symlink_to(small_campaign)
    run(tmp_path / "project" / "c.zarr", tmp_path / "project" / "r.zarr", steps=["background"])
    (tmp_path / "project").rename(tmp_path / "moved")
    assert status(tmp_path / "moved" / "r.zarr").done == 4


@pytest.mark.parametrize("look", [csstdask.open_run, status, lambda path: export(path, path.parent / "out")])
def test_a_moved_campaign_is_asked_for(product, look):
    moved = product.parent / "elsewhere" / "deep" / "run.zarr"
    shutil.copytree(product, moved)
    with pytest.raises(StoreError, match=r"campaign\.zarr: found no campaign; .*--campaign PATH, or campaign="):
        look(moved)


def test_a_cut_of_a_large_run_costs_a_cut():
    """60,000 units: the graph of all of them is never made for one that is asked for."""
    import time

    from csstdask.pipeline.views import mask_unfinished

    sizes = (2000, 30, 8, 8)
    planes = {
        name: dask.array.zeros(sizes, chunks=(1, 1, 8, 8), dtype=dtype)
        for name, dtype in (("a", "f4"), ("b", "f4"), ("clean_wht", "f4"), ("flag_out", "i4"), ("flag", "i4"))
    }
    dataset = xr.Dataset({name: (("exposure", "detector", "y", "x"), values) for name, values in planes.items()})
    dataset["clean"] = dataset["a"] + dataset["b"]
    done = np.ones(sizes[:2], dtype=bool)
    done[1000, 3] = False
    start = time.process_time()
    views = mask_unfinished(dataset.assign_coords(done=(("exposure", "detector"), done)), dataset["flag"])
    cut = views["clean"].isel(exposure=1000, detector=slice(2, 5)).values
    assert time.process_time() - start < 2
    assert np.isnan(cut).all(axis=(1, 2)).tolist() == [False, True, False]
