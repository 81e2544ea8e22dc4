"""Ingest of files whose headers and cameras disagree: chips, units, times, formats."""

from __future__ import annotations

import json
import warnings
from importlib import resources

import numpy as np
import pytest
from astropy.io import fits
from make_fits import level_1, planes, primary, science_header

import csstdask
from csstdask.core.errors import InputError
from csstdask.pipeline.export import export
from csstdask.pipeline.ingest import ingest
from csstdask.store.campaign import Campaign


def test_unrecognised_instrument(tmp_path):
    path = tmp_path / "x.fits"
    fits.writeto(path, np.zeros((4, 4), np.float32))
    with pytest.raises(InputError, match="--instrument with one of cfht_wircam, csst"):
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


def test_a_newer_description_of_the_camera(tmp_path):
    """Dated overrides and expectations of a campaign's camera may change; what its planes mean may not."""
    text = resources.files("csstdask.instrument").joinpath("csst.toml").read_text()
    target, camera = tmp_path / "c.zarr", tmp_path / "csst.toml"
    ingest([level_1(tmp_path, 7)], target)
    camera.write_text(text + "\n[[overrides]]\ndetectors = [8]\nusable = false\n")
    assert ingest([level_1(tmp_path, 8)], target, instrument=camera).dead == ["10100000001/8"]
    assert ingest([level_1(tmp_path, 8)], target).dead == ["10100000001/8"]
    camera.write_text(text.replace("cosmic_ray_rate = [0.3,", "cosmic_ray_rate = [0.2,"))
    assert ingest([level_1(tmp_path, 6)], target, instrument=camera).added == 1
    assert Campaign(target).instrument.expectations.cosmic_ray_rate[0] == 0.2
    camera.write_text(text.replace("hot = 2,", "hot = 256,"))
    with pytest.raises(InputError, match="another flags"):
        ingest([level_1(tmp_path, 9)], target, instrument=camera)


def own_camera(folder, *lines, name="own.toml"):
    """Write a copy of the CSST's TOML under another name, with lines before its first table."""
    text = resources.files("csstdask.instrument").joinpath("csst.toml").read_text()
    path = folder / name
    top, rest = text.split("\n[electronics]", 1)
    path.write_text(top.replace('name = "csst"', 'name = "own"') + "\n" + "\n".join(lines) + "\n[electronics]" + rest)
    return path


def several_chips(path, chips):
    """Write one file with the SCI, WHT, FLG of several detectors, given as (detector, shape)."""
    hdus = [fits.PrimaryHDU(header=primary())]
    del hdus[0].header["DETECTOR"]
    for version, (detector, shape) in enumerate(chips, 1):
        for name, plane in zip(("SCI", "WHT", "FLG"), planes(shape, detector), strict=True):
            header = science_header() if name == "SCI" else None
            hdus.append(fits.ImageHDU(plane, header=header, name=name, ver=version))
            hdus[-1].header["DETECTOR"] = f"MSC_{detector:02d}"
    fits.HDUList(hdus).writeto(path)
    return path


def test_good_chips_go_in_and_the_others_are_named(tmp_path):
    """A guide chip of another shape first, then science chips, and a focus chip that the instrument does not have."""
    path = several_chips(tmp_path / "mosaic.fits", [(10, (16, 16)), (7, (32, 24)), (8, (32, 24)), (99, (32, 24))])
    camera = own_camera(tmp_path)
    summary = ingest([path], tmp_path / "c.zarr", instrument=camera)
    assert summary.added == 2
    reasons = " / ".join(item["reason"] for item in summary.failures)
    assert "detector 99" in reasons
    assert "shape (16, 16); wanted (32, 24)" in reasons
    assert any("2 of (32, 24)" in note and "1 of (16, 16)" in note for note in summary.notes)
    campaign = csstdask.open_campaign(tmp_path / "c.zarr")
    for detector in (7, 8):
        one = campaign.sel(exposure="10100000001", detector=detector)
        sci, wht, _ = planes((32, 24), detector)
        assert np.array_equal(one["sci"].values, sci)
        assert np.array_equal(one["wht"].values, wht)
        assert json.loads(str(one["planes"].values))["wht"] == {
            "file": "mosaic.fits", "hdu": 3 * detector - 16, "name": "WHT", "found_by": "name and EXTVER",
            "kind": "inverse_variance",
        }  # fmt: skip


