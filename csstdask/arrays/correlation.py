"""Correlation of the noise of neighbouring pixels: 0 in a frame as it was read, more in one that was resampled.

Drizzling, shifting and interpolating spread the noise of each input pixel over several output pixels. The scatter of
single pixels then understates how much sums over pixels scatter, and smooth blobs of noise look like faint sources and
cosmic rays.

The correlation of pixels one step apart is read from the spread of their difference, ``1 - spread(a - b)^2 /
(2 spread(a)^2)``, with spreads from the median absolute deviation, in windows all over the frame.

Structure on the sky is correlated as well: a galaxy, or the wings of many stars. Second differences hardly see it,
while those of resampled noise shrink as first differences do. So the correlation is read once more from second and
first differences, ``spread(a - 2 b + c)^2 / spread(a - b)^2``, which is 3 for white noise. Where the first value
exceeds the second, the window holds structure, and is left out.
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
#: Windows along each axis, and their edge [pixel].
_WINDOWS, _EDGE = 8, 64
#: Pixels of a window that must be sky, as a share.
_LEAST_SKY = 0.25
#: A pixel further from the sky is a source's [sigma].
_SKY = 3.0
#: By how much the correlation from single pixels may exceed that from differences where there is no structure: three
#: times the scatter of their difference in a window.
_AGREE = 0.1
#: Pixels of a window with two sky neighbours, at least.
_FEWEST = 100
#: Share of the windows that must be free of structure.
_LEAST_WINDOWS = 0.1
#: Correlations at one step, and the ratio of spreads that they make: a Gaussian of the distance has rho^4 at two.
_RHO = np.linspace(0.9, -0.3, 1201)
_RATIO = (3 - 4 * _RHO + _RHO**4) / (1 - _RHO)


@dataclass(frozen=True)
class NoiseCorrelation:
    """Of neighbouring pixels, along each axis; 0 where it could not be measured."""

    x: float = 0.0
    y: float = 0.0

    @property
    def mean(self) -> float:
        """Of both axes."""
        return 0.5 * (self.x + self.y)

    def excess(self) -> float:
        """Return by which factor the noise of a smoothed frame exceeds that of white noise; 1 where it is hardly more.

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
        Any units.
    mask : bool array (y, x) or None
        True = takes no part.
    mesh : Mesh
        Background and noise of the frame.
    """
    found, windows = [], 0
    for row in _starts(data.shape[0]):
        for column in _starts(data.shape[1]):
            window = slice(row, row + _EDGE), slice(column, column + _EDGE)
            height = to_host(data[window] - mesh.background_at(*window)).astype(np.float64)
            sky = np.abs(height) < _SKY * to_host(mesh.noise_at(*window))
            if mask is not None:
                sky &= ~to_host(mask[window])
            windows += 1
            both = _of_neighbours(height, sky), _of_neighbours(height.T, sky.T)
            if sky.mean() >= _LEAST_SKY and np.isfinite(both).all():
                found.append(both)
    if len(found) < max(1, _LEAST_WINDOWS * windows):
        return NoiseCorrelation()
    x, y = np.median(np.array(found), axis=0)
    return NoiseCorrelation(float(x), float(y))


def _starts(length: int) -> list[int]:
    """Return where windows begin along an axis."""
    if length <= _EDGE:
        return [0]
    return sorted({round(start) for start in np.linspace(0, length - _EDGE, min(_WINDOWS, length // _EDGE))})


def _of_neighbours(height: Any, sky: Any) -> float:
    """Return the correlation of pixels next to each other along x; NaN where there is no scatter, or structure."""
    left, middle, right = height[:, :-2], height[:, 1:-1], height[:, 2:]
    use = sky[:, :-2] & sky[:, 1:-1] & sky[:, 2:]
    if use.sum() < _FEWEST:
        return float("nan")
    single, first, second = (
        float(mad_scale(values[use])) for values in (middle, middle - left, left - 2 * middle + right)
    )
    if not single > 0 or not first > 0:
        return float("nan")
    found = 1 - first**2 / (2 * single**2)
    without_structure = float(np.interp((second / first) ** 2, _RATIO, _RHO))
    return found if found < without_structure + _AGREE else float("nan")
