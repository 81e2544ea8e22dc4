"""Level 1 from raw numbers, as a pipeline makes it: from what is known of the camera, not from what is true.

Bias, dark and flat are estimates from a few calibration frames, with their noise; gains are measured to a part in a
thousand; non-linearity is undone with a coefficient that is a few per cent off. Weight and error come from the counts
as they are, cosmic rays and all. Some defects are not known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.instrument import Instrument
from csstdask.mock.recipe import Sensor
from csstdask.mock.sensor import Ccd, Frame, Mask, halves
from csstdask.mock.streams import Purpose, stream

#: Light in a flat-field frame [e-], and how well gains and non-linearity are known.
_FLAT_LEVEL = 30_000.0
_GAIN_ERROR, _LINEARITY_ERROR = 1e-3, 0.05


@dataclass(frozen=True)
class Calibration:
    """What a pipeline believes of a detector."""

    bias: Frame
    """[adu]"""
    dark: Frame
    """[e-/s]"""
    flat: Frame
    gain: Frame
    """[e-/adu]"""
    non_linearity: float
    read_noise: float
    """[e-]"""


def estimate(ccd: Ccd, settings: Sensor, detector: int, read_noise: float, exptime: float, epoch: float) -> Calibration:
    """Return estimates of a detector's calibration, the same for all its exposures of an epoch.

    Parameters
    ----------
    ccd : Ccd
        As it is.
    settings : Sensor
    detector : int
        Its id.
    read_noise : float
        [e-]
    exptime : float
        Of the dark frames [s].
    epoch : float
        Years after launch; calibrations are made anew a hundred times a year.
    """
    ny, nx = ccd.dark.shape
    rng = stream(settings.seed, Purpose.CALIBRATION, detector, ny, nx, int(epoch * 100))
    share = np.float32(1 / settings.calibration_frames**0.5)

    def noise() -> Frame:
        return rng.standard_normal(ccd.dark.shape, dtype=np.float32)

    bias = ccd.bias + noise() * share * np.float32(read_noise / float(ccd.gain.mean()))
    dark_sigma = np.sqrt(ccd.dark * np.float32(exptime) + np.float32(read_noise**2)) * share / np.float32(exptime)
    dark = ccd.dark + noise() * dark_sigma
    flat = ccd.flat * (1 + noise() * share * np.float32(_FLAT_LEVEL**-0.5))
    gain = ccd.gain * (1 + _GAIN_ERROR * rng.normal(size=ccd.gain.shape)).astype(np.float32)
    bend = settings.non_linearity * (1 + _LINEARITY_ERROR * float(rng.normal()))
    return Calibration(bias, dark, flat, gain, bend, read_noise)


def calibrate(adu: Frame, known: Calibration, exptime: float, full_well: float, usable: Mask) -> tuple[Frame, Frame]:
    """Return rate and inverse variance of a raw frame [e-/s, (e-/s)^-2].

    Parameters
    ----------
    adu : float32 array (y, x)
    known : Calibration
    exptime : float
        [s]
    full_well : float
        [e-]
    usable : bool array (y, x)
        The weight is 0 elsewhere.
    """
    counts = adu - known.bias
    gain_step = np.empty((2, 1, counts.shape[1]), dtype=np.float32)
    for half, rows in enumerate(halves(len(counts))):
        counts[rows] *= known.gain[half]
        gain_step[half] = known.gain[half] ** 2 / 12
    reach = full_well if np.isfinite(full_well) else 1e5
    counts *= 1 + np.float32(known.non_linearity / reach) * counts  # first order, which is what is known
    variance = np.maximum(counts, 0) + np.float32(known.read_noise**2)
    for half, rows in enumerate(halves(len(counts))):
        variance[rows] += gain_step[half]
    scale = known.flat * np.float32(exptime)
    rate = (counts - known.dark * np.float32(exptime)) / scale
    return rate, np.where(usable, scale**2 / variance, np.float32(0))


def flags_of(
    ccd: Ccd, instrument: Instrument, saturated: Mask, artefacts: dict[str, npt.NDArray[np.bool_]]
) -> npt.NDArray[np.int32]:
    """Return the flags of a frame: the defects that are known, full pixels, artefacts that were noticed."""
    flags = instrument.flags
    flag = np.zeros(ccd.dark.shape, dtype=np.int32)
    named = {"bad": ccd.bad & ccd.known, "hot": ccd.hot & ccd.known, "warm": ccd.warm & ccd.known}
    for name, mask in (named | {"saturated": saturated} | artefacts).items():
        if name in flags.bits:
            flag[mask] |= flags.mask(name)
    return flag
