"""Statistics of an image patch, as the AZP-RC article lists them (section 3.1)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft

from csstdask.numerics.robust import mad_scale

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

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
"""Logarithms of mean, standard deviation, median, noise (by the MAD) and amplitudes; fractions of the histogram."""
_BLOCK = 16
"""Side of the blocks of which the brightest pixel is a candidate star [pixel]."""
_PEAK_SIGMA = 5.0
"""Height of a bright star above the median, in units of the noise."""
_MIN_VALUE = 1e-6
"""Smallest value before a logarithm [electron s-1]."""
_MIN_SIDE = 8
"""Smallest side of a patch [pixel]."""


def image_statistics(patch: npt.NDArray[Any]) -> Float32:
    """Return the statistics of an image patch.

    Parameters
    ----------
    patch : array (y, x)
        Image [electron s-1 pixel-1]; non-finite pixels are replaced by the median.

    Returns
    -------
    float32 array (statistic,)
        `IMAGE_STATISTICS`; NaN if half of the pixels or more are not finite.

    Examples
    --------
    >>> image_statistics(np.ones((32, 32))).shape
    (21,)
    """
    data = np.asarray(patch, dtype=np.float32)
    finite = np.isfinite(data)
    if 2 * finite.sum() <= data.size or min(data.shape) < _MIN_SIDE:
        return np.full(len(IMAGE_STATISTICS), np.nan, np.float32)
    pixels = data.ravel() if finite.all() else data[finite]
    median = float(np.median(pixels))
    if not finite.all():
        data = np.where(finite, data, np.float32(median))
    noise = float(mad_scale(pixels[::4], floor=_MIN_VALUE))
    amplitude = _ring_amplitudes(data - median)
    sharpness, fractions = _peak_statistics(data - np.float32(median), noise)
    level = np.log(np.maximum([float(pixels.mean()), float(pixels.std()), median, noise], _MIN_VALUE))
    log_amplitude = np.log(np.maximum(amplitude, _MIN_VALUE))
    return np.concatenate([level, [sharpness], log_amplitude, fractions]).astype(np.float32)


def _ring_amplitudes(data: Float32) -> Float:
    """Return the mean amplitude of the Fourier transform in rings of spatial frequency, up to half a cycle a pixel."""
    amplitude = np.abs(fft.rfft2(data))
    ring, count = _rings(data.shape)
    total = np.bincount(ring, amplitude.ravel(), N_RINGS + 1)[:N_RINGS]
    return np.asarray(total / count / np.sqrt(data.size))


@lru_cache(maxsize=8)
def _rings(shape: tuple[int, ...]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the ring of each frequency of `rfft2`, and the number of frequencies of each ring."""
    radius = np.hypot(fft.fftfreq(shape[0])[:, None], fft.rfftfreq(shape[1])[None, :])
    ring = np.minimum((radius / 0.5 * N_RINGS).astype(np.int64), N_RINGS).ravel()
    return ring, np.maximum(np.bincount(ring, minlength=N_RINGS + 1)[:N_RINGS], 1)


def _peak_statistics(data: Float32, noise: float) -> tuple[float, Float]:
    """Return the sharpness of bright stars and the histogram of their 3 x 3 pixels.

    Pixels are divided by the brightest of the nine. The sharpness is the median fraction of the brightest in the sum.
    """
    peaks = _bright_peaks(data, _PEAK_SIGMA * noise)
    if len(peaks) == 0:
        return np.nan, np.full(N_BINS, np.nan)
    y, x = peaks[:, 0], peaks[:, 1]
    offset = np.arange(-1, 2)
    cut = data[y[:, None, None] + offset[:, None], x[:, None, None] + offset].reshape(len(peaks), 9).astype(float)
    relative = np.clip(cut / cut.max(axis=1, keepdims=True), 0, 1 - 1e-9)
    fractions = np.bincount((relative * N_BINS).astype(np.int64).ravel(), minlength=N_BINS) / relative.size
    return float(np.median(cut.max(axis=1) / np.maximum(cut.sum(axis=1), _MIN_VALUE))), fractions


def _bright_peaks(data: Float32, threshold: float) -> npt.NDArray[np.int64]:
    """Return (y, x) of the brightest block maxima above a threshold, away from the edges, int64 array (peak, 2)."""
    ny, nx = (side // _BLOCK for side in data.shape)
    if not ny or not nx:
        return np.zeros((0, 2), dtype=np.int64)
    cropped = data[: ny * _BLOCK, : nx * _BLOCK]
    blocks = cropped.reshape(ny, _BLOCK, nx, _BLOCK).transpose(0, 2, 1, 3).reshape(-1, _BLOCK**2)
    brightest = blocks.argmax(axis=1)
    height = blocks[np.arange(len(brightest)), brightest]
    row, column = np.divmod(np.arange(len(brightest)), nx)
    y, x = _BLOCK * row + brightest // _BLOCK, _BLOCK * column + brightest % _BLOCK
    inner = (y > 0) & (x > 0) & (y < data.shape[0] - 1) & (x < data.shape[1] - 1) & (height > threshold)
    order = np.argsort(-height[inner], kind="stable")[:N_PEAKS]
    return np.stack([y[inner][order], x[inner][order]], axis=1)
