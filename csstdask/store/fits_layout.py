"""Which HDUs of a FITS file hold which planes of which chips: by name, then by keyword, then by position.

A plane is found by the names and positions that the instrument's layout lists. A position counts only for an HDU
whose name does not say something else. A plane that the layout does not find is looked for under names in common use
(``ERR``, ``VAR``, ``IVAR``, ``MASK``, ...), whose meaning is then that of the name. Planes are assigned to chips by
their names, by EXTVER, by the detector keyword of their own headers, and by their order only if nothing else tells.
What cannot be told apart is refused, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from astropy.io import fits

from csstdask.errors import InputError
from csstdask.instrument import Layout, Plane
from csstdask.instrument.model import WeightKind
from csstdask.store.fits_file import open_fits, value_of

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
        """Return what is kept of where the plane was found."""
        return {"file": self.path.name, "hdu": self.hdu, "name": self.name, "found_by": self.found_by}


@dataclass(frozen=True)
class Chip:
    """The planes of one science image."""

    sci: FoundPlane
    wht: FoundPlane | None = None
    flag: FoundPlane | None = None

    def record(self) -> dict[str, Any]:
        """Return which HDU each plane was found in, and what told."""
        planes: dict[str, Any] = {"sci": self.sci.record()}
        if self.wht is not None:
            planes["wht"] = self.wht.record() | {"kind": self.wht.kind}
        if self.flag is not None:
            planes["flag"] = self.flag.record()
        return planes


@dataclass
class ChipsOfFile:
    """What a file holds: its chips, and the images that are part of none."""

    layout: Layout
    chips: list[Chip] = field(default_factory=list)
    problems: list[InputError] = field(default_factory=list)
    """Chips that cannot be used, one error each."""
    unused: list[str] = field(default_factory=list)
    """Images of the file that no plane of the layout names."""


DetectorOf = Callable[[fits.Header], int | None]
"""Returns the detector that an HDU's own header states."""


def find_chips(path: Path, hdus: fits.HDUList, layouts: Sequence[Layout], detector_of: DetectorOf) -> ChipsOfFile:
    """Find the planes of every chip in a file.

    Parameters
    ----------
    path : Path
        The file. In a layout of separate files, that of the science planes.
    hdus : HDUList
        The file, open.
    layouts : sequence of Layout
        Those of the instrument; the one of which most planes are there is taken.
    detector_of : callable
        Returns the detector that the header of an HDU states, or None.

    Raises
    ------
    InputError
        If no layout fits, or a plane that the layout requires is missing altogether.
    """
    layout, separate = _choose_layout(path, hdus, layouts)
    science = _find_plane(hdus, layout.sci, "sci")
    if science is None:
        raise _no_science(path, hdus, layouts)
    found = ChipsOfFile(layout)
    others: dict[Role, _Candidates | InputError | None] = {}
    roles: tuple[tuple[Role, Plane | None], ...] = (("wht", layout.weight), ("flag", layout.flag))
    claimed = set(science.indices)
    for role, plane in roles:
        others[role] = _candidates(
            path, hdus, layout, plane, role, of_chips=_of_chips(hdus, science), separate=separate
        )
        here = others[role]
        if isinstance(here, _Candidates) and here.path == path:
            claimed |= set(here.indices)
    indices = science.indices
    if science.found_by == "position" and layout.weight is None and layout.flag is None:
        indices = _further_chips(hdus, science.indices, detector_of)
        claimed |= set(indices)
    keys = {index: _ChipKey.of(hdus[index], detector_of(hdus[index].header)) for index in indices}
    chips: dict[int, dict[Role, FoundPlane | None]] = {index: {} for index in indices}
    broken: dict[int, InputError] = {}
    for role, plane in roles:
        candidates = others[role]
        if isinstance(candidates, InputError):
            raise candidates
        if candidates is None or plane is None:
            continue
        for index, match in _assign(path, keys, candidates, detector_of).items():
            if isinstance(match, InputError):
                broken.setdefault(index, match)
            elif match is None and not plane.optional:
                names = "/".join(map(str, plane.hdu))
                wanted = f"one for each science image (optional = true in the layout if it may be missing: {names})"
                broken.setdefault(index, InputError(f"{path}[{index}]", f"no {role} plane of this chip", wanted))
            else:
                chips[index][role] = match
    for index in indices:
        sci = FoundPlane(path, index, keys[index].name, science.found_by, shape=_shape_of(hdus[index].header))
        if index in broken:
            found.problems.append(broken[index])
        else:
            found.chips.append(Chip(sci, **chips[index]))
    found.unused = [
        _describe(hdus, index) for index in _image_hdus(hdus) if index not in claimed and _has_data(hdus, index)
    ]
    _refuse_unknown_planes(path, hdus, found, layouts, claimed)
    if science.found_by == "position":
        found.problems += _unnamed_leftovers(path, hdus, claimed, _shape_of(hdus[indices[0]].header))
    return found


