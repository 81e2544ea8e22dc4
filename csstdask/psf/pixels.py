"""From a finely sampled PSF to the pixels of a star, wherever in its pixel the star lies."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.psf.principal import FINE, SIDE

#: Samples on each side that interpolation looks at, and the parameter of Kaiser's window on them: with four samples a
#: pixel of what holds no more than 1.5 cycles a pixel the error is some 10^-5 of the peak (a test holds it there).
_REACH, _KAISER = 8, 9.5
#: For slopes [pixel].
_STEP = 1e-3


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
    pixel = np.arange(size) - size // 2
    place = SIDE // 2 + FINE * (pixel[None, :] - np.asarray(offset, dtype=np.float64)[:, None])
    first = np.floor(place).astype(int) - _REACH + 1
    sample = first[..., None] + np.arange(2 * _REACH)
    distance = place[..., None] - sample
    if slope:
        ahead, behind = (_weights(distance + shift) for shift in (-FINE * _STEP, FINE * _STEP))
        weight = (ahead - behind) / (2 * _STEP)
    else:
        weight = _weights(distance)
    inside = (sample >= 0) & (sample < SIDE)
    out = np.zeros((*place.shape, SIDE), dtype=np.float32)
    np.put_along_axis(out, np.where(inside, sample, 0), np.where(inside, weight, 0).astype(np.float32), axis=2)
    return out


def _weights(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    window = np.i0(_KAISER * np.sqrt(np.clip(1 - (distance / _REACH) ** 2, 0, 1))) / np.i0(_KAISER)
    return np.asarray(np.sinc(distance) * window)


def rendered(images: Any, along_y: Any, along_x: Any) -> Any:
    """Return images (k, SIDE, SIDE) as stars see them, (n, k, size, size), by the matrices of `interpolation`."""
    n, size, _ = along_x.shape
    k = len(images)
    seen = slice(*_seen(size))  # samples that any star looks at
    images, along_y, along_x = images[:, seen, seen], along_y[..., seen], along_x[..., seen]
    side = along_x.shape[-1]
    wide = images.reshape(1, k * side, side) @ along_x.transpose(0, 2, 1)
    return along_y[:, None] @ wide.reshape(n, k, side, size)


def _seen(size: int) -> tuple[int, int]:
    """Return the first sample that a star within its middle pixel is interpolated from, and one beyond the last."""
    reach = FINE * (size // 2 + 1) + _REACH
    return max(0, SIDE // 2 - reach), min(SIDE, SIDE // 2 + reach)
