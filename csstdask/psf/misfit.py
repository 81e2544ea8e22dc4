r"""Whether the stars of a detector look like the PSF that was fitted to them.

The chi^2 of single stars does not tell: a wrong PSF adds little to the noise of several hundred pixels, less than the
error of their noise model. What it adds is the same in all stars, though, so that it stands out in their sum. With the
residuals :math:`r_{ip}` of `n` stars in pixel `p` of their stamps, once the PSF of the field has been laid on each with
a separate flux, sky and position,

.. math:: Q = \left\langle \frac{1}{n_p} \left(\sum_i r_{ip} / \sigma_{ip}\right)^2 \right\rangle_p

over the pixels within `REACH` of the centre has the mean 1 if all that differs is noise: it is a chi^2 per degree of
freedom of the stacked residuals. Sigmas of the PSF are multiplied by :math:`\sqrt{\max(1, Q)}`, but for those of
``empirical``, which allow for any smooth PSF from the beginning.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csstdask.psf.field import PsfField
from csstdask.psf.fit_star import FIT_BOX, fit_stars

Float = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.float32]

#: Q of a PSF that stars do not look like: six standard deviations, ``sqrt(2 / 81)`` each, above 1.
MISFIT = 2.0
#: Distance from the centre within which residuals are stacked [pixel].
REACH = 5.0
#: Stars that are stacked, the brightest: more cost time and say little more.
_MOST = 300
#: 1 sigma of positions that are fitted anew [pixel], and the share of the light to which any PSF is known, as in the
#: repair of stars.
_POSITION_SIGMA, _TOLERANCE = 0.1, 0.003
#: Largest pull of a pixel that counts: neighbours and cosmic rays are no misfit.
_LARGEST = 5.0


def stacked_misfit(field: PsfField, pixels: Pixels, variance: Pixels, x: Float, y: Float) -> float:
    """Return Q of the stars of a detector; NaN without stars.

    Parameters
    ----------
    field : PsfField
        Fitted to them.
    pixels, variance : float32 arrays (n, y, x)
        Stamps of stars; variance is inf where unknown.
    x, y : float64 arrays (n,)
        Positions [pixel].
    """
    middle, half = pixels.shape[-1] // 2, FIT_BOX // 2
    window = (slice(None), *2 * (slice(middle - half, middle + half),))
    known = np.isfinite(variance) & (variance > 0)
    error = np.sqrt(np.where(known, variance, np.inf))
    bright = np.argsort(-np.max(np.where(known, pixels, 0) / error, axis=(1, 2), initial=0.0), kind="stable")[:_MOST]
    fit = fit_stars(field, pixels[bright], variance[bright], x[bright], y[bright],
                    position_sigma=_POSITION_SIGMA, rigid=True)  # fmt: skip
    seen = known[bright][window]
    residual = np.where(seen, pixels[bright][window] - fit.light, 0)
    spread = np.hypot(np.where(seen, error[bright][window], 1), _TOLERANCE * (fit.light - fit.sky[:, None, None]))
    pull = np.clip(residual / spread, -_LARGEST, _LARGEST)
    count = seen.sum(axis=0)
    steps = np.arange(FIT_BOX) - half
    core = (np.hypot(steps[:, None], steps) <= REACH) & (count > 0)
    return float(np.mean(pull.sum(axis=0)[core] ** 2 / count[core])) if core.any() else float("nan")
