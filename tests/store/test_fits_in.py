"""FITS in: every layout a camera may have, through the same door."""

from __future__ import annotations

import gzip
import shutil

import numpy as np
import pytest
from astropy.io import fits
from make_fits import NAME, level_1, planes, primary, science_header

from csstdask.core.errors import InputError
from csstdask.instrument import electrons_per_unit, load_instrument
from csstdask.instrument.registry import parse_instrument
from csstdask.store.fits_planes import read_flag, read_headers, read_sci, read_weight
from csstdask.store.fits_scan import companion_of, scan_file

CSST = load_instrument("csst")


def test_csst_level_1_in_one_file(tmp_path):
    sci, wht, flag = planes(seed=8)
    (unit,) = scan_file(level_1(tmp_path), CSST).units
    assert (unit.exposure, unit.detector, unit.kind, unit.band) == ("10100000001", 8, "imaging", "g")
    assert (unit.units, unit.exptime, unit.gain, unit.read_noise) == ("electron s-1", 150.0, 1.1, 5.0)
    assert np.datetime64(unit.time, "us") == np.datetime64("2028-03-01T00:00:00")
    assert np.array_equal(read_sci(unit), sci)
    assert np.array_equal(read_weight(unit), wht)
    assert np.array_equal(read_flag(unit, CSST), flag)


def test_csst_level_1_as_sci_err_dq(tmp_path):
    sci, _, flag = planes()
    error = np.random.default_rng(1).uniform(0.01, 3, sci.shape).astype(">f4")
    error[0, :4] = [0, -1, np.nan, np.inf]
    path = tmp_path / NAME.format(obsid="10100000001", chip=1)
    hdus = [fits.PrimaryHDU(header=primary(1)), fits.ImageHDU(sci, header=science_header(), name="SCI")]
    hdus += [fits.ImageHDU(error, name="ERR"), fits.ImageHDU(flag.astype(np.int16), name="DQ")]
    fits.HDUList(hdus).writeto(path)
    (unit,) = scan_file(path, CSST).units
    assert unit.kind == "slitless"
    wht = read_weight(unit)
    assert (wht[0, :4] == 0).all()
    np.testing.assert_allclose(1 / np.sqrt(wht[1:]), error[1:], rtol=1e-6)
    assert np.array_equal(read_flag(unit, CSST), flag)


def test_csst_level_1_as_three_files(tmp_path):
    sci, wht, flag = planes(seed=3)
    stem = "CSST_MSC_MS_SCIE_20280301000000_20280301000230_10100000001_08_"
    for what, data in (("img", sci), ("wht", wht), ("flg", flag)):
        header = science_header() if what == "img" else None
        fits.HDUList([fits.PrimaryHDU(header=primary()), fits.ImageHDU(data, header=header)]).writeto(
            tmp_path / f"{stem}{what}.fits"
        )
    (unit,) = scan_file(tmp_path / f"{stem}img.fits", CSST).units
    assert len(unit.files) == 3
    assert np.array_equal(read_weight(unit), wht)
    assert np.array_equal(read_flag(unit, CSST), flag)
    assert companion_of(tmp_path / f"{stem}wht.fits", CSST) == tmp_path / f"{stem}img.fits"


@pytest.mark.parametrize(("kind", "code"), [("dark", "CLD"), ("bias", "CLB"), ("flat", "CLF"), ("cosmic_rays", "CRS")])
@pytest.mark.parametrize("in_primary", [True, False])
def test_raw_frames_have_separate_kinds(tmp_path, kind, code, in_primary):
    raw = np.random.default_rng(0).integers(400, 65000, (40, 30)).astype(np.uint16)
    path = tmp_path / f"CSST_MSC_MS_{code}_20280301000000_20280301000230_10100000007_11_L0_V01.fits"
    header = primary(11, "10100000007", EXPTIME=0.0 if kind == "bias" else 300.0)
    hdus = [fits.PrimaryHDU(raw, header=header)] if in_primary else [fits.PrimaryHDU(header=header), fits.ImageHDU(raw)]
    fits.HDUList(hdus).writeto(path)
    (unit,) = scan_file(path, CSST).units
    assert (unit.kind, unit.units, unit.detector) == (kind, "adu", 11)
    assert unit.exposure == ("10100000007_CRS" if kind == "cosmic_rays" else "10100000007")
    sci = read_sci(unit)
    assert np.array_equal(sci, raw)
    variance = (np.maximum(raw.astype(float) - 500, 0) * 1.1 + 25) / 1.1**2
    np.testing.assert_allclose(read_weight(unit), 1 / variance, rtol=1e-5)
    assert not read_flag(unit, CSST).any()


