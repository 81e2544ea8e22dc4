"""Layout of the FITS files of a camera: planes, keywords, kinds, and how a file is recognised."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from csstdask.core.settings import FrozenSettings
from csstdask.instrument.physical_units import Units

Kind = Literal["imaging", "slitless", "dark", "bias", "flat", "cosmic_rays"]

WeightKind = Literal["inverse_variance", "variance", "error"]


def _check_section(text: str) -> str:
    if not re.fullmatch(r"\[\s*\d+:\d+\s*,\s*\d+:\d+\s*\]", text):
        raise ValueError("a FITS section such as '[14:519,11:1022]' (x first, one-based, inclusive)")
    return text


Section = Annotated[str, AfterValidator(_check_section)]


def section_slices(section: str) -> tuple[slice, slice]:
    """Convert a FITS section ``[x1:x2,y1:y2]`` to array slices (y, x).

    Examples
    --------
    >>> section_slices("[14:519,11:1022]")
    (slice(10, 1022, None), slice(13, 519, None))
    """
    x1, x2, y1, y2 = (int(number) for number in re.findall(r"\d+", section))
    return slice(y1 - 1, y2), slice(x1 - 1, x2)


class Plane(FrozenSettings):
    """HDUs that may contain one plane of a unit; the first present one is used."""

    hdu: tuple[str | int, ...] = Field(description="EXTNAMEs or HDU numbers, tried in order; '*': any image HDU.")
    suffix: str = Field(
        "", description="In a layout of separate files: part of the file name that identifies this plane."
    )
    kind: WeightKind = Field("inverse_variance", description="Meaning of a weight plane.")
    optional: bool = Field(False, description="True: the plane may be absent.")


class Layout(FrozenSettings):
    """Distribution of the planes of a unit over HDUs or files."""

    name: str = Field(description="Name of the layout, for messages.")
    sci: Plane = Field(description="Science plane.")
    weight: Plane | None = Field(None, description="Weight, variance or error plane.")
    flag: Plane | None = Field(None, description="Flag plane.")
    imsets: Literal["none", "exposures", "detectors"] = Field("none", description="Meaning of the EXTVERs of a file.")
    raw_shape: tuple[int, int] | None = Field(None, description="Shape (y, x) of untrimmed frames.")
    trim_section: Section | None = Field(None, description="FITS section of untrimmed frames that is kept.")
    overscan_section: Section | None = Field(None, description="FITS section of the overscan.")
    units: Units | None = Field(None, description="Units of frames whose header states none.")

    @property
    def separate_files(self) -> bool:
        """Return whether each plane is in a separate file."""
        return bool(self.sci.suffix)


def check_pattern(text: str | None) -> str | None:
    """Return a regular expression; raise ValueError if it is invalid."""
    if text is not None:
        try:
            re.compile(text)
        except re.error as error:
            raise ValueError(f"a regular expression ({error})") from None
    return text


def _check_group(text: str | None) -> str | None:
    if text is not None and re.compile(check_pattern(text) or "").groups < 1:
        raise ValueError("a regular expression with a group")
    return text


Pattern = Annotated[str | None, AfterValidator(check_pattern)]

GroupPattern = Annotated[str | None, AfterValidator(_check_group)]


class Time(FrozenSettings):
    """Header keywords of the start of the exposure."""

    keyword: str = Field(description="Keyword of the date, or of date and time.")
    format: Literal["isot", "mjd"] = Field("isot", description="Format: ISO 8601 or Modified Julian Date.")
    time_of_day: str | None = Field(
        None, description="Keyword of the time of day, if `keyword` contains only the date."
    )


class Keywords(FrozenSettings):
    """Header keywords, tried in order in the science header and then in the primary header."""

    exposure: tuple[str, ...] = Field(("OBSID",), description="Exposure id.")
    detector: tuple[str, ...] = Field(("DETECTOR",), description="Detector id.")
    detector_pattern: GroupPattern = Field(None, description="Regular expression whose group 1 is the detector id.")
    exptime: tuple[str, ...] = Field(("EXPTIME",), description="Exposure time [s].")
    time: tuple[Time, ...] = Field((Time(keyword="DATE-OBS"),), description="Start of the exposure.")
    band: tuple[str, ...] = Field(("FILTER",), description="Band.")
    band_pattern: GroupPattern = Field(None, description="Regular expression whose group 1 is the band.")
    gain: tuple[str, ...] = Field(("GAIN",), description="Gain [e-/adu].")
    read_noise: tuple[str, ...] = Field(("RDNOISE",), description="Read noise [e-].")
    units: tuple[str, ...] = Field(("BUNIT",), description="Units of the pixels.")
    missing: tuple[str | float, ...] = Field((), description="Values that mean unknown.")
    zero_is_missing: tuple[str, ...] = Field((), description="Keywords in which 0 means unknown.")


class ScaledUnit(FrozenSettings):
    """Conversion of pixels in other units, such as MJy/sr, to units of a campaign.

    ``campaign [units] = file [unit] * factor / header[divide_by]``. Export undoes the conversion.
    """

    unit: str = Field(description="BUNIT in the files.")
    units: Units = Field(description="Units in the campaign.")
    factor: float = Field(1.0, gt=0, allow_inf_nan=False, description="Constant factor.")
    divide_by: tuple[str, ...] = Field(
        (), description="Keywords with the factor of the file, tried in order, such as PHOTMJSR [MJy/sr per adu/s]."
    )

    @model_validator(mode="after")
    def _check_conversion(self) -> ScaledUnit:
        if self.factor == 1 and not self.divide_by:
            raise ValueError("scaled_units: found neither factor nor divide_by; wanted one of them")
        return self

    def matches(self, text: str) -> bool:
        """Return whether the unit of a header is this one, ignoring spaces and case."""
        return "".join(text.split()).casefold() == "".join(self.unit.split()).casefold()


class KindRule(FrozenSettings):
    """A rule: frames with one of these values of a keyword or file-name group are of this kind."""

    kind: Kind = Field(description="Kind of the frames.")
    keyword: str | None = Field(None, description="Header keyword, or 'band'.")
    file_type: bool = Field(False, description="Compare the group 'type' of file_pattern instead of a keyword.")
    values: tuple[str, ...] = Field(description="Values of this kind.")


class Recognise(FrozenSettings):
    """Properties that identify a file of this camera."""

    headers: tuple[dict[str, Annotated[str, AfterValidator(check_pattern)]], ...] = Field(
        (), description="Sets of keyword = regular expression, one of which must match."
    )
    file_pattern: Pattern = Field(
        None, description="Regular expression of the file name; its groups exposure, detector and type are used."
    )
