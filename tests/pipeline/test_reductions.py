"""The flat-field cube of a run: the same bits in any order, after kills, for added exposures; failures are named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
import zarr
from astropy.io import fits
from quick import quick_settings
from shell import csstdask_command
from store_equality import differences

import csstdask
from csstdask.core.errors import InputError
from csstdask.engine.events import ReductionDone, ReductionPass, ReductionStarted
from csstdask.engine.work_units import Selection
from csstdask.flux.extinction import extinction_curve
from csstdask.flux.ratios import StarRatios
from csstdask.mock import load_recipe
from csstdask.pipeline.config import with_input_tables
from csstdask.pipeline.export import export
from csstdask.pipeline.mock_survey import mock
from csstdask.pipeline.reductions.flat import FLAT
from csstdask.pipeline.run import run
from csstdask.pipeline.status import status
from csstdask.store.zarr_arrays import consolidate

STEPS = ("flat",)
ARRAYS = tuple(product.name for product in FLAT.products)
SETTINGS = quick_settings(flat={"degree": 1})
DETECTORS = (2, 3)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """Six units of 16 stars each."""
    path = tmp_path_factory.mktemp("reductions") / "campaign.zarr"
    recipe = load_recipe("slitless").model_dump()
    recipe |= {"exposures": 3, "detectors": DETECTORS, "shape": (160, 640), "seed": 77}
    recipe["slitless"] |= {"stars": 16}
    mock(type(load_recipe("slitless")).model_validate(recipe), path)
    return path


def run_flat(campaign, path, **options):
    return run(campaign, path, steps=STEPS, config=options.pop("config", SETTINGS), **options)


@pytest.fixture(scope="module")
def finished(campaign, tmp_path_factory):
    path = tmp_path_factory.mktemp("reductions") / "run.zarr"
    summary = run_flat(campaign, path, workers=1)
    assert [one.state for one in summary.reductions] == ["done"]
    return path


def cube(path):
    return {name: xr.open_zarr(path, chunks=None)[name].values for name in ARRAYS}


def assert_same_cube(path, expected):
    found = cube(path)
    for name, values in cube(expected).items():
        assert values.dtype == found[name].dtype
        assert values.tobytes() == found[name].tobytes(), name


def test_a_run_ends_with_the_cube_and_its_variance(finished, campaign):
    run_store, truth = xr.open_zarr(finished, chunks=None), xr.open_zarr(campaign, group="truth", chunks=None)
    assert run_store["sensitivity"].attrs["units"] == "(electron s-1 Angstrom-1) / (erg s-1 cm-2 Angstrom-1)"
    assert (run_store["flat"][..., 0] == 1).all()
    assert (run_store["flat_n_stars"].max("flat_wave") > 40).all()
    rejected = run_store["extract_mask"].values
    assert 0 < rejected.mean() < 0.02
    assert not (rejected & run_store["cr_mask"].values).any()
    for number in range(len(DETECTORS)):
        wavelength = run_store["flat_wavelength"].values[number]
        assert (np.diff(wavelength) > 0).all()
        nominal = truth["sensitivity"].values[number]
        expected = np.interp(wavelength, truth["wavelength"].values, np.nan_to_num(nominal))
        sigma = np.sqrt(run_store["sensitivity_variance"].values[number])
        middle = slice(10, -10)
        ratio = run_store["sensitivity"].values[number][middle] / expected[middle]
        assert np.abs(ratio - 1).max() < 0.03
        assert (sigma[middle] / expected[middle] >= 0.01).all()  # the error that all SEDs share


def test_the_accessor_gives_the_cube_of_a_detector(finished, campaign):
    dataset = csstdask.open_run(finished)
    flat = dataset.csst.flat(3)
    arrays = {name: values[1] for name, values in cube(finished).items()}
    assert flat.shape == (160, 640)
    assert np.allclose(flat.relative_coefficients, arrays["flat"], rtol=1e-12, atol=0)
    assert np.allclose(flat.sensitivity_variance, arrays["sensitivity_variance"], rtol=1e-9)
    x, y = np.meshgrid(np.linspace(0, 639, 5), np.linspace(0, 159, 5))
    lazy = flat.to_dataarray(chunks=(50, 80, 320))
    assert lazy.sizes == {"wavelength": 195, "y": 160, "x": 640}
    assert dask.is_dask_collection(lazy)
    there = lazy.isel(wavelength=70, y=30, x=200)
    wavelength = float(flat.wavelength[70])
    assert float(there) == pytest.approx(float(flat.evaluate(200.0, 30.0, wavelength)), rel=1e-6)
    sigma = np.sqrt(flat.variance(x, y, wavelength))
    assert (sigma < 0.05).all()
    assert sigma[0, 0] > 3 * sigma[2, 2]  # the corners are known worst
    cube_of_band = dataset.csst.flat_cube("GU")
    assert cube_of_band.dims == ("detector", "wavelength", "y", "x")
    assert dask.is_dask_collection(cube_of_band)
    assert float(cube_of_band.sel(detector=3).isel(wavelength=70, y=30, x=200)) == float(there)
    with pytest.raises(InputError, match="band: found 'g'; wanted the band of a slitless detector"):
        dataset.csst.flat_cube("g")
    with pytest.raises(InputError, match="dataset: found no flat; wanted a run with the reduction flat"):
        csstdask.open_campaign(campaign).csst.flat(3)
    with pytest.raises(InputError, match="detector: found 7; wanted one of"):
        dataset.csst.flat(7)


@pytest.mark.parametrize(
    ("scheduler", "workers"), [("threads", 2), pytest.param("processes", 2, marks=pytest.mark.slow)]
)
def test_the_same_bits_for_any_workers(campaign, finished, tmp_path, scheduler, workers):
    run_flat(campaign, tmp_path / "run.zarr", scheduler=scheduler, workers=workers)
    assert_same_cube(tmp_path / "run.zarr", finished)
    assert differences(tmp_path / "run.zarr", finished) == []


def test_added_exposures_update_the_cube_without_reading_pixels_again(campaign, finished, tmp_path):
    path, seen = tmp_path / "run.zarr", []
    first = sorted(xr.open_zarr(campaign)["exposure"].values.tolist())[0]
    summary = run_flat(campaign, path, selection=Selection((first,)))
    assert [(one.state, one.n_inputs) for one in summary.reductions] == [("done", 2)]
    before = {item: item.stat().st_mtime_ns for item in path.glob(f"ledger/{first}/*.json")}
    only_few = cube(path)
    summary = run_flat(campaign, path, listeners=[seen.append])
    assert (summary.done, summary.skipped) == (4, 2)
    assert {item: item.stat().st_mtime_ns for item in before} == before
    assert_same_cube(path, finished)
    assert only_few["flat_n_stars"].max() < cube(path)["flat_n_stars"].max()
    assert {event.name for event in seen if isinstance(event, ReductionStarted)} == {"flat 2", "flat 3"}
    seen.clear()
    run_flat(campaign, path, selection=Selection((first,)), listeners=[seen.append])  # all partials, whatever --select
    assert not [event for event in seen if isinstance(event, ReductionStarted | ReductionPass | ReductionDone)]
    assert_same_cube(path, finished)


def adopt(path, campaign):
    """Let a copy of a run, whose campaign lies elsewhere as seen from it, be about the same campaign."""
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    group.attrs["campaign"] = os.path.relpath(campaign.resolve(), path.resolve())
    consolidate(path)


KILLED = """
import os, signal, sys
from pathlib import Path
from quick import quick_settings
import csstdask.engine.reduce as reduce, csstdask.pipeline.run_reductions as reductions
from csstdask.pipeline.run import run