def test_chips_that_the_instrument_leaves_out_are_no_failures(tmp_path):
    header = fits.Header({"INSTRUME": "WIRCam", "OBSID": 1180000, "EXPTIME": 20.0, "MJD-OBS": 54900.5})
    hdus = [fits.PrimaryHDU(header=header)]
    hdus += [fits.ImageHDU(np.full((8, 8), 8000, np.uint16), name=name) for name in ("HAWAII-2RG-#52", "GUIDE#1")]
    path = tmp_path / "w.fits"
    fits.HDUList(hdus).writeto(path)
    text = resources.files("csstdask.instrument").joinpath("cfht_wircam.toml").read_text()
    camera = tmp_path / "wircam.toml"
    camera.write_text(text.replace('name = "cfht', 'ignored_chips = ["GUIDE.*"]\nname = "cfht'))
    assert "detector 1" in ingest([path], tmp_path / "a.zarr").failures[0]["reason"]
    summary = ingest([path], tmp_path / "b.zarr", instrument=camera)
    assert (summary.added, summary.failures, len(summary.ignored)) == (1, [], 1)


def test_one_camera_a_campaign(tmp_path):
    header = fits.Header({"TELESCOP": "HST", "INSTRUME": "WFPC2", "ROOTNAME": "u1", "EXPTIME": 9.0, "DETECTOR": 1})
    others = [tmp_path / "u1_c0f.fits", tmp_path / "u2_c0f.fits"]
    for path in others:
        fits.writeto(path, np.zeros((64, 48), np.float32), header=header)
    ours = [level_1(tmp_path, chip) for chip in (7, 8)]
    with pytest.raises(InputError, match=r"files of 2 cameras \(hst_wfpc2: 2, csst: 2\)"):
        ingest([*others, *ours], tmp_path / "c.zarr")
    summary = ingest([others[0], *ours], tmp_path / "c.zarr")
    assert summary.added == 2
    assert "a file of hst_wfpc2; wanted one of csst" in summary.failures[0]["reason"]
    summary = ingest([*others, *ours], tmp_path / "w.zarr", instrument="csst")
    assert (summary.added, len(summary.failures)) == (2, 2)