def sibling(path: Path, old: str, new: str) -> Path:
    """Return the name of another plane's file in a layout of separate files."""
    head, _, tail = path.name.rpartition(old)
    return path.with_name(head + new + tail)


@dataclass(frozen=True)
class _ChipKey:
    """What tells a chip from the others of a file."""

    name: str
    chip: str | None
    """The chip in its name: ``2`` in ``ERR_2``, or the whole of a name that is no plane's, such as ``N4``."""
    version: int | None
    detector: int | None

    @classmethod
    def of(cls, hdu: Any, detector: int | None) -> _ChipKey:
        version = value_of(hdu.header, "EXTVER")
        usable = isinstance(version, int) and not isinstance(version, bool)
        name = _name_of(hdu)
        base, tag = _split_name(name)
        chip = tag if base in COMMON_NAMES else name
        return cls(name, chip or None, version if usable else None, detector)


@dataclass(frozen=True)
class _Candidates:
    """HDUs that hold one kind of plane."""

    path: Path
    indices: list[int]
    found_by: str
    kind: WeightKind
    keys: Mapping[int, _ChipKey]
    headers: Mapping[int, fits.Header]


@dataclass(frozen=True)
class _Match:
    indices: list[int]
    found_by: str
    kind: WeightKind | None = None


def _name_of(hdu: Any) -> str:
    return str(value_of(hdu.header, "EXTNAME") or "").strip().upper()


def _split_name(name: str) -> tuple[str, str]:
    """Split ``ERR_2``, ``ERR2`` or ``CCD2.ERR`` into what the plane is and which chip it is of."""
    if name in COMMON_NAMES:
        return name, ""
    match = re.fullmatch(r"([A-Z]+)(\d+)", name)
    if match is not None and match[1] in COMMON_NAMES:
        return match[1], match[2]
    for pattern, base, tag in ((r"([A-Z]+)[ _.:-](.+)", 1, 2), (r"(.+)[ _.:-]([A-Z]+)", 2, 1)):
        match = re.fullmatch(pattern, name)
        if match is not None and match[base] in COMMON_NAMES:
            return match[base], match[tag]
    return name, ""


def _image_hdus(hdus: fits.HDUList) -> list[int]:
    kinds = (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU)
    return [index for index, hdu in enumerate(hdus) if isinstance(hdu, kinds)]


def _has_data(hdus: fits.HDUList, index: int) -> bool:
    return int(hdus[index].header.get("NAXIS", 0)) > 0


def _shape_of(header: fits.Header) -> tuple[int, ...]:
    return tuple(int(header[f"NAXIS{axis}"]) for axis in range(int(header.get("NAXIS", 0)), 0, -1))


def _describe(hdus: fits.HDUList, index: int) -> str:
    return f"HDU {index} {_name_of(hdus[index]) or 'without a name'} {_shape_of(hdus[index].header)}"


