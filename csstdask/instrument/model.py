"""What a camera is: a validated description, read from one TOML file.

An instrument is data. Everything the rest of the package needs to know about a camera (detectors and
bands, electronics, flag bits, how its FITS files are laid out and recognised) is a key of its TOML file;
a new camera is a new file and no code. The models below are the schema of that file: an unknown or wrong
key is an error that names the key.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator

from csstdask.instrument.physical_units import Units

Kind = Literal["imaging", "slitless", "dark", "bias", "flat", "cosmic_rays"]
WeightKind = Literal["inverse_variance", "variance", "error"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _check_section(text: str) -> str:
    if not re.fullmatch(r"\[\s*\d+:\d+\s*,\s*\d+:\d+\s*\]", text):
        raise ValueError("a FITS section such as '[14:519,11:1022]' (x first, one-based, inclusive)")
    return text


Section = Annotated[str, AfterValidator(_check_section)]


def section_slices(section: str) -> tuple[slice, slice]:
    """Turn a FITS section ``[x1:x2,y1:y2]`` into array slices ``(y, x)``."""
    x1, x2, y1, y2 = (int(number) for number in re.findall(r"\d+", section))
    return slice(y1 - 1, y2), slice(x1 - 1, x2)


class Electronics(_Model):
    """What a detector's read-out does; every value may be absent and then comes from a wider scope."""

    gain: float | None = Field(None, gt=0, description="e-/adu")
    read_noise: float | None = Field(None, ge=0, description="e-")
    saturation: float | None = Field(None, gt=0, description="full well, e-")
    adc_limit: float | None = Field(None, gt=0, description="counts from which a raw frame is saturated, adu")
    bias_level: float | None = Field(None, description="pedestal of raw frames, adu")
    usable: bool | None = Field(None, description="False: a dead detector, recorded and never processed")
    bad_pixel_map: str | None = Field(None, description="FITS file, non-zero = bad; relative to the TOML")


class Detector(Electronics):
    """One detector: its id, band and electronics."""

    id: int = Field(ge=0)
    name: str | None = None
    band: str | None = None


def _spread(detectors: object) -> object:
    """Turn ``{ ids = "1-62" }`` into that many detectors that are alike."""
    if not isinstance(detectors, (list, tuple)):
        return detectors
    spread: list[object] = []
    for item in detectors:
        if not isinstance(item, dict) or "ids" not in item:
            spread.append(item)
            continue
        match = re.fullmatch(r"(\d+)-(\d+)", str(item["ids"]))
        if match is None or "id" in item:
            raise ValueError(f"detectors: ids = {item['ids']!r} is not a range such as '1-62', or stands beside an id")
        rest = {key: value for key, value in item.items() if key != "ids"}
        spread += [{"id": number} | rest for number in range(int(match[1]), int(match[2]) + 1)]
    return spread


class Override(Electronics):
    """Values that hold for some detectors during some time."""

    detectors: tuple[int, ...] | None = Field(None, description="ids; None: all")
    valid_from: dt.datetime | dt.date | None = None
    valid_until: dt.datetime | dt.date | None = Field(None, description="exclusive")

    def applies(self, detector: int, when: np.datetime64 | None) -> bool:
        """Tell whether these values hold for a detector at a time (an unknown time meets open ends only)."""
        if self.detectors is not None and detector not in self.detectors:
            return False
        if when is None or np.isnat(when):
            return self.valid_from is None and self.valid_until is None
        if self.valid_from is not None and when < _instant(self.valid_from):
            return False
        return self.valid_until is None or bool(when < _instant(self.valid_until))


def _instant(moment: dt.datetime | dt.date) -> np.datetime64:
    if isinstance(moment, dt.datetime) and moment.tzinfo is not None:
        moment = moment.astimezone(dt.UTC).replace(tzinfo=None)
    return np.datetime64(moment, "us")


