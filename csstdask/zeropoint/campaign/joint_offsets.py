"""Joint solution of the zero points of a campaign, as offsets from a reference level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.zeropoint.campaign.star_terms import CorrectedMagnitudes, unit_offsets
from csstdask.zeropoint.campaign.stars import CampaignStars
from csstdask.zeropoint.campaign.unit_scatter import small_sigmas
from csstdask.zeropoint.joint import JointSettings, JointSolution, StarObservations, identify_stars, solve_joint
from csstdask.zeropoint.result import ALARM_SIGMA

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Metrics = dict[str, float | int | None]


@dataclass(frozen=True)
class JointOffsets:
    """Zero points of the joint solution as offsets from a level; arrays (u,)."""

    offset: Float
    """Offset [mag]; NaN where there is none."""
    sigma: Float
    """Error [mag]; inf where there is none."""
    strained: npt.NDArray[np.bool_]
    """Whether a unit deviates from its exposure and its detector by more than expected: its offset is biased."""
    n_stars: Int
    """Number of observations of the exposure that were used."""
    metrics: Metrics
    """Numbers that describe the solution."""


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
    """Solve for the zero points of all units at once.

    Parameters
    ----------
    stars : CampaignStars
        Units with their stars.
    corrected : CorrectedMagnitudes
        Magnitudes of these stars.
    level : float64 array (u,)
        Level that offsets refer to [mag]; units with NaN are left out.
    radius : float
        Largest distance of two images of one star that is not in the reference [arcsec].
    epoch_days : float
        Time over which the grey term of a detector is constant [day].
    detector_sigma, grey_sigma, small_sigma : float
        1 sigma of the constant of a detector, of its term in an epoch, and of the term of a unit [mag]. The last one
        is the initial value of its fit to the units of each detector.

    Returns
    -------
    JointOffsets
        Offsets of the units, in their order.
    """
    usable = np.flatnonzero(np.isfinite(level[stars.unit]))
    unit, n = stars.unit[usable], stars.n_units
    if not len(usable):
        return JointOffsets(
            np.full(n, np.nan), np.full(n, np.inf), np.zeros(n, bool), np.zeros(n, np.int64),
            {"n_unanchored": 0, "n_unanchored_components": 0},
        )  # fmt: skip
    label = _star_labels(stars, usable, radius)
    reference, variance, scatter = _reference_columns(stars, corrected, usable, label)
    exposure, series = np.unique(stars.exposure.astype(str), return_inverse=True)[1].ravel(), stars.series
    epoch = np.floor(np.where(np.isfinite(stars.days), stars.days, 0.0) / epoch_days).astype(np.int64)
    small = small_sigmas(*unit_offsets(stars, corrected, level), exposure, series, epoch, small_sigma)
    # Offsets are solved for, so the level belongs to the observation.
    magnitude = corrected.magnitude[usable] + level[unit]
    solution = solve_joint(
        StarObservations(unit, label, magnitude, corrected.variance[usable]),
        reference, variance, exposure, series, epoch,
        JointSettings(detector_sigma=detector_sigma, grey_sigma=grey_sigma),
        unit_sigma=corrected.shared_error, small_sigma=small, reference_scatter=scatter,
    )  # fmt: skip
    unanchored = (np.bincount(unit, minlength=n) > 0) & ~solution.anchored
    strained = np.abs(solution.small + solution.shared) > ALARM_SIGMA * np.hypot(small, corrected.shared_error)
    # The error of a colour term is common to all units of its detector.
    sigma = np.hypot(solution.sigma, corrected.color_error)
    # A detector whose constant nothing but its prior determines is known no better than without the solution.
    solved = solution.anchored & np.isfinite(solution.value) & np.isfinite(level) & (sigma < detector_sigma)
    return JointOffsets(
        offset=np.where(solved, solution.value, np.nan),
        sigma=np.where(solved, sigma, np.inf),
        strained=strained,
        n_stars=np.bincount(exposure, solution.n_stars).astype(np.int64)[exposure],
        metrics=_metrics(solution, unanchored, small, int((solved & strained).sum())),
    )


def _metrics(solution: JointSolution, unanchored: npt.NDArray[np.bool_], small: Float, n_strained: int) -> Metrics:
    """Return the numbers that describe a solution."""
    return {
        "n_unanchored": int(unanchored.sum()),
        "n_unanchored_components": len(np.unique(solution.component[unanchored])),
        "joint_scatter": float(solution.scatter),
        "joint_small": float(np.median(small)),
        "joint_chi2": float(solution.chi2),
        "joint_dof": float(solution.dof),
        "joint_iterations": int(solution.n_iterations),
        "n_strained": n_strained,
    }


def _star_labels(stars: CampaignStars, rows: npt.NDArray[np.intp], radius: float) -> Int32:
    """Return a label for each star; images of a star in different bands are different stars."""
    label, first = np.zeros(len(rows), dtype=np.int32), 0
    band = stars.band[stars.unit[rows]].astype(str)
    for name in np.unique(band):
        in_band = np.flatnonzero(band == name)
        k = rows[in_band]
        labels = identify_stars(stars.ra[k], stars.dec[k], stars.reference[k], stars.unit[k], radius=radius)
        label[in_band] = first + labels
        first += int(labels.max()) + 1
    return label


def _reference_columns(
    stars: CampaignStars, corrected: CorrectedMagnitudes, rows: npt.NDArray[np.intp], label: Int32
) -> tuple[Float, Float, Float]:
    """Return reference magnitude, variance and scatter of each label; NaN, inf and 0 without a reference."""
    n_labels = label.max() + 1
    reference, variance, scatter = np.full(n_labels, np.nan), np.full(n_labels, np.inf), np.zeros(n_labels)
    known = np.isfinite(stars.ref_mag[rows]) & np.isfinite(stars.ref_variance[rows])
    reference[label[known]] = stars.ref_mag[rows][known]
    variance[label[known]] = stars.ref_variance[rows][known]
    scatter[label[known]] = corrected.ref_scatter[rows][known]
    return reference, variance, scatter
