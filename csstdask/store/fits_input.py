"""FITS in: what units a file holds, and the planes of one unit, one HDU at a time.

Scanning reads headers only and decides everything (instrument layout, exposure, detector, kind, trim), so
that the reading of pixels, which happens on a worker, has nothing left to guess.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits
from astropy.time import Time

from csstdask.durable import sha256_file
from csstdask.errors import InputError
from csstdask.instrument import Instrument, Layout, Plane, parse_units, section_slices
from csstdask.store.campaign import UnitFacts
from csstdask.store.schema import NO_TIME

_OPEN_LOCK = threading.Lock()
_BAND = 256
_COMPRESSED = {".gz", ".fz", ".bz2", ".xz"}


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
    bad_pixel_map: str | None = None
    header: str = field(default="", repr=False)
    primary_header: str = field(default="", repr=False)

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
        """Return the identity of the unit: SHA-256 of its files and of where in them it lies."""
        planes = [plane and plane.hdu for plane in (self.sci, self.weight, self.flag)]
        parts = [[sha256_file(Path(path)) for path in self.files], planes, self.detector, self.trim]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def facts(self, digest: str, stat: str) -> UnitFacts:
        """Return what the campaign records of this unit."""
        shared = (
            "exposure",
            "detector",
            "kind",
            "band",
            "exptime",
            "time",
            "gain",
            "read_noise",
            "header",
            "primary_header",
        )
        return UnitFacts(
            **{name: getattr(self, name) for name in shared},
            digest=digest,
            source=" ".join(Path(path).name for path in self.files),
            source_stat=stat,
        )


@contextmanager
def open_fits(path: Path) -> Iterator[fits.HDUList]:
    """Open a FITS file, plain or compressed; InputError if it is none or is cut short."""
    try:
        # A warning filter is shared by all threads of a process: one at a time, and only around the parsing.
        with _OPEN_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            hdus = fits.open(path, memmap=False, lazy_load_hdus=False)
    except FileNotFoundError:
        raise InputError(path, "no such file", "a FITS file") from None
    except IsADirectoryError:
        raise InputError(path, "a directory", "a FITS file") from None
    except (OSError, EOFError, ValueError, TypeError, IndexError, KeyError) as error:
        raise InputError(path, f"a file that cannot be read ({error})", "a whole FITS file") from None
    with hdus:
        if path.suffix not in _COMPRESSED or path.suffix == ".fz":
            _check_length(path, hdus)
        yield hdus


def _check_length(path: Path, hdus: fits.HDUList) -> None:
    info = hdus[-1].fileinfo() if len(hdus) else None
    if info is None:
        return
    header = hdus[-1].header
    padded = info["datLoc"] + info["datSpan"]
    actual = path.stat().st_size
    if actual < padded:
        raise InputError(
            path,
            f"{actual} bytes, a truncated file",
            f"{padded} bytes (HDU {len(hdus) - 1}, {header.get('EXTNAME', '')})",
        )


def plane_data(path: Path, hdus: fits.HDUList, index: int) -> npt.NDArray[Any]:
    """Return the pixels of one HDU; InputError if there are none, they are not 2-D or cannot be read."""
    try:
        data = hdus[index].data
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise InputError(f"{path}[{index}]", f"pixels that cannot be read ({error})", "a whole image") from None
    if data is None:
        raise InputError(f"{path}[{index}]", "an HDU without data", "an image")
    if data.ndim != 2:
        raise InputError(f"{path}[{index}]", f"{data.ndim}-D data of shape {data.shape}", "a 2-D image")
    return np.asarray(data)


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
                value = header.get(name)
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
        """Return a keyword as a number; InputError if it is there and is none."""
        value = self.get(*names)
        if value is None:
            return None
        try:
            return float(value)
        except (TypeError, ValueError):
            raise InputError(f"{self.path}: {'/'.join(names)}", repr(value), "a number") from None


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
            return PlaneSource(str(sibling), found[0])
    version = hdus[sci_index].ver
    for index in _find_hdus(hdus, plane):
        header = hdus[index].header
        if layout.imsets != "none" and hdus[index].ver != version:
            continue
        if index == sci_index or header.get("NAXIS", 0) == 0:
            return None  # a null HDU: the plane was never filled
        _check_shape(f"{path}[{index}]", header, shape)
        return PlaneSource(str(path), index)
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
    trim = layout.trim_section if trimmed else None
    shape = (raw_shape[0], raw_shape[1])
    if trim is not None:
        rows, columns = section_slices(trim)
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        header = _shift_origin(header, columns.start, rows.start)
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
    gain = lookup.number(*instrument.keywords.gain) or electronics.gain
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
        sci=PlaneSource(str(path), index),
        weight=_plane_source(path, hdus, layout.weight, layout, index, (raw_shape[0], raw_shape[1])),
        weight_kind=layout.weight.kind if layout.weight else "inverse_variance",
        flag=_plane_source(path, hdus, layout.flag, layout, index, (raw_shape[0], raw_shape[1])),
        trim=trim,
        overscan=layout.overscan_section if trimmed else None,
        bias_level=(electronics.bias_level or 0.0) if units.startswith("adu") else 0.0,
        saturation=electronics.saturation,
        bad_pixel_map=electronics.bad_pixel_map,
        header=_header_text(header),
        primary_header=_header_text(hdus[0].header) if index else "",
    )


def _header_text(header: fits.Header) -> str:
    return header.tostring(sep="\n", endcard=False, padding=False)


def _shift_origin(header: fits.Header, x: int, y: int) -> fits.Header:
    """Move the reference pixel of a frame that loses `x` columns and `y` rows at its origin."""
    shifted = header.copy()
    for axis, offset in ((1, x), (2, y)):
        for keyword in (f"CRPIX{axis}", f"LTV{axis}"):
            if keyword in shifted:
                shifted[keyword] = shifted[keyword] - offset
    return shifted


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
    name = re.sub(r"[^\w.+-]", "_", str(value))
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


def read_sci(source: UnitSource) -> npt.NDArray[np.float32]:
    """Return the science plane, float32 (y, x), trimmed, in the file's own units."""
    with open_fits(Path(source.sci.path)) as hdus:
        data = plane_data(Path(source.sci.path), hdus, source.sci.hdu)
        with np.errstate(over="ignore"):
            return np.array(_trim(data, source), dtype=np.float32)


