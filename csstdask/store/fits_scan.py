"""What units FITS files hold, from their headers alone.

Scanning decides everything (layout, exposure, detector, kind, trim), so that the reading of pixels, which
happens on a worker (``fits_planes.py``), has nothing left to guess.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.time import Time

from csstdask.durable import sha256_file
from csstdask.errors import InputError
from csstdask.instrument import Instrument, Layout, Plane, parse_units, section_slices
from csstdask.store.campaign import UnitFacts
from csstdask.store.fits_file import open_fits, value_of
from csstdask.store.schema import NO_TIME

#: Raised whenever the same files would give other planes.
NUMERICS_VERSION = 1
#: What of an instrument's flags decides the flag plane.
_FLAG_RULES = {"encoding", "codes", "bits", "bad", "plane_keyword", "other", "bad_values"}
#: An exposure's id is the name of a folder.
_LONGEST_NAME = 120


@dataclass(frozen=True)
class PlaneSource:
    """Where the pixels of one plane lie."""

    path: str
    hdu: int


@dataclass(frozen=True)
class UnitSource:
    """One unit as files hold it: everything needed to read it."""

    exposure: str
    detector: int
    kind: str
    band: str
    units: str
    shape: tuple[int, int]
    """(y, x) after trimming."""
    exptime: float
    time: int
    gain: float
    read_noise: float
    sci: PlaneSource
    weight: PlaneSource | None
    weight_kind: str
    flag: PlaneSource | None
    trim: str | None = None
    overscan: str | None = None
    bias_level: float = 0.0
    saturation: float | None = None
    adc_limit: float | None = None
    flag_rules: str = ""
    """How flags become bits."""
    bad_pixel_map: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Return the files that decide this unit's pixels, the science plane's first."""
        planes = [plane.path for plane in (self.sci, self.weight, self.flag) if plane is not None]
        return tuple(dict.fromkeys(planes + ([self.bad_pixel_map] if self.bad_pixel_map else [])))

    @property
    def name(self) -> str:
        """Return the unit and the file it is read from, for messages."""
        return f"{self.sci.path}[{self.sci.hdu}]"

    def stat(self) -> str:
        """Return names, sizes and times of change of the files: a quick proof that nothing changed."""
        states = [(Path(path).name, Path(path).stat()) for path in self.files]
        return json.dumps([[name, state.st_size, state.st_mtime_ns] for name, state in states])

    def digest(self) -> str:
        """Return the identity of the unit: SHA-256 of its files, of where in them it lies and of how it is read."""
        planes = [plane and plane.hdu for plane in (self.sci, self.weight, self.flag)]
        values = [self.detector, self.trim, self.overscan, self.weight_kind, self.gain, self.read_noise]
        values += [self.bias_level, self.saturation, self.adc_limit, self.units, self.flag_rules]
        parts = [NUMERICS_VERSION, [sha256_file(Path(path)) for path in self.files], planes, values]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def facts(self, digest: str, stat: str) -> UnitFacts:
        """Return what the campaign records of this unit."""
        shared = ("exposure", "detector", "kind", "band", "exptime", "time", "gain", "read_noise")
        return UnitFacts(
            **{name: getattr(self, name) for name in shared},
            digest=digest,
            source=" ".join(Path(path).name for path in self.files),
            source_stat=stat,
        )


class HeaderLookup:
    """Keywords of a unit: the science plane's header first, then the primary one."""

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
        """Return the first value that is there and means something, else None."""
        for name in names:
            for header in self.headers:
                value = value_of(header, name)
                if value is None or isinstance(value, fits.card.Undefined):
                    continue
                stripped = value.strip() if isinstance(value, str) else value
                if stripped in self.keywords.missing or stripped == "":
                    continue
                if name in self.keywords.zero_is_missing and stripped == 0:
                    continue
                return stripped
        return None

    def number(self, *names: str) -> float | None:
        """Return a keyword as a finite number; InputError if it is present and is not one."""
        value = self.get(*names)
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"{self.path}: {'/'.join(names)}", repr(value), "a number that is finite")
        return number