def test_stis_imsets_null_planes_and_overscan(tmp_path):
    """Two halves of a pair, ERR and DQ without data: trimmed, CRPIX and LTV moved, error from overscan-free counts."""
    stis = load_instrument("hst_stis")
    rng = np.random.default_rng(5)
    hdus = [fits.PrimaryHDU()]
    hdus[0].header.update({"TELESCOP": "HST", "INSTRUME": "STIS", "DETECTOR": "CCD", "ROOTNAME": "o1", "CCDGAIN": 1})
    raw = []
    for version in (1, 2):
        counts = rng.integers(1400, 1600, (1034, 532)).astype(np.uint16)
        counts[10:1022, 13:519] += 100
        raw.append(counts)
        sci = fits.ImageHDU(counts, name="SCI", ver=version)
        sci.header.update(
            {"EXPTIME": 900.0 + version, "BUNIT": "COUNTS", "CRPIX1": 269.7, "CRPIX2": 526.7, "LTV1": 10.75}
        )
        hdus += [sci, fits.ImageHDU(name="ERR", ver=version), fits.ImageHDU(name="DQ", ver=version)]
    path = tmp_path / "o1_raw.fits"
    fits.HDUList(hdus).writeto(path)
    units = scan_file(path, stis).units
    assert [unit.exposure for unit in units] == ["o1_1", "o1_2"]
    assert [unit.exptime for unit in units] == [901.0, 902.0]
    for unit, counts in zip(units, raw, strict=True):
        assert unit.shape == (1012, 506)
        sci = read_sci(unit)
        assert np.array_equal(sci, counts[10:1022, 13:519])
        header = fits.Header.fromstring(read_headers(unit)[0], sep="\n")
        assert header["CRPIX1"] == pytest.approx(269.7 - 13)
        assert header["CRPIX2"] == pytest.approx(526.7 - 10)
        assert header["LTV1"] == pytest.approx(10.75 - 13)
        # Counts above the overscan's 1500 are signal: 100 e- and 4.5 e- read noise.
        assert 1 / np.median(read_weight(unit)) == pytest.approx(100 + 4.5**2, rel=0.1)
        assert (read_flag(unit, stis) == 0).all()


def test_planes_that_a_header_numbers_move_to_our_bits(tmp_path):
    """The header of an LSST mask names its bits; unknown planes are kept as ``other``."""
    hsc = load_instrument("hsc")
    mask = np.zeros((20, 20), np.uint16)
    mask[0, :5] = [1 << 0, 1 << 5, 1 << 7, (1 << 5) | (1 << 0), 1 << 9]
    image = fits.ImageHDU(mask)
    image.header.update({"MP_CR": 0, "MP_SAT": 5, "MP_MYOWN": 7})
    planes_of = [fits.PrimaryHDU(header=fits.Header({"EXPTIME": 0.0})), fits.ImageHDU(np.ones((20, 20), np.float32))]
    path = tmp_path / "HSC-0001234-050.fits"
    fits.HDUList([*planes_of, image, fits.ImageHDU(np.full((20, 20), 4, np.float32))]).writeto(path)
    (unit,) = scan_file(path, hsc).units
    assert (unit.exposure, unit.detector, unit.exptime) == ("0001234", 50, 0.0)
    bits = hsc.flags.bits
    expected = [bits["cr"], bits["sat"], bits["other"], bits["cr"] | bits["sat"], bits["other"], 0]
    assert read_flag(unit, hsc)[0, :6].tolist() == expected
    assert (read_weight(unit) == 0.25).all()


def test_a_value_that_means_bad(tmp_path):
    wircam = load_instrument("cfht_wircam")
    counts = np.full((30, 30), 7100, np.uint16)
    counts[3, 4], counts[5, 6] = 0, 65535
    image = fits.ImageHDU(counts, name="HAWAII-2RG-#77")
    image.header.update({"INSTRUME": "WIRCam", "OBSID": 5, "EXPTIME": 10.0, "GAIN": 4.0, "RDNOISE": 20.0})
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(tmp_path / "w.fits")
    (unit,) = scan_file(tmp_path / "w.fits", wircam).units
    assert unit.detector == 77
    flag = read_flag(unit, wircam)
    assert flag[3, 4] == wircam.flags.mask("bad")
    assert flag[5, 6] == wircam.flags.mask("saturated")
    assert np.count_nonzero(flag) == 2
    # Above the pedestal of 7000 lie 100 adu: 400 e- of Poisson noise, and 20 e- of read noise squared.
    assert 1 / read_weight(unit)[0, 0] == pytest.approx((400 + 400) / 16, rel=1e-5)


def test_codes_become_bits_and_unknown_codes_are_refused(tmp_path):
    decam = load_instrument("decam")
    sci, wht, _ = planes((20, 20))
    codes = np.zeros((20, 20), np.int32)
    codes[0, :6] = [1, 3, 4, 5, 6, 8]
    for name, data in (("ooi", sci), ("oow", wht), ("ood", codes)):
        header = fits.Header({"INSTRUME": "DECam", "OBSID": "ct1", "EXPTIME": 90.0, "FILTER": "g DECam"})
        image = fits.ImageHDU(data, name="N4")
        image.header["CCDNUM"] = 35
        fits.HDUList([fits.PrimaryHDU(header=header), image]).writeto(tmp_path / f"c4d_{name}_g.fits")
    (unit,) = scan_file(tmp_path / "c4d_ooi_g.fits", decam).units
    assert unit.band == "g"
    assert read_flag(unit, decam)[0, :7].tolist() == [1, 4, 8, 16, 32, 128, 0]
    codes[5, 5] = 99
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(codes, name="N4")]).writeto(
        tmp_path / "c4d_ood_g.fits", overwrite=True
    )
    with pytest.raises(InputError, match=r"\[99\]"):
        read_flag(unit, decam)


