"""Bad input, through the command line: one clear line that names it, the right exit code, and the rest goes on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from make_fits import NAME, level_1, planes, primary, science_header
from shell import csstdask_command

import csstdask


def write(path, *hdus):
    fits.HDUList(list(hdus)).writeto(path, overwrite=True)
    return path


def image(data, **keys):
    header = science_header()
    header.update(keys)
    return fits.ImageHDU(data, header=header, name="SCI")


def truncated(folder):
    path = level_1(folder, 9)
    path.write_bytes(path.read_bytes()[:20000])
    return path, "truncated"


def truncated_in_the_header(folder):
    path = level_1(folder, 9)
    path.write_bytes(path.read_bytes()[:1000])
    return path, "cannot be read"


def not_fits(folder):
    path = folder / "notes.fits"
    path.write_text("these are my notes")
    return path, "cannot be read"


def no_data(folder):
    return write(
        folder / NAME.format(obsid="1", chip=9), fits.PrimaryHDU(header=primary(9)), image(None)
    ), "without data"


def no_image_at_all(folder):
    return write(folder / NAME.format(obsid="1", chip=9), fits.PrimaryHDU(header=primary(9))), "no science image"


def three_dimensions(folder):
    hdu = image(np.zeros((2, 8, 8), np.float32))
    return write(folder / NAME.format(obsid="1", chip=9), fits.PrimaryHDU(header=primary(9)), hdu), "3-D"


def another_shape(folder):
    return level_1(folder, 9, arrays=planes((10, 10))), "(10, 10)"


def other_units(folder):
    path = level_1(folder, 9)
    fits.setval(path, "BUNIT", value="electron", ext=1)
    return path, "separate campaign"


def unknown_units(folder):
    path = level_1(folder, 9)
    fits.setval(path, "BUNIT", value="furlong", ext=1)
    return path, "furlong"


def planes_of_two_shapes(folder):
    sci, wht, flag = planes()
    return level_1(folder, 9, arrays=(sci, wht[:-1], flag)), "science plane's"


def missing_exptime(folder):
    return level_1(folder, 9, EXPTIME=None), "EXPTIME"


def missing_value(folder):
    return level_1(folder, 9, EXPTIME=-9999), "EXPTIME"


def exptime_is_text(folder):
    return level_1(folder, 9, EXPTIME="long"), "a finite number"


def zero_exptime(folder):
    return level_1(folder, 9, EXPTIME=0.0), "0.0 s"


def unknown_detector(folder):
    return level_1(folder, 9, DETECTOR="MSC_77"), "detector 77"


def flag_overflow(folder):
    sci, wht, flag = planes()
    flag = flag.astype(np.int64)
    flag[0, 0] = 2**40
    return level_1(folder, 9, arrays=(sci, wht, flag)), "integer overflow"


def a_directory(folder):
    path = folder / "night.fits"
    path.mkdir()
    return path, "directory"


def absent(folder):
    return folder / "no" / "such*.fits", "no such file"


BAD = [
    truncated, truncated_in_the_header, not_fits, no_data, no_image_at_all, three_dimensions, another_shape,
    other_units, unknown_units, planes_of_two_shapes, missing_exptime, missing_value, exptime_is_text, zero_exptime,
    unknown_detector, flag_overflow, a_directory, absent,
]  # fmt: skip


@pytest.mark.parametrize("make", BAD, ids=lambda f: f.__name__)
def test_a_bad_file_among_good_ones(tmp_path, make):
    """The good file is ingested, the bad one named with what was found, exit code 1, no traceback."""
    bad, message = make(tmp_path)
    good = level_1(tmp_path, 8)
    done = csstdask_command("ingest", good, bad, "--to", tmp_path / "c.zarr")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = {line for line in done.stderr.splitlines() if line.startswith("failed ")}
    assert message in line
    assert Path(bad).name in line or "10100000001/9" in line
    assert int(csstdask.open_campaign(tmp_path / "c.zarr")["present"].sum()) == 1


def test_only_bad_files(tmp_path):
    bad, message = missing_exptime(tmp_path)
    done = csstdask_command("ingest", bad, "--to", tmp_path / "c.zarr")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "c.zarr").exists()


def test_an_empty_glob(tmp_path):
    done = csstdask_command("ingest", tmp_path / "*.fits", "--to", tmp_path / "c.zarr")
    assert done.returncode == 2
    assert "no such file" in done.stderr
    assert csstdask_command("ingest", "--to", tmp_path / "c.zarr").returncode == 2


def test_a_target_that_is_a_file(tmp_path):
    (tmp_path / "c.zarr").write_text("")
    done = csstdask_command("ingest", level_1(tmp_path), "--to", tmp_path / "c.zarr")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "a file" in done.stderr


@pytest.fixture
def mounted(tmp_path, request):
    """A small file system, by default of 3 MiB, that can be made read-only."""
    size = getattr(request, "param", 3)
    place = tmp_path / "small"
    place.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", place], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("cannot mount a tmpfs here (needs root)")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_read_only_target(tmp_path, mounted):
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    done = csstdask_command("ingest", level_1(tmp_path), "--to", mounted / "c.zarr")
    assert done.returncode == 2
    assert "Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line]) == 1


@pytest.mark.parametrize("mounted", [5], indirect=True)
def test_a_full_disk_in_a_run(small_campaign, mounted, tmp_path):
    """Every unit that did not fit is named, what fitted is kept, and with room the run goes on."""
    filler = mounted / "filler"
    filler.write_bytes(b"x" * (5 * 2**20 - 260_000))
    done = csstdask_command("run", small_campaign, "--to", mounted / "run.zarr", "--workers", "1")
    assert done.returncode == 1, done.stderr
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    filler.unlink()
    again = csstdask_command("run", small_campaign, "--to", mounted / "run.zarr")
    assert again.returncode == 0, again.stderr


def test_a_full_disk_in_an_ingest(mounted, tmp_path):
    files = [level_1(tmp_path, chip, arrays=planes((512, 512), chip)) for chip in (6, 7, 8)]
    done = csstdask_command("ingest", *files, "--to", mounted / "c.zarr", "--workers", "1")
    assert done.returncode == 1, done.stderr
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    campaign = csstdask.open_campaign(mounted / "c.zarr")
    assert int(campaign["present"].sum()) < 3


def test_nan_and_infinite_pixels_come_through(tmp_path):
    sci, wht, flag = planes((128, 128))
    sci[5, 5], sci[6, 6], wht[7, 7], wht[8, 8] = np.nan, np.inf, np.nan, -1
    path = level_1(tmp_path, 8, arrays=(sci, wht, flag))
    assert csstdask_command("ingest", path, "--to", tmp_path / "c.zarr").returncode == 0
    done = csstdask_command("run", tmp_path / "c.zarr", "--to", tmp_path / "r.zarr")
    assert done.returncode == 0, done.stderr
    campaign = csstdask.open_campaign(tmp_path / "c.zarr")
    one = campaign.sel(exposure="10100000001", detector=8)
    assert np.array_equal(one["sci"].values, sci, equal_nan=True)
    assert one["wht"].values[[7, 8], [7, 8]].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "CAMPAIGN", "--to", "OUT", "--steps", "magic"], "background, detect"),
        (["run", "CAMPAIGN", "--to", "OUT", "--select", "band=g"], "--select"),
        (["run", "CAMPAIGN", "--to", "OUT", "--scheduler", "magic"], "threads, processes"),
        (["run", "CAMPAIGN", "--to", "OUT", "--config", "none.toml"], "none.toml"),
        (["run", "CAMPAIGN", "--to", "OUT", "--workers", "100000"], "fits"),
        (["run", "none.zarr", "--to", "OUT"], "none.zarr"),
        (["status", "none.zarr"], "none.zarr"),
        (["status", "CAMPAIGN"], "wanted a csstdask run"),
        (["report", "none.zarr", "--to", "x.html"], "none.zarr"),
        (["export", "none.zarr", "--to", "out"], "none.zarr"),
        (["mock", "none.toml", "--to", "OUT"], "none.toml"),
        (["train", "cosmicray"], "--to"),
        (["train", "cosmicray", "--to", "t", "--data", "nowhere"], "nowhere"),
        (["train", "weather"], "choose one of: cosmicray"),
        (["train", "zeropoint"], "--to"),
        (["evaluate", "psf"], "missing option '--recipes' (see `csstdask evaluate psf --help`)"),
        (["fly"], "fly"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(small_campaign, tmp_path, arguments, message):
    words = {"CAMPAIGN": small_campaign, "OUT": tmp_path / "out.zarr"}
    done = csstdask_command(*[words.get(word, word) for word in arguments], cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("text", "message"), [(b"[detect]\nmodel = 'nope'\n", "lacosmic"), (b"\xff\xfe", "no readable text")]
)
def test_configurations_that_cannot_be_used(small_campaign, tmp_path, text, message):
    (tmp_path / "run.toml").write_bytes(text)
    done = csstdask_command("run", small_campaign, "--to", tmp_path / "r.zarr", "--config", tmp_path / "run.toml")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_that_do_not_exist_are_named(small_campaign, tmp_path):
    (tmp_path / "run.toml").write_text("[detect]\nthresh = 0.5\n")
    done = csstdask_command("run", small_campaign, "--to", tmp_path / "r.zarr", "--config", tmp_path / "run.toml")
    assert done.returncode == 2
    assert "detect.thresh" in done.stderr


def test_an_older_schema(small_campaign, tmp_path):
    import shutil

    import zarr

    shutil.copytree(small_campaign, tmp_path / "old.zarr")
    zarr.open_group(tmp_path / "old.zarr", use_consolidated=False).attrs["schema_version"] = 0
    for arguments in (
        ["run", tmp_path / "old.zarr", "--to", tmp_path / "r.zarr"],
        ["ingest", level_1(tmp_path), "--to", tmp_path / "old.zarr"],
    ):
        done = csstdask_command(*arguments)
        assert done.returncode == 2
        assert "schema version 0; wanted 3" in done.stderr
    assert not os.path.exists(tmp_path / "r.zarr")  # noqa: PTH110
