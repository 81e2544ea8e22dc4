"""Find the HDUs of each plane: by the layout's names and positions, else by names in common use.

A position counts only for an HDU whose name does not say something else. The meaning of a plane found under a common
name (``ERR``, ``VAR``, ``IVAR``, ``MASK``, ...) is that of the name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from astropy.io import fits

from csstdask.core.errors import InputError
from csstdask.instrument import Layout, Plane
from csstdask.instrument.file_layout import WeightKind
from csstdask.store.fits_file import header_value, open_fits
from csstdask.store.fits_names import COMMON_NAMES, NOT_SCIENCE, UTYPE_KINDS, Role, hdu_name, may_hold, split_name
from csstdask.store.fits_pairing import ChipKey, PlaneCandidates, image_shape


def sibling_path(path: Path, old: str, new: str) -> Path:
    """Return the file of another plane in a layout of separate files."""
    head, _, tail = path.name.rpartition(old)
    return path.with_name(head + new + tail)


@dataclass(frozen=True)
class PlaneMatch:
    """HDUs that match one plane of a layout."""

    indices: list[int]
    found_by: str
    """``name``, ``position`` or ``a name in common use``."""
    kind: WeightKind | None = None
    """Meaning of a weight plane found by a name in common use."""


def image_hdus(hdus: fits.HDUList) -> list[int]:
    """Return the indices of the image HDUs of a file."""
    kinds = (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU)
    return [index for index, hdu in enumerate(hdus) if isinstance(hdu, kinds)]


def has_data(hdus: fits.HDUList, index: int) -> bool:
    """Return whether an HDU has data."""
    return int(hdus[index].header.get("NAXIS", 0)) > 0


def describe_hdu(hdus: fits.HDUList, index: int) -> str:
    """Return index, name and shape of an HDU, for messages."""
    return f"HDU {index} {hdu_name(hdus[index]) or 'without a name'} {image_shape(hdus[index].header)}"


def find_plane(hdus: fits.HDUList, plane: Plane, role: Role, *, of_chips: bool = True) -> PlaneMatch | None:
    """Find the HDUs of one role: by names and positions of the layout, else by names in common use.

    Parameters
    ----------
    hdus : HDUList
        The open file.
    plane : Plane
        Plane of the layout.
    role : str
        ``sci``, ``wht`` or ``flag``.
    of_chips : bool
        Whether names may contain a chip in addition to the plane: ``MASK_2`` is the flags of chip 2 in a file with
        ``SCI_2``, but something else in a file that only has ``SCI``.

    Returns
    -------
    PlaneMatch or None
    """
    images = image_hdus(hdus)
    names = {index: hdu_name(hdus[index]) for index in images}
    for wanted in plane.hdu:
        if wanted == "*":
            found = [index for index in images if has_data(hdus, index) and may_hold(names[index], role)]
            how = "position" if found and not any(names[index] for index in found) else "name"
        elif isinstance(wanted, int):
            usable = wanted in names and (wanted > 0 or has_data(hdus, 0))
            found = [wanted] if usable and _usable_by_position(names[wanted], role, plane.kind) else []
            how = "position"
        else:
            found = _hdus_named(names, wanted.strip().upper(), of_chips=of_chips)
            how = "name"
        if found:
            return PlaneMatch(found, how)
    for name, (meaning, kind) in COMMON_NAMES.items():
        if meaning != role:
            continue
        found = _hdus_named(names, name, of_chips=of_chips)
        if found:
            return PlaneMatch(
                found, "a name in common use", _uncertainty_kind(hdus, found, kind) if role == "wht" else None
            )
    return None


def _uncertainty_kind(hdus: fits.HDUList, found: Sequence[int], kind: WeightKind) -> WeightKind:
    return UTYPE_KINDS.get(str(header_value(hdus[found[0]].header, "UTYPE") or ""), kind)


def _hdus_named(names: Mapping[int, str], wanted: str, *, of_chips: bool) -> list[int]:
    """Return the HDUs with a name, and those with the name and a chip."""
    return [
        index
        for index, name in names.items()
        if name == wanted or (of_chips and name and split_name(name)[0] == wanted)
    ]


def names_hold_chips(hdus: fits.HDUList, science: PlaneMatch) -> bool:
    """Return whether the names of the science images contain their chips."""
    return any(ChipKey.of(hdus[index], None).chip for index in science.indices)


def _usable_by_position(name: str, role: Role, kind: WeightKind) -> bool:
    """Return whether the name of an HDU permits its use by position.

    A name that is only a chip denotes a science image.
    """
    meaning = COMMON_NAMES.get(split_name(name)[0])
    if meaning is None:
        return not name or (role == "sci" and split_name(name)[0] not in NOT_SCIENCE)
    return meaning == (role, kind) if role == "wht" else meaning[0] == role


def choose_layout(path: Path, hdus: fits.HDUList, layouts: Sequence[Layout]) -> tuple[Layout, bool]:
    """Return the layout with most planes in the file, and whether its planes are separate files.

    Ties are resolved by the number of planes under the layout's own names, then by the fewest missing planes, then by
    the order of the layouts.

    Raises
    ------
    InputError
        If no layout finds a science image.
    """
    ranked: list[tuple[int, int, int, int]] = []
    for order, layout in enumerate(layouts):
        if layout.separate_files:
            if layout.sci.suffix in path.name and find_plane(hdus, layout.sci, "sci"):
                return layout, True
            continue
        roles: tuple[tuple[Role, Plane | None], ...] = (("wht", layout.weight), ("flag", layout.flag))
        science = find_plane(hdus, layout.sci, "sci")
        if science is None:
            continue
        of_chips = names_hold_chips(hdus, science)
        matches = [find_plane(hdus, plane, role, of_chips=of_chips) for role, plane in roles if plane is not None]
        found = [science, *(match for match in matches if match is not None)]
        own = sum(match.found_by != "a name in common use" for match in found)
        missing = sum(
            match is None and not plane.optional
            for match, plane in zip(matches, (one for _, one in roles if one is not None), strict=True)
        )
        ranked.append((-len(found), -own, missing, order))
    if not ranked:
        raise no_science_error(path, hdus, layouts)
    return layouts[min(ranked)[3]], False


def no_science_error(path: Path, hdus: fits.HDUList, layouts: Sequence[Layout]) -> InputError:
    """Return the error of a file without a science image."""
    found = ", ".join(f"{index} {hdu.name} {getattr(hdu, 'shape', ())}" for index, hdu in enumerate(hdus))
    wanted = "; ".join(f"{layout.name}: {'/'.join(map(str, layout.sci.hdu))}" for layout in layouts)
    return InputError(path, f"no science image among its HDUs ({found})", f"one of the instrument's layouts ({wanted})")


def find_candidates(
    path: Path, hdus: fits.HDUList, layout: Layout, plane: Plane | None, role: Role, *, of_chips: bool, separate: bool
) -> PlaneCandidates | InputError | None:
    """Return the HDUs with the weights or flags of a file, or the error that a required plane is missing.

    None if the layout has no such plane, or an optional one is absent.
    """
    if plane is None:
        return None
    if separate:
        other = sibling_path(path, layout.sci.suffix, plane.suffix)
        if not other.is_file() and plane.optional:
            return None
        with open_fits(other) as others:
            match = find_plane(others, plane, role)
            if match is None:
                return InputError(other, "no image", f"the {plane.suffix} plane of {path.name}")
            return _collect(other, others, match, plane)
    match = find_plane(hdus, plane, role, of_chips=of_chips)
    if match is not None:
        return _collect(path, hdus, match, plane)
    if plane.optional:
        return None
    names = "/".join(map(str, plane.hdu))
    present = "; ".join(describe_hdu(hdus, index) for index in image_hdus(hdus) if has_data(hdus, index))
    return InputError(path, f"no HDU {names} ({present})", f"the planes of layout {layout.name!r}, by name")


def _collect(path: Path, hdus: fits.HDUList, match: PlaneMatch, plane: Plane) -> PlaneCandidates:
    keys = {index: ChipKey.of(hdus[index], None) for index in match.indices}
    headers = {index: hdus[index].header.copy() for index in match.indices}
    return PlaneCandidates(path, match.indices, match.found_by, match.kind or plane.kind, keys, headers)
