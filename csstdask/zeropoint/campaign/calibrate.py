"""Zero points of all units of a campaign, from arrays.

1. Each unit's own stars have given a zero point and its error (`csstdask.zeropoint.fit_stars`). Flat-field residual
   F(x, y) and colour term are combined over the units of a detector and band (`star_terms`).
2. The joint solution ties units together by common stars, exposures and epochs (`joint_offsets`).
3. The prior of a unit is what is known without its stars: a network that reads telemetry and earlier zero points, a
   local level of the earlier zero points alone, or the nominal value. Its error is scaled by its past errors (`prior`).
4. Stars and prior are combined by precision. Where they contradict each other, stars count alone if there are enough.

Internally zero points are offsets from a reference level, so that bands and detectors can be compared: the nominal
zero point, or the median of the solved ones of a detector and band where the camera's description has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from csstdask.zeropoint.campaign.aperture_corrections import fill_aperture_corrections
from csstdask.zeropoint.campaign.joint_offsets import JointOffsets, joint_offsets
from csstdask.zeropoint.campaign.prior import CampaignPrior, campaign_prior
from csstdask.zeropoint.campaign.star_terms import correct_magnitudes
from csstdask.zeropoint.campaign.stars import CampaignStars
from csstdask.zeropoint.fit_stars import COLOR_TERM
from csstdask.zeropoint.prior import NOMINAL_SIGMA
from csstdask.zeropoint.result import ALARM_SIGMA

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

MIN_STARS_TO_OVERRULE = 5
"""Used stars from which a zero point counts where the joint solution or the prior contradicts it."""
_MAX_CORRELATION = 0.999
"""Largest covariance of stars and prior, in units of the smaller of their variances."""


@dataclass(frozen=True)
class CampaignSettings:
    """Settings that decide the zero points of a campaign."""

    match_radius: float = 1.0
    """Largest distance of two images of one star that is not in the reference [arcsec]."""
    epoch_days: float = 30.0
    """Time over which the grey term of a detector is constant [day]."""
    detector_sigma: float = NOMINAL_SIGMA
    """1 sigma of the constant of a detector about its nominal zero point [mag]."""
    grey_sigma: float = 0.02
    """1 sigma of the term of a detector in an epoch [mag]."""
    small_sigma: float = 0.002
    """1 sigma of the term of a unit beyond those of its exposure and its detector [mag]. This is the initial value; the
    units of each detector and band determine their own."""
    color_term: tuple[float, float] = COLOR_TERM
    """Expected colour term and its 1 sigma, as used in the fits of the units [mag / mag]."""
    model: str = "default"
    """Network of the prior; ``none``: no network."""
    device: str | None = None
    """``cpu`` or ``cuda``; by default chosen automatically."""


@dataclass(frozen=True)
class CampaignZeroPoints:
    """Zero points of the units of a campaign; arrays (u,) [mag]."""

    value: Float
    """Zero point; NaN where nothing is known."""
    sigma: Float
    """Error; inf where nothing is known."""
    method: npt.NDArray[np.str_]
    """solve: stars, of the unit or of others that are tied to it; joined: stars and prior; prior: network; borrowed:
    earlier zero points; nominal: the camera's description."""
    correction: Float
    """Correction from the aperture to the total light of a star, to which the zero point refers; 0 where unknown."""
    prior: Float
    """Prediction without the unit's stars, by the network or from earlier zero points; NaN where neither exists."""
    prior_sigma: Float
    """Error of `prior`; inf where it does not exist."""
    joint: Float
    """Joint solution; NaN where it gives none."""
    joint_sigma: Float
    """Error of `joint`."""
    metrics: dict[str, float | int | None] = field(default_factory=dict)
    """Numbers that describe the solution."""


def calibrate_campaign(
    stars: CampaignStars, telemetry: Mapping[str, npt.ArrayLike] | None = None, settings: CampaignSettings | None = None
) -> CampaignZeroPoints:
    """Determine the zero points of all units of a campaign.

    Parameters
    ----------
    stars : CampaignStars
        Units with their stars, in any fixed order.
    telemetry : mapping of str to array-like (u,), optional
        Conditions of the exposure of each unit; NaN in gaps.
    settings : CampaignSettings, optional
        Priors, match radius and network.

    Returns
    -------
    CampaignZeroPoints
        Zero points of the units, in their order.

    Examples
    --------
    >>> from csstdask.zeropoint.matched_stars import MatchedStars
    >>> none, numbers = np.zeros(0), np.zeros(0, dtype=np.int64)
    >>> unit = MatchedStars(
    ...     id=numbers, reference=numbers, x=none, y=none, ra=none, dec=none, inst_mag=none, inst_mag_err=none,
    ...     ref_mag=none, ref_mag_err=none, color=none, weight=none, residual=none, coefficients=none, exposure="1",
    ...     detector=7, band="i", days=9000.0, shape=(512, 512), nominal=25.85, value=np.nan, sigma=np.inf,
    ...     correction_err=0.0, color_term=np.nan, color_term_err=np.nan, scatter=np.nan, n_matched=0, n_used=0,
    ... )
    >>> result = calibrate_campaign(CampaignStars.from_unit(unit, 500))
    >>> result.value.tolist(), result.method.tolist()
    ([25.85], ['nominal'])
    """
    settings = settings or CampaignSettings()
    stars, common_error = fill_aperture_corrections(stars)
    series = stars.series
    level = reference_level(stars.nominal, stars.value, series)
    solved = stars.value - level
    corrected = correct_magnitudes(stars, series, settings.color_term)
    joint = joint_offsets(
        stars, corrected, level, radius=settings.match_radius, epoch_days=settings.epoch_days,
        detector_sigma=settings.detector_sigma, grey_sigma=settings.grey_sigma, small_sigma=settings.small_sigma,
    )  # fmt: skip
    prior = campaign_prior(stars, corrected, level, telemetry or {}, model=settings.model, device=settings.device)
    from_stars, from_stars_sigma = _from_stars(stars, solved, joint)
    n_stars = np.maximum(stars.n_used, joint.n_stars)
    value, sigma, method = _posterior(from_stars, from_stars_sigma, n_stars, prior)
    informed = prior.informed
    counts = {f"n_{name}": int((method == name).sum()) for name in ("solve", "joined", "prior", "borrowed", "nominal")}
    n_disagreeing = int(disagree(solved, stars.sigma, prior.value, prior.sigma)[informed].sum())
    return CampaignZeroPoints(
        value=level + value,
        sigma=np.where(method == "nominal", sigma, np.hypot(sigma, common_error)),
        method=method,
        correction=stars.correction,
        prior=np.where(informed, level + prior.value, np.nan),
        prior_sigma=np.where(informed, np.hypot(prior.sigma, common_error), np.inf),
        joint=level + joint.offset,
        joint_sigma=np.hypot(joint.sigma, common_error),
        metrics={"n_units": stars.n_units, **counts, "n_disagreeing": n_disagreeing, **joint.metrics},
    )


