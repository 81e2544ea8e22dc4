"""Units of pixels: the four that ``sci`` may have, how headers spell them, and what they are in electrons."""

from __future__ import annotations

from typing import Literal

Units = Literal["electron s-1", "electron", "adu", "adu s-1"]

#: Spellings of the four units of ``sci`` found in headers, lower case.
UNIT_SYNONYMS: dict[str, Units] = {
    **dict.fromkeys(("electron", "electrons", "e", "e-"), "electron"),
    **dict.fromkeys(
        (
            "electron s-1",
            "electron/s",
            "electrons/s",
            "electrons s-1",
            "e/s",
            "e-/s",
            "e s-1",
            "e- s-1",
            "electron / s",
        ),
        "electron s-1",
    ),
    **dict.fromkeys(("adu", "count", "counts", "dn", "ct"), "adu"),
    **dict.fromkeys(("adu s-1", "adu/s", "count/s", "counts/s", "counts s-1", "dn/s", "dn s-1", "adu / s"), "adu s-1"),
}


def parse_units(text: str) -> Units | None:
    """Return the unit of ``sci`` that ``text`` spells, or None if it spells none."""
    return UNIT_SYNONYMS.get(" ".join(text.lower().split()))


def power_of_units(units: str, power: int) -> str:
    """Return a power of units as FITS spells it: ``electron s-1`` to the -2 is ``electron-2 s2``.

    Raises
    ------
    ValueError
        If they are no units that astropy knows.
    """
    from astropy import units as u  # noqa: PLC0415  not every command needs astropy

    unit = u.Unit(units)
    parts = zip(unit.bases, unit.powers, strict=True)
    return " ".join(
        f"{base.to_string()}{'' if exponent * power == 1 else exponent * power}" for base, exponent in parts
    )


def electrons_per_unit(units: str, exptime: float, gain: float) -> float:
    """Return the factor from ``units`` to electrons: exposure time [s] and gain [e-/adu] as they apply."""
    scale = gain if units.startswith("adu") else 1.0
    return scale * exptime if units.endswith("s-1") else scale
