"""A unit in electrons: scaled by time and gain, with errors from weights, and what may not be used."""

from __future__ import annotations

import numpy as np
import pytest

from csstdask.mock.recipe import Recipe
from csstdask.pipeline.mock_survey import mock
from csstdask.store.campaign import Campaign
from csstdask.store.electrons import electrons_per_data_unit, read_electrons
from csstdask.store.shards import read_shard


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    path = tmp_path_factory.mktemp("electrons") / "campaign.zarr"
    mock(Recipe(name="electrons", seed=2, exposures=1, shape=(64, 96)), path, workers=1)
    return Campaign(path)


def test_numbers(campaign):
    metadata = campaign.metadata(campaign.exposures[0], campaign.detectors[0])
    sci, wht, flag = (read_shard(campaign.path, name, 0, 0) for name in ("sci", "wht", "flag"))
    unit = read_electrons(campaign, metadata)
    assert electrons_per_data_unit(campaign, metadata) == pytest.approx(metadata.exptime)  # electron s-1
    np.testing.assert_allclose(unit.data, sci * metadata.exptime, rtol=1e-6)
    assert np.array_equal(unit.flag, flag)
    assert np.array_equal(unit.ignore, ((flag & campaign.instrument.flags.ignore_mask) != 0) | (wht <= 0))
    assert unit.ignore.any()
    np.testing.assert_allclose(unit.error[wht > 0], metadata.exptime / np.sqrt(wht[wht > 0]), rtol=1e-5)
    assert np.isinf(unit.error[wht == 0]).all()


def test_some_rows(campaign):
    metadata = campaign.metadata(campaign.exposures[0], campaign.detectors[0])
    whole, part = read_electrons(campaign, metadata), read_electrons(campaign, metadata, slice(10, 30))
    for name in ("data", "error", "ignore", "flag"):
        assert np.array_equal(getattr(part, name), getattr(whole, name)[10:30])
