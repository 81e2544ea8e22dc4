"""Render one unit of a mock survey: Level 1 planes and their truth.

Sources, telescope, sky and artefacts give an expected image; photons are counted; cosmic rays add charge; the detector
moves and reads the charge; Level 1 is made with estimated calibrations. The truth has the same photons and the same
read noise, without cosmic rays. Each unit has random streams derived from the seed and its indices: pixels do not
depend on order or workers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from astropy.io.fits import Header

from csstdask.instrument import Instrument
from csstdask.mock.catalogue import Catalogue, empty_catalogue
from csstdask.mock.cosmic_rays import aimed_cosmic_rays, unit_cosmic_rays
from csstdask.mock.expected_image import expected_light
from csstdask.mock.level_1 import calibrate, estimate_calibration, unit_flags
from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.recipe import Recipe
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
    read_noise_frame,
)
from csstdask.mock.slitless import expected_spectra
from csstdask.mock.stamps import Targets, choose_targets
from csstdask.mock.unit_catalogue import unit_catalogue
from csstdask.mock.unit_headers import unit_headers


@dataclass(frozen=True)
class MockUnit:
    """A rendered unit: Level 1 planes, truth and headers. Planes are arrays (y, x)."""

    sci: npt.NDArray[np.float32]
    """Count rate [e-/s]."""
    wht: npt.NDArray[np.float32]
    """Inverse variance [(e-/s)^-2]."""
    flag: npt.NDArray[np.int32]
    """Flags as bits of the camera."""
    truth_sci: npt.NDArray[np.float32]
    """Count rate with the same photons and noise, without cosmic rays [e-/s]."""
    truth_cr: npt.NDArray[np.float32]
    """Charge of cosmic rays before it is moved by the detector [e-]."""
    catalogue: Catalogue
    """True sources; empty for slitless frames (see `csstdask.mock.slitless.unit_stars`)."""
    targets: Targets | None
    """Sources of the stamps; None for recipes without stamps."""
    header: Header
    """Header of the science plane."""
    primary_header: Header
    """Primary header."""
    time: int
    """Start of the exposure in microseconds since 1970, UTC."""


def render_unit(
    recipe: Recipe, instrument: Instrument, index: int, detector: int, data: Path | None = None
) -> MockUnit:
    """Render one unit.

    Parameters
    ----------
    recipe : Recipe
        The mock survey.
    instrument : Instrument
        Camera of the recipe.
    index : int
        Index of the exposure.
    detector : int
        Detector id.
    data : Path, optional
        Folder of real cosmic-ray events and SED libraries, for recipes that use them.

    Returns
    -------
    MockUnit

    Examples
    --------
    >>> from csstdask.instrument import load_instrument
    >>> from csstdask.mock import load_recipe
    >>> unit = render_unit(load_recipe("demo", scale=0.05), load_instrument("csst"), index=0, detector=8)
    >>> unit.sci.shape
    (51, 51)
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
    clean = count_photons(stream(recipe.seed, Purpose.PHOTONS, index, detector), light)
    del light
    clean = brighter_fatter(clean, settings.brighter_fatter, full_well)
    targets = choose_targets(recipe, index, detector, catalogue, clean, read_noise) if recipe.stamps else None
    if targets is None or targets.x is None or targets.y is None:
        hits = unit_cosmic_rays(recipe, index, detector, data)
    else:
        hits, electrons = aimed_cosmic_rays(recipe, index, detector, targets.x, targets.y)
        targets = replace(targets, electrons=electrons)
    noise = read_noise_frame(stream(recipe.seed, Purpose.READ_NOISE, index, detector), settings, shape, read_noise)
    calibration = estimate_calibration(ccd, settings, detector, read_noise, recipe.exptime, epoch)
    usable = ~(ccd.bad & ccd.known)

    def level_1(charge: Frame) -> tuple[Frame, Frame, npt.NDArray[np.bool_]]:
        adu, full = read_out(charge, ccd, recipe, noise, full_well)
        rate, weight = calibrate(adu, calibration, recipe.exptime, full_well, usable)
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
    """Transfer charge to the read-out and digitise it.

    Parameters
    ----------
    charge : float32 array (y, x)
        Charge of the pixels, modified in place [e-].
    ccd : Ccd
        The detector.
    recipe : Recipe
        The mock survey.
    noise : float32 array (y, x)
        Read noise [e-].
    full_well : float
        Full-well capacity [e-].

    Returns
    -------
    adu : float32 array (y, x)
        Raw counts [adu].
    saturated : bool array (y, x)
        Pixels at full well or at the limit of the converter.
    """
    charge[ccd.bad] = 0
    full = apply_blooming(charge, full_well)
    moved = apply_cti(charge, ccd.cti)
    adu = digitise(moved, ccd, recipe.sensor, noise, full_well)
    return adu, full | (adu >= np.iinfo(np.uint16).max)
