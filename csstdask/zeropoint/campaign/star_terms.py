"""Flat-field residuals, colour terms and scatter that the units of a detector and band have in common.

Each unit's own stars have been fitted with priors that are the same for all units. Here the units of a detector and
band are combined, so that the priors count once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.zeropoint.campaign.stars import CampaignStars
from csstdask.zeropoint.fit_stars import FLAT_SIGMA, SCATTER_GUESS

Float = npt.NDArray[np.float64]
Series = npt.NDArray[np.intp]

VARIABLE_FRACTIONS = np.sqrt(np.linspace(0, 1, 6))
"""Fractions of the prior variance of F that change from unit to unit: none to all. They are equally likely a priori,
and mostly large: the units have to show that F is stable."""
MIN_STARS_FOR_SCATTER = 8
"""Stars of a unit from which its scatter enters that of the campaign."""
_MIN_VARIANCE = 1e-8
"""Smallest variance of a star [mag^2]."""
_MIN_RELATIVE_PRECISION = 1e-6
"""Smallest precision of a measured direction of F, in units of that of the prior."""


def flat_terms(
    coefficients: Float, covariance: Float, series: Series, sigma: float = FLAT_SIGMA,
    fractions: npt.ArrayLike = VARIABLE_FRACTIONS,
) -> tuple[Float, Float]:  # fmt: skip
    """Combine the flat-field residual F(x, y) of each unit with those of other units of its detector and band.

    F is what flat fields leave of the large-scale structure, and much of it is stable. The coefficients of a unit are
    a_u = b + d_u, with b ~ N(0, sigma^2 - t^2) common to all units and d_u ~ N(0, t^2). Means and covariances are
    averages over t, weighted by likelihood. Without other units nothing changes.

    Parameters
    ----------
    coefficients : float64 array (u, k)
        Coefficients of the units' own fits, with the prior 0 +- `sigma` [mag].
    covariance : float64 array (u, k, k)
        Their covariances [mag^2].
    series : int array (u,)
        Labels of detector and band.
    sigma : float
        1 sigma of the prior [mag].
    fractions : array-like
        Fractions t^2 / sigma^2 to average over.

    Returns
    -------
    coefficients, covariance : float64 arrays (u, k), (u, k, k)
        Posterior from own stars and those of other units.

    Examples
    --------
    >>> measured, measured_covariance = np.array([[0.005, 0.0]]), 4e-6 * np.eye(2)[None]
    >>> empty, empty_covariance = np.zeros((1, 2)), 1e-4 * np.eye(2)[None]
    >>> a, covariance = np.concatenate([measured, empty]), np.concatenate([measured_covariance, empty_covariance])
    >>> terms, _ = flat_terms(a, covariance, np.zeros(2, dtype=int))
    >>> terms.round(4).tolist()
    [[0.005, 0.0], [0.0019, 0.0]]
    """
    combined, combined_covariance = coefficients.copy(), covariance.copy()
    if coefficients.shape[1]:
        for label in np.unique(series):
            members = np.flatnonzero(series == label)
            combined[members], combined_covariance[members] = _flat_terms_of_series(
                coefficients[members], covariance[members], sigma, np.asarray(fractions, dtype=np.float64)
            )
    return combined, combined_covariance


def _flat_terms_of_series(
    coefficients: Float, covariance: Float, sigma: float, fractions: Float
) -> tuple[Float, Float]:
    """Return F of the units of one detector and band, and its covariances."""
    identity = np.eye(coefficients.shape[1])
    posterior = np.linalg.inv(covariance)
    # The units' own measurements: their posterior without the prior, which has the mean 0.
    size, axes = np.linalg.eigh(posterior - sigma**-2.0 * identity)
    size = np.where(size > _MIN_RELATIVE_PRECISION * sigma**-2.0, size, 0.0)
    moment = np.einsum("uji,ujk,uk->ui", axes, posterior, coefficients) * (size > 0)
    log_likelihoods, means, variances = [], [], []
    for fraction in fractions:
        change, common = fraction * sigma**2, (1 - fraction) * sigma**2
        shrink = 1 / (1 + change * size)
        precision = np.einsum("uij,uj,ukj->ik", axes, size * shrink, axes)
        vector = np.einsum("uij,uj->i", axes, moment * shrink)
        inner = identity + common * precision
        common_covariance = common * np.linalg.inv(inner)
        common_mean = common_covariance @ vector
        log_likelihood = 0.5 * (np.log(shrink).sum() + change * (moment**2 * shrink).sum())
        log_likelihoods.append(log_likelihood + 0.5 * (vector @ common_mean - np.linalg.slogdet(inner)[1]))
        weight = np.einsum("uij,uj,ukj->uik", axes, shrink, axes)
        means.append(change * np.einsum("uij,uj->ui", axes, moment * shrink) + weight @ common_mean)
        variances.append(change * weight + weight @ common_covariance @ weight)
    probability = np.exp(np.array(log_likelihoods) - max(log_likelihoods))
    probability /= probability.sum()
    mean = np.tensordot(probability, np.array(means), 1)
    deviation = np.array(means) - mean
    spread = np.einsum("s,sui,suj->uij", probability, deviation, deviation)
    return mean, np.tensordot(probability, variances, 1) + spread


def color_terms(value: Float, error: Float, series: Series, expected: tuple[float, float]) -> tuple[Float, Float]:
    """Combine the colour terms of the units of each detector and band.

    A filter has one colour term, which a few stars do not determine: units are averaged by precision. The expected
    value, which entered each of their fits, counts once.

    Parameters
    ----------
    value, error : float64 array (u,)
        Colour terms of the units and their errors [mag / mag]; NaN where unknown.
    series : int array (u,)
        Labels of detector and band.
    expected : (float, float)
        Expected colour term and its 1 sigma.

    Returns
    -------
    value, error : float64 array (u,)
        Colour term of the detector and band of each unit, and its error.

    Examples
    --------
    >>> unit = 0.1 * 0.02**2 / (0.02**2 + 0.1**2) + 0.05 * 0.1**2 / (0.02**2 + 0.1**2)  # 0.05 +- 0.02 with prior 0.1
    >>> error = (0.02**-2 + 0.1**-2) ** -0.5
    >>> value, sigma = color_terms(np.full(4, unit), np.full(4, error), np.zeros(4, dtype=int), (0.1, 0.1))
    >>> value.round(4).tolist(), sigma.round(4).tolist()
    ([0.0505, 0.0505, 0.0505, 0.0505], [0.01, 0.01, 0.01, 0.01])
    """
    mean, prior_precision = expected[0], expected[1] ** -2.0
    known = np.isfinite(value) & np.isfinite(error) & (error > 0)
    posterior_precision = np.where(known, error, 1.0) ** -2.0
    precision = np.maximum(np.where(known, posterior_precision - prior_precision, 0.0), 0.0)
    moment = np.where(known, posterior_precision * np.nan_to_num(value) - prior_precision * mean, 0.0)
    n = int(series.max()) + 1
    total = np.bincount(series, precision, n) + prior_precision
    combined = (np.bincount(series, np.where(precision > 0, moment, 0.0), n) + prior_precision * mean) / total
    return combined[series], total[series] ** -0.5


@dataclass(frozen=True)
class CorrectedMagnitudes:
    """Instrumental magnitudes with F(x, y) and colour term applied, and their errors."""

    magnitude: Float
    """(n,) [mag]"""
    variance: Float
    """(n,) Variance of each star, without common errors [mag^2]."""
    shared_error: Float
    """(u,) Error common to all stars of a unit, of F and of the aperture correction [mag]."""
    color_error: Float
    """(u,) Error common to all units of a detector and band, of the colour term [mag]."""
    ref_scatter: Float
    """(n,) Scatter about the reference beyond quoted errors [mag]."""


def correct_magnitudes(stars: CampaignStars, series: Series, expected: tuple[float, float]) -> CorrectedMagnitudes:
    """Apply F(x, y) and the colour term of the detector to the magnitudes of the stars.

    A star of unknown colour gets the mean colour of its unit, or of its detector, and a larger variance.

    Parameters
    ----------
    stars : CampaignStars
        Units with their stars.
    series : int array (u,)
        Labels of detector and band.
    expected : (float, float)
        Expected colour term and its 1 sigma, as used in the fits of the units.

    Returns
    -------
    CorrectedMagnitudes
        Magnitudes of the stars, in their order.
    """
    scatter = reference_scatter(stars)[stars.unit]
    term, error = color_terms(stars.color_term, stars.color_term_err, series, expected)
    error = np.minimum(error * repeated_error(stars, scatter, series), expected[1])
    colors = _fill_colors(stars, series)
    color_variance = np.where(colors.known, 0.0, colors.variance[series[stars.unit]] * (term**2 + error**2)[stars.unit])
    variance = stars.variance.astype(np.float64) + color_variance
    flat, common_flat_error, flat_variance = _apply_flat(stars, series, variance + scatter**2)
    has_color = colors.series_has_color[series]
    return CorrectedMagnitudes(
        magnitude=stars.magnitude + flat + np.where(has_color, term, 0.0)[stars.unit] * colors.color,
        variance=variance + flat_variance,
        shared_error=np.hypot(common_flat_error, stars.correction_err),
        color_error=np.where(has_color, error * np.abs(colors.unit_mean), 0.0),
        ref_scatter=scatter,
    )


@dataclass(frozen=True)
class _Colors:
    """Colours of the stars, with means for unknown ones."""

    color: Float
    """(n,) Colour, or the mean colour [mag]."""
    known: npt.NDArray[np.bool_]
    """(n,) Whether the colour is known."""
    unit_mean: Float
    """(u,) Mean colour of the unit, or of its detector and band [mag]."""
    variance: Float
    """(series,) Variance of the colours of a detector and band [mag^2]."""
    series_has_color: npt.NDArray[np.bool_]
    """(series,) Whether a star of the detector and band has a known colour."""


def _fill_colors(stars: CampaignStars, series: Series) -> _Colors:
    """Replace unknown colours by the mean of the unit, or of its detector and band."""
    color = stars.color.astype(np.float64)
    known = np.isfinite(color)
    unit, star_series = stars.unit[known], series[stars.unit[known]]
    n, n_series = stars.n_units, int(series.max()) + 1
    n_unit, n_of_series = np.bincount(unit, minlength=n), np.bincount(star_series, minlength=n_series)
    series_mean = np.bincount(star_series, color[known], n_series) / np.maximum(n_of_series, 1)
    unit_mean = np.where(n_unit > 0, np.bincount(unit, color[known], n) / np.maximum(n_unit, 1), series_mean[series])
    squares = np.bincount(star_series, (color[known] - series_mean[star_series]) ** 2, n_series)
    return _Colors(
        color=np.where(known, color, unit_mean[stars.unit]),
        known=known,
        unit_mean=unit_mean,
        variance=squares / np.maximum(n_of_series, 1),
        series_has_color=n_of_series > 0,
    )


def _apply_flat(stars: CampaignStars, series: Series, variance: Float) -> tuple[Float, Float, Float]:
    """Evaluate F at the stars.

    Returns F (n,), its error common to each unit (u,), and the remaining variance of each star (n,). The stars of a
    unit have one F, so the error of its weighted mean over them is common to them.
    """
    coefficients, covariance = flat_terms(stars.coefficients, stars.coefficient_covariance, series)
    terms, n = stars.terms.astype(np.float64), stars.n_units
    known = np.isfinite(stars.ref_variance)
    weight = 1 / np.maximum(variance + np.where(known, stars.ref_variance, variance), _MIN_VARIANCE)
    total = np.maximum(np.bincount(stars.unit, weight, n), 1e-300)
    mean = np.zeros((n, terms.shape[1]))
    for k in range(terms.shape[1]):
        mean[:, k] = np.bincount(stars.unit, weight * terms[:, k], n) / total
    common = np.einsum("ui,uij,uj->u", mean, covariance, mean)
    deviation = terms - mean[stars.unit]
    remaining = np.einsum("ni,nij,nj->n", deviation, covariance[stars.unit], deviation)
    flat = (terms * coefficients[stars.unit]).sum(axis=1)
    return flat, np.sqrt(np.maximum(common, 0.0)), np.maximum(remaining, 0.0)


def repeated_error(stars: CampaignStars, scatter: Float, series: Series) -> Float:
    """Return the error of a mean over units of a detector and band, relative to that of independent stars (u,).

    Errors of the catalogue are the same each time a star is observed. With a fraction r of the variance, and k
    observations of each star, the variance of a mean is larger by r k + 1 - r.
    """
    known = np.flatnonzero(np.isfinite(stars.ref_mag) & np.isfinite(stars.ref_variance) & (stars.reference >= 0))
    factor = np.ones(int(series.max()) + 1)
    star_series = series[stars.unit[known]]
    catalogue = stars.ref_variance[known].astype(np.float64) + scatter[known] ** 2
    fraction = catalogue / np.maximum(catalogue + stars.variance[known], 1e-12)
    for label in np.unique(star_series):
        members = star_series == label
        repeats = np.count_nonzero(members) / len(np.unique(stars.reference[known][members]))
        factor[label] = np.sqrt(1 + float(fraction[members].mean()) * (repeats - 1))
    return factor[series]


def reference_scatter(stars: CampaignStars) -> Float:
    """Return the scatter of stars about the reference beyond quoted errors, for the band of each unit [mag] (u,).

    It is the median over units of the band with enough stars, weighted by their numbers.
    """
    scatter = np.full(stars.n_units, SCATTER_GUESS)
    band = stars.band.astype(str)
    for name in np.unique(band):
        members = band == name
        measured = members & np.isfinite(stars.scatter) & (stars.n_used >= MIN_STARS_FOR_SCATTER)
        if measured.any():
            order = np.argsort(stars.scatter[measured], kind="stable")
            cumulative = np.cumsum(stars.n_used[measured][order])
            scatter[members] = stars.scatter[measured][order][np.searchsorted(cumulative, cumulative[-1] / 2)]
    return scatter


def unit_offsets(stars: CampaignStars, corrected: CorrectedMagnitudes, level: Float) -> tuple[Float, Float]:
    """Return the zero points of the units' own stars with F and colour term of their detectors, and their errors.

    Parameters
    ----------
    stars : CampaignStars
        Units with their stars.
    corrected : CorrectedMagnitudes
        Magnitudes of these stars.
    level : float64 array (u,)
        Level that offsets refer to [mag].

    Returns
    -------
    offset, error : float64 array (u,)
        Offsets from `level` and errors [mag]; NaN and inf without reference stars. The error of the colour term is
        left out: it is common to all units of a detector and band.
    """
    n = stars.n_units
    variance = corrected.variance + stars.ref_variance.astype(np.float64) + corrected.ref_scatter**2
    known = np.isfinite(stars.ref_mag) & np.isfinite(variance)
    unit = stars.unit[known]
    weight = stars.weight[known] / np.maximum(variance[known], _MIN_VARIANCE)
    total = np.bincount(unit, weight, n)
    solved = total > 0
    safe_total = np.where(solved, total, 1.0)
    moment = np.bincount(unit, weight * (stars.ref_mag[known] - corrected.magnitude[known]), n)
    offset = moment / safe_total - level
    error = np.hypot(safe_total**-0.5, corrected.shared_error)
    solved &= np.isfinite(offset)
    return np.where(solved, offset, np.nan), np.where(solved, error, np.inf)
