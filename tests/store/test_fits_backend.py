"""Raw files in xarray: the form of a campaign, read lazily, only the pixels that are used."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import xarray as xr
from astropy.io import fits
from make_fits import level_1, planes

import csstdask
from csstdask.core.errors import InputError
from csstdask.pipeline.ingest import ingest
from csstdask.store import fits_backend


def test_a_file_has_the_form_of_a_campaign(tmp_path):
    path = level_1(tmp_path)
    ingest([path], tmp_path / "c.zarr")
    campaign = csstdask.open_campaign(tmp_path / "c.zarr").sel(detector=[8])
    with xr.open_dataset(path, engine="csst") as frame:
        for name in ("sci", "wht", "flag"):
            assert frame[name].dims == campaign[name].dims
            assert np.array_equal(frame[name].values, campaign[name].values)
            assert frame[name].attrs == campaign[name].attrs
        for name in campaign.coords:
            assert np.array_equal(frame[name].values, campaign[name].values), name
        for name in ("header", "planes", "s_ra", "s_fov", "s_region"):
            assert np.array_equal(frame[name].values, campaign[name].values), name
        assert frame.csst.instrument.name == "csst"
        sky = frame.csst.with_sky().isel(exposure=0, detector=0, y=5, x=6)
        assert float(sky["ra"]) == pytest.approx(60.0, abs=0.01)
        assert frame.csst.detect_cosmic_rays({"detect": {"model": "lacosmic"}}).shape == (1, 1, 64, 48)


@pytest.mark.parametrize(
    "select",
    [
        {"y": slice(3, 9), "x": slice(40, None)},
        {"y": slice(None, None, -2), "x": slice(30, 10, -3)},
        {"y": 5},
        {"y": [7, 1, 3], "x": [0, 47]},
        {"exposure": 0, "detector": 0, "x": -1},
        {"y": slice(0, 0)},
    ],
)
def test_any_selection(tmp_path, select):
    path = level_1(tmp_path)
    frame = xr.open_dataset(path, engine="csst")
    for name, plane in zip(("sci", "wht", "flag"), planes(seed=8), strict=True):
        whole = xr.DataArray(plane[None, None], dims=frame[name].dims)
        assert np.array_equal(frame[name].isel(select).values, whole.isel(select).values)


def test_only_the_pixels_that_are_used_are_read(tmp_path, monkeypatch):
    path = level_1(tmp_path, arrays=planes((512, 512)))
    windows = []
    original = fits_backend.read_sci
    monkeypatch.setattr(fits_backend, "read_sci", lambda unit, window: windows.append(window) or original(unit, window))
    frame = xr.open_dataset(path, engine="csst")
    assert windows == []
    assert frame["sci"].isel(y=slice(100, 110), x=slice(7, 9)).values.shape == (1, 1, 10, 2)
    assert windows == [(slice(100, 110), slice(7, 9))]


def test_chunks_travel_to_workers(tmp_path):
    path = level_1(tmp_path)
    frame = xr.open_dataset(path, engine="csst", chunks={"y": 16})
    assert np.array_equal(pickle.loads(pickle.dumps(frame))["sci"].values[0, 0], planes(seed=8)[0])
    assert float(frame["sci"].mean()) == pytest.approx(planes(seed=8)[0].mean(), rel=1e-5)


def test_the_engine_is_found_for_files_of_known_cameras(tmp_path):
    assert "sci" in xr.open_dataset(level_1(tmp_path))
    unknown = tmp_path / "unknown.fits"
    fits.writeto(unknown, np.zeros((4, 4), np.float32))
    with pytest.raises(InputError, match=r"unknown\.fits: found no known camera"):
        xr.open_dataset(unknown, engine="csst")
    with pytest.raises(ValueError, match="did not find a match"):
        xr.open_dataset(unknown)


def test_chips_that_cannot_be_used_are_named(tmp_path):
    path = level_1(tmp_path)
    with fits.open(path, mode="append") as hdus:
        hdus.append(fits.ImageHDU(np.zeros((64, 48), np.float32), name="SCI", ver=2))
        hdus[1].header["EXTVER"] = 1
    with pytest.warns(UserWarning, match="left out"):
        frame = xr.open_dataset(path, engine="csst", drop_variables="flag")
    assert "flag" not in frame
    assert frame.sizes["detector"] == 1


def test_overscan_and_trim_of_a_raw_frame(tmp_path):
    """A window of a trimmed frame is that window, and its weights have the pedestal of the whole overscan."""
    header = fits.Header({"TELESCOP": "HST", "INSTRUME": "STIS", "DETECTOR": "CCD", "ROOTNAME": "o1", "CCDGAIN": 1})
    counts = np.random.default_rng(5).integers(1400, 1600, (1034, 532)).astype(np.uint16)
    science = fits.ImageHDU(counts, name="SCI")
    science.header.update({"EXPTIME": 900.0, "BUNIT": "COUNTS"})
    hdus = [fits.PrimaryHDU(header=header), science, fits.ImageHDU(name="ERR"), fits.ImageHDU(name="DQ")]
    fits.HDUList(hdus).writeto(tmp_path / "o1_raw.fits")
    ingest([tmp_path / "o1_raw.fits"], tmp_path / "c.zarr")
    campaign = csstdask.open_campaign(tmp_path / "c.zarr")
    frame = xr.open_dataset(tmp_path / "o1_raw.fits", engine="csst")
    part = {"y": slice(100, 120), "x": slice(-30, -10)}
    for name in ("sci", "wht", "flag"):
        assert np.array_equal(frame[name].isel(part).values, campaign[name].isel(part).values)
