"""Correlation of the noise of neighbouring pixels: 0 in a frame as read out, larger in a resampled one.

Drizzling, shifting and interpolating spread the noise of each input pixel over several output pixels. The scatter of
single pixels then understates the scatter of sums over pixels, and smooth blobs of noise look like faint sources and
cosmic rays.

The correlation of pixels one step apart follows from the scatter of their difference, ``1 - s(a - b)^2 / (2 s(a)^2)``,
where s is a standard deviation from the median absolute deviation, in windows all over the frame.

Structure on the sky, such as a galaxy or the wings of many stars, is correlated as well. Second differences are
insensitive to it, while those of resampled noise shrink as first differences do. The correlation is therefore measured
a second time, from ``s(a - 2 b + c)^2 / s(a - b)^2``, which is 3 for white noise. A window whose first value exceeds
the second contains structure and is rejected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from csstdask.arrays.mesh import Mesh
from csstdask.arrays.namespace import to_host
from csstdask.numerics.robust import mad_scale

#: Correlation above which noise counts as correlated, and a frame as resampled. White noise measures 0 to 0.02; the
#: highest of six real frames that were not resampled, WFC3/UVIS with trailed stars, 0.11. A shift by half a pixel with
#: linear interpolation makes 0.5. Below it, noise is understated by less than 20 %.
CORRELATED = 0.15
#: Largest number of windows along each axis.
_WINDOWS = 8
#: Size of a window [pixel].
_SIZE = 64
#: Smallest fraction of sky pixels in a window.
_MIN_SKY_FRACTION = 0.25
#: Distance from the sky above which a pixel belongs to a source [sigma].
_SOURCE_SIGMA = 3.0
#: Excess of the first correlation over the second that means structure: three times the scatter of their difference.
_MAX_EXCESS = 0.1
#: Smallest number of pixels of a window with two sky neighbours.
_MIN_PIXELS = 100
#: Smallest fraction of windows without structure.
_MIN_WINDOW_FRACTION = 0.1
#: Correlations at one step.
_RHO = np.linspace(0.9, -0.3, 1201)
#: Ratio of the variances of second and first differences that each causes, with rho^4 at two steps (a Gaussian).
_RATIO = (3 - 4 * _RHO + _RHO**4) / (1 - _RHO)


@dataclass(frozen=True)
class NoiseCorrelation:
    """Correlation of neighbouring pixels along each axis; 0 where it could not be measured."""

    x: float = 0.0
    y: float = 0.0

    @property
    def mean(self) -> float:
        """Mean of both axes."""
        return 0.5 * (self.x + self.y)

    def excess(self) -> float:
        """Return the factor by which the noise of a smoothed frame exceeds white noise; 1 for uncorrelated noise.

        The kernel is that of source detection, ``(1, 2, 1)`` along each axis, whose autocorrelation is 6, 4, 1; the
        correlation is taken to be the product of those along the axes, and a Gaussian of the distance.
        """
        if self.mean <= CORRELATED:
            return 1.0
        factor = 1.0
        for rho in (self.x, self.y):
            factor *= (6 + 2 * 4 * rho + 2 * max(rho, 0.0) ** 4) / 6
        return float(np.sqrt(max(factor, 1.0)))


def noise_correlation(data: Any, mask: Any, mesh: Mesh) -> NoiseCorrelation:
    """Measure the correlation of the sky noise of a frame.

    Parameters
    ----------
    data : array (y, x)
        Frame, in any unit.
    mask : bool array (y, x) or None
        True = ignore.
    mesh : Mesh
        Background and noise of the frame.
    """
    found, windows = [], 0
    for row in _starts(data.shape[0]):
        for column in _starts(data.shape[1]):
            window = slice(row, row + _SIZE), slice(column, column + _SIZE)
            height = to_host(data[window] - mesh.background_at(*window)).astype(np.float64)
            sky = np.abs(height) < _SOURCE_SIGMA * to_host(mesh.noise_at(*window))
            if mask is not None:
                sky &= ~to_host(mask[window])
            windows += 1
            both = _neighbour_correlation(height, sky), _neighbour_correlation(height.T, sky.T)
            if sky.mean() >= _MIN_SKY_FRACTION and np.isfinite(both).all():
                found.append(both)
    if len(found) < max(1, _MIN_WINDOW_FRACTION * windows):
        return NoiseCorrelation()
    x, y = np.median(np.array(found), axis=0)
    return NoiseCorrelation(float(x), float(y))


def _starts(length: int) -> list[int]:
    """Return the first pixels of the windows along an axis."""
    if length <= _SIZE:
        return [0]
    return sorted({round(start) for start in np.linspace(0, length - _SIZE, min(_WINDOWS, length // _SIZE))})


def _neighbour_correlation(height: Any, sky: Any) -> float:
    """Return the correlation of neighbours along x; NaN without scatter or with structure."""
    left, middle, right = height[:, :-2], height[:, 1:-1], height[:, 2:]
    use = sky[:, :-2] & sky[:, 1:-1] & sky[:, 2:]
    if use.sum() < _MIN_PIXELS:
        return float("nan")
    single, first, second = (
        float(mad_scale(values[use])) for values in (middle, middle - left, left - 2 * middle + right)
    )
    if not single > 0 or not first > 0:
        return float("nan")
    found = 1 - float(first) ** 2 / (2 * single**2)
    without_structure = float(np.interp((second / first) ** 2, _RATIO, _RHO))
    return found if found < without_structure + _MAX_EXCESS else float("nan")