class Flags(_Model):
    """The data-quality plane: bits, or codes that are turned into bits on ingest."""

    encoding: Literal["bits", "codes"] = "bits"
    bits: dict[str, int] = Field(description="meaning -> mask, one bit each")
    codes: dict[str, tuple[int, ...]] = Field(default_factory=dict, description="meaning -> codes in the file")
    plane_keyword: str | None = Field(
        None, description="what begins the keywords of the file's own plane numbers, as MP_ in MP_SAT = 1"
    )
    other: str | None = Field(None, description="with plane_keyword: the bit for planes that `bits` does not name")
    bad_values: tuple[float, ...] | None = Field(None, description="values of the science plane that mean 'bad'")
    cosmic_ray: str = Field("cosmic_ray", description="the bit that export sets where csstdask found one")
    incoming_cosmic_ray: tuple[str, ...] = Field(
        ("cosmic_ray",), description="bits in which the files' own pipeline reports cosmic rays"
    )
    inpainted: str = "inpainted"
    bad: str = Field("bad", description="the bit that a bad-pixel map sets")
    ignore_flags: tuple[str, ...] = Field((), description="pixels with any of these bits take no part")

    @model_validator(mode="after")
    def _names_exist(self) -> Flags:
        for key in ("cosmic_ray", "inpainted", *(("bad",) if self.bad_values else ())):
            if getattr(self, key) not in self.bits:
                raise ValueError(f"flags.{key} = {getattr(self, key)!r} is not one of flags.bits {sorted(self.bits)}")
        for key in ("incoming_cosmic_ray", "ignore_flags"):
            for name in getattr(self, key):
                if name not in self.bits:
                    raise ValueError(f"flags.{key} names {name!r}, not one of flags.bits {sorted(self.bits)}")
        for name in self.codes:
            if name not in self.bits:
                raise ValueError(f"flags.codes names {name!r}, not one of flags.bits {sorted(self.bits)}")
        for name, value in self.bits.items():
            if value <= 0 or value & (value - 1) or value >= 2**31:
                raise ValueError(f"flags.bits.{name} = {value} is not one bit below 2^31")
        if len(set(self.bits.values())) != len(self.bits):
            raise ValueError("flags.bits gives two meanings to one bit")
        if (self.plane_keyword is None) != (self.other is None) or self.other not in {None, *self.bits}:
            raise ValueError("flags.plane_keyword and flags.other, one of flags.bits, go together")
        if self.encoding == "codes" and not self.codes:
            raise ValueError("flags.encoding = 'codes' needs flags.codes")
        if set(self.ignore_flags) & set(self.incoming_cosmic_ray):
            raise ValueError("flags.ignore_flags may not hold a cosmic-ray bit: ours replaces theirs")
        return self

    def mask(self, *names: str) -> int:
        """Return the union of the named bits."""
        value = 0
        for name in names:
            value |= self.bits[name]
        return value

    @property
    def cosmic_ray_mask(self) -> int:
        """Return the bit that export sets."""
        return self.bits[self.cosmic_ray]

    @property
    def incoming_cosmic_ray_mask(self) -> int:
        """Return the bits that other pipelines set for cosmic rays."""
        return self.mask(*self.incoming_cosmic_ray)

    @property
    def inpainted_mask(self) -> int:
        """Return the bit for repaired pixels."""
        return self.bits[self.inpainted]

    @property
    def ignore_mask(self) -> int:
        """Return the bits of pixels that take no part."""
        return self.mask(*self.ignore_flags)


class Plane(_Model):
    """Where one plane of a unit lies: the first of these HDUs that is there."""

    hdu: tuple[str | int, ...] = Field(description="EXTNAMEs or HDU numbers, tried in order; '*' any image HDU")
    suffix: str = Field("", description="in a triplet of files: the part of the name that tells this plane")
    kind: WeightKind = "inverse_variance"
    optional: bool = Field(False, description="True: a file without this plane is not incomplete")


