"""What xarray does with campaigns and runs: masks, netCDF, subsets saved as Zarr, single exposures."""

from __future__ import annotations

import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from quick import quick_run as run

import csstdask
from csstdask.core.errors import InputError
from csstdask.instrument import Instrument, validate_instrument
from csstdask.pipeline.config import RunConfig
from csstdask.store.campaign import Campaign
from csstdask.store.schema import NO_TIME
from csstdask.store.shards import shard_path
from csstdask.store.tables import read_table, table_path
from csstdask.store.xarray_formats import decode_time

ENGINES = {"scipy": "scipy", "h5netcdf": "h5netcdf", "netcdf4": "netCDF4"}


@pytest.fixture(scope="module")
def product(small_campaign, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("product") / "run.zarr"
    assert run(small_campaign, path).done == 4
    return path


@pytest.fixture
def with_an_absent_unit(small_campaign, tmp_path) -> xr.Dataset:
    path = Path(shutil.copytree(small_campaign, tmp_path / "absent.zarr"))
    store = Campaign(path, "r+")
    for detector in (7, 8):
        store.mark_absent("10100000002", detector)
    store.mark_absent("10100000001", 8)
    return csstdask.open_campaign(path)


def test_where_present(with_an_absent_unit, small_campaign):
    cut = with_an_absent_unit.where(with_an_absent_unit.present, drop=True)
    assert dict(cut.sizes) == {"exposure": 1, "detector": 1, "y": 192, "x": 160}
    whole = csstdask.open_campaign(small_campaign)
    for name in ("sci", "flag", "header"):
        assert np.array_equal(cut[name].values[0, 0], whole[name].values[0, 0])


def test_where_done(small_campaign, product):
    dataset = csstdask.open_run(product, small_campaign)
    assert dataset.where(dataset["done"], drop=True).sizes["exposure"] == 2


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["campaign", "run"])
def test_netcdf(small_campaign, product, tmp_path, engine, kind):
    """Values, types and attributes come back."""
    if find_spec(ENGINES[engine]) is None:
        pytest.skip(f"{ENGINES[engine]} is not installed")
    dataset = csstdask.open_run(product, small_campaign) if kind == "run" else csstdask.open_campaign(small_campaign)
    path = tmp_path / "d.nc"
    dataset.to_netcdf(path, engine=engine)
    with xr.open_dataset(path, engine=engine) as back:
        assert set(back.variables) == set(dataset.variables)
        assert back["time"].values.tolist() == dataset["time"].values.tolist()
        for name, values in dataset.variables.items():
            if values.dtype.kind in "fib":
                assert np.array_equal(back[name].values, values.values, equal_nan=values.dtype.kind == "f")
                assert back[name].dtype == values.dtype
            elif values.dtype.kind == "O":
                assert back[name].values.tolist() == values.values.tolist()
        instrument = validate_instrument(back.attrs["instrument"], "netCDF")
        assert instrument == validate_instrument(dataset.attrs["instrument"], "Zarr")
        if kind == "run":
            assert RunConfig.model_validate_json(back.attrs["config"]).detect.model == "unet-fast"
        else:
            assert back["flag"].attrs["flag_meanings"] == dataset["flag"].attrs["flag_meanings"]
            assert back["sci"].attrs["units"] == "electron s-1"


