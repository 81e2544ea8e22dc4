"""Adaptive moments of stamps: size and ellipticity under a Gaussian weight that fits itself to the image.

After Hirata & Seljak (2003, MNRAS 343, 459), as `galsim.hsm` has it, for many stamps at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.namespace import namespace_of, open_door

Array = npt.NDArray[np.float64]

#: Of a variance [pixel^2].
_LEAST = 0.02


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
        Background-subtracted, of any flux. NumPy, CuPy or torch.
    start : float
        First guess of sigma [pixel].
    tolerance : float
        Of the relative change of the moments.
    iterations : int
        At most.

    Returns
    -------
    Moments
        Arrays of the caller's kind. Size and ellipticity are NaN where it did not converge: no light, or noise alone.
    """
    door = open_door(images, stamps=True)
    images = door.take(images, np.float64)
    xp = namespace_of(images)
    n, ny, nx = images.shape
    column, row = xp.arange(nx, dtype=xp.float64), xp.arange(ny, dtype=xp.float64)
    x, y = xp.full(n, (nx - 1) / 2), xp.full(n, (ny - 1) / 2)
    total = images.sum(axis=(1, 2))
    mxx, mxy, myy = xp.full(n, start**2), xp.zeros(n), xp.full(n, start**2)
    done, lost = xp.zeros(n, dtype=bool), ~(total > 0)
    for _ in range(iterations):
        dx, dy = column[None, None, :] - x[:, None, None], row[None, :, None] - y[:, None, None]
        det = mxx * myy - mxy**2
        ixx, ixy, iyy = (part[:, None, None] for part in (myy / det, -mxy / det, mxx / det))
        weighted = images * xp.exp(-0.5 * (ixx * dx**2 + 2 * ixy * dx * dy + iyy * dy**2))
        norm = weighted.sum(axis=(1, 2))
        lost |= ~(norm > 0)
        norm = xp.where(lost, 1.0, norm)
        step_x, step_y = (weighted * dx).sum(axis=(1, 2)) / norm, (weighted * dy).sum(axis=(1, 2)) / norm
        new = [
            2 * (weighted * product).sum(axis=(1, 2)) / norm - 2 * a * b
            for product, a, b in ((dx * dx, step_x, step_x), (dx * dy, step_x, step_y), (dy * dy, step_y, step_y))
        ]
        # A weight that shrinks below the sampling sees one pixel and would shrink for ever.
        lost |= (new[0] * new[2] <= new[1] ** 2) | (new[0] < _LEAST) | (new[2] < _LEAST)
        size = mxx + myy
        change = xp.max(xp.stack([abs(new[0] - mxx), abs(new[1] - mxy), abs(new[2] - myy)]), axis=0) / size
        shift = xp.hypot(step_x, step_y) / xp.sqrt(size)
        done |= (change < tolerance) & (shift < tolerance)
        go = ~done & ~lost
        # Twice the step in the centre: the weight halves how far it is pulled.
        x, y = xp.where(go, x + 2 * step_x, x), xp.where(go, y + 2 * step_y, y)
        mxx, mxy, myy = (xp.where(go, value, old) for value, old in zip(new, (mxx, mxy, myy), strict=True))
        if bool((done | lost).all()):
            break
    done &= ~lost
    bad = ~done
    sigma = xp.where(bad, xp.nan, xp.maximum(mxx * myy - mxy**2, 0) ** 0.25)
    trace = xp.where(bad, xp.nan, mxx + myy)
    return Moments(*(door.give(one) for one in (x, y, sigma, (mxx - myy) / trace, 2 * mxy / trace, ~bad)))
