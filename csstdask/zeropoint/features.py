"""Inputs of zero-point networks: telemetry, memory, star lists and image statistics as padded arrays.

No image or star list reaches our network directly. Of an image it gets the statistics that the AZP-RC article lists; of
stars, properties without the level ``ref_mag - inst_mag``, which only the solve may use: prior and solve are joined by
precision, and their errors must be independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import fft

from csstdask.numerics.robust import mad_scale
from csstdask.zeropoint.photometry import mask_bad_errors, mask_bad_magnitudes

if TYPE_CHECKING:
    from csstdask.zeropoint.state import Memory

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

TELEMETRY_NAMES = (
    "detector_temperature", "focus", "jitter", "earth_limb_angle", "sun_angle", "background", "days_since_launch",
    "contamination",
)  # fmt: skip
"""Telemetry of an exposure: [K, um, arcsec, deg, deg, electron s-1 pixel-1, d, nm]."""
N_RINGS = 8
"""Rings of spatial frequency in which the amplitude is averaged."""
N_BINS = 8
"""Bins of the histogram of pixels around bright stars."""
N_PEAKS = 8
"""Bright stars of an image whose 3 x 3 pixels enter the histogram."""
IMAGE_STATISTICS = (
    "mean", "std", "median", "noise", "sharpness", *(f"amplitude_{k}" for k in range(N_RINGS)),
    *(f"peaks_{k}" for k in range(N_BINS)),
)  # fmt: skip
"""Logarithms of mean, standard deviation, median, noise (by the MAD) and amplitudes; shares of the histogram."""
STAR_COLUMNS = ("inst_mag", "inst_mag_err", "ref_mag", "ref_mag_err", "color", "x", "y")
"""Columns of padded star lists; x and y run from -1 to 1 over the frame."""
MAX_STARS = 64
"""Stars of an exposure that the encoder reads: those with the smallest errors."""
_UNKNOWN = 1e300
"""Stands for NaN where rows are compared."""
_TINY = 1e-6
"""Least value before a logarithm [electron s-1]."""


@dataclass(frozen=True)
class StarLists:
    """Stars of n exposures, at most m each, in an order that does not depend on that of the tables.

    Attributes
    ----------
    values : float32 array (n, m, 7)
        `STAR_COLUMNS`; NaN where unknown or padded.
    count : int64 array (n,)
        Usable stars of each exposure, including those beyond the m that are kept.
    """

    values: Float32
    count: npt.NDArray[np.int64]

    def take(self, index: Any) -> StarLists:
        """Return some of the exposures."""
        return StarLists(self.values[index], self.count[index])


@dataclass(frozen=True)
class PriorInputs:
    """Everything known of n exposures before their own stars are solved; all of it is causal.

    Attributes
    ----------
    nominal : float64 array (n,)
        Zero point in the description of the camera [AB mag of 1 e-/s]; NaN where unknown.
    days : float64 array (n,)
        Time since J2000 [d].
    telemetry : mapping of str to array (n,)
        Values as reported, NaN in gaps. A name that is absent is a gap everywhere.
    memory : Memory, optional
        The last solved zero points, most recent first.
    memory_telemetry : mapping of str to array (n, K), optional
        Telemetry of the exposures in the memory.
    stars : StarLists, optional
    image : array (n, 256, 256), optional
        A patch of the image of each exposure [electron s-1 pixel-1]; NaN everywhere where there is none. The
        statistics (n, statistic) of `image_statistics` are accepted in its place.
    """

    nominal: Float
    days: Float
    telemetry: Mapping[str, npt.NDArray[Any]]
    memory: Memory | None = None
    memory_telemetry: Mapping[str, npt.NDArray[Any]] | None = None
    stars: StarLists | None = None
    image: npt.NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.nominal)


@dataclass(frozen=True)
class PriorArrays:
    """Inputs of n exposures in the layout of a network, before normalisation; NaN where unknown.

    Attributes
    ----------
    telemetry : float32 array (n, t)
    memory : float64 array (n, K, 3)
        Zero point minus nominal [mag], sigma [mag], age [d].
    memory_telemetry : float32 array (n, K, t)
    stars : float32 array (n, m, 7)
        `STAR_COLUMNS`, the nominal zero point added to ``inst_mag``.
    n_stars : float32 array (n,)
    image : float32 array (n, s)
        Statistics.
    nominal : float32 array (n,)
        [mag]
    """

    telemetry: Float32
    memory: Float
    memory_telemetry: Float32
    stars: Float32
    n_stars: Float32
    image: Float32
    nominal: Float32

    def __len__(self) -> int:
        return len(self.telemetry)

    def take(self, index: Any) -> PriorArrays:
        """Return some of the exposures."""
        return PriorArrays(**{name: value[index] for name, value in vars(self).items()})


def concatenate_arrays(parts: Sequence[PriorArrays]) -> PriorArrays:
    """Return the arrays of several sets as one; star lists are padded to the longest."""
    most = max(part.stars.shape[1] for part in parts)
    fields = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("telemetry", "memory", "memory_telemetry", "n_stars", "image", "nominal")
    }
    stars = [np.pad(p.stars, ((0, 0), (0, most - p.stars.shape[1]), (0, 0)), constant_values=np.nan) for p in parts]
    return PriorArrays(stars=np.concatenate(stars), **fields)


def prior_arrays(inputs: PriorInputs, telemetry: Sequence[str], *, memory: int) -> PriorArrays:
    """Lay inputs out for a network.

    Parameters
    ----------
    inputs : PriorInputs
    telemetry : sequence of str
        Names that the network knows, in its order.
    memory : int
        Solved zero points that the network looks back at; further ones are dropped, absent ones padded.
    """
    n = len(inputs)
    values, history = np.full((n, memory, 3), np.nan), np.full((n, memory, len(telemetry)), np.nan)
    if inputs.memory is not None and memory:
        kept = min(memory, inputs.memory.value.shape[1])
        parts = (inputs.memory.value - inputs.nominal[:, None], inputs.memory.sigma, inputs.memory.age)
        values[:, :kept] = np.stack(parts, axis=-1)[:, :kept]
        usable = np.isfinite(values).all(axis=-1) & (values[..., 1] > 0) & (values[..., 2] >= 0)
        values[~usable] = np.nan
        known = inputs.memory_telemetry or {}
        for k, name in enumerate(telemetry):
            if name in known:
                history[:, :kept, k] = np.asarray(known[name], dtype=float)[:, :kept]
        history[~usable] = np.nan
    now = np.full((n, len(telemetry)), np.nan)
    for k, name in enumerate(telemetry):
        if name in inputs.telemetry:
            now[:, k] = np.asarray(inputs.telemetry[name], dtype=float)
    lists = inputs.stars or StarLists(np.full((n, 1, len(STAR_COLUMNS)), np.nan, np.float32), np.zeros(n, np.int64))
    stars = lists.values.copy()
    stars[..., 0] += np.nan_to_num(inputs.nominal)[:, None].astype(np.float32)
    return PriorArrays(
        _finite(now), values, _finite(history), stars, lists.count.astype(np.float32), stack_image_statistics(inputs),
        _finite(np.asarray(inputs.nominal)),
    )  # fmt: skip


def _finite(values: npt.NDArray[Any]) -> Float32:
    """Return float32 values, NaN where they are not finite."""
    return np.where(np.isfinite(values), values, np.nan).astype(np.float32)


def stack_image_statistics(inputs: PriorInputs) -> Float32:
    """Return the statistics of the images (n, statistic); NaN where there is none, or it cannot be used."""
    if inputs.image is None:
        return np.full((len(inputs), len(IMAGE_STATISTICS)), np.nan, np.float32)
    if np.ndim(inputs.image) == 2:
        return np.asarray(inputs.image, dtype=np.float32)
    return np.stack([image_statistics(patch) for patch in inputs.image])


def image_statistics(patch: npt.NDArray[Any]) -> Float32:
    """Return the statistics of an image patch that the AZP-RC article lists (section 3.1).

    Parameters
    ----------
    patch : array (y, x)
        [electron s-1 pixel-1]; pixels that are not finite are replaced by the median.

    Returns
    -------
    float32 array (statistic,)
        `IMAGE_STATISTICS`; NaN if fewer than half of the pixels are finite.

    Examples
    --------
    >>> image_statistics(np.ones((32, 32))).shape
    (21,)
    """
    data = np.asarray(patch, dtype=np.float32)
    known = np.isfinite(data)
    if 2 * known.sum() <= data.size or min(data.shape) < 8:
        return np.full(len(IMAGE_STATISTICS), np.nan, np.float32)
    flat = data.ravel() if known.all() else data[known]
    median = float(np.median(flat))
    if not known.all():
        data = np.where(known, data, np.float32(median))
    noise = float(mad_scale(flat[::4], floor=_TINY))
    amplitude = _ring_amplitudes(data - median)
    sharpness, shares = _peaks(data - np.float32(median), noise)
    level = np.log(np.maximum([float(flat.mean()), float(flat.std()), median, noise], _TINY))
    return np.concatenate([level, [sharpness], np.log(np.maximum(amplitude, _TINY)), shares]).astype(np.float32)


def _ring_amplitudes(data: Float32) -> Float:
    """Return the mean amplitude of the Fourier transform in rings of spatial frequency, up to half a cycle a pixel."""
    size = np.abs(fft.rfft2(data))
    ring, count = _rings(data.shape)
    total = np.bincount(ring, size.ravel(), N_RINGS + 1)[:N_RINGS]
    return np.asarray(total / count / np.sqrt(data.size))


_RINGS: dict[tuple[int, ...], tuple[npt.NDArray[np.int64], Float]] = {}


def _rings(shape: tuple[int, ...]) -> tuple[npt.NDArray[np.int64], Float]:
    """Return the ring of each frequency of `rfft2`, and how many frequencies each ring has."""
    if shape not in _RINGS:
        radius = np.hypot(fft.fftfreq(shape[0])[:, None], fft.rfftfreq(shape[1])[None, :])
        ring = np.minimum((radius / 0.5 * N_RINGS).astype(np.int64), N_RINGS).ravel()
        _RINGS[shape] = ring, np.maximum(np.bincount(ring, minlength=N_RINGS + 1)[:N_RINGS], 1)
    return _RINGS[shape]


def _peaks(data: Float32, noise: float) -> tuple[float, Float]:
    """Return how sharp bright stars are, and the histogram of their 3 x 3 pixels.

    Pixels are divided by the brightest of the nine. The sharpness is the median share of the brightest in the sum.
    """
    peaks = _bright_peaks(data, 5 * noise)
    if len(peaks) == 0:
        return np.nan, np.full(N_BINS, np.nan)
    y, x = peaks[:, 0], peaks[:, 1]
    offset = np.arange(-1, 2)
    cut = data[y[:, None, None] + offset[:, None], x[:, None, None] + offset].reshape(len(peaks), 9).astype(float)
    relative = np.clip(cut / cut.max(axis=1, keepdims=True), 0, 1 - 1e-9)
    shares = np.bincount((relative * N_BINS).astype(np.int64).ravel(), minlength=N_BINS) / relative.size
    return float(np.median(cut.max(axis=1) / np.maximum(cut.sum(axis=1), _TINY))), shares


def _bright_peaks(data: Float32, threshold: float) -> npt.NDArray[np.int64]:
    """Return (y, x) of the brightest local maxima, each the maximum of a block of 16 pixels, away from the edges."""
    ny, nx = (side - side % 16 for side in data.shape)
    if not ny or not nx:
        return np.zeros((0, 2), dtype=np.int64)
    blocks = data[:ny, :nx].reshape(ny // 16, 16, nx // 16, 16).transpose(0, 2, 1, 3).reshape(-1, 256)
    at = blocks.argmax(axis=1)
    height = blocks[np.arange(len(at)), at]
    row, column = np.divmod(np.arange(len(at)), nx // 16)
    y, x = 16 * row + at // 16, 16 * column + at % 16
    inside = (y > 0) & (x > 0) & (y < data.shape[0] - 1) & (x < data.shape[1] - 1) & (height > threshold)
    order = np.argsort(-height[inside], kind="stable")[:N_PEAKS]
    return np.stack([y[inside][order], x[inside][order]], axis=1)


def build_star_lists(
    tables: Sequence[Mapping[str, npt.ArrayLike] | None],
    *,
    shape: tuple[int, int] | None = None,
    at_most: int = MAX_STARS,
) -> StarLists:
    """Pad star tables of exposures.

    Parameters
    ----------
    tables : sequence of mappings
        Columns `STAR_COLUMNS`, colour, x and y optional; None or empty where there is no star. Stars without both
        magnitudes, or with sentinels, are left out.
    shape : (y, x), optional
        Of the frame in pixels. By default x and y are scaled by their own range.
    at_most : int
        Stars that are kept of each exposure, those with the smallest errors.
    """
    rows = [_star_rows(table, shape) for table in tables]
    longest = max([1, *(min(len(one), at_most) for one in rows)])
    values = np.full((len(rows), longest, len(STAR_COLUMNS)), np.nan, np.float32)
    for k, one in enumerate(rows):
        values[k, : min(len(one), at_most)] = one[:at_most]
    return StarLists(values, np.array([len(one) for one in rows], dtype=np.int64))


def _star_rows(table: Mapping[str, npt.ArrayLike] | None, shape: tuple[int, int] | None) -> Float:
    """Return the usable stars of a table (star, 7), those with the smallest errors first."""
    if table is None or "inst_mag" not in table:
        return np.zeros((0, len(STAR_COLUMNS)))
    inst = np.asarray(table["inst_mag"], dtype=float)
    columns = [np.asarray(table[c], dtype=float) if c in table else np.full(inst.shape, np.nan) for c in STAR_COLUMNS]
    rows = np.stack(columns, axis=1)
    rows[:, [0, 2, 4]] = mask_bad_magnitudes(rows[:, [0, 2, 4]])
    rows[:, [1, 3]] = mask_bad_errors(rows[:, [1, 3]])
    rows = rows[np.isfinite(rows[:, [0, 2]]).all(axis=1)]
    _, first = np.unique(np.nan_to_num(rows, nan=_UNKNOWN), axis=0, return_index=True)  # repeated rows are one star
    rows = rows[first]
    for column, side in ((5, 1), (6, 0)):
        if len(rows):
            rows[:, column] = _scaled(rows[:, column], None if shape is None else shape[side])
    order = np.lexsort((rows[:, 6], rows[:, 5], rows[:, 0], np.nan_to_num(rows[:, 1], nan=np.inf)))
    return np.asarray(rows[order])


def _scaled(position: Float, size: int | None) -> Float:
    """Return positions from -1 to 1: over the frame, or over their own range where its size is unknown."""
    if size is not None:
        return (position + 0.5) / size * 2 - 1
    known = position[np.isfinite(position)]
    if len(known) == 0 or np.ptp(known) == 0:
        return np.where(np.isfinite(position), 0.0, np.nan)
    return (position - known.min()) / np.ptp(known) * 2 - 1
