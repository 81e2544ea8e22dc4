"""Find the planes (science, weight, flag) of every chip in a FITS file.

`csstdask.store.fits_plane_search` finds the planes, `csstdask.store.fits_pairing` assigns them to chips. Ambiguous
files are refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from astropy.io import fits

from csstdask.core.errors import InputError
from csstdask.instrument import Layout, Plane
from csstdask.store.fits_names import COMMON_NAMES, Role, hdu_name, may_hold, split_name
from csstdask.store.fits_pairing import ChipKey, DetectorOf, FoundPlane, PlaneCandidates, assign_planes, image_shape
from csstdask.store.fits_plane_search import (
    PlaneMatch,
    choose_layout,
    describe_hdu,
    find_candidates,
    find_plane,
    has_data,
    image_hdus,
    names_hold_chips,
    no_science_error,
)


@dataclass(frozen=True)
class Chip:
    """The planes of one science image."""

    sci: FoundPlane
    wht: FoundPlane | None = None
    flag: FoundPlane | None = None

    def record(self) -> dict[str, Any]:
        """Return the HDU of each plane and what decided it."""
        planes: dict[str, Any] = {"sci": self.sci.record()}
        if self.wht is not None:
            planes["wht"] = self.wht.record() | {"kind": self.wht.kind}
        if self.flag is not None:
            planes["flag"] = self.flag.record()
        return planes


@dataclass
class FileChips:
    """Chips of a file, and the images that belong to none."""

    layout: Layout
    chips: list[Chip] = field(default_factory=list)
    problems: list[InputError] = field(default_factory=list)
    """One error for each chip that cannot be used."""
    unused: list[str] = field(default_factory=list)
    """Images that the layout does not use."""


def find_chips(path: Path, hdus: fits.HDUList, layouts: Sequence[Layout], detector_of: DetectorOf) -> FileChips:
    """Find the planes of every chip in a file.

    Parameters
    ----------
    path : Path
        FITS file. In a layout of separate files, the science file.
    hdus : HDUList
        The open file.
    layouts : sequence of Layout
        Layouts of the camera; the one with most planes in the file is used.
    detector_of : callable
        Returns the detector stated in the header of an HDU, or None.

    Returns
    -------
    FileChips

    Raises
    ------
    InputError
        If no layout fits, or a required plane is completely absent.
    """
    layout, separate = choose_layout(path, hdus, layouts)
    science = find_plane(hdus, layout.sci, "sci")
    if science is None:
        raise no_science_error(path, hdus, layouts)
    found = FileChips(layout)
    candidates = _other_planes(path, hdus, layout, science, separate=separate)
    claimed = set(science.indices)
    claimed |= {index for one in candidates.values() if one.path == path for index in one.indices}
    indices = science.indices
    if science.found_by == "position" and not candidates:
        indices = _additional_chips(hdus, science.indices, detector_of)
        claimed |= set(indices)
    keys = {index: ChipKey.of(hdus[index], detector_of(hdus[index].header)) for index in indices}
    planes, broken = _assign(path, layout, keys, candidates, detector_of)
    for index in indices:
        sci = FoundPlane(path, index, keys[index].name, science.found_by, shape=image_shape(hdus[index].header))
        if index in broken:
            found.problems.append(broken[index])
        else:
            found.chips.append(Chip(sci, **planes[index]))
    found.unused = [
        describe_hdu(hdus, index) for index in image_hdus(hdus) if index not in claimed and has_data(hdus, index)
    ]
    _refuse_unknown_planes(path, hdus, found, layouts, claimed)
    shape = image_shape(hdus[indices[0]].header)
    if science.found_by == "position":
        found.problems += _unnamed_images(path, hdus, claimed, shape)
    found.problems += _unclaimed_chips(path, hdus, claimed, shape, detector_of)
    return found


def _other_planes(
    path: Path, hdus: fits.HDUList, layout: Layout, science: PlaneMatch, *, separate: bool
) -> dict[Role, PlaneCandidates]:
    """Return the HDUs with weights and flags; raise InputError if a required plane is absent."""
    of_chips = names_hold_chips(hdus, science)
    roles: tuple[tuple[Role, Plane | None], ...] = (("wht", layout.weight), ("flag", layout.flag))
    found = {
        role: find_candidates(path, hdus, layout, plane, role, of_chips=of_chips, separate=separate)
        for role, plane in roles
    }
    for one in found.values():
        if isinstance(one, InputError):
            raise one
    return {role: one for role, one in found.items() if isinstance(one, PlaneCandidates)}


def _assign(
    path: Path,
    layout: Layout,
    keys: dict[int, ChipKey],
    candidates: dict[Role, PlaneCandidates],
    detector_of: DetectorOf,
) -> tuple[dict[int, dict[Role, FoundPlane | None]], dict[int, InputError]]:
    """Return the weight and flag planes of each science HDU, and an error for each chip that lacks one."""
    chips: dict[int, dict[Role, FoundPlane | None]] = {index: {} for index in keys}
    broken: dict[int, InputError] = {}
    for role, candidate in candidates.items():
        plane = layout.weight if role == "wht" else layout.flag
        for index, match in assign_planes(path, keys, candidate, detector_of).items():
            if isinstance(match, InputError):
                broken.setdefault(index, match)
            elif match is None and plane is not None and not plane.optional:
                names = "/".join(map(str, plane.hdu))
                wanted = f"one for each science image (optional = true in the layout if it may be missing: {names})"
                broken.setdefault(index, InputError(f"{path}[{index}]", f"no {role} plane of this chip", wanted))
            else:
                chips[index][role] = match
    return chips, broken


def _additional_chips(hdus: fits.HDUList, first: list[int], detector_of: DetectorOf) -> list[int]:
    """Return the science HDU and later images whose headers state different detectors: further chips."""
    known = {detector_of(hdus[index].header) for index in first}
    chips = list(first)
    if None in known:
        return chips
    for index in image_hdus(hdus):
        if index <= max(first) or not has_data(hdus, index) or not may_hold(hdu_name(hdus[index]), "sci"):
            continue
        detector = detector_of(hdus[index].header)
        if detector is not None and detector not in known:
            known.add(detector)
            chips.append(index)
    return chips


def _refuse_unknown_planes(
    path: Path, hdus: fits.HDUList, found: FileChips, layouts: Sequence[Layout], claimed: set[int]
) -> None:
    """Raise InputError if a file that should have weights and flags has images with unknown names."""
    if found.layout.weight is not None or found.layout.flag is not None or not found.chips:
        return
    science = found.chips[0].sci
    names = {str(name).upper() for layout in layouts for name in layout.sci.hdu if layout is not found.layout}
    unknown = [index for index in image_hdus(hdus) if index not in claimed and hdu_name(hdus[index])]
    unknown = [index for index in unknown if image_shape(hdus[index].header) == science.shape]
    if science.name in names and unknown:
        planes = [plane for layout in layouts for plane in (layout.weight, layout.flag) if plane is not None]
        wanted = "/".join(dict.fromkeys(str(name) for plane in planes for name in plane.hdu if isinstance(name, str)))
        raise InputError(path, ", ".join(describe_hdu(hdus, index) for index in unknown), f"planes named {wanted}")


def _unclaimed_chips(
    path: Path, hdus: fits.HDUList, claimed: set[int], shape: tuple[int, ...], detector_of: DetectorOf
) -> list[InputError]:
    """Return an error for each image that looks like a further chip and is not part of the layout."""
    problems: list[InputError] = []
    for index in image_hdus(hdus):
        name = hdu_name(hdus[index])
        if index in claimed or index == 0 or image_shape(hdus[index].header) != shape or not may_hold(name, "sci"):
            continue
        if split_name(name)[0] in COMMON_NAMES or (name and detector_of(hdus[index].header) is not None):
            wanted = "one that a layout of the instrument finds (its names or positions in your own TOML)"
            problems.append(InputError(f"{path}[{index}]", f"a further science image, {name}", wanted))
    return problems


def _unnamed_images(path: Path, hdus: fits.HDUList, claimed: set[int], shape: tuple[int, ...]) -> list[InputError]:
    """Return an error for unnamed images of the science shape that no position of the layout uses."""
    unclaimed = [
        index
        for index in image_hdus(hdus)
        if index not in claimed
        and index > 0
        and not hdu_name(hdus[index])
        and has_data(hdus, index)
        and image_shape(hdus[index].header) == shape
    ]
    if not unclaimed:
        return []
    wanted = "names (EXTNAME) that say which planes and chips they are, or a layout in your own TOML"
    return [InputError(path, f"images without a name in HDUs {', '.join(map(str, unclaimed))}", wanted)]
