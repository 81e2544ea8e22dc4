"""Assign planes to chips by name, EXTVER, detector keyword, or order.

Ambiguous files are refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from astropy.io import fits

from csstdask.core.errors import InputError
from csstdask.instrument.file_layout import WeightKind
from csstdask.store.fits_file import header_value
from csstdask.store.fits_names import COMMON_NAMES, hdu_name, split_name

DetectorOf = Callable[[fits.Header], int | None]
"""Function that returns the detector stated in the header of an HDU, or None."""


@dataclass(frozen=True)
class FoundPlane:
    """One plane of one chip: its HDU and how it was found."""

    path: Path
    hdu: int
    name: str
    """EXTNAME; empty if there is none."""
    found_by: str
    """What decided that the HDU is this plane."""
    kind: WeightKind = "inverse_variance"
    """Meaning of the values of a weight plane."""
    shape: tuple[int, ...] = ()
    """Shape (y, x); empty if the HDU has no data."""

    def record(self) -> dict[str, Any]:
        """Return the record of the plane in the campaign."""
        return {"file": self.path.name, "hdu": self.hdu, "name": self.name, "found_by": self.found_by}


@dataclass(frozen=True)
class ChipKey:
    """Properties that identify a chip among those of a file."""

    name: str
    chip: str | None
    """Chip in the name: ``2`` of ``ERR_2``, or the complete name if it is not that of a plane, such as ``N4``."""
    version: int | None
    detector: int | None

    @classmethod
    def of(cls, hdu: Any, detector: int | None) -> ChipKey:
        """Return the key of an HDU, given the detector stated in its header."""
        version = header_value(hdu.header, "EXTVER")
        usable = isinstance(version, int) and not isinstance(version, bool)
        name = hdu_name(hdu)
        base, tag = split_name(name)
        chip = tag if base in COMMON_NAMES else name
        return cls(name, chip or None, version if usable else None, detector)


@dataclass(frozen=True)
class PlaneCandidates:
    """HDUs that contain planes of one role."""

    path: Path
    indices: list[int]
    found_by: str
    """What decided that the HDU is this plane."""
    kind: WeightKind
    keys: Mapping[int, ChipKey]
    headers: Mapping[int, fits.Header]


def image_shape(header: fits.Header) -> tuple[int, ...]:
    """Return the shape of an image, slowest axis first; empty for an HDU without data."""
    return tuple(int(header[f"NAXIS{axis}"]) for axis in range(int(header.get("NAXIS", 0)), 0, -1))


def assign_planes(
    path: Path, science: Mapping[int, ChipKey], candidates: PlaneCandidates, detector_of: DetectorOf
) -> dict[int, FoundPlane | InputError | None]:
    """Assign the HDUs of one role to the science images.

    Parameters
    ----------
    path : Path
        Science file, for messages.
    science : mapping
        HDU index to key of each science image.
    candidates : PlaneCandidates
        HDUs to assign.
    detector_of : callable
        Returns the detector stated in a header, or None.

    Returns
    -------
    dict
        For each science HDU the plane, an error, or None if it has no such plane.
    """
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
    """Return the HDU that belongs to each science HDU, and what decided it; None if nothing does."""
    if any(key.chip for key in (*science.values(), *others.values())):
        pairs = _match_by(science, others, lambda key: key.chip or "")  # SCI in a file with SCI_2 is a chip too
        if pairs:
            return pairs, "the chip's name"
    if all(key.chip for key in (*science.values(), *others.values())):
        return None, ""  # all names contain chips, but different ones
    if any(key.version is not None for key in (*science.values(), *others.values())):
        pairs = _match_by(science, others, lambda key: 1 if key.version is None else key.version)
        if pairs:  # EXTVERs that match only in part count HDUs, not chips
            return (pairs, "EXTVER") if len(pairs) == min(len(science), len(others)) else (None, "")
    pairs = _match_by(science, others, lambda key: key.detector)
    if pairs and len(pairs) == len(science):
        return pairs, "detector"
    in_order = dict(zip(sorted(science), sorted(others), strict=False))
    if len(science) == len(others) and _is_regular(in_order):
        return in_order, "order"
    return None, ""


def _is_regular(pairs: Mapping[int, int]) -> bool:
    """Return whether the HDUs are ordered chip by chip or plane by plane, so that their order decides."""
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
    """Return the pairs of HDUs with equal keys; None if a key occurs twice or an HDU has none."""
    mine = {index: key_of(key) for index, key in science.items()}
    theirs = {index: key_of(key) for index, key in others.items()}
    for keys in (list(mine.values()), list(theirs.values())):
        if None in keys or len(set(keys)) != len(keys):
            return None
    by_key = {key: index for index, key in theirs.items()}
    return {index: by_key[key] for index, key in mine.items() if key in by_key}