def _find_plane(hdus: fits.HDUList, plane: Plane, role: Role, *, of_chips: bool = True) -> _Match | None:
    """Return the HDUs of one kind of plane: by the layout's names and positions, else by names in common use.

    `of_chips` says whether names may hold a chip besides the plane: ``MASK_2`` is the flags of chip 2 in a file with
    ``SCI_2``, but something else beside a plain ``SCI``.
    """
    images = _image_hdus(hdus)
    names = {index: _name_of(hdus[index]) for index in images}
    for wanted in plane.hdu:
        if wanted == "*":
            found = [index for index in images if _has_data(hdus, index) and _may_be(names[index], role)]
            how = "position" if found and not any(names[index] for index in found) else "name"
        elif isinstance(wanted, int):
            usable = wanted in names and (wanted > 0 or _has_data(hdus, 0))
            found = [wanted] if usable and _position_counts(names[wanted], role, plane.kind) else []
            how = "position"
        else:
            found = _named(names, wanted.strip().upper(), of_chips=of_chips)
            how = "name"
        if found:
            return _Match(found, how)
    for name, (meaning, kind) in COMMON_NAMES.items():
        if meaning != role:
            continue
        found = _named(names, name, of_chips=of_chips)
        if found:
            return _Match(found, "a name in common use", _uncertainty(hdus, found, kind) if role == "wht" else None)
    return None


def _uncertainty(hdus: fits.HDUList, found: Sequence[int], kind: WeightKind) -> WeightKind:
    return UTYPE_KINDS.get(str(value_of(hdus[found[0]].header, "UTYPE") or ""), kind)


def _named(names: Mapping[int, str], wanted: str, *, of_chips: bool) -> list[int]:
    """Return the HDUs of a name; those with the name and a chip only if none has the name alone."""
    exact = [index for index, name in names.items() if name == wanted]
    if exact or not of_chips:
        return exact
    return [index for index, name in names.items() if name and _split_name(name)[0] == wanted]


def _of_chips(hdus: fits.HDUList, science: _Match) -> bool:
    """Tell whether the names of science images hold their chips."""
    return any(_ChipKey.of(hdus[index], None).chip for index in science.indices)


def _may_be(name: str, role: Role) -> bool:
    """Tell whether an HDU of this name may hold a plane: its name is a chip's, or names this kind of plane."""
    meaning = COMMON_NAMES.get(_split_name(name)[0])
    return meaning is None or meaning[0] == role


def _position_counts(name: str, role: Role, kind: WeightKind) -> bool:
    """Tell whether an HDU may be taken by its position: its name does not say that it is something else.

    The name of a chip stands for a science image only.
    """
    meaning = COMMON_NAMES.get(_split_name(name)[0])
    if meaning is None:
        return not name or role == "sci"
    return meaning == (role, kind) if role == "wht" else meaning[0] == role


def _choose_layout(path: Path, hdus: fits.HDUList, layouts: Sequence[Layout]) -> tuple[Layout, bool]:
    """Return the layout of which most planes are there, and whether its planes are separate files.

    Among equals the one with more planes under its own names, then the one that misses fewest, then the first.
    """
    ranked: list[tuple[int, int, int, int]] = []
    for order, layout in enumerate(layouts):
        if layout.separate_files:
            if layout.sci.suffix in path.name and _find_plane(hdus, layout.sci, "sci"):
                return layout, True
            continue
        roles: tuple[tuple[Role, Plane | None], ...] = (("wht", layout.weight), ("flag", layout.flag))
        science = _find_plane(hdus, layout.sci, "sci")
        if science is None:
            continue
        of_chips = _of_chips(hdus, science)
        matches = [_find_plane(hdus, plane, role, of_chips=of_chips) for role, plane in roles if plane is not None]
        there = [science, *(match for match in matches if match is not None)]
        own = sum(match.found_by != "a name in common use" for match in there)
        missing = sum(
            match is None and not plane.optional
            for match, plane in zip(matches, (one for _, one in roles if one is not None), strict=True)
        )
        ranked.append((-len(there), -own, missing, order))
    if not ranked:
        raise _no_science(path, hdus, layouts)
    return layouts[min(ranked)[3]], False


