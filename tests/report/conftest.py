"""A run with a damaged unit and non-default settings, and its page."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from quick import quick_run

from csstdask.report import write_report
from csstdask.store.shards import shard_path


@pytest.fixture(scope="session")
def damaged(small_campaign: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Return a run, its campaign and its page; the shard of one unit is damaged, and a name needs quotes."""
    folder = tmp_path_factory.mktemp("damaged run")
    campaign, run = folder / "c.zarr", folder / "r.zarr"
    shutil.copytree(small_campaign, campaign)
    shard_path(campaign, "sci", 1, 0).write_bytes(b"damaged")
    quick_run(campaign, run, steps=["sources"], workers=1)
    return run, campaign, write_report(run, folder / "r.html").read_text(encoding="utf-8")
