"""Zero points of all units of a campaign: joint solution, memory, prior and posterior, on arrays.

1. Each unit's own stars have given a zero point and its error (`csstdask.zeropoint.fit_stars`). F(x, y) and colour
term are
   combined over the units of a detector and band (`csstdask.zeropoint.campaign_terms`).
2. The joint solution ties units together by common stars, exposures and epochs (`csstdask.zeropoint.campaign_joint`).
3. What is known without a unit's stars is its prior: a network that reads telemetry and earlier zero points, a local
   level of the earlier zero points alone, or the nominal value. Its error is scaled by its errors so far.
4. Stars and prior are joined by precision. Where they contradict each other, stars count alone if there are enough.

Zero points are offsets against a reference level on the way, so that bands and detectors can be compared: the nominal
zero point, or the median of the solved ones of a detector and band where the camera's description has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from csstdask.nn.models import NO_MODEL
from csstdask.zeropoint.campaign_joint import JointOffsets, joint_offsets
from csstdask.zeropoint.campaign_memory import shared_errors
from csstdask.zeropoint.campaign_stars import CampaignStars
from csstdask.zeropoint.campaign_terms import (
    CorrectedMagnitudes,
    correct_magnitudes,
    fill_aperture_corrections,
    unit_offsets,
)
from csstdask.zeropoint.features import PriorInputs
from csstdask.zeropoint.fit_stars import COLOR_TERM
from csstdask.zeropoint.prior import NOMINAL_SIGMA, fallback_prior, predict_prior
from csstdask.zeropoint.result import ALARM_SIGMA
from csstdask.zeropoint.state import ONE_SIGMA, LocalLevel, build_memory, fit_local_level, online_scale

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

__all__ = [
    "CampaignPrior", "CampaignSettings", "CampaignStars", "CampaignZeroPoints", "calibrate_campaign", "campaign_prior",
    "disagree", "reference_level",
]  # fmt: skip

MEMORY_LENGTH = 16
"""Earlier zero points of a detector that a prior may look back at."""
GAP_DAYS = 30.0
"""Time without exposures after which a zero point may have jumped [day]."""
LEAST_STARS = 3
"""Used stars without which a unit's zero point is no memory: a false match of one or two is not noticed."""
LEAST_OWN = 5
"""Used stars from which a zero point counts where the joint solution or the prior contradicts it."""
LEAST_FOR_SCALE = 20
"""Solved zero points from which the errors of a local level are scaled to hold 68 % of them."""
DEGREES_OF_FREEDOM = 4.0
"""Of Student's t for the local level: single zero points that are wrong do not move it."""


@dataclass(frozen=True)
class CampaignSettings:
    """What decides the zero points of a campaign, beyond their inputs."""

    match_radius: float = 1.0
    """Largest distance of two images of one star that is not in the reference [arcsec]."""
    epoch_days: float = 30.0
    """Time over which the grey term of a detector is constant [day]."""
    detector_sigma: float = NOMINAL_SIGMA
    """1 sigma of the constant of a detector against its nominal zero point [mag]."""
    grey_sigma: float = 0.02
    """1 sigma of the term of a detector in an epoch [mag]."""
    small_sigma: float = 0.002
    """1 sigma of the term of a unit, beyond those of its exposure and of its detector [mag]: a first value, from which
    the units of each detector and band determine their own."""
    color_term: tuple[float, float] = COLOR_TERM
    """Expected colour term and its 1 sigma, as the units were fitted with [mag / mag]."""
    model: str = "default"
    """Network of the prior; ``none``: no network."""
    device: str | None = None


@dataclass(frozen=True)
class CampaignZeroPoints:
    """Zero points of the units of a campaign, all (u,) [mag]."""

    value: Float
    """NaN where nothing is known."""
    sigma: Float
    """inf where nothing is known."""
    method: npt.NDArray[np.str_]
    """solve: stars, of the unit or of others that are tied to it; joined: stars and prior; prior: network; borrowed:
    earlier zero points; nominal: the camera's description."""
    correction: Float
    """From the aperture to the total light of a star, which the zero point is for; 0 where nothing is known of it."""
    prior: Float
    """What was expected without the unit's stars: of the network or of earlier zero points; NaN where neither is."""
    prior_sigma: Float
    joint: Float
    """Of the joint solution; NaN where it gives none."""
    joint_sigma: Float
    metrics: dict[str, float | int | None] = field(default_factory=dict)
    """Numbers about the solution."""


