"""The pixels and headers of one unit, as a campaign keeps them, one HDU at a time.

Everything was decided when the headers were scanned (``fits_scan.py``); here it is carried out, on a worker.
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
from csstdask.store.fits_scan import PlaneSource, UnitSource

ROWS_AT_ONCE = 256
"""Rows that are converted at once: powers are taken in double precision, and memory is not free."""

Window = tuple[slice, slice]
"""Rows and columns of the trimmed frame, in steps of 1."""
WHOLE: Window = (slice(None), slice(None))


def read_sci(source: UnitSource, window: Window = WHOLE) -> npt.NDArray[np.float32]:
    """Return the science plane, float32 (y, x), trimmed, in the campaign's units: the file's, but for a scale.

    With a `window`, only its bytes are read.
    """
    with np.errstate(over="ignore"):
        raw = _read(source, source.sci, window)
        if source.scale != 1:  # the values of the file may be beyond float32
            raw = raw.astype(np.float64) * source.scale
        return np.array(raw, dtype=np.float32)


def _read_sci_of_file(source: UnitSource, window: Window) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return np.array(_read(source, source.sci, window), dtype=np.float32)


def _read(source: UnitSource, plane: PlaneSource, window: Window) -> npt.NDArray[Any]:
    """Return a window of the trimmed pixels of a plane, as the file has them."""
    with open_fits(Path(plane.path)) as hdus:
        return plane_data(Path(plane.path), hdus, plane.hdu, _in_file(source, window))


def _in_file(source: UnitSource, window: Window) -> Window | None:
    """Return where a window of the trimmed frame lies in the file; None for a whole file."""
    if source.trim is None and window == WHOLE:
        return None
    trim = section_slices(source.trim) if source.trim is not None else (slice(0, None), slice(0, None))
    parts = []
    for part, kept, length in zip(window, trim, source.shape, strict=True):
        first, last, _ = part.indices(length)
        parts.append(slice(kept.start + first, kept.start + max(first, last)))
    return parts[0], parts[1]


def read_weight(source: UnitSource, window: Window = WHOLE) -> npt.NDArray[np.float32]:
    """Return the inverse variance [units^-2], 0 where a pixel is unusable.

    From the file's weight, variance or error; where it has none, from gain, read noise and counts:
    ``variance = max(counts - bias, 0) + read_noise^2`` [e-^2].
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
        kept[~usable | ~np.isfinite(kept)] = 0  # an error so small that its weight overflows is no measurement
    return weights


def _modelled_weight(source: UnitSource, window: Window) -> npt.NDArray[np.float32]:
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
    """Return the pedestal of a frame [its units]: the overscan's median where there is one."""
    if not source.overscan:
        return source.bias_level
    path = Path(source.sci.path)
    with open_fits(path) as hdus:
        return float(np.median(plane_data(path, hdus, source.sci.hdu, section_slices(source.overscan)))) * source.scale


def read_flag(source: UnitSource, instrument: Instrument, window: Window = WHOLE) -> npt.NDArray[np.int32]:
    """Return the flag plane as bits, int32 (y, x).

    Codes become bits, planes that a header numbers move to the instrument's bits, pixels of a bad-pixel map or
    of a bad value get the bad bit. A unit without a flag plane
    has its saturated pixels flagged, where the instrument says at how many electrons that is.
    """
    if source.flag is None:
        flag = _saturation_flag(source, instrument, window)
    else:
        path = Path(source.flag.path)
        with open_fits(path) as hdus:
            raw = plane_data(path, hdus, source.flag.hdu, _in_file(source, window))
            flag = _as_bits(raw, hdus[source.flag.hdu].header, instrument, f"{path}[{source.flag.hdu}]")
    if instrument.flags.bad_values:
        bad = np.isin(_read_sci_of_file(source, window), instrument.flags.bad_values)
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
    if raw.dtype.kind not in "iu" and not (np.isfinite(raw).all() and (raw == np.floor(raw)).all()):
        raise InputError(source, f"{raw.dtype} flags that are no whole numbers", "integer flags")
    if instrument.flags.encoding == "bits" and raw.dtype.kind == "i" and raw.dtype.itemsize < 4:
        raw = raw.view(raw.dtype.str.replace("i", "u"))  # the highest bit of a short integer is a flag, not a sign
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
    """Move the planes that a header numbers (``MP_SAT = 1``: bit 1) to the instrument's bits."""
    prefix = flags.plane_keyword or ""
    names = {value: key[len(prefix) :].lower() for key, value in header.items() if key.startswith(prefix)}
    moved = np.zeros_like(flag)
    for bit in range(31):
        name = names.get(bit, "")
        moved[(flag >> bit) & 1 == 1] |= flags.bits[name if name in flags.bits else flags.other or ""]
    return moved


def read_headers(source: UnitSource) -> tuple[str, str]:
    """Return the header of the science plane, moved by the trim, and the primary one, a card a line."""
    with open_fits(Path(source.sci.path)) as hdus:
        header = hdus[source.sci.hdu].header
        if source.trim is not None:
            rows, columns = section_slices(source.trim)
            header = shifted_header(header, columns.start, rows.start)
        return _header_text(header), _header_text(hdus[0].header) if source.sci.hdu else ""


def _header_text(header: fits.Header) -> str:
    """Return the cards as text; one that breaks the FITS standard is left out, not the frame."""
    cards = []
    for card in header.cards:
        try:
            card.verify("silentfix")
            cards.append(str(card))
        except (fits.VerifyError, ValueError):
            continue
    return "\n".join(cards)
