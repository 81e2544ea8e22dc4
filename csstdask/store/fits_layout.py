"""Which HDUs of a FITS file hold which planes of which chips: by name, then by keyword, then by position.

A plane is found by the names and positions that the instrument's layout lists. A position counts only for an HDU
whose name does not say something else. A plane that the layout does not find is looked for under names in common use
(``ERR``, ``VAR``, ``IVAR``, ``MASK``, ...), whose meaning is then that of the name. Planes are assigned to chips by
their names, by EXTVER, by the detector keyword in their headers, and by order only if nothing else decides.
Ambiguous files are refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from astropy.io import fits

from csstdask.core.errors import InputError
from csstdask.instrument import Layout, Plane
from csstdask.instrument.model import WeightKind
from csstdask.store.fits_file import header_value, open_fits
from csstdask.store.fits_names import COMMON_NAMES, NOT_SCIENCE, UTYPE_KINDS, Role, hdu_name, may_hold, split_name
from csstdask.store.fits_pairing import ChipKey, DetectorOf, FoundPlane, PlaneCandidates, assign_planes, image_shape


@dataclass(frozen=True)
class Chip:
    """The planes of one science image."""

    sci: FoundPlane
    wht: FoundPlane | None = None
    flag: FoundPlane | None = None

    def record(self) -> dict[str, Any]:
        """Return which HDU each plane was found in, and what decided it."""
        planes: dict[str, Any] = {"sci": self.sci.record()}
        if self.wht is not None:
            planes["wht"] = self.wht.record() | {"kind": self.wht.kind}
        if self.flag is not None:
            planes["flag"] = self.flag.record()
        return planes


@dataclass
class FileChips:
    """What a file holds: its chips, and the images that are part of none."""

    layout: Layout
    chips: list[Chip] = field(default_factory=list)
    problems: list[InputError] = field(default_factory=list)
    """Chips that cannot be used, one error each."""
    unused: list[str] = field(default_factory=list)
    """Images of the file that no plane of the layout names."""


def find_chips(path: Path, hdus: fits.HDUList, layouts: Sequence[Layout], detector_of: DetectorOf) -> FileChips:
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
    found = FileChips(layout)
    others: dict[Role, PlaneCandidates | InputError | None] = {}
    roles: tuple[tuple[Role, Plane | None], ...] = (("wht", layout.weight), ("flag", layout.flag))
    claimed = set(science.indices)
    for role, plane in roles:
        others[role] = _candidates(
            path, hdus, layout, plane, role, of_chips=_of_chips(hdus, science), separate=separate
        )
        here = others[role]
        if isinstance(here, PlaneCandidates) and here.path == path:
            claimed |= set(here.indices)
    indices = science.indices
    if science.found_by == "position" and not any(isinstance(one, PlaneCandidates) for one in others.values()):
        indices = _further_chips(hdus, science.indices, detector_of)
        claimed |= set(indices)
    keys = {index: ChipKey.of(hdus[index], detector_of(hdus[index].header)) for index in indices}
    chips: dict[int, dict[Role, FoundPlane | None]] = {index: {} for index in indices}
    broken: dict[int, InputError] = {}
    for role, plane in roles:
        candidates = others[role]
        if isinstance(candidates, InputError):
            raise candidates
        if candidates is None or plane is None:
            continue
        for index, match in assign_planes(path, keys, candidates, detector_of).items():
            if isinstance(match, InputError):
                broken.setdefault(index, match)
            elif match is None and not plane.optional:
                names = "/".join(map(str, plane.hdu))
                wanted = f"one for each science image (optional = true in the layout if it may be missing: {names})"
                broken.setdefault(index, InputError(f"{path}[{index}]", f"no {role} plane of this chip", wanted))
            else:
                chips[index][role] = match
    for index in indices:
        sci = FoundPlane(path, index, keys[index].name, science.found_by, shape=image_shape(hdus[index].header))
        if index in broken:
            found.problems.append(broken[index])
        else:
            found.chips.append(Chip(sci, **chips[index]))
    found.unused = [
        _describe(hdus, index) for index in _image_hdus(hdus) if index not in claimed and _has_data(hdus, index)
    ]
    _refuse_unknown_planes(path, hdus, found, layouts, claimed)
    shape = image_shape(hdus[indices[0]].header)
    if science.found_by == "position":
        found.problems += _unnamed_leftovers(path, hdus, claimed, shape)
    found.problems += _chips_left(path, hdus, claimed, shape, detector_of)
    return found


def sibling_path(path: Path, old: str, new: str) -> Path:
    """Return the name of another plane's file in a layout of separate files."""
    head, _, tail = path.name.rpartition(old)
    return path.with_name(head + new + tail)


@dataclass(frozen=True)
class _Match:
    indices: list[int]
    found_by: str
    kind: WeightKind | None = None


def _image_hdus(hdus: fits.HDUList) -> list[int]:
    kinds = (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU)
    return [index for index, hdu in enumerate(hdus) if isinstance(hdu, kinds)]


def _has_data(hdus: fits.HDUList, index: int) -> bool:
    return int(hdus[index].header.get("NAXIS", 0)) > 0


def _describe(hdus: fits.HDUList, index: int) -> str:
    return f"HDU {index} {hdu_name(hdus[index]) or 'without a name'} {image_shape(hdus[index].header)}"


