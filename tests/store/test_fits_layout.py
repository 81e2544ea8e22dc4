"""Planes and chips of a FITS file: by name, then keyword, then position; ambiguous files are refused."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData, InverseVariance, StdDevUncertainty, VarianceUncertainty
from make_fits import primary
from plane_files import CHIPS, FLAG, MEF, SCI, SHAPE, csst_file

from csstdask.core.errors import InputError
from csstdask.instrument import load_instrument
from csstdask.instrument.registry import parse_instrument
from csstdask.store.fits_planes import read_flag, read_sci, read_weight
from csstdask.store.fits_scan import scan_file

CSST = load_instrument("csst")


@pytest.mark.parametrize(
    "planes",
    [
        [("SCI", "SCI"), ("ERR", "ERR"), ("MASK", "FLG")],
        [("SCI", "SCI"), ("VAR", "VAR"), ("DQ", "FLG")],
        [("wht", "WHT"), ("sci", "SCI"), ("flg", "FLG")],
        [("FLG", "FLG"), ("WHT", "WHT"), ("SCI", "SCI")],
        [("sci", "SCI"), ("Ivar", "WHT"), ("flags", "FLG")],
        [("RMS", "ERR"), ("DQ", "FLG"), ("SCI", "SCI")],
        [("SCIENCE", "SCI"), ("VARIANCE", "VAR"), ("BPM", "FLG")],
        [("IMAGE", "SCI"), ("MASK", "FLG"), ("VARIANCE", "VAR")],
        [("", "SCI"), ("MASK", "FLG"), ("ERR", "ERR")],
        [("", "SCI"), ("", "WHT"), ("", "FLG")],
        [("SCI", "SCI"), ("", "WHT"), ("FLG", "FLG")],
    ],
    ids=lambda planes: "-".join(name or "none" for name, _ in planes),
)
def test_planes_are_found_by_their_names(tmp_path, planes):
    (unit,) = scan_file(csst_file(tmp_path, *planes), CSST).units
    assert np.array_equal(read_sci(unit), SCI)
    assert (read_weight(unit) == 4).all()
    assert np.array_equal(read_flag(unit, CSST), FLAG)
    found = {plane["hdu"]: plane["name"] for plane in json.loads(unit.planes).values()}
    assert found == {index: name.upper() for index, (name, _) in enumerate(planes, 1)}


@pytest.mark.parametrize(
    "planes",
    [
        [("SCI", "SCI"), ("EXPMAP", "WHT"), ("SEGMENTS", "FLG")],
        [("SCI", "SCI"), ("ERR", "ERR"), ("ERR", "ERR"), ("DQ", "FLG")],
        [("SCI", "SCI"), ("MASK_SAT", "FLG"), ("WHT", "WHT")],
    ],
    ids=lambda planes: "-".join(name for name, _ in planes),
)
def test_ambiguous_planes_are_refused(tmp_path, planes):
    path = csst_file(tmp_path, *planes)
    try:
        found = scan_file(path, CSST)
    except InputError as error:
        problems = [error]
    else:
        assert found.units == []
        problems = found.problems
    (problem,) = problems
    assert "HDU" in str(problem)
    assert path.name in str(problem)


def test_unnamed_images_outside_the_layout_are_errors(tmp_path):
    planes = [("", "SCI"), ("", "WHT"), ("", "FLG")] * 2
    found = scan_file(csst_file(tmp_path, *planes), CSST)
    assert len(found.units) == 1
    assert "images without a name in HDUs 4, 5, 6" in str(found.problems[0])


@pytest.mark.parametrize("kind", [StdDevUncertainty, VarianceUncertainty, InverseVariance])
def test_a_file_that_ccddata_wrote(tmp_path, kind):
    """Science in the primary HDU; MASK, and UNCERT whose UTYPE says what it holds."""
    value = {StdDevUncertainty: 0.5, VarianceUncertainty: 0.25, InverseVariance: 4.0}[kind]
    mask = np.zeros(SHAPE, bool)
    mask[1, 2] = True
    data = CCDData(SCI, unit=u.electron, uncertainty=kind(np.full(SHAPE, value)), mask=mask, header=primary())
    path = tmp_path / "ccd.fits"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.write(path)
    camera = parse_instrument(CHIPS.replace('["SCI"]', '["SCI", 0]').replace("CCDNUM", 'DETECTOR", "X'), "mef.toml")
    camera = camera.model_copy(update={"keywords": load_instrument("csst").keywords})
    with fits.open(path, mode="update") as hdus:
        hdus[0].header["DETECTOR"] = "MSC_03"
    (unit,) = scan_file(path, camera).units
    assert np.array_equal(read_sci(unit), SCI)
    assert (read_weight(unit) == 4).all()
    assert read_flag(unit, camera)[1, 2] == 1


def mef(path, chips, *, order="chip", versions=True, detectors="science", tag="", rotate=0):
    """Write a file of several chips. Chip k holds k in SCI, k / 10 in ERR and its bit in DQ."""
    primary_hdu = fits.PrimaryHDU(header=fits.Header({"EXPTIME": 10.0, "OBSID": "e1"}))
    images = []
    for position, chip in enumerate(chips):
        for name, value in (("SCI", chip), ("ERR", chip / 10), ("DQ", chip)):
            hdu = fits.ImageHDU(np.full(SHAPE, value, np.int16 if name == "DQ" else np.float32))
            hdu.header["EXTNAME"] = f"{name}{tag.format(chip)}"
            if versions:
                hdu.header["EXTVER"] = position + 1
            if detectors == "all" or (detectors == "science" and name == "SCI"):
                hdu.header["CCDNUM"] = chip
            images.append((name, hdu))
    if order == "plane":
        images.sort(key=lambda item: ("SCI", "ERR", "DQ").index(item[0]))
    if order == "backwards":
        images.reverse()
    images = images[rotate:] + images[:rotate]
    fits.HDUList([primary_hdu, *(hdu for _, hdu in images)]).writeto(path)
    return path


@pytest.mark.parametrize("order", ["chip", "plane", "backwards"])
@pytest.mark.parametrize(
    ("versions", "detectors", "tag"),
    [(True, "science", ""), (False, "all", ""), (False, "science", ""), (False, "science", "_{}"), (True, "all", "{}")],
)
def test_each_chip_gets_its_planes(tmp_path, order, versions, detectors, tag):
    path = mef(tmp_path / "m.fits", [3, 1, 4, 2], order=order, versions=versions, detectors=detectors, tag=tag)
    found = scan_file(path, MEF)
    assert found.problems == []
    assert sorted(unit.detector for unit in found.units) == [1, 2, 3, 4]
    for unit in found.units:
        assert (read_sci(unit) == unit.detector).all()
        np.testing.assert_allclose(read_weight(unit), (10 / unit.detector) ** 2, rtol=1e-6)
        assert (read_flag(unit, MEF) == unit.detector).all()


def test_planes_in_another_order_than_their_chips_go_by_the_keyword(tmp_path):
    """Rotated by one plane, the order of SCI and ERR differs; EXTVER is absent, the detector keyword tells."""
    path = mef(tmp_path / "m.fits", [1, 2, 3], versions=False, detectors="all", rotate=1)
    for unit in scan_file(path, MEF).units:
        np.testing.assert_allclose(read_weight(unit), (10 / unit.detector) ** 2, rtol=1e-6)


def test_a_chip_without_its_planes_is_refused_and_the_others_are_not(tmp_path):
    path = mef(tmp_path / "m.fits", [1, 2, 3])
    with fits.open(path, mode="update") as hdus:
        del hdus["ERR", 2]
    found = scan_file(path, MEF)
    assert [unit.detector for unit in found.units] == [1, 3]
    assert "no wht plane of this chip" in str(found.problems[0])
    with fits.open(path, mode="update") as hdus:
        for hdu in hdus[1:]:
            hdu.header.remove("EXTVER", ignore_missing=True)
    found = scan_file(path, MEF)
    assert found.units == []
    assert "2 HDUs ERR for 3 science images" in str(found.problems[0])


def test_planes_that_name_another_detector_are_refused(tmp_path):
    path = mef(tmp_path / "m.fits", [1, 2], detectors="all")
    with fits.open(path, mode="update") as hdus:
        hdus["ERR", 1].header["CCDNUM"], hdus["ERR", 2].header["CCDNUM"] = 2, 1
    found = scan_file(path, MEF)
    assert found.units == []
    assert "detector 2 in HDU 2 ERR; wanted detector 1" in str(found.problems[0])


def test_all_chips_of_wircam(tmp_path):
    """Four HDUs that are named after their chips."""
    header = fits.Header({"INSTRUME": "WIRCam", "OBSID": 1180000, "EXPTIME": 20.0, "MJD-OBS": 54900.5})
    hdus = [fits.PrimaryHDU(header=header)]
    for value, chip in enumerate((52, 54, 60, 77)):
        hdus.append(fits.ImageHDU(np.full(SHAPE, value + 8000, np.uint16), name=f"HAWAII-2RG-#{chip}"))
    fits.HDUList(hdus).writeto(tmp_path / "w.fits")
    found = scan_file(tmp_path / "w.fits", load_instrument("cfht_wircam"))
    assert [(unit.detector, int(read_sci(unit)[0, 0])) for unit in found.units] == [
        (52, 8000), (54, 8001), (60, 8002), (77, 8003)
    ]  # fmt: skip
    assert found.problems == []


def test_all_chips_of_wfpc2(tmp_path):
    header = fits.Header({"TELESCOP": "HST", "INSTRUME": "WFPC2", "ROOTNAME": "u1", "EXPTIME": 40.0, "ATODGAIN": 7.0})
    hdus = [fits.PrimaryHDU(header=header)]
    for chip in (1, 2, 3, 4):
        hdus.append(fits.ImageHDU(np.full(SHAPE, chip, np.float32), name="SCI", ver=chip))
        hdus[-1].header["DETECTOR"] = chip
    fits.HDUList(hdus).writeto(tmp_path / "u1_c0m.fits")
    found = scan_file(tmp_path / "u1_c0m.fits", load_instrument("hst_wfpc2"))
    assert [(unit.detector, float(read_sci(unit)[0, 0])) for unit in found.units] == [(1, 1), (2, 2), (3, 3), (4, 4)]


def decam(folder, science, weights, flags):
    """Write a triplet; each file has chips in the order given."""
    stem = "c4d_130101_{}_g.fits"
    for code, chips in (("ooi", science), ("oow", weights), ("ood", flags)):
        hdus = [fits.PrimaryHDU(header=fits.Header({"INSTRUME": "DECam", "OBSID": "ct4m1", "EXPTIME": 90.0}))]
        for chip in chips:
            value = {"ooi": chip, "oow": chip * 10, "ood": 0 if chip % 2 else 5}[code]
            hdus.append(
                fits.ImageHDU(np.full(SHAPE, value, np.int16 if code == "ood" else np.float32), name=f"N{chip}")
            )
            hdus[-1].header["CCDNUM"] = chip
        fits.HDUList(hdus).writeto(folder / stem.format(code))
    return folder / stem.format("ooi")


@pytest.mark.parametrize("imsets", ["none", "detectors"])
def test_all_chips_of_a_decam_triplet_get_their_planes(tmp_path, imsets):
    camera = load_instrument("decam")
    layout = camera.layouts[0].model_copy(update={"imsets": imsets})
    camera = camera.model_copy(update={"layouts": (layout,)})
    found = scan_file(decam(tmp_path, [3, 1, 2], [1, 2, 3], [2, 3, 1]), camera)
    assert [unit.detector for unit in found.units] == [3, 1, 2]
    for unit in found.units:
        assert (read_sci(unit) == unit.detector).all()
        assert (read_weight(unit) == unit.detector * 10).all()
        assert (read_flag(unit, camera) == (0 if unit.detector % 2 else 16)).all()
        assert {plane["name"] for plane in json.loads(unit.planes).values()} == {f"N{unit.detector}"}


def test_a_triplet_whose_weights_are_of_another_chip_is_refused(tmp_path):
    found = scan_file(decam(tmp_path, [1], [2], [1]), load_instrument("decam"))
    assert found.units == []
    assert "oow" in str(found.problems[0]) or "names that say" in str(found.problems[0])


def test_uvis_without_extver_goes_by_order(tmp_path):
    """astropy counts a missing EXTVER as 1: chip 1 had the ERR and DQ of chip 2."""
    header = fits.Header({"TELESCOP": "HST", "INSTRUME": "WFC3", "DETECTOR": "UVIS", "ROOTNAME": "i1", "EXPTIME": 5.0})
    hdus = [fits.PrimaryHDU(header=header)]
    for chip in (2, 1):
        science = fits.ImageHDU(np.full(SHAPE, chip, np.float32))
        science.header.update({"EXTNAME": "SCI", "CCDCHIP": chip})
        error = fits.ImageHDU(np.full(SHAPE, chip / 10, np.float32))
        error.header["EXTNAME"] = "ERR"
        quality = fits.ImageHDU(np.full(SHAPE, 4 * chip, np.int16))
        quality.header["EXTNAME"] = "DQ"
        hdus += [science, error, quality]
    fits.HDUList(hdus).writeto(tmp_path / "i1_flt.fits")
    camera = load_instrument("hst_wfc3_uvis")
    units = scan_file(tmp_path / "i1_flt.fits", camera).units
    assert [unit.detector for unit in units] == [2, 1]
    for unit in units:
        np.testing.assert_allclose(read_weight(unit), (10 / unit.detector) ** 2, rtol=1e-6)
        assert (read_flag(unit, camera) == 4 * unit.detector).all()
        assert json.loads(unit.planes)["wht"]["found_by"] == "name and order"


def test_positions_of_further_chips_go_by_the_detector_keyword(tmp_path):
    camera = parse_instrument(
        CHIPS[: CHIPS.index("[[layouts]]")] + '[[layouts]]\nname = "raw"\nsci = { hdu = [1] }\n', "raw.toml"
    )
    hdus = [fits.PrimaryHDU(header=fits.Header({"EXPTIME": 10.0, "OBSID": "e1"}))]
    for chip in (2, 1, 4):
        hdus.append(fits.ImageHDU(np.full(SHAPE, chip, np.float32)))
        hdus[-1].header["CCDNUM"] = chip
    fits.HDUList(hdus).writeto(tmp_path / "r.fits")
    found = scan_file(tmp_path / "r.fits", camera)
    assert [(unit.detector, float(read_sci(unit)[0, 0])) for unit in found.units] == [(2, 2), (1, 1), (4, 4)]


def uvis(path, names, *, versions=None, chips=(2, 1)):
    """Write UVIS planes of the given names, chip after chip; each holds its chip's number."""
    header = fits.Header({"TELESCOP": "HST", "INSTRUME": "WFC3", "DETECTOR": "UVIS", "ROOTNAME": "i1", "EXPTIME": 5.0})
    hdus = [fits.PrimaryHDU(header=header)]
    for index, name in enumerate(names):
        chip = chips[index // 3]
        value = (chip, chip / 10, 4 * chip)[index % 3]
        hdu = fits.ImageHDU(np.full(SHAPE, value, np.int16 if index % 3 == 2 else np.float32))
        hdu.header["EXTNAME"] = name
        if index % 3 == 0:
            hdu.header["CCDCHIP"] = chip
        if versions:
            hdu.header["EXTVER"] = versions[index]
        hdus.append(hdu)
    fits.HDUList(hdus).writeto(path)
    return path


def test_a_plain_name_does_not_hide_one_with_a_chip(tmp_path):
    camera = load_instrument("hst_wfc3_uvis")
    found = scan_file(uvis(tmp_path / "i.fits", ["SCI", "ERR", "DQ", "SCI_2", "ERR_2", "DQ_2"]), camera)
    assert [unit.detector for unit in found.units] == [2, 1]
    for unit in found.units:
        np.testing.assert_allclose(read_weight(unit), (10 / unit.detector) ** 2, rtol=1e-6)
        assert (read_flag(unit, camera) == 4 * unit.detector).all()


def test_running_numbers_are_no_chips(tmp_path):
    """EXTVER that counts all HDUs matches by chance: SCI 1, 2 with ERR 2, 3 gave chip 2 the errors of chip 1."""
    names = ["SCI", "ERR", "DQ", "SCI", "ERR", "DQ"]
    found = scan_file(uvis(tmp_path / "i.fits", names, versions=[1, 2, 2, 2, 3, 3]), load_instrument("hst_wfc3_uvis"))
    assert found.units == []
    assert len(found.problems) == 2


@pytest.mark.parametrize("second", [{"CCDNUM": 2}, {"CCDNUM": 1}])
@pytest.mark.parametrize("in_primary", [True, False])
def test_further_chips_that_a_position_misses_are_named(tmp_path, second, in_primary):
    """A layout of positions with optional planes; the keyword of the first chip in its own header or the primary."""
    text = CHIPS[: CHIPS.index("[[layouts]]")] + (
        '[[layouts]]\nname = "raw"\nsci = { hdu = [1] }\nweight = { hdu = ["ERR"], kind = "error", optional = true }\n'
    )
    camera = parse_instrument(text, "raw.toml")
    first = {"CCDNUM": 1}
    primary_hdu = fits.PrimaryHDU(header=fits.Header({"EXPTIME": 10.0, "OBSID": "e1"} | (first if in_primary else {})))
    hdus = [primary_hdu, fits.ImageHDU(SCI, name="CCD1"), fits.ImageHDU(SCI, name="CCD2")]
    hdus[1].header.update({} if in_primary else first)
    hdus[2].header.update(second)
    fits.HDUList(hdus).writeto(tmp_path / "r.fits")
    found = scan_file(tmp_path / "r.fits", camera)
    assert len(found.units) + len(found.problems) == 2
    if len(found.units) == 1:
        assert "[2]: found a further science image, CCD2" in str(found.problems[0])


@pytest.mark.parametrize("names", [("SCI_ERR", "SCI_DQ", "SCI_IMG"), ("IMAGE_ERR", "IMAGE_DQ", "IMAGE_SCI")])
def test_names_of_two_planes_mean_the_more_specific_one(tmp_path, names):
    """Errors of the science image are errors."""
    planes = list(zip(names, ("ERR", "FLG", "SCI"), strict=True))
    path = csst_file(tmp_path, *planes)
    try:
        units = scan_file(path, CSST).units
    except InputError:
        return
    for unit in units:
        assert np.array_equal(read_sci(unit), SCI)
        assert (read_weight(unit) == 4).all()


def test_backgrounds_and_models_are_no_chips(tmp_path):
    camera = parse_instrument(
        CHIPS[: CHIPS.index("[[layouts]]")] + '[[layouts]]\nname = "any"\nsci = { hdu = ["*"] }\n', "any.toml"
    )
    hdus = [fits.PrimaryHDU(header=fits.Header({"EXPTIME": 10.0, "OBSID": "e1", "CCDNUM": 1}))]
    hdus += [fits.ImageHDU(SCI, name=name) for name in ("CCD1", "BKG", "MODEL", "ERR", "DQ", "SKY_1")]
    fits.HDUList(hdus).writeto(tmp_path / "a.fits")
    found = scan_file(tmp_path / "a.fits", camera)
    assert [unit.sci.hdu for unit in found.units] == [1]
    assert found.problems == []


def test_a_constant_plane_without_pixels_is_refused(tmp_path):
    path = uvis(tmp_path / "i.fits", ["SCI", "ERR", "DQ"], chips=(1,))
    with fits.open(path, mode="update") as hdus:
        empty = fits.ImageHDU(name="ERR")
        empty.header.update({"NPIX1": 5, "NPIX2": 6, "PIXVALUE": 0.5})
        hdus[2] = empty
    found = scan_file(path, load_instrument("hst_wfc3_uvis"))
    assert "PIXVALUE" in str(found.problems[0])
