"""What units of a detector and band have in common: F(x, y), colour term, aperture correction, scatter.

Each unit's own stars have been fitted with priors that are the same for all units. Here units of a detector and band
are combined, so that the priors count once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from csstdask.numerics.robust import mad_scale
from csstdask.zeropoint.campaign_stars import CampaignStars
from csstdask.zeropoint.fit_stars import FLAT_SIGMA, SCATTER_GUESS

Float = npt.NDArray[np.float64]
Series = npt.NDArray[np.intp]

CORRECTION_FLOOR = 0.01
"""Least error of an aperture correction that is taken from other units [mag]: the PSF changes with focus."""
LEAST_CORRECTIONS = 3
"""Units with an aperture correction from which their scatter is the error of one that is taken from them."""
FEW_CORRECTIONS_ERROR = 0.03
"""Error of an aperture correction that is taken from fewer units [mag]."""
CHANGE_SHARES = np.sqrt(np.linspace(0, 1, 6))
"""Shares of the prior variance of F that change from unit to unit: none to all. They are equally likely before, and
mostly large: that F is stable has to be shown by the units."""
LEAST_STARS_FOR_SCATTER = 8
"""Stars of a unit from which its scatter is one of the campaign."""


def fill_aperture_corrections(stars: CampaignStars) -> tuple[CampaignStars, Float]:
    """Return the units with the median aperture correction of their detector and band where their own is unknown.

    Units of detectors without any correction keep magnitudes of the aperture. What these lack is common to all of
    them: it is no error of single units, which the joint solution and the memory would average away.

    Returns
    -------
    stars : CampaignStars
        Corrections are 0 where nothing is known of them.
    common_error : float64 array (u,)
        Error of zero points of such units, to be added in the end [mag]; 0 for others.
    """
    correction, error = stars.correction.copy(), stars.correction_err.copy()
    missing = np.isnan(correction)
    series = stars.series
    for one in np.unique(series[missing]):
        members = series == one
        known = correction[members & ~missing]
        if len(known):
            scatter = max(float(mad_scale(known)), CORRECTION_FLOOR)
            correction[members & missing] = np.median(known)
            error[members & missing] = scatter if len(known) >= LEAST_CORRECTIONS else FEW_CORRECTIONS_ERROR
    unknown = np.isnan(correction)
    common_error = np.where(unknown, error, 0.0)
    error[unknown] = 0.0
    change = np.where(missing, np.nan_to_num(correction), 0.0)
    alone = np.sqrt(np.maximum(stars.sigma**2 - stars.correction_err**2, 0.0))
    corrected = replace(
        stars,
        value=stars.value - change,
        sigma=np.where(
            missing & np.isfinite(stars.sigma), np.hypot(np.nan_to_num(alone, posinf=0.0), error), stars.sigma
        ),
        correction=np.nan_to_num(correction),
        correction_err=error,
        magnitude=(stars.magnitude + change[stars.unit]).astype(np.float32),
    )
    return corrected, common_error


def flat_terms(
    coefficients: Float, covariance: Float, series: Series, sigma: float = FLAT_SIGMA
) -> tuple[Float, Float]:
    """Return F of each unit, from its own stars and those of other units of its detector and band.

    F of a detector and band is what flat fields leave of its large-scale structure: much of it is stable. The terms of
    a unit are a_u = b + d_u, b ~ N(0, sigma^2 - t^2) common to all units and d_u ~ N(0, t^2); means and covariances are
    averages over t, weighted by likelihood. Without other units nothing changes.

    Parameters
    ----------
    coefficients : float64 array (u, k)
        Of the units' own fits, with the prior 0 +- `sigma` [mag].
    covariance : float64 array (u, k, k)
        [mag^2]
    series : int array (u,)
        Labels of detector and band.
    sigma : float
        1 sigma of the prior [mag].

    Returns
    -------
    coefficients, covariance
        Of own stars and those of other units.

    Examples
    --------
    >>> alone, of_alone = np.array([[0.005, 0.0]]), 4e-6 * np.eye(2)[None]
    >>> nothing, of_nothing = np.zeros((1, 2)), 1e-4 * np.eye(2)[None]
    >>> a, covariance = np.concatenate([alone, nothing]), np.concatenate([of_alone, of_nothing])
    >>> terms, _ = flat_terms(a, covariance, np.zeros(2, dtype=int))
    >>> terms.round(4).tolist()
    [[0.005, 0.0], [0.0019, 0.0]]
    """
    found, of_found = coefficients.copy(), covariance.copy()
    if coefficients.shape[1]:
        for one in np.unique(series):
            members = np.flatnonzero(series == one)
            found[members], of_found[members] = _flat_terms(coefficients[members], covariance[members], sigma)
    return found, of_found


def _flat_terms(coefficients: Float, covariance: Float, sigma: float) -> tuple[Float, Float]:
    """Return F of the units of one detector and band."""
    k = coefficients.shape[1]
    identity = np.eye(k)
    posterior = np.linalg.inv(covariance)
    # The units' own measurements: their posterior less the prior, which has the mean 0.
    size, axes = np.linalg.eigh(posterior - sigma**-2.0 * identity)
    size = np.where(size > 1e-6 * sigma**-2.0, size, 0.0)
    moment = np.einsum("uji,ujk,uk->ui", axes, posterior, coefficients) * (size > 0)
    logs, means, variances = [], [], []
    for share in CHANGE_SHARES:
        change, common = share * sigma**2, (1 - share) * sigma**2
        shrink = 1 / (1 + change * size)
        precision = np.einsum("uij,uj,ukj->ik", axes, size * shrink, axes)
        vector = np.einsum("uij,uj->i", axes, moment * shrink)
        inner = identity + common * precision
        of_mean = common * np.linalg.inv(inner)
        mean = of_mean @ vector
        log = 0.5 * (np.log(shrink).sum() + change * (moment**2 * shrink).sum())
        logs.append(log + 0.5 * (vector @ mean - np.linalg.slogdet(inner)[1]))
        weight = np.einsum("uij,uj,ukj->uik", axes, shrink, axes)
        means.append(change * np.einsum("uij,uj->ui", axes, moment * shrink) + weight @ mean)
        variances.append(change * weight + weight @ of_mean @ weight)
    share = np.exp(np.array(logs) - max(logs))
    share /= share.sum()
    each = np.array(means)
    average = np.tensordot(share, each, 1)
    apart = each - average
    return average, np.tensordot(share, variances, 1) + np.einsum("s,sui,suj->uij", share, apart, apart)


def color_terms(value: Float, error: Float, series: Series, expected: tuple[float, float]) -> tuple[Float, Float]:
    """Return the colour term of each detector and band from those of its units, and its error, for every unit.

    A filter has one colour term, which a few stars do not determine: units are averaged by precision. What was
    expected, which each of them was joined with, counts once.

    Parameters
    ----------
    value, error : float64 array (u,)
        NaN where unknown.
    series : int array (u,)
        Labels of detector and band.
    expected : (float, float)
        Mean and 1 sigma.

    Examples
    --------
    >>> unit = 0.1 * 0.02**2 / (0.02**2 + 0.1**2) + 0.05 * 0.1**2 / (0.02**2 + 0.1**2)  # 0.05 +- 0.02, joined with 0.1
    >>> error = (0.02**-2 + 0.1**-2) ** -0.5
    >>> found = color_terms(np.full(4, unit), np.full(4, error), np.zeros(4, dtype=int), (0.1, 0.1))
    >>> found[0].round(4).tolist(), found[1].round(4).tolist()
    ([0.0505, 0.0505, 0.0505, 0.0505], [0.01, 0.01, 0.01, 0.01])
    """
    mean, precision = expected[0], expected[1] ** -2.0
    known = np.isfinite(value) & np.isfinite(error) & (error > 0)
    own = np.where(known, np.where(known, error, 1.0) ** -2.0 - precision, 0.0)
    own = np.maximum(own, 0.0)
    moment = np.where(known, np.where(known, error, 1.0) ** -2.0 * np.nan_to_num(value) - precision * mean, 0.0)
    n = int(series.max()) + 1
    total = np.bincount(series, own, n) + precision
    found = (np.bincount(series, np.where(own > 0, moment, 0.0), n) + precision * mean) / total
    return found[series], total[series] ** -0.5


@dataclass(frozen=True)
class CorrectedMagnitudes:
    """Instrumental magnitudes with F(x, y) and colour term, and their errors."""

    magnitude: Float
    """(n,) [mag]"""
    variance: Float
    """(n,) Of each star alone [mag^2]."""
    shared_error: Float
    """(u,) Common to all stars of a unit: of F and of the aperture correction [mag]."""
    color_error: Float
    """(u,) Common to all units of a detector and band: of the colour term [mag]."""
    ref_scatter: Float
    """(n,) Scatter against the reference beyond quoted errors [mag]."""


def correct_magnitudes(stars: CampaignStars, series: Series, expected: tuple[float, float]) -> CorrectedMagnitudes:
    """Return magnitudes with F(x, y) and the colour term of their detector.

    A star of unknown colour is given the mean colour of its unit, or of its detector.

    Parameters
    ----------
    stars : CampaignStars
    series : int array (u,)
        Labels of detector and band.
    expected : (float, float)
        Mean and 1 sigma of the colour term, as the units were fitted with.
    """
    scatter = reference_scatter(stars)[stars.unit]
    term, error = color_terms(stars.color_term, stars.color_term_err, series, expected)
    error = np.minimum(error * repeated_error(stars, scatter, series), expected[1])
    color = stars.color.astype(np.float64)
    known = np.isfinite(color)
    unit, of_series = stars.unit[known], series[stars.unit[known]]
    n, m = stars.n_units, int(series.max()) + 1
    in_unit, in_series = np.bincount(unit, minlength=n), np.bincount(of_series, minlength=m)
    of_detector = np.bincount(of_series, color[known], m) / np.maximum(in_series, 1)
    mean = np.where(in_unit > 0, np.bincount(unit, color[known], n) / np.maximum(in_unit, 1), of_detector[series])
    spread = np.bincount(of_series, (color[known] - of_detector[of_series]) ** 2, m) / np.maximum(in_series, 1)
    used = np.where(known, color, mean[stars.unit])
    guessed = np.where(known, 0.0, spread[series[stars.unit]] * (term**2 + error**2)[stars.unit])
    colored = (in_series > 0)[series]
    variance = stars.variance.astype(np.float64) + guessed
    flat, common, own = _flat(stars, series, variance + scatter**2)
    return CorrectedMagnitudes(
        magnitude=stars.magnitude + flat + np.where(colored, term, 0.0)[stars.unit] * used,
        variance=variance + own,
        shared_error=np.hypot(common, stars.correction_err),
        color_error=np.where(colored, error * np.abs(mean), 0.0),
        ref_scatter=scatter,
    )


def _flat(stars: CampaignStars, series: Series, variance: Float) -> tuple[Float, Float, Float]:
    """Return F at the stars (n,), its error common to each unit (u,), and the variance that is left to each star (n,).

    The error of the weighted mean of F over the stars of a unit is common to them: they have one F.
    """
    coefficients, covariance = flat_terms(stars.coefficients, stars.coefficient_covariance, series)
    terms, n = stars.terms.astype(np.float64), stars.n_units
    known = np.isfinite(stars.ref_variance)
    weight = 1 / np.maximum(variance + np.where(known, stars.ref_variance, variance), 1e-8)
    total = np.maximum(np.bincount(stars.unit, weight, n), 1e-300)
    mean = np.zeros((n, terms.shape[1]))
    for k in range(terms.shape[1]):
        mean[:, k] = np.bincount(stars.unit, weight * terms[:, k], n) / total
    common = np.einsum("ui,uij,uj->u", mean, covariance, mean)
    apart = terms - mean[stars.unit]
    own = np.einsum("ni,nij,nj->n", apart, covariance[stars.unit], apart)
    flat = (terms * coefficients[stars.unit]).sum(axis=1)
    return flat, np.sqrt(np.maximum(common, 0.0)), np.maximum(own, 0.0)


def repeated_error(stars: CampaignStars, scatter: Float, series: Series) -> Float:
    """Return the error of a mean over units of a detector and band, over that of independent stars (u,).

    Errors of the catalogue are the same each time a star is observed: with a share r of the variance, and k
    observations of each star, the variance of a mean is larger by r k + 1 - r.
    """
    known = np.flatnonzero(np.isfinite(stars.ref_mag) & np.isfinite(stars.ref_variance) & (stars.reference >= 0))
    factor = np.ones(int(series.max()) + 1)
    of_star = series[stars.unit[known]]
    catalogue = stars.ref_variance[known].astype(np.float64) + scatter[known] ** 2
    share = catalogue / np.maximum(catalogue + stars.variance[known], 1e-12)
    for one in np.unique(of_star):
        some = of_star == one
        repeats = np.count_nonzero(some) / len(np.unique(stars.reference[known][some]))
        factor[one] = np.sqrt(1 + float(share[some].mean()) * (repeats - 1))
    return factor[series]


def reference_scatter(stars: CampaignStars) -> Float:
    """Return the scatter of stars against the reference beyond quoted errors, of each unit's band [mag] (u,).

    It is the median over units of the band with enough stars, weighted by their numbers.
    """
    found = np.full(stars.n_units, SCATTER_GUESS)
    band = stars.band.astype(str)
    for name in np.unique(band):
        members = band == name
        several = members & np.isfinite(stars.scatter) & (stars.n_used >= LEAST_STARS_FOR_SCATTER)
        if several.any():
            order = np.argsort(stars.scatter[several], kind="stable")
            reached = np.cumsum(stars.n_used[several][order])
            found[members] = stars.scatter[several][order][np.searchsorted(reached, reached[-1] / 2)]
    return found


def unit_offsets(stars: CampaignStars, corrected: CorrectedMagnitudes, level: Float) -> tuple[Float, Float]:
    """Return the zero points of the units' own stars with F and colour term of their detectors, and their errors (u,).

    They are offsets against `level`; NaN and inf without reference stars. The error of the colour term is left out: it
    is common to all units of a detector and band.
    """
    n = stars.n_units
    variance = corrected.variance + stars.ref_variance.astype(np.float64) + corrected.ref_scatter**2
    known = np.isfinite(stars.ref_mag) & np.isfinite(variance)
    unit = stars.unit[known]
    weight = stars.weight[known] / np.maximum(variance[known], 1e-8)
    total = np.bincount(unit, weight, n)
    solved = total > 0
    safe = np.where(solved, total, 1.0)
    offset = np.bincount(unit, weight * (stars.ref_mag[known] - corrected.magnitude[known]), n) / safe - level
    error = np.hypot(safe**-0.5, corrected.shared_error)
    solved &= np.isfinite(offset)
    return np.where(solved, offset, np.nan), np.where(solved, error, np.inf)