def _find_plane(hdus: fits.HDUList, plane: Plane, role: Role, *, of_chips: bool = True) -> _Match | None:
    """Return the HDUs of one kind of plane: by the layout's names and positions, else by names in common use.

    `of_chips` says whether names may hold a chip besides the plane: ``MASK_2`` is the flags of chip 2 in a file with
    ``SCI_2``, but something else in a file with a plain ``SCI`` only.
    """
    images = _image_hdus(hdus)
    names = {index: hdu_name(hdus[index]) for index in images}
    for wanted in plane.hdu:
        if wanted == "*":
            found = [index for index in images if _has_data(hdus, index) and may_hold(names[index], role)]
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
    return UTYPE_KINDS.get(str(header_value(hdus[found[0]].header, "UTYPE") or ""), kind)


def _named(names: Mapping[int, str], wanted: str, *, of_chips: bool) -> list[int]:
    """Return the HDUs of a name, and of the name and a chip."""
    return [
        index
        for index, name in names.items()
        if name == wanted or (of_chips and name and split_name(name)[0] == wanted)
    ]


def _of_chips(hdus: fits.HDUList, science: _Match) -> bool:
    """Return whether the names of science images hold their chips."""
    return any(ChipKey.of(hdus[index], None).chip for index in science.indices)


def _position_counts(name: str, role: Role, kind: WeightKind) -> bool:
    """Return whether an HDU may be taken by its position: its name does not say that it is something else.

    The name of a chip stands for a science image only.
    """
    meaning = COMMON_NAMES.get(split_name(name)[0])
    if meaning is None:
        return not name or (role == "sci" and split_name(name)[0] not in NOT_SCIENCE)
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
) -> PlaneCandidates | InputError | None:
    """Return the HDUs that hold the weights or flags of a file's chips; None where the layout has no such plane."""
    if plane is None:
        return None
    if separate:
        other = sibling_path(path, layout.sci.suffix, plane.suffix)
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


def _collect(path: Path, hdus: fits.HDUList, match: _Match, plane: Plane) -> PlaneCandidates:
    keys = {index: ChipKey.of(hdus[index], None) for index in match.indices}
    headers = {index: hdus[index].header.copy() for index in match.indices}
    return PlaneCandidates(path, match.indices, match.found_by, match.kind or plane.kind, keys, headers)


def _further_chips(hdus: fits.HDUList, first: list[int], detector_of: DetectorOf) -> list[int]:
    """Return the images after a science plane found by position that state another detector: further chips."""
    seen = {detector_of(hdus[index].header) for index in first}
    chips = list(first)
    if None in seen:
        return chips
    for index in _image_hdus(hdus):
        if index <= max(first) or not _has_data(hdus, index) or not may_hold(hdu_name(hdus[index]), "sci"):
            continue
        detector = detector_of(hdus[index].header)
        if detector is not None and detector not in seen:
            seen.add(detector)
            chips.append(index)
    return chips


def _refuse_unknown_planes(
    path: Path, hdus: fits.HDUList, found: FileChips, layouts: Sequence[Layout], claimed: set[int]
) -> None:
    """Raise if a file of a layout with weights and flags has images under names that no layout knows."""
    if found.layout.weight is not None or found.layout.flag is not None or not found.chips:
        return
    science = found.chips[0].sci
    names = {str(name).upper() for layout in layouts for name in layout.sci.hdu if layout is not found.layout}
    unknown = [index for index in _image_hdus(hdus) if index not in claimed and hdu_name(hdus[index])]
    unknown = [index for index in unknown if image_shape(hdus[index].header) == science.shape]
    if science.name in names and unknown:
        planes = [plane for layout in layouts for plane in (layout.weight, layout.flag) if plane is not None]
        wanted = "/".join(dict.fromkeys(str(name) for plane in planes for name in plane.hdu if isinstance(name, str)))
        raise InputError(path, ", ".join(_describe(hdus, index) for index in unknown), f"planes named {wanted}")


def _chips_left(
    path: Path, hdus: fits.HDUList, claimed: set[int], shape: tuple[int, ...], detector_of: DetectorOf
) -> list[InputError]:
    """Return an error for each image that looks like a further chip, and that the layout does not account for."""
    problems: list[InputError] = []
    for index in _image_hdus(hdus):
        name = hdu_name(hdus[index])
        if index in claimed or index == 0 or image_shape(hdus[index].header) != shape or not may_hold(name, "sci"):
            continue
        if split_name(name)[0] in COMMON_NAMES or (name and detector_of(hdus[index].header) is not None):
            wanted = "one that a layout of the instrument finds (its names or positions in your own TOML)"
            problems.append(InputError(f"{path}[{index}]", f"a further science image, {name}", wanted))
    return problems


def _unnamed_leftovers(path: Path, hdus: fits.HDUList, claimed: set[int], shape: tuple[int, ...]) -> list[InputError]:
    """Return an error for images without a name, of the science plane's shape, that no position accounts for."""
    left = [
        index
        for index in _image_hdus(hdus)
        if index not in claimed
        and index > 0
        and not hdu_name(hdus[index])
        and _has_data(hdus, index)
        and image_shape(hdus[index].header) == shape
    ]
    if not left:
        return []
    wanted = "names (EXTNAME) that say which planes and chips they are, or a layout in your own TOML"
    return [InputError(path, f"images without a name in HDUs {', '.join(map(str, left))}", wanted)]
