"""Read keywords of FITS headers: numbers with units, and times in UTC.

Numbers on which pixels depend must be finite and in a known unit; otherwise the file is refused, and the message names
the keyword.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.time import Time

from csstdask.core.errors import InputError
from csstdask.core.warnings import suppress_warnings
from csstdask.instrument import Instrument
from csstdask.instrument.file_layout import Time as TimeKeyword
from csstdask.store.schema import NO_TIME

STANDARD_TIMES = (
    TimeKeyword(keyword="DATE-BEG"),
    TimeKeyword(keyword="DATE-OBS", time_of_day="TIME-OBS"),
    TimeKeyword(keyword="MJD-BEG", format="mjd"),
    TimeKeyword(keyword="MJD-OBS", format="mjd"),
)
"""Keywords of the FITS standard for the start of an exposure, tried after those of the instrument."""
TIMES_OF_DAY = ("TIME-OBS", "UTC-OBS", "UT")
"""Keywords for the time of day of a date without one, if the instrument names none."""
TIME_SCALES = {"UTC": "utc", "UT": "utc", "UT1": "utc", "TAI": "tai", "TT": "tt", "TDT": "tt", "ET": "tt", "TDB": "tdb"}
"""TIMESYS to the name of the time scale in astropy. UT1 is within a second of UTC."""
PLAUSIBLE_YEARS = (1950, 2200)
"""Times outside these years are errors."""
_ISO = re.compile(
    r"(?P<date>\d{4}-\d{2}-\d{2})"
    r"(?:[T ](?P<clock>\d{2}:\d{2}(?::\d{2}(?:\.\d*)?)?))?"
    r"\s*(?P<zone>Z|UTC?|[+-]\d{2}:?\d{2})?",
    re.IGNORECASE,
)
_BEFORE_2000 = re.compile(r"(\d{2})/(\d{2})/(\d{2})")
"""DD/MM/YY: the form of the standard until 1999, always in the 20th century."""
_CLOCK = re.compile(r"\d{1,2}:\d{2}(?::\d{2}(?:\.\d*)?)?")
_BRACKET = re.compile(r"\s*\[([^\]]+)\]")
_SPELLINGS = {
    "electron": "electron",
    "adu": "adu",
    "electrons": "electron",
    "e-": "electron",
    "e": "electron",
    "dn": "adu",
    "counts": "adu",
    "count": "adu",
    "ct": "adu",
    "msec": "ms",
    "usec": "us",
    "ksec": "ks",
    "sec": "s",
    "secs": "s",
    "second": "s",
    "seconds": "s",
    "minutes": "min",
    "minute": "min",
    "hours": "h",
    "hour": "h",
    "days": "d",
    "day": "d",
}


@dataclass(frozen=True)
class StartTime:
    """The start of an exposure."""

    microseconds: int
    """Microseconds since 1970, UTC; `NO_TIME` if unknown."""
    problem: str | None = None
    """Why a keyword could not be read, or what was assumed for an incomplete time."""


class HeaderLookup:
    """Keywords of a unit, from the header of the science plane first, then from the primary header.

    Parameters
    ----------
    path : Path
        The file, for messages.
    instrument : Instrument
        Camera, whose keywords are used.
    headers : sequence of mapping
        Headers in order of precedence.
    file_name : str
        Name of the file, which may contain metadata.
    """

    def __init__(
        self, path: Path, instrument: Instrument, headers: Sequence[Mapping[str, Any]], file_name: str
    ) -> None:
        self.path = path
        self.keywords = instrument.keywords
        self.headers = headers
        pattern = instrument.recognise.file_pattern
        match = re.match(pattern, file_name) if pattern else None
        self.from_name: dict[str, str] = match.groupdict() if match else {}

    def get(self, *names: str) -> Any:
        """Return the first value that is present and not a placeholder, else None.

        Raises
        ------
        InputError
            If a header contains the keyword twice with different values.
        """
        return self._find(*names)[0]

    def number(self, *names: str, unit: str = "") -> float | None:
        """Return a keyword as a finite number in a unit; None if it is absent.

        A unit in brackets at the start of the comment, a form of the FITS standard, is converted:
        ``EXPTIME = 2.5 / [min]`` is 150 s, ``GAIN = 0.5 / [adu/e-]`` is 2 e-/adu.

        Raises
        ------
        InputError
            If the value is not a finite number, or its unit cannot be converted.
        """
        value, comment = self._find(*names)
        if value is None:
            return None
        source = f"{self.path}: {'/'.join(names)}"
        number = _as_number(value)
        if number is None:
            raise InputError(source, repr(value), "a finite number")
        return _converted(number, comment, unit, source) if unit else number

    def text(self, *names: str) -> str | None:
        """Return a keyword as text; None if it is absent.

        Raises
        ------
        InputError
            If it is a boolean or complex value.
        """
        value = self.get(*names)
        if value is None:
            return None
        if isinstance(value, bool | np.bool_ | complex):
            raise InputError(f"{self.path}: {'/'.join(names)}", repr(value), "text or an integer")
        if isinstance(value, float) and value.is_integer():
            return str(int(value))
        return str(value)

    def _find(self, *names: str) -> tuple[Any, str]:
        for name in names:
            for header in self.headers:
                value = self._value(header, name)
                if value is None or isinstance(value, fits.card.Undefined):
                    continue
                stripped = value.strip() if isinstance(value, str) else value
                if stripped in self.keywords.missing or stripped == "":
                    continue
                if name in self.keywords.zero_is_missing and stripped == 0:
                    continue
                self._check_single(header, name)
                return stripped, header.comments[name] if isinstance(header, fits.Header) else ""
        return None, ""

    def _value(self, header: Mapping[str, Any], name: str) -> Any:
        """Return the value of a keyword; None if it is absent. Raise InputError if its card is invalid."""
        try:
            return header.get(name)
        except (fits.VerifyError, ValueError):
            found = "a card that breaks the FITS standard"
            raise InputError(f"{self.path}: {name}", found, "a value that can be read") from None

    def _check_single(self, header: Mapping[str, Any], name: str) -> None:
        """Raise InputError if a header contains a keyword twice with different values."""
        if not isinstance(header, fits.Header) or header.count(name) < 2:
            return
        values = {str(header[name, number]) for number in range(header.count(name))}
        if len(values) > 1:
            found = f"{len(values)} values, {', '.join(sorted(values))}"
            raise InputError(f"{self.path}: {name}", found, "one value")


def _as_number(value: Any) -> float | None:
    """Return a value as a finite number, or None."""
    if isinstance(value, bool | np.bool_ | complex) or (isinstance(value, str) and "_" in value):
        return None
    try:
        number = float(value.upper().replace("D", "E") if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _converted(number: float, comment: str, wanted: str, source: str) -> float:
    """Return a number in a unit, converted from the unit in brackets at the start of its comment."""
    match = _BRACKET.match(comment or "")
    if match is None:
        return number
    text = "/".join(_SPELLINGS.get(part.strip().lower(), part.strip()) for part in match[1].split("/"))
    unit = u.Unit(text, parse_strict="silent")
    target = u.Unit(wanted)
    if isinstance(unit, u.UnrecognizedUnit) or unit == u.dimensionless_unscaled:
        return number  # a comment in brackets, or no unit
    try:
        if unit.is_equivalent(target):
            return number * float(unit.to(target))
        if number and (unit**-1).is_equivalent(target):
            return float((unit**-1).to(target)) / number
    except u.UnitsError:
        pass
    raise InputError(source, f"a number in {match[1].strip()}", f"one in {wanted}")


def start_time(lookup: HeaderLookup) -> StartTime:
    """Return the start of an exposure from the keywords of the camera, else of the FITS standard."""
    problem = None
    system = str(lookup.get("TIMESYS") or "UTC").upper()
    if system not in TIME_SCALES:
        return StartTime(NO_TIME, f"TIMESYS = {system!r}; wanted one of {', '.join(TIME_SCALES)}")
    scale = TIME_SCALES[system]
    camera = {wanted.keyword for wanted in lookup.keywords.time}
    for wanted in (*lookup.keywords.time, *(time for time in STANDARD_TIMES if time.keyword not in camera)):
        value = None
        try:
            value = lookup.get(wanted.keyword)
            if value is None:
                continue
            with suppress_warnings():  # erfa warns of distant years, which are checked here
                if wanted.format == "mjd":
                    return StartTime(_microseconds(_mjd(value, scale)))
                moment, assumed = _date(value, wanted, lookup, scale)
                return StartTime(_microseconds(moment), assumed)
        except InputError as error:
            problem = problem or f"{wanted.keyword}: {error.found}"
        except (ValueError, TypeError, OverflowError) as error:
            problem = problem or f"{wanted.keyword} = {value!r}: {str(error).splitlines()[0][:120]}"
    return StartTime(NO_TIME, problem)


def _mjd(value: Any, scale: str) -> Time:
    """Return the time of a Modified Julian Date."""
    number = _as_number(value)
    if number is None:
        raise ValueError("not a finite number; wanted a Modified Julian Date")
    return Time(number, format="mjd", scale=scale)


def _date(value: Any, wanted: TimeKeyword, lookup: HeaderLookup, scale: str) -> tuple[Time, str | None]:
    """Return the time of a date keyword, and what was assumed for a missing time of day."""
    text = str(value).strip()
    old = _BEFORE_2000.fullmatch(text)
    if old is not None:
        text = f"19{old[3]}-{old[2]}-{old[1]}"
    match = _ISO.fullmatch(text)
    if match is None:
        raise ValueError("not a date of the FITS standard; wanted YYYY-MM-DDThh:mm:ss, in UTC")
    clock, zone = match["clock"], match["zone"]
    if clock is None:
        names = (wanted.time_of_day,) if wanted.time_of_day else TIMES_OF_DAY
        clock = lookup.get(*names)
        if clock is not None and not _CLOCK.fullmatch(str(clock)):
            raise ValueError(f"{'/'.join(names)} = {clock!r}; wanted hh:mm:ss")
    moment = Time(f"{match['date']}T{clock}" if clock else match["date"], scale=scale)
    assumed = None if clock else f"{wanted.keyword} = {value!r}: without a time of day; assumed midnight"
    return (moment - _offset(zone) if zone else moment), assumed


def _offset(zone: str) -> u.Quantity:
    """Return the offset from UTC that a time zone such as ``+08:00`` states."""
    if zone[0] not in "+-":
        return 0 * u.hour
    digits = zone[1:].replace(":", "")
    sign = -1 if zone[0] == "-" else 1
    return sign * dt.timedelta(hours=int(digits[:2]), minutes=int(digits[2:])).total_seconds() * u.second


def _microseconds(moment: Time) -> int:
    year = int(moment.utc.ymdhms["year"])
    if not PLAUSIBLE_YEARS[0] <= year <= PLAUSIBLE_YEARS[1]:
        raise ValueError(f"year {year}; wanted one from {PLAUSIBLE_YEARS[0]} to {PLAUSIBLE_YEARS[1]}")
    return round(moment.utc.unix * 1e6)  # a leap second counts as the second after it