campaign, path, moment = sys.argv[1:]
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
if moment == "mapping":
    task = reduce.map_group
    reduce.map_group = lambda job: kill() if job.solution is not None and job.solution.n_passes == 2 else task(job)
elif moment == "combining":
    add = reduce.TreeSum.add
    count = []
    def counted(self, position, value):
        count.append(position)
        if len(count) == 9:
            kill()
        add(self, position, value)
    reduce.TreeSum.add = counted
elif moment == "replacing":
    write = reductions.write_detector_chunk
    def replaced(root, name, column, values):
        target = write(root, name, column, values)
        if name == "sensitivity_variance" and column == 1:
            kill()
        return target
    reductions.write_detector_chunk = replaced
else:
    write = reductions.write_detector_chunk
    def torn(root, name, column, values):
        if name == "flat_variance" and column == 1:
            target = write(root, name, column, values)
            target.write_bytes(target.read_bytes()[:100])
            kill()
        return write(root, name, column, values)
    reductions.write_detector_chunk = torn
if __name__ == "__main__":
    flat = {"degree": 1} if moment != "replacing" else {"degree": 1, "common_error": 0.026}
    run(campaign, path, steps=("flat",), config=quick_settings(flat=flat))
"""


@pytest.mark.parametrize("moment", ["mapping", "combining", "writing", "replacing"])
def test_a_kill_changes_no_bit(campaign, finished, tmp_path, moment):
    path, script = tmp_path / "run.zarr", tmp_path / "killed.py"
    if moment == "replacing":  # a cube of other settings, whose arrays have the same sizes
        shutil.copytree(finished, path)
        adopt(path, campaign)
    script.write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    done = subprocess.run(
        [sys.executable, str(script), str(campaign), str(path), moment],
        env=environment, capture_output=True, check=False, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [one.state for one in status(path).reductions] == ["pending"]
    with pytest.raises(InputError, match="detector 3: found no finished flat"):
        csstdask.open_run(path).csst.flat(3)
    summary = run_flat(campaign, path)
    assert (summary.skipped, summary.failed) == (6, 0)
    assert_same_cube(path, finished)


def test_a_torn_partial_is_named_and_mended(campaign, finished, tmp_path):
    path = tmp_path / "run.zarr"
    run_flat(campaign, path)
    partial = sorted(path.glob("files/star_ratios/*/3.safetensors"))[1]
    content = bytearray(partial.read_bytes())
    content[-5] ^= 255
    partial.write_bytes(content)
    (path / "reductions" / "flat" / "3.json").unlink()
    command = ["run", campaign, "--to", path, "--config", path, "--steps", "flat", "--json"]
    done = csstdask_command(*command)
    assert done.returncode == 1
    (reduction,) = json.loads(done.stdout)["reductions"]
    assert (reduction["name"], reduction["state"], reduction["n_inputs"]) == ("flat", "failed", 6)
    (failure,) = reduction["failures"]
    assert failure["detector"] == 3
    assert str(partial) in failure["reason"]
    assert "--verify" in failure["reason"]
    told = csstdask_command("status", path, "--json")
    assert told.returncode == 1
    assert json.loads(told.stdout)["reductions"] == [reduction]
    done = csstdask_command(*command, "--verify")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["reductions"][0]["state"] == "done"
    assert_same_cube(path, finished)


def test_partials_of_other_settings_take_no_part(campaign, tmp_path):
    path = tmp_path / "run.zarr"
    run_flat(campaign, path)
    first = sorted(xr.open_zarr(campaign)["exposure"].values.tolist())[0]
    other = quick_settings(flat={"degree": 1}, detect={"model": "unet-fast", "threshold": 0.9})
    summary = run_flat(campaign, path, config=other, selection=Selection((first,)))
    (flat,) = summary.reductions
    assert (flat.state, flat.n_inputs, flat.n_outdated) == ("done", 2, 4)
    chosen = Selection((first,), frozenset({2}))
    third = quick_settings(flat={"degree": 1}, detect={"model": "unet-fast", "threshold": 0.8})
    summary = run_flat(campaign, path, config=third, selection=chosen)
    (flat,) = summary.reductions
    assert (flat.state, flat.n_inputs, flat.n_outdated, flat.pending) == ("pending", 1, 5, [3])


def test_another_degree_makes_the_cube_anew_from_the_partials(campaign, finished, tmp_path):
    path = tmp_path / "run.zarr"
    run_flat(campaign, path)
    summary = run_flat(campaign, path, config=quick_settings(flat={"degree": 0}))
    assert (summary.done, summary.skipped) == (0, 6)
    assert cube(path)["flat"].shape == (2, 195, 1)
    assert [one.state for one in status(path).reductions] == ["done"]


def test_a_dry_run_knows_the_reductions(campaign, finished, tmp_path):
    done = csstdask_command("run", campaign, "--to", finished, "--config", finished, "--dry-run", "--json")
    assert json.loads(done.stdout)["reductions"][0]["state"] == "done"
    done = csstdask_command("run", campaign, "--to", tmp_path / "new.zarr", "--dry-run")
    assert "reduction flat: pending, 0 partials recorded before" in done.stdout


def test_a_flat_of_other_spectra_is_neither_read_nor_exported(campaign, finished, tmp_path):
    """Spectra of other settings, without the reduction: the cube on disk is that of the old ones."""
    path = tmp_path / "run.zarr"
    shutil.copytree(finished, path)
    export(path, tmp_path / "before", campaign=campaign, workers=1)
    first = sorted(path.name for path in (tmp_path / "before").glob("*_spectra.fits"))[0]
    assert np.isfinite(fits.getdata(tmp_path / "before" / first, "SPECTRA")["FLUX"]).any()
    other = SETTINGS.model_copy(update={"detect": SETTINGS.detect.model_copy(update={"threshold": 0.99})})
    run(campaign, path, steps=["extract"], config=other, workers=1)
    assert [one.state for one in status(path, campaign=campaign).reductions] == ["pending"]
    assert np.isfinite(cube(path)["sensitivity"]).any()
    opened = csstdask.open_run(path, campaign)
    assert np.isnan(opened["flat"]).all()
    assert (opened["flat_degree"].dtype, int(opened["flat_degree"].max())) == (np.int32, -1)
    with pytest.raises(InputError, match="found no finished flat"):
        opened.csst.flat(2)
    again = export(path, tmp_path / "after", campaign=campaign, workers=1)
    assert (again.spectra, again.calibrations, again.failures) == (6, 0, [])
    assert fits.getheader(tmp_path / "after" / first)["CSDFLAT"] == ""
    assert np.isnan(fits.getdata(tmp_path / "after" / first, "SPECTRA")["FLUX"]).all()


def test_without_a_catalogue_there_is_no_extraction(campaign, tmp_path):
    bare = tmp_path / "bare.zarr"
    shutil.copytree(campaign, bare)
    (bare / "tables" / "catalogue.parquet").unlink()
    first = sorted(xr.open_zarr(campaign)["exposure"].values.tolist())[0]
    with pytest.raises(InputError, match="--steps extract: found no catalogue; wanted --catalogue"):
        run_flat(bare, tmp_path / "run.zarr", selection=Selection((first,)))
    summary = run(bare, tmp_path / "run.zarr", config=SETTINGS, selection=Selection((first,)))
    assert (summary.done, summary.reductions) == (2, [])
    done = csstdask_command("run", bare, "--to", tmp_path / "other.zarr", "--catalogue", tmp_path / "none.parquet")
    assert done.returncode == 2
    assert f"{tmp_path / 'none.parquet'}: found no such file; wanted the Parquet table of --catalogue" in done.stderr


def test_a_catalogue_of_another_field_is_named(campaign, tmp_path):
    stars = pq.read_table(campaign / "tables" / "catalogue.parquet")
    far = stars.set_column(stars.column_names.index("dec"), "dec", pa.array([80.0] * len(stars)))
    pq.write_table(far, tmp_path / "far.parquet")
    first = sorted(xr.open_zarr(campaign)["exposure"].values.tolist())[0]
    options = ["--steps", "flat", "--select", f"exposure={first}", "--catalogue", tmp_path / "far.parquet"]
    (tmp_path / "quick.toml").write_text('[detect]\nmodel = "unet-fast"\n')
    done = csstdask_command(
        "run", campaign, "--to", tmp_path / "run.zarr", *options, "--config", tmp_path / "quick.toml"
    )
    assert done.returncode == 1
    expected = (
        f"{tmp_path / 'far.parquet'}: found no star with an SED on any frame; wanted stars of the observed fields"
    )
    assert expected in done.stderr
    assert expected in csstdask_command("status", tmp_path / "run.zarr").stderr
    table = pq.read_table(next((tmp_path / "run.zarr").glob("tables/spectra/*/2.parquet")))
    assert len(table) == 0


def first_exposure(campaign):
    return sorted(xr.open_zarr(campaign)["exposure"].values.tolist())[0]


def test_without_seds_spectra_are_extracted_and_no_flat_is_asked_for(campaign, tmp_path):
    bare = tmp_path / "bare.zarr"
    shutil.copytree(campaign, bare)
    (bare / "tables" / "spectra.parquet").unlink()
    chosen = Selection((first_exposure(campaign),), frozenset({2}))
    with pytest.raises(InputError, match="--steps flat: found no SEDs; wanted --spectra"):
        run_flat(bare, tmp_path / "run.zarr", selection=chosen)
    summary = run(bare, tmp_path / "run.zarr", config=SETTINGS, selection=chosen)
    assert (summary.done, summary.failed, summary.reductions) == (1, 0, [])
    table = pq.read_table(next((tmp_path / "run.zarr").glob("tables/spectra/*/2.parquet")))
    assert len(table) > 10
    assert table["shift"].null_count == 0


def test_stars_without_a_flux_error_take_no_part(campaign, tmp_path):
    stars = pq.read_table(campaign / "tables" / "catalogue.parquet")
    errors = [None, 0.0, -1e-17, float("inf")]
    values = pa.array(
        [errors[i // 2 % 4] if i % 2 else error for i, error in enumerate(stars["flux_5556_err"].to_pylist())]
    )
    position = stars.column_names.index("flux_5556_err")
    pq.write_table(stars.set_column(position, "flux_5556_err", values), tmp_path / "stars.parquet")
    config = with_input_tables(SETTINGS, tmp_path / "stars.parquet", None)
    run_flat(campaign, tmp_path / "run.zarr", config=config, selection=Selection((first_exposure(campaign),)))
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


def test_a_frame_without_a_wcs_fails_by_name(campaign, tmp_path):
    blind = tmp_path / "blind.zarr"
    shutil.copytree(campaign, blind)
    exposure = first_exposure(campaign)
    headers = zarr.open_group(blind, mode="r+", use_consolidated=False)["header"]
    headers[0, 0] = "EXTNAME = 'SCI'"
    summary = run_flat(blind, tmp_path / "run.zarr", selection=Selection((exposure,)))
    (failure,) = summary.failures
    assert failure["step"] == "extract"
    assert failure["reason"] == f"{exposure}/2: found no usable WCS in the header; wanted one: stars are placed by it"
    assert [one.n_inputs for one in summary.reductions] == [1]


def test_stars_are_reddened_as_the_catalogue_says(campaign, finished, tmp_path):
    """Predicted counts change by the extinction relative to 5556 Angstrom; stars of unknown reddening take no part."""
    stars = pq.read_table(campaign / "tables" / "catalogue.parquet")
    ebv = pa.array([None if i % 5 == 0 else 0.1 for i in range(len(stars))], pa.float64())
    pq.write_table(stars.append_column("ebv", ebv), tmp_path / "stars.parquet")
    config = with_input_tables(SETTINGS, tmp_path / "stars.parquet", None)
    chosen = Selection((first_exposure(campaign),), frozenset({3}))
    run_flat(campaign, tmp_path / "run.zarr", config=config, selection=chosen)
    name = f"files/star_ratios/{first_exposure(campaign)}/3.safetensors"
    plain, red = (StarRatios.from_bytes((store / name).read_bytes()) for store in (finished, tmp_path / "run.zarr"))
    known = dict(zip(stars["id"].to_pylist(), ebv.to_pylist(), strict=True))
    assert {known[star] for star in red.star} == {0.1}
    same = np.isin(plain.star, red.star)
    assert plain.star[same].tolist() == red.star.tolist()
    ratio = np.nanmedian(red.ratio / plain.ratio[same], axis=0)
    expected = 10 ** (0.4 * 0.1 * 3.1 * (extinction_curve(plain.wavelength) - extinction_curve(5556.0)))
    assert ratio[10:-10] == pytest.approx(expected[10:-10], rel=0.01)


def test_a_camera_without_a_described_zeroth_order_is_extracted(campaign, tmp_path):
    simple = tmp_path / "simple.zarr"
    shutil.copytree(campaign, simple)
    group = zarr.open_group(simple, mode="r+", use_consolidated=False)
    camera = dict(group.attrs["instrument"])
    gratings = camera["slitless"]
    camera["slitless"] = {
        band: grating | {"orders": [one for one in grating["orders"] if one["order"] == 1]}
        for band, grating in gratings.items()
    }
    group.attrs["instrument"] = camera
    consolidate(simple)
    chosen = Selection((first_exposure(campaign),), frozenset({2}))
    summary = run_flat(simple, tmp_path / "run.zarr", selection=chosen)
    assert (summary.done, summary.failures) == (1, [])
    assert [(one.state, one.n_inputs) for one in summary.reductions] == [("done", 1)]
