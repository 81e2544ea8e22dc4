"""Ingest: adding is safe, repeating is free, replacing is deliberate, and nothing bad stops the rest."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from make_fits import level_1, planes, primary, science_header
from quick import quick_run as run

import csstdask
from csstdask.core.errors import InputError
from csstdask.instrument import load_instrument
from csstdask.pipeline.ingest import ingest
from csstdask.pipeline.status import status
from csstdask.store.campaign import Campaign
from csstdask.store.fits_scan import scan_file
from csstdask.store.shards import shard_path


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

    camera = tmp_path / "csst_2030.toml"
    text = resources.files("csstdask.instrument").joinpath("csst.toml").read_text()
    camera.write_text(text + "\n[[overrides]]\ndetectors = [8]\nvalid_from = 2028-02-01\nusable = false\n")
    files = [level_1(tmp_path, chip) for chip in (7, 8)]
    summary = ingest(files, tmp_path / "c.zarr", instrument=camera)
    assert (summary.added, summary.dead, summary.failures) == (1, ["10100000001/8"], [])
    campaign = Campaign(tmp_path / "c.zarr")
    assert not campaign.is_present("10100000001", 8)
    assert campaign.metadata("10100000001", 8).band == "g"  # recorded: known, and known to be absent


def test_sigkill_in_an_ingest(tmp_path):
    """At any moment, units that are present are complete, and the next ingest adds the others."""
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


def test_a_superseding_file_that_cannot_be_used_changes_nothing(tmp_path):
    target = tmp_path / "c.zarr"
    files = [level_1(tmp_path, chip) for chip in (7, 8)]
    ingest(files, target)
    sci, wht, flag = planes(seed=50)
    flag = flag.astype(np.int64)
    flag[0, 0] = 2**40
    level_1(tmp_path, 8, arrays=(sci, wht, flag))
    summary = ingest(files, target, supersede=True)
    assert "integer overflow" in summary.failures[0]["reason"]
    level_1(tmp_path, 8, EXPTIME=300.0)
    summary = ingest(files, target, supersede=True)
    assert "an exposure time of 300.0 s" in summary.failures[0]["reason"]
    one = csstdask.open_campaign(target).sel(exposure="10100000001", detector=8)
    assert bool(one["present"])
    assert float(one["exptime"]) == 150
    assert np.array_equal(one["sci"].values, planes(seed=8)[0])


def test_time_does_not_depend_on_the_order_of_files(tmp_path):
    files = [level_1(tmp_path, chip, **{"DATE-OBS": f"2028-03-01T00:00:0{chip - 6}"}) for chip in (7, 8, 9)]
    times = []
    for name, order in (("a", files), ("b", files[::-1])):
        ingest(order, tmp_path / f"{name}.zarr")
        times.append(csstdask.open_campaign(tmp_path / f"{name}.zarr")["time"].values[0])
    assert times[0] == times[1] == np.datetime64("2028-03-01T00:00:01")


def test_a_kill_before_metadata_is_consolidated_is_repaired(tmp_path):
    target = tmp_path / "c.zarr"
    path = level_1(tmp_path)
    ingest([path], target)
    old = (target / "zarr.json").read_text()
    later = level_1(tmp_path, 8, "10100000002")
    ingest([later], target)
    (target / "zarr.json").write_text(old)
    ingest([path, later], target)
    assert csstdask.open_campaign(target).sizes["exposure"] == 2


def test_lost_shards_are_copied_again(tmp_path):
    target = tmp_path / "c.zarr"
    path = level_1(tmp_path)
    ingest([path], target)
    shard_path(target, "wht", 0, 7).unlink()
    assert ingest([path], target).added == 1
    assert shard_path(target, "wht", 0, 7).exists()


def test_a_card_that_breaks_the_standard_does_not_break_the_night(tmp_path):
    path = level_1(tmp_path, WINDSPD=1.0)
    raw = path.read_bytes()
    place = raw.index(b"WINDSPD ")
    broken = b"WINDSPD =                  nan / from a pipeline of theirs".ljust(80)
    path.write_bytes(raw[:place] + broken + raw[place + 80 :])
    target = tmp_path / "c.zarr"
    assert ingest([path], target).failures == []
    assert csstdask.open_campaign(target)["present"].values.sum() == 1


@pytest.mark.parametrize("obsid", ["..", ".", "x" * 300])
def test_ids_that_are_no_folder_names(tmp_path, obsid):
    header = primary(8)
    header["OBSID"] = obsid[:68]
    path = tmp_path / f"{obsid[:200]}_8.fits"
    sci, wht, flag = planes()
    hdus = [fits.PrimaryHDU(header=header), fits.ImageHDU(sci, header=science_header(), name="SCI")]
    fits.HDUList([*hdus, fits.ImageHDU(wht, name="WHT"), fits.ImageHDU(flag, name="FLG")]).writeto(path)
    if obsid.startswith("x"):
        assert ingest([path], tmp_path / "c.zarr").added == 1
    else:
        with pytest.raises(InputError, match="an id of an exposure"):
            ingest([path], tmp_path / "c.zarr")


def test_a_campaign_that_appears_meanwhile_is_respected(tmp_path, monkeypatch):
    """Two first ingests at once: the second one checks nothing against a campaign it has not seen, and says so."""
    import csstdask.pipeline.ingest as module

    target = tmp_path / "c.zarr"
    first, second = level_1(tmp_path, 7), level_1(tmp_path, 8)
    original = module.scan_files

    def meanwhile(*arguments):
        monkeypatch.setattr(module, "scan_files", original)
        ingest([first], target)
        return original(*arguments)

    monkeypatch.setattr(module, "scan_files", meanwhile)
    with pytest.raises(InputError, match="another ingest has just made"):
        ingest([second], target)
    assert ingest([second], target).added == 1


@pytest.mark.parametrize("value", ["nan", "inf", 0, -1.5, "much"])
def test_invalid_gain_is_refused_with_key_and_file(tmp_path, value):
    """The TOML's value replaces a missing keyword, never a wrong one."""
    good, bad = level_1(tmp_path, 8), level_1(tmp_path, 9)
    fits.setval(bad, "GAIN1", value=value, ext=1)
    summary = ingest([good, bad], tmp_path / "c.zarr")
    assert summary.added == 1
    (failure,) = summary.failures
    assert "GAIN1" in failure["reason"]
    assert bad.name in failure["reason"]