def test_mock_files_are_ingested_without_a_warning(tmp_path):
    """The year 2028 is beyond the table of leap seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = ingest([level_1(tmp_path, 8, **{"DATE-OBS": "2038-03-01T00:00:00"})], tmp_path / "c.zarr")
    assert summary.added == 1


def test_a_header_that_contradicts_the_toml_is_noted(tmp_path):
    path = level_1(tmp_path, 8)
    fits.setval(path, "GAIN1", value=44.0, ext=1)
    header = own_camera(tmp_path)
    toml = own_camera(tmp_path, 'electronics_from = "toml"', name="toml.toml")
    for name, camera, gain in (("a", header, 44.0), ("b", toml, 1.1)):
        summary = ingest([path], tmp_path / f"{name}.zarr", instrument=camera)
        (note,) = summary.notes
        assert "GAIN1/GAIN = 44 in the header, gain = 1.1 in the TOML of own" in note
        one = csstdask.open_campaign(tmp_path / f"{name}.zarr").sel(exposure="10100000001", detector=8)
        assert float(one["gain"]) == gain
    dated = own_camera(tmp_path, name="dated.toml")
    dated.write_text(
        dated.read_text().replace('name = "own"', 'name = "csst"') + "\n[[overrides]]\ndetectors = [8]\ngain = 2.0\n"
    )
    assert len(ingest([path], tmp_path / "d.zarr", instrument=dated).notes) == 1
    assert ingest([path], tmp_path / "e.zarr", instrument="csst").notes == []  # its value stands for headers without


def test_a_time_that_cannot_be_read_is_noted_and_refused_where_it_decides(tmp_path):
    path = level_1(tmp_path, 8, **{"DATE-OBS": "01/06/2024"})
    summary = ingest([path], tmp_path / "c.zarr")
    assert summary.added == 1
    assert "DATE-OBS = '01/06/2024'" in summary.notes[0]
    dated = own_camera(tmp_path)
    dated.write_text(dated.read_text() + "\n[[overrides]]\ndetectors = [8]\nvalid_from = 2024-01-01\ngain = 2.0\n")
    with pytest.raises(InputError, match=r"DATE-OBS = '01/06/2024'.*overrides depend"):
        ingest([path], tmp_path / "d.zarr", instrument=dated)


def test_a_unit_that_the_toml_scales_is_undone_on_export(tmp_path):
    """Surface brightness: pixels and weights become e-/s on the way in, and what they were on the way out."""
    path = level_1(tmp_path, 8)
    sci, wht, _ = planes(seed=8)
    fits.setval(path, "BUNIT", value="MJy/sr", ext=1)
    fits.setval(path, "FLUXCONV", value=0.125, ext=1)
    with pytest.raises(InputError, match=r"'MJy/sr'.*scaled_units"):
        ingest([path], tmp_path / "c.zarr")
    camera = own_camera(tmp_path)
    scaled = '[[scaled_units]]\nunit = "MJy / sr"\nunits = "electron s-1"\nfactor = 2.0\ndivide_by = ["FLUXCONV"]\n'
    camera.write_text(camera.read_text() + scaled)
    assert ingest([path], tmp_path / "c.zarr", instrument=camera).added == 1
    one = csstdask.open_campaign(tmp_path / "c.zarr").sel(exposure="10100000001", detector=8)
    assert one["sci"].attrs["units"] == "electron s-1"
    np.testing.assert_allclose(one["sci"].values, sci * 16, rtol=1e-6)
    np.testing.assert_allclose(one["wht"].values, wht / 256, rtol=1e-6)
    assert export(tmp_path / "c.zarr", tmp_path / "out").failures == []
    with fits.open(tmp_path / "out" / "10100000001_8.fits") as hdus:
        assert hdus["SCI"].header["BUNIT"] == "MJy/sr"
        np.testing.assert_allclose(hdus["SCI"].data, sci, rtol=1e-6)
        np.testing.assert_allclose(hdus["WHT"].data, wht, rtol=1e-6)


def test_sky_frames_set_the_format_of_a_campaign(tmp_path):
    """A mock's folder holds as many frames of cosmic rays alone, in electrons, whose names come first."""
    night = tmp_path / "night"
    night.mkdir()
    for chip in (7, 8):
        level_1(night, chip)
        header = primary(chip)
        name = f"CSST_MSC_MS_CRS_20280301000000_20280301000230_10100000001_{chip:02d}_L0_V01.fits"
        image = fits.ImageHDU(np.zeros((64, 48), np.float32), header=fits.Header({"BUNIT": "electron"}))
        fits.HDUList([fits.PrimaryHDU(header=header), image]).writeto(night / name)
    summary = ingest([night], tmp_path / "c.zarr")
    assert (summary.added, len(summary.failures)) == (2, 2)
    assert csstdask.open_campaign(tmp_path / "c.zarr")["sci"].attrs["units"] == "electron s-1"


def test_a_detector_named_by_text_points_to_the_pattern(tmp_path):
    camera = tmp_path / "mine.toml"
    camera.write_text(
        'name = "mine"\ndescription = "two chips"\nunits = "adu"\n'
        "[electronics]\ngain = 2.0\nread_noise = 5.0\nsaturation = 1e5\n"
        "[flags]\nbits = { bad = 1, saturated = 2, cosmic_ray = 4, inpainted = 8 }\n"
        '[keywords]\nexposure = ["SHOTID"]\ndetector = ["CHIPNAM"]\n'
        '[[layouts]]\nname = "mef"\nsci = { hdu = ["SCI"] }\n[[detectors]]\nids = "1-2"\n'
    )
    path = tmp_path / "s0.fits"
    header = fits.Header({"CHIPNAM": "A", "SHOTID": "s0", "EXPTIME": 90.0})
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.ones((8, 8), np.float32), header, name="SCI")]).writeto(path)
    with pytest.raises(
        InputError, match=r"CHIPNAM: found 'A'; wanted a detector of mine \(.*detector_pattern in the TOML"
    ):
        ingest([path], tmp_path / "c.zarr", instrument=camera)
