"""The step to which a frame's values are rounded, and the noise that rounding leaves.

A frame rounded to steps larger than its noise has one value in most pixels: their scatter is 0, although a pixel's true
value is uncertain by the step. Rounding a uniform distribution leaves a variance of ``step**2 / 12`` (Widrow & Kollar
2008, Quantization Noise), which is a floor for the noise of such a frame.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from csstdask.arrays.namespace import to_host

#: Standard deviation of a uniform distribution of unit width.
ROUNDING_SIGMA = 12**-0.5
#: Pixels that are looked at; their values are sorted.
_SAMPLE = 1 << 18
#: Levels next to the most frequent value that are looked at: further up, where sources are, levels are missing.
_LEVELS = 16
#: Share of the gaps between these levels that are a single step, at least, and how well gaps are whole multiples of it.
#: Continuous values have no such gap; a few bright integers have gaps of many steps.
_SINGLE, _WHOLE = 0.5, 1e-3
#: Share of pixels with one value below which rounding does not matter: the noise is then above 1.6 steps.
_ONE_VALUE = 0.25


def quantisation_step(data: Any, mask: Any = None) -> float:
    """Return the step to which values are rounded, if it is not small compared with their noise; else 0.

    Parameters
    ----------
    data : array (y, x)
        Any unit, rounded perhaps in another one: a gain or an exposure time does not hide the step.
    mask : bool array (y, x), optional
        True = takes no part.

    Returns
    -------
    float
        0 if values are continuous, if their noise exceeds the step, or if there are too few levels: a constant frame
        has no step.
    """
    flat = data.reshape(-1)
    stride = max(1, flat.size // _SAMPLE) | 1  # odd: one that divides a row would see the same few columns
    values = to_host(flat[::stride]).astype(np.float64)
    good = np.isfinite(values)
    if mask is not None:
        good &= ~to_host(mask.reshape(-1)[::stride])
    values = values[good]
    if not values.size:
        return 0.0
    middle = np.median(values)
    if np.mean(values == middle) < _ONE_VALUE:
        return 0.0
    levels = np.unique(values)
    at = int(np.searchsorted(levels, middle))
    first = max(0, at - _LEVELS // 2)
    gaps = np.diff(levels[first : first + _LEVELS + 1])
    if gaps.size < 2:
        return 0.0
    step = float(gaps.min())
    multiple = gaps / step
    whole = np.abs(multiple - np.rint(multiple)) < _WHOLE * np.maximum(multiple, 1)
    return step if whole.all() and np.mean(np.rint(multiple) == 1) >= _SINGLE else 0.0
