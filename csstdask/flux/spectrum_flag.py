"""Flags of extracted spectra."""

from __future__ import annotations

from enum import IntFlag


class SpectrumFlag(IntFlag):
    """Problems of one column of an extracted spectrum."""

    NO_DATA = 1
    """Off the frame, or without a usable pixel: counts NaN, sigma inf."""
    PARTIAL = 2
    """Less than 80 % of the profile is on usable pixels."""
    REJECTED = 4
    """Pixels were rejected as outliers."""
    CONTAMINATED = 8
    """Pixels were rejected because light of other stars falls on them."""
    NEGATIVE = 16
    """Counts below -3 sigma."""
    UNRELIABLE = 32
    """Outliers in most of the usable profile: they were not rejected, and sigma is scaled by the residuals."""
    NO_BACKGROUND = 64
    """No rows beyond the half width: no background was subtracted."""


PARTIAL_PROFILE_FRACTION = 0.8
"""Usable share of the profile below which a column is `SpectrumFlag.PARTIAL`."""
MIN_PROFILE_FRACTION = 0.25
"""Usable share of the profile below which nothing is extracted."""
