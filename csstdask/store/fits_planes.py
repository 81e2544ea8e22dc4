"""Read the pixels and headers of one unit in the form of a campaign, one HDU at a time.

All decisions were made when the headers were scanned (``fits_scan.py``). These functions run on workers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits

from csstdask.core.errors import InputError
from csstdask.instrument import Flags, Instrument, electrons_per_unit, section_slices, shifted_header
from csstdask.store.fits_file import open_fits, plane_data
from csstdask.store.fits_unit import PlaneSource, UnitSource

ROWS_AT_ONCE = 256
"""Rows converted at a time, which limits the memory of the double-precision conversion."""

Window = tuple[slice, slice]
"""Rows and columns of the trimmed frame, with step 1."""
FULL_FRAME: Window = (slice(None), slice(None))


def read_sci(source: UnitSource, window: Window = FULL_FRAME) -> npt.NDArray[np.float32]:
    """Read the science plane.

    Parameters
    ----------
    source : UnitSource
        The unit.
    window : (slice, slice)
        Rows and columns to read; default: all.

    Returns
    -------
    float32 array (y, x)
        Trimmed pixels in the units of the campaign.
    """
    with np.errstate(over="ignore"):
        raw = _read(source, source.sci, window)
        if source.scale != 1:  # values in the file may exceed float32
            raw = raw.astype(np.float64) * source.scale
        return np.array(raw, dtype=np.float32)


def _read_unscaled_sci(source: UnitSource, window: Window) -> npt.NDArray[np.float32]:
    """Return the science plane in the units of the file."""
    with np.errstate(over="ignore"):
        return np.array(_read(source, source.sci, window), dtype=np.float32)


def _read(source: UnitSource, plane: PlaneSource, window: Window) -> npt.NDArray[Any]:
    """Return a window of the trimmed pixels of a plane, unconverted."""
    with open_fits(Path(plane.path)) as hdus:
        return plane_data(Path(plane.path), hdus, plane.hdu, _in_file(source, window))


def _in_file(source: UnitSource, window: Window) -> Window | None:
    """Return the section of the file for a window of the trimmed frame; None for the complete image."""
    if source.trim is None and window == FULL_FRAME:
        return None
    trim = section_slices(source.trim) if source.trim is not None else (slice(0, None), slice(0, None))
    parts = []
    for part, kept, length in zip(window, trim, source.shape, strict=True):
        first, last, _ = part.indices(length)
        parts.append(slice(kept.start + first, kept.start + max(first, last)))
    return parts[0], parts[1]


def read_weight(source: UnitSource, window: Window = FULL_FRAME) -> npt.NDArray[np.float32]:
    """Read the inverse variance.

    It follows from the weight, variance or error plane. Without one, the variance follows from gain, read noise and
    counts: ``variance = max(counts - bias, 0) + read_noise^2`` [e-^2].

    Parameters
    ----------
    source : UnitSource
        The unit.
    window : (slice, slice)
        Rows and columns to read; default: all.

    Returns
    -------
    float32 array (y, x)
        Inverse variance [units^-2]; 0 where unusable.
    """
    if source.weight is None:
        return _modelled_weight(source, window)
    raw = _read(source, source.weight, window)
    weights = np.empty(raw.shape, dtype=np.float32)
    power = {"inverse_variance": 1.0, "variance": -1.0, "error": -2.0}[source.weight_kind]
    for first in range(0, len(raw), ROWS_AT_ONCE):
        band = raw[first : first + ROWS_AT_ONCE]
        usable = np.isfinite(band) & (band > 0)
        with np.errstate(all="ignore"):
            if power != 1 or source.scale != 1:
                band = band.astype(np.float64) ** power / source.scale**2
            weights[first : first + ROWS_AT_ONCE] = band
        kept = weights[first : first + ROWS_AT_ONCE]
        kept[~usable | ~np.isfinite(kept)] = 0  # a weight that overflows is unusable
    return weights


def _modelled_weight(source: UnitSource, window: Window) -> npt.NDArray[np.float32]:
    """Return the inverse variance from gain, read noise and counts."""
    scale = electrons_per_unit(source.units, source.exptime, source.gain)
    variance = read_sci(source, window)
    variance -= np.float32(_bias(source))
    variance *= np.float32(scale)
    unusable = ~np.isfinite(variance)
    np.maximum(variance, 0, out=variance)
    variance += np.float32(source.read_noise**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        np.divide(np.float32(scale**2), variance, out=variance)
    variance[unusable | ~np.isfinite(variance)] = 0
    return variance


def _bias(source: UnitSource) -> float:
    """Return the pedestal of a frame in its units: the median of the overscan, if there is one."""
    if not source.overscan:
        return source.bias_level
    path = Path(source.sci.path)
    with open_fits(path) as hdus:
        return float(np.median(plane_data(path, hdus, source.sci.hdu, section_slices(source.overscan)))) * source.scale


def read_flag(source: UnitSource, instrument: Instrument, window: Window = FULL_FRAME) -> npt.NDArray[np.int32]:
    """Read the flag plane as bits of the camera.

    Codes are converted to bits, and planes numbered in the header are moved to the bits of the camera. Pixels of a
    bad-pixel map and pixels with a bad value get the bad bit. In a unit without a flag plane, saturated pixels are
    flagged if the saturation of the camera is known.

    Parameters
    ----------
    source : UnitSource
        The unit.
    instrument : Instrument
        Camera.
    window : (slice, slice)
        Rows and columns to read; default: all.

    Returns
    -------
    int32 array (y, x)

    Raises
    ------
    InputError
        If flags are not integers, do not fit into 31 bits, or have an unknown code.
    """
    if source.flag is None:
        flag = _saturation_flag(source, instrument, window)
    else:
        path = Path(source.flag.path)
        with open_fits(path) as hdus:
            raw = plane_data(path, hdus, source.flag.hdu, _in_file(source, window))
            flag = _as_bits(raw, hdus[source.flag.hdu].header, instrument, f"{path}[{source.flag.hdu}]")
    if instrument.flags.bad_values:
        bad = np.isin(_read_unscaled_sci(source, window), instrument.flags.bad_values)
        flag[bad] |= instrument.flags.mask(instrument.flags.bad)
    if source.bad_pixel_map:
        path = Path(source.bad_pixel_map)
        with open_fits(path) as hdus:
            bad = plane_data(path, hdus, _first_image(hdus))
            if bad.shape != source.shape:
                raise InputError(path, f"shape {bad.shape}", f"{source.shape}")
            flag[bad[window] != 0] |= instrument.flags.mask(instrument.flags.bad)
    return flag


def _first_image(hdus: fits.HDUList) -> int:
    return next((index for index, hdu in enumerate(hdus) if getattr(hdu, "is_image", False) and hdu.header["NAXIS"]), 0)


def _saturation_flag(source: UnitSource, instrument: Instrument, window: Window) -> npt.NDArray[np.int32]:
    """Return flags of saturated pixels."""
    flag = np.zeros(np.empty(source.shape, dtype=bool)[window].shape, dtype=np.int32)
    if "saturated" not in instrument.flags.bits:
        return flag
    sci, bit = read_sci(source, window), instrument.flags.mask("saturated")
    with np.errstate(invalid="ignore"):
        if source.adc_limit is not None:
            flag[sci >= source.adc_limit] = bit
        if source.saturation is not None:
            scale = electrons_per_unit(source.units, source.exptime, source.gain)
            flag[(sci - np.float32(_bias(source))) * np.float32(scale) >= source.saturation] = bit
    return flag


def _as_bits(raw: npt.NDArray[Any], header: fits.Header, instrument: Instrument, source: str) -> npt.NDArray[np.int32]:
    """Return a flag plane as bits of the camera."""
    if raw.dtype.kind not in "iu" and not (np.isfinite(raw).all() and (raw == np.floor(raw)).all()):
        raise InputError(source, f"{raw.dtype} flags that are not integers", "integer flags")
    if instrument.flags.encoding == "bits" and raw.dtype.kind == "i" and raw.dtype.itemsize < 4:
        raw = raw.view(raw.dtype.str.replace("i", "u"))  # the highest bit is a flag, not a sign
    limits = np.iinfo(np.int32)
    lowest = 0 if instrument.flags.encoding == "bits" else limits.min
    if raw.size and (raw.min() < lowest or raw.max() > limits.max):
        what = "an integer overflow" if raw.max() > limits.max else "with a sign"
        raise InputError(source, f"flags from {raw.min()} to {raw.max()}, {what}", "flags that fit bits 0 to 30")
    flag = np.array(raw, dtype=np.int32)
    if instrument.flags.plane_keyword is not None:
        return _renumbered(flag, header, instrument.flags)
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


def _renumbered(flag: npt.NDArray[np.int32], header: fits.Header, flags: Flags) -> npt.NDArray[np.int32]:
    """Move the planes numbered in a header (``MP_SAT = 1``: bit 1) to the bits of the camera."""
    prefix = flags.plane_keyword or ""
    names = {value: key[len(prefix) :].lower() for key, value in header.items() if key.startswith(prefix)}
    moved = np.zeros_like(flag)
    for bit in range(31):
        name = names.get(bit, "")
        moved[(flag >> bit) & 1 == 1] |= flags.bits[name if name in flags.bits else flags.other or ""]
    return moved


def read_headers(source: UnitSource) -> tuple[str, str]:
    """Return the header of the science plane, shifted by the trim, and the primary header as text."""
    with open_fits(Path(source.sci.path)) as hdus:
        header = hdus[source.sci.hdu].header
        if source.trim is not None:
            rows, columns = section_slices(source.trim)
            header = shifted_header(header, columns.start, rows.start)
        return _header_text(header), _header_text(hdus[0].header) if source.sci.hdu else ""


def _header_text(header: fits.Header) -> str:
    """Return the cards of a header as text, one per line, without cards that violate the FITS standard."""
    cards = []
    for card in header.cards:
        try:
            card.verify("silentfix")
            cards.append(str(card))
        except (fits.VerifyError, ValueError):
            continue
    return "\n".join(cards)
