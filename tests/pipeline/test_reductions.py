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
import pytest
import xarray as xr
import zarr
from astropy.io import fits
from flat_run import SETTINGS, first_exposure, run_flat
from quick import quick_settings
from shell import csstdask_command
from store_equality import differences

import csstdask
from csstdask.core.errors import InputError
from csstdask.engine.events import ReductionDone, ReductionPass, ReductionStarted
from csstdask.engine.work_units import Selection
from csstdask.pipeline.export import export
from csstdask.pipeline.reductions.flat import FLAT
from csstdask.pipeline.run import run
from csstdask.pipeline.status import status
from csstdask.store.zarr_arrays import consolidate

ARRAYS = tuple(product.name for product in FLAT.products)


DETECTORS = (2, 3)


def cube(path):
    return {name: xr.open_zarr(path, chunks=None)[name].values for name in ARRAYS}


def assert_same_cube(path, expected):
    found = cube(path)
    for name, values in cube(expected).items():
        assert values.dtype == found[name].dtype
        assert values.tobytes() == found[name].tobytes(), name


def test_a_run_ends_with_the_cube_and_its_variance(flat_run, slitless_campaign):
    run_store, truth = xr.open_zarr(flat_run, chunks=None), xr.open_zarr(slitless_campaign, group="truth", chunks=None)
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


def test_the_accessor_gives_the_cube_of_a_detector(flat_run, slitless_campaign):
    dataset = csstdask.open_run(flat_run)
    flat = dataset.csst.flat(3)
    arrays = {name: values[1] for name, values in cube(flat_run).items()}
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
        csstdask.open_campaign(slitless_campaign).csst.flat(3)
    with pytest.raises(InputError, match="detector: found 7; wanted one of"):
        dataset.csst.flat(7)


@pytest.mark.parametrize(
    ("scheduler", "workers"), [("threads", 2), pytest.param("processes", 2, marks=pytest.mark.slow)]
)
def test_the_same_bits_for_any_workers(slitless_campaign, flat_run, tmp_path, scheduler, workers):
    run_flat(slitless_campaign, tmp_path / "run.zarr", scheduler=scheduler, workers=workers)
    assert_same_cube(tmp_path / "run.zarr", flat_run)
    assert differences(tmp_path / "run.zarr", flat_run) == []


def test_added_exposures_update_the_cube_without_reading_pixels_again(slitless_campaign, flat_run, tmp_path):
    path, seen = tmp_path / "run.zarr", []
    first = first_exposure(slitless_campaign)
    summary = run_flat(slitless_campaign, path, selection=Selection((first,)))
    assert [(one.state, one.n_inputs) for one in summary.reductions] == [("done", 2)]
    before = {item: item.stat().st_mtime_ns for item in path.glob(f"ledger/{first}/*.json")}
    only_few = cube(path)
    summary = run_flat(slitless_campaign, path, listeners=[seen.append])
    assert (summary.done, summary.skipped) == (4, 2)
    assert {item: item.stat().st_mtime_ns for item in before} == before
    assert_same_cube(path, flat_run)
    assert only_few["flat_n_stars"].max() < cube(path)["flat_n_stars"].max()
    assert {event.name for event in seen if isinstance(event, ReductionStarted)} == {"flat 2", "flat 3"}
    seen.clear()
    run_flat(
        slitless_campaign, path, selection=Selection((first,)), listeners=[seen.append]
    )  # all partials, whatever --select
    assert not [event for event in seen if isinstance(event, ReductionStarted | ReductionPass | ReductionDone)]
    assert_same_cube(path, flat_run)


def adopt(path, campaign):
    """Let a copy of a run, whose campaign lies elsewhere as seen from it, be about the same campaign."""
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    group.attrs["campaign"] = os.path.relpath(campaign.resolve(), path.resolve())
    consolidate(path)