def scan(path: Path, instrument: Instrument) -> list[UnitSource]:
    """Return the units a file holds, from its headers alone.

    Parameters
    ----------
    path : Path
        A FITS file. In a layout of separate files, the science file: the others are found beside it.
    instrument : Instrument
        Whose layouts are tried.

    Raises
    ------
    InputError
        If the file is none, is truncated, has no image where the layouts want one, or lacks a keyword.
    """
    with open_fits(path) as hdus:
        layout = _choose_layout(path, hdus, instrument)
        first = _find_hdus(hdus, layout.sci)
        if layout.imsets == "none":
            first = first[:1]
        return [_scan_unit(path, hdus, instrument, layout, index) for index in first]


def companion_of(path: Path, instrument: Instrument) -> Path | None:
    """Return the science file that a weight or flag file of a triplet belongs to, else None."""
    for layout in instrument.layouts:
        if not layout.separate_files:
            continue
        for plane in (layout.weight, layout.flag):
            if plane is not None and plane.suffix in path.name:
                return _sibling(path, plane.suffix, layout.sci.suffix)
    return None


def _sibling(path: Path, old: str, new: str) -> Path:
    head, _, tail = path.name.rpartition(old)
    return path.with_name(head + new + tail)


def _image_hdus(hdus: fits.HDUList) -> list[int]:
    kinds = (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU)
    return [index for index, hdu in enumerate(hdus) if isinstance(hdu, kinds)]


def _find_hdus(hdus: fits.HDUList, plane: Plane) -> list[int]:
    """Return the HDUs that a plane's description finds: all with the first EXTNAME that occurs, or one."""
    images = _image_hdus(hdus)
    for wanted in plane.hdu:
        if wanted == "*":
            found = [index for index in images if hdus[index].header.get("NAXIS", 0) > 0]
        elif isinstance(wanted, int):
            found = [wanted] if wanted in images and (wanted > 0 or hdus[0].header.get("NAXIS", 0) > 0) else []
        else:
            found = [index for index in images if str(hdus[index].header.get("EXTNAME", "")).strip() == wanted]
        if found:
            return found
    return []


def _choose_layout(path: Path, hdus: fits.HDUList, instrument: Instrument) -> Layout:
    """Take the layout of which most planes are there; among equals the one that misses fewest."""
    ranked: list[tuple[int, int, int]] = []
    for order, layout in enumerate(instrument.layouts):
        if layout.separate_files:
            if layout.sci.suffix in path.name and _find_hdus(hdus, layout.sci):
                return layout
            continue
        planes = [plane for plane in (layout.sci, layout.weight, layout.flag) if plane is not None]
        there = [plane for plane in planes if _find_hdus(hdus, plane)]
        if layout.sci in there:
            ranked.append((-len(there), len(planes) - len(there), order))
    if ranked:
        layout = instrument.layouts[min(ranked)[2]]
        for plane in (layout.weight, layout.flag):
            if plane is not None and not plane.optional and not _find_hdus(hdus, plane):
                names = "/".join(map(str, plane.hdu))
                raise InputError(path, f"no HDU {names}", f"the planes of layout {layout.name!r} of {instrument.name}")
        return layout
    found = ", ".join(f"{index} {hdu.name} {getattr(hdu, 'shape', ())}" for index, hdu in enumerate(hdus))
    wanted = "; ".join(f"{layout.name}: {'/'.join(map(str, layout.sci.hdu))}" for layout in instrument.layouts)
    raise InputError(path, f"no science image among its HDUs ({found})", f"a layout of {instrument.name} ({wanted})")


def _plane_source(
    path: Path,
    hdus: fits.HDUList,
    plane: Plane | None,
    layout: Layout,
    sci_index: int,
    shape: tuple[int, int],
) -> PlaneSource | None:
    """Find the weight or flag plane that belongs to a science HDU; None where there is none or it is empty."""
    if plane is None:
        return None
    if layout.separate_files:
        sibling = _sibling(path, layout.sci.suffix, plane.suffix)
        if not sibling.is_file() and plane.optional:
            return None
        with open_fits(sibling) as others:
            found = _find_hdus(others, plane)
            if not found:
                raise InputError(sibling, "no image", f"the {plane.suffix} plane of {path.name}")
            _check_shape(f"{sibling}[{found[0]}]", others[found[0]].header, shape)
            return PlaneSource(str(sibling.absolute()), found[0])
    version = hdus[sci_index].ver
    for index in _find_hdus(hdus, plane):
        header = hdus[index].header
        if layout.imsets != "none" and hdus[index].ver != version:
            continue
        if index == sci_index or header.get("NAXIS", 0) == 0:
            return None  # a null HDU: the plane was never filled
        _check_shape(f"{path}[{index}]", header, shape)
        return PlaneSource(str(path.absolute()), index)
    return None


