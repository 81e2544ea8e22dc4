"""Render oversampled images at the pixels of stars, at any sub-pixel position."""

from __future__ import annotations

from functools import cache

import numba
import numpy as np
import numpy.typing as npt

from csstdask.psf.basis import BASIS_SIZE, OVERSAMPLING

Float = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]

#: Samples on each side of a position that enter the interpolation.
_REACH = 8
#: Parameter of their Kaiser window: for images with frequencies up to 1.5 cycles per pixel, the error of the
#: interpolation is about 10^-5 of the peak (tested).
_KAISER_BETA = 9.5
_TAPS = 2 * _REACH
#: Step of the numerical derivative of the weights [pixel].
_STEP = 1e-3
#: Intervals of the table of weights over one sample, interpolated linearly: accurate to about 1e-7 of the peak.
_INTERVALS = 2048
#: Largest distance of a star from the centre of its stamp; farther ones are rendered there [pixel].
_MAX_OFFSET = 3


def subpixel_offset(position: Float) -> Float:
    """Return the offsets of positions from the centre of their pixel [pixel].

    Examples
    --------
    >>> subpixel_offset(np.array([10.0, 10.25, 9.5])).tolist()
    [0.0, 0.25, -0.5]
    """
    return np.asarray(position - np.floor(position + 0.5))


