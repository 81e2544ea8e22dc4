"""FITS out: one file a unit, HDU 1 SCI, 2 WHT, 3 FLG, with the headers it came with.

A file whose weights or flags were planes of other names, such as ERR and DQ, gets these back as separate HDUs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits

from csstdask.instrument import power_of_units, readable_wcs
from csstdask.instrument.geometry import LOOKUP_KEYWORDS, WORLD_KEYWORDS

_STRUCTURAL = (
    "EXTNAME",
    "EXTVER",
    "EXTLEVEL",
    "INHERIT",
    "BZERO",
    "BSCALE",
    "BLANK",
    "CHECKSUM",
    "DATASUM",
    "XTENSION",
    "SIMPLE",
    "EXTEND",
    "NEXTEND",
    "PCOUNT",
    "GCOUNT",
)
"""Keywords that describe how the pixels were stored, not what they are."""


def write_unit(
    path: Path,
    sci: npt.NDArray[Any],
    wht: npt.NDArray[Any],
    flag: npt.NDArray[np.int32],
    *,
    exptime: float,
    header: str,
    primary_header: str,
    units: str,
    cards: Iterable[tuple[str, Any, str | None]] = (),
    history: Iterable[str] = (),
    science_cards: Iterable[tuple[str, Any, str | None]] = (),
    planes: str = "",
    unit_scale: float = 1.0,
    file_units: str = "",
) -> None:
    """Write one unit's planes and headers, whole or not at all.

    Parameters
    ----------
    path : Path
        The file; replaced if it is there.
    sci, wht, flag : arrays (y, x)
        float32 in `units`, float32 in units^-2, int32.
    exptime : float
        [s]
    header, primary_header : str
        The original ones, a card a line.
    units : str
        Written as BUNIT, unless pixels were scaled on ingest.
    cards : iterable of (keyword, value, comment)
        Provenance, added to the primary header.
    history : iterable of str
        What was done, added to the primary header as HISTORY.
    science_cards : iterable of (keyword, value, comment)
        Added to the header of SCI.
    planes : str
        How the planes were found in the original file (JSON). An ERR or DQ plane there is written here too.
    unit_scale : float
        What pixels were multiplied by on ingest; they are divided by it.
    file_units : str
        The original BUNIT of pixels that were scaled.
    """
    primary = fits.PrimaryHDU(header=_restored(primary_header))
    primary.header["EXPTIME"] = (exptime, "[s] exposure time")
    for keyword, value, comment in cards:
        primary.header[keyword] = (value, comment)
    for line in history:
        primary.header.add_history(line)
    if unit_scale != 1:
        # In double precision until they are written: scaled weights may be beyond float32.
        sci, wht, units = sci.astype(np.float64) / unit_scale, wht.astype(np.float64) * unit_scale**2, file_units
    science = fits.ImageHDU(_narrow(sci), header=_restored(header), name="SCI")
    science.header["BUNIT"] = units
    for keyword, value, comment in science_cards:
        science.header[keyword] = (value, comment)
    _make_readable(science.header)
    world = _world(science.header)
    weight = fits.ImageHDU(_narrow(wht), header=world.copy(), name="WHT")
    weight_units = _power(units, -2)
    if weight_units:
        weight.header["BUNIT"] = (weight_units, "inverse variance")
    flags = fits.ImageHDU(np.ascontiguousarray(flag, dtype=np.int32), header=world.copy(), name="FLG")
    flags.header["BUNIT"] = ("", "bits")
    hdus = [primary, science, weight, flags, *_original_planes(wht, flag, planes, units, world)]
    draft = path.with_name(f".{path.name}.partial")
    try:
        whole = fits.HDUList(hdus)
        whole.update_extend()
        for hdu in whole:
            hdu.add_checksum(when="HDU checksum")  # without the time, so that the same pixels give the same file
        whole.writeto(draft, overwrite=True, output_verify="silentfix+ignore")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _narrow(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return values as float32; as float64 where float32 cannot hold them."""
    with np.errstate(over="ignore", under="ignore"):
        narrow = np.ascontiguousarray(values, dtype=np.float32)
    kept = np.isfinite(narrow) == np.isfinite(values)
    return narrow if (kept & ((narrow != 0) == (values != 0))).all() else np.ascontiguousarray(values, dtype=np.float64)


def _restored(text: str) -> fits.Header:
    header = fits.Header.fromstring(text, sep="\n") if text else fits.Header()
    for keyword in _STRUCTURAL:
        header.remove(keyword, ignore_missing=True, remove_all=True)
    lookups = [card.keyword for card in header.cards if LOOKUP_KEYWORDS.match(card.keyword)]
    for keyword in dict.fromkeys(lookups):
        header.remove(keyword, ignore_missing=True, remove_all=True)
    if lookups:
        header.add_history("csstdask: left out look-up distortions, whose tables are not kept (below .1 pixel)")
    return header


def _make_readable(header: fits.Header) -> None:
    """Remove a WCS that astropy cannot read, and say so: one in the original that is broken, or needs a table."""
    if readable_wcs(header) is not None:
        return
    for keyword in {card.keyword for card in header.cards if WORLD_KEYWORDS.fullmatch(card.keyword)}:
        header.remove(keyword, ignore_missing=True, remove_all=True)
    header.add_history("csstdask: left out the WCS, which cannot be read or needs a table that is not kept")


def _world(header: fits.Header) -> fits.Header:
    """Return the world coordinates of a header, for the planes beside it."""
    return fits.Header([card for card in header.cards if WORLD_KEYWORDS.fullmatch(card.keyword)])


def _power(units: str, power: int) -> str:
    """Return a power of units; nothing where they are no units that astropy knows."""
    try:
        return power_of_units(units, power)
    except (ValueError, TypeError):
        return ""


def _original_planes(
    wht: npt.NDArray[Any], flag: npt.NDArray[np.int32], planes: str, units: str, world: fits.Header
) -> list[fits.ImageHDU]:
    """Return the weights and flags under the names of the original file, where it had others than WHT and FLG.

    Errors and variances of unusable pixels are NaN.
    """
    record = json.loads(planes) if planes else {}
    extra: list[fits.ImageHDU] = []
    kind, name = record.get("wht", {}).get("kind"), record.get("wht", {}).get("name")
    if name and kind in {"error", "variance"}:
        with np.errstate(divide="ignore"):
            values = np.where(wht > 0, wht.astype(np.float64) ** (-0.5 if kind == "error" else -1.0), np.nan)
        extra.append(fits.ImageHDU(_narrow(values), header=world.copy(), name=name))
        extra[-1].header["BUNIT"] = units if kind == "error" else _power(units, 2)
    name = record.get("flag", {}).get("name")
    if name and name != "FLG":
        extra.append(fits.ImageHDU(np.ascontiguousarray(flag, dtype=np.int32), header=world.copy(), name=name))
        extra[-1].header["BUNIT"] = ("", "bits")
    return extra
