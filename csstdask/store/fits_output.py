"""FITS out: one file a unit, HDU 1 SCI, 2 WHT, 3 FLG, with the headers it came with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits

#: Keywords that describe how the pixels were stored, not what they are.
_STRUCTURAL = (
    "EXTVER",
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


#: Beginnings of keywords that place pixels on the sky.
_WORLD = (
    "CTYPE", "CRVAL", "CRPIX", "CUNIT", "CD", "PC", "PV", "CDELT", "LTV", "LTM", "RADESYS", "EQUINOX", "WCSAXES",
    "A_", "B_", "AP_", "BP_", "LONPOLE", "LATPOLE",
)  # fmt: skip


def write_unit(
    path: Path,
    sci: npt.NDArray[np.float32],
    wht: npt.NDArray[np.float32],
    flag: npt.NDArray[np.int32],
    *,
    exptime: float,
    header: str,
    primary_header: str,
    units: str,
    cards: Iterable[tuple[str, Any, str | None]] = (),
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
        Written as BUNIT.
    cards : iterable of (keyword, value, comment)
        Provenance, added to the primary header.
    """
    primary = fits.PrimaryHDU(header=_restored(primary_header))
    primary.header["EXPTIME"] = (exptime, "[s] exposure time")
    for keyword, value, comment in cards:
        primary.header[keyword] = (value, comment)
    science = fits.ImageHDU(np.ascontiguousarray(sci, dtype=np.float32), header=_restored(header), name="SCI")
    science.header["BUNIT"] = units
    weight = fits.ImageHDU(np.ascontiguousarray(wht, dtype=np.float32), header=_world(science.header), name="WHT")
    weight.header["BUNIT"] = (f"({units})^-2", "inverse variance")
    flags = fits.ImageHDU(np.ascontiguousarray(flag, dtype=np.int32), header=_world(science.header), name="FLG")
    draft = path.with_name(f".{path.name}.partial")
    try:
        fits.HDUList([primary, science, weight, flags]).writeto(draft, overwrite=True, output_verify="silentfix+ignore")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _restored(text: str) -> fits.Header:
    header = fits.Header.fromstring(text, sep="\n") if text else fits.Header()
    for keyword in _STRUCTURAL:
        header.remove(keyword, ignore_missing=True, remove_all=True)
    return header


def _world(header: fits.Header) -> fits.Header:
    """Return the world coordinates of a header, for the planes beside it."""
    kept = fits.Header()
    for card in header.cards:
        if card.keyword.startswith(_WORLD):
            kept.append(card)
    return kept
