"""Campaigns: plain xarray reads them without a warning, and they grow safely."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import xarray as xr
import zarr

import csstdask
from csstdask.core.errors import StoreError
from csstdask.instrument import load_instrument
from csstdask.store.campaign import Campaign
from csstdask.store.campaign_creation import create_campaign
from csstdask.store.campaign_pixels import write_unit_pixels
from csstdask.store.shards import shard_path
from csstdask.store.unit_metadata import UnitMetadata


def test_plain_xarray_reads_every_store_without_a_warning(small_campaign):
    """pytest turns warnings into errors: opening and loading is the test."""
    dataset = xr.open_zarr(small_campaign)
    assert dataset["sci"].dims == ("exposure", "detector", "y", "x")
    assert dataset["sci"].dtype == np.float32
    assert dataset["flag"].dtype == np.int32
    assert dataset["sci"].attrs["units"] == "electron s-1"
    assert np.isfinite(dataset["sci"].values).all()
    truth = xr.open_zarr(small_campaign, group="truth")
    assert {"sci", "cr"} <= set(truth)


def test_contract_of_names(small_campaign):
    dataset = csstdask.open_campaign(small_campaign)
    for name in ("time", "exptime", "band", "kind", "gain", "read_noise", "present"):
        assert name in dataset.coords
    assert dataset["detector"].dtype == np.int32
    assert dataset["present"].values.all()
    assert dataset["flag"].attrs["flag_meanings"].split()[0] == "bad"
    assert len(dataset["flag"].attrs["flag_masks"]) == len(dataset["flag"].attrs["flag_meanings"].split())
    assert np.issubdtype(dataset["time"].dtype, np.datetime64)
    assert str(dataset["exposure"].values[0]) == "10100000001"
    assert "CRPIX1" not in json.dumps(dict(zarr.open_group(small_campaign).attrs))  # headers are in arrays


def metadata(exposure, detector, digest="d"):
    return UnitMetadata(exposure, detector, "imaging", "g", 150.0, 0, 1.1, 5.0, digest)


def test_growing_keeps_units_and_absent_units_have_no_shard(tmp_path):
    path = tmp_path / "c.zarr"
    create_campaign(path, load_instrument("csst"), (40, 30), "electron")
    campaign = Campaign(path, "r+")
    for exposure, value in (("a", 1.0), ("b", 2.0)):
        campaign.append_exposures([exposure])
        row, column = campaign.index(exposure, 9)
        write_unit_pixels(path, row, column, "sci", np.full((40, 30), value, np.float32))
        campaign.mark_present([metadata(exposure, 9)])
    dataset = csstdask.open_campaign(path)
    assert dataset.sizes == {"exposure": 2, "detector": 30, "y": 40, "x": 30}
    assert int(dataset["present"].sum()) == 2
    assert float(dataset["sci"].sel(exposure="a", detector=9).mean()) == 1.0
    assert np.isnan(dataset["sci"].sel(exposure="a", detector=8).values).all()
    assert not shard_path(path, "sci", 0, 0).exists()
    assert shard_path(path, "sci", 1, 8).exists()


def test_a_killed_append_is_repaired_by_the_next(tmp_path):
    """Arrays that grew before their names did: readers see the old length, the next append goes on."""
    path = tmp_path / "c.zarr"
    create_campaign(path, load_instrument("hst_wfpc2"), (10, 10), "adu")
    group = zarr.open_group(path, use_consolidated=False)
    for name in ("sci", "time", "exposure"):
        array = group[name]
        array.resize((1, *array.shape[1:]))
    assert csstdask.open_campaign(path).sizes["exposure"] == 0
    campaign = Campaign(path, "r+")
    assert campaign.exposures == []
    campaign.append_exposures(["x", "y"])
    assert Campaign(path).exposures == ["x", "y"]
    assert csstdask.open_campaign(path).sizes["exposure"] == 2


def test_a_torn_shard_is_replaced(tmp_path):
    path = tmp_path / "c.zarr"
    create_campaign(path, load_instrument("hst_wfpc2"), (513, 251), "adu")
    Campaign(path, "r+").append_exposures(["a"])
    first, second = (np.full((513, 251), value, np.float32) for value in (1, 2))
    write_unit_pixels(path, 0, 0, "sci", first)
    shard = shard_path(path, "sci", 0, 0)
    shard.write_bytes(shard.read_bytes()[:100])
    write_unit_pixels(path, 0, 0, "sci", second)
    assert np.array_equal(csstdask.open_campaign(path)["sci"][0, 0].values, second)


def test_stores_that_are_none(tmp_path, small_campaign):
    with pytest.raises(StoreError, match="found nothing"):
        csstdask.open_campaign(tmp_path / "no.zarr")
    with pytest.raises(StoreError, match="without a Zarr group"):
        csstdask.open_campaign(tmp_path)
    zarr.create_group(tmp_path / "foreign.zarr")
    with pytest.raises(StoreError, match="foreign"):
        csstdask.open_campaign(tmp_path / "foreign.zarr")
    with pytest.raises(StoreError, match="wanted a csstdask run"):
        csstdask.open_run(small_campaign)


def test_an_older_schema_is_refused_by_name(tmp_path, small_campaign):
    old = tmp_path / "old.zarr"
    shutil.copytree(small_campaign, old)
    zarr.open_group(old, use_consolidated=False).attrs["schema_version"] = 0
    with pytest.raises(StoreError, match="schema version 0; wanted 3"):
        csstdask.open_campaign(old)
