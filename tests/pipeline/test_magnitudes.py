"""Zero points of a run where they are used: magnitudes of sources, headers of exported frames, lines for people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
from astropy.io import fits
from quick import quick_settings
from zeropoint_campaign import DETECTORS, true_stars, zero_points

import csstdask
from csstdask.core.errors import InputError
from csstdask.engine.events import ReductionStarted
from csstdask.pipeline.export import export
from csstdask.pipeline.reductions.zeropoints import ZEROPOINTS
from csstdask.pipeline.run import run
from csstdask.pipeline.source_tables import ZeroPointValue, add_magnitudes, read_sources
from csstdask.pipeline.status import status
from csstdask.report import write_report

SETTINGS = quick_settings(zeropoint={"model": "none"})


RECORD = Path("reductions") / "zeropoints" / "all.json"


def test_magnitudes_are_joined_when_tables_are_read(grown, zeropoint_run):
    campaign, truth = grown[0], true_stars(grown[0])
    exposure, detector = csstdask.open_campaign(campaign)["exposure"].values.tolist()[1], 8
    table = read_sources(zeropoint_run, exposure, detector)
    on_disk = pq.read_table(zeropoint_run / "tables" / "sources" / exposure / f"{detector}.parquet")
    assert "mag" not in on_disk.column_names
    assert table.select(on_disk.column_names).equals(on_disk)
    assert table.schema.field("mag").metadata == {b"unit": b"mag"}
    found, arrays = table.to_pandas(), zero_points(zeropoint_run)
    zp, sigma = arrays["zp"][1, 1], arrays["zp_sigma"][1, 1]
    bright = found[(found["flag"] == 0) & (found["flux_aperture"] > 50 * found["flux_aperture_err"])]
    np.testing.assert_allclose(bright["mag"], zp - 2.5 * np.log10(bright["flux"]), atol=1e-9)
    error = 2.5 / np.log(10) * bright["flux_aperture_err"] / bright["flux_aperture"]
    np.testing.assert_allclose(bright["mag_aperture_err"], np.hypot(error, sigma), rtol=1e-9)
    assert found["mag"].isna().sum() == (found["flux"] <= 0).sum()
    offsets = []
    for star in bright.itertuples():
        near = np.hypot((truth["ra"] - star.ra) * np.cos(np.radians(star.dec)), truth["dec"] - star.dec) * 3600
        if near.min() < 0.15:
            offsets.append(star.mag_aperture - truth["mag_g"][near.argmin()])
    assert len(offsets) > 5
    assert abs(np.median(offsets)) < 0.015
    whole = csstdask.open_run(zeropoint_run).csst
    assert len(whole.sources(exposure, detector)) == len(found)
    assert len(whole.sources()) == sum(
        len(pq.read_table(path)) for path in zeropoint_run.glob("tables/sources/*/*.parquet")
    )
    assert len(csstdask.open_run(zeropoint_run).isel(exposure=1).csst.sources(detector=8)) == len(found)
    with pytest.raises(InputError, match="wanted a run"):
        csstdask.open_campaign(campaign).csst.sources()
    with pytest.raises(InputError, match="no source table of"):
        read_sources(zeropoint_run, "nothing")


def test_without_zero_points_magnitudes_are_null_and_headers_as_they_were(grown, copied, tmp_path):
    (copied / RECORD).unlink()
    table = read_sources(copied)
    assert table["mag"].null_count == table["mag_aperture_err"].null_count == len(table)
    export(copied, tmp_path / "out", campaign=grown[0], workers=1)
    header = fits.getheader(sorted((tmp_path / "out").glob("*.fits"))[0], "SCI")
    assert not [keyword for keyword in header if keyword.startswith("MAGZ")]


OTHER_APERTURE = quick_settings(zeropoint={"model": "none"}, sources={"aperture_radius": 2.0})


def assert_no_zero_points(path, campaign):
    """No magnitude, array, header or page shows zero points, and status says that they are pending."""
    assert [one.state for one in status(path, campaign=campaign).reductions] == ["pending"]
    table = read_sources(path, campaign=campaign)
    assert table["mag"].null_count == table["mag_aperture"].null_count == table["mag_err"].null_count == len(table) > 0
    opened = csstdask.open_run(path, campaign)
    assert np.isfinite(xr.open_zarr(path, chunks=None)["zp"]).all()  # on disk they are still there
    for product in ZEROPOINTS.products:
        values = opened[product.name]
        assert (values.shape, values.dtype.kind) == ((3, 2), "O" if product.name == "zp_method" else "f")
        assert (values == "").all() if product.name == "zp_method" else np.isnan(values).all()
    assert opened["zp_method"].isel(exposure=0).compute().values.tolist() == ["", ""]
    assert opened.csst.sources()["mag"].isna().all()


def test_new_fluxes_get_no_old_zero_points(grown, copied, tmp_path):
    """Sources of another aperture, without the step that measures its correction."""
    before = read_sources(copied, campaign=grown[0])
    run(grown[0], copied, config=OTHER_APERTURE, steps=["sources"], workers=1)
    assert_no_zero_points(copied, grown[0])
    after = read_sources(copied, campaign=grown[0])
    assert len(after) == len(before)
    assert after["flux_aperture"] != before["flux_aperture"]
    # A run with the zero points of other fluxes is exported without them.
    export(copied, tmp_path / "out", campaign=grown[0], workers=1)
    header = fits.getheader(sorted((tmp_path / "out").glob("*.fits"))[0], "SCI")
    assert not [keyword for keyword in header if keyword.startswith("MAGZ")]


class KilledError(BaseException):
    """Ends a run as a kill does, in this process."""


def test_a_run_that_is_killed_before_the_reduction_shows_no_old_zero_points(grown, copied):
    def kill(event):
        if isinstance(event, ReductionStarted):
            raise KilledError

    with pytest.raises(KilledError):
        run(grown[0], copied, config=OTHER_APERTURE, workers=1, listeners=[kill])
    assert_no_zero_points(copied, grown[0])
    page = write_report(copied, copied.parent / "report.html", grown[0]).read_text()
    assert "reduction zeropoints: pending, 6 inputs" in page
    assert "zero point of detector" not in page
    run(grown[0], copied, config=OTHER_APERTURE, workers=1)
    opened = csstdask.open_run(copied, grown[0])
    assert np.isfinite(opened["zp"]).all()
    assert read_sources(copied, campaign=grown[0])["mag_aperture"].null_count < 50


def test_tables_of_units_that_are_not_done_are_left_out(grown, copied):
    first = csstdask.open_campaign(grown[0])["exposure"].values.tolist()[0]
    everything = read_sources(copied, campaign=grown[0])
    (copied / "ledger" / first / "7.json").unlink()
    left = read_sources(copied, campaign=grown[0])
    assert set(map(tuple, left.select(["exposure", "detector"]).to_pandas().drop_duplicates().to_numpy())) == {
        unit
        for unit in map(tuple, everything.select(["exposure", "detector"]).to_pandas().drop_duplicates().to_numpy())
        if unit != (first, 7)
    }
    assert len(csstdask.open_run(copied, grown[0]).csst.sources()) == len(left)
    with pytest.raises(InputError, match=f"no source table of {first}/7 that is done"):
        read_sources(copied, first, 7, campaign=grown[0])


def test_an_unknown_aperture_correction_gives_no_magnitude():
    flux = pa.array([100.0])
    table = pa.table({"flux": flux, "flux_err": flux, "flux_aperture": flux, "flux_aperture_err": flux})
    known, unknown = ZeroPointValue(25.0, 0.01, "solve", -0.1), ZeroPointValue(25.0, 0.01, "solve")
    assert add_magnitudes(table, known)["mag_aperture"].to_pylist() == pytest.approx([19.9])
    for name in ("mag_aperture", "mag_aperture_err"):
        assert add_magnitudes(table, unknown)[name].to_pylist() == [None]
    assert add_magnitudes(table, unknown)["mag"].to_pylist() == pytest.approx([20.0])


def test_an_export_with_zero_points_that_no_longer_hold_is_not_unchanged(grown, copied, tmp_path):
    export(copied, tmp_path / "out", campaign=grown[0], workers=1)
    (copied / RECORD).unlink()
    again = export(copied, tmp_path / "out", campaign=grown[0], workers=1)
    assert (again.written, again.unchanged, len(again.failures)) == (0, 0, 6)
    wrong = (
        "found an export with another zero point (MAGZERO, MAGZERR, MAGZMETH differ); wanted no file, or --overwrite"
    )
    assert wrong in again.failures[0]["reason"]
    export(copied, tmp_path / "out", campaign=grown[0], workers=1, overwrite=True)
    assert "MAGZERO" not in fits.getheader(sorted((tmp_path / "out").glob("*.fits"))[0], "SCI")
    assert export(copied, tmp_path / "out", campaign=grown[0], workers=1).unchanged == 6


def test_export_writes_zero_points_into_the_header_of_sci(grown, zeropoint_run, tmp_path):
    summary = export(zeropoint_run, tmp_path, campaign=grown[0], workers=1)
    assert (summary.written, summary.failures) == (6, [])
    arrays, exposures = zero_points(zeropoint_run), csstdask.open_run(zeropoint_run)["exposure"].values.tolist()
    for row, exposure in enumerate(exposures):
        for column, detector in enumerate(DETECTORS):
            path = tmp_path / f"{exposure}_{detector}.fits"
            header = fits.getheader(path, "SCI")
            assert header["MAGZERO"] == pytest.approx(arrays["zp"][row, column], abs=1e-6)
            assert header["MAGZERR"] == pytest.approx(arrays["zp_sigma"][row, column], abs=1e-6)
            assert header["MAGZMETH"] == arrays["zp_method"][row, column]
    assert export(zeropoint_run, tmp_path, campaign=grown[0], workers=1).unchanged == 6
    with fits.open(path, mode="update") as hdus:
        hdus["SCI"].header["MAGZERO"] = 20.0
    (failure,) = export(zeropoint_run, tmp_path, campaign=grown[0], workers=1).failures
    assert "found an export with another zero point (MAGZERO differ)" in failure["reason"]
