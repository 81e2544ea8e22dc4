r"""Test whether the stars of a detector look like the PSF that was fitted to them.

The chi^2 of single stars is insensitive: a wrong PSF adds little to the noise of several hundred pixels, less than the
error of the noise model. But what it adds is the same in all stars, so that it stands out in their sum. With the
residuals :math:`r_{ip}` of `n` stars in pixel `p` of their stamps, each with its own flux, sky and position,

.. math:: Q = \left\langle \frac{1}{n_p} \left(\sum_i r_{ip} / \sigma_{ip}\right)^2 \right\rangle_p

over the pixels within `RADIUS` of the centre is a chi^2 per degree of freedom of the stacked residuals, with mean 1 if
all residuals are noise. Sigmas of the PSF are multiplied by :math:`\sqrt{\max(1, Q)}`, except for those of
``empirical``, which allows for any smooth PSF from the start.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csstdask.psf.field import PsfField
from csstdask.psf.fit_star import fit_stars
from csstdask.psf.star_model import FIT_BOX, OUTLIER_SIGMA, central_box

Float = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.float32]

#: Q above which stars do not look like the PSF: six standard deviations, ``sqrt(2 / 81)`` each, above 1.
MISFIT = 2.0
#: Radius of the pixels whose residuals are stacked [pixel].
RADIUS = 5.0
#: Largest number of stars that are stacked, the brightest: more cost time and add little.
_MAX_STARS = 300
#: 1 sigma of positions that are fitted again [pixel].
_POSITION_SIGMA = 0.1
#: Relative accuracy to which any PSF is known, as a share of the light on a pixel, as in the repair of stars.
_TOLERANCE = 0.003


def stacked_misfit(field: PsfField, pixels: Pixels, variance: Pixels, x: Float, y: Float) -> float:
    """Return Q of the stars of a detector; NaN without stars.

    Parameters
    ----------
    field : PsfField
        Field fitted to these stars.
    pixels, variance : float32 arrays (n, y, x)
        Stamps of stars; variance is inf where unknown.
    x, y : float64 arrays (n,)
        Positions [pixel].
    """
    known = np.isfinite(variance) & (variance > 0)
    error = np.sqrt(np.where(known, variance, np.inf))
    peak = np.max(np.where(known, pixels, 0) / error, axis=(1, 2), initial=0.0)
    bright = np.argsort(-peak, kind="stable")[:_MAX_STARS]
    stars = pixels[bright], variance[bright], x[bright], y[bright]
    fit = fit_stars(field, *stars, position_sigma=_POSITION_SIGMA, rigid=True)
    box = central_box(pixels.shape[-1], FIT_BOX)
    known, error = known[bright][box], error[bright][box]
    residual = np.where(known, stars[0][box] - fit.light, 0)
    sigma = np.hypot(np.where(known, error, 1), _TOLERANCE * (fit.light - fit.sky[:, None, None]))
    # Clipped: neighbours and cosmic rays are no misfit.
    pull = np.clip(residual / sigma, -OUTLIER_SIGMA, OUTLIER_SIGMA)
    count = known.sum(axis=0)
    steps = np.arange(FIT_BOX) - FIT_BOX // 2
    core = (np.hypot(steps[:, None], steps) <= RADIUS) & (count > 0)
    return float(np.mean(pull.sum(axis=0)[core] ** 2 / count[core])) if core.any() else float("nan")