@pytest.mark.parametrize("how", ["gzip", "fpack"])
def test_compressed_files(tmp_path, how):
    sci, wht, flag = planes(seed=8)
    path = level_1(tmp_path)
    if how == "gzip":
        packed = path.with_name(path.name + ".gz")
        with path.open("rb") as plain, gzip.open(packed, "wb") as stream:
            shutil.copyfileobj(plain, stream)
    else:
        packed = path.with_name(path.name + ".fz")
        lossless = {"compression_type": "GZIP_2", "quantize_level": 0}
        hdus = [fits.PrimaryHDU(header=primary())]
        hdus += [fits.CompImageHDU(sci, header=science_header(), name="SCI", **lossless)]
        hdus += [fits.CompImageHDU(wht, name="WHT", **lossless)]
        hdus += [fits.CompImageHDU(flag, name="FLG", compression_type="RICE_1")]
        fits.HDUList(hdus).writeto(packed)
    (unit,) = scan_file(packed, CSST).units
    assert np.array_equal(read_sci(unit), sci)
    assert np.array_equal(read_weight(unit), wht)
    assert np.array_equal(read_flag(unit, CSST), flag)


def test_exposure_id_from_header_then_name_then_stem(tmp_path):
    path = level_1(tmp_path, OBSID=None)
    assert scan_file(path, CSST).units[0].exposure == "10100000001"
    odd = path.with_name("night one.fits")
    path.rename(odd)
    assert scan_file(odd, CSST).units[0].exposure == "night_one"


def test_a_users_own_camera_with_variance_and_a_bad_pixel_map(tmp_path):
    text = """
name = "mine"
units = "adu"
electronics = { gain = 2.0, read_noise = 3.0, bad_pixel_map = "BPM" }
flags = { bits = { bad = 1, cosmic_ray = 2, inpainted = 4 } }
layouts = [{ name = "one", sci = { hdu = [0] }, weight = { hdu = ["VAR"], kind = "variance" } }]
detectors = [{ id = 1 }]
""".replace("BPM", str(tmp_path / "bpm.fits"))
    camera = parse_instrument(text, "mine.toml")
    sci, wht, _ = planes((10, 12))
    bad = np.zeros((10, 12), np.uint8)
    bad[2, 3] = 1
    fits.writeto(tmp_path / "bpm.fits", bad)
    hdus = [fits.PrimaryHDU(sci, header=fits.Header({"EXPTIME": 5.0})), fits.ImageHDU(1 / wht, name="VAR")]
    fits.HDUList(hdus).writeto(tmp_path / "a.fits")
    (unit,) = scan_file(tmp_path / "a.fits", camera).units
    assert (unit.exposure, unit.detector) == ("a", 1)
    np.testing.assert_allclose(read_weight(unit), wht, rtol=1e-6)
    assert np.argwhere(read_flag(unit, camera) == 1).tolist() == [[2, 3]]


def test_electrons_per_unit():
    assert electrons_per_unit("electron s-1", 150, 1.1) == 150
    assert electrons_per_unit("adu", 150, 1.1) == 1.1
    assert electrons_per_unit("adu s-1", 150, 2) == 300
    assert electrons_per_unit("electron", 150, 2) == 1


def test_saturation_of_raw_frames_is_the_converters_or_the_full_well(tmp_path):
    raw = np.full((10, 10), 1000, np.uint16)
    raw[0, :3] = [65534, 65535, 65535]
    path = tmp_path / "CSST_MSC_MS_CLD_20280301000000_20280301000230_10100000007_11_L0_V01.fits"
    fits.HDUList([fits.PrimaryHDU(header=primary(11)), fits.ImageHDU(raw)]).writeto(path)
    flag = read_flag(scan_file(path, CSST).units[0], CSST)
    assert np.argwhere(flag).tolist() == [[0, 1], [0, 2]]
    assert flag.max() == 8


def test_raw_frames_of_unknown_shape_are_refused(tmp_path):
    path = tmp_path / "o2_raw.fits"
    header = fits.Header({"TELESCOP": "HST", "INSTRUME": "STIS", "DETECTOR": "CCD", "ROOTNAME": "o2", "CCDGAIN": 1})
    planes_of_raw = [
        fits.ImageHDU(np.zeros((1044, 1062), np.uint16), name="SCI"),
        fits.ImageHDU(name="ERR"),
        fits.ImageHDU(name="DQ"),
    ]
    fits.HDUList([fits.PrimaryHDU(header=header), *planes_of_raw]).writeto(path)
    found = scan_file(path, load_instrument("hst_stis"))
    assert found.units == []
    (problem,) = found.problems
    assert "(1044, 1062); wanted (1034, 532)" in str(problem)
