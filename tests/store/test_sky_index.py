"""ra and dec as an index of xarray: lazy, kept by selections, looked up through footprints."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from astropy import units as u
from astropy.io import fits
from astropy.io.fits import Header
from astropy.wcs import WCS
from make_fits import level_1

import csstdask
from csstdask.pipeline.ingest import ingest
from csstdask.store import sky_index

DEGREES_PER_PIXEL = 0.074 / 3600


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """Two exposures of three detectors that lie side by side, the second exposure a degree north."""
    folder = tmp_path_factory.mktemp("sky")
    files = []
    for exposure in (0, 1):
        for column, chip in enumerate((7, 8, 9)):
            path = level_1(folder, chip, f"1010000000{exposure}")

            fits.setval(path, "CRVAL1", value=359.999 + column * 100 * DEGREES_PER_PIXEL, ext=1)
            fits.setval(path, "CRVAL2", value=exposure * 1.0, ext=1)
            files.append(path)
    ingest(files, folder / "c.zarr")
    return csstdask.open_campaign(folder / "c.zarr").sel(detector=[7, 8, 9])


def expected(dataset, exposure, detector, x, y):
    header = str(dataset["header"].sel(exposure=exposure, detector=detector).values)
    position = WCS(Header.fromstring(header, sep="\n")).pixel_to_world(x, y).icrs
    return position.ra.wrap_at("360d").deg, position.dec.deg


def test_coordinates_are_those_of_the_headers(campaign):
    sky = campaign.csst.with_sky()
    assert sky["ra"].dims == ("exposure", "detector", "y", "x")
    assert not sky["ra"].variable._in_memory
    assert "ra" in repr(sky)
    one = sky.isel(exposure=1, detector=2, y=[3, 60], x=[0, 47])
    for row, y in enumerate((3, 60)):
        for column, x in enumerate((0, 47)):
            ra, dec = expected(campaign, "10100000001", 9, x, y)
            assert float(one["ra"][row, column]) == pytest.approx(ra, abs=1e-9)
            assert float(one["dec"][row, column]) == pytest.approx(dec, abs=1e-9)
    assert 0 <= float(sky["ra"].min()) <= float(sky["ra"].max()) < 360


def test_selections_keep_the_index_and_compute_nothing(campaign, monkeypatch):
    """Selecting one exposure of a survey must not compute the positions of its pixels."""
    sky = campaign.csst.with_sky()
    monkeypatch.setattr(sky_index.SkyTransform, "forward", lambda *_: pytest.fail("positions were computed"))
    for part in (
        sky.sel(exposure="10100000000"),
        sky.isel(detector=1),
        sky.isel(exposure=0, detector=1),
        sky.isel(y=slice(5, 40), x=slice(2, None, 3)),
        sky.isel(detector=[2, 0]).isel(x=slice(None, None, -1)),
        sky.sel(x=slice(10, 20)).rename(ra="alpha"),
    ):
        assert isinstance(next(iter(part.xindexes[name] for name in part.xindexes if name in ("ra", "alpha"))), (
            sky_index.SkyIndex
        ))  # fmt: skip
        name = "alpha" if "alpha" in part.coords else "ra"
        assert part[name].shape == part["sci"].shape


@pytest.mark.parametrize(
    "select",
    [
        lambda data: data,
        lambda data: data.isel(exposure=1),
        lambda data: data.sel(detector=8),
        lambda data: data.isel(detector=[2, 1], y=slice(5, None), x=slice(3, 45)),
        lambda data: data.isel(x=slice(None, None, -1)),
        lambda data: data.isel(exposure=1, detector=1, y=slice(10, 50)),
    ],
)
def test_position_selects_the_pixel_that_contains_it(campaign, select):
    part = select(campaign.csst.with_sky())
    ra, dec = expected(campaign, "10100000001", 8, 21.2, 30.3)
    found = part.sel(ra=ra, dec=dec, method="nearest")
    assert str(found["exposure"].values) == "10100000001"
    assert (int(found["detector"]), int(found["x"]), int(found["y"])) == (8, 21, 30)
    original = campaign["sci"].sel(exposure="10100000001", detector=8)[30, 21]
    assert float(found["sci"]) == float(original)
    assert float(found["ra"]) == pytest.approx(expected(campaign, "10100000001", 8, 21, 30)[0], abs=1e-9)


def test_many_positions_at_once(campaign):
    sky = campaign.csst.with_sky()
    pixels = [("10100000000", 7, 1, 2), ("10100000001", 9, 40, 60)]
    ra, dec = np.transpose([expected(campaign, *pixel) for pixel in pixels])
    found = sky.sel(ra=xr.DataArray(ra, dims="star"), dec=xr.DataArray(dec, dims="star"), method="nearest")
    assert found["detector"].values.tolist() == [7, 9]
    assert found["x"].values.tolist() == [1, 40]
    assert found["y"].values.tolist() == [2, 60]
    np.testing.assert_allclose(found["ra"], ra, atol=1e-9)


def test_positions_that_nothing_covers(campaign):
    sky = campaign.csst.with_sky()
    with pytest.raises(KeyError, match="no unit covers"):
        sky.sel(ra=180.0, dec=60.0, method="nearest")
    ra, dec = expected(campaign, "10100000001", 8, 10, 10)
    with pytest.raises(KeyError, match="no unit covers"):
        sky.isel(x=slice(20, None)).sel(detector=8).sel(ra=ra, dec=dec, method="nearest")
    with pytest.raises(ValueError, match="nearest"):
        sky.sel(ra=ra, dec=dec)
    with pytest.raises(ValueError, match="wanted both"):
        sky.sel(ra=ra, method="nearest")


def test_cut_outs_of_cut_outs_keep_their_place(campaign):
    """Right after slices, with and without gaps, and after selections of the units."""
    ra, dec = expected(campaign, "10100000001", 8, 30, 40)
    for part in (
        campaign,
        campaign.isel(x=slice(10, None), y=slice(8, None)),
        campaign.isel(exposure=1, detector=1, x=slice(20, 40)),
        campaign.isel(x=slice(None, None, 2), y=slice(None, None, 2)),
    ):
        found = [one for one in part.csst.sel_sky(ra, dec, 0.5) if int(one["detector"]) == 8]
        (cut,) = [one for one in found if str(one["exposure"].values) == "10100000001"]
        assert float(cut["x"].mean()) == pytest.approx(30, abs=1)
        assert float(cut["y"].mean()) == pytest.approx(40, abs=1)


def test_only_units_near_a_position_are_looked_at(campaign, monkeypatch):
    """The footprints decide: of 2,000 units one WCS is read, not 2,000."""
    many = xr.concat([campaign.isel(exposure=[0])] * 700, dim="exposure", coords="minimal", compat="override")
    many["s_dec"] = (many["s_dec"].dims, many["s_dec"].values + np.linspace(-60, 60, 700)[:, None])
    read = []
    monkeypatch.setattr("csstdask.store.sky_cutouts.wcs_of", lambda header: read.append(header) or None)
    many.csst.sel_sky(0.0, float(many["s_dec"][3, 1]), 1)
    assert 1 <= len(read) <= 9


def test_footprints_are_recorded(campaign):
    one = campaign.sel(exposure="10100000001", detector=8)
    ra, dec = expected(campaign, "10100000001", 8, 23.5, 31.5)
    assert float(one["s_ra"]) == pytest.approx(ra, abs=1e-6)
    assert float(one["s_dec"]) == pytest.approx(dec, abs=1e-6)
    assert float(one["s_fov"]) == pytest.approx(1.05 * np.hypot(64, 48) * DEGREES_PER_PIXEL, rel=1e-3)
    corner = expected(campaign, "10100000001", 8, -0.5, -0.5)
    assert str(one["s_region"].values).startswith(f"POLYGON ICRS {corner[0]:.7f} {corner[1]:.7f} ")


def test_units_of_an_earlier_version_or_without_a_wcs(campaign):
    """Footprints that are not recorded leave the headers to decide; units without a WCS are left out."""
    ra, dec = expected(campaign, "10100000001", 8, 30, 40)
    assert len(campaign.drop_vars("s_fov").csst.sel_sky(ra, dec, 0.5)) == len(campaign.csst.sel_sky(ra, dec, 0.5))
    headers = np.full(campaign["header"].shape, "", dtype=object)
    blank = campaign.drop_vars("s_fov").assign(header=(campaign["header"].dims, headers))
    assert blank.csst.sel_sky(ra, dec, 0.5) == []
    assert np.isnan(blank.csst.with_sky().isel(x=0, y=0)["ra"].values).all()


def test_units_of_labels_are_converted(campaign):
    ra, dec = expected(campaign, "10100000001", 8, 30, 40)
    sky = campaign.csst.with_sky()
    found = sky.sel(ra=ra * u.deg.to(u.hourangle) * u.hourangle, dec=dec * u.deg, method="nearest")
    assert (int(found["detector"]), int(found["x"]), int(found["y"])) == (8, 30, 40)
    several = sky.sel(ra=[ra, ra], dec=[dec, dec], method="nearest")
    assert several["x"].values.tolist() == [30, 30]
    with pytest.raises(ValueError, match="tolerance"):
        sky.sel(ra=ra, dec=dec, method="nearest", tolerance=1)


def test_a_cut_out_of_descending_pixels(campaign):
    ra, dec = expected(campaign, "10100000001", 8, 30, 40)
    for part in (campaign, campaign.isel(x=slice(None, None, -1), y=slice(None, None, -1))):
        (cut,) = [one for one in part.csst.sel_sky(ra, dec, 0.5) if str(one["exposure"].values) == "10100000001"]
        assert sorted(cut["x"].values.tolist()) == list(range(27, 34))
        assert sorted(cut["y"].values.tolist()) == list(range(37, 44))


def test_combining_sky_coordinates_is_refused_with_a_cure(campaign):
    sky = campaign.csst.with_sky()
    for combine in (
        lambda: xr.concat([sky.isel(exposure=[0]), sky.isel(exposure=[1])], dim="exposure", join="outer"),
        lambda: sky["sci"].isel(exposure=0) - sky["sci"].isel(exposure=1),
        lambda: xr.align(sky, sky.isel(x=slice(5, None)), join="inner"),
    ):
        with pytest.raises(ValueError, match="drop_vars"):
            combine()
    with pytest.raises(KeyError, match="no pixels"):
        sky.isel(x=slice(0, 0)).sel(ra=1.0, dec=1.0, method="nearest")
