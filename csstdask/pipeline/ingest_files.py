"""Scan the files of an ingest: recognise their camera and their units, and select those that fit one campaign.

A campaign has one camera, one shape and one unit of pixels: the camera of most files, and the shape of most units (or
that of the instrument). Files that differ are reported and left out.
"""

from __future__ import annotations

import glob
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from csstdask.core.errors import CsstdaskError, InputError
from csstdask.instrument import Instrument, builtin_names, load_instrument
from csstdask.store.campaign import Campaign
from csstdask.store.fits_file import open_fits
from csstdask.store.fits_recognise import recognise_hdus
from csstdask.store.fits_scan import companion_of, scan_file
from csstdask.store.fits_unit import FileScan, UnitSource

log = logging.getLogger("csstdask")

SUFFIXES = (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz", ".fts.gz", ".fits.fz", ".fits.bz2", ".fits.xz")
"""Suffixes of FITS files in folders; a file that is named explicitly may have any."""
SKY_KINDS = {"imaging", "slitless"}
"""Kinds of frames that show the sky."""
PROGRESS_SECONDS = 10.0
"""Time between two log lines while headers are read [s]."""

Report = Callable[[object, Exception], None]
"""Reports a file that cannot be used, and the error."""


def find_files(names: Iterable[str | Path], report: Report) -> list[Path]:
    """Return all files of the given names, patterns, folders and lists (``@list``), each once.

    Raises
    ------
    InputError
        If there is no file.
    """
    paths: list[Path] = []
    for name in names:
        path = Path(name)
        try:
            if str(name).startswith("@") and not path.exists():
                paths += _listed(Path(str(name)[1:]))
            elif path.is_dir():
                paths += _in_folder(path)
            else:
                paths += [path] if path.exists() else sorted(map(Path, glob.glob(str(name)))) or [path]  # noqa: PTH207
        except (InputError, OSError, UnicodeDecodeError) as error:
            report(path, error)
    return list(dict.fromkeys(paths))


def _in_folder(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if _is_fits(path))
    if not found:
        raise InputError(folder, "a directory without FITS files", "FITS files, or a directory that holds some")
    return found


def _is_fits(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".") and path.is_file()


def _listed(path: Path) -> list[Path]:
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    found = [path.parent / line for line in lines if line and not line.startswith("#")]
    if not found:
        raise InputError(path, "a list without files", "one path a line")
    return found


def resolve_camera(given: str | Path | Instrument | None, existing: Campaign | None) -> Instrument | None:
    """Return the given camera, or that of the campaign; None if it is to be recognised from the files.

    Raises
    ------
    InputError
        If the given camera is not that of the campaign.
    """
    camera = given if given is None or isinstance(given, Instrument) else load_instrument(given)
    if existing is None:
        return camera
    return existing.instrument if camera is None else _updated(camera, existing)


def _updated(camera: Instrument, existing: Campaign) -> Instrument:
    """Return a camera for more exposures of a campaign: only dated overrides and expectations may have changed."""
    changeable = {"overrides", "description", "expectations"}
    ours, theirs = (one.model_dump(exclude=changeable) for one in (camera, existing.instrument))
    different = [key for key in ours if ours[key] != theirs[key]]
    if different:
        name = camera.name if "name" in different else f"{camera.name} with another {', '.join(different)}"
        raise InputError(
            "--instrument",
            name,
            f"{existing.instrument.name}, as in {existing.path} (the default without --instrument)",
        )
    return camera


@dataclass
class ScannedFiles:
    """Units of all files."""

    camera: Instrument | None = None
    usable: list[UnitSource] = field(default_factory=list)
    dead: list[UnitSource] = field(default_factory=list)
    """Units of detectors that the instrument calls unusable."""
    notes: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def scan_files(paths: Sequence[Path], camera: Instrument | None, report: Report) -> ScannedFiles:
    """Read the headers of all files; report files that cannot be used.

    Without a camera, that of each file is recognised. The camera of most files becomes that of the campaign, and the
    other files are reported.

    Raises
    ------
    InputError
        If the files are of several cameras and none has more than half of them.
    """
    given = set(paths)
    scans: dict[Path, tuple[Instrument, FileScan]] = {}
    last = time.monotonic()
    for number, path in enumerate(paths):
        if time.monotonic() - last > PROGRESS_SECONDS:
            last = time.monotonic()
            log.info("read the headers of %d of %d files", number, len(paths))
        try:
            scanned = _scan_one(path, camera, given)
        except Exception as error:  # noqa: BLE001  any error concerns this file only
            report(path, error)
            continue
        if scanned is not None:
            scans[path] = scanned
    result = ScannedFiles(camera or _majority(scans))
    for path, (instrument, found) in scans.items():
        if result.camera is None or instrument.name != result.camera.name:
            wanted = f"one of {result.camera.name if result.camera else 'a known camera'}, as most of the files"
            report(path, InputError(path, f"a file of {instrument.name}", f"{wanted} (a campaign holds one camera)"))
            continue
        for problem in found.problems:
            report(path, problem)
        result.ignored += found.ignored
        for source in found.units:
            alive = instrument.values(source.detector, source.metadata("", "").when).usable is not False
            (result.usable if alive else result.dead).append(source)
            result.notes += [f"{source.name}: {note}" for note in source.notes]
    return result


def _scan_one(path: Path, camera: Instrument | None, given: set[Path]) -> tuple[Instrument, FileScan] | None:
    """Return the camera and the units of a file; None if it contains a plane of another file's units."""
    if camera is not None and _is_companion(path, camera, given):
        return None
    with open_fits(path) as hdus:
        names = recognise_hdus(path, hdus)
        if camera is not None:
            if names and camera.name not in names and camera.name in builtin_names():
                raise InputError(path, f"a file of {', '.join(names)}", f"one of {camera.name}")
            return camera, scan_file(path, camera, hdus)
        if len(names) != 1:
            candidates = names or builtin_names()
            what = "what could be more than one instrument" if names else "no instrument that is known"
            raise InputError(path, what, f"--instrument with one of {', '.join(candidates)}, or a TOML")
        instrument = load_instrument(names[0])
        return None if _is_companion(path, instrument, given) else (instrument, scan_file(path, instrument, hdus))


def _is_companion(path: Path, camera: Instrument, given: set[Path]) -> bool:
    """Return whether a file contains a plane of another file's units; InputError if that file is missing."""
    science = companion_of(path, camera)
    if science is None:
        return False
    if science not in given and not science.is_file():
        raise InputError(path, f"no {science.name} in its folder", "the image that this plane belongs to")
    return True


def _majority(scans: Mapping[Path, tuple[Instrument, FileScan]]) -> Instrument | None:
    cameras = {camera.name: camera for camera, _ in scans.values()}
    if len(cameras) < 2:
        return next(iter(cameras.values()), None)
    counts = Counter(camera.name for camera, _ in scans.values()).most_common()
    name, most = counts[0]
    if 2 * most <= len(scans):
        found = f"files of {len(counts)} cameras ({', '.join(f'{name}: {count}' for name, count in counts)})"
        raise InputError("FITS", found, "one camera a campaign (--instrument NAME takes the files of one)")
    return cameras[name]


@dataclass(frozen=True)
class CampaignFormat:
    """Properties that all units of a campaign share."""

    shape: tuple[int, int]
    units: str
    detectors: tuple[int, ...]
    like: str
    """Source of these properties, for messages."""


def campaign_format(campaign: Campaign) -> CampaignFormat:
    """Return the format of an existing campaign."""
    return CampaignFormat(campaign.shape, campaign.units, tuple(campaign.detectors), str(campaign.path))


def choose_format(sources: Sequence[UnitSource], camera: Instrument) -> CampaignFormat:
    """Choose the format of a new campaign.

    Frames of the sky take precedence over calibration frames, and the shape of the instrument, if any of them has it,
    over the most common one.
    """
    deciding = [source for source in sources if source.kind in SKY_KINDS] or sources
    shapes = Counter(source.shape for source in deciding)
    shape = camera.shape if camera.shape in shapes else shapes.most_common(1)[0][0]
    of_shape = [source for source in deciding if source.shape == shape]
    units = Counter(source.units for source in of_shape).most_common(1)[0][0]
    first = next(source for source in of_shape if source.units == units)
    return CampaignFormat(first.shape, units, camera.detector_ids, first.name)


def filter_by_format(sources: Sequence[UnitSource], form: CampaignFormat, report: Report) -> list[UnitSource]:
    """Return the units that fit the format of a campaign; report the others."""
    kept: list[UnitSource] = []
    own = "(it needs a separate campaign)"
    for source in sources:
        if source.shape != form.shape:
            report(
                source.name, InputError(source.name, f"shape {source.shape}", f"{form.shape} as in {form.like} {own}")
            )
        elif source.units != form.units:
            wanted = f"{form.units} as in {form.like} {own}"
            report(source.name, InputError(source.name, f"pixels in {source.units}", wanted))
        elif source.detector not in form.detectors:
            wanted = f"one of the campaign's, {list(form.detectors)} {own}"
            report(source.name, InputError(source.name, f"detector {source.detector}", wanted))
        else:
            kept.append(source)
    return kept


def describe_mixture(sources: Sequence[UnitSource], form: CampaignFormat) -> list[str]:
    """Return a line that counts units by shape and pixel unit, if there are several kinds."""
    kinds = Counter((source.shape, source.units) for source in sources)
    if len(kinds) < 2:
        return []
    counts = ", ".join(f"{count} of {shape} in {units}" for (shape, units), count in kinds.most_common())
    return [f"a campaign holds one shape and one unit, here {form.shape} in {form.units}; the files hold {counts}"]


def describe_error(source: object, error: Exception) -> str:
    """Return an error as one line, with its source."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, CsstdaskError | OSError):
        reason = f"found something that cannot be read ({type(error).__name__}: {reason}); wanted a FITS file"
    return reason if str(source) in reason else f"{source}: {reason}"
