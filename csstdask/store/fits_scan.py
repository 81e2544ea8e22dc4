"""What units FITS files hold, from their headers alone.

Scanning decides everything (layout, exposure, detector, kind, trim), so that the reading of pixels, which
happens on a worker (``fits_planes.py``), has nothing left to guess.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from astropy.io import fits

from csstdask.core.atomic_io import sha256_file
from csstdask.core.errors import InputError
from csstdask.instrument import Instrument, Layout, builtin_names, parse_units, section_slices
from csstdask.instrument.physical_units import Units
from csstdask.store.campaign import UnitMetadata
from csstdask.store.fits_file import open_fits
from csstdask.store.fits_header import HeaderLookup, start_time
from csstdask.store.fits_layout import Chip, FileChips, find_chips, sibling_path
from csstdask.store.fits_pairing import FoundPlane
from csstdask.store.schema import NO_TIME

NUMERICS_VERSION = 1
"""Raised whenever the same files would give other planes."""
DISAGREEMENT = 0.01
"""Relative difference between a header's and a TOML's gain or read noise above which both are reported."""
_FLAG_RULES = {"encoding", "codes", "bits", "bad", "plane_keyword", "other", "bad_values"}
"""The keys of an instrument's flags that decide the flag plane."""
_LONGEST_NAME = 120
"""The id of an exposure is the name of a folder."""


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
    scale: float = 1.0
    """The campaign's pixels are those of the file times this."""
    file_units: str = ""
    """The units that the file states."""
    exposure_id: str = ""
    """The id as the file has it; `exposure` is the name of a folder."""
    planes: str = ""
    """JSON: which plane was read from which HDU, and what decided it."""
    notes: tuple[str, ...] = ()
    """What a user should know of how the headers were read."""

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
        values += [self.scale] if self.scale != 1 else []
        parts = [NUMERICS_VERSION, [sha256_file(Path(path)) for path in self.files], planes, values]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def metadata(self, digest: str, stat: str) -> UnitMetadata:
        """Return what the campaign records of this unit."""
        shared = ("exposure", "detector", "kind", "band", "exptime", "time", "gain", "read_noise")
        return UnitMetadata(
            **{name: getattr(self, name) for name in shared},
            digest=digest,
            source=" ".join(Path(path).name for path in self.files),
            source_stat=stat,
            source_folder=str(Path(self.sci.path).parent),
            exposure_id=self.exposure_id,
            planes=self.planes,
            file_units=self.file_units,
            unit_scale=self.scale,
        )


@dataclass
class FileScan:
    """What a file holds."""

    units: list[UnitSource] = field(default_factory=list)
    problems: list[InputError] = field(default_factory=list)
    """Chips that cannot be used, one error each."""
    ignored: list[str] = field(default_factory=list)
    """Chips that the instrument says to leave out."""


def scan_file(path: Path, instrument: Instrument, hdus: fits.HDUList | None = None) -> FileScan:
    """Return the units a file holds, from its headers alone.

    Parameters
    ----------
    path : Path
        A FITS file. In a layout of separate files, the science file: the others are found beside it.
    instrument : Instrument
        Whose layouts are tried.
    hdus : HDUList, optional
        The file, if it is open already.

    Returns
    -------
    FileScan
        The units, and an error for each chip of the file that cannot be used.

    Raises
    ------
    InputError
        If the file is none, is truncated, has no image where the layouts want one, or lacks a plane.
    """
    if hdus is None:
        with open_fits(path) as opened:
            return scan_file(path, instrument, opened)

    def detector_of(header: fits.Header) -> int | None:
        lookup = HeaderLookup(path, instrument, (header,), "")
        try:
            return _number_of_detector(lookup.text(*instrument.keywords.detector), instrument)
        except InputError:
            return None  # the chip is refused when its own headers are read

    found = find_chips(path, hdus, instrument.layouts, detector_of)
    result = FileScan(problems=list(found.problems))
    for chip in found.chips:
        if any(re.fullmatch(pattern or "", chip.sci.name, re.IGNORECASE) for pattern in instrument.ignored_chips):
            result.ignored.append(f"{path}[{chip.sci.hdu}] {chip.sci.name}")
            continue
        try:
            result.units.append(_scan_unit(path, hdus, instrument, found, chip))
        except InputError as error:
            result.problems.append(error)
    return result


