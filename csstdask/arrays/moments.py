"""Adaptive moments of stamps: size and ellipticity under a Gaussian weight that is fitted to the image.

The method is that of Hirata & Seljak (2003, MNRAS 343, 459), as in `galsim.hsm`, for many stamps at once. The moments
of the weight are set to twice the weighted moments of the image until they converge; its centre moves by twice the
weighted centroid, because the weight halves the measured offset. The algorithm is implemented twice: as a numba loop
for the CPU and with arrays for the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from csstdask.arrays.adapter import adapt
from csstdask.arrays.namespace import namespace_of

Array = npt.NDArray[np.float64]

#: Smallest variance of the weight [pixel^2]; a narrower weight covers a single pixel and shrinks without end.
_MIN_VARIANCE = 0.02
#: Squared distance from the centre beyond which the weight is 0 [sigma^2 of the weight].
_MAX_DISTANCE2 = 50.0


@dataclass(frozen=True)
class Moments:
    """Adaptive moments of n stamps."""

    x: Array
    """Centre (n,), zero-based [pixel]."""
    y: Array
    sigma: Array
    """(n,), det(M)^(1/4) [pixel]"""
    e1: Array
    """(n,), (Mxx - Myy) / (Mxx + Myy): distortion, not shear."""
    e2: Array
    """(n,), 2 Mxy / (Mxx + Myy)"""
    converged: npt.NDArray[np.bool_]
    """(n,)"""


def adaptive_moments(images: Any, *, start: float = 1.5, tolerance: float = 1e-6, iterations: int = 200) -> Moments:
    """Measure adaptive moments.

    Parameters
    ----------
    images : array (n, y, x)
        Background-subtracted stamps in any unit; NumPy, CuPy or torch. A stamp with a pixel that is masked or not
        finite has no moments.
    start : float
        Initial sigma of the weight [pixel].
    tolerance : float
        Relative change of the moments at which the iteration stops.
    iterations : int
        Largest number of iterations.

    Returns
    -------
    Moments
        Arrays in the caller's library. Size and ellipticity are NaN without convergence, as for pure noise.

    Examples
    --------
    >>> y, x = np.mgrid[:32, :32] - 16.0
    >>> moments = adaptive_moments(np.exp(-0.5 * (x**2 + y**2) / 2.0**2)[None])
    >>> float(moments.sigma[0].round(3)), float(moments.x[0].round(3))
    (2.0, 16.0)
    """
    inputs = adapt(images, stamps=True)
    adapter, xp = inputs.adapter, namespace_of(inputs.data)
    images = xp.where(inputs.ignore, xp.nan, inputs.data.astype(np.float64))
    solve = moments_on_host if xp is np else moments_on_device
    x, y, mxx, mxy, myy, done = solve(images, start**2, tolerance, iterations)
    sigma = xp.where(done, xp.maximum(mxx * myy - mxy**2, 0) ** 0.25, xp.nan)
    trace = xp.where(done, mxx + myy, xp.nan)
    return Moments(*(adapter.to_caller(one) for one in (x, y, sigma, (mxx - myy) / trace, 2 * mxy / trace, done)))


def moments_on_host(images: Array, start: float, tolerance: float, iterations: int) -> tuple[Any, ...]:
    """Return centres, second moments and convergence, on the CPU."""
    found = np.empty((6, len(images)))
    _solve(np.ascontiguousarray(images), start, tolerance, iterations, found)
    return (*found[:5], found[5] > 0)


@numba.njit(nogil=True, cache=True)
def _solve(images: Array, start: float, tolerance: float, iterations: int, found: Array) -> None:
    """Fit the weight stamp by stamp; the last row of `found` is 1 where the iteration converged.

    Along a row the weight is a Gaussian, whose ratio from pixel to pixel changes by a constant factor: a row needs only
    two exponentials.
    """
    n, ny, nx = images.shape
    for i in range(n):
        image = images[i]
        x, y, mxx, mxy, myy = (nx - 1) / 2, (ny - 1) / 2, start, 0.0, start
        done = False
        if image.sum() > 0:
            for _ in range(iterations):
                det = mxx * myy - mxy**2
                ixx, ixy, iyy = myy / det, -mxy / det, mxx / det
                norm = to_x = to_y = xx = xy = yy = 0.0
                half_height = np.sqrt(_MAX_DISTANCE2 * myy)
                ratio_change = np.exp(-ixx)
                for row in range(max(0, int(np.ceil(y - half_height))), min(ny, int(np.floor(y + half_height)) + 1)):
                    dy = row - y
                    middle = x - ixy * dy / ixx
                    half = np.sqrt(max((ixy * dy / ixx) ** 2 - (iyy * dy**2 - _MAX_DISTANCE2) / ixx, 0.0))
                    first = max(0, int(np.ceil(middle - half)))
                    dx = first - x
                    weight = np.exp(-0.5 * (ixx * dx**2 + 2 * ixy * dx * dy + iyy * dy**2))
                    factor = np.exp(-0.5 * (ixx * (2 * dx + 1) + 2 * ixy * dy))
                    row_sum = row_x = row_xx = 0.0
                    for column in range(first, min(nx, int(np.floor(middle + half)) + 1)):
                        weighted = weight * image[row, column]
                        row_sum += weighted
                        row_x += weighted * dx
                        row_xx += weighted * dx * dx
                        dx += 1
                        weight *= factor
                        factor *= ratio_change
                    norm += row_sum
                    to_x += row_x
                    to_y += row_sum * dy
                    xx += row_xx
                    xy += row_x * dy
                    yy += row_sum * dy * dy
                if not norm > 0:
                    break
                to_x, to_y = to_x / norm, to_y / norm
                new_xx, new_xy, new_yy = (
                    2 * xx / norm - 2 * to_x**2, 2 * xy / norm - 2 * to_x * to_y, 2 * yy / norm - 2 * to_y**2,
                )  # fmt: skip
                if new_xx * new_yy <= new_xy**2 or new_xx < _MIN_VARIANCE or new_yy < _MIN_VARIANCE:
                    break
                size = mxx + myy
                change = max(abs(new_xx - mxx), abs(new_xy - mxy), abs(new_yy - myy)) / size
                if change < tolerance and np.hypot(to_x, to_y) / np.sqrt(size) < tolerance:
                    done = True
                    break
                x, y, mxx, mxy, myy = x + 2 * to_x, y + 2 * to_y, new_xx, new_xy, new_yy
        found[0, i], found[1, i], found[2, i], found[3, i], found[4, i] = x, y, mxx, mxy, myy
        found[5, i] = done


def moments_on_device(images: Any, start: float, tolerance: float, iterations: int) -> tuple[Any, ...]:
    """Return centres, second moments and convergence of all stamps at once, on the GPU."""
    xp = namespace_of(images)
    n, ny, nx = images.shape
    column, row = xp.arange(nx, dtype=xp.float64), xp.arange(ny, dtype=xp.float64)
    x, y = xp.full(n, (nx - 1) / 2), xp.full(n, (ny - 1) / 2)
    mxx, mxy, myy = xp.full(n, start), xp.zeros(n), xp.full(n, start)
    done, failed = xp.zeros(n, dtype=bool), ~(images.sum(axis=(1, 2)) > 0)
    for _ in range(iterations):
        dx, dy = column[None, None, :] - x[:, None, None], row[None, :, None] - y[:, None, None]
        det = mxx * myy - mxy**2
        ixx, ixy, iyy = (part[:, None, None] for part in (myy / det, -mxy / det, mxx / det))
        weighted = images * xp.exp(-0.5 * (ixx * dx**2 + 2 * ixy * dx * dy + iyy * dy**2))
        norm = weighted.sum(axis=(1, 2))
        failed |= ~(norm > 0)
        norm = xp.where(failed, 1.0, norm)
        step_x, step_y = (weighted * dx).sum(axis=(1, 2)) / norm, (weighted * dy).sum(axis=(1, 2)) / norm
        new = [
            2 * (weighted * product).sum(axis=(1, 2)) / norm - 2 * a * b
            for product, a, b in ((dx * dx, step_x, step_x), (dx * dy, step_x, step_y), (dy * dy, step_y, step_y))
        ]
        failed |= (new[0] * new[2] <= new[1] ** 2) | (new[0] < _MIN_VARIANCE) | (new[2] < _MIN_VARIANCE)
        size = mxx + myy
        change = xp.max(xp.stack([abs(new[0] - mxx), abs(new[1] - mxy), abs(new[2] - myy)]), axis=0) / size
        shift = xp.hypot(step_x, step_y) / xp.sqrt(size)
        done |= ~failed & (change < tolerance) & (shift < tolerance)
        go = ~done & ~failed
        x, y = xp.where(go, x + 2 * step_x, x), xp.where(go, y + 2 * step_y, y)
        mxx, mxy, myy = (xp.where(go, value, old) for value, old in zip(new, (mxx, mxy, myy), strict=True))
        if bool((done | failed).all()):
            break
    return x, y, mxx, mxy, myy, done & ~failed
