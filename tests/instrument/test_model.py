"""Instruments as data: every built-in one is sound, and wrong ones say which key."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.wcs import WCS

from csstdask.core.errors import InputError
from csstdask.instrument import builtin_names, load_instrument, nominal_header, parse_units, recognise, section_slices
from csstdask.instrument.registry import parse_instrument

MINIMAL = """
name = "mine"
electronics = { gain = 2.0, read_noise = 3.0 }
flags = { bits = { bad = 1, cosmic_ray = 2, inpainted = 4 } }
layouts = [{ name = "one", sci = { hdu = [0] } }]
detectors = [{ id = 1 }, { id = 2, gain = 2.5 }]
"""


@pytest.mark.parametrize("name", builtin_names())
def test_builtin_instruments_load(name):
    instrument = load_instrument(name)
    assert instrument.name == name
    assert instrument.flags.inpainted_mask == 2**21
    for detector in instrument.detector_ids:
        values = instrument.values(detector)
        assert values.gain is not None
        assert values.read_noise is not None


def test_csst_has_eighteen_imaging_and_twelve_slitless_detectors():
    csst = load_instrument("csst")
    slitless = [d.id for d in csst.detectors if d.band in {"GI", "GV", "GU"}]
    assert slitless == [1, 2, 3, 4, 5, 10, 21, 26, 27, 28, 29, 30]
    assert len(csst.detectors) == 30
    assert csst.flags.incoming_cosmic_ray_mask == 16 | 2**20


def test_csst_focal_plane_does_not_overlap():
    """Detectors lie at least their own size apart."""
    csst = load_instrument("csst")
    centres = np.array(list(csst.geometry.centres.values()))
    dx, dy = np.abs(centres[:, None] - centres[None]).transpose(2, 0, 1)
    apart = (dx >= 9216) | (dy >= 9232)
    np.fill_diagonal(apart, val=True)
    assert apart.all()


def test_nominal_wcs_places_the_focal_plane_centre():
    """The pixel that a detector's WCS gives for the pointing is the focal plane's centre seen from it."""
    csst = load_instrument("csst")
    wcs = WCS(nominal_header(csst, 13, (150.0, 2.0), (9232, 9216)))
    x, y = wcs.world_to_pixel_values(150.0, 2.0)
    centre = csst.geometry.centres[13]
    assert x + 1 == pytest.approx(9216 / 2 - centre[0], abs=1e-6)
    assert y + 1 == pytest.approx(9232 / 2 - centre[1], abs=1e-6)
    scale = np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix))) * 3600
    assert scale == pytest.approx(0.074, rel=1e-4)


def test_scopes_of_values_and_validity_dates():
    text = (
        MINIMAL
        + """
[[overrides]]
detectors = [2]
valid_from = 2028-01-01
valid_until = 2029-01-01
read_noise = 9.0
[[overrides]]
valid_from = 2030-06-01T12:00:00
usable = false
"""
    )
    camera = parse_instrument(text, "mine.toml")
    assert camera.values(1).gain == 2.0
    assert camera.values(2).gain == 2.5
    assert camera.values(2, np.datetime64("2028-05-05")).read_noise == 9.0
    assert camera.values(2, np.datetime64("2029-01-01")).read_noise == 3.0
    assert camera.values(1, np.datetime64("2028-05-05")).read_noise == 3.0
    assert camera.values(1, np.datetime64("2030-06-01T11:59:59")).usable is None
    assert camera.values(1, np.datetime64("2030-06-01T12:00:00")).usable is False
    assert camera.values(2, None).read_noise == 3.0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("gain = 2.0", "gaim = 2.0", "electronics.gaim"),
        ("gain = 2.0", "gain = -1", "electronics.gain"),
        ("cosmic_ray = 2", "cosmic_ray = 3", "not one bit"),
        ("inpainted = 4", "inpainted = 2", "two meanings"),
        ("cosmic_ray = 2,", "", "cosmic_ray"),
        ("id = 2", "id = 1", "twice"),
        ('name = "mine"', "", "name"),
        ("{ id = 1 }", '{ ids = "1 to 3" }', "not a range"),
        ("{ id = 1 }", '{ id = 1, ids = "3-4" }', "together with id"),
        ("bits = {", 'plane_keyword = "MP_", bits = {', "go together"),
        ('name = "mine"', 'name = "mine"\nkeywords = { detector_pattern = "(" }', "keywords.detector_pattern"),
        ('name = "mine"', 'name = "mine"\nkeywords = { band_pattern = "x" }', "keywords.band_pattern"),
    ],
)
def test_wrong_keys_are_named(old, new, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_instrument(MINIMAL.replace(old, new, 1), "mine.toml")
    assert "mine.toml" in str(caught.value)


def test_a_range_of_detectors_that_are_alike():
    camera = parse_instrument(MINIMAL.replace("{ id = 1 }", '{ ids = "3-5", gain = 1.5 }'), "mine.toml")
    assert camera.detector_ids == (3, 4, 5, 2)
    assert camera.values(4).gain == 1.5
    assert len(load_instrument("hsc").detectors) == 112


def test_unknown_instrument_names_the_candidates():
    with pytest.raises(InputError, match="hst_wfc3_uvis"):
        load_instrument("hubble")


def test_recognise():
    assert recognise("x.fits", {"TELESCOP": "HST", "INSTRUME": "WFC3", "DETECTOR": "UVIS"}) == ("hst_wfc3_uvis",)
    name = "CSST_MSC_MS_CLD_20280301000000_20280301000230_10100000001_08_L0_V01.fits"
    assert recognise(name, {}) == ("csst",)
    assert recognise("x.fits", {"INSTRUME": "FORS2"}) == ()


def test_units_and_sections():
    assert [parse_units(t) for t in ("e-/s", "ELECTRONS", "COUNTS/S", "DN", " e / s ")] == [
        "electron s-1", "electron", "adu s-1", "adu", None,
    ]  # fmt: skip
    assert section_slices("[14:519,11:1022]") == (slice(10, 1022), slice(13, 519))


def test_a_wrong_layout_key_is_named_without_consequences(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\ndescription = "two chips"\nunits = "adu"\n'
        "[flags]\nbits = { bad = 1, saturated = 2, cosmic_ray = 4, inpainted = 8 }\n"
        '[[layouts]]\nname = "mef"\nsci = { hdu = ["SCI"] }\nerr = { hdu = ["ERR"] }\n'
        "[[detectors]]\nid = 1\n"
    )
    with pytest.raises(InputError, match=r"found layouts\.0\.err: [^;]*; wanted") as caught:
        load_instrument(str(path))
    assert "at least 1 item" not in str(caught.value)
