"""Write units as FITS: one file per unit, HDU 1 SCI, 2 WHT, 3 FLG, with the original headers.

Weight and flag planes with other names in the original file, such as ERR and DQ, are written as additional HDUs.
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
"""Keywords that describe the storage of the pixels."""


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
    """Write the planes and headers of one unit atomically.

    Parameters
    ----------
    path : Path
        File to write; replaced if it exists.
    sci, wht, flag : arrays (y, x)
        Science plane (float32, `units`), inverse variance (float32, units^-2) and flags (int32).
    exptime : float
        Exposure time [s].
    header, primary_header : str
        Original headers, one card per line.
    units : str
        Units of the pixels, written as BUNIT unless pixels were scaled on ingest.
    cards : iterable of (keyword, value, comment)
        Provenance cards of the primary header.
    history : iterable of str
        HISTORY cards of the primary header.
    science_cards : iterable of (keyword, value, comment)
        Additional cards of the science header.
    planes : str
        Record of the planes of the original file (JSON). Its ERR or DQ planes are written too.
    unit_scale : float
        Factor by which pixels were multiplied on ingest; it is undone.
    file_units : str
        Original BUNIT of scaled pixels.
    """
    primary = fits.PrimaryHDU(header=_restored(primary_header))
    primary.header["EXPTIME"] = (exptime, "[s] exposure time")
    for keyword, value, comment in cards:
        primary.header[keyword] = (value, comment)
    for line in history:
        primary.header.add_history(line)
    if unit_scale != 1:
        # In double precision until they are written, because scaled weights may exceed float32.
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
        content = fits.HDUList(hdus)
        content.update_extend()
        for hdu in content:
            hdu.add_checksum(when="HDU checksum")  # no time: equal pixels give equal files
        content.writeto(draft, overwrite=True, output_verify="silentfix+ignore")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _narrow(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return values as float32, or as float64 if float32 would overflow or underflow."""
    with np.errstate(over="ignore", under="ignore"):
        narrow = np.ascontiguousarray(values, dtype=np.float32)
    representable = np.isfinite(narrow) == np.isfinite(values)
    return (
        narrow
        if (representable & ((narrow != 0) == (values != 0))).all()
        else np.ascontiguousarray(values, dtype=np.float64)
    )


def _restored(text: str) -> fits.Header:
    """Return an original header without structural keywords and look-up distortions."""
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
    """Remove a WCS that astropy cannot read, because it is invalid or needs a table, and record this."""
    if readable_wcs(header) is not None:
        return
    for keyword in {card.keyword for card in header.cards if WORLD_KEYWORDS.fullmatch(card.keyword)}:
        header.remove(keyword, ignore_missing=True, remove_all=True)
    header.add_history("csstdask: left out the WCS, which cannot be read or needs a table that is not kept")


def _world(header: fits.Header) -> fits.Header:
    """Return the world-coordinate keywords of a header, for the other planes."""
    return fits.Header([card for card in header.cards if WORLD_KEYWORDS.fullmatch(card.keyword)])


def _power(units: str, power: int) -> str:
    """Return a power of units; empty if astropy does not know them."""
    try:
        return power_of_units(units, power)
    except (ValueError, TypeError):
        return ""


def _original_planes(
    wht: npt.NDArray[Any], flag: npt.NDArray[np.int32], planes: str, units: str, world: fits.Header
) -> list[fits.ImageHDU]:
    """Return the weight and flag planes under their original names, if these differ from WHT and FLG.

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
