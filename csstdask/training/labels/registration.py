"""Exposures of one field laid on each other: where a pixel of one lies in another, and its light there.

The headers' positions are refined by shifts, found in the frames themselves. Cosmic rays are in the way of that, and
sources as sharp as a pixel: frames are smoothed, and what the other frame does not show is left out of the fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from astropy.wcs import WCS
from astropy.wcs.utils import pixel_to_pixel
from scipy.ndimage import gaussian_filter, map_coordinates, minimum_filter

from csstdask.numerics.robust import mad_scale

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

#: Nodes along an axis from which a mapping is fitted, and its degree: distortions differ little between dithers.
_NODES, _DEGREE = 12, 3
#: Shifts are found in a window of so many pixels in the middle [pixel], first to a pixel within this reach [pixel].
_WINDOW, _REACH = 2048, 64
#: A correlation's peak so far above its scatter is no accident.
_CERTAIN = 8.0
_SMOOTH = 1.0
#: Rounds of a fit at most; it has settled when no step is longer [pixel].
_ROUNDS, _SETTLED = 12, 0.003
_LEAST_PIXELS = 300
#: Filters that foretell a pixel: their radius [pixel], how many pixels they are fitted to for each of their terms, how
#: many at most, and of how much of its light a pixel is never sure.
_KERNEL_RADIUS, _LEAST_PER_TERM, _MOST_PIXELS, _BRIGHT_ERROR = 2, 20, 60_000, 0.02


@dataclass(frozen=True)
class PixelMap:
    """Where each pixel of a frame lies in another: polynomials in the pixel's place, from -1 to 1 over the frame."""

    shape: tuple[int, int]
    terms: npt.NDArray[np.float64]
    """(2, degree + 1, degree + 1) coefficients of y and x, over powers of y and x."""

    def places(self) -> npt.NDArray[np.float64]:
        """Return the place of each pixel, (2, y, x)."""
        along_y, along_x = (_powers(np.arange(n), n) for n in self.shape)
        return np.einsum("ip,kpq,jq->kij", along_y, self.terms, along_x, optimize=True)

    @property
    def slope(self) -> npt.NDArray[np.float64]:
        """Return the change of place in the middle, (2, 2): of y and x with y and x."""
        per_pixel = [2 / max(1, n - 1) for n in self.shape]
        return np.stack([self.terms[:, 1, 0] * per_pixel[0], self.terms[:, 0, 1] * per_pixel[1]], axis=1)


def _powers(at: npt.NDArray[np.float64] | npt.NDArray[np.int64], length: int) -> npt.NDArray[np.float64]:
    return np.vander(2 * at / max(1, length - 1) - 1, _DEGREE + 1, increasing=True)


def fit_pixel_map(of: WCS, to: WCS, shape: tuple[int, int]) -> PixelMap:
    """Fit where the pixels of one frame lie in another, from both frames' positions on the sky.

    Parameters
    ----------
    of, to : WCS
        Celestial, in frames and with axes of any kind.
    shape : (int, int)
        (y, x) of the first frame.
    """
    y, x = (grid.ravel() for grid in np.meshgrid(*(np.linspace(0, n - 1, _NODES) for n in shape), indexing="ij"))
    x_to, y_to = pixel_to_pixel(of, to, x, y)
    basis = (_powers(y, shape[0])[:, :, None] * _powers(x, shape[1])[:, None, :]).reshape(len(y), -1)
    terms = np.linalg.lstsq(basis, np.stack([y_to, x_to], axis=1), rcond=None)[0]
    return PixelMap(shape, terms.T.reshape(2, _DEGREE + 1, _DEGREE + 1))


def covered(places: npt.NDArray[np.float64], shape: tuple[int, int]) -> Mask:
    """Tell which places lie inside a frame."""
    y, x = places
    return np.asarray((y >= 0) & (y <= shape[0] - 1) & (x >= 0) & (x <= shape[1] - 1))


