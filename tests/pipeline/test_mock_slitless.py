"""Campaigns of slitless mocks: facts, what a reduction is given, truth, FITS, resuming and the page."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import xarray as xr

import csstdask
from csstdask.core.errors import InputError
from csstdask.instrument import load_instrument
from csstdask.mock import Recipe
from csstdask.mock.recipe_tables import Pointing, Sky, SkyField, Slitless
from csstdask.mock.slitless_camera import true_flat, true_sensitivity
from csstdask.pipeline.mock_survey import mock
from csstdask.report import write_mock_report

CSST = load_instrument("csst")
RECIPE = Recipe(
    name="grating",
    seed=5,
    exposures=2,
    detectors=(3, 1),
    shape=(128, 512),
    sky=Sky(stars_per_mpix=0),
    slitless=Slitless(stars=8, flux_error=0.01, sed_sigma=0.02),
)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("slitless") / "campaign.zarr"
    summary = mock(RECIPE, path)
    assert (summary.rendered, summary.failures) == (4, [])
    return path


def test_facts_of_a_slitless_campaign(campaign):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = csstdask.open_campaign(campaign)
    assert (opened["kind"].values == "slitless").all()
    assert opened["band"].values.tolist() == [["GU", "GI"]] * 2
    assert opened["present"].values.all()
    assert np.isfinite(opened["sci"].values).all()


def test_tables_for_a_reduction(campaign):
    stars = pq.read_table(campaign / "tables" / "catalogue.parquet")
    seds = pq.read_table(campaign / "tables" / "spectra.parquet")
    truth = pq.read_table(campaign / "tables" / "truth_spectra.parquet")
    assert stars.column_names == ["id", "ra", "dec", "pmra", "pmdec", "flux_5556", "flux_5556_err"]
    assert stars["id"].to_pylist() == seds["id"].to_pylist()
    assert len(set(stars["id"].to_pylist())) == len(stars)
    assert set(truth["id"].to_pylist()) == set(stars["id"].to_pylist())
    wavelength = json.loads(seds.schema.metadata[b"wavelength"])
    assert len(wavelength) == 574
    assert wavelength[0] == pytest.approx(2500 * np.exp(0.5 / 400))
    for name, rank in (("mean", 1), ("sigma", 1), ("modes", 1)):
        assert {len(row) for row in seds[name].to_pylist()} == {574 * rank}
    assert stars.schema.field("flux_5556").metadata[b"unit"] == b"erg s-1 cm-2 Angstrom-1"
    ratio = np.array(stars["flux_5556_err"]) / np.array(stars["flux_5556"])
    assert ratio == pytest.approx(0.01)


def test_truth_holds_flat_and_sensitivity(campaign):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        truth = xr.open_zarr(campaign, group="truth")
    assert truth["flat"].dims == ("detector", "wavelength", "term")
    one = truth.sel(detector=1)
    at = one.sel(wavelength=8000.0, method="nearest")
    u, v = 2 * (100 + 0.5) / 512 - 1, 2 * (30 + 0.5) / 128 - 1
    from numpy.polynomial.legendre import legval2d

    terms = np.zeros((3, 3))
    terms[at["degree_u"].values, at["degree_v"].values] = at["flat"].values
    wave = float(at["wavelength"])
    assert legval2d(u, v, terms) == pytest.approx(float(true_flat(RECIPE, CSST, 1, 100, 30, wave)))
    assert float(at["sensitivity"]) == pytest.approx(float(true_sensitivity(RECIPE, CSST, 1, wave)))
    assert np.isnan(one["flat"].sel(wavelength=4000.0, method="nearest")).all()
    assert float(one["sensitivity"].sel(wavelength=4000.0, method="nearest")) == 0


def test_exposures_of_one_field_share_their_stars(tmp_path):
    fields = (SkyField(pointing=(150.0, 20.0)),)
    recipe = RECIPE.model_copy(update={"fields": fields, "pointing": Pointing(dither=5.0), "detectors": (3,)})
    mock(recipe, tmp_path / "campaign.zarr")
    stars = pq.read_table(tmp_path / "campaign.zarr" / "tables" / "catalogue.parquet")
    truth = pq.read_table(tmp_path / "campaign.zarr" / "tables" / "truth_spectra.parquet")
    assert len(truth) == 2 * len(stars)
    assert len(set(stars["id"].to_pylist())) == len(stars)


def test_a_lost_table_is_written_again_and_pixels_stay(campaign, tmp_path):
    table = campaign / "tables" / "spectra.parquet"
    before = table.read_bytes()
    table.unlink()
    summary = mock(RECIPE, campaign)
    assert (summary.rendered, summary.unchanged) == (0, 4)
    assert table.read_bytes() == before
    other = RECIPE.model_copy(update={"slitless": Slitless(stars=9)})
    with pytest.raises(InputError, match="another recipe"):
        mock(other, campaign)


def test_fits_files_come_with_the_tables(campaign, tmp_path):
    mock(RECIPE, tmp_path / "fits", as_fits=True)
    assert len(list((tmp_path / "fits").glob("*_L1_V01.fits"))) == 4
    for name in ("catalogue", "spectra", "truth_spectra"):
        found = (tmp_path / "fits" / f"{name}.parquet").read_bytes()
        assert found == (campaign / "tables" / f"{name}.parquet").read_bytes()
    from csstdask.pipeline.ingest import ingest

    files = [str(path) for path in sorted((tmp_path / "fits").glob("*_L1_V01.fits"))]
    ingest(files, tmp_path / "ingested.zarr")
    opened = csstdask.open_campaign(tmp_path / "ingested.zarr").sel(detector=[3, 1])
    assert (opened["kind"].values == "slitless").all()
    assert np.array_equal(opened["sci"].values, csstdask.open_campaign(campaign)["sci"].values)


def test_the_page_of_a_slitless_mock(campaign, tmp_path):
    page = write_mock_report(campaign, tmp_path / "page.html").read_text()
    assert "grating" in page
    assert "Cosmic rays" in page
