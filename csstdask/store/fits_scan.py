"""Find the units of a FITS file from its headers alone.

Scanning decides everything (layout, exposure, detector, kind, trim), so that reading the pixels on a worker
(``fits_planes.py``) needs no further decisions.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from astropy.io import fits

from csstdask.core.errors import InputError
from csstdask.instrument import Instrument, section_slices
from csstdask.store.fits_file import open_fits
from csstdask.store.fits_header import HeaderLookup
from csstdask.store.fits_layout import Chip, FileChips, find_chips
from csstdask.store.fits_metadata import (
    exposure_name,
    find_band,
    find_detector,
    find_exposure_id,
    find_exposure_time,
    find_gain_and_read_noise,
    find_kind,
    find_start_time,
    find_units,
    parse_detector,
)
from csstdask.store.fits_pairing import FoundPlane
from csstdask.store.fits_plane_search import sibling_path
from csstdask.store.fits_unit import FileScan, PlaneSource, UnitSource
from csstdask.store.schema import NO_TIME

_FLAG_RULES = {"encoding", "codes", "bits", "bad", "plane_keyword", "other", "bad_values"}
"""Keys of an instrument's flags on which the flag plane depends."""


def scan_file(path: Path, instrument: Instrument, hdus: fits.HDUList | None = None) -> FileScan:
    """Find the units of a FITS file from its headers.

    Parameters
    ----------
    path : Path
        FITS file. In a layout of separate files, the science file; the others are found in the same folder.
    instrument : Instrument
        Camera, whose layouts are tried.
    hdus : HDUList, optional
        The file, if it is already open.

    Returns
    -------
    FileScan
        Units, and an error for each chip that cannot be used.

    Raises
    ------
    InputError
        If the file is unreadable or truncated, has no science image, or lacks a required plane.

    Examples
    --------
    >>> scan_file(Path("ibo821kvq_flt.fits"), load_instrument("hst_wfc3_uvis")).units  # doctest: +SKIP
    """
    if hdus is None:
        with open_fits(path) as opened:
            return scan_file(path, instrument, opened)

    def detector_of(header: fits.Header) -> int | None:
        lookup = HeaderLookup(path, instrument, (header,), "")
        try:
            return parse_detector(lookup.text(*instrument.keywords.detector), instrument)
        except InputError:
            return None  # the chip is refused later, when its headers are read

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
    """Return the science file of a weight or flag file in a layout of separate files, else None."""
    for layout in instrument.layouts:
        if not layout.separate_files:
            continue
        for plane in (layout.weight, layout.flag):
            if plane is not None and plane.suffix in path.name:
                return sibling_path(path, plane.suffix, layout.sci.suffix)
    return None


def _scan_unit(path: Path, hdus: fits.HDUList, instrument: Instrument, found: FileChips, chip: Chip) -> UnitSource:
    """Return one chip of a file as a unit, with everything that is needed to read it."""
    layout, index = found.layout, chip.sci.hdu
    source = f"{path}[{index}]"
    _check_shapes(chip, source)
    lookup = HeaderLookup(path, instrument, (hdus[index].header, hdus[0].header), path.name)
    detector = find_detector(lookup, instrument, source)
    trimmed = layout.raw_shape is not None and chip.sci.shape == layout.raw_shape
    if layout.raw_shape is not None and not trimmed:
        wanted = f"{layout.raw_shape}, the frames of layout {layout.name!r} (others need a layout in your own TOML)"
        raise InputError(source, f"shape {chip.sci.shape}", wanted)
    trim = layout.trim_section if trimmed else None
    shape = (chip.sci.shape[0], chip.sci.shape[1])
    if trim is not None:
        rows, columns = section_slices(trim)
        shape = (rows.stop - rows.start, columns.stop - columns.start)
    notes: list[str] = []
    time = find_start_time(lookup, instrument, detector, notes)
    when = None if time == NO_TIME else np.datetime64(time, "us")
    electronics = instrument.values(detector, when)
    band = find_band(lookup, instrument, detector)
    kind = find_kind(lookup, instrument, band)
    units, scale, file_units = find_units(lookup, instrument, layout, source)
    gain, read_noise = find_gain_and_read_noise(lookup, instrument, detector, when, source, notes)
    exposure_id = find_exposure_id(lookup, instrument, layout)
    return UnitSource(
        exposure=exposure_name(exposure_id, lookup, layout, hdus[index].ver, kind),
        exposure_id=exposure_id,
        detector=detector,
        kind=kind,
        band=band,
        units=units,
        shape=shape,
        exptime=find_exposure_time(lookup, kind, units, source),
        time=time,
        gain=gain,
        read_noise=read_noise,
        sci=PlaneSource(str(path.absolute()), index),
        weight=_plane_source(chip.wht),
        weight_kind=chip.wht.kind if chip.wht else layout.weight.kind if layout.weight else "inverse_variance",
        flag=_plane_source(chip.flag),
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


def _check_shapes(chip: Chip, source: str) -> None:
    """Raise InputError unless the planes of a chip are 2-D images of one shape."""
    shape = chip.sci.shape
    if len(shape) == 0:
        raise InputError(source, "an HDU without data", "an image")
    if len(shape) != 2 or min(shape) < 1:
        raise InputError(source, f"{len(shape)}-D data of shape {shape}", "a 2-D image")
    for plane in (chip.wht, chip.flag):
        if plane is not None and plane.shape and plane.shape != shape:
            wanted = f"the science plane's {shape}"
            raise InputError(f"{plane.path}[{plane.hdu}]", f"shape {plane.shape}", wanted)


def _plane_source(plane: FoundPlane | None) -> PlaneSource | None:
    """Return file and HDU of a plane; None if there is no plane, or its HDU has no data."""
    return PlaneSource(str(plane.path.absolute()), plane.hdu) if plane is not None and plane.shape else None
