"""What a camera is: instruments as data."""

from csstdask.instrument.geometry import celestial_wcs, nominal_header
from csstdask.instrument.model import Instrument, Layout, Plane, parse_units, section_slices
from csstdask.instrument.registry import builtin_names, load_instrument, recognise, validate_instrument

__all__ = [
    "Instrument",
    "Layout",
    "Plane",
    "builtin_names",
    "celestial_wcs",
    "load_instrument",
    "nominal_header",
    "parse_units",
    "recognise",
    "section_slices",
    "validate_instrument",
]
