"""One unit of a mock survey, as Level 1 has it, with its truth: the story from sky to pixel.

Sources, the telescope, sky and artefacts give an expected image; photons are counted; cosmic rays add their charge;
the detector moves it and reads it; Level 1 is made from what is known of the detector. The same photons and the same
read noise without cosmic rays are the truth. Every unit has random streams of its own, derived from the recipe's seed
and the unit's indices: results do not depend on order or workers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from astropy.io.fits import Header

from csstdask.core.errors import InputError
from csstdask.instrument import Instrument, nominal_header
from csstdask.mock.artefacts import draw_ghosts, draw_trails
from csstdask.mock.catalogue import Catalogue, empty_catalogue, exposure_dither, max_copies, unit_catalogue
from csstdask.mock.cosmic_rays import aimed_cosmic_rays, generator_of, pixel_fraction, unit_cosmic_rays
from csstdask.mock.event_libraries import load_event_library
from csstdask.mock.level_1 import calibrate, estimate_calibration, unit_flags
from csstdask.mock.psf import OpticalState, PsfModel, sub_band_weights
from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.random_telescopes import draw_optics
from csstdask.mock.recipe import Optics, Recipe, Sensor, Stamps
from csstdask.mock.scene import draw_scene
from csstdask.mock.scene_psf import ExactPsf, InterpolatedPsf, Window
from csstdask.mock.schedule import exposure_start
from csstdask.mock.sensor import (
    Ccd,
    Frame,
    apply_blooming,
    apply_cti,
    brighter_fatter,
    build_ccd,
    count_photons,
    digitise,
    fringes,
    read_noise_frame,
)
from csstdask.mock.slitless import check_slitless, expected_spectra
from csstdask.mock.slitless_stars import recipe_library
from csstdask.mock.stamps import StampSet, Targets, choose_targets, cut_stamps
from csstdask.mock.zeropoint_settings import ZeroPoints
from csstdask.mock.zeropoint_units import fingerprint_settings, unit_conditions

#: Raised whenever the same recipe would give other pixels.
NUMERICS_VERSION = 2
SLITLESS_VERSION = 1
"""The same of what slitless frames alone have."""
ZEROPOINT_VERSION = 1
"""The same of what frames alone have whose throughput follows telemetry."""
#: What the pixels of a unit do not depend on, or what `unit_digest` adds where a recipe has it.
_NOT_IN_PIXELS = {"name", "exposures", "span", "detectors", "fields", "slitless", "zeropoint"}
#: Where PSFs are to be exact, stars of fewer electrons have interpolated ones all the same.
_FAINT = 300.0
#: What is told of a source in tables of the truth.
TRUTH_COLUMNS = (
    *("x", "y", "mag", "flux", "is_star", "temperature", "half_light_radius", "axis_ratio", "angle"),
    *("bulge_share", "bulge_radius", "knot_share"),
)


@dataclass(frozen=True)
class MockUnit:
    """A rendered unit: Level 1 planes [electron s-1], truth and headers."""

    sci: npt.NDArray[np.float32]
    wht: npt.NDArray[np.float32]
    flag: npt.NDArray[np.int32]
    truth_sci: npt.NDArray[np.float32]
    """The same photons and noise, without cosmic rays."""
    truth_cr: npt.NDArray[np.float32]
    """Charge of cosmic rays where they hit [e-], before any of it is moved."""
    catalogue: Catalogue
    """Empty for slitless frames: see `csstdask.mock.slitless.unit_stars`."""
    targets: Targets | None
    """The sources that stamps are wanted of."""
    header: Header
    primary_header: Header
    time: int
    """Microseconds since 1970."""


def check_recipe(recipe: Recipe, instrument: Instrument, data: Path | None = None) -> None:
    """Raise InputError for what this simulator cannot draw."""
    if instrument.geometry is None or instrument.telescope is None or not instrument.bands:
        raise InputError(
            f"{recipe.name}: instrument", f"{instrument.name}", "one with geometry, telescope and bands, such as csst"
        )
    for detector in recipe.detectors:
        if detector not in instrument.detector_ids:
            raise InputError(f"{recipe.name}: detectors", f"{detector}", f"detectors of {instrument.name}")
        band = instrument.detector(detector).band
        if recipe.slitless is None and band not in instrument.bands:
            wanted = f"imaging bands {', '.join(instrument.bands)}"
            if band in instrument.slitless:
                wanted += ", or a recipe with a table [slitless]"
            raise InputError(f"{recipe.name}: detectors", f"{detector} (band {band})", wanted)
    for index in range(recipe.exposures):
        generator = generator_of(recipe, index)
        if generator in ("stis", "itl"):
            load_event_library(generator, recipe.cosmic_rays.events_from or recipe.split_of(index), data)
    if recipe.slitless is not None:
        check_slitless(recipe, instrument, data)
    if recipe.stamps is not None:
        _check_stamps(recipe, recipe.stamps)
    if recipe.zeropoint is not None:
        _check_zeropoint(recipe, recipe.zeropoint, instrument)


def _check_zeropoint(recipe: Recipe, wanted: ZeroPoints, instrument: Instrument) -> None:
    others = {"slitless": recipe.slitless, "nodes": recipe.nodes, "stamps": recipe.stamps}
    for name, table in others.items():
        if table is not None:
            raise InputError(f"{recipe.name}: zeropoint", f"a table [{name}] too", "frames of imaging detectors")
    for band in wanted.stars.bands:
        if band not in instrument.bands:
            known = ", ".join(instrument.bands)
            raise InputError(f"{recipe.name}: zeropoint.stars.bands", band, f"bands of {instrument.name}: {known}")


def _check_stamps(recipe: Recipe, wanted: Stamps) -> None:
    if wanted.size > min(recipe.frame_shape):
        raise InputError(f"{recipe.name}: stamps.size", f"{wanted.size}", f"at most the frame's {recipe.frame_shape}")
    if wanted.kind != "isolated" and set(recipe.cosmic_rays.generators) & {"stis", "itl"}:
        found = f"{', '.join(recipe.cosmic_rays.generators)} for stamps of kind {wanted.kind}"
        raise InputError(f"{recipe.name}: cosmic_rays.generators", found, "tracks or slab: these can be aimed")
    if wanted.kind == "brightness":
        sources = len(wanted.magnitudes) * wanted.cosmic_rays_each
        room = min(wanted.per_unit, max_copies(recipe.frame_shape))
        if sources > room:
            found = f"{sources} sources, and room for {room}"
            raise InputError(f"{recipe.name}: stamps", found, "a larger shape, or more per_unit")


def unit_digest(recipe: Recipe, instrument: Instrument, index: int, detector: int, data: Path | None = None) -> str:
    """Return the identity of a unit: all that decides its pixels."""
    decisive = recipe.model_dump_json(exclude=_NOT_IN_PIXELS)
    if not recipe.optics.drawn:  # as it was before any were
        decisive = decisive.replace(',"drawn":false', "")
    if recipe.sensor.gain_error == Sensor().gain_error:  # as it was before it could be set
        decisive = decisive.replace(f',"gain_error":{recipe.sensor.gain_error}', "")
    # What takes turns depends on how many exposures there are: it is told here as it falls to this one.
    place = f"{recipe.epoch_of(index)} {recipe.field_index(index)} {recipe.field_of(index)!r}"
    place += f" {generator_of(recipe, index)} {pixel_fraction(recipe, index)!r}"
    camera = instrument.model_dump_json(exclude={"description", "expectations", "slitless"}, exclude_defaults=True)
    text = f"{NUMERICS_VERSION} {decisive} {place} {camera} {index} {detector}"
    if recipe.zeropoint is not None:
        text += f" {ZEROPOINT_VERSION} {fingerprint_settings(recipe, index)}"
    if recipe.slitless is not None:
        text += f" {SLITLESS_VERSION} {recipe.slitless.model_dump_json(exclude={'seds'})} {exposure_start(recipe, 0)}"
        text += f" {recipe_library(recipe, data).sha256}"
        text += instrument.slitless[str(instrument.detector(detector).band)].model_dump_json()
    return hashlib.sha256(text.encode()).hexdigest()


@lru_cache(maxsize=2)
def psf_model(settings: Optics, instrument_json: str) -> PsfModel:
    """Return the PSF model of a telescope; one is kept for each process."""
    return PsfModel(settings, Instrument.model_validate_json(instrument_json))


@lru_cache(maxsize=32)
def frame_psf(
    settings: Optics, instrument_json: str, detector: int, shape: tuple[int, int], state: OpticalState
) -> InterpolatedPsf:
    """Return the PSF of a frame; a few are kept, for exposures of one epoch share theirs."""
    model = psf_model(settings, instrument_json)
    window = Window.of(shape, model.instrument)
    return InterpolatedPsf(model, detector, window, state)


def exposure_optics(recipe: Recipe, index: int) -> Optics:
    """Return the telescope that an exposure sees through."""
    if not recipe.optics.drawn:
        return recipe.optics
    drawn = draw_optics(stream(recipe.optics.seed, Purpose.TELESCOPE, index))
    return drawn.model_copy(update={"exact": recipe.optics.exact})


def optical_state(recipe: Recipe, index: int) -> OpticalState:
    """Return the state of the telescope in an exposure."""
    settings = recipe.optics
    jitter = stream(recipe.seed, Purpose.SHAKE, index).normal() * settings.jitter_scatter
    shake = unit_conditions(recipe, index, recipe.detectors[0]).jitter  # the same for all detectors
    return OpticalState(
        epoch=recipe.epoch_of(index),
        enlarge=settings.enlarge[index % len(settings.enlarge)],
        jitter=float(np.exp(jitter)) * shake,
    )


def expected_light(
    recipe: Recipe, instrument: Instrument, index: int, detector: int, catalogue: Catalogue
) -> tuple[Frame, dict[str, npt.NDArray[np.bool_]]]:
    """Return the light that falls on a unit [e-/s/pixel], and where artefacts in it were noticed."""
    shape, band = recipe.frame_shape, instrument.bands[str(instrument.detector(detector).band)]
    weights = sub_band_weights(band.wavelength, catalogue.temperature)
    optics, state = exposure_optics(recipe, index), optical_state(recipe, index)
    psf = frame_psf(optics, instrument.model_dump_json(), detector, shape, state)
    exact = catalogue.is_star & (catalogue.flux * recipe.exptime > _FAINT) & optics.exact
    light = draw_scene(catalogue.select(~exact), weights[~exact], shape, psf)
    if exact.any():
        model = psf_model(optics, instrument.model_dump_json())
        window = Window.of(shape, instrument)
        placed = ExactPsf(model, detector, window, state)
        light += draw_scene(catalogue.select(exact), weights[exact], shape, placed)
    rng = stream(recipe.seed, Purpose.ARTEFACTS, index, detector)
    slope_x, slope_y = rng.uniform(-0.5, 0.5, 2) * recipe.sky.gradient
    along_x, along_y = (np.linspace(-1, 1, n, dtype=np.float32) for n in (shape[1], shape[0]))
    sky = 1 + np.float32(slope_x) * along_x[None, :] + np.float32(slope_y) * along_y[:, None]
    sky *= fringes(recipe.sensor, detector, shape, sum(band.wavelength) / 2)
    conditions = unit_conditions(recipe, index, detector)
    level = band.sky * recipe.sky.level * conditions.sky * 10 ** (0.4 * conditions.offset)
    light += np.float32(level) * sky
    trails, on_trail = draw_trails(rng, recipe.artefacts, shape, recipe.exptime)
    of_telescope = stream(optics.seed, Purpose.ARTEFACTS, detector)  # a ghost's size is not an exposure's
    ghosts, on_ghost = draw_ghosts(of_telescope, recipe.artefacts, catalogue, shape, recipe.exptime)
    light += trails
    light += ghosts
    # The profiles' transforms ring by a part in a million: light is not negative.
    return np.maximum(light, 0, out=light), {"satellite_trail": on_trail, "ghost": on_ghost}


def render_unit(
    recipe: Recipe, instrument: Instrument, index: int, detector: int, data: Path | None = None
) -> MockUnit:
    """Render one unit.

    Parameters
    ----------
    recipe : Recipe
    instrument : Instrument
        The recipe's.
    index : int
        Of the exposure.
    detector : int
        Its id.
    data : Path, optional
        Folder of real cosmic-ray events and of libraries of SEDs, for recipes that want them.
    """
    values = instrument.values(detector)
    gain, read_noise = values.gain or 1.0, values.read_noise or 0.0
    full_well = values.saturation or np.inf
    settings, shape, epoch = recipe.sensor, recipe.frame_shape, recipe.epoch_of(index)
    if recipe.slitless is None:
        catalogue = unit_catalogue(recipe, instrument, index, detector)
        light, artefacts = expected_light(recipe, instrument, index, detector, catalogue)
    else:
        catalogue = empty_catalogue()
        light, artefacts = expected_spectra(recipe, instrument, index, detector, data), {}
    ccd = build_ccd(settings, detector, shape, epoch, gain=gain, bias_level=values.bias_level or 0.0)
    light *= ccd.flat
    light += ccd.dark
    light *= np.float32(recipe.exptime)
    clean = count_photons(stream(recipe.seed, Purpose.LIGHT, index, detector), light)
    del light
    clean = brighter_fatter(clean, settings.brighter_fatter, full_well)
    targets = choose_targets(recipe, index, detector, catalogue, clean, read_noise) if recipe.stamps else None
    if targets is None or targets.x is None or targets.y is None:
        hits = unit_cosmic_rays(recipe, index, detector, data)
    else:
        hits, electrons = aimed_cosmic_rays(recipe, index, detector, targets.x, targets.y)
        targets = replace(targets, electrons=electrons)
    noise = read_noise_frame(stream(recipe.seed, Purpose.READ_NOISE, index, detector), settings, shape, read_noise)
    known = estimate_calibration(ccd, settings, detector, read_noise, recipe.exptime, epoch)
    usable = ~(ccd.bad & ccd.known)

    def level_1(charge: Frame) -> tuple[Frame, Frame, npt.NDArray[np.bool_]]:
        adu, full = read_out(charge, ccd, recipe, noise, full_well)
        rate, weight = calibrate(adu, known, recipe.exptime, full_well, usable)
        return rate, weight, full

    truth, _, _ = level_1(clean.copy())
    clean += hits
    sci, weight, full = level_1(clean)
    header, primary = unit_headers(recipe, instrument, index, detector)
    return MockUnit(
        sci=sci,
        wht=weight,
        flag=unit_flags(ccd, instrument, full, artefacts),
        truth_sci=truth,
        truth_cr=hits.astype(np.float32),
        catalogue=catalogue,
        targets=targets,
        header=header,
        primary_header=primary,
        time=int(exposure_start(recipe, index).astype(np.int64)),
    )


def read_out(
    charge: Frame, ccd: Ccd, recipe: Recipe, noise: Frame, full_well: float
) -> tuple[Frame, npt.NDArray[np.bool_]]:
    """Move charge to the electronics and read it: raw numbers [adu], and which pixels were full.

    Parameters
    ----------
    charge : float32 array (y, x)
        [e-]; changed.
    ccd : Ccd
    recipe : Recipe
    noise : float32 array (y, x)
        Of the read-out [e-].
    full_well : float
        [e-]
    """
    charge[ccd.bad] = 0
    full = apply_blooming(charge, full_well)
    moved = apply_cti(charge, ccd.cti)
    adu = digitise(moved, ccd, recipe.sensor, noise, full_well)
    return adu, full | (adu >= np.iinfo(np.uint16).max)


def unit_stamps(recipe: Recipe, instrument: Instrument, index: int, detector: int, unit: MockUnit) -> StampSet:
    """Cut a unit's stamps, with the truth of their sources.

    Where the stamps are of isolated stars, their effective PSFs at half-pixel sampling are part of the truth.
    """
    if recipe.stamps is None or unit.targets is None:
        raise ValueError(f"{recipe.name}: a recipe without stamps")
    size, targets = recipe.stamps.size, unit.targets
    chosen = unit.catalogue.select(targets.source)
    frames = {"sci": unit.sci, "wht": unit.wht, "flag": unit.flag, "truth/sci": unit.truth_sci}
    frames["truth/cr"] = unit.truth_cr
    planes = {name: cut_stamps(frame, chosen.x, chosen.y, size) for name, frame in frames.items()}
    columns = {name: getattr(chosen, name).astype(np.float64) for name in TRUTH_COLUMNS}
    columns["snr"] = targets.snr
    window = Window.of(recipe.frame_shape, instrument)
    columns["x_detector"], columns["y_detector"] = chosen.x + window.x, chosen.y + window.y
    if targets.x is not None and targets.y is not None and targets.electrons is not None:
        columns["cr_distance"] = np.hypot(targets.x - chosen.x, targets.y - chosen.y)
        columns["cr_charge"] = targets.electrons.astype(np.float64)
        columns["cr_charge_inside"] = planes["truth/cr"].sum(axis=(1, 2), dtype=np.float64)
    if recipe.stamps.kind == "isolated":
        model = psf_model(exposure_optics(recipe, index), instrument.model_dump_json())
        psf = model.effective(
            detector,
            columns["x_detector"],
            columns["y_detector"],
            temperature=chosen.temperature,
            state=optical_state(recipe, index),
        )
        planes["truth/psf"] = psf.image
        columns["psf_outside"] = psf.outside.astype(np.float64)
    return StampSet(planes, columns)


def unit_headers(recipe: Recipe, instrument: Instrument, index: int, detector: int) -> tuple[Header, Header]:
    """Return the science and the primary header of a unit.

    The header's position is that of the dithered pointing, off by the recipe's error.
    """
    field = recipe.field_of(index)
    header = nominal_header(instrument, detector, field.pointing, recipe.frame_shape)
    dx, dy = exposure_dither(recipe, index)
    scale = instrument.geometry.pixel_scale if instrument.geometry is not None else 1.0
    error = stream(recipe.seed, Purpose.POINTING, index, 1).normal(0, recipe.pointing.wcs_error / scale, 2)
    header["CRPIX1"] += dx + error[0]
    header["CRPIX2"] += dy + error[1]
    values = instrument.values(detector)
    header["EXTNAME"] = "SCI"
    header["BUNIT"] = "e/s"
    header["GAIN1"] = (values.gain, "[e-/adu]")
    header["RDNOISE1"] = (values.read_noise, "[e-]")
    primary = Header()
    primary["TELESCOP"] = "CSST"
    primary["INSTRUME"] = "MSC"
    primary["OBSID"] = recipe.exposure_ids[index]
    primary["DETECTOR"] = f"MSC_{detector:02d}"
    primary["FILTER"] = instrument.detector(detector).band
    primary["EXPTIME"] = (recipe.exptime, "[s]")
    primary["DATE-OBS"] = str(exposure_start(recipe, index))
    primary["RA_OBJ"], primary["DEC_OBJ"] = field.pointing
    primary["OBJECT"] = field.name or f"mock {recipe.name}"
    return header, primary


def file_stem(recipe: Recipe, index: int, detector: int, kind: str) -> str:
    """Return a unit's file name up to its level: ``CSST_MSC_MS_<kind>_<start>_<stop>_<obsid>_<chip>``."""
    start = exposure_start(recipe, index)
    stop = start + np.timedelta64(round(recipe.exptime), "s")
    stamps = "_".join(f"{moment.item():%Y%m%d%H%M%S}" for moment in (start, stop))
    return f"CSST_MSC_MS_{kind}_{stamps}_{recipe.exposure_ids[index]}_{detector:02d}"
