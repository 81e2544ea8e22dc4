"""Prior zero points of the units of a campaign, without its stars, and errors common to several units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from csstdask.nn.models import NO_MODEL
from csstdask.numerics.probability import WITHIN_ONE_SIGMA
from csstdask.zeropoint.campaign.star_terms import CorrectedMagnitudes, unit_offsets
from csstdask.zeropoint.campaign.stars import CampaignStars
from csstdask.zeropoint.local_level import fit_local_level
from csstdask.zeropoint.memory import Memory, build_memory
from csstdask.zeropoint.prior import PriorInputs, fallback_prior, predict_prior
from csstdask.zeropoint.recalibration import online_scale

Float = npt.NDArray[np.float64]

MEMORY_LENGTH = 16
"""Earlier zero points of a detector that a prior may use."""
MIN_STARS = 3
"""Used stars without which the zero point of a unit is not remembered: one or two false matches go unnoticed."""
GAP_DAYS = 30.0
"""Time without exposures after which a zero point may have jumped [day]."""
DEGREES_OF_FREEDOM = 4.0
"""Degrees of freedom of Student's t for the local level: single wrong zero points do not move it."""
MIN_SOLVED_FOR_SCALE = 20
"""Solved zero points from which the errors of a local level are scaled to cover 68 % of them."""
_UNITS_PER_BATCH = 512
"""Units whose memories are averaged in one step: 16 exposures of 500 stars each take 50 MB."""
_MIN_VARIANCE = 1e-8
"""Smallest variance of a star [mag^2]."""


@dataclass(frozen=True)
class CampaignPrior:
    """Priors of the units of a campaign as offsets; arrays (u,)."""

    value: Float
    """Offset from the reference level [mag]."""
    sigma: Float
    """Error [mag], including errors of reference stars that the exposures of the memory have in common."""
    method: npt.NDArray[np.str_]
    """``prior``, ``borrowed`` or ``nominal``."""
    common: Float
    """Covariance with the zero point of the unit's own stars, by errors of reference stars [mag^2]."""

    @property
    def informed(self) -> npt.NDArray[np.bool_]:
        """Whether the prior is more than the nominal value, bool array (u,)."""
        return np.isin(self.method, ("prior", "borrowed")) & np.isfinite(self.sigma)


def campaign_prior(
    stars: CampaignStars,
    corrected: CorrectedMagnitudes,
    level: Float,
    telemetry: Mapping[str, npt.ArrayLike],
    *,
    model: str,
    device: str | None = None,
) -> CampaignPrior:
    """Predict the zero point of each unit without its stars, as an offset from `level`.

    Memory, telemetry, and the past errors that scale sigma are those of exposures that began earlier. Not causal is
    what is common to all exposures of a detector and band and is determined from the whole campaign: F and colour
    term, with which remembered zero points are computed; how much zero points vary (the parameters of the local
    level); the level of a camera without a nominal zero point; aperture corrections of units without a PSF.

    Parameters
    ----------
    stars : CampaignStars
        Units with their stars.
    corrected : CorrectedMagnitudes
        Magnitudes of these stars.
    level : float64 array (u,)
        Level that offsets refer to [mag].
    telemetry : mapping of str to array-like (u,)
        Conditions of the exposure of each unit; NaN in gaps.
    model : str
        Network of the prior; ``none``: no network.
    device : str, optional
        ``cpu`` or ``cuda``.

    Returns
    -------
    CampaignPrior
        Priors of the units.
    """
    series = stars.series
    conditions = {name: np.asarray(values, dtype=np.float64) for name, values in telemetry.items()}
    offset, error = unit_offsets(stars, corrected, level)
    offset = np.where(stars.n_used >= MIN_STARS, offset, np.nan)
    memory = build_memory(stars.days, offset + level, error, length=MEMORY_LENGTH, series=series)
    inputs = PriorInputs(
        nominal=level,
        days=stars.days,
        telemetry=conditions,
        memory=memory,
        memory_telemetry={name: memory.lookup(values) for name, values in conditions.items()},
        stars=stars.lists,
    )
    use_network = model != NO_MODEL and any(np.isfinite(values).any() for values in conditions.values())
    predicted = predict_prior(inputs, model=model, device=device) if use_network else fallback_prior(inputs)
    value, sigma, method = predicted.value - level, predicted.sigma.copy(), predicted.method.astype("<U8")
    borrowed = method == "borrowed"
    if borrowed.any():
        mean, mean_sigma = _predict_local_level(stars.days, offset, error, series)
        better = borrowed & np.isfinite(mean) & np.isfinite(mean_sigma)
        value[better], sigma[better] = mean[better], mean_sigma[better]
    nominal = method == "nominal"
    memory_variance, common = shared_reference_errors(stars, corrected, memory)
    # The error of a colour term is that of all exposures.
    color_variance = np.where(memory.count > 0, corrected.color_error**2, 0.0)
    common = np.where(nominal, 0.0, common + color_variance)
    sigma = np.where(nominal, sigma, np.sqrt(sigma**2 + memory_variance + color_variance))
    variance = sigma**2 + error**2 + corrected.color_error**2 - 2 * common
    difference_sigma = np.where(nominal, np.nan, np.sqrt(np.maximum(variance, sigma**2 / 4)))
    # The errors of stars in these differences are conservative: a sigma is widened by the factor, never narrowed.
    scale = np.maximum(online_scale(offset - value, difference_sigma, days=stars.days, groups=method), 1.0)
    return CampaignPrior(value, np.where(nominal, sigma, sigma * scale), method, common)


