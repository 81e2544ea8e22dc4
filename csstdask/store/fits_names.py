"""Interpret names of FITS HDUs: planes in common use, and chips in names such as ``ERR_2``."""

from __future__ import annotations

import re
from typing import Any, Literal

from csstdask.instrument.file_layout import WeightKind
from csstdask.store.fits_file import header_value

Role = Literal["sci", "wht", "flag"]

COMMON_NAMES: dict[str, tuple[Role, WeightKind]] = {
    **dict.fromkeys(("SCI", "SCIENCE", "IMAGE", "IMG", "DATA"), ("sci", "inverse_variance")),
    **dict.fromkeys(("WHT", "WEIGHT", "WGT", "IVAR", "INVVAR"), ("wht", "inverse_variance")),
    **dict.fromkeys(("VAR", "VARIANCE", "STAT"), ("wht", "variance")),
    **dict.fromkeys(("ERR", "ERROR", "RMS", "SIGMA", "STD", "STDDEV", "UNCERT", "UNCERTAINTY"), ("wht", "error")),
    **dict.fromkeys(("FLG", "FLAG", "FLAGS", "DQ", "MASK", "BPM", "QUALITY"), ("flag", "inverse_variance")),
}
"""Plane name to (role, meaning of its values if it is a weight plane)."""
UTYPE_KINDS: dict[str, WeightKind] = {
    "StdDevUncertainty": "error",
    "VarianceUncertainty": "variance",
    "InverseVariance": "inverse_variance",
}
"""Meaning of an UNCERT plane written by astropy.nddata, by its keyword UTYPE."""


NOT_SCIENCE = {
    "AREA", "BACKGROUND", "BKG", "CON", "CONTEXT", "COVERAGE", "CTX", "EXP", "EXPMAP", "EXPTIME", "MODEL", "PREVIEW",
    "SAMP", "SEG", "SEGMENTATION", "SKY", "SKYFIT", "THUMBNAIL", "TIME", "WAVELENGTH",
}  # fmt: skip
"""Names of images that are neither science, weight nor flag planes."""


def hdu_name(hdu: Any) -> str:
    """Return the name of an HDU in capitals; empty if it has none."""
    return str(header_value(hdu.header, "EXTNAME") or "").strip().upper()


def split_name(name: str) -> tuple[str, str]:
    """Split an HDU name into the name of the plane and the chip.

    Examples
    --------
    >>> [split_name(name) for name in ("ERR_2", "ERR2", "CCD2.ERR", "N4")]
    [('ERR', '2'), ('ERR', '2'), ('ERR', 'CCD2'), ('N4', '')]
    """
    if name in COMMON_NAMES:
        return name, ""
    match = re.fullmatch(r"([A-Z]+)(\d+)", name)
    if match is not None and match[1] in COMMON_NAMES:
        return match[1], match[2]
    found = []
    for pattern, base, tag in ((r"([A-Z]+)[ _.:-](.+)", 1, 2), (r"(.+)[ _.:-]([A-Z]+)", 2, 1)):
        match = re.fullmatch(pattern, name)
        if match is not None and (match[base] in COMMON_NAMES or match[base] in NOT_SCIENCE):
            found.append((match[base], match[tag]))
    # In SCI_ERR, the errors of the science image, ERR is the name of the plane.
    specific = [part for part in found if COMMON_NAMES.get(part[0], ("",))[0] != "sci"]
    if len(found) == 2 and len(specific) == 1:
        return specific[0]
    return found[0] if len(found) == 1 else (name, "")


def may_hold(name: str, role: Role) -> bool:
    """Return whether an HDU of this name may contain a plane of this role: it names a chip or the role."""
    base = split_name(name)[0]
    meaning = COMMON_NAMES.get(base)
    return base not in NOT_SCIENCE if meaning is None else meaning[0] == role