def test_workers_read_the_files_that_the_driver_saw(tmp_path, monkeypatch):
    """Paths are resolved where the command was given, not where a worker happens to be."""
    for night in ("one", "other"):
        (tmp_path / night).mkdir()
    mine = level_1(tmp_path / "one", 8)
    theirs = level_1(tmp_path / "other", 8, arrays=planes((32, 32), 99))
    assert mine.name == theirs.name
    monkeypatch.chdir(tmp_path / "one")
    (source,) = scan_file(Path(mine.name), load_instrument("csst")).units
    monkeypatch.chdir(tmp_path / "other")
    assert [Path(file) for file in source.files] == [mine]


def test_ids_that_make_the_same_folder_are_two_exposures_or_refused(tmp_path):
    """Ids with slashes and the like get a digest; an id that only differs by a space is refused."""
    files = [
        level_1(tmp_path, 8, obsid="1").rename(tmp_path / f"{number}.fits")
        for number, _ in enumerate(("NGC 1/a", "NGC_1_a", "NGC 1:a", "night one", "night_one"))
    ]
    for path, obsid in zip(files, ("NGC 1/a", "NGC_1_a", "NGC 1:a", "night one", "night_one"), strict=True):
        fits.setval(path, "OBSID", value=obsid)
    summary = ingest(files[:4], tmp_path / "c.zarr")
    assert summary.failures == []
    names = csstdask.open_campaign(tmp_path / "c.zarr")["exposure"].values.tolist()
    assert len(set(names)) == 4
    assert {"NGC_1_a", "night_one"} < set(names)
    summary = ingest([files[4]], tmp_path / "c.zarr")
    assert "'night one'" in summary.failures[0]["reason"]
    assert ingest(files[:4], tmp_path / "c.zarr").unchanged == 4


def test_directories_and_lists(tmp_path):
    night = tmp_path / "night" / "deep"
    night.mkdir(parents=True)
    files = [level_1(night, chip) for chip in (7, 8, 9)]
    (night / "log.txt").write_text("no FITS file")
    assert ingest([tmp_path / "night"], tmp_path / "a.zarr").added == 3
    listed = tmp_path / "night.lis"
    listed.write_text(f"# two of them\nnight/deep/{files[0].name}\n\n{files[1]}\n")
    assert ingest([f"@{listed}"], tmp_path / "b.zarr").added == 2
    (tmp_path / "empty").mkdir()
    summary = ingest([tmp_path / "night", tmp_path / "empty", f"@{tmp_path / 'none.lis'}"], tmp_path / "d.zarr")
    assert summary.added == 3
    assert ["empty" in summary.failures[0]["reason"], "none.lis" in summary.failures[1]["reason"]] == [True, True]


def test_a_campaign_of_an_earlier_version_takes_more_exposures(tmp_path):
    target = tmp_path / "c.zarr"
    ingest([level_1(tmp_path, 8)], target)
    for name in ("planes", "file_units", "unit_scale", "exposure_id"):
        shutil.rmtree(target / name)
    assert ingest([level_1(tmp_path, 8), level_1(tmp_path, 9)], target).added == 1
    campaign = csstdask.open_campaign(target)
    assert int(campaign["present"].sum()) == 2
    assert "SCI" in str(campaign["planes"].sel(exposure="10100000001", detector=9).values)
