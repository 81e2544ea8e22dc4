"""Spectra of catalogue stars in a run: which stars are extracted, and what is refused by name."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
import zarr
from flat_run import SETTINGS, first_exposure, run_flat
from shell import csstdask_command

from csstdask.core.errors import InputError
from csstdask.engine.work_units import Selection
from csstdask.flux.extinction import extinction_curve
from csstdask.flux.ratios import StarRatios
from csstdask.pipeline.config import with_input_tables
from csstdask.pipeline.run import run
from csstdask.store.zarr_arrays import consolidate

DETECTORS = (2, 3)


def test_without_a_catalogue_there_is_no_extraction(slitless_campaign, tmp_path):
    bare = tmp_path / "bare.zarr"
    shutil.copytree(slitless_campaign, bare)
    (bare / "tables" / "catalogue.parquet").unlink()
    first = first_exposure(slitless_campaign)
    with pytest.raises(InputError, match="--steps extract: found no catalogue; wanted --catalogue"):
        run_flat(bare, tmp_path / "run.zarr", selection=Selection((first,)))
    summary = run(bare, tmp_path / "run.zarr", config=SETTINGS, selection=Selection((first,)))
    assert (summary.done, summary.reductions) == (2, [])
    done = csstdask_command("run", bare, "--to", tmp_path / "other.zarr", "--catalogue", tmp_path / "none.parquet")
    assert done.returncode == 2
    assert f"{tmp_path / 'none.parquet'}: found no such file; wanted the Parquet table of --catalogue" in done.stderr


def test_a_catalogue_of_another_field_is_named(slitless_campaign, tmp_path):
    stars = pq.read_table(slitless_campaign / "tables" / "catalogue.parquet")
    far = stars.set_column(stars.column_names.index("dec"), "dec", pa.array([80.0] * len(stars)))
    pq.write_table(far, tmp_path / "far.parquet")
    first = first_exposure(slitless_campaign)
    options = ["--steps", "flat", "--select", f"exposure={first}", "--catalogue", tmp_path / "far.parquet"]
    (tmp_path / "quick.toml").write_text('[detect]\nmodel = "unet-fast"\n')
    done = csstdask_command(
        "run", slitless_campaign, "--to", tmp_path / "run.zarr", *options, "--config", tmp_path / "quick.toml"
    )
    assert done.returncode == 1
    expected = (
        f"{tmp_path / 'far.parquet'}: found no star with an SED on any frame; wanted stars of the observed fields"
    )
    assert expected in done.stderr
    assert expected in csstdask_command("status", tmp_path / "run.zarr").stderr
    table = pq.read_table(next((tmp_path / "run.zarr").glob("tables/spectra/*/2.parquet")))
    assert len(table) == 0


def test_without_seds_spectra_are_extracted_and_no_flat_is_asked_for(slitless_campaign, tmp_path):
    bare = tmp_path / "bare.zarr"
    shutil.copytree(slitless_campaign, bare)
    (bare / "tables" / "spectra.parquet").unlink()
    chosen = Selection((first_exposure(slitless_campaign),), frozenset({2}))
    with pytest.raises(InputError, match="--steps flat: found no SEDs; wanted --spectra"):
        run_flat(bare, tmp_path / "run.zarr", selection=chosen)
    summary = run(bare, tmp_path / "run.zarr", config=SETTINGS, selection=chosen)
    assert (summary.done, summary.failed, summary.reductions) == (1, 0, [])
    table = pq.read_table(next((tmp_path / "run.zarr").glob("tables/spectra/*/2.parquet")))
    assert len(table) > 10
    assert table["shift"].null_count == 0


def test_stars_without_a_flux_error_take_no_part(slitless_campaign, tmp_path):
    stars = pq.read_table(slitless_campaign / "tables" / "catalogue.parquet")
    errors = [None, 0.0, -1e-17, float("inf")]
    values = pa.array(
        [errors[i // 2 % 4] if i % 2 else error for i, error in enumerate(stars["flux_5556_err"].to_pylist())]
    )
    position = stars.column_names.index("flux_5556_err")
    pq.write_table(stars.set_column(position, "flux_5556_err", values), tmp_path / "stars.parquet")
    config = with_input_tables(SETTINGS, tmp_path / "stars.parquet", None)
    run_flat(
        slitless_campaign,
        tmp_path / "run.zarr",
        config=config,
        selection=Selection((first_exposure(slitless_campaign),)),
    )
    usable = {
        i for i, error in zip(stars["id"].to_pylist(), values.to_pylist(), strict=True) if error and 0 < error < 1
    }
    unpredicted = xr.open_zarr(tmp_path / "run.zarr", chunks=None)["n_unpredicted"].values[0]
    for column, detector in enumerate(DETECTORS):
        partial = next((tmp_path / "run.zarr").glob(f"files/star_ratios/*/{detector}.safetensors"))
        found = set(StarRatios.from_bytes(partial.read_bytes(), partial).star.tolist())
        assert found
        assert found <= usable
        assert unpredicted[column] > 3


def test_a_frame_without_a_wcs_fails_by_name(slitless_campaign, tmp_path):
    blind = tmp_path / "blind.zarr"
    shutil.copytree(slitless_campaign, blind)
    exposure = first_exposure(slitless_campaign)
    headers = zarr.open_group(blind, mode="r+", use_consolidated=False)["header"]
    headers[0, 0] = "EXTNAME = 'SCI'"
    summary = run_flat(blind, tmp_path / "run.zarr", selection=Selection((exposure,)))
    (failure,) = summary.failures
    assert failure["step"] == "extract"
    assert failure["reason"] == f"{exposure}/2: found no usable WCS in the header; wanted one: stars are placed by it"
    assert [one.n_inputs for one in summary.reductions] == [1]


def test_stars_are_reddened_as_the_catalogue_says(slitless_campaign, flat_run, tmp_path):
    """Predicted counts change by the extinction relative to 5556 Angstrom; stars of unknown reddening take no part."""
    stars = pq.read_table(slitless_campaign / "tables" / "catalogue.parquet")
    ebv = pa.array([None if i % 5 == 0 else 0.1 for i in range(len(stars))], pa.float64())
    pq.write_table(stars.append_column("ebv", ebv), tmp_path / "stars.parquet")
    config = with_input_tables(SETTINGS, tmp_path / "stars.parquet", None)
    chosen = Selection((first_exposure(slitless_campaign),), frozenset({3}))
    run_flat(slitless_campaign, tmp_path / "run.zarr", config=config, selection=chosen)
    name = f"files/star_ratios/{first_exposure(slitless_campaign)}/3.safetensors"
    plain, red = (StarRatios.from_bytes((store / name).read_bytes()) for store in (flat_run, tmp_path / "run.zarr"))
    known = dict(zip(stars["id"].to_pylist(), ebv.to_pylist(), strict=True))
    assert {known[star] for star in red.star} == {0.1}
    same = np.isin(plain.star, red.star)
    assert plain.star[same].tolist() == red.star.tolist()
    ratio = np.nanmedian(red.ratio / plain.ratio[same], axis=0)
    expected = 10 ** (0.4 * 0.1 * 3.1 * (extinction_curve(plain.wavelength) - extinction_curve(5556.0)))
    assert ratio[10:-10] == pytest.approx(expected[10:-10], rel=0.01)


def test_a_camera_without_a_described_zeroth_order_is_extracted(slitless_campaign, tmp_path):
    simple = tmp_path / "simple.zarr"
    shutil.copytree(slitless_campaign, simple)
    group = zarr.open_group(simple, mode="r+", use_consolidated=False)
    camera = dict(group.attrs["instrument"])
    gratings = camera["slitless"]
    camera["slitless"] = {
        band: grating | {"orders": [one for one in grating["orders"] if one["order"] == 1]}
        for band, grating in gratings.items()
    }
    group.attrs["instrument"] = camera
    consolidate(simple)
    chosen = Selection((first_exposure(slitless_campaign),), frozenset({2}))
    summary = run_flat(simple, tmp_path / "run.zarr", selection=chosen)
    assert (summary.done, summary.failures) == (1, [])
    assert [(one.state, one.n_inputs) for one in summary.reductions] == [("done", 1)]
