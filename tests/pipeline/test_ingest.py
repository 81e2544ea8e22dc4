"""Ingest: adding is safe, repeating is free, replacing is deliberate, and nothing bad stops the rest."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from astropy.io import fits
from make_fits import level_1, planes, primary, science_header

import csstdask
from csstdask.errors import InputError
from csstdask.pipeline.ingest import ingest
from csstdask.pipeline.run import run, status
from csstdask.store.campaign import Campaign
from csstdask.store.zarr_arrays import shard_path


def test_a_night_in_two_parts(tmp_path):
    """Absent detectors are recorded, not failures; a second ingest adds; the first exposure stays as it was."""
    target = tmp_path / "c.zarr"
    first = [level_1(tmp_path, chip) for chip in (7, 8, 22)]
    assert ingest(first, target).added == 3
    before = shard_path(target, "sci", 0, 6).read_bytes()
    second = [level_1(tmp_path, chip, "10100000002") for chip in (7, 9)]
    summary = ingest([*first, *second], target)
    assert (summary.added, summary.unchanged, summary.failures) == (2, 3, [])
    assert shard_path(target, "sci", 0, 6).read_bytes() == before
    campaign = csstdask.open_campaign(target)
    assert campaign.sizes["exposure"] == 2
    assert campaign.sizes["detector"] == 30
    assert campaign["detector"].values[campaign["present"].values[0]].tolist() == [7, 8, 22]
    assert campaign["detector"].values[campaign["present"].values[1]].tolist() == [7, 9]
    one = campaign.sel(exposure="10100000001", detector=22)
    assert np.array_equal(one["sci"].values, planes(seed=22)[0])
    assert str(one["band"].values) == "r"
    assert "MYKEY" in str(one["header"].values)


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_any_scheduler(tmp_path, scheduler):
    files = [level_1(tmp_path, chip) for chip in range(6, 10)]
    assert ingest(files, tmp_path / "c.zarr", scheduler=scheduler, workers=2).added == 4


def test_another_file_for_a_present_unit(tmp_path):
    """Refused, unless superseded; then exactly that unit is open again in a run."""
    target, products = tmp_path / "c.zarr", tmp_path / "run.zarr"
    files = [level_1(tmp_path, chip, arrays=planes((128, 128), chip)) for chip in (7, 8)]
    ingest(files, target)
    run(target, products)
    time.sleep(0.01)
    level_1(tmp_path, 8, arrays=planes((128, 128), 99))
    refused = ingest(files, target)
    assert (refused.added, refused.unchanged) == (0, 1)
    assert "--supersede" in refused.failures[0]["reason"]
    assert status(products).done == 2
    replaced = ingest(files, target, supersede=True)
    assert (replaced.added, replaced.unchanged) == (1, 1)
    seen = status(products)
    assert (seen.done, seen.pending) == (1, 1)
    again = run(target, products)
    assert (again.done, again.skipped) == (1, 1)


def test_a_touched_or_moved_file_is_the_same_file(tmp_path):
    path = level_1(tmp_path)
    target = tmp_path / "c.zarr"
    ingest([path], target)
    os.utime(path, ns=(1, 1))
    assert ingest([path], target).unchanged == 1
    (tmp_path / "moved").mkdir()
    assert ingest([shutil.copy(path, tmp_path / "moved")], target).unchanged == 1


def test_two_files_for_one_unit_in_one_call(tmp_path):
    (tmp_path / "b").mkdir()
    files = [level_1(tmp_path, 8), level_1(tmp_path / "b", 8, arrays=planes(seed=1))]
    summary = ingest(files, tmp_path / "c.zarr")
    assert summary.added == 1
    assert "a second time" in summary.failures[0]["reason"]


def test_dead_detectors_are_recorded_not_copied(tmp_path):
    from importlib import resources

    camera = tmp_path / "csst_2030.toml"
    text = resources.files("csstdask.instrument").joinpath("csst.toml").read_text()
    camera.write_text(text + "\n[[overrides]]\ndetectors = [8]\nvalid_from = 2028-02-01\nusable = false\n")
    files = [level_1(tmp_path, chip) for chip in (7, 8)]
    summary = ingest(files, tmp_path / "c.zarr", instrument=camera)
    assert (summary.added, summary.dead, summary.failures) == (1, ["10100000001/8"], [])
    assert not Campaign(tmp_path / "c.zarr").is_present("10100000001", 8)


def test_sigkill_in_an_ingest(tmp_path):
    """Whatever the moment: what is present is whole, and the next ingest completes it."""
    files = [level_1(tmp_path, chip, arrays=planes((1024, 1024), chip)) for chip in range(6, 18) if chip != 10]
    target = tmp_path / "c.zarr"
    command = [sys.executable, "-m", "csstdask", "ingest", *map(str, files), "--to", str(target), "--workers", "2"]
    for delay in (0.3, 0.0, 0.6):
        driver = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        while not (target / "sci" / "c").exists() and driver.poll() is None:
            time.sleep(0.005)
        time.sleep(delay)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        campaign = csstdask.open_campaign(target)
        for row, column in zip(*np.nonzero(campaign["present"].values), strict=True):
            one = campaign.isel(exposure=row, detector=column)
            assert np.array_equal(one["sci"].values, planes((1024, 1024), int(one["detector"]))[0])
    summary = ingest(files, target)
    assert summary.failures == []
    assert summary.added + summary.unchanged == 11
    assert int(csstdask.open_campaign(target)["present"].sum()) == 11


def test_kinds_that_are_not_processed_are_not_pending(tmp_path):
    raw = np.full((64, 64), 600, np.uint16)
    names = {"CLB": 0.0, "CLD": 300.0}
    files = []
    for index, (code, exptime) in enumerate(names.items()):
        path = tmp_path / f"CSST_MSC_MS_{code}_20280301000000_20280301000230_1010000010{index}_08_L0_V01.fits"
        fits.writeto(path, raw, header=primary(8, f"1010000010{index}", EXPTIME=exptime))
        files.append(path)
    ingest(files, tmp_path / "c.zarr")
    summary = run(tmp_path / "c.zarr", tmp_path / "run.zarr")
    assert (summary.total, summary.done) == (1, 1)


def test_no_instrument_can_be_told(tmp_path):
    path = tmp_path / "x.fits"
    fits.writeto(path, np.zeros((4, 4), np.float32))
    with pytest.raises(InputError, match="--instrument with one of csst"):
        ingest([path], tmp_path / "c.zarr")
    assert not (tmp_path / "c.zarr").exists()


def test_another_instrument_than_the_campaigns(tmp_path):
    target = tmp_path / "c.zarr"
    ingest([level_1(tmp_path)], target)
    with pytest.raises(InputError, match="csst, as in"):
        ingest([level_1(tmp_path, 9)], target, instrument="hst_wfpc2")
    stis = tmp_path / "stis.fits"
    header = fits.Header({"TELESCOP": "HST", "INSTRUME": "STIS", "DETECTOR": "CCD"})
    fits.HDUList(
        [fits.PrimaryHDU(header=header), fits.ImageHDU(np.zeros((4, 4)), name="SCI", header=science_header())]
    ).writeto(stis)
    summary = ingest([stis, level_1(tmp_path, 9)], target)
    assert summary.added == 1
    assert "a file of hst_stis" in summary.failures[0]["reason"]
