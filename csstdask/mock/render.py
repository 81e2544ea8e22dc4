"""One unit of a mock survey, as Level 1 has it, with its truth.

The order of effects is that of a camera: light and dark current, cosmic rays, full well, read noise,
digitisation; then Level 1 from the known bias and gain. The weight comes from the contaminated counts, as a
pipeline would have it, and some hot pixels stay unflagged. Every unit has random streams of its own,
derived from the recipe's seed and the unit's indices: results do not depend on order or workers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from astropy.io.fits import Header
from astropy.time import Time, TimeDelta

from csstdask.errors import InputError
from csstdask.instrument import Instrument, nominal_header
from csstdask.mock.cosmic_rays import draw_cosmic_rays
from csstdask.mock.recipe import Recipe
from csstdask.mock.scene import SKY_RATES, ZERO_POINTS, Catalogue, draw_catalogue, draw_scene

#: Raised whenever the same recipe would give other pixels.
NUMERICS_VERSION = 1
_FIRST_EXPOSURE = "2028-03-01T00:00:00"
_CADENCE = 210.0
_ADU_MAX = 65535


@dataclass(frozen=True)
class MockUnit:
    """A rendered unit: Level 1 planes [electron s-1], truth and headers."""

    sci: npt.NDArray[np.float32]
    wht: npt.NDArray[np.float32]
    flag: npt.NDArray[np.int32]
    truth_sci: npt.NDArray[np.float32]
    """The same noise, without cosmic rays."""
    truth_cr: npt.NDArray[np.float32]
    """Charge of cosmic rays [e-]."""
    header: Header
    primary_header: Header
    time: int
    """Microseconds since 1970."""
    digest: str


def check_recipe(recipe: Recipe, instrument: Instrument) -> None:
    """Raise InputError for detectors that this simulator cannot draw."""
    for detector in recipe.detectors:
        if detector not in instrument.detector_ids:
            raise InputError(f"{recipe.name}: detectors", f"{detector}", f"detectors of {instrument.name}")
        if instrument.detector(detector).band not in ZERO_POINTS:
            band = instrument.detector(detector).band
            raise InputError(
                f"{recipe.name}: detectors",
                f"{detector} (band {band})",
                f"imaging bands {', '.join(ZERO_POINTS)}",
            )
    if instrument.geometry is None:
        raise InputError(f"{recipe.name}: instrument", f"{instrument.name} without geometry", "an instrument with one")


def unit_digest(recipe: Recipe, instrument: Instrument, exposure: str, detector: int) -> str:
    """Return the identity of a unit: all that decides its pixels."""
    decisive = recipe.model_dump_json(exclude={"name", "exposures", "detectors"})
    return hashlib.sha256(
        f"{NUMERICS_VERSION} {decisive} {instrument.model_dump_json()} {exposure} {detector}".encode()
    ).hexdigest()


def _stream(recipe: Recipe, index: int, detector: int, what: int) -> np.random.Generator:
    return np.random.default_rng([recipe.seed, index, detector, what])


def unit_catalogue(recipe: Recipe, instrument: Instrument, index: int, detector: int) -> Catalogue:
    """Return the true sources of a unit; cheap, so that nobody has to send it about."""
    band = instrument.detector(detector).band or ""
    return draw_catalogue(_stream(recipe, index, detector, 0), recipe.sky, recipe.frame_shape, band)


def render_unit(recipe: Recipe, instrument: Instrument, index: int, detector: int) -> MockUnit:
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
    """
    shape, band = recipe.frame_shape, instrument.detector(detector).band or ""
    values = instrument.values(detector)
    gain, read_noise = values.gain or 1.0, values.read_noise or 0.0
    full_well, bias = values.saturation or np.inf, values.bias_level or 0.0
    scene = draw_scene(unit_catalogue(recipe, instrument, index, detector), shape, SKY_RATES[band])
    # Defects belong to the detector: the same in every exposure.
    fixed = _stream(recipe, 0, detector, 1)
    hot = fixed.random(shape) < recipe.ccd.hot_fraction
    known_hot = hot & (fixed.random(shape) < recipe.ccd.flagged_share)
    dark = recipe.ccd.dark * np.where(hot, fixed.lognormal(5.5, 1.0, shape), 1.0)
    bad = np.zeros(shape, dtype=bool)
    bad[:, fixed.integers(0, shape[1], recipe.ccd.bad_columns)] = True
    noise = _stream(recipe, index, detector, 2)
    clean = noise.poisson((scene + dark) * recipe.exptime)
    hits = draw_cosmic_rays(_stream(recipe, index, detector, 3), recipe.cosmic_rays, shape)
    reading = noise.normal(0, read_noise, shape)

    def level_1(electrons: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        collected = np.where(bad, 0, np.minimum(electrons, full_well))
        adu = np.clip(np.rint((collected + reading) / gain + bias), 0, _ADU_MAX)
        return (adu - bias) * gain, (electrons >= full_well) | (adu >= _ADU_MAX)

    counts, saturated = level_1(clean + hits)
    without, _ = level_1(clean)
    flags = instrument.flags
    flag = np.zeros(shape, dtype=np.int32)
    flag[bad] |= flags.mask("bad")
    flag[known_hot] |= flags.mask("hot")
    flag[saturated] |= flags.mask("saturated")
    weight = recipe.exptime**2 / (np.maximum(counts, 0) + read_noise**2 + gain**2 / 12)
    weight[bad] = 0
    start = Time(_FIRST_EXPOSURE, scale="utc") + TimeDelta(index * _CADENCE, format="sec")
    header, primary = _headers(recipe, instrument, index, detector, start)
    return MockUnit(
        sci=(counts / recipe.exptime).astype(np.float32),
        wht=weight.astype(np.float32),
        flag=flag,
        truth_sci=(without / recipe.exptime).astype(np.float32),
        truth_cr=hits.astype(np.float32),
        header=header,
        primary_header=primary,
        time=int(start.datetime64.astype("datetime64[us]").astype(np.int64)),
        digest=unit_digest(recipe, instrument, recipe.exposure_ids[index], detector),
    )


def _headers(recipe: Recipe, instrument: Instrument, index: int, detector: int, start: Time) -> tuple[Header, Header]:
    pointing = (recipe.pointing[0] + 1.2 * index, recipe.pointing[1])
    header = nominal_header(instrument, detector, pointing, recipe.frame_shape)
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
    primary["DATE-OBS"] = start.isot
    primary["RA_OBJ"], primary["DEC_OBJ"] = pointing
    primary["OBJECT"] = f"mock {recipe.name}"
    return header, primary


def file_stem(recipe: Recipe, index: int, detector: int, kind: str) -> str:
    """Return a unit's file name up to its level: ``CSST_MSC_MS_<kind>_<start>_<stop>_<obsid>_<chip>``."""
    start = Time(_FIRST_EXPOSURE, scale="utc") + TimeDelta(index * _CADENCE, format="sec")
    stop = start + TimeDelta(recipe.exptime, format="sec")
    stamps = "_".join(moment.strftime("%Y%m%d%H%M%S") for moment in (start, stop))
    return f"CSST_MSC_MS_{kind}_{stamps}_{recipe.exposure_ids[index]}_{detector:02d}"