def _no_science(path: Path, hdus: fits.HDUList, layouts: Sequence[Layout]) -> InputError:
    found = ", ".join(f"{index} {hdu.name} {getattr(hdu, 'shape', ())}" for index, hdu in enumerate(hdus))
    wanted = "; ".join(f"{layout.name}: {'/'.join(map(str, layout.sci.hdu))}" for layout in layouts)
    return InputError(path, f"no science image among its HDUs ({found})", f"one of the instrument's layouts ({wanted})")


def _candidates(
    path: Path, hdus: fits.HDUList, layout: Layout, plane: Plane | None, role: Role, *, of_chips: bool, separate: bool
) -> _Candidates | InputError | None:
    """Return the HDUs that hold the weights or flags of a file's chips; None where the layout has no such plane."""
    if plane is None:
        return None
    if separate:
        other = sibling(path, layout.sci.suffix, plane.suffix)
        if not other.is_file() and plane.optional:
            return None
        with open_fits(other) as others:
            match = _find_plane(others, plane, role)
            if match is None:
                return InputError(other, "no image", f"the {plane.suffix} plane of {path.name}")
            return _collect(other, others, match, plane)
    match = _find_plane(hdus, plane, role, of_chips=of_chips)
    if match is not None:
        return _collect(path, hdus, match, plane)
    if plane.optional:
        return None
    names = "/".join(map(str, plane.hdu))
    held = "; ".join(_describe(hdus, index) for index in _image_hdus(hdus) if _has_data(hdus, index))
    return InputError(path, f"no HDU {names} ({held})", f"the planes of layout {layout.name!r}, by name")


def _collect(path: Path, hdus: fits.HDUList, match: _Match, plane: Plane) -> _Candidates:
    keys = {index: _ChipKey.of(hdus[index], None) for index in match.indices}
    headers = {index: hdus[index].header.copy() for index in match.indices}
    return _Candidates(path, match.indices, match.found_by, match.kind or plane.kind, keys, headers)


def _further_chips(hdus: fits.HDUList, first: list[int], detector_of: DetectorOf) -> list[int]:
    """Return the images after a science plane found by position that state another detector: further chips."""
    seen = {detector_of(hdus[index].header) for index in first}
    chips = list(first)
    if None in seen:
        return chips
    for index in _image_hdus(hdus):
        if index <= max(first) or not _has_data(hdus, index) or not _may_be(_name_of(hdus[index]), "sci"):
            continue
        detector = detector_of(hdus[index].header)
        if detector is not None and detector not in seen:
            seen.add(detector)
            chips.append(index)
    return chips


def _refuse_unknown_planes(
    path: Path, hdus: fits.HDUList, found: ChipsOfFile, layouts: Sequence[Layout], claimed: set[int]
) -> None:
    """Raise if a file that another layout names has images beside the science image that none can tell."""
    if found.layout.weight is not None or found.layout.flag is not None or not found.chips:
        return
    science = found.chips[0].sci
    names = {str(name).upper() for layout in layouts for name in layout.sci.hdu if layout is not found.layout}
    beside = [index for index in _image_hdus(hdus) if index not in claimed and _name_of(hdus[index])]
    beside = [index for index in beside if _shape_of(hdus[index].header) == science.shape]
    if science.name in names and beside:
        planes = [plane for layout in layouts for plane in (layout.weight, layout.flag) if plane is not None]
        wanted = "/".join(dict.fromkeys(str(name) for plane in planes for name in plane.hdu if isinstance(name, str)))
        raise InputError(path, ", ".join(_describe(hdus, index) for index in beside), f"planes named {wanted}")


