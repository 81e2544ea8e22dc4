"""Quantisation step of a frame, and the noise of rounding.

A frame that is rounded to steps larger than its noise has the same value in most pixels: their scatter is 0, although
the true value of a pixel is uncertain by the step. Rounding a uniform distribution leaves a variance of
``step**2 / 12`` (Widrow & Kollar 2008, Quantization Noise), which is a floor for the noise of such a frame.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from csstdask.arrays.namespace import to_host

#: Standard deviation of a uniform distribution of unit width.
ROUNDING_SIGMA = 12**-0.5
#: Number of pixels that are sampled.
_SAMPLE = 1 << 18
#: Number of levels around the median that are examined; at higher levels, of sources, some are missing.
_LEVELS = 16
#: Smallest fraction of gaps between levels that are a single step; a few bright integers have larger gaps.
_MIN_SINGLE_FRACTION = 0.5
#: Relative tolerance for gaps that are multiples of the step; gaps between continuous values are not.
_TOLERANCE = 1e-3
#: Fraction of pixels at the median below which rounding is negligible: the noise is then above 1.6 steps.
_MIN_MEDIAN_FRACTION = 0.25


def quantisation_step(data: Any, mask: Any = None) -> float:
    """Return the step to which values are rounded; 0 if it is negligible compared with their noise.

    Parameters
    ----------
    data : array (y, x)
        Frame, in any unit; the values may have been rounded in another one and scaled since.
    mask : bool array (y, x), optional
        True = ignore.

    Returns
    -------
    float
        0 if values are continuous, if their noise exceeds the step, or if there are too few levels, as in a constant
        frame.
    """
    flat = data.reshape(-1)
    stride = max(1, flat.size // _SAMPLE) | 1  # odd: one that divides a row would always sample the same columns
    values = to_host(flat[::stride]).astype(np.float64)
    good = np.isfinite(values)
    if mask is not None:
        good &= ~to_host(mask.reshape(-1)[::stride])
    values = values[good]
    if not values.size:
        return 0.0
    middle = np.median(values)
    if np.mean(values == middle) < _MIN_MEDIAN_FRACTION:
        return 0.0
    levels = np.unique(values)
    at = int(np.searchsorted(levels, middle))
    first = max(0, at - _LEVELS // 2)
    gaps = np.diff(levels[first : first + _LEVELS + 1])
    if gaps.size < 2:
        return 0.0
    step = float(gaps.min())
    multiple = gaps / step
    multiples = np.abs(multiple - np.rint(multiple)) < _TOLERANCE * np.maximum(multiple, 1)
    return step if multiples.all() and np.mean(np.rint(multiple) == 1) >= _MIN_SINGLE_FRACTION else 0.0
