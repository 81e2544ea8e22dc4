"""Gain, read noise and other properties of detectors: camera-wide, per detector, or dated."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable

import numpy as np
from pydantic import Field

from csstdask.core.settings import FrozenSettings


class Electronics(FrozenSettings):
    """Properties of the read-out of a detector. Absent values come from a wider scope."""

    gain: float | None = Field(None, gt=0, description="Gain [e-/adu].")
    read_noise: float | None = Field(None, ge=0, description="Read noise [e-].")
    saturation: float | None = Field(None, gt=0, description="Full well [e-].")
    adc_limit: float | None = Field(None, gt=0, description="Counts at which raw frames saturate [adu].")
    bias_level: float | None = Field(None, description="Pedestal of raw frames [adu].")
    usable: bool | None = Field(None, description="False: a dead detector, which is recorded but not processed.")
    bad_pixel_map: str | None = Field(
        None, description="FITS file of bad pixels (non-zero), relative to the TOML file."
    )


class Detector(Electronics):
    """One detector: id, band and electronics."""

    id: int = Field(ge=0, description="Detector id.")
    name: str | None = Field(None, description="Name of the detector.")
    band: str | None = Field(None, description="Fixed filter or grating; default: stated in the header.")


def expand_id_ranges(detectors: object) -> object:
    """Expand ``{ ids = "1-62" }`` into equal detectors with these ids."""
    if not isinstance(detectors, (list, tuple)):
        return detectors
    expanded: list[object] = []
    for item in detectors:
        if not isinstance(item, dict) or "ids" not in item:
            expanded.append(item)
            continue
        match = re.fullmatch(r"(\d+)-(\d+)", str(item["ids"]))
        if match is None or "id" in item:
            raise ValueError(
                f"detectors: ids = {item['ids']!r} is not a range such as '1-62', or is given together with id"
            )
        rest = {key: value for key, value in item.items() if key != "ids"}
        expanded += [{"id": number} | rest for number in range(int(match[1]), int(match[2]) + 1)]
    return expanded


class Override(Electronics):
    """Values for some detectors during a period of time."""

    detectors: tuple[int, ...] | None = Field(None, description="Detector ids; default: all.")
    valid_from: dt.datetime | dt.date | None = Field(None, description="Start of validity, inclusive.")
    valid_until: dt.datetime | dt.date | None = Field(None, description="End of validity, exclusive.")

    def applies(self, detector: int, when: np.datetime64 | None) -> bool:
        """Return whether these values apply to a detector at a time; an unknown time matches undated values only."""
        if self.detectors is not None and detector not in self.detectors:
            return False
        if when is None or np.isnat(when):
            return self.valid_from is None and self.valid_until is None
        if self.valid_from is not None and when < _to_datetime64(self.valid_from):
            return False
        return self.valid_until is None or bool(when < _to_datetime64(self.valid_until))


def _to_datetime64(moment: dt.datetime | dt.date) -> np.datetime64:
    """Return a date or time as datetime64 in UTC."""
    if isinstance(moment, dt.datetime) and moment.tzinfo is not None:
        moment = moment.astimezone(dt.UTC).replace(tzinfo=None)
    return np.datetime64(moment, "us")


def merge_electronics(scopes: Iterable[Electronics]) -> Electronics:
    """Return the values of several scopes; later scopes take precedence."""
    merged: dict[str, object] = {}
    for scope in scopes:
        merged |= {key: value for key in Electronics.model_fields if (value := getattr(scope, key)) is not None}
    return Electronics.model_validate(merged)
