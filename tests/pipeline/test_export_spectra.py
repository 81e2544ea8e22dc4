"""Calibrated spectra out of a run: fluxes against the truth, sensitivities, cubes, and what is not replaced."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from quick import quick_settings

from csstdask.engine.work_units import Selection
from csstdask.flux.flat import Flat
from csstdask.mock import Recipe, load_recipe
from csstdask.numerics.spectral import interpolate_spectrum
from csstdask.pipeline.export import export
from csstdask.pipeline.mock_survey import mock
from csstdask.pipeline.run import run
from csstdask.report import write_report


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run of two exposures of one detector, exported."""
    folder = tmp_path_factory.mktemp("spectra")
    recipe = load_recipe("slitless").model_dump()
    recipe |= {"exposures": 2, "detectors": (2,), "shape": (160, 640), "seed": 78}
    recipe["slitless"] |= {"stars": 16}
    mock(Recipe.model_validate(recipe), folder / "campaign.zarr")
    summary = run(folder / "campaign.zarr", folder / "run.zarr", config=quick_settings())
    assert summary.failed == 0
    summary = export(folder / "run.zarr", folder / "fits", cubes=True)
    assert (summary.written, summary.spectra, summary.calibrations, summary.failures) == (2, 2, 1, [])
    return folder


def test_fluxes_are_those_of_the_truth(exported):
    truth = pq.read_table(exported / "campaign.zarr" / "tables" / "truth_spectra.parquet")
    grid = np.array([2500 * np.exp((k + 0.5) / 400) for k in range(574)])
    rows = {(row["exposure"], row["id"]): row for row in truth.to_pylist()}
    pulls, ratios = [], []
    for path in sorted((exported / "fits").glob("*_2_spectra.fits")):
        table = fits.getdata(path, "SPECTRA")
        assert fits.getheader(path, "SPECTRA")["COMMON"] == pytest.approx(0.01)
        for star in table:
            true = rows[path.name.split("_")[0], star["ID"]]
            expected = true["flux_5556"] * interpolate_spectrum(grid, true["sed"], star["WAVELENGTH"])
            usable = np.isfinite(star["FLUX"]) & (star["FLAG"] == 0)
            pulls.append(((star["FLUX"] - expected) / star["FLUX_ERR"])[usable])
            ratios.append((star["FLUX"] / expected)[usable])
    ratio, pull = np.concatenate(ratios), np.concatenate(pulls)
    assert len(ratio) > 3000
    assert np.median(ratio) == pytest.approx(1, abs=0.01)
    assert 1.4826 * np.median(np.abs(pull - np.median(pull))) == pytest.approx(1, abs=0.15)


def test_sensitivity_and_cube_come_back(exported):
    table = fits.getdata(exported / "fits" / "sensitivity_2.fits", "SENSITIVITY")
    assert (np.diff(table["WAVELENGTH"]) > 0).all()
    assert (table["ERROR"] > 0.01 * table["SENSITIVITY"]).all()
    cube = Flat.from_axe(exported / "fits" / "flat_2.fits")
    assert cube.shape == (160, 640)
    assert float(cube.evaluate(320.0, 80.0, 5000.0)) == pytest.approx(1, abs=0.1)


def test_files_are_kept_and_foreign_ones_not_replaced(exported, tmp_path):
    again = export(exported / "run.zarr", exported / "fits")
    assert (again.written, again.unchanged, again.spectra, again.failures) == (0, 2, 2, [])
    first = sorted(path.name.split("_")[0] for path in (exported / "fits").glob("*_spectra.fits"))[0]
    path = tmp_path / f"{first}_2_spectra.fits"
    fits.PrimaryHDU().writeto(path)
    summary = export(exported / "run.zarr", tmp_path, selection=Selection((first,)))
    (failure,) = summary.failures
    assert f"{path}: found an export of other spectra, or of another cube; wanted" in failure["reason"]
    assert export(exported / "run.zarr", tmp_path, overwrite=True).failures == []


def test_the_report_shows_cubes_and_spectra(exported, tmp_path):
    page = write_report(exported / "run.zarr", tmp_path / "page.html").read_text()
    section = page[page.index("Slitless spectra and flat fields") :]
    assert "4006-6494" in section
    for caption in ("flat-field cubes of detectors 2", "sensitivity with 1 σ", "wavelength shift of each star"):
        assert caption in section
    assert "calibrated spectra with 1 σ" in section
