"""Runs that several test files read: built once, never changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import zarr
from flat_run import run_flat
from quick import quick_run, quick_settings
from zeropoint_campaign import make_campaign, zero_points

from csstdask.engine.events import ReductionStarted
from csstdask.mock import load_recipe
from csstdask.pipeline.mock_survey import mock
from csstdask.pipeline.run import run
from csstdask.store.zarr_arrays import consolidate


@pytest.fixture(scope="session")
def reference(small_campaign, tmp_path_factory) -> Path:
    """An uninterrupted quick run with one worker."""
    path = tmp_path_factory.mktemp("reference") / "run.zarr"
    summary = quick_run(small_campaign, path, workers=1)
    assert (summary.done, summary.failed) == (4, 0)
    return path


@pytest.fixture
def product(reference, tmp_path) -> Path:
    """A copy of the quick run, to be damaged."""
    return Path(shutil.copytree(reference, tmp_path / "run.zarr"))


@pytest.fixture
def campaign_copy(small_campaign, tmp_path) -> Path:
    """A copy of the small campaign, to be damaged."""
    return Path(shutil.copytree(small_campaign, tmp_path / "c.zarr"))


@pytest.fixture(scope="session")
def slitless_campaign(tmp_path_factory) -> Path:
    """Six slitless units of 16 stars each."""
    path = tmp_path_factory.mktemp("reductions") / "campaign.zarr"
    recipe = load_recipe("slitless").model_dump()
    recipe |= {"exposures": 3, "detectors": (2, 3), "shape": (160, 640), "seed": 77}
    recipe["slitless"] |= {"stars": 16}
    mock(type(load_recipe("slitless")).model_validate(recipe), path)
    return path


@pytest.fixture(scope="session")
def flat_run(slitless_campaign, tmp_path_factory) -> Path:
    """A run of the slitless campaign with its flat-field cubes."""
    path = tmp_path_factory.mktemp("reductions") / "run.zarr"
    summary = run_flat(slitless_campaign, path, workers=1)
    assert [one.state for one in summary.reductions] == ["done"]
    return path


@pytest.fixture(scope="session")
def grown(tmp_path_factory):
    """A campaign of two exposures that was run, extended by a third one, and run again."""
    folder, settings = tmp_path_factory.mktemp("zeropoints"), quick_settings(zeropoint={"model": "none"})
    campaign, path = make_campaign(folder / "campaign.zarr", exposures=2), folder / "run.zarr"
    before = run(campaign, path, config=settings, workers=1)
    assert [(one.name, one.state, one.n_inputs) for one in before.reductions] == [("zeropoints", "done", 4)]
    arrays = zero_points(path)
    make_campaign(campaign, exposures=3)
    seen = []
    after = run(campaign, path, config=settings, workers=1, listeners=[seen.append])
    assert [(event.name, event.n_inputs) for event in seen if isinstance(event, ReductionStarted)] == [
        ("zeropoints", 6)
    ]
    return campaign, path, arrays, after


@pytest.fixture(scope="session")
def zeropoint_run(grown, tmp_path_factory) -> Path:
    """The same campaign in one run, with two workers."""
    path = tmp_path_factory.mktemp("zeropoints") / "run.zarr"
    summary = run(grown[0], path, config=quick_settings(zeropoint={"model": "none"}), workers=2)
    assert [(one.name, one.state, one.n_inputs) for one in summary.reductions] == [("zeropoints", "done", 6)]
    return path


@pytest.fixture
def copied(grown, zeropoint_run, tmp_path) -> Path:
    """A copy of the run with zero points, to be damaged."""
    path = tmp_path / "run.zarr"
    shutil.copytree(zeropoint_run, path)
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    group.attrs["campaign"] = os.path.relpath(grown[0].resolve(), path.resolve())
    consolidate(path)
    return path
