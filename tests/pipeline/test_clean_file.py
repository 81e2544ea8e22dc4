"""One file in, one file out: the repairs of a run, in the planes that the file has."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from make_fits import level_1, planes, primary, science_header
from quick import quick_settings
from shell import csstdask_command

import csstdask
from csstdask.core.errors import InputError
from csstdask.pipeline.clean_file import clean_file
from csstdask.pipeline.ingest import ingest
from csstdask.pipeline.run import run

SHAPE = (96, 80)
ADDED = 40.0
"""Rate of a cosmic ray's pixels [e-/s], 800 sigma."""


@pytest.fixture
def frame(tmp_path):
    """A CSST frame with a cosmic ray, and an old bit of another pipeline elsewhere."""
    sci, wht, flag = planes(SHAPE)
    flag[:] = 0
    sci[40, 30:38] += ADDED
    flag[10, 10] = 16
    return level_1(tmp_path, 8, arrays=(sci, wht, flag))


def test_a_cleaned_file_is_that_of_a_run(frame, tmp_path):
    config = quick_settings()
    summary = clean_file(frame, tmp_path / "out.fits", config=config)
    ingest([frame], tmp_path / "c.zarr")
    run(tmp_path / "c.zarr", tmp_path / "r.zarr", config=config)
    product = csstdask.open_run(tmp_path / "r.zarr").sel(exposure="10100000001", detector=8)
    with fits.open(frame) as before, fits.open(tmp_path / "out.fits") as after:
        assert [hdu.name for hdu in after] == ["PRIMARY", "SCI", "WHT", "FLG", "CR_MASK"]
        mask = after["CR_MASK"].data.astype(bool)
        assert np.array_equal(mask, product["cr_mask"].values)
        assert mask[40, 30:38].all()
        np.testing.assert_allclose(after["SCI"].data, product["clean"].values, rtol=1e-6)
        assert np.array_equal(after["SCI"].data[~mask], before["SCI"].data[~mask])
        np.testing.assert_allclose(after["WHT"].data[mask], product["clean_wht"].values[mask], rtol=1e-5)
        assert np.array_equal(after["WHT"].data[~mask], before["WHT"].data[~mask])
        assert np.array_equal(after["FLG"].data, product["flag_out"].values)
        assert after["SCI"].header["MYKEY"] == "kept"
        assert after[0].header["CSDCRMOD"] == config.detect.model
        assert "csstdask" in str(after[0].header["HISTORY"])
    (chip,) = summary.chips
    assert (chip.n_hit, chip.n_pixels) == (int(mask.sum()), mask.size)


def test_weights_and_units_of_the_file_are_kept(tmp_path):
    """Counts with ERR and DQ: repaired pixels are counts, and ERR has their errors."""
    sci, _, _ = planes(SHAPE)
    counts = (sci * 1000).astype(np.float32)
    counts[40, 30:38] += 20000
    header = fits.Header({"TELESCOP": "HST", "INSTRUME": "WFC3", "DETECTOR": "UVIS", "ROOTNAME": "i1", "EXPTIME": 5.0})
    science = fits.ImageHDU(counts, name="SCI", header=fits.Header({"CCDCHIP": 1, "BUNIT": "ELECTRONS"}))
    error = fits.ImageHDU(np.full(SHAPE, 50, np.float32), name="ERR")
    quality = fits.ImageHDU(np.zeros(SHAPE, np.int16), name="DQ")
    table = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=[7])], name="WCSCORR")
    path = tmp_path / "i1_flt.fits"
    fits.HDUList([fits.PrimaryHDU(header=header), science, error, quality, table]).writeto(path)
    clean_file(path, tmp_path / "out.fits", config=quick_settings())
    with fits.open(tmp_path / "out.fits") as after:
        mask = after["CR_MASK"].data.astype(bool)
        assert mask[40, 30:38].all()
        assert np.abs(after["SCI"].data[40, 30:38] - 200).max() < 300
        assert (after["ERR"].data[mask] > 40).all()
        assert (after["ERR"].data[~mask] == 50).all()
        assert (after["DQ"].data[mask] & 8192 == 8192).all()
        assert after["WCSCORR"].data["a"].tolist() == [7]


def test_every_chip_of_a_file_and_a_bad_one(tmp_path):
    hdus = [fits.PrimaryHDU(header=primary())]
    del hdus[0].header["DETECTOR"]
    for version, chip in enumerate((7, 8, 99), 1):
        for name, plane in zip(("SCI", "WHT", "FLG"), planes(SHAPE, chip), strict=True):
            header = science_header() if name == "SCI" else None
            hdus.append(fits.ImageHDU(plane, header=header, name=name, ver=version))
            hdus[-1].header["DETECTOR"] = f"MSC_{chip:02d}"
    path = tmp_path / "m.fits"
    fits.HDUList(hdus).writeto(path)
    summary = clean_file(path, tmp_path / "out.fits", config=quick_settings())
    assert [chip.name.rpartition(" ")[2] for chip in summary.chips] == ["7", "8"]
    assert "detector 99" in summary.problems[0]
    with fits.open(path) as before, fits.open(tmp_path / "out.fits") as after:
        assert [hdu.ver for hdu in after if hdu.name == "CR_MASK"] == [1, 2]
        assert np.array_equal(after["SCI", 3].data, before["SCI", 3].data)


