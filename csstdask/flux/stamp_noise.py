"""Noise and background of a rectified spectrum."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csstdask.numerics.robust import huber_weights, mad_scale

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

BACKGROUND_COLUMNS = 8
"""Columns on each side that take part in the background of a column."""
_MIN_BACKGROUND_PIXELS = 8
"""Background pixels from which the noise is measured; with fewer, the star's own rows are used."""
_MIN_BRIGHT_PIXELS = 20
"""Bright pixels from which the noise of the light is measured."""


def difference_noise(data: Float, background: Bool, usable: Bool) -> float:
    """Return the noise from differences of neighbouring columns, of background rows where there are enough."""
    pairs = usable[:, 1:] & usable[:, :-1]
    if background.sum() > _MIN_BACKGROUND_PIXELS:
        pairs = background[:, 1:] & background[:, :-1]
    scale = float(mad_scale(np.where(pairs, np.diff(data, axis=1), np.nan), center=0.0)) / np.sqrt(2)
    return scale if scale > 0 else max(1e-3 * float(np.abs(data).max(initial=0.0)), 1e-30)


def fit_background(data: Float, variance: Float, background: Bool, distance: Float) -> tuple[Float, Float, Float, Bool]:
    """Fit level + slope * distance to the background rows of each column together with its neighbours.

    Parameters
    ----------
    data, variance : float64 arrays (y, x)
        Pixels and their variance.
    background : bool array (y, x)
        Usable pixels without light of the star.
    distance : float64 array (y, x)
        Distance from the trace [pixel].

    Returns
    -------
    level, slope, level_variance : float64 arrays (x,)
        Background at the trace, its change per row, and the variance of the level.
    fitted : bool array (x,)
        Columns with background pixels.
    """
    n = data.shape[1]
    typical = float(np.median(variance[background])) if background.any() else 1.0
    # weights that follow the noise of single pixels would bias the mean
    variance = np.where((variance > 0.5 * typical) & (variance < 2 * typical), typical, variance)
    weight = np.where(background, 1 / variance, 0.0)
    level, slope = np.zeros(n), np.zeros(n)
    scatter = 1.0
    robust = weight
    for step in range(6):
        sums = [_running_sum(np.sum(robust * distance**k, axis=0)) for k in range(3)]
        tops = [_running_sum(np.sum(robust * data * distance**k, axis=0)) for k in range(2)]
        determinant = sums[0] * sums[2] - sums[1] ** 2
        two_sided = determinant > 1e-6 * sums[0] * sums[2]
        safe = np.where(two_sided, determinant, 1.0)
        fitted = sums[0] > 0
        mean = np.where(fitted, tops[0] / np.where(fitted, sums[0], 1.0), 0.0)
        level = np.where(two_sided, (tops[0] * sums[2] - tops[1] * sums[1]) / safe, mean)
        slope = np.where(two_sided, (sums[0] * tops[1] - sums[1] * tops[0]) / safe, 0.0)
        level_variance = np.where(two_sided, sums[2] / safe, 1 / np.where(fitted, sums[0], np.inf))
        z = (data - level - slope * distance) / np.sqrt(variance)
        scatter = float(mad_scale(np.where(background, z, np.nan), center=0.0, floor=1.0 if step else 0.0) or 1.0)
        robust = weight * np.where(np.abs(z) < 5 * scatter, huber_weights(z / scatter), 0.0)
    return level, slope, level_variance * max(scatter, 1.0) ** 2, fitted


def _running_sum(values: Float) -> Float:
    """Return sums over each column and its neighbours."""
    return np.convolve(values, np.ones(2 * BACKGROUND_COLUMNS + 1), mode="full")[BACKGROUND_COLUMNS:-BACKGROUND_COLUMNS]


def estimate_variance(data: Float, model: Float, background: Bool, star: Bool) -> Float:
    """Estimate variances from residuals: a constant, plus a part that grows with the light.

    Parameters
    ----------
    data, model : float64 arrays (y, x)
        Pixels without background, and the model of the star.
    background, star : bool arrays (y, x)
        Usable pixels beyond and within the half width.
    """
    constant = difference_noise(data, background, background | star) ** 2
    bright = star & (model > 3 * np.sqrt(constant))
    factor = 0.0
    if bright.sum() > _MIN_BRIGHT_PIXELS:
        scaled = (data - model)[bright] / np.sqrt(model[bright])
        factor = max(0.0, float(mad_scale(scaled, center=0.0)) ** 2 - constant / float(np.median(model[bright])))
    return np.asarray(constant + factor * model)


def smooth_variance(variance: Float, model: Float, background: Bool, star: Bool) -> Float:
    """Replace given variances by a constant plus Poisson noise of the model.

    Weights that follow the noise of single pixels would bias the counts. Variances that differ from the smooth ones by
    more than a factor of two (bad pixels) are kept.
    """
    dark = background
    if background.sum() <= _MIN_BACKGROUND_PIXELS:
        dark = star & (model <= np.quantile(model[star], 0.2)) if star.any() else star
    if not dark.any():
        return variance
    floor = float(np.median(variance[dark]))
    bright = star & (model > floor**0.5) & (model > 0)
    factor = 0.0
    if bright.sum() > _MIN_BRIGHT_PIXELS:
        factor = max(0.0, float(np.median((variance[bright] - floor) / model[bright])))
    smooth = floor + factor * model
    return np.where((variance > 2 * smooth) | (variance < 0.5 * smooth), variance, smooth)
