"""Repair of stars by the PSF that the frame's own stars have.

What a network says of a star's hit pixel is learnt from many telescopes; the frame knows its own. The PSF is fitted to
its stars, cosmic rays left out, then each hit star to the pixels that are left to it: the hit ones follow, with a
variance (`csstdask.psf.stars`). Whatever does not look like a star there is left to the model of repair.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.stamps import middles, owners
from csstdask.psf.frame import fit_frame, stamps_of
from csstdask.psf.stars import FITTED, StarFit, fit_stars

Frame = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Float = npt.NDArray[np.float64]

#: Hit pixels on which less of a star's light is expected than such a share of their own noise are left to others.
_LEAST = 0.3
#: With fewer degrees of freedom near it, nobody knows whether it is a star.
_FEWEST = 20
#: How well places are known that were measured in a frame with holes, one sigma [pixel].
_PLACE = 0.5
#: A star's chi^2 is at most so many of its own sigmas above one; PSFs are known to such a share of the light.
_WORST, _TOLERANCE = 4.0, 0.003


def repair_stars(
    height: Frame,
    error: Frame,
    noise: Frame,
    target: Mask,
    ignore: Mask,
    sources: Mapping[str, Any],
    detector: int,
    *,
    model: str = "default",
) -> tuple[Mask, Frame, Frame]:
    """Repair the hit pixels that belong to stars.

    Parameters
    ----------
    height : float32 array (y, x)
        Above the sky [e-]; what hit pixels hold does not matter.
    error, noise : float32 arrays (y, x)
        1 sigma of each pixel, and of the sky [e-].
    target, ignore : bool arrays (y, x)
        Pixels to repair, and such as nobody knows.
    sources : mapping
        The frame's, as `csstdask.psf.select_stars` takes them. A pixel belongs to the nearest.
    detector : int
        Its id, as the PSFs' model has it.
    model : str
        As `csstdask.psf.reconstruct` takes it.

    Returns
    -------
    which : bool array (y, x)
        Pixels that belong to stars.
    value, variance : float32 arrays (k,)
        Of these in row-major order: height above the sky [e-], and the variance of (the height - what the pixel would
        have measured), but for the sky's noise and the star's photons [e-^2].
    """
    which = np.zeros(height.shape, dtype=bool)
    bad = target | ignore
    psf = fit_frame(height, error, bad, sources, detector, model=model)
    if psf is None:
        return which, np.empty(0, np.float32), np.empty(0, np.float32)
    x, y, flux = (np.asarray(sources[name], dtype=np.float64) for name in ("x", "y", "flux"))
    rows, columns = np.nonzero(target)
    owner = owners(rows, columns, y, x, FITTED)
    rows, columns, owner = (part[owner >= 0] for part in (rows, columns, owner))
    light = _light_on(psf.field.profile(), flux[owner], rows - y[owner], columns - x[owner])
    chosen = light > _LEAST * np.sqrt(noise[rows, columns] ** 2 + np.maximum(light, 0))
    rows, columns, owner = rows[chosen], columns[chosen], owner[chosen]
    stars, number = np.unique(owner, return_inverse=True)
    pixels, variance = stamps_of(height, error, bad, x[stars], y[stars])
    fit = fit_stars(psf.field, pixels, variance, x[stars], y[stars], place=_PLACE, tolerance=_TOLERANCE)
    mine = is_star(fit)[number]
    rows, columns, number = rows[mine], columns[mine], number[mine]
    inside = (
        number,
        rows - middles(y)[stars][number] + FITTED // 2,
        columns - middles(x)[stars][number] + FITTED // 2,
    )
    which[rows, columns] = True  # rows ascend, and columns within them: as np.nonzero had them
    return which, fit.light[inside], fit.variance[inside]


def is_star(fit: StarFit) -> Mask:
    """Tell which fits are those of stars: galaxies leave more than noise."""
    scatter = np.sqrt(2 / np.maximum(fit.degrees, 1))
    return np.asarray((fit.flux > 0) & (fit.degrees >= _FEWEST) & (fit.chi2 < 1 + _WORST * scatter))


def _light_on(profile: Float, flux: Float, dy: Float, dx: Float) -> Float:
    """Return about how much of stars' light falls on pixels [e-], by the mean profile of their PSF."""
    return flux * np.interp(np.hypot(dy, dx), np.arange(len(profile)), profile)