class Layout(_Model):
    """How the planes of a unit are spread over HDUs or files."""

    name: str
    sci: Plane
    weight: Plane | None = None
    flag: Plane | None = None
    imsets: Literal["none", "exposures", "detectors"] = Field("none", description="what the EXTVERs of one file are")
    raw_shape: tuple[int, int] | None = Field(None, description="(y, x) of untrimmed frames")
    trim_section: Section | None = None
    overscan_section: Section | None = None
    units: Units | None = Field(None, description="of frames whose header does not say")

    @property
    def separate_files(self) -> bool:
        """Tell whether each plane has a file of its own."""
        return bool(self.sci.suffix)


def _check_pattern(text: str | None) -> str | None:
    if text is not None:
        try:
            re.compile(text)
        except re.error as error:
            raise ValueError(f"a regular expression ({error})") from None
    return text


def _check_group(text: str | None) -> str | None:
    if text is not None and re.compile(_check_pattern(text) or "").groups < 1:
        raise ValueError("a regular expression with a group")
    return text


Pattern = Annotated[str | None, AfterValidator(_check_pattern)]
GroupPattern = Annotated[str | None, AfterValidator(_check_group)]


class Time(_Model):
    """Where the time of the exposure stands."""

    keyword: str
    format: Literal["isot", "mjd"] = "isot"
    time_of_day: str | None = Field(None, description="a second keyword, where the first holds only the date")


class Keywords(_Model):
    """Header keywords, tried in order in the SCI header and then in the primary one."""

    exposure: tuple[str, ...] = ("OBSID",)
    detector: tuple[str, ...] = ("DETECTOR",)
    detector_pattern: GroupPattern = Field(None, description="regular expression whose group 1 is the id")
    exptime: tuple[str, ...] = ("EXPTIME",)
    time: tuple[Time, ...] = (Time(keyword="DATE-OBS"),)
    band: tuple[str, ...] = ("FILTER",)
    band_pattern: GroupPattern = Field(None, description="regular expression whose group 1 is the band")
    gain: tuple[str, ...] = ("GAIN",)
    read_noise: tuple[str, ...] = ("RDNOISE",)
    units: tuple[str, ...] = ("BUNIT",)
    missing: tuple[str | float, ...] = Field((), description="values that mean 'not known'")
    zero_is_missing: tuple[str, ...] = Field((), description="keywords in which 0 means 'not known'")


class ScaledUnit(_Model):
    """Pixels in a unit that a campaign does not know, such as MJy/sr: how they become one that it knows.

    ``pixels [units] = pixels of the file [unit] * factor / header[divide_by]``. Export undoes it.
    """

    unit: str = Field(description="BUNIT in the files")
    units: Units = Field(description="what the campaign holds")
    factor: float = Field(1.0, gt=0, allow_inf_nan=False)
    divide_by: tuple[str, ...] = Field(
        (), description="keywords, tried in order, of the file's own factor, as PHOTMJSR [MJy/sr per adu/s]"
    )

    @model_validator(mode="after")
    def _says_how(self) -> ScaledUnit:
        if self.factor == 1 and not self.divide_by:
            raise ValueError("scaled_units: found neither factor nor divide_by; wanted one of them")
        return self

    def matches(self, text: str) -> bool:
        """Tell whether a header's unit is this one: spaces and case do not matter."""
        return "".join(text.split()).casefold() == "".join(self.unit.split()).casefold()


class KindRule(_Model):
    """Frames whose keyword (or file-name group) has one of these values are of this kind."""

    kind: Kind
    keyword: str | None = None
    file_type: bool = Field(False, description="compare the group 'type' of file_pattern instead")
    values: tuple[str, ...]


class Recognise(_Model):
    """How a file of this camera is told from others."""

    headers: tuple[dict[str, Annotated[str, AfterValidator(_check_pattern)]], ...] = Field(
        (), description="any of these sets of keyword = regular expression"
    )
    file_pattern: Pattern = Field(
        None, description="regular expression on the file's name; groups exposure, detector, type are used"
    )