def test_raw_integers_of_a_trimmed_frame(tmp_path):
    """The overscan stays as it was; integers become float32; the variance is in a separate HDU."""
    header = fits.Header({"TELESCOP": "HST", "INSTRUME": "STIS", "DETECTOR": "CCD", "ROOTNAME": "o1", "CCDGAIN": 1})
    header.update({"OBSTYPE": "IMAGING", "TARGNAME": "M51"})
    counts = np.random.default_rng(5).normal(1500, 12, (1034, 532)).astype(np.uint16)
    counts[500, 200:206] += 9000
    science = fits.ImageHDU(counts, name="SCI")
    science.header.update({"EXPTIME": 900.0, "BUNIT": "COUNTS"})
    path = tmp_path / "o1_raw.fits"
    fits.HDUList(
        [fits.PrimaryHDU(header=header), science, fits.ImageHDU(name="ERR"), fits.ImageHDU(name="DQ")]
    ).writeto(path)
    clean_file(path, tmp_path / "out.fits", config=quick_settings())
    with fits.open(tmp_path / "out.fits") as after:
        assert after["SCI"].data.dtype == np.dtype(">f4")
        assert after["SCI"].data.shape == counts.shape
        assert np.array_equal(after["SCI"].data[:, :13], counts[:, :13])
        mask = after["CR_MASK"].data.astype(bool)
        assert mask[500, 200:206].all()
        assert after["SCI"].data[500, 200:206].max() < 1600
        assert np.isfinite(after["CR_VAR"].data[mask]).all()
        assert np.isnan(after["CR_VAR"].data[~mask]).all()


def test_any_camera_with_a_gain(tmp_path):
    counts = np.random.default_rng(1).normal(500, 10, SHAPE).astype(np.float32)
    counts[40, 30:38] += 5000
    path = tmp_path / "x.fits"
    fits.writeto(path, counts)
    with pytest.raises(InputError, match=r"x\.fits: found no camera that is known; wanted --instrument .* or --gain"):
        clean_file(path, tmp_path / "out.fits")
    clean_file(path, tmp_path / "out.fits", config=quick_settings(), gain=2.0)
    with fits.open(tmp_path / "out.fits") as after:
        assert after["CR_MASK"].data[40, 30:38].all()
        assert np.abs(after[0].data[40, 30:38] - 500).max() < 60
        untouched = after["CR_MASK"].data == 0
        assert np.array_equal(after[0].data[untouched], counts[untouched])


def test_clean_command(frame, tmp_path):
    out = tmp_path / "out.fits"
    done = csstdask_command("clean", frame, "-o", out, "--model", "lacosmic")
    assert done.returncode == 0, done.stderr
    assert "pixels hit" in done.stderr
    again = csstdask_command("clean", frame, "-o", out, "--model", "lacosmic")
    assert again.returncode == 2
    assert "a file that exists; wanted a new name, or --overwrite" in again.stderr
    assert csstdask_command("clean", frame, "-o", out, "--model", "lacosmic", "--overwrite").returncode == 0
    wrong = csstdask_command("clean", frame, "-o", tmp_path / "b.fits", "--model", "no-such-model")
    assert wrong.returncode == 2
    assert "no-such-model" in wrong.stderr
    itself = csstdask_command("clean", frame, "-o", frame, "--overwrite")
    assert itself.returncode == 2
    assert "another name" in itself.stderr


def test_only_science_images_of_an_unknown_camera_are_cleaned(tmp_path):
    """Errors, flags and chips are known by their names; images without names are refused if there are several."""
    rng = np.random.default_rng(1)
    counts = rng.normal(500, 10, SHAPE).astype(np.float32)
    counts[40, 30:38] += 5000
    flags = rng.integers(0, 9, SHAPE).astype(np.int16)
    planes_of = {"CCD1": counts, "CCD2": counts, "ERR": np.sqrt(counts), "DQ": flags}
    path = tmp_path / "x.fits"
    hdus = [fits.ImageHDU(plane, name=name) for name, plane in planes_of.items()]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)
    summary = clean_file(path, tmp_path / "out.fits", config=quick_settings(), gain=2.0)
    assert [one.rpartition(" ")[2] for one in summary.untouched] == ["ERR", "DQ"]
    with fits.open(tmp_path / "out.fits") as after:
        assert [hdu.name for hdu in after].count("CR_MASK") == 2
        assert after["CCD2"].data[40, 30:38].max() < 600
        assert np.array_equal(after["DQ"].data, flags)
        assert after["DQ"].data.dtype == np.dtype(">i2")
        assert np.array_equal(after["ERR"].data, planes_of["ERR"])
    fits.HDUList([fits.PrimaryHDU(), *(fits.ImageHDU(plane) for plane in planes_of.values())]).writeto(
        tmp_path / "y.fits"
    )
    with pytest.raises(InputError, match=r"several images without names \(HDUs 1, 2, 3, 4\)"):
        clean_file(tmp_path / "y.fits", tmp_path / "out2.fits", gain=2.0)
    with pytest.raises(InputError, match="no folder"):
        clean_file(path, tmp_path / "nowhere" / "out.fits", gain=2.0)