def calibrate_campaign(
    stars: CampaignStars, telemetry: Mapping[str, npt.ArrayLike] | None = None, settings: CampaignSettings | None = None
) -> CampaignZeroPoints:
    """Return the zero points of all units of a campaign.

    Parameters
    ----------
    stars : CampaignStars
        Units with their stars, in any fixed order.
    telemetry : mapping of str to array-like (u,), optional
        Conditions of the exposure of each unit; NaN in gaps.
    settings : CampaignSettings, optional

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
    >>> found = calibrate_campaign(CampaignStars.of(unit, 500))
    >>> found.value.tolist(), found.method.tolist()
    ([25.85], ['nominal'])
    """
    chosen = settings or CampaignSettings()
    stars, common_error = fill_aperture_corrections(stars)
    series = stars.series
    level = reference_level(stars.nominal, stars.value, series)
    solved = stars.value - level
    corrected = correct_magnitudes(stars, series, chosen.color_term)
    joint = joint_offsets(
        stars,
        corrected,
        level,
        radius=chosen.match_radius,
        epoch_days=chosen.epoch_days,
        detector_sigma=chosen.detector_sigma,
        grey_sigma=chosen.grey_sigma,
        small_sigma=chosen.small_sigma,
    )
    prior = campaign_prior(stars, corrected, level, telemetry or {}, chosen)
    own, own_sigma = _stars_alone(stars, solved, joint)
    value, sigma, method = _posterior(own, own_sigma, np.maximum(stars.n_used, joint.n_stars), prior)
    informed = prior.informed
    counts = {f"n_{name}": int((method == name).sum()) for name in ("solve", "joined", "prior", "borrowed", "nominal")}
    return CampaignZeroPoints(
        value=level + value,
        sigma=np.where(method == "nominal", sigma, np.hypot(sigma, common_error)),
        method=method,
        correction=stars.correction,
        prior=np.where(informed, level + prior.value, np.nan),
        prior_sigma=np.where(informed, np.hypot(prior.sigma, common_error), np.inf),
        joint=level + joint.offset,
        joint_sigma=np.hypot(joint.sigma, common_error),
        metrics={
            "n_units": stars.n_units,
            **counts,
            "n_disagreeing": int(disagree(solved, stars.sigma, prior.value, prior.sigma)[informed].sum()),
            **joint.metrics,
        },
    )


def reference_level(nominal: Float, value: Float, series: npt.NDArray[np.intp]) -> Float:
    """Return the level of each unit that offsets are against: nominal, or the median of its series' solved values.

    Parameters
    ----------
    nominal, value : float64 array (u,)
        NaN where unknown.
    series : int array (u,)
        Labels of detector and band.

    Examples
    --------
    >>> unknown, solved = np.full(3, np.nan), np.array([25.0, 25.2, np.nan])
    >>> reference_level(unknown, solved, np.array([0, 0, 0])).tolist()
    [25.1, 25.1, 25.1]
    """
    level = np.array(nominal, dtype=np.float64)
    for one in np.unique(series[np.isnan(level)]):
        members = series == one
        known = value[members & np.isfinite(value)]
        if len(known):
            level[members & np.isnan(level)] = np.median(known)
    return level


def disagree(value: Float, sigma: Float, other: Float, other_sigma: Float) -> npt.NDArray[np.bool_]:
    """Return where two estimates differ by more than `ALARM_SIGMA` of the error of their difference."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(value - other) > ALARM_SIGMA * np.hypot(sigma, other_sigma))


def _stars_alone(stars: CampaignStars, solved: Float, joint: JointOffsets) -> tuple[Float, Float]:
    """Return the zero point of each unit from stars: the joint solution, or its own stars where that contradicts them.

    A unit that differs from others by more than the joint solution allows for is biased towards these, or its stars are
    left out. Too few stars do not contradict it: they may be other stars.
    """
    contradicted = joint.strained | disagree(solved, stars.sigma, joint.offset, joint.sigma)
    own = np.isnan(joint.offset) | (contradicted & np.isfinite(solved) & (stars.n_used >= LEAST_OWN))
    return np.where(own, solved, joint.offset), np.where(own, stars.sigma, joint.sigma)


@dataclass(frozen=True)
class CampaignPrior:
    """What is known of each unit without its stars, as offsets, all (u,)."""

    value: Float
    sigma: Float
    """Errors of reference stars that the memory has in common included."""
    method: npt.NDArray[np.str_]
    common: Float
    """Covariance with the zero point of the unit's own stars, by errors of reference stars [mag^2]."""

    @property
    def informed(self) -> npt.NDArray[np.bool_]:
        """Return where it is more than the nominal value."""
        return np.isin(self.method, ("prior", "borrowed")) & np.isfinite(self.sigma)