def companion_of(path: Path, instrument: Instrument) -> Path | None:
    """Return the science file that a weight or flag file of a triplet belongs to, else None."""
    for layout in instrument.layouts:
        if not layout.separate_files:
            continue
        for plane in (layout.weight, layout.flag):
            if plane is not None and plane.suffix in path.name:
                return sibling_path(path, plane.suffix, layout.sci.suffix)
    return None


def _scan_unit(path: Path, hdus: fits.HDUList, instrument: Instrument, found: FileChips, chip: Chip) -> UnitSource:
    layout, index = found.layout, chip.sci.hdu
    header = hdus[index].header
    source = f"{path}[{index}]"
    raw_shape = chip.sci.shape
    if len(raw_shape) == 0:
        raise InputError(source, "an HDU without data", "an image")
    if len(raw_shape) != 2 or min(raw_shape) < 1:
        raise InputError(source, f"{len(raw_shape)}-D data of shape {raw_shape}", "a 2-D image")
    for plane in (chip.wht, chip.flag):
        if plane is not None and plane.shape and plane.shape != raw_shape:
            wanted = f"the science plane's {raw_shape}"
            raise InputError(f"{plane.path}[{plane.hdu}]", f"shape {plane.shape}", wanted)
    lookup = HeaderLookup(path, instrument, (header, hdus[0].header), path.name)
    detector = _detector(lookup, instrument, source)
    trimmed = layout.raw_shape is not None and raw_shape == layout.raw_shape
    if layout.raw_shape is not None and not trimmed:
        wanted = f"{layout.raw_shape}, the frames of layout {layout.name!r} (others need a layout in your own TOML)"
        raise InputError(source, f"shape {raw_shape}", wanted)
    trim = layout.trim_section if trimmed else None
    shape = (raw_shape[0], raw_shape[1])
    if trim is not None:
        rows, columns = section_slices(trim)
        shape = (rows.stop - rows.start, columns.stop - columns.start)
    notes: list[str] = []
    time = _time(lookup, instrument, detector, notes)
    when = None if time == NO_TIME else np.datetime64(time, "us")
    electronics = instrument.values(detector, when)
    band = _band(lookup, instrument, detector)
    kind = _kind(lookup, instrument, band)
    units, scale, file_units = _units(lookup, instrument, layout, source)
    gain, read_noise = _gain_and_read_noise(lookup, instrument, detector, when, source, notes)
    exposure_id = _exposure_id(lookup, instrument, layout)
    return UnitSource(
        exposure=_exposure(exposure_id, lookup, layout, hdus[index].ver, kind),
        exposure_id=exposure_id,
        detector=detector,
        kind=kind,
        band=band,
        units=units,
        shape=shape,
        exptime=_exposure_time(lookup, kind, units, source),
        time=time,
        gain=gain,
        read_noise=read_noise,
        sci=PlaneSource(str(path.absolute()), index),
        weight=_source_of(chip.wht),
        weight_kind=chip.wht.kind if chip.wht else layout.weight.kind if layout.weight else "inverse_variance",
        flag=_source_of(chip.flag),
        trim=trim,
        overscan=layout.overscan_section if trimmed else None,
        bias_level=(electronics.bias_level or 0.0) if units.startswith("adu") else 0.0,
        saturation=electronics.saturation,
        adc_limit=electronics.adc_limit if units == "adu" else None,
        flag_rules=instrument.flags.model_dump_json(include=_FLAG_RULES, exclude_none=True),
        bad_pixel_map=electronics.bad_pixel_map,
        scale=scale,
        file_units=file_units,
        planes=json.dumps(chip.record() | ({"not_used": found.unused} if found.unused else {})),
        notes=tuple(notes),
    )


def _source_of(plane: FoundPlane | None) -> PlaneSource | None:
    """Return where the pixels of a plane lie; None where there is none, or an HDU that was never filled."""
    return PlaneSource(str(plane.path.absolute()), plane.hdu) if plane is not None and plane.shape else None


def _exposure_time(lookup: HeaderLookup, kind: str, units: str, source: str) -> float:
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


