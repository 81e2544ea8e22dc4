"""Units of pixels: the four units of ``sci``, their spellings in headers, and conversion to electrons."""

from __future__ import annotations

from typing import Literal

Units = Literal["electron s-1", "electron", "adu", "adu s-1"]

# Spellings of the four units of ``sci`` in headers, in lower case.
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
    """Return the unit of ``sci`` that a text spells, or None.

    Examples
    --------
    >>> parse_units("ELECTRONS/S")
    'electron s-1'
    """
    return UNIT_SYNONYMS.get(" ".join(text.lower().split()))


def power_of_units(units: str, power: int) -> str:
    """Return a power of units in FITS spelling.

    Raises
    ------
    ValueError
        If astropy does not know the units.

    Examples
    --------
    >>> power_of_units("electron s-1", -2)
    'electron-2 s2'
    """
    from astropy import units as u  # noqa: PLC0415  not every command needs astropy

    unit = u.Unit(units)
    parts = zip(unit.bases, unit.powers, strict=True)
    return " ".join(
        f"{base.to_string()}{'' if exponent * power == 1 else exponent * power}" for base, exponent in parts
    )


def electrons_per_unit(units: str, exptime: float, gain: float) -> float:
    """Return the factor from units of ``sci`` to electrons.

    Parameters
    ----------
    units : str
        Units of ``sci``.
    exptime : float
        Exposure time [s].
    gain : float
        Gain [e-/adu].

    Examples
    --------
    >>> electrons_per_unit("adu s-1", 150.0, 1.5)
    225.0
    """
    scale = gain if units.startswith("adu") else 1.0
    return scale * exptime if units.endswith("s-1") else scale
