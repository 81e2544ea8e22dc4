"""Clean one FITS file: detect its cosmic rays, repair them, write a copy.

Files of known cameras are processed by the steps of a run, each chip with its own weights and flags. Images of other
cameras are cleaned as arrays of electrons, with a noise estimated from the image.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits

from csstdask.core.errors import InputError
from csstdask.instrument import Instrument, load_instrument, parse_units, section_slices
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.frame import Frame
from csstdask.pipeline.provenance import provenance_cards
from csstdask.pipeline.steps import apply_steps
from csstdask.pipeline.steps.repair import REPAIR
from csstdask.store.fits_file import open_fits, plane_data
from csstdask.store.fits_names import COMMON_NAMES, hdu_name, may_hold, split_name
from csstdask.store.fits_planes import read_flag, read_headers, read_sci, read_weight
from csstdask.store.fits_recognise import recognise_file
from csstdask.store.fits_scan import scan_file
from csstdask.store.fits_unit import UnitSource

MASK_NAME = "CR_MASK"
"""EXTNAME of the added mask: 1 = hit by a cosmic ray."""
VARIANCE_NAME = "CR_VAR"
"""EXTNAME of the variance of repaired pixels, added if the file has no weights for it."""


@dataclass(frozen=True)
class CleanedChip:
    """Result for one image of a file."""

    name: str
    """HDU of the image, and detector if known."""
    n_pixels: int
    n_hit: int
    n_repaired: int
    seconds: float

    def __str__(self) -> str:
        share = 100 * self.n_hit / max(self.n_pixels, 1)
        return f"{self.name}: {self.n_hit} pixels hit ({share:.2f} %), {self.n_repaired} repaired, {self.seconds:.1f} s"


@dataclass
class CleanedFile:
    """Result of cleaning a file."""

    chips: list[CleanedChip] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Images that could not be used, and were copied unchanged."""
    untouched: list[str] = field(default_factory=list)
    """Images of an unknown camera that are not science images judging by their names."""


@dataclass(frozen=True)
class _Result:
    """Cleaned pixels of one image, in the units of the file, and their position in its HDU."""

    source: UnitSource | None
    hdu: int
    where: tuple[slice, slice]
    hit: npt.NDArray[np.bool_]
    value: npt.NDArray[Any]
    variance: npt.NDArray[Any]
    """Variance; NaN where not hit, inf where not repaired."""
    satellite: npt.NDArray[np.bool_] | None = None
    """Pixels on the trail of a satellite; None without a camera, whose flags have a bit for them."""

    @property
    def repaired(self) -> npt.NDArray[np.bool_]:
        return self.hit & np.isfinite(self.variance) & np.isfinite(self.value)


def clean_file(
    path: str | Path,
    to: str | Path,
    *,
    config: RunConfig | None = None,
    instrument: str | Path | Instrument | None = None,
    gain: float | None = None,
    overwrite: bool = False,
    on_chip: Callable[[CleanedChip], None] = lambda _: None,
) -> CleanedFile:
    """Detect and repair the cosmic rays in every image of a FITS file.

    Parameters
    ----------
    path : path
        FITS file, plain or compressed.
    to : path
        Output file: a copy of `path` with repaired science images, the variance of repaired pixels in its weights or
        errors, the bits of cosmic rays and repairs in its flags, and an HDU ``CR_MASK`` for each image.
    config : RunConfig, optional
        Settings; default: those of a run.
    instrument : str, path or Instrument, optional
        Built-in name or TOML file; default: recognised from the headers.
    gain : float, optional
        Gain of an unknown camera [e-/adu]; 1 for pixels in electrons.
    overwrite : bool
        Whether `to` may exist.
    on_chip : callable
        Called with the result of each image.

    Returns
    -------
    CleanedFile
        Names the chips that could not be used, which are unchanged in the output file.

    Raises
    ------
    InputError
        If the file cannot be used, its camera is unknown, or the output file exists.
    """
    source, target = Path(path), Path(to)
    if target.exists() and (not overwrite or target.samefile(source)):
        wanted = "another name" if target.samefile(source) else "a new name, or --overwrite"
        raise InputError(target, "a file that exists", wanted)
    if not target.absolute().parent.is_dir():
        raise InputError(target, f"no folder {target.parent}", "a folder that exists")
    settings = config or RunConfig()
    summary = CleanedFile()
    camera = _camera(source, instrument, gain)
    if camera is not None:
        found = scan_file(source, camera)
        summary.problems += [str(problem) for problem in found.problems]
        if not found.units:
            raise found.problems[0] if found.problems else InputError(source, "no science image", "at least one")
        jobs = [lambda unit=unit: _clean_unit(unit, camera, settings) for unit in found.units]
        names = [f"{unit.name} detector {unit.detector}" for unit in found.units]
    else:
        indices, summary.untouched = _plain_images(source)
        jobs = [lambda index=index: _clean_image(source, index, float(gain or 1), settings) for index in indices]
        names = [f"{source}[{index}]" for index in indices]
    results: list[_Result] = []
    for name, job in zip(names, jobs, strict=True):
        start = time.perf_counter()
        result = job()
        results.append(result)
        numbers = result.hit.size, int(result.hit.sum()), int(result.repaired.sum())
        summary.chips.append(CleanedChip(name, *numbers, time.perf_counter() - start))
        on_chip(summary.chips[-1])
    _write(source, target, results, camera, settings)
    return summary


