"""Fill in the aperture corrections of units that have none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from csstdask.numerics.robust import mad_scale
from csstdask.zeropoint.campaign.stars import CampaignStars

Float = npt.NDArray[np.float64]

CORRECTION_FLOOR = 0.01
"""Smallest error of an aperture correction that is taken from other units [mag]: the PSF changes with focus."""
MIN_CORRECTIONS = 3
"""Units with an aperture correction from which their scatter is the error of a correction taken from them."""
FEW_CORRECTIONS_ERROR = 0.03
"""Error of an aperture correction that is taken from fewer units [mag]."""


def fill_aperture_corrections(stars: CampaignStars) -> tuple[CampaignStars, Float]:
    """Use the median aperture correction of a detector and band for units without their own.

    Units of detectors without any correction keep magnitudes of the aperture. The missing light is then common to all
    of them: it is no error of single units, which the joint solution and the memory would average down.

    Parameters
    ----------
    stars : CampaignStars
        Units with their stars; a correction of NaN is unknown.

    Returns
    -------
    stars : CampaignStars
        Units with corrected zero points and magnitudes. The correction is 0 where nothing is known about it.
    common_error : float64 array (u,)
        Error to add to zero points of such units in the end [mag]; 0 for others.
    """
    correction, error = stars.correction.copy(), stars.correction_err.copy()
    missing = np.isnan(correction)
    series = stars.series
    for label in np.unique(series[missing]):
        members = series == label
        known = correction[members & ~missing]
        if len(known):
            scatter = max(float(mad_scale(known)), CORRECTION_FLOOR)
            correction[members & missing] = np.median(known)
            error[members & missing] = scatter if len(known) >= MIN_CORRECTIONS else FEW_CORRECTIONS_ERROR
    unknown = np.isnan(correction)
    common_error = np.where(unknown, error, 0.0)
    error[unknown] = 0.0
    change = np.where(missing, np.nan_to_num(correction), 0.0)
    fit_sigma = np.sqrt(np.maximum(stars.sigma**2 - stars.correction_err**2, 0.0))
    changed_sigma = np.hypot(np.nan_to_num(fit_sigma, posinf=0.0), error)
    corrected = replace(
        stars,
        value=stars.value - change,
        sigma=np.where(missing & np.isfinite(stars.sigma), changed_sigma, stars.sigma),
        correction=np.nan_to_num(correction),
        correction_err=error,
        magnitude=(stars.magnitude + change[stars.unit]).astype(np.float32),
    )
    return corrected, common_error
