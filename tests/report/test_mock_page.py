"""The page about a mock: its numbers are the store's, its pictures show what they say."""

from __future__ import annotations

import re

import numpy as np
import pytest

from csstdask.core.errors import InputError
from csstdask.mock import Recipe
from csstdask.pipeline.mock_survey import mock
from csstdask.report import write_mock_report
from csstdask.report.images import mosaic
from csstdask.report.mock_page import events_of


def test_the_page_of_a_campaign(small_campaign, tmp_path):
    page = write_mock_report(small_campaign, tmp_path / "m.html").read_text()
    assert "Nothing on this page was observed" in page
    assert "10100000002" in page
    assert page.count("<svg") == 3
    assert "effective PSF at each detector" in page
    assert re.search(r"mock: tracks</td><td>\d+</td>", page)
    assert "<script" not in page
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []


def test_real_events_are_shown_next_to_mock_events(small_campaign, real_images, tmp_path):
    page = write_mock_report(small_campaign, tmp_path / "m.html", real_images).read_text()
    assert "real: HST/STIS 1999" in page
    assert "real: LSST ITL darks" in page


def test_the_page_of_a_stamp_set(tmp_path):
    recipe = Recipe.model_validate(
        {
            "name": "nodes",
            "seed": 5,
            "exposures": 1,
            "detectors": (7,),
            "shape": (256, 256),
            "nodes": {"per_axis": 2},
            "cosmic_rays": {"pixel_fraction": (0.0,)},
            "stamps": {"kind": "isolated", "per_unit": 4, "size": 32},
        }
    )
    mock(recipe, tmp_path / "s.zarr")
    page = write_mock_report(tmp_path / "s.zarr", tmp_path / "s.html").read_text()
    assert "10100000001 / 7: truth psf" in page


def test_a_store_that_is_not_a_mock_raises(tmp_path):
    from csstdask.instrument import load_instrument
    from csstdask.store.campaign_creation import create_campaign

    create_campaign(tmp_path / "c.zarr", load_instrument("csst"), (64, 64), "electron s-1", [7])
    with pytest.raises(InputError, match="without a recipe"):
        write_mock_report(tmp_path / "c.zarr", tmp_path / "m.html")


def test_events_are_found_and_put_side_by_side():
    charge = np.zeros((60, 60))
    charge[10, 10:15] = 100
    charge[30, 30] = 500
    charge[50, 5:45] = 100  # too long for its box
    found = events_of(charge, 10)
    assert [event.sum() for event in found] == [500, 500]
    assert sorted(event.shape for event in found) == [(1, 1), (1, 5)]
    tile = np.full((4, 4), 9, dtype=np.uint8)
    joined = mosaic([[tile, None], [None, tile]])
    assert joined.shape == (9, 9)
    assert (joined[:4, :4] == 9).all()
    assert (joined[:4, 5:] == 0).all()