class Geometry(_Model):
    """The focal plane, in detector pixels from its centre: where each detector's centre lies."""

    pixel_scale: float = Field(gt=0, description="arcsec per pixel")
    centres: dict[int, tuple[float, float]] = Field(description="id -> (x, y) [pixel]")
    orientation: tuple[tuple[float, float], tuple[float, float]] = Field(
        ((-1.0, 0.0), (0.0, 1.0)), description="CD matrix divided by the pixel scale"
    )


class Band(_Model):
    """A filter as the camera sees through it."""

    wavelength: tuple[float, float] = Field(description="where it is open [nm]")
    zero_point: float = Field(description="AB magnitude of 1 e-/s")
    sky: float = Field(ge=0, description="typical sky [e-/s/pixel]")

    @model_validator(mode="after")
    def _ascending(self) -> Band:
        if not 0 < self.wavelength[0] < self.wavelength[1]:
            raise ValueError(f"wavelength: found {self.wavelength}; wanted two, ascending [nm]")
        return self


FieldPolynomial = tuple[float, float, float, float, float, float]


class SlitlessOrder(_Model):
    """One diffraction order of a grating: trace, wavelength solution, throughput (see `instrument/dispersion.py`)."""

    order: int = Field(description="diffraction order; 0 is an undispersed image")
    wavelength: tuple[float, float] = Field(description="first and last wavelength, vacuum [Angstrom]")
    dx: tuple[FieldPolynomial, ...] = Field(
        min_length=1, description="offset along x [pixel]: a row for each power of t, of 1, u, v, u^2, u v, v^2"
    )
    dy: tuple[FieldPolynomial, ...] = Field(min_length=1, description="offset along y [pixel], as dx")
    throughput: tuple[tuple[float, float], ...] = Field(
        min_length=2, description="pairs of wavelength [Angstrom] and throughput, ascending; monotone in between"
    )

    @model_validator(mode="after")
    def _usable(self) -> SlitlessOrder:
        if not 0 < self.wavelength[0] < self.wavelength[1]:
            raise ValueError(f"wavelength: found {self.wavelength}; wanted two, ascending [Angstrom]")
        waves = [wavelength for wavelength, _ in self.throughput]
        if any(second <= first for first, second in pairwise(waves)):
            raise ValueError("throughput: found wavelengths that do not ascend; wanted ascending ones [Angstrom]")
        if self.order != 0 and (len(self.dx) < 2 or self.dx[1][0] == 0):
            raise ValueError(f"order {self.order}: found no dispersion (dx[1]); wanted one, except in order 0")
        return self


class SlitlessBand(_Model):
    """A grating as the camera sees through it."""

    resolution: float = Field(gt=0, description="R = wavelength / FWHM of a point source, pixel included")
    sky: float = Field(ge=0, description="typical sky, all orders [e-/s/pixel]")
    orders: tuple[SlitlessOrder, ...] = Field(min_length=1)


class Telescope(_Model):
    """What collects the light."""

    diameter: float = Field(gt=0, description="of the pupil [m]")
    obscuration: float = Field(0.0, ge=0, lt=1, description="diameter of the central obscuration / diameter")