def saved(dataset: xr.Dataset, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        dataset.to_zarr(path)
    return path


def test_a_run_on_a_subset_saved_by_xarray(small_campaign, product, tmp_path):
    """The subset's products are those of the same units in the whole campaign."""
    subset = csstdask.open_campaign(small_campaign).isel(exposure=[1], detector=[0])
    path = saved(subset, tmp_path / "s.zarr")
    assert run(path, tmp_path / "r.zarr").done == 1
    ours, theirs = csstdask.open_run(tmp_path / "r.zarr"), csstdask.open_run(product, small_campaign)
    assert np.array_equal(ours["clean"].values[0, 0], theirs["clean"].values[1, 0])
    metadata, whole = Campaign(path).metadata("10100000002", 7), Campaign(small_campaign).metadata("10100000002", 7)
    assert metadata == whole


def test_chunks_that_xarray_leaves_out_are_not_lost(small_campaign, tmp_path):
    """Flags that are all zero have no file then; a lost shard of csstdask's own is another matter."""
    subset = csstdask.open_campaign(small_campaign).isel(exposure=[0]).load().copy(deep=True)
    subset["flag"][0, 0], subset["wht"][0, 1] = 0, 0
    path = saved(subset, tmp_path / "s.zarr")
    assert not shard_path(path, "flag", 0, 0).exists()
    assert not shard_path(path, "wht", 0, 1).exists()
    summary = run(path, tmp_path / "r.zarr")
    assert (summary.done, summary.failures) == (2, [])
    dataset = csstdask.open_run(tmp_path / "r.zarr")
    assert dataset["n_cr_pixels"].values[0, 0] > 0
    assert dataset["n_cr_pixels"].values[0, 1] == 0
    from csstdask.pipeline.export import export

    assert export(tmp_path / "r.zarr", tmp_path / "out").written == 2


def test_a_masked_selection_can_be_saved_and_processed(with_an_absent_unit, small_campaign, product, tmp_path):
    """`where` makes flags floats, and xarray chooses other units of time."""
    cut = with_an_absent_unit.where(with_an_absent_unit.present, drop=True).load()
    assert cut["flag"].dtype == np.float64
    for name in cut.variables:
        cut[name].encoding = {}
    path = saved(cut, tmp_path / "s.zarr")
    assert run(path, tmp_path / "r.zarr").done == 1
    ours, theirs = csstdask.open_run(tmp_path / "r.zarr"), csstdask.open_run(product, small_campaign)
    assert np.array_equal(ours["cr_mask"].values[0, 0], theirs["cr_mask"].values[0, 0])
    time = Campaign(small_campaign).metadata("10100000001", 7).time
    assert Campaign(path).metadata("10100000001", 7).time == time


@pytest.mark.parametrize(
    ("value", "units", "wanted"),
    [
        (np.int64(5), "microseconds since 1970-01-01T00:00:00", 5),
        (np.float64(1.5), "seconds since 1970-01-01", 1_500_000),
        (np.int64(2), "days since 1970-01-03 12:00:00", 4 * 86_400_000_000 + 43_200_000_000),
        (np.float64("nan"), "seconds since 1970-01-01", NO_TIME),
        (np.int64(NO_TIME), "microseconds since 1970-01-01", NO_TIME),
    ],
)
def test_units_of_time(value, units, wanted):
    assert decode_time(value, {"units": units}) == wanted


def test_a_saved_subset_can_be_added_to(small_campaign, tmp_path):
    """Its times are seconds: new exposures are written in the same units."""
    path = saved(csstdask.open_campaign(small_campaign).isel(exposure=[0]), tmp_path / "s.zarr")
    metadata = Campaign(small_campaign).metadata("10100000002", 8)
    store = Campaign(path, "r+")
    store.append_exposures(["10100000002"])
    store.describe_exposures([metadata])
    store.mark_present([metadata])
    assert Campaign(path).metadata("10100000002", 8) == metadata
    assert csstdask.open_campaign(path)["time"].values[1] == np.datetime64(metadata.time, "us")


def test_psf_of_one_exposure_and_one_detector(small_campaign, tmp_path):
    from csstdask.pipeline.run import run as full_run

    full_run(small_campaign, tmp_path / "r.zarr", steps=["psf"])
    dataset = csstdask.open_run(tmp_path / "r.zarr")
    wanted = dataset.csst.psf_at([40.0, 90.0], [50.0, 60.0], exposure="10100000002", detector=8).values
    assert np.isfinite(wanted).all()
    one = dataset.sel(exposure="10100000002")
    for found in (
        one.csst.psf_at([40.0, 90.0], [50.0, 60.0], detector=8),
        one.sel(detector=8).csst.psf_at([40.0, 90.0], [50.0, 60.0]),
        one.sel(detector=[8]).csst.psf_at([40.0, 90.0], [50.0, 60.0]),
        dataset.sel(detector=8).csst.psf_at([40.0, 90.0], [50.0, 60.0], exposure=1, detector=8),
    ):
        assert np.array_equal(found.values, wanted)
    with pytest.raises(InputError, match="one of \\[7, 8\\]"):
        one.csst.psf_at(40.0, 50.0)
    with pytest.raises(InputError, match="only one"):
        one.csst.psf_at(40.0, 50.0, exposure="10100000001", detector=8)


def test_a_focal_plane_of_one_exposure(small_campaign):
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    dataset = csstdask.open_campaign(small_campaign)
    whole = dataset.csst.plot_focal_plane("gain", exposure="10100000002")
    one = dataset.sel(exposure="10100000002").csst.plot_focal_plane("gain")
    single = dataset.sel(exposure="10100000002", detector=8).csst.plot_focal_plane("gain")
    values = [ax.collections[0].get_array().filled(np.nan) for ax in (whole, one, single)]
    assert np.array_equal(values[0], values[1], equal_nan=True)
    assert np.isfinite(values[2]).sum() == 1
    for ax in (whole, one, single):
        plt.close(ax.figure)


def test_attributes_are_text_or_numbers(small_campaign, product):
    for dataset in (csstdask.open_campaign(small_campaign), csstdask.open_run(product, small_campaign)):
        assert all(isinstance(value, str | int | float) for value in dataset.attrs.values())
        assert isinstance(validate_instrument(dataset.attrs["instrument"], "attributes"), Instrument)


def test_sources_of_a_cut_out_keep_their_positions(small_campaign, product, tmp_path):
    """A cut-out that is saved and processed gives the positions on the sky of the whole frame."""
    unit = {"exposure": [0], "detector": [0]}
    cut = csstdask.open_campaign(small_campaign).isel(unit | {"y": slice(20, None), "x": slice(10, 150)})
    path = saved(cut, tmp_path / "cut.zarr")
    assert run(path, tmp_path / "r.zarr").done == 1
    ours, theirs = (
        read_table(table_path(store, "sources", "10100000001", 7)) for store in (tmp_path / "r.zarr", product)
    )
    brightest = int(np.argmax(np.where((ours["x"] > 20) & (ours["y"] > 20), ours["flux"], 0)))
    there = np.hypot(theirs["x"] - ours["x"][brightest] - 10, theirs["y"] - ours["y"][brightest] - 20)
    same = int(there.argmin())
    assert there[same] < 0.5
    assert ours["ra"][brightest] == pytest.approx(theirs["ra"][same], abs=0.1 / 3600)
    assert ours["dec"][brightest] == pytest.approx(theirs["dec"][same], abs=0.1 / 3600)