def _predict_local_level(days: Float, value: Float, sigma: Float, series: npt.NDArray[np.intp]) -> tuple[Float, Float]:
    """Predict zero points from earlier ones of the detector; NaN and inf if there are too few to fit a level."""
    try:
        model = fit_local_level(days, value, sigma, series, gap=GAP_DAYS, dof=DEGREES_OF_FREEDOM)
    except ValueError:  # no series of three
        return np.full(len(days), np.nan), np.full(len(days), np.inf)
    mean, mean_sigma = model.predict(days, value, sigma, series=series)
    known = np.isfinite(value) & np.isfinite(mean) & np.isfinite(mean_sigma) & np.isfinite(sigma)
    if known.sum() < MIN_SOLVED_FOR_SCALE:
        return mean, mean_sigma
    # The scale of Student's t is less than the standard deviation of normal errors.
    excess = np.sqrt(np.maximum((value - mean)[known] ** 2 - sigma[known] ** 2, 0.0)) / mean_sigma[known]
    return mean, mean_sigma * max(float(np.quantile(excess, WITHIN_ONE_SIGMA)), 1.0)


def shared_reference_errors(
    stars: CampaignStars, corrected: CorrectedMagnitudes, memory: Memory
) -> tuple[Float, Float]:
    """Return the errors of reference stars that the units and their memories share.

    Repeated exposures of one field have the same reference stars. Their zero points have the same error of the
    catalogue, which does not average down. The error of unit u by errors of its reference stars s is sum_s B_us, with
    B = w_s sigma_s / sum w for independent deviates; B B^T is the covariance of units. The weights with which a prior
    uses its memory are not known and are approximated by those of a mean.

    Parameters
    ----------
    stars : CampaignStars
        Units with their stars.
    corrected : CorrectedMagnitudes
        Magnitudes of these stars.
    memory : Memory
        Memory of the units, with their rows as `index`.

    Returns
    -------
    memory_variance : float64 array (u,)
        Variance of the mean of the memory by stars that its exposures have in common [mag^2]. Independent errors are
        part of the sigma of the memory.
    common : float64 array (u,)
        Covariance of the unit and the mean of its memory [mag^2].
    """
    n = stars.n_units
    variance = stars.ref_variance + corrected.ref_scatter**2
    known = np.flatnonzero((stars.reference >= 0) & np.isfinite(stars.ref_mag) & np.isfinite(variance))
    memory_variance, common = np.zeros(n), np.zeros(n)
    if not len(known):
        return memory_variance, common
    unit = stars.unit[known]
    weight = 1 / np.maximum(corrected.variance[known] + variance[known], _MIN_VARIANCE)
    deviate = weight * np.sqrt(variance[known]) / np.bincount(unit, weight, n)[unit]
    star = np.unique(stars.reference[known], return_inverse=True)[1].ravel()
    errors = sp.csr_array((deviate, (unit, star)), shape=(n, int(star.max()) + 1))
    unit_variance = np.asarray(errors.multiply(errors).sum(axis=1)).ravel()
    for start in range(0, n, _UNITS_PER_BATCH):
        batch = slice(start, start + _UNITS_PER_BATCH)
        index = memory.index[batch]
        rows, entries = np.nonzero(index >= 0)
        count = np.maximum((index >= 0).sum(axis=1), 1)
        columns = index[rows, entries]
        mean = sp.csr_array((1 / count[rows], (rows, columns)), shape=(len(index), n)) @ errors
        independent = np.bincount(rows, unit_variance[columns] / count[rows] ** 2, len(index))
        total = np.asarray(mean.multiply(mean).sum(axis=1)).ravel()
        memory_variance[batch] = np.maximum(total - independent, 0.0)
        common[batch] = np.asarray(mean.multiply(errors[batch]).sum(axis=1)).ravel()
    return memory_variance, common
