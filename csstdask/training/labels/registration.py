"""Register exposures of one field: where the pixels of one are in another, and their light there.

Positions in the headers are refined by shifts, which are measured in the frames. Frames are smoothed for this, because
of cosmic rays and undersampled stars, and pixels that differ from the median of all exposures are left out of the fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from astropy.wcs import WCS
from astropy.wcs.utils import pixel_to_pixel
from scipy.ndimage import gaussian_filter, map_coordinates

from csstdask.numerics.robust import mad_scale
from csstdask.training.labels.stack import nan_median

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Float = npt.NDArray[np.float64]

#: Nodes along each axis to which a pixel map is fitted, and degree of its polynomials: dithers differ little in
#: distortion.
N_NODES, DEGREE = 12, 3
#: Side of the central window in which shifts are measured [pixel].
WINDOW = 2048
#: Largest shift that is searched, along each axis [pixel].
MAX_SHIFT = 64
#: Peak of a cross-correlation above its scatter below which it is not used [sigma].
MIN_PEAK = 8.0
#: Sigma of the smoothing [pixel].
SMOOTHING = 1.0
#: Largest number of iterations of the fit of shifts, and largest step of the last one [pixel].
MAX_ITERATIONS, TOLERANCE = 12, 0.003
#: Smallest number of pixels for the fit of a shift.
MIN_PIXELS = 300
#: Brightness of the pixels that are used for it [sigma of the smoothed sky].
MIN_SNR = 5.0
#: Error of PSFs as a fraction of the light: bright stars must not decide alone.
PSF_ERROR = 0.05
#: Brightness at which images are clipped for the cross-correlation [sigma of the smoothed sky].
CORRELATION_CLIP = 10.0
#: Residual above which a pixel is left out, in units of the robust scatter [sigma].
OUTLIER_SIGMA = 4.0


@dataclass(frozen=True)
class PixelMap:
    """Positions of the pixels of a frame in another one: polynomials in y and x, scaled to -1...1 over the frame."""

    shape: tuple[int, int]
    """Shape (y, x) of the frame."""
    terms: Float
    """Coefficients of y and x over powers of y and x, (2, degree + 1, degree + 1)."""

    def positions(self) -> Float:
        """Return the position (y, x) of each pixel in the other frame, (2, y, x)."""
        along_y, along_x = (_powers(np.arange(n), n) for n in self.shape)
        return np.einsum("ip,kpq,jq->kij", along_y, self.terms, along_x, optimize=True)

    @property
    def slope(self) -> Float:
        """Return the derivatives of the position (y, x) by y and x at the centre, (2, 2)."""
        per_pixel = [2 / max(1, n - 1) for n in self.shape]
        return np.stack([self.terms[:, 1, 0] * per_pixel[0], self.terms[:, 0, 1] * per_pixel[1]], axis=1)


def _powers(coordinate: Float | npt.NDArray[np.int64], length: int) -> Float:
    """Return the powers of a pixel coordinate, scaled to -1...1 over the frame."""
    return np.vander(2 * coordinate / max(1, length - 1) - 1, DEGREE + 1, increasing=True)


def fit_pixel_map(of: WCS, to: WCS, shape: tuple[int, int]) -> PixelMap:
    """Fit the positions of the pixels of one frame in another from the coordinates of both.

    Parameters
    ----------
    of, to : WCS
        Celestial coordinates of both frames, in any coordinate systems.
    shape : (int, int)
        Shape (y, x) of the first frame.

    Returns
    -------
    PixelMap
    """
    y, x = (grid.ravel() for grid in np.meshgrid(*(np.linspace(0, n - 1, N_NODES) for n in shape), indexing="ij"))
    x_to, y_to = pixel_to_pixel(of, to, x, y)
    basis = (_powers(y, shape[0])[:, :, None] * _powers(x, shape[1])[:, None, :]).reshape(len(y), -1)
    terms = np.linalg.lstsq(basis, np.stack([y_to, x_to], axis=1), rcond=None)[0]
    return PixelMap(shape, terms.T.reshape(2, DEGREE + 1, DEGREE + 1))


def resample(frame: Image, positions: Float, *, order: int) -> Image:
    """Interpolate a frame at positions; NaN outside of it.

    Parameters
    ----------
    frame : float32 array (y, x)
        Finite frame; for order 3 its coefficients from `scipy.ndimage.spline_filter`.
    positions : float64 array (2, y, x)
        Positions (y, x).
    order : int
        0 nearest pixel, 1 linear, 3 cubic.

    Returns
    -------
    float32 array (y, x)
    """
    values = map_coordinates(frame, positions, order=order, prefilter=False, output=np.float32, mode="nearest")
    y, x = positions
    inside = (y >= 0) & (y <= frame.shape[0] - 1) & (x >= 0) & (x <= frame.shape[1] - 1)
    values[~inside] = np.nan
    return np.asarray(values)


def shift_wcs(wcs: WCS, shift: Float) -> WCS:
    """Return coordinates for a frame whose content is shifted by some pixels (y, x)."""
    shifted = wcs.deepcopy()
    shifted.wcs.crpix = shifted.wcs.crpix + shift[::-1]
    shifted.wcs.set()
    return shifted


def register(frames: Sequence[Image], coordinates: Sequence[WCS], noise: Sequence[float]) -> list[WCS]:
    """Refine the relative coordinates of several exposures.

    Each exposure is shifted to the first one by a cross-correlation, then all to their median by Gauss-Newton steps.

    Parameters
    ----------
    frames : sequence of float32 arrays (y, x)
        Finite frames, sky subtracted.
    coordinates : sequence of WCS
        Coordinates in the headers.
    noise : sequence of float
        Noise of the sky of each frame, in its units.

    Returns
    -------
    list of WCS
        Refined coordinates.
    """
    shape = (frames[0].shape[0], frames[0].shape[1])
    window = tuple(slice(max(0, (n - WINDOW) // 2), max(0, (n - WINDOW) // 2) + min(n, WINDOW)) for n in shape)
    smooth = [gaussian_filter(frame, SMOOTHING) for frame in frames]
    smooth_noise = max(noise) / (2 * np.pi**0.5 * SMOOTHING)  # of smoothed white noise
    refined = list(coordinates)

    def resample_to_first(index: int) -> tuple[Image, Float]:
        """Return an exposure on the window of the first one, and the slope of its pixel map."""
        pixel_map = fit_pixel_map(refined[0], refined[index], shape)
        positions = pixel_map.positions()[:, window[0], window[1]]
        return resample(smooth[index], positions, order=1), pixel_map.slope

    for index in range(1, len(frames)):
        image, slope = resample_to_first(index)
        shift = _correlate(smooth[0][window], image, smooth_noise)
        refined[index] = shift_wcs(refined[index], slope @ shift)
    for _ in range(MAX_ITERATIONS):
        resampled = [resample_to_first(index) for index in range(len(frames))]
        median = nan_median(np.stack([image for image, _ in resampled]))
        steps = [_gauss_newton_step(median, image, smooth_noise) for image, _ in resampled]
        refined = [
            shift_wcs(wcs, slope @ step) for wcs, step, (_, slope) in zip(refined, steps, resampled, strict=True)
        ]
        if np.abs(steps).max() < TOLERANCE:
            break
    return refined


def _correlate(reference: Image, image: Image, noise: float) -> Float:
    """Return the shift (y, x) of an image in whole pixels; 0 if its cross-correlation has no significant peak.

    Brightness is clipped, or the brightest star and the longest cosmic ray would decide.
    """
    spectra = []
    for plane in (reference, image):
        clipped = np.clip(np.nan_to_num(plane), 0, CORRELATION_CLIP * noise)
        spectra.append(np.fft.rfft2(clipped - clipped.mean()))
    surface = np.fft.irfft2(np.conj(spectra[0]) * spectra[1], s=reference.shape)
    reach = [min(MAX_SHIFT, n // 4) for n in reference.shape]
    near = np.roll(surface, reach, axis=(0, 1))[: 2 * reach[0] + 1, : 2 * reach[1] + 1]
    scatter = float(mad_scale(near))
    if near.max() - np.median(near) < MIN_PEAK * scatter:
        return np.zeros(2)
    peak = np.unravel_index(np.argmax(near), near.shape)
    return np.array([peak[0] - reach[0], peak[1] - reach[1]], dtype=np.float64)


def _gauss_newton_step(reference: Image, image: Image, noise: float) -> Float:
    """Return the shift (y, x) of an image to first order in its gradient, at most 1 pixel along each axis."""
    along_y, along_x = (np.gradient(image, axis=axis) for axis in (0, 1))
    difference = reference - image
    weight = np.asarray(1 / (noise**2 + (PSF_ERROR * reference) ** 2))
    use = np.isfinite(difference + along_y + along_x) & (reference > MIN_SNR * noise)
    shift = np.zeros(2)
    for _ in range(3):
        if use.sum() < MIN_PIXELS:
            return np.zeros(2)
        gradient = np.stack([along_y[use], along_x[use]]).astype(np.float64)
        weighted = gradient * weight[use]
        shift = np.asarray(np.linalg.lstsq(weighted @ gradient.T, weighted @ difference[use], rcond=None)[0])
        residual = (difference - shift[0] * along_y - shift[1] * along_x) * np.sqrt(weight)
        use &= np.abs(residual) < OUTLIER_SIGMA * mad_scale(residual[use], center=0.0)
    return np.asarray(np.clip(shift, -1, 1), dtype=np.float64)