def reference_level(nominal: Float, value: Float, series: npt.NDArray[np.intp]) -> Float:
    """Return the level that offsets refer to: nominal, or the median of the solved values of the series.

    Parameters
    ----------
    nominal, value : float64 array (u,)
        Nominal and solved zero points [mag]; NaN where unknown.
    series : int array (u,)
        Labels of detector and band.

    Returns
    -------
    float64 array (u,)
        Levels [mag]; NaN for series without a nominal or solved value.

    Examples
    --------
    >>> unknown, solved = np.full(3, np.nan), np.array([25.0, 25.2, np.nan])
    >>> reference_level(unknown, solved, np.array([0, 0, 0])).tolist()
    [25.1, 25.1, 25.1]
    """
    level = np.array(nominal, dtype=np.float64)
    for label in np.unique(series[np.isnan(level)]):
        members = series == label
        known = value[members & np.isfinite(value)]
        if len(known):
            level[members & np.isnan(level)] = np.median(known)
    return level


def disagree(value: Float, sigma: Float, other: Float, other_sigma: Float) -> npt.NDArray[np.bool_]:
    """Return where two independent estimates differ by more than `ALARM_SIGMA` of the error of their difference."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(value - other) > ALARM_SIGMA * np.hypot(sigma, other_sigma))


def _from_stars(stars: CampaignStars, solved: Float, joint: JointOffsets) -> tuple[Float, Float]:
    """Return the zero point of each unit from stars: the joint solution, or its own fit where they disagree.

    A unit that differs from others by more than the joint solution allows is biased towards these, or its stars are
    rejected. A unit with few stars does not overrule the joint solution: its stars may be wrong matches.
    """
    contradicted = joint.strained | disagree(solved, stars.sigma, joint.offset, joint.sigma)
    enough = np.isfinite(solved) & (stars.n_used >= MIN_STARS_TO_OVERRULE)
    own_fit = np.isnan(joint.offset) | (contradicted & enough)
    return np.where(own_fit, solved, joint.offset), np.where(own_fit, stars.sigma, joint.sigma)


def _posterior(
    value: Float, sigma: Float, n_stars: Int, prior: CampaignPrior
) -> tuple[Float, Float, npt.NDArray[np.str_]]:
    """Combine the zero points of stars with the prior by precision, allowing for errors that they have in common.

    Where they contradict each other, stars count alone if there are enough of them: they show changes of the camera
    that no telemetry shows. A few stars may be wrong matches. The prior is kept then, with an error of at least half of
    the difference.
    """
    solved, informed = np.isfinite(value) & np.isfinite(sigma), prior.informed
    both = solved & informed
    variance, prior_variance = np.where(both, sigma, 1.0) ** 2, np.where(both, prior.sigma, 1.0) ** 2
    # The covariance of two estimates is at most the variance of either.
    limit = _MAX_CORRELATION * np.minimum(variance, prior_variance)
    common = np.where(both, np.minimum(prior.common, limit), 0.0)
    difference_variance = variance + prior_variance - 2 * common
    weight = (variance - common) / difference_variance
    joined = np.where(both, (1 - weight) * np.nan_to_num(value) + weight * np.nan_to_num(prior.value), np.nan)
    joined_sigma = np.sqrt((variance * prior_variance - common**2) / difference_variance)
    difference = np.where(both, np.abs(value - prior.value), 0.0)
    contradictory = both & (difference > ALARM_SIGMA * np.sqrt(difference_variance))
    few_stars = contradictory & (n_stars < MIN_STARS_TO_OVERRULE)
    use_prior, combine = ~solved | few_stars, both & ~contradictory
    prior_sigma = np.where(few_stars, np.maximum(prior.sigma, difference / 2), prior.sigma)
    method = np.where(use_prior, prior.method, np.where(combine, "joined", "solve"))
    return (
        np.where(use_prior, prior.value, np.where(combine, joined, value)),
        np.where(use_prior, prior_sigma, np.where(combine, joined_sigma, sigma)),
        method.astype("<U8"),
    )