def _camera(path: Path, given: str | Path | Instrument | None, gain: float | None) -> Instrument | None:
    """Return the camera of a file; None if it is cleaned as an image of a given gain."""
    if given is not None:
        return given if isinstance(given, Instrument) else load_instrument(given)
    if gain is not None:
        if not gain > 0 or not np.isfinite(gain):
            raise InputError("--gain", f"{gain} e-/adu", "a number > 0")
        return None
    names = recognise_file(path)
    if len(names) == 1:
        return load_instrument(names[0])
    found = f"what could be of {', '.join(names)}" if names else "no camera that is known"
    raise InputError(path, found, "--instrument with a name or a TOML, or --gain [e-/adu] for any camera")


def _clean_unit(unit: UnitSource, camera: Instrument, config: RunConfig) -> _Result:
    """Clean one chip with the steps of a run."""

    def read_plane(name: str) -> npt.NDArray[Any]:
        if name == "flag":
            return read_flag(unit, camera)
        return read_sci(unit) if name == "sci" else read_weight(unit)

    frame = Frame(unit.metadata("", ""), camera, unit.units, read_plane, _no_product, lambda: read_headers(unit)[0])
    apply_steps(frame, (REPAIR.name,), config)
    names = ("cr_mask", "repair", "repair_variance")
    missing = [name for name in names if not frame.has(name)]
    if missing:  # a kind of frame that a run does not repair
        raise InputError(unit.name, f"a frame of kind {unit.kind}", "one that cosmic rays are repaired in")
    hit, repair, variance = (frame.product(name) for name in names)
    where = section_slices(unit.trim) if unit.trim is not None else (slice(None), slice(None))
    value, width = repair.astype(np.float64) / unit.scale, variance.astype(np.float64) / unit.scale**2
    return _Result(unit, unit.sci.hdu, where, hit, value, width, frame.product("satellite_mask"))


def _no_product(name: str) -> npt.NDArray[Any]:
    raise KeyError(name)


def _plain_images(path: Path) -> tuple[list[int], list[str]]:
    """Return the science images of a file of any camera, and descriptions of its other 2-D images.

    Raises
    ------
    InputError
        If there is no image, or the names of several images do not reveal the science images.
    """
    with open_fits(path) as hdus:
        images = [index for index, hdu in enumerate(hdus) if hdu.is_image and hdu.header.get("NAXIS", 0) == 2]
        names = {index: hdu_name(hdus[index]) for index in images}
    possible = [index for index in images if may_hold(names[index], "sci")]
    named = [index for index in possible if split_name(names[index])[0] in COMMON_NAMES]
    chosen = named or possible
    if not chosen:
        raise InputError(path, "no 2-D image", "at least one")
    if not named and len(chosen) > 1 and not all(names[index] for index in chosen):
        found = f"several images without names (HDUs {', '.join(map(str, chosen))})"
        raise InputError(path, found, "names (EXTNAME), or --instrument with a TOML that says which is which")
    return chosen, [f"{path}[{index}] {names[index]}".rstrip() for index in images if index not in chosen]


def _clean_image(path: Path, index: int, gain: float, config: RunConfig) -> _Result:
    """Clean one image as an array of electrons."""
    from csstdask.cosmicray.clean import clean

    with open_fits(path) as hdus:
        units = str(hdus[index].header.get("BUNIT", "")).strip()
        data = plane_data(path, hdus, index)
    known = parse_units(units) if units else "adu"
    if known is None or known.endswith("s-1"):
        raise InputError(f"{path}[{index}]: BUNIT", repr(units), "counts or electrons; rates need --instrument")
    scale = np.float32(gain if known == "adu" else 1.0)
    cleaned = clean(data.astype(np.float32) * scale, model=config.detect.model)
    value = np.asarray(cleaned.data, dtype=np.float32) / scale
    variance = np.asarray(cleaned.variance, dtype=np.float32) / scale**2
    return _Result(None, index, (slice(None), slice(None)), np.asarray(cleaned.mask), value, variance)


