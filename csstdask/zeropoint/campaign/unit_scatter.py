"""Scatter of units about the zero points of their exposures and detectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse.linalg import spsolve

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Series = npt.NDArray[np.intp]

SCATTER_FLOOR = 0.001
"""Smallest scatter of units [mag]."""
SCATTER_CEILING = 0.3
"""Largest scatter of units [mag]."""
N_ROUNDS = 10
"""Alternations of zero points and scatter."""
N_PSEUDO_UNITS = 4.0
"""Units that the median over all detectors counts as in the scatter of one: a few units do not determine it."""
MAX_LEVERAGE = 0.8
"""Largest leverage of a unit on its own exposure and detector for its residual to measure the scatter."""
MAX_RESIDUAL = 3.0
"""Limit of residuals [sigma]: a wrong zero point must not enlarge the scatter of its detector."""
_EXPOSURE_RIDGE = 1e-6
"""Prior precision of an exposure term [mag^-2]."""
_GREY_RIDGE = 1.0
"""Prior precision of a grey term [mag^-2]: a level common to all belongs to the exposures."""
_BISECTIONS = 18
"""Halvings of the logarithmic interval of the scatter: an accuracy of 2e-5."""


def small_sigmas(offset: Float, sigma: Float, exposure: Series, series: Series, epoch: Int, start: float) -> Float:
    """Return the scatter of units about their exposures and detectors, for each detector and band, by likelihood.

    Offsets are e(exposure) + g(series, epoch) + s with s ~ N(0, small^2) and an error `sigma`. In the likelihood of a
    detector the median over all detectors counts as a few more units. Leverages are those of a complete table.

    Parameters
    ----------
    offset, sigma : float64 array (u,)
        Zero points of single units and their errors [mag]; NaN where unknown.
    exposure, series, epoch : int array (u,)
        Labels of the units.
    start : float
        Expected scatter [mag].

    Returns
    -------
    float64 array (u,)
        Scatter of the series of each unit [mag], at least 1 mmag.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> exposure, series = np.repeat(np.arange(60), 4), np.tile(np.arange(4), 60)
    >>> offset = rng.normal(0, np.where(series == 0, 0.02, 0.004)) + rng.normal(0, 0.1, 60)[exposure]
    >>> offset += rng.normal(0, 0.002, 240)
    >>> small = small_sigmas(offset, np.full(240, 0.002), exposure, series, np.zeros(240, int), 0.002)
    >>> small[:4].round(3).tolist()
    [0.019, 0.003, 0.004, 0.005]
    """
    small = np.full(len(offset), max(start, SCATTER_FLOOR))
    rows = np.flatnonzero(np.isfinite(offset) & np.isfinite(sigma))
    if not len(rows):
        return small
    exposures, exposure_number = np.unique(exposure[rows], return_inverse=True)
    greys, grey = np.unique(epoch[rows] * (int(series.max()) + 1) + series[rows], return_inverse=True)
    n, m = len(exposures), len(greys)
    columns = np.column_stack([exposure_number, n + grey]).ravel()
    design = sp.csr_array((np.ones(2 * len(rows)), columns, 2 * np.arange(len(rows) + 1)), shape=(len(rows), n + m))
    ridge = np.concatenate([np.full(n, _EXPOSURE_RIDGE), np.full(m, _GREY_RIDGE)])
    quoted, fitted, median = sigma[rows] ** 2, small[rows], max(start, SCATTER_FLOOR)
    by_series: dict[int, float] = {}
    for _ in range(N_ROUNDS):
        weight = 1 / (quoted + fitted**2)
        matrix = (design.T @ sp.diags_array(weight) @ design + sp.diags_array(ridge)).tocsc()
        residual = offset[rows] - design @ spsolve(matrix, design.T @ (weight * offset[rows]))
        leverage = weight / np.bincount(exposure_number, weight)[exposure_number]
        leverage = leverage + weight / np.bincount(grey, weight)[grey]
        counted = leverage < MAX_LEVERAGE
        square = residual**2 / (1 - np.where(counted, leverage, 0.0))
        by_series = {}
        for label in np.unique(series[rows]):
            members = (series[rows] == label) & counted
            by_series[label] = _most_likely_scatter(square[members], quoted[members], median)
        median = float(np.median(list(by_series.values())))
        for label, value in by_series.items():
            small[series == label] = value
        fitted = small[rows]
    return np.where(np.isin(series, list(by_series)), small, median)


def _most_likely_scatter(square: Float, quoted: Float, expected: float) -> float:
    """Return the scatter that maximises the likelihood of squared residuals, by bisection of the derivative."""

    def slope(variance: float) -> float:
        total = quoted + variance
        bounded = np.minimum(square, MAX_RESIDUAL**2 * total)
        pseudo_units = N_PSEUDO_UNITS * (expected**2 - variance) / variance**2
        return float(((bounded - total) / total**2).sum()) + pseudo_units

    low, high = np.log(SCATTER_FLOOR), np.log(SCATTER_CEILING)
    if slope(SCATTER_FLOOR**2) <= 0:
        return SCATTER_FLOOR
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(float(np.exp(2 * middle))) > 0 else (low, middle)
    return float(np.exp((low + high) / 2))
