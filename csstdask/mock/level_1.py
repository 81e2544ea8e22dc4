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
from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.recipe_tables import Sensor
from csstdask.mock.sensor import CHANNELS, Ccd, Frame, Mask, channel_rows, row_blocks

#: Light in a flat-field frame [e-], and how well non-linearity is known.
_FLAT_LEVEL = 30_000.0
_LINEARITY_ERROR = 0.05


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


def estimate_calibration(
    ccd: Ccd, settings: Sensor, detector: int, read_noise: float, exptime: float, epoch: float
) -> Calibration:
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

    bias, dark, flat = (np.empty_like(ccd.dark) for _ in range(3))
    of_bias = share * np.float32(read_noise / float(ccd.gain.mean()))
    of_flat = share * np.float32(_FLAT_LEVEL**-0.5)
    for _, rows in row_blocks(ny):
        drawn = rng.standard_normal((3, *ccd.dark[rows].shape), dtype=np.float32)
        of_dark = np.sqrt(ccd.dark[rows] * np.float32(exptime) + np.float32(read_noise**2)) * (
            share / np.float32(exptime)
        )
        bias[rows] = ccd.bias[rows] + of_bias * drawn[0]
        dark[rows] = ccd.dark[rows] + of_dark * drawn[1]
        flat[rows] = ccd.flat[rows] * (1 + of_flat * drawn[2])
    gain = ccd.gain * channel_rows(1 + settings.gain_error * rng.normal(size=CHANNELS), nx)
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
    reach = full_well if np.isfinite(full_well) else 1e5
    rate, weight = np.empty_like(adu), np.empty_like(adu)
    for half, rows in row_blocks(len(adu)):
        counts = (adu[rows] - known.bias[rows]) * known.gain[half]
        counts *= 1 + np.float32(known.non_linearity / reach) * counts  # first order, which is what is known
        # Of the counts as they are: light, dark current and cosmic rays; of read noise; of rounding.
        variance = np.maximum(counts, 0) + np.float32(known.read_noise**2) + known.gain[half] ** 2 / 12
        scale = known.flat[rows] * np.float32(exptime)
        rate[rows] = (counts - known.dark[rows] * np.float32(exptime)) / scale
        weight[rows] = np.where(usable[rows], scale**2 / variance, np.float32(0))
    return rate, weight


def unit_flags(
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