def campaign_prior(
    stars: CampaignStars,
    corrected: CorrectedMagnitudes,
    level: Float,
    telemetry: Mapping[str, npt.ArrayLike],
    settings: CampaignSettings,
) -> CampaignPrior:
    """Return what is known of each unit before its stars are looked at, as offsets against `level`.

    Memory, telemetry, and the errors that scale sigma are of exposures that began earlier. Not causal is what is common
    to all exposures of a detector and band and is determined from the whole campaign: F and colour term, with which
    remembered zero points are computed; how much zero points vary (the parameters of the local level); the level of a
    camera without a nominal zero point; aperture corrections of units without a PSF.
    """
    n, series = stars.n_units, stars.series
    conditions = {name: np.asarray(values, dtype=np.float64) for name, values in telemetry.items()}
    offset, error = unit_offsets(stars, corrected, level)
    offset = np.where(stars.n_used >= LEAST_STARS, offset, np.nan)
    memory = build_memory(stars.days, offset + level, error, last=MEMORY_LENGTH, series=series)
    inputs = PriorInputs(
        nominal=level,
        days=stars.days,
        telemetry=conditions,
        memory=memory,
        memory_telemetry={name: memory.of(values) for name, values in conditions.items()},
        stars=stars.lists,
    )
    network = settings.model != NO_MODEL and any(np.isfinite(values).any() for values in conditions.values())
    expected = (
        predict_prior(inputs, model=settings.model, device=settings.device) if network else fallback_prior(inputs)
    )
    value, sigma, method = expected.value - level, expected.sigma.copy(), expected.method.astype("<U8")
    borrowed = method == "borrowed"
    if borrowed.any():
        mean, spread = _local_level(stars.days, offset, error, series)
        better = borrowed & np.isfinite(mean) & np.isfinite(spread)
        value[better], sigma[better] = mean[better], spread[better]
    nominal = method == "nominal"
    shared = shared_errors(stars, corrected, memory)
    # The error of a colour term is that of all exposures.
    of_color = np.where(memory.count > 0, corrected.color_error**2, 0.0)
    common = np.where(nominal, 0.0, shared.common + of_color)
    sigma = np.where(nominal, sigma, np.sqrt(sigma**2 + shared.memory + of_color))
    variance = sigma**2 + error**2 + corrected.color_error**2 - 2 * common
    of_difference = np.sqrt(np.maximum(variance, sigma**2 / 4))
    scale = np.ones(n)
    if n:
        of_difference = np.where(nominal, np.nan, of_difference)
        # Errors of stars are part of these differences, and cautious: a sigma is widened by them, never narrowed.
        scale = np.maximum(online_scale(offset - value, of_difference, days=stars.days, groups=method), 1.0)
    return CampaignPrior(value, np.where(nominal, sigma, sigma * scale), method, common)


def _local_level(days: Float, value: Float, sigma: Float, series: npt.NDArray[np.intp]) -> tuple[Float, Float]:
    """Return what earlier zero points of a detector alone predict; NaN where they are too few to show how it varies."""
    try:
        model: LocalLevel = fit_local_level(days, value, sigma, series, gap=GAP_DAYS, dof=DEGREES_OF_FREEDOM)
    except ValueError:  # no series of three
        return np.full(len(days), np.nan), np.full(len(days), np.inf)
    mean, spread = model.predict(days, value, sigma, series=series)
    known = np.isfinite(value) & np.isfinite(mean) & np.isfinite(spread) & np.isfinite(sigma)
    if known.sum() < LEAST_FOR_SCALE:
        return mean, spread
    # The scale of Student's t is less than the standard deviation of normal errors.
    excess = np.sqrt(np.maximum((value - mean)[known] ** 2 - sigma[known] ** 2, 0.0)) / spread[known]
    return mean, spread * max(float(np.quantile(excess, ONE_SIGMA)), 1.0)


def _posterior(
    value: Float, sigma: Float, n_stars: Int, prior: CampaignPrior
) -> tuple[Float, Float, npt.NDArray[np.str_]]:
    """Join the zero points of stars with the prior by precision; errors that they have in common are not reduced.

    Where they contradict each other, stars count alone if there are enough of them: a change of the camera that no
    telemetry shows is what they are for. Fewer may be wrong matches. The prior is kept then, with an error of at least
    half of the difference.
    """
    solved, informed = np.isfinite(value) & np.isfinite(sigma), prior.informed
    both = solved & informed
    variance, of_prior = np.where(both, sigma, 1.0) ** 2, np.where(both, prior.sigma, 1.0) ** 2
    # The covariance of two estimates is at most the variance of either.
    common = np.where(both, np.minimum(prior.common, 0.999 * np.minimum(variance, of_prior)), 0.0)
    of_difference = variance + of_prior - 2 * common
    weight = (variance - common) / of_difference
    joined = np.where(both, (1 - weight) * np.nan_to_num(value) + weight * np.nan_to_num(prior.value), np.nan)
    joined_sigma = np.sqrt((variance * of_prior - common**2) / of_difference)
    difference = np.where(both, np.abs(value - prior.value), 0.0)
    apart = both & (difference > ALARM_SIGMA * np.sqrt(of_difference))
    of_few = apart & (n_stars < LEAST_OWN)
    from_prior, together = ~solved | of_few, both & ~apart
    prior_sigma = np.where(of_few, np.maximum(prior.sigma, difference / 2), prior.sigma)
    method = np.where(from_prior, prior.method, np.where(together, "joined", "solve"))
    return (
        np.where(from_prior, prior.value, np.where(together, joined, value)),
        np.where(from_prior, prior_sigma, np.where(together, joined_sigma, sigma)),
        method.astype("<U8"),
    )
