"""Which plane of a FITS file belongs to which chip: by name, EXTVER, detector keyword, or order.

Ambiguous files are refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from astropy.io import fits

from csstdask.core.errors import InputError
from csstdask.instrument.model import WeightKind
from csstdask.store.fits_file import header_value
from csstdask.store.fits_names import COMMON_NAMES, hdu_name, split_name

DetectorOf = Callable[[fits.Header], int | None]
"""Returns the detector that an HDU's own header states."""


@dataclass(frozen=True)
class FoundPlane:
    """One plane of one chip: where it lies and how it was found."""

    path: Path
    hdu: int
    name: str
    """EXTNAME, or nothing."""
    found_by: str
    kind: WeightKind = "inverse_variance"
    """What the values of a weight plane are."""
    shape: tuple[int, ...] = ()
    """(y, x); empty where the HDU has no data."""

    def record(self) -> dict[str, Any]:
        """Return the record of where the plane was found."""
        return {"file": self.path.name, "hdu": self.hdu, "name": self.name, "found_by": self.found_by}


@dataclass(frozen=True)
class ChipKey:
    """What identifies a chip among the others of a file."""

    name: str
    chip: str | None
    """The chip in its name: ``2`` in ``ERR_2``, or the whole of a name that is no plane's, such as ``N4``."""
    version: int | None
    detector: int | None

    @classmethod
    def of(cls, hdu: Any, detector: int | None) -> ChipKey:
        """Return the key of an HDU whose header states a detector, or none."""
        version = header_value(hdu.header, "EXTVER")
        usable = isinstance(version, int) and not isinstance(version, bool)
        name = hdu_name(hdu)
        base, tag = split_name(name)
        chip = tag if base in COMMON_NAMES else name
        return cls(name, chip or None, version if usable else None, detector)


@dataclass(frozen=True)
class PlaneCandidates:
    """HDUs that hold one kind of plane."""

    path: Path
    indices: list[int]
    found_by: str
    kind: WeightKind
    keys: Mapping[int, ChipKey]
    headers: Mapping[int, fits.Header]


def image_shape(header: fits.Header) -> tuple[int, ...]:
    """Return the shape of an image, slowest axis first; empty for an HDU without data."""
    return tuple(int(header[f"NAXIS{axis}"]) for axis in range(int(header.get("NAXIS", 0)), 0, -1))


def assign_planes(
    path: Path, science: Mapping[int, ChipKey], candidates: PlaneCandidates, detector_of: DetectorOf
) -> dict[int, FoundPlane | InputError | None]:
    """Assign the HDUs of one kind of plane to the science images."""
    others = {
        index: replace(key, detector=detector_of(candidates.headers[index])) for index, key in candidates.keys.items()
    }
    pairs, how = _pair(science, others)
    if pairs is None:
        names = sorted({key.name or "without a name" for key in others.values()})
        found = f"{len(others)} HDUs {'/'.join(names)} for {len(science)} science images"
        wanted = "EXTVER, the detector keyword or names that say which belongs to which"
        return {index: InputError(f"{path}[{index}]", found, wanted) for index in science}
    result: dict[int, FoundPlane | InputError | None] = {}
    for index, key in science.items():
        partner = pairs.get(index)
        if partner is None:
            result[index] = None
            continue
        other, header = others[partner], candidates.headers[partner]
        if None not in (key.detector, other.detector) and key.detector != other.detector:
            found = f"detector {other.detector} in HDU {partner} {other.name}".rstrip()
            result[index] = InputError(
                f"{candidates.path}[{partner}]", found, f"detector {key.detector}, as {path}[{index}]"
            )
            continue
        shape = image_shape(header)
        constant = header_value(header, "PIXVALUE")
        if not shape and constant:
            found = f"a plane without pixels whose value is {constant} (PIXVALUE)"
            result[index] = InputError(f"{candidates.path}[{partner}]", found, "a plane with pixels, or none")
            continue
        if not shape:
            result[index] = FoundPlane(candidates.path, partner, other.name, f"{candidates.found_by}, empty")
            continue
        found_by = candidates.found_by + (f" and {how}" if len(science) > 1 else "")
        result[index] = FoundPlane(candidates.path, partner, other.name, found_by, candidates.kind, shape)
    return result


def _pair(science: Mapping[int, ChipKey], others: Mapping[int, ChipKey]) -> tuple[dict[int, int] | None, str]:
    """Return which other HDU belongs to which science HDU, and what decided it; None if nothing does."""
    if any(key.chip for key in (*science.values(), *others.values())):
        pairs = _match_by(science, others, lambda key: key.chip or "")  # a plain SCI, with SCI_2, is a chip
        if pairs:
            return pairs, "the chip's name"
    if all(key.chip for key in (*science.values(), *others.values())):
        return None, ""  # all are named, after other chips
    if any(key.version is not None for key in (*science.values(), *others.values())):
        pairs = _match_by(science, others, lambda key: 1 if key.version is None else key.version)
        if pairs:  # numbers that match in part count all HDUs, not chips
            return (pairs, "EXTVER") if len(pairs) == min(len(science), len(others)) else (None, "")
    pairs = _match_by(science, others, lambda key: key.detector)
    if pairs and len(pairs) == len(science):
        return pairs, "detector"
    in_order = dict(zip(sorted(science), sorted(others), strict=False))
    if len(science) == len(others) and _is_regular(in_order):
        return in_order, "order"
    return None, ""


def _is_regular(pairs: Mapping[int, int]) -> bool:
    """Return whether the HDUs of a file follow each other chip by chip or plane by plane: then their order decides."""
    first, second = sorted(pairs), [pairs[index] for index in sorted(pairs)]
    by_plane = max(first) < min(second) or max(second) < min(first)
    after = all(one < other for one, other in zip(first, second, strict=True))
    after = after and all(other < one for one, other in zip(first[1:], second[:-1], strict=True))
    before = all(other < one for one, other in zip(first, second, strict=True))
    before = before and all(one < other for one, other in zip(first[:-1], second[1:], strict=True))
    return len(pairs) == 1 or by_plane or after or before


def _match_by(
    science: Mapping[int, ChipKey], others: Mapping[int, ChipKey], key_of: Callable[[ChipKey], object]
) -> dict[int, int] | None:
    """Return the pairs of equal keys; None where a key stands twice or an HDU has none."""
    mine = {index: key_of(key) for index, key in science.items()}
    theirs = {index: key_of(key) for index, key in others.items()}
    for keys in (list(mine.values()), list(theirs.values())):
        if None in keys or len(set(keys)) != len(keys):
            return None
    by_key = {key: index for index, key in theirs.items()}
    return {index: by_key[key] for index, key in mine.items() if key in by_key}
