"""Requests that a run refuses, before anything is written."""

from __future__ import annotations

import shutil

import pytest
import zarr
from quick import quick_run as run
from quick import quick_settings
from store_equality import differences

import csstdask
from csstdask.core.errors import InputError, MemoryProjectionError, RunLockedError, StoreError
from csstdask.engine.ledger import Ledger
from csstdask.engine.lock import DriverLock
from csstdask.engine.work_units import parse_selection
from csstdask.pipeline.status import status


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


def test_refused_runs_write_nothing(small_campaign, tmp_path):
    with pytest.raises(InputError, match="--scheduler"):
        run(small_campaign, tmp_path / "r.zarr", scheduler="magic")
    with pytest.raises(InputError, match="--select"):
        run(small_campaign, tmp_path / "r.zarr", selection=parse_selection("detector=30"))
    assert not (tmp_path / "r.zarr").exists()


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


def test_status_with_another_campaign_is_an_error(small_recipe, small_campaign, reference, tmp_path):
    from csstdask.pipeline.mock_survey import mock

    other = small_recipe.model_copy(update={"exposures": 1, "detectors": (9,)})
    mock(other, tmp_path / "other.zarr")
    with pytest.raises(StoreError, match=r"wanted the run of .*other\.zarr"):
        status(reference, campaign=tmp_path / "other.zarr")
    with pytest.raises(StoreError, match="--campaign PATH"):
        status(reference, campaign=tmp_path / "gone.zarr")