KILLED = """
import os, signal, sys
from pathlib import Path
from flat_run import SETTINGS, first_exposure, run_flat
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
def test_a_kill_changes_no_bit(slitless_campaign, flat_run, tmp_path, moment):
    path, script = tmp_path / "run.zarr", tmp_path / "killed.py"
    if moment == "replacing":  # a cube of other settings, whose arrays have the same sizes
        shutil.copytree(flat_run, path)
        adopt(path, slitless_campaign)
    script.write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    done = subprocess.run(
        [sys.executable, str(script), str(slitless_campaign), str(path), moment],
        env=environment, capture_output=True, check=False, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [one.state for one in status(path).reductions] == ["pending"]
    with pytest.raises(InputError, match="detector 3: found no finished flat"):
        csstdask.open_run(path).csst.flat(3)
    summary = run_flat(slitless_campaign, path)
    assert (summary.skipped, summary.failed) == (6, 0)
    assert_same_cube(path, flat_run)


def test_a_torn_partial_is_named_and_mended(slitless_campaign, flat_run, tmp_path):
    path = tmp_path / "run.zarr"
    run_flat(slitless_campaign, path)
    partial = sorted(path.glob("files/star_ratios/*/3.safetensors"))[1]
    content = bytearray(partial.read_bytes())
    content[-5] ^= 255
    partial.write_bytes(content)
    (path / "reductions" / "flat" / "3.json").unlink()
    command = ["run", slitless_campaign, "--to", path, "--config", path, "--steps", "flat", "--json"]
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
    assert_same_cube(path, flat_run)


def test_partials_of_other_settings_take_no_part(slitless_campaign, tmp_path):
    path = tmp_path / "run.zarr"
    run_flat(slitless_campaign, path)
    first = first_exposure(slitless_campaign)
    other = quick_settings(flat={"degree": 1}, detect={"model": "unet-fast", "threshold": 0.9})
    summary = run_flat(slitless_campaign, path, config=other, selection=Selection((first,)))
    (flat,) = summary.reductions
    assert (flat.state, flat.n_inputs, flat.n_outdated) == ("done", 2, 4)
    chosen = Selection((first,), frozenset({2}))
    third = quick_settings(flat={"degree": 1}, detect={"model": "unet-fast", "threshold": 0.8})
    summary = run_flat(slitless_campaign, path, config=third, selection=chosen)
    (flat,) = summary.reductions
    assert (flat.state, flat.n_inputs, flat.n_outdated, flat.pending) == ("pending", 1, 5, [3])


def test_another_degree_makes_the_cube_anew_from_the_partials(slitless_campaign, flat_run, tmp_path):
    path = tmp_path / "run.zarr"
    run_flat(slitless_campaign, path)
    summary = run_flat(slitless_campaign, path, config=quick_settings(flat={"degree": 0}))
    assert (summary.done, summary.skipped) == (0, 6)
    assert cube(path)["flat"].shape == (2, 195, 1)
    assert [one.state for one in status(path).reductions] == ["done"]


def test_a_dry_run_knows_the_reductions(slitless_campaign, flat_run, tmp_path):
    done = csstdask_command("run", slitless_campaign, "--to", flat_run, "--config", flat_run, "--dry-run", "--json")
    assert json.loads(done.stdout)["reductions"][0]["state"] == "done"
    done = csstdask_command("run", slitless_campaign, "--to", tmp_path / "new.zarr", "--dry-run")
    assert "reduction flat: pending, 0 partials recorded before" in done.stdout


def test_a_flat_of_other_spectra_is_neither_read_nor_exported(slitless_campaign, flat_run, tmp_path):
    """Spectra of other settings, without the reduction: the cube on disk is that of the old ones."""
    path = tmp_path / "run.zarr"
    shutil.copytree(flat_run, path)
    export(path, tmp_path / "before", campaign=slitless_campaign, workers=1)
    first = sorted(path.name for path in (tmp_path / "before").glob("*_spectra.fits"))[0]
    assert np.isfinite(fits.getdata(tmp_path / "before" / first, "SPECTRA")["FLUX"]).any()
    other = SETTINGS.model_copy(update={"detect": SETTINGS.detect.model_copy(update={"threshold": 0.99})})
    run(slitless_campaign, path, steps=["extract"], config=other, workers=1)
    assert [one.state for one in status(path, campaign=slitless_campaign).reductions] == ["pending"]
    assert np.isfinite(cube(path)["sensitivity"]).any()
    opened = csstdask.open_run(path, slitless_campaign)
    assert np.isnan(opened["flat"]).all()
    assert (opened["flat_degree"].dtype, int(opened["flat_degree"].max())) == (np.int32, -1)
    with pytest.raises(InputError, match="found no finished flat"):
        opened.csst.flat(2)
    again = export(path, tmp_path / "after", campaign=slitless_campaign, workers=1)
    assert (again.spectra, again.calibrations, again.failures) == (6, 0, [])
    assert fits.getheader(tmp_path / "after" / first)["CSDFLAT"] == ""
    assert np.isnan(fits.getdata(tmp_path / "after" / first, "SPECTRA")["FLUX"]).all()
