"""Effects of a CCD on light and charge, up to the raw counts.

The effects are applied in this order: Poisson noise of light and dark current, brighter-fatter effect, cosmic rays,
blooming of saturated pixels, charge-transfer inefficiency, and the electronics (gain, non-linearity, read noise, bias,
digitisation). Defects belong to the camera, not to the recipe, and grow with its age.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt
from scipy.ndimage import uniform_filter

from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.recipe_tables import Sensor

Frame = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

CHANNELS = (2, 8)
"""Number of read-out channels along y (halves read towards their own edge) and along x."""
_ADU_MAX = 65535
"""Limit of the converter [adu]."""
_TRAPS = ((0.7, 1.6), (0.3, 9.0))
"""Trap species: fraction of the trapped charge and release length [pixel]."""
_HOT_LOG_RATE = (5.5, 1.0)
"""Mean and sigma of the natural log of the rate of hot pixels relative to the dark current."""
_WARM_RATE = 0.1
"""Rate of warm pixels relative to hot pixels."""
_N_RATES = 4096
"""Length of the table of rates of hot pixels."""
_GAIN_SPREAD = 0.015
"""Relative scatter of the gain between channels."""
_BIAS_SPREAD = 12.0
"""Scatter of the bias level between channels [adu]."""
_ROWS_AT_ONCE = 64
"""Rows processed at a time, so that they stay in the processor's cache."""
_FRINGE_COUNT = 14
"""Typical number of fringes over half a detector."""
_LINEARITY_SCALE = 1e5
"""Charge at which the non-linearity is defined for a detector without full well [e-]."""


@dataclass(frozen=True)
class Ccd:
    """One detector at one epoch, for one frame shape."""

    dark: Frame
    """Dark current (y, x) [e-/s]."""
    flat: Frame
    """Relative response (y, x): vignetting and pixel response non-uniformity."""
    bias: Frame
    """Bias level with structure (y, x) [adu]."""
    gain: Frame
    """Gain of the channel of each column, in the lower and the upper half (2, x) [e-/adu]."""
    hot: Mask
    """Hot pixels (y, x)."""
    warm: Mask
    """Warm pixels (y, x)."""
    bad: Mask
    """Dead pixels (y, x)."""
    known: Mask
    """Pixels whose defects are flagged (y, x)."""
    cti: float
    """Fraction of a packet of 1000 e- lost over all rows."""


def _axis(n: int) -> Frame:
    """Return the pixel centres of an axis, scaled to -1..1 (n,)."""
    return ((np.arange(n, dtype=np.float32) + 0.5) / n * 2 - 1).astype(np.float32)


def channel_rows(values: npt.NDArray[np.float64], nx: int) -> Frame:
    """Return the values of the channels for each column of the lower and the upper half (2, nx)."""
    owner = np.arange(nx) * CHANNELS[1] // nx
    return np.asarray(values[:, owner], dtype=np.float32)