def _gain_and_read_noise(
    lookup: HeaderLookup,
    instrument: Instrument,
    detector: int,
    when: np.datetime64 | None,
    source: str,
    notes: list[str],
) -> tuple[float, float]:
    """Return gain [e-/adu] and read noise [e-]: the header's or the instrument's, as `electronics_from` says.

    A header that contradicts what the instrument states for this detector is noted.
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
        if header is not None and own is not None and abs(header - own) > DISAGREEMENT * max(abs(own), abs(header)):
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


def _number_of_detector(text: str | None, instrument: Instrument) -> int | None:
    if text is None:
        return None
    pattern = instrument.keywords.detector_pattern
    match = re.search(pattern, text) if pattern else re.fullmatch(r"(\d+)", text)
    return int(match.group(1)) if match else None


def _detector(lookup: HeaderLookup, instrument: Instrument, source: str) -> int:
    keywords = instrument.keywords
    text = lookup.text(*keywords.detector)
    number = _number_of_detector(text, instrument)
    if number is None and "detector" in lookup.from_name:
        number = int(lookup.from_name["detector"])
    if number is None and text is None and len(instrument.detectors) == 1:
        number = instrument.detector_ids[0]
    key = f"{source}: {'/'.join(keywords.detector)}"
    if number is None:
        raise InputError(key, "no such keyword" if text is None else repr(text), f"a detector of {instrument.name}")
    if number not in instrument.detector_ids:
        raise InputError(key, f"detector {number}", f"one of {instrument.name}'s: {_ranges(instrument.detector_ids)}")
    return number


def _ranges(ids: Sequence[int]) -> str:
    first, last = min(ids), max(ids)
    return f"{first}-{last}" if len(ids) == last - first + 1 > 2 else ", ".join(map(str, sorted(ids)))


def _exposure_id(lookup: HeaderLookup, instrument: Instrument, layout: Layout) -> str:
    value = lookup.text(*instrument.keywords.exposure)
    if value is not None:
        return value
    stem = re.sub(r"\.(fits|fit|fts)(\.\w+)?$", "", lookup.path.name)
    return lookup.from_name.get("exposure") or (stem.replace(layout.sci.suffix, "") if layout.sci.suffix else stem)


def _exposure(exposure_id: str, lookup: HeaderLookup, layout: Layout, version: int, kind: str) -> str:
    name = _folder_name(exposure_id)
    if not name.strip("._") or len(name) > _LONGEST_NAME:
        keywords = "/".join(lookup.keywords.exposure)
        raise InputError(f"{lookup.path}: {keywords}", repr(exposure_id), "an id of an exposure")
    if layout.imsets == "exposures":
        name = f"{name}_{version}"
    # The cosmic rays of an exposure, alone in a frame, are not that exposure.
    return f"{name}_CRS" if kind == "cosmic_rays" else name


def _folder_name(text: str) -> str:
    """Return an id as the name of a folder: spaces become underscores.

    An id with other characters that a folder cannot have also gets the beginning of its SHA-256, so that
    ``NGC 1/a`` (``NGC_1_a-f2e3``) is not taken for ``NGC 1:a``.
    """
    spaced = re.sub(r"\s", "_", text)
    name = re.sub(r"[^\w.+-]", "_", spaced).lstrip(".")
    return name if name in {spaced, ""} else f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:4]}"


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


def _units(lookup: HeaderLookup, instrument: Instrument, layout: Layout, source: str) -> tuple[Units, float, str]:
    """Return the units of the campaign's pixels, the factor from the file's to them, and what the file says."""
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


def _time(lookup: HeaderLookup, instrument: Instrument, detector: int, notes: list[str]) -> int:
    """Return the start of the exposure; note or refuse one that cannot be read."""
    start = start_time(lookup)
    if start.microseconds == NO_TIME and instrument.has_dated_overrides(detector):
        found = start.problem or f"no time ({', '.join(time.keyword for time in instrument.keywords.time)})"
        wanted = f"the time of the exposure, on which {instrument.name}'s overrides depend"
        raise InputError(lookup.path, found, wanted)
    if start.problem:
        notes.append(f"time{' unknown' if start.microseconds == NO_TIME else ''}: {start.problem}")
    return start.microseconds
