"""What names of FITS HDUs mean: planes in common use, and the chips in names such as ``ERR_2``."""

from __future__ import annotations

import re
from typing import Any, Literal

from csstdask.instrument.model import WeightKind
from csstdask.store.fits_file import header_value

Role = Literal["sci", "wht", "flag"]

COMMON_NAMES: dict[str, tuple[Role, WeightKind]] = {
    **dict.fromkeys(("SCI", "SCIENCE", "IMAGE", "IMG", "DATA"), ("sci", "inverse_variance")),
    **dict.fromkeys(("WHT", "WEIGHT", "WGT", "IVAR", "INVVAR"), ("wht", "inverse_variance")),
    **dict.fromkeys(("VAR", "VARIANCE", "STAT"), ("wht", "variance")),
    **dict.fromkeys(("ERR", "ERROR", "RMS", "SIGMA", "STD", "STDDEV", "UNCERT", "UNCERTAINTY"), ("wht", "error")),
    **dict.fromkeys(("FLG", "FLAG", "FLAGS", "DQ", "MASK", "BPM", "QUALITY"), ("flag", "inverse_variance")),
}
"""Names of planes in common use -> what they hold, and what a weight plane of that name is."""
UTYPE_KINDS: dict[str, WeightKind] = {
    "StdDevUncertainty": "error",
    "VarianceUncertainty": "variance",
    "InverseVariance": "inverse_variance",
}
"""What an UNCERT plane that astropy.nddata wrote holds, by its keyword UTYPE."""


NOT_SCIENCE = {
    "AREA", "BACKGROUND", "BKG", "CON", "CONTEXT", "COVERAGE", "CTX", "EXP", "EXPMAP", "EXPTIME", "MODEL", "PREVIEW",
    "SAMP", "SEG", "SEGMENTATION", "SKY", "SKYFIT", "THUMBNAIL", "TIME", "WAVELENGTH",
}  # fmt: skip
"""Names of images that are neither a science plane nor its weights or flags."""


def hdu_name(hdu: Any) -> str:
    """Return the name of an HDU in capitals; nothing where it has none."""
    return str(header_value(hdu.header, "EXTNAME") or "").strip().upper()


def split_name(name: str) -> tuple[str, str]:
    """Split ``ERR_2``, ``ERR2`` or ``CCD2.ERR`` into what the plane is and which chip it is of."""
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
    # Of SCI_ERR, the errors of the science image, ERR says what the plane is.
    specific = [part for part in found if COMMON_NAMES.get(part[0], ("",))[0] != "sci"]
    if len(found) == 2 and len(specific) == 1:
        return specific[0]
    return found[0] if len(found) == 1 else (name, "")


def may_hold(name: str, role: Role) -> bool:
    """Return whether an HDU of this name may hold a plane: its name is a chip's, or names this kind of plane."""
    base = split_name(name)[0]
    meaning = COMMON_NAMES.get(base)
    return base not in NOT_SCIENCE if meaning is None else meaning[0] == role