def _trim(data: npt.NDArray[Any], source: UnitSource) -> npt.NDArray[Any]:
    return data if source.trim is None else data[section_slices(source.trim)]


def read_weight(source: UnitSource) -> npt.NDArray[np.float32]:
    """Return the inverse variance [units^-2], 0 where a pixel is unusable.

    From the file's weight, variance or error; where it has none, from gain, read noise and counts:
    ``variance = max(counts - bias, 0) + read_noise^2`` [e-^2].
    """
    if source.weight is None:
        return _modelled_weight(source)
    path = Path(source.weight.path)
    with open_fits(path) as hdus:
        raw = np.array(_trim(plane_data(path, hdus, source.weight.hdu), source), dtype=np.float32)
    power = {"inverse_variance": 1.0, "variance": -1.0, "error": -2.0}[source.weight_kind]
    for first in range(0, len(raw), _BAND):  # in bands, for double precision is wanted and memory is not free
        band = raw[first : first + _BAND]
        usable = np.isfinite(band) & (band > 0)
        if power != 1:
            with np.errstate(all="ignore"):
                band[:] = band.astype(np.float64) ** power
            usable &= np.isfinite(band)  # an error so small that its weight overflows is no measurement
        band[~usable] = 0
    return raw


def _modelled_weight(source: UnitSource) -> npt.NDArray[np.float32]:
    scale = electrons_per_unit(source.units, source.exptime, source.gain)
    bias = _overscan_level(source) if source.overscan else source.bias_level
    variance = read_sci(source)
    variance -= np.float32(bias)
    variance *= np.float32(scale)
    unusable = ~np.isfinite(variance)
    np.maximum(variance, 0, out=variance)
    variance += np.float32(source.read_noise**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        np.divide(np.float32(scale**2), variance, out=variance)
    variance[unusable | ~np.isfinite(variance)] = 0
    return variance


def _overscan_level(source: UnitSource) -> float:
    with open_fits(Path(source.sci.path)) as hdus:
        data = plane_data(Path(source.sci.path), hdus, source.sci.hdu)
        return float(np.median(data[section_slices(source.overscan or "")]))


def electrons_per_unit(units: str, exptime: float, gain: float) -> float:
    """Return the factor from ``units`` to electrons: exposure time [s] and gain [e-/adu] as they apply."""
    scale = gain if units.startswith("adu") else 1.0
    return scale * exptime if units.endswith("s-1") else scale


def read_flag(source: UnitSource, instrument: Instrument) -> npt.NDArray[np.int32]:
    """Return the flag plane as bits, int32 (y, x).

    Codes become bits; pixels of a bad-pixel map get the instrument's bad bit. A unit without a flag plane
    has its saturated pixels flagged, where the instrument says at how many electrons that is.
    """
    if source.flag is None:
        flag = _saturation_flag(source, instrument)
    else:
        path = Path(source.flag.path)
        with open_fits(path) as hdus:
            raw = _trim(plane_data(path, hdus, source.flag.hdu), source)
            flag = _as_bits(raw, instrument, f"{path}[{source.flag.hdu}]")
    if source.bad_pixel_map:
        path = Path(source.bad_pixel_map)
        with open_fits(path) as hdus:
            bad = plane_data(path, hdus, _find_hdus(hdus, Plane(hdu=("*",)))[0])
            if bad.shape != flag.shape:
                raise InputError(path, f"shape {bad.shape}", f"{flag.shape}")
            flag[bad != 0] |= instrument.flags.mask(instrument.flags.bad)
    return flag


def _saturation_flag(source: UnitSource, instrument: Instrument) -> npt.NDArray[np.int32]:
    flag = np.zeros(source.shape, dtype=np.int32)
    if source.saturation is not None and "saturated" in instrument.flags.bits:
        scale = electrons_per_unit(source.units, source.exptime, source.gain)
        with np.errstate(invalid="ignore"):
            flag[read_sci(source) * scale >= source.saturation] = instrument.flags.mask("saturated")
    return flag


def _as_bits(raw: npt.NDArray[Any], instrument: Instrument, source: str) -> npt.NDArray[np.int32]:
    if raw.dtype.kind not in "iu" and not (np.isfinite(raw).all() and (raw == np.floor(raw)).all()):
        raise InputError(source, f"{raw.dtype} flags that are no whole numbers", "integer flags")
    limits = np.iinfo(np.int32)
    if raw.size and (raw.min() < limits.min or raw.max() > limits.max):
        raise InputError(
            source, f"flags from {raw.min()} to {raw.max()}, an integer overflow", "flags that fit 32 bits"
        )
    flag = np.array(raw, dtype=np.int32)
    if instrument.flags.encoding == "bits":
        return flag
    bits = np.zeros_like(flag)
    known = flag == 0
    for name, codes in instrument.flags.codes.items():
        for code in codes:
            hit = flag == code
            bits[hit] = instrument.flags.mask(name)
            known |= hit
    if not known.all():
        unknown = sorted({int(code) for code in flag[~known]})[:5]
        raise InputError(source, f"flag codes {unknown}", f"codes that {instrument.name}'s flags.codes name")
    return bits
