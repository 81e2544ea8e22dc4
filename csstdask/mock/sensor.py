"""A CCD: what it does to light and charge between the telescope and the numbers of a raw frame.

The order of effects is a promise. Photons and dark current are counted; brighter pixels push charge into their
neighbours; cosmic rays add theirs; full pixels bleed along their columns; charge is trapped and released while it
is moved to the read-out; then the electronics: gain, non-linearity, read noise, bias, digitisation. Defects belong to
the camera, whatever it looks at, and grow with its age.
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

#: Read-out channels: along y (halves that are read to their own edge) and along x.
CHANNELS = (2, 8)
_ADU_MAX = 65535
#: Trapped charge comes out over so many pixels: fast and slow traps, with their shares.
_TRAPS = ((0.7, 1.6), (0.3, 9.0))
#: Rate of hot pixels over the dark: natural log, mean and sigma. Warm pixels have a tenth of it.
_HOT_LOG = (5.5, 1.0)
_GAIN_SPREAD, _BIAS_SPREAD = 0.015, 12.0
_ROWS_AT_ONCE = 64
_FRINGE_WAVES = 14


@dataclass(frozen=True)
class Ccd:
    """One detector at one time, for one size of frame."""

    dark: Frame
    """[e-/s]"""
    flat: Frame
    """Relative response: vignetting and pixel response non-uniformity."""
    bias: Frame
    """Level with its structure [adu]."""
    gain: Frame
    """Of the channel of each column, in the lower and in the upper half (2, x) [e-/adu]."""
    hot: Mask
    warm: Mask
    bad: Mask
    known: Mask
    """Defects that the flags know of."""
    cti: float
    """Share of 1000 e- that is lost on the way through all rows."""


def _axis(n: int) -> Frame:
    return ((np.arange(n, dtype=np.float32) + 0.5) / n * 2 - 1).astype(np.float32)


def channel_rows(values: npt.NDArray[np.float64], nx: int) -> Frame:
    """Return values of the channels for each column, for the lower and the upper half (2, nx)."""
    owner = np.arange(nx) * CHANNELS[1] // nx
    return np.asarray(values[:, owner], dtype=np.float32)


def halves(ny: int) -> tuple[slice, slice]:
    """Return the rows that are read downwards, and those that are read upwards."""
    return slice(0, ny // 2), slice(ny // 2, ny)


def row_blocks(ny: int) -> Iterator[tuple[int, slice]]:
    """Return blocks of rows, each with the half it is read by: small enough to stay near the processor."""
    for half, rows in enumerate(halves(ny)):
        for first in range(rows.start, rows.stop, _ROWS_AT_ONCE):
            yield half, slice(first, min(first + _ROWS_AT_ONCE, rows.stop))


def build_ccd(
    settings: Sensor, detector: int, shape: tuple[int, int], epoch: float, *, gain: float, bias_level: float
) -> Ccd:
    """Build a detector as it is at a time.

    Parameters
    ----------
    settings : Sensor
    detector : int
        Its id.
    shape : (int, int)
        (y, x) of the frame.
    epoch : float
        Years after launch.
    gain : float
        Nominal [e-/adu].
    bias_level : float
        Nominal [adu].
    """
    ny, nx = shape
    rng = stream(settings.seed, Purpose.SENSOR, detector, ny, nx)
    spread = rng.normal(size=(2, *CHANNELS)) * settings.channels
    gains = channel_rows(gain * (1 + _GAIN_SPREAD * spread[0]), nx)
    levels = channel_rows(bias_level + _BIAS_SPREAD * spread[1], nx)
    tilt_x, tilt_y, bowl = rng.normal(size=3)
    columns = (settings.bias_structure * rng.normal(size=(2, nx))).astype(np.float32)
    bias = np.empty(shape, dtype=np.float32)
    for half, rows in enumerate(halves(ny)):
        bias[rows] = levels[half] + columns[half]
    x, y = _axis(nx)[None, :], _axis(ny)[:, None]
    smooth = 0.3 * tilt_x * x + 0.3 * tilt_y * y - (0.5 + 0.1 * bowl) * (x**2 + y**2) / 2
    flat = 1 + np.float32(settings.vignetting) * smooth.astype(np.float32)
    for _, rows in row_blocks(ny if settings.prnu else 0):
        flat[rows] *= 1 + np.float32(settings.prnu) * rng.standard_normal(flat[rows].shape, dtype=np.float32)
    # A defect is there from the day it appears: years before launch for those that were built in.
    age = np.float32(epoch)
    draw = rng.random(shape, dtype=np.float32)
    hot_now = settings.hot_fraction + settings.hot_growth * age
    scale = (settings.hot_growth / settings.hot_fraction) if settings.hot_fraction else 0.0
    warm_now = settings.warm_fraction * (1 + scale * age)
    hot, warm = draw < hot_now, draw > 1 - warm_now
    level = settings.dark * (1 + settings.dark_growth * epoch)
    dark = np.full(shape, level, dtype=np.float32)
    for mask, factor in ((hot, 1.0), (warm, 0.1)):
        # The rate is a function of the pixel's own draw, so that it stays what it is as others turn hot.
        own = stream(settings.seed, Purpose.SENSOR, detector, int(mask is hot))
        lottery = own.lognormal(*_HOT_LOG, 4096).astype(np.float32)
        ticket = (draw[mask] * np.float32(2**24)).astype(np.int64) % 4096
        dark[mask] += factor * np.float32(settings.dark or 0.02) * lottery[ticket]
    bad = _bad_pixels(rng, settings, shape)
    known = rng.random(shape, dtype=np.float32) < settings.flagged_share
    return Ccd(dark, flat, bias, gains, hot, warm, bad, known, settings.cti * epoch)


def _bad_pixels(rng: np.random.Generator, settings: Sensor, shape: tuple[int, int]) -> Mask:
    ny, nx = shape
    bad = np.zeros(shape, dtype=bool)
    for _ in range(int(rng.poisson(settings.bad_fraction * ny * nx / 3))):
        y, x = int(rng.integers(0, ny)), int(rng.integers(0, nx))
        bad[y : y + int(rng.integers(1, 4)), x : x + int(rng.integers(1, 3))] = True
    for x in rng.integers(0, nx, settings.bad_columns):
        y = int(rng.integers(0, ny))  # from a defect on, away from the read-out: towards the middle of the detector
        bad[slice(y, ny // 2) if y < ny // 2 else slice(ny // 2, y + 1), x] = True
    return bad


def fringes(settings: Sensor, detector: int, shape: tuple[int, int], wavelength: float) -> Frame | float:
    """Return the factor of fringes on the sky: thin-film interference in the red.

    Parameters
    ----------
    settings : Sensor
    detector : int
    shape : (int, int)
    wavelength : float
        Middle of the band [nm].
    """
    strength = settings.fringing * float(np.interp(wavelength, [690, 755, 910, 950, 1000], [0, 0.5, 1, 2, 2]))
    if strength == 0:
        return 1.0
    rng = stream(settings.seed, Purpose.SENSOR, detector, 7)
    x, y = _axis(shape[1])[None, :], _axis(shape[0])[:, None]
    a, b, c, d, e = rng.normal(size=5)
    thickness = a * x + b * y + 0.7 * c * x * y + 0.7 * d * x**2 + 0.7 * e * y**2
    waves = np.cos(np.float32(2 * np.pi * _FRINGE_WAVES) * thickness.astype(np.float32))
    return np.asarray(1 + np.float32(strength) * waves, dtype=np.float32)


def count_photons(rng: np.random.Generator, expected: Frame) -> Frame:
    """Return Poisson counts of an expected image [e-]."""
    counts = np.empty(expected.shape, dtype=np.float32)
    for first in range(0, len(expected), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        counts[rows] = rng.poisson(expected[rows])
    return counts


def brighter_fatter(charge: Frame, strength: float, full_well: float = np.inf) -> Frame:
    """Return charge after the edges of brighter pixels have moved inwards.

    Between two neighbours the edge moves towards the brighter by `strength` times the difference of their charges
    [pixel/e-], and the charge of the strip, the mean of both, changes owner (after Antilogus et al. 2014, JINST 9,
    C03048, with nearest neighbours alone). Nothing is lost.
    """
    if strength == 0:
        return charge
    moved = charge.copy()
    held = np.minimum(charge, np.float32(full_well))  # a full pixel pushes no more than that: the rest bleeds
    for first, second in (
        ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
        ((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
    ):
        a, b = held[first], held[second]
        flow = np.float32(strength / 2) * (a - b) * (a + b)
        moved[first] -= flow
        moved[second] += flow
    return moved


@numba.njit(cache=True)
def _bleed(charge: npt.NDArray[np.float32], full_well: float) -> None:
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
            spare = 0.0
            while half > 0 and up < ny:  # away from the read-out and towards it, half each
                room = max(0.0, full_well - charge[up, x])
                taken = min(room, half)
                charge[up, x] += taken
                half -= taken
                up += 1
            spare = half
            half = excess / 2 + spare
            while half > 0 and down >= 0:
                room = max(0.0, full_well - charge[down, x])
                taken = min(room, half)
                charge[down, x] += taken
                half -= taken
                down -= 1
            y = max(up, last)


def apply_blooming(charge: Frame, full_well: float) -> Mask:
    """Let full pixels spill along their columns, in place; return which pixels are full.

    Charge is conserved until it meets the frame's edge.
    """
    if np.isfinite(full_well):
        _bleed(charge, full_well)
    return np.asarray(charge >= full_well * (1 - 1e-6))


def apply_cti(charge: Frame, cti: float) -> Frame:
    """Return charge after its way to the read-out, with trails behind it.

    Parameters
    ----------
    charge : float32 array (y, x)
        [e-]
    cti : float
        Share of a packet of 1000 e- that is trapped on the way through all rows of its half. Small packets lose a
        larger share, as charge fills a volume that grows more slowly than itself.

    Notes
    -----
    To first order in the loss (Massey et al. 2010, MNRAS 401, 371): what is trapped is released behind the packet,
    as a sum of two exponentials. The charge that a trail takes from the frame's far edge is gone.
    """
    if cti == 0:
        return charge
    out = charge.copy()
    ny = len(charge)
    share, length = (np.array(part, dtype=np.float32)[:, None] for part in zip(*_TRAPS, strict=True))
    leak = 1 - np.exp(-1 / length)
    for half, rows in enumerate(halves(ny)):
        part, target = charge[rows], out[rows]
        if half == 1:
            part, target = part[::-1], target[::-1]
        n = len(part)
        held = np.zeros((len(_TRAPS), charge.shape[1]), dtype=np.float32)
        for y in range(n):
            packet = np.maximum(part[y], 0)
            lost = np.float32(cti * (y + 1) / n) * packet * (1000 / (packet + 100)) ** np.float32(0.4)
            target[y] -= lost
            freed = held * leak
            target[y] += freed.sum(axis=0)
            held += share * lost - freed
    return out


def read_noise_frame(rng: np.random.Generator, settings: Sensor, shape: tuple[int, int], sigma: float) -> Frame:
    """Return the noise of the read-out [e-]: Gaussian, or with rows that jump, slow waves along them, and tails."""
    noise = rng.standard_normal(shape, dtype=np.float32) * np.float32(sigma)
    if settings.noise == "correlated":
        rows = rng.standard_normal((shape[0], 1), dtype=np.float32)
        slow = uniform_filter(rng.standard_normal(shape, dtype=np.float32), (1, 31)) * np.float32(31**0.5)
        popping = (rng.random(shape, dtype=np.float32) < 0.002) * rng.standard_normal(shape, dtype=np.float32)
        noise = np.float32(0.85) * noise + np.float32(sigma) * (0.25 * rows + 0.4 * slow + 4 * popping)
    return noise.astype(np.float32)


def digitise(charge: Frame, ccd: Ccd, settings: Sensor, noise: Frame, full_well: float) -> Frame:
    """Return raw numbers [adu]: gain, non-linearity, read noise, bias, rounding, the converter's limit."""
    reach = full_well if np.isfinite(full_well) else 1e5
    adu = np.empty_like(charge)
    for half, rows in row_blocks(len(charge)):
        packets = charge[rows]
        bent = packets * (1 - np.float32(settings.non_linearity / reach) * packets)
        block = (bent + noise[rows]) / ccd.gain[half] + ccd.bias[rows]
        adu[rows] = np.clip(np.rint(block), 0, _ADU_MAX)
    return adu
