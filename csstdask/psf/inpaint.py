"""Repair stars with the PSF of the frame.

The PSF field is fitted to the frame's stars with cosmic rays masked (`csstdask.psf.frame`). Each star that was hit by a
cosmic ray is then fitted to its unmasked pixels, and the fit predicts the masked ones, with a variance
(`csstdask.psf.fit_star`). Sources that do not look like a star are left to the model of repair.
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
from csstdask.psf.fit_star import StarFit, fit_stars
from csstdask.psf.frame import MaskedFrame, cut_star_stamps
from csstdask.psf.star_model import FIT_BOX

Frame = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Float = npt.NDArray[np.float64]

#: Masked pixels are repaired here where the expected light of the star exceeds this share of the pixel noise.
_MIN_LIGHT = 0.3
#: Smallest number of degrees of freedom near a source to decide whether it is a star.
_MIN_DEGREES = 20
#: 1 sigma of positions that were measured in a frame with masked pixels [pixel].
_POSITION_SIGMA = 0.5
#: Largest chi^2 per degree of freedom of a star, in standard deviations above one.
_MAX_CHI2_SIGMA = 4.0
#: Relative accuracy to which any PSF is known, as a share of the light on a pixel.
_TOLERANCE = 0.003


@dataclass(frozen=True, eq=False)
class StarRepair:
    """Repaired pixels of stars, `k` of them, in row-major order."""

    pixels: Mask
    """(y, x) True for repaired pixels."""
    value: Frame
    """(k,) Repaired values, sky included [e-]."""
    variance: Frame
    """(k,) Variance of (value - what the pixel would have measured) [e-^2]."""


def repair_stars(masked: MaskedFrame, sources: Mapping[str, Any], field: PsfField, mesh: Mesh) -> StarRepair:
    """Repair the masked pixels that belong to stars.

    Parameters
    ----------
    masked : MaskedFrame
        Frame [e-].
    sources : mapping
        Sources of the frame: ``x, y`` [pixel] and ``flux`` [e-]. A pixel belongs to the nearest source.
    field : PsfField
        PSF of the frame.
    mesh : Mesh
        Sky of the frame [e-].

    Notes
    -----
    Only stars with a masked pixel inside the fitted box on which their light matters are fitted, all in one call. Such
    a pixel receives the fitted light, with the variance of the fit, of the sky, and of the star's photons.
    """
    x, y, flux = (np.asarray(sources[name], dtype=np.float64) for name in ("x", "y", "flux"))
    rows, columns = np.nonzero(masked.hit)
    owner = nearest_stamp(rows, columns, y, x, FIT_BOX)
    rows, columns, owner = (part[owner >= 0] for part in (rows, columns, owner))
    light = _expected_light(field.profile(), flux[owner], rows - y[owner], columns - x[owner])
    chosen = light > _MIN_LIGHT * np.sqrt(poisson_variance(light, masked.noise[rows, columns]))
    rows, columns, owner = rows[chosen], columns[chosen], owner[chosen]
    stars, number = np.unique(owner, return_inverse=True)
    pixels, variance = cut_star_stamps(masked.height, masked.error, masked.unobserved, x[stars], y[stars])
    fit = fit_stars(field, pixels, variance, x[stars], y[stars], position_sigma=_POSITION_SIGMA, tolerance=_TOLERANCE)
    of_star = is_star(fit)[number]
    rows, columns, number = rows[of_star], columns[of_star], number[of_star]
    inside = (
        number,
        rows - centre_pixels(y)[stars][number] + FIT_BOX // 2,
        columns - centre_pixels(x)[stars][number] + FIT_BOX // 2,
    )
    repaired = np.zeros(masked.hit.shape, dtype=bool)
    repaired[rows, columns] = True  # rows ascend, and columns within them, as in np.nonzero
    value = fit.light[inside]
    noise = poisson_variance(value, masked.noise[rows, columns])
    variance = (fit.variance[inside] + noise).astype(np.float32)
    return StarRepair(repaired, value + mesh.background_at()[rows, columns], variance)


def is_star(fit: StarFit) -> Mask:
    """Return which fits are those of stars: galaxies leave residuals above the noise."""
    scatter = np.sqrt(2 / np.maximum(fit.degrees, 1))
    chi2_limit = 1 + _MAX_CHI2_SIGMA * scatter
    return np.asarray((fit.flux > 0) & (fit.degrees >= _MIN_DEGREES) & (fit.chi2 < chi2_limit))


def _expected_light(profile: Float, flux: Float, dy: Float, dx: Float) -> Float:
    """Return approximately the light of stars on pixels [e-], by the mean radial profile of their PSF."""
    return flux * np.interp(np.hypot(dy, dx), np.arange(len(profile)), profile)