def _shape_of(header: fits.Header) -> tuple[int, ...]:
    return tuple(int(header[f"NAXIS{axis}"]) for axis in range(int(header.get("NAXIS", 0)), 0, -1))


def _check_shape(source: str, header: fits.Header, wanted: tuple[int, int]) -> None:
    if _shape_of(header) != wanted:
        raise InputError(source, f"shape {_shape_of(header)}", f"the science plane's {wanted}")


def _scan_unit(path: Path, hdus: fits.HDUList, instrument: Instrument, layout: Layout, index: int) -> UnitSource:
    header = hdus[index].header
    source = f"{path}[{index}]"
    raw_shape = _shape_of(header)
    if len(raw_shape) == 0:
        raise InputError(source, "an HDU without data", "an image")
    if len(raw_shape) != 2 or min(raw_shape) < 1:
        raise InputError(source, f"{len(raw_shape)}-D data of shape {raw_shape}", "a 2-D image")
    lookup = HeaderLookup(path, instrument, (header, hdus[0].header), path.name)
    detector = _detector(lookup, instrument, source)
    trimmed = layout.raw_shape is not None and raw_shape == layout.raw_shape
    if layout.raw_shape is not None and not trimmed:
        wanted = f"{layout.raw_shape}, the frames of layout {layout.name!r} (others need one in a TOML of your own)"
        raise InputError(source, f"shape {raw_shape}", wanted)
    trim = layout.trim_section if trimmed else None
    shape = (raw_shape[0], raw_shape[1])
    if trim is not None:
        rows, columns = section_slices(trim)
        shape = (rows.stop - rows.start, columns.stop - columns.start)
    time = _time(lookup)
    electronics = instrument.values(detector, None if time == NO_TIME else np.datetime64(time, "us"))
    band = _band(lookup, instrument, detector)
    kind = _kind(lookup, instrument, band)
    units = _units(lookup, instrument, layout, source)
    exptime = lookup.number(*instrument.keywords.exptime)
    if exptime is None and kind in {"bias", "cosmic_rays"}:
        exptime = 0.0
    if exptime is None:
        raise InputError(
            f"{source}: {'/'.join(instrument.keywords.exptime)}", "no such keyword", "the exposure time [s]"
        )
    if exptime < 0 or not np.isfinite(exptime) or (exptime == 0 and units.endswith("s-1")):
        raise InputError(
            f"{source}: {'/'.join(instrument.keywords.exptime)}",
            f"{exptime} s",
            f"a time > 0 s for pixels in {units}",
        )
    gain = lookup.number(*instrument.keywords.gain)
    if gain is not None and gain <= 0:
        raise InputError(f"{source}: {'/'.join(instrument.keywords.gain)}", f"{gain} e-/adu", "a gain > 0")
    gain = electronics.gain if gain is None else gain
    read_noise = lookup.number(*instrument.keywords.read_noise)
    read_noise = electronics.read_noise if read_noise is None else read_noise
    if gain is None or read_noise is None:
        raise InputError(source, "no gain or read noise", "both, in the header or in the instrument's TOML")
    if gain <= 0 or read_noise < 0:
        raise InputError(source, f"gain {gain} e-/adu, read noise {read_noise} e-", "gain > 0, read noise >= 0")
    return UnitSource(
        exposure=_exposure(lookup, instrument, layout, hdus[index].ver, kind),
        detector=detector,
        kind=kind,
        band=band,
        units=units,
        shape=shape,
        exptime=exptime,
        time=time,
        gain=gain,
        read_noise=read_noise,
        sci=PlaneSource(str(path.absolute()), index),
        weight=_plane_source(path, hdus, layout.weight, layout, index, (raw_shape[0], raw_shape[1])),
        weight_kind=layout.weight.kind if layout.weight else "inverse_variance",
        flag=_plane_source(path, hdus, layout.flag, layout, index, (raw_shape[0], raw_shape[1])),
        trim=trim,
        overscan=layout.overscan_section if trimmed else None,
        bias_level=(electronics.bias_level or 0.0) if units.startswith("adu") else 0.0,
        saturation=electronics.saturation,
        adc_limit=electronics.adc_limit if units == "adu" else None,
        flag_rules=instrument.flags.model_dump_json(include=_FLAG_RULES, exclude_none=True),
        bad_pixel_map=electronics.bad_pixel_map,
    )