def halves(ny: int) -> tuple[slice, slice]:
    """Return the rows read downwards and those read upwards."""
    return slice(0, ny // 2), slice(ny // 2, ny)


def row_blocks(ny: int) -> Iterator[tuple[int, slice]]:
    """Return small blocks of rows, each with the index of its half."""
    for half, rows in enumerate(halves(ny)):
        for first in range(rows.start, rows.stop, _ROWS_AT_ONCE):
            yield half, slice(first, min(first + _ROWS_AT_ONCE, rows.stop))


def build_ccd(
    settings: Sensor, detector: int, shape: tuple[int, int], epoch: float, *, gain: float, bias_level: float
) -> Ccd:
    """Build a detector at an epoch.

    Parameters
    ----------
    settings : Sensor
        Table of the recipe.
    detector : int
        Detector id.
    shape : (int, int)
        Shape (y, x) of the frame.
    epoch : float
        Time after launch [yr].
    gain : float
        Nominal gain [e-/adu].
    bias_level : float
        Nominal bias level [adu].

    Returns
    -------
    Ccd
    """
    ny, nx = shape
    rng = stream(settings.seed, Purpose.SENSOR, detector, ny, nx)
    spread = rng.normal(size=(2, *CHANNELS)) * settings.channels
    gains = channel_rows(gain * (1 + _GAIN_SPREAD * spread[0]), nx)
    levels = channel_rows(bias_level + _BIAS_SPREAD * spread[1], nx)
    shape_terms = rng.normal(size=3)
    columns = (settings.bias_structure * rng.normal(size=(2, nx))).astype(np.float32)
    bias = np.empty(shape, dtype=np.float32)
    for half, rows in enumerate(halves(ny)):
        bias[rows] = levels[half] + columns[half]
    flat = _flat(rng, settings, shape, shape_terms)
    draw = rng.random(shape, dtype=np.float32)
    dark, hot, warm = _dark(settings, detector, draw, epoch)
    bad = _bad_pixels(rng, settings, shape)
    known = rng.random(shape, dtype=np.float32) < settings.flagged_share
    return Ccd(dark, flat, bias, gains, hot, warm, bad, known, settings.cti * epoch)


def _flat(rng: np.random.Generator, settings: Sensor, shape: tuple[int, int], terms: npt.NDArray[np.float64]) -> Frame:
    """Return the relative response: smooth vignetting with random terms, and pixel response non-uniformity."""
    ny, nx = shape
    tilt_x, tilt_y, bowl = terms
    x, y = _axis(nx)[None, :], _axis(ny)[:, None]
    smooth = 0.3 * tilt_x * x + 0.3 * tilt_y * y - (0.5 + 0.1 * bowl) * (x**2 + y**2) / 2
    flat = 1 + np.float32(settings.vignetting) * smooth.astype(np.float32)
    for _, rows in row_blocks(ny if settings.prnu else 0):
        flat[rows] *= 1 + np.float32(settings.prnu) * rng.standard_normal(flat[rows].shape, dtype=np.float32)
    return np.asarray(flat)


def _dark(settings: Sensor, detector: int, draw: Frame, epoch: float) -> tuple[Frame, Mask, Mask]:
    """Return the dark current [e-/s], the hot and the warm pixels.

    The uniform number `draw` of a pixel decides when it becomes hot or warm, and its rate. A defect therefore persists,
    and its rate does not change when other pixels become hot.
    """
    age = np.float32(epoch)
    hot_now = settings.hot_fraction + settings.hot_growth * age
    scale = (settings.hot_growth / settings.hot_fraction) if settings.hot_fraction else 0.0
    warm_now = settings.warm_fraction * (1 + scale * age)
    hot, warm = draw < hot_now, draw > 1 - warm_now
    level = settings.dark * (1 + settings.dark_growth * epoch)
    dark = np.full(draw.shape, level, dtype=np.float32)
    for mask, factor in ((hot, 1.0), (warm, _WARM_RATE)):
        rates = stream(settings.seed, Purpose.SENSOR, detector, int(mask is hot))
        table = rates.lognormal(*_HOT_LOG_RATE, _N_RATES).astype(np.float32)
        entry = (draw[mask] * np.float32(2**24)).astype(np.int64) % _N_RATES
        dark[mask] += factor * np.float32(settings.dark or 0.02) * table[entry]
    return dark, hot, warm


def _bad_pixels(rng: np.random.Generator, settings: Sensor, shape: tuple[int, int]) -> Mask:
    """Draw dead pixels in small clusters, and bad columns."""
    ny, nx = shape
    bad = np.zeros(shape, dtype=bool)
    for _ in range(int(rng.poisson(settings.bad_fraction * ny * nx / 3))):
        y, x = int(rng.integers(0, ny)), int(rng.integers(0, nx))
        bad[y : y + int(rng.integers(1, 4)), x : x + int(rng.integers(1, 3))] = True
    for x in rng.integers(0, nx, settings.bad_columns):
        y = int(rng.integers(0, ny))  # blocked from a defect to the centre of the detector, away from the read-out
        bad[slice(y, ny // 2) if y < ny // 2 else slice(ny // 2, y + 1), x] = True
    return bad


def fringes(settings: Sensor, detector: int, shape: tuple[int, int], wavelength: float) -> Frame | float:
    """Return the fringe pattern of the sky, caused by thin-film interference in the red.

    Parameters
    ----------
    settings : Sensor
        Table of the recipe.
    detector : int
        Detector id.
    shape : (int, int)
        Shape (y, x) of the frame.
    wavelength : float
        Centre of the band [nm].

    Returns
    -------
    float32 array (y, x), or 1
        Factor on the sky.
    """
    strength = settings.fringing * float(np.interp(wavelength, [690, 755, 910, 950, 1000], [0, 0.5, 1, 2, 2]))
    if strength == 0:
        return 1.0
    rng = stream(settings.seed, Purpose.SENSOR, detector, 7)
    x, y = _axis(shape[1])[None, :], _axis(shape[0])[:, None]
    a, b, c, d, e = rng.normal(size=5)
    thickness = a * x + b * y + 0.7 * c * x * y + 0.7 * d * x**2 + 0.7 * e * y**2
    waves = np.cos(np.float32(2 * np.pi * _FRINGE_COUNT) * thickness.astype(np.float32))
    return np.asarray(1 + np.float32(strength) * waves, dtype=np.float32)


def count_photons(rng: np.random.Generator, expected: Frame) -> Frame:
    """Draw Poisson counts of an expected image (y, x) [e-]."""
    counts = np.empty(expected.shape, dtype=np.float32)
    for first in range(0, len(expected), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        counts[rows] = rng.poisson(expected[rows])
    return counts


def brighter_fatter(charge: Frame, strength: float, full_well: float = np.inf) -> Frame:
    """Return charge after the brighter-fatter effect; the total charge is conserved.

    The edge between two neighbours moves towards the brighter one by `strength` times the difference of their charges,
    and the charge of the strip, at the mean of both, changes pixel (after Antilogus et al. 2014, JINST 9, C03048, for
    nearest neighbours only).

    Parameters
    ----------
    charge : float32 array (y, x)
        Charge of the pixels [e-].
    strength : float
        Shift of an edge per charge difference [pixel/e-].
    full_well : float
        Full-well capacity, above which the effect does not grow [e-].

    Examples
    --------
    >>> charge = np.zeros((5, 5), dtype=np.float32)
    >>> charge[2, 2] = 50_000
    >>> brighter_fatter(charge, 1.5e-7)[2, 1:4].round()
    array([  188., 49250.,   188.], dtype=float32)
    """
    if strength == 0:
        return charge
    moved = charge.copy()
    limited = np.minimum(charge, np.float32(full_well))  # the excess of a full pixel blooms instead
    for first, second in (
        ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
        ((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
    ):
        a, b = limited[first], limited[second]
        flow = np.float32(strength / 2) * (a - b) * (a + b)
        moved[first] -= flow
        moved[second] += flow
    return moved


@numba.njit(cache=True)
def _bleed(charge: npt.NDArray[np.float32], full_well: float) -> None:
    """Move charge above full well along the columns, half of it in each direction."""
    ny, nx = charge.shape
    for x in range(nx):
        y = 0
        while y < ny:
            if charge[y, x] <= full_well:
                y += 1
                continue
            last = y
            excess = 0.0
            while last < ny and charge[last, x] > full_well:
                excess += charge[last, x] - full_well
                charge[last, x] = full_well
                last += 1
            up, down = last, y - 1
            half = excess / 2
            while half > 0 and up < ny:
                room = max(0.0, full_well - charge[up, x])
                taken = min(room, half)
                charge[up, x] += taken
                half -= taken
                up += 1
            half = excess / 2 + half
            while half > 0 and down >= 0:
                room = max(0.0, full_well - charge[down, x])
                taken = min(room, half)
                charge[down, x] += taken
                half -= taken
                down -= 1
            y = max(up, last)


def apply_blooming(charge: Frame, full_well: float) -> Mask:
    """Move charge above full well along the columns, in place.

    Charge is conserved until it reaches the edge of the frame.

    Parameters
    ----------
    charge : float32 array (y, x)
        Charge of the pixels, modified in place [e-].
    full_well : float
        Full-well capacity [e-].

    Returns
    -------
    bool array (y, x)
        Pixels at full well.
    """
    if np.isfinite(full_well):
        _bleed(charge, full_well)
    return np.asarray(charge >= full_well * (1 - 1e-6))


def apply_cti(charge: Frame, cti: float) -> Frame:
    """Return charge after transfer to the read-out with charge-transfer inefficiency.

    Parameters
    ----------
    charge : float32 array (y, x)
        Charge of the pixels [e-].
    cti : float
        Fraction of a packet of 1000 e- trapped over all rows of its half. Smaller packets lose a larger fraction,
        because the volume of a packet grows more slowly than its charge.

    Returns
    -------
    float32 array (y, x)

    Notes
    -----
    The model is of first order in the loss (Massey et al. 2010, MNRAS 401, 371): trapped charge is released behind the
    packet as a sum of two exponentials. Charge released beyond the edge of the frame is lost.
    """
    if cti == 0:
        return charge
    out = charge.copy()
    ny = len(charge)
    fraction, length = (np.array(part, dtype=np.float32)[:, None] for part in zip(*_TRAPS, strict=True))
    release = 1 - np.exp(-1 / length)
    for half, rows in enumerate(halves(ny)):
        part, target = charge[rows], out[rows]
        if half == 1:
            part, target = part[::-1], target[::-1]
        n = len(part)
        trapped = np.zeros((len(_TRAPS), charge.shape[1]), dtype=np.float32)
        for y in range(n):
            packet = np.maximum(part[y], 0)
            lost = np.float32(cti * (y + 1) / n) * packet * (1000 / (packet + 100)) ** np.float32(0.4)
            target[y] -= lost
            released = trapped * release
            target[y] += released.sum(axis=0)
            trapped += fraction * lost - released
    return out


def read_noise_frame(rng: np.random.Generator, settings: Sensor, shape: tuple[int, int], sigma: float) -> Frame:
    """Draw read noise (y, x) [e-]: Gaussian, or with row offsets, slow waves along rows, and outliers."""
    noise = rng.standard_normal(shape, dtype=np.float32) * np.float32(sigma)
    if settings.noise == "correlated":
        rows = rng.standard_normal((shape[0], 1), dtype=np.float32)
        slow = uniform_filter(rng.standard_normal(shape, dtype=np.float32), (1, 31)) * np.float32(31**0.5)
        outliers = (rng.random(shape, dtype=np.float32) < 0.002) * rng.standard_normal(shape, dtype=np.float32)
        noise = np.float32(0.85) * noise + np.float32(sigma) * (0.25 * rows + 0.4 * slow + 4 * outliers)
    return noise.astype(np.float32)


def digitise(charge: Frame, ccd: Ccd, settings: Sensor, noise: Frame, full_well: float) -> Frame:
    """Return raw counts (y, x) [adu]: non-linearity, read noise, gain, bias, rounding and converter limit.

    Parameters
    ----------
    charge : float32 array (y, x)
        Charge of the pixels [e-].
    ccd : Ccd
        The detector.
    settings : Sensor
        Table of the recipe.
    noise : float32 array (y, x)
        Read noise [e-].
    full_well : float
        Full-well capacity [e-].
    """
    scale_charge = full_well if np.isfinite(full_well) else _LINEARITY_SCALE
    adu = np.empty_like(charge)
    for half, rows in row_blocks(len(charge)):
        packets = charge[rows]
        measured = packets * (1 - np.float32(settings.non_linearity / scale_charge) * packets)
        block = (measured + noise[rows]) / ccd.gain[half] + ccd.bias[rows]
        adu[rows] = np.clip(np.rint(block), 0, _ADU_MAX)
    return adu
