"""Numbers and times of FITS headers: in known units and UTC, or refused by keyword and file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from csstdask.core.errors import InputError
from csstdask.instrument import load_instrument
from csstdask.instrument.file_layout import Keywords, Time
from csstdask.store.fits_header import HeaderLookup, start_time
from csstdask.store.schema import NO_TIME

CSST = load_instrument("csst")


def lookup(camera=CSST, **cards):
    header = fits.Header()
    for name, value in cards.items():
        header[name.replace("_", "-")] = value
    return HeaderLookup(Path("night.fits"), camera, (header, fits.Header()), "night.fits")


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ({"DATE_OBS": "2024-06-01T12:00:00"}, "2024-06-01T12:00:00"),
        ({"DATE_OBS": "2024-06-01T12:00:00Z"}, "2024-06-01T12:00:00"),
        ({"DATE_OBS": "2024-06-01T12:00:00+08:00"}, "2024-06-01T04:00:00"),
        ({"DATE_OBS": "2024-06-01T00:00:00-0330"}, "2024-06-01T03:30:00"),
        ({"DATE_OBS": "2024-06-01 12:00:00.250"}, "2024-06-01T12:00:00.25"),
        ({"DATE_OBS": "2024-06-01", "TIME_OBS": "12:00:00"}, "2024-06-01T12:00:00"),
        ({"DATE_OBS": "2024-06-01"}, "2024-06-01"),
        ({"DATE_OBS": "2024-06-01", "UTC_OBS": "12:00:00"}, "2024-06-01T12:00:00"),
        ({"DATE_OBS": "21/05/98", "TIME_OBS": "01:02:03"}, "1998-05-21T01:02:03"),
        ({"MJD_OBS": 60462.5}, "2024-06-01T12:00:00"),
        ({"MJD_OBS": "60462.5"}, "2024-06-01T12:00:00"),
        ({"DATE_BEG": "2024-06-01T12:00:00"}, "2024-06-01T12:00:00"),
        ({"DATE_OBS": "2024-06-01T12:00:37", "TIMESYS": "TAI"}, "2024-06-01T12:00:00"),
        ({"MJD_OBS": 60462.5 + 69.184 / 86400, "TIMESYS": "TT"}, "2024-06-01T12:00:00"),
        ({"DATE_OBS": "tonight", "MJD_OBS": 60462.5}, "2024-06-01T12:00:00"),
        ({"DATE_OBS": "2024-06-01T23:59:60"}, "2024-06-02"),
    ],
)
def test_times_are_utc(cards, expected):
    found = start_time(lookup(**cards))
    assert (found.problem is None) == (cards != {"DATE_OBS": "2024-06-01"})
    difference = np.datetime64(found.microseconds, "us") - np.datetime64(expected, "us")
    assert abs(difference) <= np.timedelta64(20, "us")


@pytest.mark.parametrize(
    ("cards", "key"),
    [
        ({"DATE_OBS": "01/06/2024"}, "DATE-OBS"),
        ({"DATE_OBS": "2024-13-01"}, "DATE-OBS"),
        ({"DATE_OBS": "2024.5"}, "DATE-OBS"),
        ({"DATE_OBS": 20240601}, "DATE-OBS"),
        ({"DATE_OBS": "2024-06-01", "TIME_OBS": "noon"}, "TIME-OBS"),
        ({"DATE_OBS": "2024-06-01T12:00:00", "TIMESYS": "LOCAL"}, "TIMESYS"),
        ({"MJD_OBS": 0.0}, "MJD-OBS"),
        ({"MJD_OBS": "soon"}, "MJD-OBS"),
        ({"MJD_OBS": True}, "MJD-OBS"),
        ({"MJD_OBS": 2460463.0}, "MJD-OBS"),
    ],
)
def test_times_that_cannot_be_read_are_named(cards, key):
    found = start_time(lookup(**cards))
    assert found.microseconds == NO_TIME
    assert key in found.problem


def test_no_time_is_no_problem():
    assert start_time(lookup()) == start_time(lookup(DATE_OBS=""))
    assert start_time(lookup()).problem is None


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        ((150.0, "exposure time"), "s", 150),
        ((2.5, "[min] exposure time"), "s", 150),
        ((150000.0, "[ms]"), "s", 150),
        (("150.0", ""), "s", 150),
        (("1.5D2", ""), "s", 150),
        ((150.0, "[seconds] shutter open"), "s", 150),
        ((150.0, "[from the log]"), "s", 150),
        ((1.1, "[e-/ADU] gain"), "electron / adu", 1.1),
        ((0.5, "[ADU/electron]"), "electron / adu", 2.0),
        ((1.1, "[electrons/DN]"), "electron / adu", 1.1),
        ((1.1, "e-/ADU"), "electron / adu", 1.1),
    ],
)
def test_numbers_are_converted_from_the_unit_that_the_header_states(value, unit, expected):
    assert lookup(NUMBER=value).number("NUMBER", unit=unit) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("value", ["nan", "inf", "-INF", "much", True, "1_5", "1,5", "0x10", 1 + 2j])
def test_values_that_are_no_finite_numbers_are_refused(value):
    with pytest.raises(InputError, match=r"night\.fits: NUMBER"):
        lookup(NUMBER=value).number("NUMBER", unit="s")


@pytest.mark.parametrize(("comment", "unit"), [("[deg]", "s"), ("[adu] noise", "electron"), ("[s]", "electron / adu")])
def test_numbers_in_another_kind_of_unit_are_refused(comment, unit):
    with pytest.raises(InputError, match="a number in"):
        lookup(NUMBER=(5.0, comment)).number("NUMBER", unit=unit)


def test_a_keyword_with_two_values_is_refused():
    header = fits.Header([("GAIN1", 1.1), ("GAIN1", 2.2), ("RDNOISE1", 5.0), ("RDNOISE1", 5.0)])
    two = HeaderLookup(Path("night.fits"), CSST, (header,), "night.fits")
    assert two.number("RDNOISE1") == 5
    with pytest.raises(InputError, match=r"night\.fits: GAIN1: found 2 values, 1\.1, 2\.2"):
        two.number("GAIN1")


def test_hierarch_continue_and_lower_case_keywords():
    text = "a very long name of a filter that no single card of eighty characters can hold, so that it goes on"
    header = fits.Header()
    header["HIERARCH ESO DET OUT1 GAIN"] = 1.7
    header["FILTER"] = text
    header["RDNOISE"] = 4.5
    camera = CSST.model_copy(
        update={
            "keywords": Keywords(
                gain=("ESO DET OUT1 GAIN",), band=("FILTER",), read_noise=("RDNOISE",), time=(Time(keyword="DATE-OBS"),)
            )
        }
    )
    stored = fits.Header.fromstring(header.tostring().replace("RDNOISE ", "rdnoise "))
    found = HeaderLookup(Path("x.fits"), camera, (stored,), "x.fits")
    assert found.number(*camera.keywords.gain) == 1.7
    assert found.text(*camera.keywords.band) == text
    assert found.number(*camera.keywords.read_noise) == 4.5


def test_whole_numbers_written_as_floats_are_ids():
    assert lookup(OBSID=1180000.0).text("OBSID") == "1180000"
    assert lookup(OBSID=7.5).text("OBSID") == "7.5"
    with pytest.raises(InputError, match="OBSID"):
        lookup(OBSID=True).text("OBSID")
