"""Cameras as data: descriptions read from TOML, geometry, dispersion and units."""

from csstdask.instrument.expectations import Expectations
from csstdask.instrument.file_layout import Layout, Plane, section_slices
from csstdask.instrument.flags import Flags
from csstdask.instrument.geometry import (
    celestial_wcs,
    footprint,
    nominal_header,
    pixel_of,
    pixel_positions,
    readable_wcs,
    shifted_header,
    sky_positions,
)
from csstdask.instrument.model import Instrument
from csstdask.instrument.physical_units import electrons_per_unit, parse_units, power_of_units
from csstdask.instrument.registry import builtin_names, load_instrument, recognise, validate_instrument

__all__ = [
    "Expectations",
    "Flags",
    "Instrument",
    "Layout",
    "Plane",
    "builtin_names",
    "celestial_wcs",
    "electrons_per_unit",
    "footprint",
    "load_instrument",
    "nominal_header",
    "parse_units",
    "pixel_of",
    "pixel_positions",
    "power_of_units",
    "readable_wcs",
    "recognise",
    "section_slices",
    "shifted_header",
    "sky_positions",
    "validate_instrument",
]
