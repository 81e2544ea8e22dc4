"""Repair stars by the PSF of the frame.

The PSF field is fitted to the frame's stars with cosmic rays masked (`csstdask.psf.frame`). Each hit star is then
fitted to its unmasked pixels, and the fit predicts the masked ones, with a variance (`csstdask.psf.fit_star`). Whatever
does not look like a star is left to the model of repair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.frame import poisson_variance
from csstdask.arrays.mesh import Mesh
from csstdask.arrays.stamps import centre_pixels, nearest_stamp
from csstdask.psf.field import PsfField
from csstdask.psf.fit_star import FIT_BOX, StarFit, fit_stars
from csstdask.psf.frame import MaskedFrame, cut_star_stamps

Frame = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Float = npt.NDArray[np.float64]

#: Hit pixels on which the expected light of the star is below this share of the pixel noise are left to other tiers.
_LEAST_LIGHT = 0.3
#: Degrees of freedom near a star below which it is not known whether it is one.
_FEWEST_DEGREES = 20
#: 1 sigma of positions that were measured in a frame with holes [pixel].
_POSITION_SIGMA = 0.5
#: Largest chi^2 of a star, in its sigmas above one, and the share of the light to which PSFs are known.
_WORST, _TOLERANCE = 4.0, 0.003


@dataclass(frozen=True)
class StarRepair:
    """Hit pixels of stars, repaired."""

    pixels: Mask
    """(y, x) The pixels, `k` of them."""
    value: Frame
    """(k,) [e-] In row-major order, sky included."""
    variance: Frame
    """(k,) [e-^2] Of (value - what the pixel would have measured)."""


def repair_stars(masked: MaskedFrame, sources: Mapping[str, Any], field: PsfField, mesh: Mesh) -> StarRepair:
    """Repair the hit pixels that belong to stars.

    Parameters
    ----------
    masked : MaskedFrame
        [e-]
    sources : mapping
        Its sources: ``x, y`` [pixel] and ``flux`` [e-]. A pixel belongs to the nearest.
    field : PsfField
        The PSF of the frame.
    mesh : Mesh
        Its sky [e-].

    Notes
    -----
    Only stars with a hit pixel inside the fitted box on which their light matters are fitted, all in one call. Such a
    pixel receives the fitted light, with the variance of the fit, of the sky, and of the star's own photons.
    """
    x, y, flux = (np.asarray(sources[name], dtype=np.float64) for name in ("x", "y", "flux"))
    rows, columns = np.nonzero(masked.hit)
    owner = nearest_stamp(rows, columns, y, x, FIT_BOX)
    rows, columns, owner = (part[owner >= 0] for part in (rows, columns, owner))
    light = _expected_light(field.profile(), flux[owner], rows - y[owner], columns - x[owner])
    chosen = light > _LEAST_LIGHT * np.sqrt(poisson_variance(light, masked.noise[rows, columns]))
    rows, columns, owner = rows[chosen], columns[chosen], owner[chosen]
    stars, number = np.unique(owner, return_inverse=True)
    pixels, variance = cut_star_stamps(masked.height, masked.error, masked.unobserved, x[stars], y[stars])
    fit = fit_stars(field, pixels, variance, x[stars], y[stars], position_sigma=_POSITION_SIGMA, tolerance=_TOLERANCE)
    mine = is_star(fit)[number]
    rows, columns, number = rows[mine], columns[mine], number[mine]
    inside = (
        number,
        rows - centre_pixels(y)[stars][number] + FIT_BOX // 2,
        columns - centre_pixels(x)[stars][number] + FIT_BOX // 2,
    )
    which = np.zeros(masked.hit.shape, dtype=bool)
    which[rows, columns] = True  # rows ascend, and columns within them: as np.nonzero had them
    value = fit.light[inside]
    own = poisson_variance(value, masked.noise[rows, columns])
    return StarRepair(
        which, value + mesh.background_at()[rows, columns], (fit.variance[inside] + own).astype(np.float32)
    )


def is_star(fit: StarFit) -> Mask:
    """Return which fits are those of stars: galaxies leave residuals above the noise."""
    scatter = np.sqrt(2 / np.maximum(fit.degrees, 1))
    return np.asarray((fit.flux > 0) & (fit.degrees >= _FEWEST_DEGREES) & (fit.chi2 < 1 + _WORST * scatter))


def _expected_light(profile: Float, flux: Float, dy: Float, dx: Float) -> Float:
    """Return roughly how much of the light of stars falls on pixels [e-], by the mean profile of their PSF."""
    return flux * np.interp(np.hypot(dy, dx), np.arange(len(profile)), profile)