def _unnamed_leftovers(path: Path, hdus: fits.HDUList, claimed: set[int], shape: tuple[int, ...]) -> list[InputError]:
    """Return an error for images without a name, of the science plane's shape, that no position accounts for."""
    left = [
        index
        for index in _image_hdus(hdus)
        if index not in claimed
        and index > 0
        and not _name_of(hdus[index])
        and _has_data(hdus, index)
        and _shape_of(hdus[index].header) == shape
    ]
    if not left:
        return []
    wanted = "names (EXTNAME), so that their planes and chips can be told, or a layout in a TOML of your own"
    return [InputError(path, f"images without a name in HDUs {', '.join(map(str, left))}", wanted)]


def _assign(
    path: Path, science: Mapping[int, _ChipKey], candidates: _Candidates, detector_of: DetectorOf
) -> dict[int, FoundPlane | InputError | None]:
    """Assign the HDUs of one kind of plane to the science images."""
    others = {
        index: replace(key, detector=detector_of(candidates.headers[index])) for index, key in candidates.keys.items()
    }
    pairs, how = _pair(science, others)
    if pairs is None:
        names = sorted({key.name or "without a name" for key in others.values()})
        found = f"{len(others)} HDUs {'/'.join(names)} for {len(science)} science images"
        wanted = "EXTVER, the detector keyword or names that tell which belongs to which"
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
        shape = _shape_of(header)
        if not shape:
            result[index] = FoundPlane(candidates.path, partner, other.name, f"{candidates.found_by}, empty")
            continue
        found_by = candidates.found_by + (f" and {how}" if len(science) > 1 else "")
        result[index] = FoundPlane(candidates.path, partner, other.name, found_by, candidates.kind, shape)
    return result


def _pair(science: Mapping[int, _ChipKey], others: Mapping[int, _ChipKey]) -> tuple[dict[int, int] | None, str]:
    """Return which other HDU belongs to which science HDU, and what told; None where nothing tells."""
    pairs = _match_by(science, others, lambda key: key.chip)
    if pairs:
        return pairs, "the chip's name"
    if all(key.chip for key in (*science.values(), *others.values())):
        return None, ""  # all are named, after other chips
    if any(key.version is not None for key in (*science.values(), *others.values())):
        pairs = _match_by(science, others, lambda key: 1 if key.version is None else key.version)
        if pairs:
            return pairs, "EXTVER"
    pairs = _match_by(science, others, lambda key: key.detector)
    if pairs and len(pairs) == len(science):
        return pairs, "detector"
    in_order = dict(zip(sorted(science), sorted(others), strict=False))
    if len(science) == len(others) and _is_regular(in_order):
        return in_order, "order"
    return None, ""


def _is_regular(pairs: Mapping[int, int]) -> bool:
    """Tell whether the HDUs of a file follow each other chip by chip or plane by plane, so that their order tells."""
    first, second = sorted(pairs), [pairs[index] for index in sorted(pairs)]
    by_plane = max(first) < min(second) or max(second) < min(first)
    after = all(one < other for one, other in zip(first, second, strict=True))
    after = after and all(other < one for one, other in zip(first[1:], second[:-1], strict=True))
    before = all(other < one for one, other in zip(first, second, strict=True))
    before = before and all(one < other for one, other in zip(first[:-1], second[1:], strict=True))
    return len(pairs) == 1 or by_plane or after or before


def _match_by(
    science: Mapping[int, _ChipKey], others: Mapping[int, _ChipKey], key_of: Callable[[_ChipKey], object]
) -> dict[int, int] | None:
    """Return the pairs of equal keys; None where a key stands twice or an HDU has none."""
    mine = {index: key_of(key) for index, key in science.items()}
    theirs = {index: key_of(key) for index, key in others.items()}
    for keys in (list(mine.values()), list(theirs.values())):
        if None in keys or len(set(keys)) != len(keys):
            return None
    by_key = {key: index for index, key in theirs.items()}
    return {index: by_key[key] for index, key in mine.items() if key in by_key}
