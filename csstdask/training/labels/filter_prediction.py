"""Predict an exposure of undersampled stars from several others by linear filters."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import minimum_filter

from csstdask.numerics.robust import mad_scale
from csstdask.training.labels.registration import OUTLIER_SIGMA

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

#: Radius of the filters [pixel].
RADIUS = 2
#: Smallest number of pixels per coefficient of the filters.
MIN_PIXELS_PER_TERM = 20
#: Largest number of pixels in the fit, and in one block of predictions.
MAX_PIXELS = 60_000
#: Error of a bright pixel as a fraction of its light.
RELATIVE_ERROR = 0.02
#: Iterations of the fit, each without the outliers of the one before.
ITERATIONS = 4


def predict_by_filters(
    stack: Image, image: Image, error: Image, use: Mask, wanted: Mask, *, min_snr: float = 10.0
) -> Image | None:
    """Predict an image from other exposures of the same sky, resampled to its pixels.

    One exposure of undersampled stars does not determine another that is half a pixel away. Several together do,
    through filters that are the same everywhere in the frame (Papoulis 1977, IEEE Trans. Circuits Syst. 24, 652).
    Filters of 5 x 5 pixels of each exposure are fitted to bright pixels of the image; they also absorb residual shifts
    and jitter.

    Parameters
    ----------
    stack : float32 array (exposure, y, x)
        Other exposures, resampled to the pixels of the image; NaN where they have no data.
    image, error : float32 arrays (y, x)
        Image, sky subtracted, and its 1 sigma error.
    use : bool array (y, x)
        Pixels that may be used in the fit.
    wanted : bool array (y, x)
        Pixels to predict.
    min_snr : float
        Brightness of the pixels in the fit [sigma].

    Returns
    -------
    float32 array (y, x) or None
        NaN where it is not wanted or an exposure has no data nearby; None if too few pixels are bright.
    """
    offsets = [(dy, dx) for dy in range(-RADIUS, RADIUS + 1) for dx in range(-RADIUS, RADIUS + 1)]
    complete = minimum_filter(np.isfinite(stack).all(axis=0), 2 * RADIUS + 1, mode="constant", cval=0)
    mean = stack.mean(axis=0)

    def neighbours(y: npt.NDArray[np.int64], x: npt.NDArray[np.int64]) -> Image:
        return np.stack([plane[y + dy, x + dx] for plane in stack for dy, dx in offsets], axis=1)

    y, x = np.nonzero(use & complete & (mean > min_snr * error))
    step = max(1, len(y) // MAX_PIXELS)
    y, x = y[::step], x[::step]
    basis, target = neighbours(y, x).astype(np.float64), image[y, x].astype(np.float64)
    weight = 1 / np.hypot(error[y, x], RELATIVE_ERROR * mean[y, x]).astype(np.float64)
    filters = _fit_filters(basis, target, weight)
    if filters is None:
        return None
    predicted = np.full(image.shape, np.nan, dtype=np.float32)
    y, x = np.nonzero(wanted & complete)
    for first in range(0, len(y), MAX_PIXELS):
        block = slice(first, first + MAX_PIXELS)
        predicted[y[block], x[block]] = neighbours(y[block], x[block]) @ filters
    return predicted


def _fit_filters(
    basis: npt.NDArray[np.float64], target: npt.NDArray[np.float64], weight: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64] | None:
    """Fit filters to bright pixels without outliers; None if there are too few pixels.

    Parameters
    ----------
    basis : float64 array (pixel, term)
        Neighbours of each pixel in all exposures.
    target, weight : float64 arrays (pixel,)
        Light of each pixel, and its inverse error.
    """
    keep = np.ones(len(target), dtype=bool)
    filters: npt.NDArray[np.float64] = np.zeros(basis.shape[1])
    for _ in range(ITERATIONS):
        if keep.sum() < MIN_PIXELS_PER_TERM * basis.shape[1]:
            return None
        design = basis[keep] * weight[keep, None]
        solution = np.linalg.lstsq(design.T @ design, design.T @ (target[keep] * weight[keep]), rcond=1e-9)[0]
        filters = np.asarray(solution, dtype=np.float64)
        residual = np.abs(target - basis @ filters) * weight
        keep = residual < OUTLIER_SIGMA * mad_scale(residual[keep], center=0.0)
    return filters
