"""Header cards of zero points in exported units: MAGZERO, MAGZERR and MAGZMETH of SCI."""

from __future__ import annotations

import math
from collections.abc import Callable

from astropy.io import fits

from csstdask.instrument import electrons_per_unit
from csstdask.pipeline.provenance import Provenance
from csstdask.pipeline.source_tables import ZeroPointValue
from csstdask.store.unit_metadata import UnitMetadata

KEYWORDS = ("MAGZERO", "MAGZERR", "MAGZMETH")
"""Keywords of the zero point in the header of SCI."""


def electron_rate(units: str, metadata: UnitMetadata, unit_scale: float = 1.0) -> float:
    """Return the rate of 1 unit of an exported SCI [electron s-1]; NaN where exposure time or gain are unknown.

    Parameters
    ----------
    units : str
        Units of the campaign's ``sci``.
    facts : UnitFacts
        Exposure time and gain.
    unit_scale : float
        Factor by which ingest multiplied the pixels; exported pixels are divided by it.

    Examples
    --------
    >>> metadata = UnitMetadata("101", 7, "imaging", "i", 150.0, 0, 1.5, 5.0, "")
    >>> [electron_rate(units, metadata) for units in ("electron s-1", "electron", "adu", "adu s-1")]
    [1.0, 0.006666666666666667, 0.01, 1.5]
    """
    per_second = unit_scale * electrons_per_unit(units, 1.0, metadata.gain)
    seconds = 1.0 if units.endswith("s-1") else metadata.exptime
    known = 0 < per_second < math.inf and 0 < seconds < math.inf
    return per_second / seconds if known else float("nan")


def zero_point_cards(zero_point: ZeroPointValue, rate: float = 1.0) -> Provenance:
    """Return the header cards of a unit's zero point; none if it is unknown.

    Parameters
    ----------
    zero_point : ZeroPointValue
        Zero point of 1 electron/s.
    rate : float
        Rate of 1 unit of SCI [electron s-1]. MAGZERO refers to sums of SCI as written: a star whose total light is S,
        in units of SCI, has m = MAGZERO - 2.5 log10(S).

    Examples
    --------
    >>> found = ZeroPointValue(25.0, 0.003, "solve", -0.05)
    >>> [value for _, value, _ in zero_point_cards(found, 0.01)]
    [30.0, 0.003, 'solve']
    """
    if not (zero_point.known and math.isfinite(rate)):
        return ()
    return (
        ("MAGZERO", round(zero_point.value - 2.5 * math.log10(rate), 6), "[mag] AB magnitude of 1 unit of SCI (BUNIT)"),
        ("MAGZERR", round(zero_point.sigma, 6), "[mag] 1 sigma of MAGZERO"),
        ("MAGZMETH", zero_point.method, "solve, joined, prior, borrowed, nominal"),
    )


def differing_cards(science: fits.Header, zero_point: Provenance, original: Callable[[], str]) -> list[str]:
    """Return the keywords of the zero point that differ between an exported header and the present zero point.

    A file exported before the zero points changed has other values, or cards although there is no zero point now. Cards
    of the same name in the original file are kept if the run has no zero point.

    Parameters
    ----------
    science : Header
        Header of SCI in the exported file.
    zero_point : cards
        Cards of the present zero point (`zero_point_cards`).
    original : callable
        Returns the header of SCI as it was ingested, one card per line.

    Examples
    --------
    >>> header = fits.Header({"MAGZERO": 25.1})
    >>> differing_cards(header, (("MAGZERO", 25.1, None),), lambda: "")
    []
    >>> differing_cards(header, (), lambda: "")
    ['MAGZERO']
    """
    due = {keyword: value for keyword, value, _ in zero_point}
    if not due and not any(keyword in science for keyword in KEYWORDS):
        return []
    before = fits.Header.fromstring(original(), sep="\n")
    return [name for name in KEYWORDS if science.get(name) != due.get(name, before.get(name))]
