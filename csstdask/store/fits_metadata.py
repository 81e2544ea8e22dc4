"""Metadata of a unit from its headers: detector, exposure, band, kind, units, gain, time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from csstdask.core.errors import InputError
from csstdask.instrument import Instrument, Layout, builtin_names, parse_units
from csstdask.instrument.physical_units import Units
from csstdask.store.fits_header import HeaderLookup, start_time
from csstdask.store.schema import NO_TIME

MAX_RELATIVE_DIFFERENCE = 0.01
"""Relative difference of gain or read noise between header and TOML above which a note reports both."""

_MAX_NAME_LENGTH = 120
"""Longest exposure id, which is the name of a folder [character]."""


def find_exposure_time(lookup: HeaderLookup, kind: str, units: str, source: str) -> float:
    """Return the exposure time [s]; 0 for bias frames and frames of cosmic rays that do not state it.

    Parameters
    ----------
    lookup : HeaderLookup
        Keywords of the unit.
    kind, units : str
        Kind of frame and units of its pixels.
    source : str
        File and HDU, for messages.

    Raises
    ------
    InputError
        If the time is absent, negative, or 0 for pixels per second.
    """
    names = lookup.keywords.exptime
    key = f"{source}: {'/'.join(names)}"
    exptime = lookup.number(*names, unit="s")
    if exptime is None and kind in {"bias", "cosmic_rays"}:
        exptime = 0.0
    if exptime is None:
        raise InputError(key, "no such keyword", "the exposure time [s]")
    if exptime < 0 or (exptime == 0 and units.endswith("s-1")):
        raise InputError(key, f"{exptime} s", f"a time > 0 s for pixels in {units}")
    return exptime


def find_gain_and_read_noise(
    lookup: HeaderLookup,
    instrument: Instrument,
    detector: int,
    when: np.datetime64 | None,
    source: str,
    notes: list[str],
) -> tuple[float, float]:
    """Return gain [e-/adu] and read noise [e-] of the header or the instrument, as `electronics_from` decides.

    A header that contradicts the value stated for this detector adds a note.
    """
    keywords, values = instrument.keywords, instrument.values(detector, when)
    stated = instrument.detector_values(detector, when) if instrument.name in builtin_names() else values
    found: list[float] = []
    for names, what, unit, least in (
        (keywords.gain, "gain", "electron / adu", "a gain > 0"),
        (keywords.read_noise, "read_noise", "electron", "a read noise >= 0"),
    ):
        key = f"{source}: {'/'.join(names)}"
        header = lookup.number(*names, unit=unit)
        if header is not None and (header < 0 or (header == 0 and what == "gain")):
            raise InputError(key, f"{header} {unit}", least)
        toml, own = getattr(values, what), getattr(stated, what)
        if (
            header is not None
            and own is not None
            and abs(header - own) > MAX_RELATIVE_DIFFERENCE * max(abs(own), abs(header))
        ):
            notes.append(
                f"detector {detector}: {'/'.join(names)} = {header:g} in the header, {what} = {own:g} in the TOML of "
                f"{instrument.name}; used the {instrument.electronics_from}'s (electronics_from in the TOML decides)"
            )
        prefer_toml = instrument.electronics_from == "toml" and toml is not None
        value = toml if prefer_toml or header is None else header
        if value is None:
            raise InputError(key, f"no {what}", "one in the header or in the instrument's TOML")
        found.append(float(value))
    return found[0], found[1]


def parse_detector(text: str | None, instrument: Instrument) -> int | None:
    """Return the detector id that the text of a keyword states, or None."""
    if text is None:
        return None
    pattern = instrument.keywords.detector_pattern
    match = re.search(pattern, text) if pattern else re.fullmatch(r"(\d+)", text)
    return int(match.group(1)) if match else None


def find_detector(lookup: HeaderLookup, instrument: Instrument, source: str) -> int:
    """Return the detector id from a keyword, the file name, or the only detector of the camera.

    Raises
    ------
    InputError
        If none is found, or the camera does not have it.
    """
    keywords = instrument.keywords
    text = lookup.text(*keywords.detector)
    number = parse_detector(text, instrument)
    if number is None and "detector" in lookup.from_name:
        number = int(lookup.from_name["detector"])
    if number is None and text is None and len(instrument.detectors) == 1:
        number = instrument.detector_ids[0]
    key = f"{source}: {'/'.join(keywords.detector)}"
    if number is None:
        ids = _format_ids(instrument.detector_ids)
        wanted = f"a detector of {instrument.name} ({ids}); keywords.detector_pattern in the TOML extracts it from text"
        raise InputError(key, "no such keyword" if text is None else repr(text), wanted)
    if number not in instrument.detector_ids:
        raise InputError(
            key, f"detector {number}", f"one of {instrument.name}'s: {_format_ids(instrument.detector_ids)}"
        )
    return number


def _format_ids(ids: Sequence[int]) -> str:
    """Return ids as a range if they are contiguous, else as a list."""
    first, last = min(ids), max(ids)
    return f"{first}-{last}" if len(ids) == last - first + 1 > 2 else ", ".join(map(str, sorted(ids)))


def find_exposure_id(lookup: HeaderLookup, instrument: Instrument, layout: Layout) -> str:
    """Return the exposure id from a keyword or the file name."""
    value = lookup.text(*instrument.keywords.exposure)
    if value is not None:
        return value
    stem = re.sub(r"\.(fits|fit|fts)(\.\w+)?$", "", lookup.path.name)
    return lookup.from_name.get("exposure") or (stem.replace(layout.sci.suffix, "") if layout.sci.suffix else stem)


def exposure_name(exposure_id: str, lookup: HeaderLookup, layout: Layout, version: int, kind: str) -> str:
    """Return the name of an exposure in a campaign: its id as a valid folder name, with imset and kind.

    Raises
    ------
    InputError
        If the id is empty or too long.
    """
    name = _folder_name(exposure_id)
    if not name.strip("._") or len(name) > _MAX_NAME_LENGTH:
        keywords = "/".join(lookup.keywords.exposure)
        raise InputError(f"{lookup.path}: {keywords}", repr(exposure_id), "an id of an exposure")
    if layout.imsets == "exposures":
        name = f"{name}_{version}"
    # A frame that contains only the cosmic rays of an exposure needs a different name.
    return f"{name}_CRS" if kind == "cosmic_rays" else name


def _folder_name(text: str) -> str:
    """Return an id as a valid folder name: spaces become underscores.

    An id with other invalid characters also gets the first digits of its SHA-256, so that ``NGC 1/a``
    (``NGC_1_a-f2e3``) and ``NGC 1:a`` remain different.
    """
    spaced = re.sub(r"\s", "_", text)
    name = re.sub(r"[^\w.+-]", "_", spaced).lstrip(".")
    return name if name in {spaced, ""} else f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:4]}"


def find_band(lookup: HeaderLookup, instrument: Instrument, detector: int) -> str:
    """Return the band of the detector, or the one that the header states."""
    fixed = instrument.detector(detector).band
    if fixed:
        return fixed
    text = str(lookup.get(*instrument.keywords.band) or "")
    match = re.search(instrument.keywords.band_pattern, text) if instrument.keywords.band_pattern else None
    return match.group(1) if match else text


def find_kind(lookup: HeaderLookup, instrument: Instrument, band: str) -> str:
    """Return the kind of a frame by the first rule of the camera that applies."""
    for rule in instrument.kinds:
        if rule.file_type:
            value = lookup.from_name.get("type")
        else:
            value = band if rule.keyword == "band" else lookup.get(rule.keyword or "")
        if value is not None and str(value) in rule.values:
            return rule.kind
    return instrument.kind


def find_units(lookup: HeaderLookup, instrument: Instrument, layout: Layout, source: str) -> tuple[Units, float, str]:
    """Return the units of the campaign, the factor from file to campaign pixels, and the units in the file.

    Raises
    ------
    InputError
        If the units are unknown, or a factor is missing.
    """
    key = f"{source}: {'/'.join(instrument.keywords.units)}"
    text = lookup.text(*instrument.keywords.units)
    if text is None:
        return layout.units or instrument.units, 1.0, ""
    for scaled in instrument.scaled_units:
        if not scaled.matches(text):
            continue
        divisor = lookup.number(*scaled.divide_by) if scaled.divide_by else 1.0
        if divisor is None or divisor <= 0:
            raise InputError(
                f"{source}: {'/'.join(scaled.divide_by)}", repr(divisor), f"the factor of {scaled.unit} > 0"
            )
        return scaled.units, scaled.factor / divisor, text
    units = parse_units(text)
    if units is None:
        wanted = (
            f"electron, electron s-1, adu or adu s-1, or how {text!r} becomes one of them ([[scaled_units]] in a TOML)"
        )
        raise InputError(key, repr(text), wanted)
    return units, 1.0, text


def find_start_time(lookup: HeaderLookup, instrument: Instrument, detector: int, notes: list[str]) -> int:
    """Return the start of the exposure in microseconds since 1970.

    A time that cannot be read adds a note.

    Raises
    ------
    InputError
        If the time is unknown, and values of the camera depend on it.
    """
    start = start_time(lookup)
    if start.microseconds == NO_TIME and instrument.has_dated_overrides(detector):
        found = start.problem or f"no time ({', '.join(time.keyword for time in instrument.keywords.time)})"
        wanted = f"the time of the exposure, on which {instrument.name}'s overrides depend"
        raise InputError(lookup.path, found, wanted)
    if start.problem:
        notes.append(f"time{' unknown' if start.microseconds == NO_TIME else ''}: {start.problem}")
    return start.microseconds