def _taps(
    offset: npt.NDArray[np.float64], size: int, *, slope: bool = False
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the first sample of the first pixel of stars (n,), and the weights of all pixels (n, _TAPS)."""
    position = BASIS_SIZE // 2 - OVERSAMPLING * (size // 2 + np.asarray(offset, dtype=np.float64))
    sample = np.floor(position)
    step = (position - sample) * _INTERVALS
    interval = np.minimum(step.astype(np.int64), _INTERVALS - 1)
    table, share = _weight_table(slope=slope), (step - interval)[:, None]
    weight = table[interval] * (1 - share) + table[interval + 1] * share
    return sample.astype(np.int64) - _REACH + 1, weight.astype(np.float32)


@cache
def _weight_table(*, slope: bool) -> npt.NDArray[np.float64]:
    """Return weights (_INTERVALS + 1, _TAPS) of positions between two samples, or their derivative [1/pixel]."""
    fraction = np.arange(_INTERVALS + 1) / _INTERVALS
    distance = (fraction + _REACH - 1)[:, None] - np.arange(_TAPS)
    if not slope:
        return _weights(distance)
    ahead, behind = (_weights(distance + shift) for shift in (-OVERSAMPLING * _STEP, OVERSAMPLING * _STEP))
    return np.asarray((ahead - behind) / (2 * _STEP))


def _weights(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the Kaiser-windowed sinc at distances in samples."""
    window = np.i0(_KAISER_BETA * np.sqrt(np.clip(1 - (distance / _REACH) ** 2, 0, 1))) / np.i0(_KAISER_BETA)
    return np.asarray(np.sinc(distance) * window)


class Renderer:
    """Renders images at the pixels of stars, at any sub-pixel position.

    Parameters
    ----------
    images : float32 array (k, SIDE, SIDE)
    size : int
        Width of a stamp [pixel].
    """

    def __init__(self, images: Images, size: int) -> None:
        self.size, self.k = size, len(images)
        self._images = to_render_layout(images, size)

    def __call__(self, y: npt.NDArray[np.float64], x: npt.NDArray[np.float64]) -> Images:
        """Return images (n, k, size, size) for stars at offsets from the centre of pixel ``size // 2`` [pixel]."""
        first_y, weight_y = _clipped_taps(y, self.size)
        first_x, weight_x = _clipped_taps(x, self.size)
        out = np.empty((len(y), self.k, self.size, self.size), np.float32)
        _render_all(self._images, first_y, weight_y, first_x, weight_x, out)
        return out


def to_render_layout(images: Images, size: int) -> Images:
    """Crop images to the reach of stamps, and store them in the layout of `render_each`.

    Parameters
    ----------
    images : float32 array (n, SIDE, SIDE)
    size : int
        Width of a stamp [pixel].

    Returns
    -------
    float32 array (n, rows, FINE, columns)
        Padded with zeros where stamps reach beyond the images. Linear combinations may be formed in this layout.
    """
    if size % 2:
        raise ValueError(f"size: found {size}; wanted an even number of pixels")
    edge = _margin(size)
    if edge < 0:
        images = np.pad(images, ((0, 0), (-edge, -edge), (-edge, -edge)))
    elif edge:
        images = images[:, edge:-edge, edge:-edge]
    n, side = len(images), BASIS_SIZE - 2 * edge
    return np.ascontiguousarray(
        images.reshape(n, side, side // OVERSAMPLING, OVERSAMPLING).transpose(0, 1, 3, 2), dtype=np.float32
    )


def render_each(images: Images, y: Float, x: Float, size: int) -> Images:
    """Render the image of each star.

    Parameters
    ----------
    images : float32 array (n, rows, OVERSAMPLING, columns)
        One for each star, as `to_render_layout` returns them.
    y, x : float64 arrays (n,)
        Offsets from the centre of the stamp's pixel ``size // 2`` [pixel].
    size : int
        Width of a stamp [pixel].

    Returns
    -------
    float32 array (n, size, size)
    """
    first_y, weight_y = _clipped_taps(y, size)
    first_x, weight_x = _clipped_taps(x, size)
    out = np.empty((len(images), size, size), np.float32)
    _render_own(images, first_y, weight_y, first_x, weight_x, out)
    return out


def render_with_slopes(images: Images, y: npt.NDArray[np.float64], x: npt.NDArray[np.float64], size: int) -> Images:
    """Render the image of each star, and its derivatives by the position.

    Parameters
    ----------
    images : float32 array (n, rows, FINE, columns)
        One for each star, as `to_render_layout` returns them.
    y, x : float64 arrays (n,)
        Offsets from the centre of the stamp's pixel ``size // 2`` [pixel].
    size : int
        Width of a stamp [pixel].

    Returns
    -------
    float32 array (3, n, size, size)
        Image, and its derivatives by x and y [1/pixel].
    """
    first_y, weight_y = _clipped_taps(y, size)
    first_x, weight_x = _clipped_taps(x, size)
    _, slope_y = _clipped_taps(y, size, slope=True)
    _, slope_x = _clipped_taps(x, size, slope=True)
    out = np.empty((3, len(images), size, size), np.float32)
    _render_slopes(images, first_y, weight_y, slope_y, first_x, weight_x, slope_x, out)
    return out


def _margin(size: int) -> int:
    """Return the border of an image that stamps of a size do not reach [sample]; negative if they reach beyond."""
    reach = OVERSAMPLING * (size // 2 + _MAX_OFFSET) + _TAPS // 2
    return (BASIS_SIZE // 2 - reach) // OVERSAMPLING * OVERSAMPLING


def _clipped_taps(
    offset: npt.NDArray[np.float64], size: int, *, slope: bool = False
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return taps in images in the layout of `to_render_layout`, with offsets clipped to their reach."""
    known = np.nan_to_num(offset, nan=0.0)  # a source without a position has no pixels either
    first, weight = _taps(np.clip(known, -_MAX_OFFSET, _MAX_OFFSET), size, slope=slope)
    return first - _margin(size), weight


@numba.njit(nogil=True, cache=True, fastmath={"contract"})
def _along_x(image: Images, top: int, left: int, weight: npt.NDArray[np.float32], out: Images) -> None:
    """Interpolate the rows that a stamp needs along x: `out` has a row for each of them."""
    for row in range(out.shape[0]):
        line = out[row]
        line[:] = 0
        for tap in range(_TAPS):
            sample = left + tap
            samples = image[top + row, sample % OVERSAMPLING, sample // OVERSAMPLING :]
            for column in range(line.shape[0]):
                line[column] += weight[tap] * samples[column]


@numba.njit(nogil=True, cache=True, fastmath={"contract"})
def _along_y(rows: Images, weight: npt.NDArray[np.float32], out: Images) -> None:
    """Interpolate rows along y to the rows of a stamp."""
    for row in range(out.shape[0]):
        line = out[row]
        line[:] = 0
        for tap in range(_TAPS):
            samples = rows[OVERSAMPLING * row + tap]
            for column in range(line.shape[0]):
                line[column] += weight[tap] * samples[column]


@numba.njit(nogil=True, cache=True)
def _render_all(
    images: Images,
    first_y: npt.NDArray[np.int64],
    weight_y: npt.NDArray[np.float32],
    first_x: npt.NDArray[np.int64],
    weight_x: npt.NDArray[np.float32],
    out: npt.NDArray[np.float32],
) -> None:
    """Render all images for each star: `out` is (n, k, size, size)."""
    size = out.shape[2]
    rows = np.empty((OVERSAMPLING * (size - 1) + _TAPS, size), np.float32)
    for star in range(out.shape[0]):
        for image in range(out.shape[1]):
            _along_x(images[image], first_y[star], first_x[star], weight_x[star], rows)
            _along_y(rows, weight_y[star], out[star, image])


@numba.njit(nogil=True, cache=True)
def _render_own(
    images: Images,
    first_y: npt.NDArray[np.int64],
    weight_y: Images,
    first_x: npt.NDArray[np.int64],
    weight_x: Images,
    out: Images,
) -> None:
    """Render the image of each star: `out` is (n, size, size)."""
    size = out.shape[1]
    rows = np.empty((OVERSAMPLING * (size - 1) + _TAPS, size), np.float32)
    for star in range(out.shape[0]):
        _along_x(images[star], first_y[star], first_x[star], weight_x[star], rows)
        _along_y(rows, weight_y[star], out[star])


@numba.njit(nogil=True, cache=True)
def _render_slopes(
    images: Images,
    first_y: npt.NDArray[np.int64],
    weight_y: npt.NDArray[np.float32],
    slope_y: npt.NDArray[np.float32],
    first_x: npt.NDArray[np.int64],
    weight_x: npt.NDArray[np.float32],
    slope_x: npt.NDArray[np.float32],
    out: npt.NDArray[np.float32],
) -> None:
    """Render an image for each star with its two derivatives: `out` is (3, n, size, size)."""
    size = out.shape[2]
    rows = np.empty((OVERSAMPLING * (size - 1) + _TAPS, size), np.float32)
    for star in range(out.shape[1]):
        _along_x(images[star], first_y[star], first_x[star], weight_x[star], rows)
        _along_y(rows, weight_y[star], out[0, star])
        _along_y(rows, slope_y[star], out[2, star])
        _along_x(images[star], first_y[star], first_x[star], slope_x[star], rows)
        _along_y(rows, weight_y[star], out[1, star])
