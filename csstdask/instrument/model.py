"""The validated description of a camera, read from one TOML file.

An instrument is data: detectors, bands, electronics, flag bits and the layout of the FITS files are keys of a TOML
file, and a new camera needs no code. Unknown or wrong keys are errors that name the key. The tables of the file are
defined in the other modules of this package.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, model_validator

from csstdask.core.settings import FrozenSettings
from csstdask.instrument.electronics import Detector, Electronics, Override, expand_id_ranges, merge_electronics
from csstdask.instrument.expectations import Expectations
from csstdask.instrument.file_layout import Keywords, Kind, KindRule, Layout, Recognise, ScaledUnit, check_pattern
from csstdask.instrument.flags import Flags
from csstdask.instrument.optics import Band, Geometry, SlitlessBand, Telescope
from csstdask.instrument.physical_units import Units


class Instrument(FrozenSettings):
    """A camera.

    Electronic values are looked up in ``overrides``, then ``detectors``, then ``electronics``: see `values`.

    Examples
    --------
    >>> from csstdask.instrument import load_instrument
    >>> csst = load_instrument("csst")
    >>> csst.shape, csst.detector(8).band
    ((9232, 9216), 'g')
    """

    name: str = Field(description="Name of the instrument.")
    description: str = Field("", description="One-line description.")
    shape: tuple[int, int] | None = Field(None, description="Nominal shape (y, x) of a detector.")
    pixel_size: tuple[float, float] | None = Field(None, description="Pixel size (y, x) [um].")
    units: Units = Field("electron", description="Units of frames whose header and layout state none.")
    kind: Kind = Field("imaging", description="Kind of frames to which no rule applies.")
    detectors: Annotated[tuple[Detector, ...], BeforeValidator(expand_id_ranges)] = Field(
        min_length=1, description="Detectors."
    )
    electronics: Electronics = Field(Electronics(), description="Camera-wide electronics.")
    electronics_from: Literal["header", "toml"] = Field(
        "header", description="Source of gain and read noise if both header and TOML state them."
    )
    overrides: tuple[Override, ...] = Field((), description="Electronics of some detectors or times.")
    ignored_chips: tuple[Annotated[str, AfterValidator(check_pattern)], ...] = Field(
        (), description="Regular expressions of EXTNAMEs of chips to leave out, such as guide chips."
    )
    scaled_units: tuple[ScaledUnit, ...] = Field((), description="Conversions of other units.")
    flags: Flags = Field(description="Data-quality flags.")
    layouts: tuple[Layout, ...] = Field(min_length=1, description="Layouts of the FITS files.")
    keywords: Keywords = Field(Keywords(), description="Header keywords.")
    kinds: tuple[KindRule, ...] = Field((), description="Rules for the kind of a frame; the first match counts.")
    recognise: Recognise = Field(Recognise(), description="How files are recognised.")
    geometry: Geometry | None = Field(None, description="Focal plane.")
    telescope: Telescope | None = Field(None, description="Telescope.")
    bands: dict[str, Band] = Field(default_factory=dict, description="Filters; needed by mocks.")
    slitless: dict[str, SlitlessBand] = Field(default_factory=dict, description="Gratings by band.")
    expectations: Expectations | None = Field(None, description="Normal ranges for the report; default: no comparison.")
    _by_id: dict[int, Detector] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _ids_unique(self) -> Instrument:
        self._by_id.update({detector.id: detector for detector in self.detectors})
        if len(self._by_id) != len(self.detectors):
            raise ValueError("detectors: found an id twice; wanted unique ids")
        return self

    @property
    def detector_ids(self) -> tuple[int, ...]:
        """Return the ids of all detectors, in the order of the file."""
        return tuple(detector.id for detector in self.detectors)

    def detector(self, detector_id: int) -> Detector:
        """Return one detector.

        Raises
        ------
        KeyError
            If the camera has no detector with this id.
        """
        return self._by_id[detector_id]

    def values(self, detector_id: int, when: np.datetime64 | None = None) -> Electronics:
        """Return the electronics of a detector at a time.

        Overrides take precedence over values of the detector, and these over camera-wide values.
        """
        return merge_electronics([self.electronics, *self._own_scopes(detector_id, when)])

    def detector_values(self, detector_id: int, when: np.datetime64 | None = None) -> Electronics:
        """Return the electronics stated for a detector at a time, without camera-wide values."""
        return merge_electronics(self._own_scopes(detector_id, when))

    def has_dated_overrides(self, detector_id: int) -> bool:
        """Return whether the values of a detector depend on time."""
        dated = (one for one in self.overrides if one.valid_from is not None or one.valid_until is not None)
        return any(one.detectors is None or detector_id in one.detectors for one in dated)

    def _own_scopes(self, detector_id: int, when: np.datetime64 | None) -> list[Electronics]:
        return [self.detector(detector_id), *(one for one in self.overrides if one.applies(detector_id, when))]
