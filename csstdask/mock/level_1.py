"""Calibrate raw frames to Level 1, as a pipeline does, with estimated calibrations.

Bias, dark and flat are noisy estimates from a few calibration frames. Gains have an error of 0.1 per cent, the
coefficient of the non-linearity one of a few per cent. Weights follow from the counts including cosmic rays. Some
defects are not flagged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.instrument import Instrument
from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.recipe_tables import Sensor
from csstdask.mock.sensor import CHANNELS, Ccd, Frame, Mask, channel_rows, row_blocks

_FLAT_LEVEL = 30_000.0
"""Counts of a flat-field frame [e-]."""
_LINEARITY_ERROR = 0.05
"""Relative error of the non-linearity coefficient, 1 sigma."""
_LINEARITY_SCALE = 1e5
"""Charge at which the non-linearity is defined for a detector without full well [e-]."""


@dataclass(frozen=True)
class Calibration:
    """Estimated calibration of a detector."""

    bias: Frame
    """Bias (y, x) [adu]."""
    dark: Frame
    """Dark current (y, x) [e-/s]."""
    flat: Frame
    """Relative response (y, x)."""
    gain: Frame
    """Gain of the lower and upper half (2, x) [e-/adu]."""
    non_linearity: float
    """Relative non-linearity at full well."""
    read_noise: float
    """Read noise [e-]."""


def estimate_calibration(
    ccd: Ccd, settings: Sensor, detector: int, read_noise: float, exptime: float, epoch: float
) -> Calibration:
    """Estimate the calibration of a detector, equal for all exposures of an epoch.

    Parameters
    ----------
    ccd : Ccd
        The true detector.
    settings : Sensor
        Table of the recipe.
    detector : int
        Detector id.
    read_noise : float
        Read noise [e-].
    exptime : float
        Exposure time of the dark frames [s].
    epoch : float
        Time after launch; calibrations are repeated a hundred times per year [yr].

    Returns
    -------
    Calibration
    """
    ny, nx = ccd.dark.shape
    rng = stream(settings.seed, Purpose.CALIBRATION, detector, ny, nx, int(epoch * 100))
    noise_factor = np.float32(1 / settings.calibration_frames**0.5)

    bias, dark, flat = (np.empty_like(ccd.dark) for _ in range(3))
    bias_sigma = noise_factor * np.float32(read_noise / float(ccd.gain.mean()))
    flat_sigma = noise_factor * np.float32(_FLAT_LEVEL**-0.5)
    for _, rows in row_blocks(ny):
        drawn = rng.standard_normal((3, *ccd.dark[rows].shape), dtype=np.float32)
        dark_sigma = np.sqrt(ccd.dark[rows] * np.float32(exptime) + np.float32(read_noise**2)) * (
            noise_factor / np.float32(exptime)
        )
        bias[rows] = ccd.bias[rows] + bias_sigma * drawn[0]
        dark[rows] = ccd.dark[rows] + dark_sigma * drawn[1]
        flat[rows] = ccd.flat[rows] * (1 + flat_sigma * drawn[2])
    gain = ccd.gain * channel_rows(1 + settings.gain_error * rng.normal(size=CHANNELS), nx)
    non_linearity = settings.non_linearity * (1 + _LINEARITY_ERROR * float(rng.normal()))
    return Calibration(bias, dark, flat, gain, non_linearity, read_noise)


def calibrate(
    adu: Frame, calibration: Calibration, exptime: float, full_well: float, usable: Mask
) -> tuple[Frame, Frame]:
    """Calibrate a raw frame.

    Parameters
    ----------
    adu : float32 array (y, x)
        Raw counts [adu].
    calibration : Calibration
        Estimated calibration.
    exptime : float
        Exposure time [s].
    full_well : float
        Full-well capacity [e-].
    usable : bool array (y, x)
        Pixels with a weight above 0.

    Returns
    -------
    rate : float32 array (y, x)
        Count rate [e-/s].
    weight : float32 array (y, x)
        Inverse variance [(e-/s)^-2].
    """
    scale_charge = full_well if np.isfinite(full_well) else _LINEARITY_SCALE
    rate, weight = np.empty_like(adu), np.empty_like(adu)
    for half, rows in row_blocks(len(adu)):
        counts = (adu[rows] - calibration.bias[rows]) * calibration.gain[half]
        counts *= 1 + np.float32(calibration.non_linearity / scale_charge) * counts  # first-order correction
        # Variance of the counts (light, dark current, cosmic rays), of the read noise and of rounding.
        variance = np.maximum(counts, 0) + np.float32(calibration.read_noise**2) + calibration.gain[half] ** 2 / 12
        scale = calibration.flat[rows] * np.float32(exptime)
        rate[rows] = (counts - calibration.dark[rows] * np.float32(exptime)) / scale
        weight[rows] = np.where(usable[rows], scale**2 / variance, np.float32(0))
    return rate, weight


def unit_flags(
    ccd: Ccd, instrument: Instrument, saturated: Mask, artefacts: dict[str, npt.NDArray[np.bool_]]
) -> npt.NDArray[np.int32]:
    """Return the flags of a frame (y, x): known defects, saturated pixels and artefacts."""
    flags = instrument.flags
    flag = np.zeros(ccd.dark.shape, dtype=np.int32)
    named = {"bad": ccd.bad & ccd.known, "hot": ccd.hot & ccd.known, "warm": ccd.warm & ccd.known}
    for name, mask in (named | {"saturated": saturated} | artefacts).items():
        if name in flags.bits:
            flag[mask] |= flags.mask(name)
    return flag