def _detector(lookup: HeaderLookup, instrument: Instrument, source: str) -> int:
    keywords = instrument.keywords
    value = lookup.get(*keywords.detector)
    number: int | None = None
    if value is not None:
        text = str(value)
        match = (
            re.search(keywords.detector_pattern, text)
            if keywords.detector_pattern
            else re.fullmatch(r"(\d+)(?:\.0)?", text)
        )
        number = int(match.group(1)) if match else None
    if number is None and "detector" in lookup.from_name:
        number = int(lookup.from_name["detector"])
    if number is None and value is None and len(instrument.detectors) == 1:
        number = instrument.detector_ids[0]
    key = f"{source}: {'/'.join(keywords.detector)}"
    if number is None:
        raise InputError(key, "no such keyword" if value is None else repr(value), f"a detector of {instrument.name}")
    if number not in instrument.detector_ids:
        raise InputError(key, f"detector {number}", f"one of {instrument.name}'s: {_ranges(instrument.detector_ids)}")
    return number


def _ranges(ids: Sequence[int]) -> str:
    first, last = min(ids), max(ids)
    return f"{first}-{last}" if len(ids) == last - first + 1 > 2 else ", ".join(map(str, sorted(ids)))


def _exposure(lookup: HeaderLookup, instrument: Instrument, layout: Layout, version: int, kind: str) -> str:
    value = lookup.get(*instrument.keywords.exposure)
    if value is None:
        stem = re.sub(r"\.(fits|fit|fts)(\.\w+)?$", "", lookup.path.name)
        value = lookup.from_name.get("exposure") or (stem.replace(layout.sci.suffix, "") if layout.sci.suffix else stem)
    name = re.sub(r"[^\w.+-]", "_", str(value)).lstrip(".")
    if not 1 <= len(name) <= _LONGEST_NAME:
        raise InputError(
            f"{lookup.path}: {'/'.join(instrument.keywords.exposure)}", repr(value), "an id of an exposure"
        )
    if layout.imsets == "exposures":
        name = f"{name}_{version}"
    # The cosmic rays of an exposure, alone in a frame, are not that exposure.
    return f"{name}_CRS" if kind == "cosmic_rays" else name


def _band(lookup: HeaderLookup, instrument: Instrument, detector: int) -> str:
    fixed = instrument.detector(detector).band
    if fixed:
        return fixed
    text = str(lookup.get(*instrument.keywords.band) or "")
    match = re.search(instrument.keywords.band_pattern, text) if instrument.keywords.band_pattern else None
    return match.group(1) if match else text


def _kind(lookup: HeaderLookup, instrument: Instrument, band: str) -> str:
    for rule in instrument.kinds:
        if rule.file_type:
            value = lookup.from_name.get("type")
        else:
            value = band if rule.keyword == "band" else lookup.get(rule.keyword or "")
        if value is not None and str(value) in rule.values:
            return rule.kind
    return instrument.kind


def _units(lookup: HeaderLookup, instrument: Instrument, layout: Layout, source: str) -> str:
    text = lookup.get(*instrument.keywords.units)
    if text is None:
        return layout.units or instrument.units
    units = parse_units(str(text))
    if units is None:
        raise InputError(
            f"{source}: {'/'.join(instrument.keywords.units)}",
            repr(text),
            "electron, electron s-1, adu or adu s-1",
        )
    return units


def _time(lookup: HeaderLookup) -> int:
    for wanted in lookup.keywords.time:
        value = lookup.get(wanted.keyword)
        if value is None:
            continue
        try:
            if wanted.format == "mjd":
                moment = Time(float(value), format="mjd", scale="utc")
            else:
                clock = lookup.get(wanted.time_of_day) if wanted.time_of_day else None
                text = f"{value}T{clock}" if clock and "T" not in str(value) else str(value)
                moment = Time(text.replace("Z", ""), scale="utc")
        except (ValueError, TypeError):
            continue
        return int(moment.datetime64.astype("datetime64[us]").astype(np.int64))
    return NO_TIME
