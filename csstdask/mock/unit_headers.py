"""FITS headers and file names of a rendered unit."""

from __future__ import annotations

import numpy as np
from astropy.io.fits import Header

from csstdask.instrument import Instrument, nominal_header
from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.recipe import Recipe
from csstdask.mock.schedule import exposure_start
from csstdask.mock.unit_catalogue import exposure_dither


def unit_headers(recipe: Recipe, instrument: Instrument, index: int, detector: int) -> tuple[Header, Header]:
    """Return the science and the primary header of a unit.

    The WCS is that of the dithered pointing with the error of the recipe.
    """
    field = recipe.field_of(index)
    header = nominal_header(instrument, detector, field.pointing, recipe.frame_shape)
    dx, dy = exposure_dither(recipe, index)
    scale = instrument.geometry.pixel_scale if instrument.geometry is not None else 1.0
    error = stream(recipe.seed, Purpose.POINTING, index, 1).normal(0, recipe.pointing.wcs_error / scale, 2)
    header["CRPIX1"] += dx + error[0]
    header["CRPIX2"] += dy + error[1]
    values = instrument.values(detector)
    header["EXTNAME"] = "SCI"
    header["BUNIT"] = "e/s"
    header["GAIN1"] = (values.gain, "[e-/adu]")
    header["RDNOISE1"] = (values.read_noise, "[e-]")
    primary = Header()
    primary["TELESCOP"] = "CSST"
    primary["INSTRUME"] = "MSC"
    primary["OBSID"] = recipe.exposure_ids[index]
    primary["DETECTOR"] = f"MSC_{detector:02d}"
    primary["FILTER"] = instrument.detector(detector).band
    primary["EXPTIME"] = (recipe.exptime, "[s]")
    primary["DATE-OBS"] = str(exposure_start(recipe, index))
    primary["RA_OBJ"], primary["DEC_OBJ"] = field.pointing
    primary["OBJECT"] = field.name or f"mock {recipe.name}"
    return header, primary


def file_stem(recipe: Recipe, index: int, detector: int, kind: str) -> str:
    """Return the file name of a unit without level: ``CSST_MSC_MS_<kind>_<start>_<stop>_<obsid>_<chip>``."""
    start = exposure_start(recipe, index)
    stop = start + np.timedelta64(round(recipe.exptime), "s")
    stamps = "_".join(f"{moment.item():%Y%m%d%H%M%S}" for moment in (start, stop))
    return f"CSST_MSC_MS_{kind}_{stamps}_{recipe.exposure_ids[index]}_{detector:02d}"
