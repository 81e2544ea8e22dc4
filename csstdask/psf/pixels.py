"""From a finely sampled PSF to the pixels of a star, wherever in its pixel the star lies."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csstdask.psf.principal import FINE, SIDE

#: Samples on each side that interpolation looks at, and the parameter of Kaiser's window on them: with four samples a
#: pixel of what holds no more than 1.5 cycles a pixel the error is some 10^-5 of the peak (a test holds it there).
_REACH, _KAISER = 8, 9.5
_TAPS = 2 * _REACH
#: For slopes [pixel].
_STEP = 1e-3
#: Stars that are further from their stamp's middle are rendered there [pixel].
_FURTHEST = 3


def phase_of(place: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return how far places are from the middle of the pixel that they are in [pixel]."""
    return np.asarray(place - np.floor(place + 0.5))


def interpolation(offset: npt.NDArray[np.float64], size: int, *, slope: bool = False) -> npt.NDArray[np.float32]:
    """Return what takes samples of a PSF along one axis to the pixels of stars.

    Parameters
    ----------
    offset : float64 array (n,)
        Of each star from the middle of its stamp's pixel ``size // 2`` [pixel].
    size : int
        Pixels of a stamp's edge.
    slope : bool
        Of the pixels instead: how they change when the star moves by a pixel.

    Returns
    -------
    float32 array (n, size, SIDE)
        A Kaiser-windowed sinc.
    """
    first, weight = _taps(offset, size, slope=slope)
    sample = first[:, None, None] + FINE * np.arange(size)[:, None] + np.arange(_TAPS)
    inside = (sample >= 0) & (sample < SIDE)
    out = np.zeros((len(first), size, SIDE), dtype=np.float32)
    np.put_along_axis(out, np.where(inside, sample, 0), np.where(inside, weight[:, None], 0), axis=2)
    return out


def _taps(
    offset: npt.NDArray[np.float64], size: int, *, slope: bool = False
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the first sample that a star's first pixel looks at (n,), and weights (n, _TAPS), which all share."""
    place = SIDE // 2 - FINE * (size // 2 + np.asarray(offset, dtype=np.float64))
    first = np.floor(place).astype(np.int64) - _REACH + 1
    distance = (place - first)[:, None] - np.arange(_TAPS)
    if not slope:
        return first, _weights(distance).astype(np.float32)
    ahead, behind = (_weights(distance + shift) for shift in (-FINE * _STEP, FINE * _STEP))
    return first, ((ahead - behind) / (2 * _STEP)).astype(np.float32)


def _weights(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    window = np.i0(_KAISER * np.sqrt(np.clip(1 - (distance / _REACH) ** 2, 0, 1))) / np.i0(_KAISER)
    return np.asarray(np.sinc(distance) * window)


class Renderer:
    """Images as stars see them, whatever part of a pixel the star lies at.

    All pixels of a row look at samples with the same few weights: what they look at is laid out once for each sample
    that a star's first pixel may begin at, a handful, and a batch of stars is then two products of matrices.

    Parameters
    ----------
    images : float32 array (k, SIDE, SIDE)
    size : int
        Pixels of a stamp's edge.
    """

    def __init__(self, images: npt.NDArray[np.float32], size: int) -> None:
        self.size, self.k = size, len(images)
        reach = FINE * (size // 2 + _FURTHEST) + _TAPS
        self._low, self._high = max(0, SIDE // 2 - reach), min(SIDE, SIDE // 2 + reach)
        rows = images[:, self._low : self._high]
        self._samples = np.pad(rows, ((0, 0), (0, 0), (FINE * _FURTHEST + _TAPS,) * 2))
        self._laid_out: dict[int, npt.NDArray[np.float32]] = {}

    def __call__(self, y: npt.NDArray[np.float64], x: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """Return images (n, k, size, size) for stars so far from the middle of their stamp's pixel ``size // 2``."""
        y, x = (np.clip(place, -_FURTHEST, _FURTHEST) for place in (y, x))
        first, weight = _taps(x, self.size)
        along_y = interpolation(y, self.size)[..., self._low : self._high]
        out = np.empty((len(first), self.size, self.k, self.size), np.float32)
        for start in np.unique(first).tolist():
            some = np.flatnonzero(first == start)
            wide = (weight[some] @ self._table(start)).reshape(len(some), self._high - self._low, -1)
            out[some] = (along_y[some] @ wide).reshape(len(some), self.size, self.k, self.size)
        return out.transpose(0, 2, 1, 3)

    def _table(self, start: int) -> npt.NDArray[np.float32]:
        """Return the samples (tap, row x image x pixel) that stars look at whose first pixel begins at one of them."""
        if start not in self._laid_out:
            begin = start + FINE * _FURTHEST + _TAPS
            windows = np.lib.stride_tricks.sliding_window_view(self._samples, _TAPS, axis=2)
            windows = windows[:, :, begin : begin + FINE * self.size : FINE]
            self._laid_out[start] = np.ascontiguousarray(windows.transpose(3, 1, 0, 2)).reshape(_TAPS, -1)
        return self._laid_out[start]
