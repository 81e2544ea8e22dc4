"""Runs of schema version 1: read and resumed under the present names of columns, metrics and settings."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from quick import quick_settings

import csstdask
from csstdask.engine.ledger import Ledger, OwnedObject
from csstdask.engine.work_units import Unit, parse_selection
from csstdask.pipeline.config import RunConfig, load_config
from csstdask.pipeline.run import run
from csstdask.pipeline.status import status
from csstdask.report import write_report
from csstdask.store.schema import SCHEMA_VERSION
from csstdask.store.tables import read_table, table_path
from csstdask.store.zarr_arrays import consolidate

UNIT = Unit("10100000001", 7)
ONE = parse_selection("exposure=10100000001,detector=7")
CONFIG = quick_settings(psf={"model": "default"})


def make_version_1(path):
    """Give a run the names of schema version 1."""
    table = table_path(path, "psf_stars", UNIT.exposure, UNIT.detector)
    stars = pq.read_table(table)
    pq.write_table(stars.rename_columns(["reserve" if n == "held_out" else n for n in stars.column_names]), table)
    (path / "n_psf_held_out").rename(path / "n_psf_reserve")
    group = zarr.open_group(path, use_consolidated=False)
    settings = group.attrs["config"]
    settings["psf"]["least_snr"] = settings["psf"].pop("min_snr")
    settings["sources"]["least_area"] = settings["sources"].pop("min_area")
    settings["zeropoint"]["least_snr"] = settings["zeropoint"].pop("min_snr")
    group.attrs.update({"schema_version": 1, "config": settings})
    consolidate(path)
    (path / "attributes.json").write_text(json.dumps(dict(group.attrs)))
    ledger = Ledger(path)
    record = json.loads(ledger.path(UNIT).read_text())
    step = record["steps"]["psf"]
    step["metrics"]["n_psf_reserve"] = step["metrics"].pop("n_psf_held_out")
    described = OwnedObject.of(path, table)
    for item in step["objects"]:
        if item["path"] == described.path:
            item.update(bytes=described.bytes, sha256=described.sha256)
    ledger.path(UNIT).write_text(json.dumps(record))


@pytest.fixture(scope="module")
def original(small_campaign, tmp_path_factory):
    path = tmp_path_factory.mktemp("version") / "run.zarr"
    assert run(small_campaign, path, config=CONFIG, selection=ONE, workers=1).done == 1
    return path


@pytest.fixture
def old(original, tmp_path):
    path = tmp_path / "run.zarr"
    shutil.copytree(original, path)
    make_version_1(path)
    return path


def test_an_old_run_is_finished_and_readable(small_campaign, original, old, tmp_path):
    seen = status(old, campaign=small_campaign, verify=True)
    assert (seen.total, seen.done, seen.failures) == (1, 1, [])
    dataset, expected = (csstdask.open_run(path, small_campaign) for path in (old, original))
    assert "n_psf_reserve" not in dataset
    for name in ("n_psf_held_out", "clean", "psf"):
        np.testing.assert_array_equal(dataset[name].values, expected[name].values)
    stars = read_table(table_path(old, "psf_stars", UNIT.exposure, UNIT.detector))
    assert stars["held_out"].dtype == bool
    page = write_report(old, tmp_path / "report.html", small_campaign).read_text(encoding="utf-8")
    assert "held-out stars" in page


def test_an_old_run_is_resumed_without_work(small_campaign, original, old):
    summary = run(small_campaign, old, config=load_config(old), selection=ONE, workers=1)
    assert (summary.done, summary.skipped) == (0, 1)
    group = zarr.open_group(old, use_consolidated=False)
    assert group.attrs["schema_version"] == SCHEMA_VERSION
    expected = zarr.open_group(original, use_consolidated=False)["n_psf_held_out"][:]
    np.testing.assert_array_equal(group["n_psf_held_out"][:], expected)


def test_renamed_settings_are_accepted():
    old = {"psf": {"least_snr": 12.0}, "sources": {"least_area": 3}, "zeropoint": {"least_snr": 11.0}}
    new = {"psf": {"min_snr": 12.0}, "sources": {"min_area": 3}, "zeropoint": {"min_snr": 11.0}}
    assert RunConfig.model_validate(old) == RunConfig.model_validate(new)


def test_every_setting_is_described():
    sections = {name: type(field.default) for name, field in RunConfig.model_fields.items()}
    missing = [
        f"{section}.{name}"
        for section, settings in sections.items()
        for name, field in settings.model_fields.items()
        if not field.description
    ]
    assert missing == []
    assert set(RunConfig.model_json_schema()["properties"]) == set(sections)
