"""The accessor `.csst`: lazy products equal to those of a run, sky cut-outs and plots."""

from __future__ import annotations

import dask.array
import matplotlib as mpl
import numpy as np
import pytest
from astropy import units as u
from astropy.io.fits import Header
from astropy.wcs import WCS

import csstdask
import csstdask.accessor  # registers `.csst`
from csstdask.core.errors import InputError
from csstdask.pipeline.run import run

mpl.use("Agg")


@pytest.fixture(scope="module")
def products(small_campaign, tmp_path_factory):
    path = tmp_path_factory.mktemp("accessor") / "r.zarr"
    run(small_campaign, path)
    return csstdask.open_run(path)


def test_lazy_and_equal_to_the_run(small_campaign, products):
    campaign = csstdask.open_campaign(small_campaign)
    mask, clean = campaign.csst.detect_cosmic_rays(), campaign.csst.clean()
    for array in (mask, clean):
        assert isinstance(array.data, dask.array.Array)
        assert array.dims == ("exposure", "detector", "y", "x")
    assert np.array_equal(mask.values, products["cr_mask"].values)
    assert np.array_equal(clean.values, products["clean"].values)
    assert clean.attrs["units"] == "electron s-1"


def test_the_arithmetic_is_chosen_once_for_all_units(small_campaign, monkeypatch):
    """Each worker choosing for itself could mix precisions in one array."""
    chosen = []

    def choose(card, device):
        chosen.append(device)
        return "bfloat16"

    monkeypatch.setattr("csstdask.pipeline.prepare.fastest_precision", choose)
    campaign = csstdask.open_campaign(small_campaign)
    automatic, given = (
        campaign.csst.detect_cosmic_rays({"detect": {"model": "unet-fast", "precision": precision}}).values
        for precision in ("auto", "bfloat16")
    )
    assert chosen == ["cpu"]
    assert np.array_equal(automatic, given)


def test_a_cutout_costs_a_cutout(small_campaign):
    campaign = csstdask.open_campaign(small_campaign).isel(exposure=[0], detector=[1], y=slice(0, 64), x=slice(0, 80))
    assert campaign.csst.detect_cosmic_rays().values.shape == (1, 1, 64, 80)


def test_places_on_the_sky(small_campaign, products):
    import pyarrow.parquet as pq

    campaign = csstdask.open_campaign(small_campaign)
    table = pq.read_table(f"{products.attrs['path']}/tables/sources/10100000001/8.parquet").to_pandas()
    inside = table[table.x.between(20, 139) & table.y.between(20, 171)]
    star = inside.sort_values("flux").iloc[-1]
    (cutout,) = campaign.csst.sel_sky(star.ra * u.deg, star.dec, 2 * u.arcsec)
    assert (int(cutout["detector"]), str(cutout["exposure"].values)) == (8, "10100000001")
    assert cutout.sizes["y"] == pytest.approx(2 / 0.074, abs=2)
    peak = np.unravel_index(np.argmax(cutout["sci"].values), cutout["sci"].shape)
    assert np.hypot(*(np.array(peak) - 13)) < 6
    assert campaign.csst.sel_sky(200.0, 80.0, 10) == []
    assert len(campaign.isel(exposure=0, detector=1).csst.sel_sky(star.ra, star.dec, 2)) == 1
    assert len(products.csst.sel_sky(star.ra, star.dec, 2)) == 1


def test_a_run_has_no_raw_planes(products):
    with pytest.raises(InputError, match="no raw planes"):
        products.csst.detect_cosmic_rays()


def test_focal_plane_plot(small_campaign):
    import matplotlib.pyplot as plt

    campaign = csstdask.open_campaign(small_campaign)
    ax = campaign.csst.plot_focal_plane("sci", exposure="10100000002")
    (patches,) = ax.collections
    assert len(patches.get_paths()) == 30
    assert (~patches.get_array().mask).sum() == 2
    plt.close(ax.figure)


def test_not_a_campaign():
    import xarray as xr

    with pytest.raises(InputError, match="no instrument"):
        _ = xr.Dataset().csst.instrument


def test_frames_that_a_run_does_not_process_have_no_cosmic_rays(small_campaign):
    campaign = csstdask.open_campaign(small_campaign).isel(exposure=[0], detector=[0])
    flat = campaign.assign_coords(kind=campaign["kind"].copy(data=np.full((1, 1), "flat", dtype=object)))
    assert not flat.csst.detect_cosmic_rays().values.any()
    assert np.array_equal(flat.csst.clean().values, campaign["sci"].values)


def test_settings_as_a_dict_or_a_file(small_campaign, tmp_path):
    campaign = csstdask.open_campaign(small_campaign).isel(exposure=[0], detector=[0])
    (tmp_path / "run.toml").write_text('[detect]\nmodel = "lacosmic"\n')
    by_file = campaign.csst.detect_cosmic_rays(tmp_path / "run.toml").values
    assert by_file.any()
    assert np.array_equal(campaign.csst.detect_cosmic_rays({"detect": {"model": "lacosmic"}}).values, by_file)
    with pytest.raises(InputError, match="sharpness"):
        campaign.csst.detect_cosmic_rays({"detect": {"sharpness": 3}})


def test_one_unit_without_a_usable_wcs_hides_no_other(small_campaign):
    campaign = csstdask.open_campaign(small_campaign).load()
    wcs = WCS(Header.fromstring(str(campaign["header"].values[0, 0]), sep="\n"))
    place = wcs.pixel_to_world(80, 90)
    found = campaign.csst.sel_sky(place.ra.deg, place.dec.deg, 2)
    assert found
    broken = Header.fromstring(str(campaign["header"].values[1, 1]), sep="\n")
    for key in ("CD1_1", "CD1_2", "CD2_1", "CD2_2"):
        broken[key] = 0.0
    headers = campaign["header"].values.copy()
    headers[1, 1] = broken.tostring(sep="\n")
    changed = campaign.assign(header=(campaign["header"].dims, headers))
    again = changed.csst.sel_sky(place.ra.deg, place.dec.deg, 2)
    kept = [(str(one["exposure"].values), int(one["detector"])) for one in found]
    lost = (str(campaign["exposure"].values[1]), int(campaign["detector"].values[1]))
    assert [(str(one["exposure"].values), int(one["detector"])) for one in again] == [k for k in kept if k != lost]
