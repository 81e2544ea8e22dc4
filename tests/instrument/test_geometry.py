"""Positions on the sky: of any header's frame and axis order, in ICRS; none where a header cannot say."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.io.fits import Header

from csstdask.instrument.geometry import celestial_wcs, sky_positions

SCALE = 0.1 / 3600


def header(**keys):
    made = Header()
    made.update(
        {
            "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg",
            "CRVAL1": 10.0, "CRVAL2": -20.0,
            "CRPIX1": 50.0, "CRPIX2": 60.0, "CD1_1": -SCALE, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": SCALE,
        }
    )  # fmt: skip
    made.update(keys)
    return made


def position(made):
    ra, dec = sky_positions(made.tostring(sep="\n"), [49.0, 149.0], [59.0, 59.0])
    return SkyCoord(ra * u.deg, dec * u.deg)


def test_the_reference_pixel_has_the_reference_value():
    found = position(header())
    assert found[0].separation(SkyCoord(10 * u.deg, -20 * u.deg)).arcsec < 1e-6
    assert found[0].separation(found[1]).arcsec == pytest.approx(10, rel=1e-6)


def test_axes_in_the_other_order():
    swapped = header(
        CTYPE1="DEC--TAN", CTYPE2="RA---TAN", CRVAL1=-20.0, CRVAL2=10.0, CD1_1=SCALE, CD2_2=-SCALE
    )  # x along declination
    found = position(swapped)
    assert found[0].separation(SkyCoord(10 * u.deg, -20 * u.deg)).arcsec < 1e-6
    assert found[1].dec.deg == pytest.approx(-20 + 100 * SCALE)


@pytest.mark.parametrize("frame", ["fk5", "galactic", "fk4"])
def test_other_frames_become_icrs(frame):
    centre = SkyCoord(10 * u.deg, -20 * u.deg).transform_to(frame)
    longitude, latitude = centre.spherical.lon.deg, centre.spherical.lat.deg
    keys = {"CRVAL1": longitude, "CRVAL2": latitude}
    if frame == "galactic":
        keys |= {"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"}
    else:
        keys |= {"RADESYS": frame.upper(), "EQUINOX": {"fk5": 2000.0, "fk4": 1950.0}[frame]}
    assert position(header(**keys))[0].separation(SkyCoord(10 * u.deg, -20 * u.deg)).arcsec < 0.01


def test_right_ascension_is_between_0_and_360():
    ra, _ = sky_positions(header(CRVAL1=0.0).tostring(sep="\n"), [0.0, 99.0], [59.0, 59.0])
    assert (ra >= 0).all()
    assert (ra < 360).all()
    assert ra[0] < 1
    assert ra[1] > 359


def test_record_valued_cards_of_look_up_tables_are_left_out():
    """As HST writes them: DP1.EXTVER and the like, of tables that a campaign does not keep."""
    made = header(CPDIS1="LOOKUP", CPDIS2="LOOKUP", CPERR1=0.03, D2IMDIS1="LOOKUP", D2IMERR1=0.01)
    for number in (1, 2):
        made.append((f"DP{number}", "EXTVER: 1"))
        made.append((f"DP{number}", "NAXES: 2"))
        made.append((f"D2IM{number}", "EXTVER: 1"))
    text = Header.fromstring(made.tostring(sep="\n"), sep="\n")
    assert any("." in card.keyword for card in text.cards)
    assert position(text)[0].separation(SkyCoord(10 * u.deg, -20 * u.deg)).arcsec < 1e-6


@pytest.mark.parametrize(
    "keys",
    [
        {"CD1_1": 0.0, "CD2_2": 0.0},
        {"CTYPE1": "RA---TAB", "CTYPE2": "DEC--TAB", "PS1_0": "WCS-TAB"},
        {"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"},
        {"CRVAL1": "nowhere"},
    ],
    ids=["singular", "table", "not celestial", "no number"],
)
def test_unusable_headers_have_no_positions(keys):
    made = header(**keys)
    assert celestial_wcs(made) is None
    ra, dec = sky_positions(made.tostring(sep="\n"), [1.0], [2.0])
    assert np.isnan([*ra, *dec]).all()


def test_headers_of_real_cameras_that_need_mending():
    """The unit "degree" of raw HSC frames; PV terms in addition to SIP terms, as SCAMP writes them."""
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "degree", "CUNIT2": "degree"})
    header.update({"CRVAL1": 10.0, "CRVAL2": 0.0, "CRPIX1": 1.0, "CRPIX2": 1.0, "CDELT1": -1e-4, "CDELT2": 1e-4})
    ra, dec = sky_positions(header.tostring(sep="\n"), [0], [0])
    assert (ra[0], dec[0]) == pytest.approx((10.0, 0.0), abs=1e-12)
    header.update({"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-6})
    header.update({"PV1_0": 0.0, "PV1_1": 1.0, "PV1_2": 0.0, "PV1_5": 1e-3, "PV2_5": 1e-3})
    expected = sky_positions(
        fits.Header([c for c in header.cards if "PV" not in c.keyword]).tostring(sep="\n"), [50], [9]
    )
    np.testing.assert_allclose(sky_positions(header.tostring(sep="\n"), [50], [9]), expected)
    assert np.isfinite(expected).all()


@pytest.mark.parametrize("axes", [("HPLN-TAN", "HPLT-TAN"), ("SOLAR-X", "SOLAR-Y"), ("PIXEL", "PIXEL"), ("", "")])
def test_frames_without_a_place_on_the_sky(axes):
    """Images of the Sun are in coordinates of its disk."""
    header = fits.Header({"CTYPE1": axes[0], "CTYPE2": axes[1], "CRVAL1": 0.0, "CRVAL2": 0.0})
    ra, dec = sky_positions(header.tostring(sep="\n"), [0, 5], [0, 5])
    assert np.isnan(ra).all()
    assert np.isnan(dec).all()
