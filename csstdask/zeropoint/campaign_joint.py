"""Joint solution of the zero points of a campaign: its inputs from the units, and its result as offsets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse.linalg import spsolve

from csstdask.zeropoint.campaign_stars import CampaignStars
from csstdask.zeropoint.campaign_terms import CorrectedMagnitudes, unit_offsets
from csstdask.zeropoint.result import ALARM_SIGMA

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Series = npt.NDArray[np.intp]

SMALL_FLOOR = 0.001
"""Least fitted term of a unit [mag]."""
SMALL_CEILING = 0.3
"""Largest fitted term of a unit [mag]."""
SMALL_ROUNDS = 10
"""Alternations of zero points and their small terms."""
LIKE_OTHERS = 4.0
"""Units that the median of all detectors counts as in the scatter of one of them: a few units do not determine it."""
LARGEST_LEVERAGE = 0.8
"""Of a unit on its own exposure and detector: beyond, its residual does not measure its scatter."""
BOUND = 3.0
"""Residuals beyond count as this many sigma: a wrong zero point does not make all terms of its detector large."""


@dataclass(frozen=True)
class JointOffsets:
    """Zero points of the joint solution as offsets against a level, all (u,)."""

    offset: Float
    """NaN where there is none."""
    sigma: Float
    strained: npt.NDArray[np.bool_]
    """Whether a unit deviates from its exposure and its detector by more than is expected of it: it is biased."""
    n_stars: Int
    """Observations of the exposure that took part."""
    metrics: dict[str, float | int | None]


def joint_offsets(
    stars: CampaignStars,
    corrected: CorrectedMagnitudes,
    level: Float,
    *,
    radius: float,
    epoch_days: float,
    detector_sigma: float,
    grey_sigma: float,
    small_sigma: float,
) -> JointOffsets:
    """Return the joint solution of all units.

    Parameters
    ----------
    stars : CampaignStars
    corrected : CorrectedMagnitudes
        Of these stars.
    level : float64 array (u,)
        What offsets are against [mag]; NaN: the unit takes no part.
    radius : float
        Largest distance of two images of one star that is not in the reference [arcsec].
    epoch_days : float
        Time over which the grey term of a detector is constant [day].
    detector_sigma, grey_sigma, small_sigma : float
        1 sigma of the constant of a detector, of its term in an epoch, and of the term of a unit [mag]. The last one
        is where its fit to the units of each detector starts from.
    """
    from csstdask.zeropoint.joint import JointSettings, StarObservations, solve_joint  # noqa: PLC0415  Numba is slow

    usable = np.flatnonzero(np.isfinite(level[stars.unit]))
    unit, n = stars.unit[usable], stars.n_units
    if not len(usable):
        nothing = np.full(n, np.nan), np.full(n, np.inf), np.zeros(n, bool), np.zeros(n, np.int64)
        return JointOffsets(*nothing, {"n_unanchored": 0, "n_unanchored_components": 0})
    label = _labels(stars, usable, radius)
    reference, variance = np.full(label.max() + 1, np.nan), np.full(label.max() + 1, np.inf)
    scatter = np.zeros(label.max() + 1)
    known = np.isfinite(stars.ref_mag[usable]) & np.isfinite(stars.ref_variance[usable])
    reference[label[known]] = stars.ref_mag[usable][known]
    variance[label[known]] = stars.ref_variance[usable][known]
    scatter[label[known]] = corrected.ref_scatter[usable][known]
    exposure, series = np.unique(stars.exposure.astype(str), return_inverse=True)[1].ravel(), stars.series
    epoch = np.floor(np.where(np.isfinite(stars.days), stars.days, 0.0) / epoch_days).astype(np.int64)
    small = small_sigmas(*unit_offsets(stars, corrected, level), exposure, series, epoch, small_sigma)
    found = solve_joint(
        StarObservations(
            unit=unit,
            star=label,
            # The zero point that is solved for is the offset: its level belongs to the observation.
            magnitude=corrected.magnitude[usable] + level[unit],
            variance=corrected.variance[usable],
        ),
        reference,
        variance,
        exposure,
        series,
        epoch,
        JointSettings(detector_sigma=detector_sigma, grey_sigma=grey_sigma),
        unit_sigma=corrected.shared_error,
        small_sigma=small,
        reference_scatter=scatter,
    )
    lost = (np.bincount(unit, minlength=n) > 0) & ~found.anchored
    strained = np.abs(found.small + found.shared) > ALARM_SIGMA * np.hypot(small, corrected.shared_error)
    # The error of a colour term is common to all units of its detector.
    sigma = np.hypot(found.sigma, corrected.color_error)
    # A detector whose constant nothing but its prior determines is known no better than without the solution.
    known = found.anchored & np.isfinite(found.value) & np.isfinite(level) & (sigma < detector_sigma)
    metrics: dict[str, float | int | None] = {
        "n_unanchored": int(lost.sum()),
        "n_unanchored_components": len(np.unique(found.component[lost])),
        "joint_scatter": float(found.scatter),
        "joint_small": float(np.median(small)),
        "joint_chi2": float(found.chi2),
        "joint_dof": float(found.dof),
        "joint_iterations": int(found.n_iterations),
        "n_strained": int((known & strained).sum()),
    }
    return JointOffsets(
        np.where(known, found.value, np.nan),
        np.where(known, sigma, np.inf),
        strained,
        np.bincount(exposure, found.n_stars).astype(np.int64)[exposure],
        metrics,
    )


def _labels(stars: CampaignStars, rows: npt.NDArray[np.intp], radius: float) -> Int32:
    """Return a label for each star; images of a star in another band are another star."""
    from csstdask.zeropoint.joint import identify_stars  # noqa: PLC0415

    label, first = np.zeros(len(rows), dtype=np.int32), 0
    band = stars.band[stars.unit[rows]].astype(str)
    for name in np.unique(band):
        chosen = np.flatnonzero(band == name)
        some = rows[chosen]
        found = identify_stars(stars.ra[some], stars.dec[some], stars.reference[some], stars.unit[some], radius=radius)
        label[chosen] = first + found
        first += int(found.max()) + 1
    return label


def small_sigmas(offset: Float, sigma: Float, exposure: Series, series: Series, epoch: Int, start: float) -> Float:
    """Return the scatter of units about their exposures and detectors, for each detector and band, by likelihood.

    Offsets are e(exposure) + g(series, epoch) + s with s ~ N(0, small^2) and an error `sigma`. In the likelihood of a
    detector the median of all detectors counts as some more units. Leverages are those of a table without gaps.

    Parameters
    ----------
    offset, sigma : float64 array (u,)
        Zero points of single units and their errors [mag]; NaN where unknown.
    exposure, series, epoch : int array (u,)
        Labels of the units.
    start : float
        Scatter that is expected [mag].

    Returns
    -------
    float64 array (u,)
        Scatter of the unit's series [mag], at least 1 mmag.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> exposure, series = np.repeat(np.arange(60), 4), np.tile(np.arange(4), 60)
    >>> offset = rng.normal(0, np.where(series == 0, 0.02, 0.004)) + rng.normal(0, 0.1, 60)[exposure]
    >>> offset += rng.normal(0, 0.002, 240)
    >>> found = small_sigmas(offset, np.full(240, 0.002), exposure, series, np.zeros(240, int), 0.002)
    >>> found[:4].round(3).tolist()
    [0.019, 0.003, 0.004, 0.005]
    """
    small = np.full(len(offset), max(start, SMALL_FLOOR))
    rows = np.flatnonzero(np.isfinite(offset) & np.isfinite(sigma))
    if not len(rows):
        return small
    exposures, of_exposure = np.unique(exposure[rows], return_inverse=True)
    greys, grey = np.unique(epoch[rows] * (int(series.max()) + 1) + series[rows], return_inverse=True)
    n, m = len(exposures), len(greys)
    columns = np.column_stack([of_exposure, n + grey]).ravel()
    design = sp.csr_array((np.ones(2 * len(rows)), columns, 2 * np.arange(len(rows) + 1)), shape=(len(rows), n + m))
    ridge = np.concatenate(
        [np.full(n, 1e-6), np.full(m, 1.0)]
    )  # [mag^-2]: what is common to all is left to one of them
    quoted, fitted, middle = sigma[rows] ** 2, small[rows], max(start, SMALL_FLOOR)
    of_series: dict[int, float] = {}
    for _ in range(SMALL_ROUNDS):
        weight = 1 / (quoted + fitted**2)
        matrix = (design.T @ sp.diags_array(weight) @ design + sp.diags_array(ridge)).tocsc()
        residual = offset[rows] - design @ spsolve(matrix, design.T @ (weight * offset[rows]))
        leverage = weight / np.bincount(of_exposure, weight)[of_exposure] + weight / np.bincount(grey, weight)[grey]
        counted = leverage < LARGEST_LEVERAGE
        square = residual**2 / (1 - np.where(counted, leverage, 0.0))
        of_series = {}
        for one in np.unique(series[rows]):
            some = (series[rows] == one) & counted
            of_series[one] = _likeliest(square[some], quoted[some], middle)
        middle = float(np.median(list(of_series.values())))
        for one, value in of_series.items():
            small[series == one] = value
        fitted = small[rows]
    return np.where(np.isin(series, list(of_series)), small, middle)


def _likeliest(square: Float, quoted: Float, start: float) -> float:
    """Return the scatter of greatest likelihood of squared residuals, by bisection of the derivative."""

    def slope(variance: float) -> float:
        total = quoted + variance
        bounded = np.minimum(square, BOUND**2 * total)
        return float(((bounded - total) / total**2).sum()) + LIKE_OTHERS * (start**2 - variance) / variance**2

    low, high = np.log(SMALL_FLOOR), np.log(SMALL_CEILING)
    if slope(SMALL_FLOOR**2) <= 0:
        return SMALL_FLOOR
    for _ in range(18):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(float(np.exp(2 * middle))) > 0 else (low, middle)
    return float(np.exp((low + high) / 2))