def _check_range(limits: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= limits[0] < limits[1] < float("inf"):
        raise ValueError(f"found {limits}; wanted two numbers from 0, ascending")
    return limits


Range = Annotated[tuple[float, float], AfterValidator(_check_range)]


class Expectations(_Model):
    """What is normal for a camera's cosmic rays: a report compares each unit with it.

    Both ranges are of what the run detects, so that they leave room for the orbit, the solar cycle and the threshold
    of the detection.
    """

    cosmic_ray_rate: Range | None = Field(None, description="events s-1 cm-2")
    hit_rate: Range | None = Field(None, description="share of the pixels that is hit in a second [s-1]")
    source: str = Field(description="where the numbers come from; the report prints it")

    @model_validator(mode="after")
    def _something_expected(self) -> Expectations:
        if self.cosmic_ray_rate is None and self.hit_rate is None:
            raise ValueError("found neither cosmic_ray_rate nor hit_rate; wanted one of them, or no expectations")
        return self

    def hit_fraction(self, exptime: float) -> tuple[float, float] | None:
        """Return the share of pixels hit in an exposure [s], lowest and highest; None where nothing is expected.

        Hits of one second are independent of those of another: the share is 1 - exp(-hit_rate exptime).
        """
        if self.hit_rate is None or not exptime > 0:
            return None
        low, high = (float(-np.expm1(-rate * exptime)) for rate in self.hit_rate)
        return low, high


class Instrument(_Model):
    """A camera.

    ``detectors``, ``electronics`` and ``overrides`` are scopes from narrow to wide to dated: see `values`.
    """

    name: str
    description: str = ""
    shape: tuple[int, int] | None = Field(None, description="nominal (y, x) of one detector")
    pixel_size: tuple[float, float] | None = Field(None, description="(y, x) on the detector [um]")
    units: Units = "electron"
    kind: Kind = "imaging"
    detectors: Annotated[tuple[Detector, ...], BeforeValidator(_spread)] = Field(min_length=1)
    electronics: Electronics = Electronics()
    electronics_from: Literal["header", "toml"] = Field(
        "header", description="which gain and read noise count where a header and this file both state one"
    )
    overrides: tuple[Override, ...] = ()
    ignored_chips: tuple[Annotated[str, AfterValidator(_check_pattern)], ...] = Field(
        (), description="regular expressions on EXTNAMEs of chips to leave out, such as guide and focus chips"
    )
    scaled_units: tuple[ScaledUnit, ...] = ()
    flags: Flags
    layouts: tuple[Layout, ...] = Field(min_length=1)
    keywords: Keywords = Keywords()
    kinds: tuple[KindRule, ...] = ()
    recognise: Recognise = Recognise()
    geometry: Geometry | None = None
    telescope: Telescope | None = None
    bands: dict[str, Band] = Field(default_factory=dict, description="filters; a mock needs them")
    slitless: dict[str, SlitlessBand] = Field(default_factory=dict, description="gratings, by band")
    expectations: Expectations | None = Field(None, description="of the report; None: values are shown, not judged")
    _by_id: dict[int, Detector] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _ids_unique(self) -> Instrument:
        self._by_id.update({detector.id: detector for detector in self.detectors})
        if len(self._by_id) != len(self.detectors):
            raise ValueError("detectors: an id stands twice")
        return self

    @property
    def detector_ids(self) -> tuple[int, ...]:
        """Return the ids of all detectors, in the order of the file."""
        return tuple(detector.id for detector in self.detectors)

    def detector(self, detector_id: int) -> Detector:
        """Return one detector; KeyError if the camera has none with this id."""
        return self._by_id[detector_id]

    def values(self, detector_id: int, when: np.datetime64 | None = None) -> Electronics:
        """Return the electronics of a detector at a time: camera-wide, then its own, then dated overrides."""
        return _merged([self.electronics, *self._own_scopes(detector_id, when)])

    def detector_values(self, detector_id: int, when: np.datetime64 | None = None) -> Electronics:
        """Return what is stated for this very detector at a time, without the camera-wide values."""
        return _merged(self._own_scopes(detector_id, when))

    def has_dated_overrides(self, detector_id: int) -> bool:
        """Tell whether the values of a detector depend on the time."""
        dated = (one for one in self.overrides if one.valid_from is not None or one.valid_until is not None)
        return any(one.detectors is None or detector_id in one.detectors for one in dated)

    def _own_scopes(self, detector_id: int, when: np.datetime64 | None) -> list[Electronics]:
        return [self.detector(detector_id), *(one for one in self.overrides if one.applies(detector_id, when))]


def _merged(scopes: Iterable[Electronics]) -> Electronics:
    """Return the values of several scopes; a later one goes before an earlier one."""
    merged: dict[str, object] = {}
    for scope in scopes:
        merged |= {key: value for key in Electronics.model_fields if (value := getattr(scope, key)) is not None}
    return Electronics.model_validate(merged)
