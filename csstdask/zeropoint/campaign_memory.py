"""Errors of reference stars that a unit shares with the earlier exposures in its memory.

Repeated exposures of one field have the same reference stars. Their zero points are wrong by the same error of the
catalogue, which neither a mean of many exposures nor the next one reduces.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from csstdask.zeropoint.campaign_stars import CampaignStars
from csstdask.zeropoint.campaign_terms import CorrectedMagnitudes
from csstdask.zeropoint.state import Memory

Float = npt.NDArray[np.float64]

UNITS_AT_ONCE = 512
"""Units whose memories are averaged in one step: 16 exposures of 500 stars each take 50 MB."""


@dataclass(frozen=True)
class SharedErrors:
    """Variances of zero points by errors of reference stars [mag^2], all (u,)."""

    memory: Float
    """Of the mean of the memory, as far as its exposures have stars in common: independent errors are in its sigma."""
    common: Float
    """Covariance of the unit and the mean of its memory."""


def shared_errors(stars: CampaignStars, corrected: CorrectedMagnitudes, memory: Memory) -> SharedErrors:
    """Return what errors of reference stars the units and their memories share.

    The error of unit u by errors of its reference stars s is sum_s B_us, with B = w_s sigma_s / sum w for independent
    deviates; B B^T is the covariance of units. The weights of a prior on its memory are not known: a mean stands for
    them.

    Parameters
    ----------
    stars : CampaignStars
    corrected : CorrectedMagnitudes
        Of these stars.
    memory : Memory
        Of the units, with their rows as `index`.
    """
    n = stars.n_units
    variance = stars.ref_variance + corrected.ref_scatter**2
    known = np.flatnonzero((stars.reference >= 0) & np.isfinite(stars.ref_mag) & np.isfinite(variance))
    memory_variance, common = np.zeros(n), np.zeros(n)
    if not len(known):
        return SharedErrors(memory_variance, common)
    unit = stars.unit[known]
    weight = 1 / np.maximum(corrected.variance[known] + variance[known], 1e-8)
    share = weight * np.sqrt(variance[known]) / np.bincount(unit, weight, n)[unit]
    star = np.unique(stars.reference[known], return_inverse=True)[1].ravel()
    errors = sp.csr_array((share, (unit, star)), shape=(n, int(star.max()) + 1))
    own = np.asarray(errors.multiply(errors).sum(axis=1)).ravel()
    for start in range(0, n, UNITS_AT_ONCE):
        some = slice(start, start + UNITS_AT_ONCE)
        index = memory.index[some]
        rows, places = np.nonzero(index >= 0)
        count = np.maximum((index >= 0).sum(axis=1), 1)
        columns = index[rows, places]
        mean = sp.csr_array((1 / count[rows], (rows, columns)), shape=(len(index), n)) @ errors
        alone = np.bincount(rows, own[columns] / count[rows] ** 2, len(index))
        whole = np.asarray(mean.multiply(mean).sum(axis=1)).ravel()
        memory_variance[some] = np.maximum(whole - alone, 0.0)
        common[some] = np.asarray(mean.multiply(errors[some]).sum(axis=1)).ravel()
    return SharedErrors(memory_variance, common)