def resample(frame: Image, places: npt.NDArray[np.float64], *, order: int) -> Image:
    """Interpolate a frame at places; NaN outside it.

    Parameters
    ----------
    frame : float32 array (y, x)
        Finite; for order 3 what `scipy.ndimage.spline_filter` made of it.
    places : float64 array (2, y, x)
    order : int
        0 the nearest pixel, 1 linear, 3 cubic.
    """
    values = map_coordinates(frame, places, order=order, prefilter=False, output=np.float32, mode="nearest")
    values[~covered(places, (frame.shape[0], frame.shape[1]))] = np.nan
    return np.asarray(values)


def shifted(wcs: WCS, shift: npt.NDArray[np.float64]) -> WCS:
    """Return a WCS whose frame shows the sky so many pixels (y, x) further on."""
    moved = wcs.deepcopy()
    moved.wcs.crpix = moved.wcs.crpix + shift[::-1]
    moved.wcs.set()
    return moved


def register(frames: Sequence[Image], positions: Sequence[WCS], noise: Sequence[float]) -> list[WCS]:
    """Refine the headers' positions of several exposures with respect to each other.

    Parameters
    ----------
    frames : sequence of float32 arrays (y, x)
        Finite, sky subtracted.
    positions : sequence of WCS
    noise : sequence of float
        Of each frame's sky, in its units.
    """
    shape = (frames[0].shape[0], frames[0].shape[1])
    window = tuple(slice(max(0, (n - _WINDOW) // 2), max(0, (n - _WINDOW) // 2) + min(n, _WINDOW)) for n in shape)
    smooth = [gaussian_filter(frame, _SMOOTH) for frame in frames]
    level = max(noise) / (2 * np.pi**0.5 * _SMOOTH)  # of white noise after smoothing
    found = list(positions)

    def laid(index: int) -> tuple[Image, npt.NDArray[np.float64]]:
        """Return an exposure as the first one's window sees it, and how places change there."""
        mapping = fit_pixel_map(found[0], found[index], shape)
        places = mapping.places()[:, window[0], window[1]]
        return resample(smooth[index], places, order=1), mapping.slope

    for index in range(1, len(frames)):
        image, slope = laid(index)
        found[index] = shifted(found[index], slope @ _coarse_shift(smooth[0][window], image, level))
    for _ in range(_ROUNDS):
        seen = [laid(index) for index in range(len(frames))]
        median = nan_median(np.stack([image for image, _ in seen]))
        steps = [_fine_shift(median, image, level) for image, _ in seen]
        found = [shifted(wcs, slope @ step) for wcs, step, (_, slope) in zip(found, steps, seen, strict=True)]
        if np.abs(steps).max() < _SETTLED:
            break
    return found


def _coarse_shift(reference: Image, image: Image, level: float) -> npt.NDArray[np.float64]:
    """Return by how many whole pixels an image is off, or 0 where its correlation tells nothing.

    Brightness is clipped, or the brightest star and the longest cosmic ray would decide alone.
    """
    spectra = []
    for plane in (reference, image):
        clipped = np.clip(np.nan_to_num(plane), 0, 10 * level)
        spectra.append(np.fft.rfft2(clipped - clipped.mean()))
    surface = np.fft.irfft2(np.conj(spectra[0]) * spectra[1], s=reference.shape)
    reach = [min(_REACH, n // 4) for n in reference.shape]
    near = np.roll(surface, reach, axis=(0, 1))[: 2 * reach[0] + 1, : 2 * reach[1] + 1]
    spread = mad_scale(near)
    if near.max() - np.median(near) < _CERTAIN * spread:
        return np.zeros(2)
    at = np.unravel_index(np.argmax(near), near.shape)
    return np.array([at[0] - reach[0], at[1] - reach[1]], dtype=np.float64)


def _fine_shift(reference: Image, image: Image, level: float) -> npt.NDArray[np.float64]:
    """Return by how much an image is off, from one step of a Gauss-Newton fit to its gradient.

    A bright star may not decide alone: differences are weighed with a share of the light, for point spread functions
    differ by so much.
    """
    along_y, along_x = (np.gradient(image, axis=axis) for axis in (0, 1))
    difference = reference - image
    weight = np.asarray(1 / (level**2 + (0.05 * reference) ** 2))
    use = np.isfinite(difference + along_y + along_x) & (reference > 5 * level)
    shift = np.zeros(2)
    for _ in range(3):
        if use.sum() < _LEAST_PIXELS:
            return np.zeros(2)
        slopes = np.stack([along_y[use], along_x[use]]).astype(np.float64)
        weighed = slopes * weight[use]
        shift = np.asarray(np.linalg.lstsq(weighed @ slopes.T, weighed @ difference[use], rcond=None)[0])
        left = (difference - shift[0] * along_y - shift[1] * along_x) * np.sqrt(weight)
        use &= np.abs(left) < 4 * mad_scale(left[use], center=0.0)
    return np.asarray(np.clip(shift, -1, 1), dtype=np.float64)


def nan_median(stack: Image) -> Image:
    """Return the median over the first axis without NaN; NaN, silently, where all are. The stack is sorted."""
    stack.sort(axis=0)  # NaN go last
    count = np.isfinite(stack).sum(axis=0)
    lower = np.take_along_axis(stack, np.maximum((count - 1) // 2, 0)[None], axis=0)[0]
    upper = np.take_along_axis(stack, np.minimum(count // 2, len(stack) - 1)[None], axis=0)[0]
    return np.where(count > 0, (lower + upper) / 2, np.float32(np.nan)).astype(np.float32)


def combine(stack: Image, image: Image, error: Image, use: Mask, wanted: Mask, *, least: float = 10.0) -> Image | None:
    """Foretell an image from others of the same sky, on its pixels, by the linear combination that does it best.

    One exposure of stars as sharp as a pixel does not tell what another shows that lies half a pixel beside it;
    several together do, by filters that are the same all over the frame (Papoulis 1977, IEEE Trans. Circuits Syst. 24,
    652). The filters, 5 x 5 pixels of each exposure, are fitted to the image's own bright pixels, and so take up what
    positions are still off, and each exposure's jitter.

    Parameters
    ----------
    stack : float32 array (exposure, y, x)
        The others, resampled; NaN where they show nothing.
    image, error : float32 arrays (y, x)
        Sky subtracted; 1 sigma.
    use : bool array (y, x)
        Pixels that may decide.
    wanted : bool array (y, x)
        Pixels to foretell.
    least : float
        Pixels that decide are brighter than so many errors.

    Returns
    -------
    float32 array (y, x) or None
        NaN where it is not wanted, or where an exposure shows nothing nearby; None if too few pixels are bright.
    """
    reach = _KERNEL_RADIUS
    offsets = [(dy, dx) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1)]
    there = minimum_filter(np.isfinite(stack).all(axis=0), 2 * reach + 1, mode="constant", cval=0)
    mean = stack.mean(axis=0)

    def around(y: npt.NDArray[np.int64], x: npt.NDArray[np.int64]) -> Image:
        return np.stack([plane[y + dy, x + dx] for plane in stack for dy, dx in offsets], axis=1)

    y, x = np.nonzero(use & there & (mean > least * error))
    step = max(1, len(y) // _MOST_PIXELS)
    y, x = y[::step], x[::step]
    basis, target = around(y, x).astype(np.float64), image[y, x].astype(np.float64)
    weight = 1 / np.hypot(error[y, x], _BRIGHT_ERROR * mean[y, x]).astype(np.float64)
    keep = np.ones(len(y), dtype=bool)
    filters = np.zeros(basis.shape[1])
    for _ in range(4):
        if keep.sum() < _LEAST_PER_TERM * basis.shape[1]:
            return None
        design = basis[keep] * weight[keep, None]
        filters = np.linalg.lstsq(design.T @ design, design.T @ (target[keep] * weight[keep]), rcond=1e-9)[0]
        left = np.abs(target - basis @ filters) * weight
        keep = left < 4 * mad_scale(left[keep], center=0.0)
    result = np.full(image.shape, np.nan, dtype=np.float32)
    y, x = np.nonzero(wanted & there)
    for first in range(0, len(y), _MOST_PIXELS):
        part = slice(first, first + _MOST_PIXELS)
        result[y[part], x[part]] = around(y[part], x[part]) @ filters
    return result