def _write(source: Path, target: Path, results: list[_Result], camera: Instrument | None, config: RunConfig) -> None:
    """Write the output file with the results in their HDUs, completely or not at all."""
    draft = target.with_name(f".{target.name}.partial{''.join(target.suffixes[-2:])}")
    try:
        with open_fits(source) as hdus:
            added: list[fits.ImageHDU] = []
            for result in results:
                added += _insert(hdus, source, result, camera)
            primary = hdus[0].header
            for keyword, value, comment in provenance_cards(config, camera):
                primary[keyword] = (value, comment)
            primary.add_history("csstdask: cosmic rays detected and repaired; CR_MASK = 1 where a pixel was hit")
            fits.HDUList([*hdus, *added]).writeto(draft, overwrite=True, output_verify="silentfix+ignore")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def _insert(hdus: fits.HDUList, path: Path, result: _Result, camera: Instrument | None) -> list[fits.ImageHDU]:
    """Insert a result into the HDUs of its file, and return the HDUs to add."""
    version = hdus[result.hdu].ver
    repaired, where = result.repaired, result.where
    science = plane_data(path, hdus, result.hdu)
    science = science.astype(np.float32 if science.dtype.kind in "iub" else science.dtype.newbyteorder("="))
    science[where][repaired] = result.value[repaired]
    _replace(hdus, result.hdu, science)
    kept = _insert_weights(hdus, path, result) if result.source is not None else False
    if result.source is not None and camera is not None:
        _insert_flags(hdus, path, result, camera)
    mask = np.zeros(science.shape, np.uint8)
    mask[where] = result.hit
    added = [fits.ImageHDU(mask, name=MASK_NAME, ver=version)]
    if not kept:
        variance = np.full(science.shape, np.nan, result.variance.dtype)
        variance[where] = result.variance
        added.append(fits.ImageHDU(variance, name=VARIANCE_NAME, ver=version))
    return added


def _replace(hdus: fits.HDUList, index: int, data: npt.NDArray[Any]) -> None:
    """Replace the pixels of an HDU; a compressed HDU becomes plain, because compression of floats is lossy."""
    header = hdus[index].header.copy()
    for keyword in ("BZERO", "BSCALE", "BLANK", "CHECKSUM", "DATASUM"):
        header.remove(keyword, ignore_missing=True)
    kind = fits.PrimaryHDU if index == 0 else fits.ImageHDU
    hdus[index] = kind(data, header=header)


def _insert_weights(hdus: fits.HDUList, path: Path, result: _Result) -> bool:
    """Insert the variance of repaired pixels into the weights of the file; return False if it has none."""
    unit = result.source
    if unit is None or unit.weight is None or Path(unit.weight.path) != path.absolute():
        return False
    power = {"inverse_variance": -1.0, "variance": 1.0, "error": 0.5}[unit.weight_kind]
    weights = plane_data(path, hdus, unit.weight.hdu)
    weights = weights.astype(np.float32 if weights.dtype.kind in "iub" else weights.dtype.newbyteorder("="))
    weights[result.where][result.repaired] = result.variance[result.repaired].astype(np.float64) ** power
    _replace(hdus, unit.weight.hdu, weights)
    return True


def _insert_flags(hdus: fits.HDUList, path: Path, result: _Result, camera: Instrument) -> None:
    """Replace incoming cosmic-ray bits in the flags of the file by those of hit and repaired pixels."""
    unit, flags = result.source, camera.flags
    if unit is None or unit.flag is None or Path(unit.flag.path) != path.absolute():
        return
    if flags.encoding != "bits" or flags.plane_keyword is not None:
        return  # flags of another kind are kept; the mask is in CR_MASK
    bits = read_flag(unit, camera)
    bits &= ~np.int32(flags.incoming_cosmic_ray_mask)
    bits[result.hit] |= flags.cosmic_ray_mask
    bits[result.repaired] |= flags.inpainted_mask
    if result.satellite is not None and "satellite_trail" in flags.bits:
        bits[result.satellite] |= flags.mask("satellite_trail")
    flag_plane = plane_data(path, hdus, unit.flag.hdu).astype(np.int32)
    flag_plane[result.where] = bits
    _replace(hdus, unit.flag.hdu, flag_plane)
