"""Units of a campaign as columns: the fit of each unit's own stars, and these stars for the joint solution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.numerics.polynomials import legendre_products
from csstdask.zeropoint.fit_stars import FLAT_SIGMA
from csstdask.zeropoint.matched_stars import MatchedStars
from csstdask.zeropoint.photometry import fill_unknown_errors
from csstdask.zeropoint.prior import STAR_COLUMNS, StarLists, build_star_lists

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Text = npt.NDArray[np.object_]


@dataclass(frozen=True)
class CampaignStars:
    """Units (u,) of a campaign with the zero points of their own stars, and these stars (n,)."""

    exposure: Text
    """(u,) Id of the exposure."""
    detector: Int32
    """(u,) Id of the detector."""
    band: Text
    """(u,) Name of the band."""
    days: Float
    """(u,) Start of the exposure, days since J2000; NaN where unknown."""
    nominal: Float
    """(u,) Nominal zero point [mag]; NaN where unknown."""
    value: Float
    """(u,) Zero point of the unit's own stars [mag]; NaN without a usable star."""
    sigma: Float
    """(u,) Its error [mag]; inf without a usable star."""
    n_used: Int
    """(u,) Number of stars that it was fitted to."""
    scatter: Float
    """(u,) Intrinsic scatter of its own stars [mag]; NaN without a usable star."""
    coefficients: Float
    """(u, k) Coefficients of F(x, y) from its own stars and the prior [mag]."""
    coefficient_covariance: Float
    """(u, k, k) Their covariances [mag^2]."""
    color_term: Float
    """(u,) Colour term of its own stars, combined with the expected one; NaN without colours."""
    color_term_err: Float
    """(u,) Error of the colour term."""
    correction: Float
    """(u,) Aperture correction that magnitudes include [mag]; NaN: unknown and not included."""
    correction_err: Float
    """(u,) Error of the aperture correction, common to the stars of a unit [mag]; part of `sigma`."""
    lists: StarLists
    """(u, m, 7) Star lists for the network."""
    unit: Int32
    """(n,) Row of the unit of each star."""
    ra: Float
    """(n,) Right ascension [deg]."""
    dec: Float
    """(n,) Declination [deg]."""
    reference: Int
    """(n,) Row in the reference catalogue; -1: not in it."""
    magnitude: Float32
    """(n,) Instrumental magnitude without F(x, y) and colour term [mag]."""
    variance: Float32
    """(n,) Its variance [mag^2]."""
    weight: Float32
    """(n,) Robust weight in the fit of its unit."""
    terms: Float32
    """(n, k) Values of the terms of F(x, y)."""
    color: Float32
    """(n,) Colour in the reference [mag]; NaN where unknown."""
    ref_mag: Float32
    """(n,) Reference magnitude [mag]; NaN where unknown."""
    ref_variance: Float32
    """(n,) Its variance [mag^2]; inf where the magnitude is unknown."""

    @property
    def n_units(self) -> int:
        """Number of units."""
        return len(self.value)

    @property
    def series(self) -> npt.NDArray[np.intp]:
        """Label of detector and band of each unit, from 0, int array (u,)."""
        names = [f"{detector} {band}" for detector, band in zip(self.detector, self.band, strict=True)]
        return np.asarray(np.unique(names, return_inverse=True)[1]).ravel()

    @classmethod
    def from_unit(cls, stars: MatchedStars, max_stars: int) -> CampaignStars:
        """Convert the stars of one unit.

        Parameters
        ----------
        stars : MatchedStars
            Stars of one exposure and detector.
        max_stars : int
            Stars with a reference to keep for the joint solution: those with the smallest errors.

        Returns
        -------
        CampaignStars
            A campaign of one unit.
        """
        known = np.isfinite(stars.ref_mag)
        chosen = _choose_stars(stars, known, max_stars)
        ref_variance = np.where(known, fill_unknown_errors(stars.ref_mag_err) ** 2, np.inf)
        k = len(stars.coefficients)
        terms = np.zeros((len(chosen), k))
        if k:
            terms = legendre_products(stars.x[chosen], stars.y[chosen], stars.degree, stars.shape)[:, 1:]
        covariance = np.asarray(stars.coefficient_covariance, dtype=np.float64)
        if covariance.shape != (k, k) or not np.isfinite(covariance).all():
            covariance = FLAT_SIGMA**2 * np.eye(k)
        return cls(
            exposure=np.array([stars.exposure], dtype=object),
            detector=np.array([stars.detector], dtype=np.int32),
            band=np.array([stars.band], dtype=object),
            days=np.array([stars.days]),
            nominal=np.array([stars.nominal]),
            value=np.array([stars.value]),
            sigma=np.array([stars.sigma if np.isfinite(stars.value) else np.inf]),
            n_used=np.array([stars.n_used], dtype=np.int64),
            scatter=np.array([stars.scatter]),
            coefficients=np.array(stars.coefficients, dtype=np.float64)[None],
            coefficient_covariance=covariance[None],
            color_term=np.array([stars.color_term]),
            color_term_err=np.array([stars.color_term_err]),
            correction=np.array([stars.correction]),
            correction_err=np.array([stars.correction_err]),
            lists=build_star_lists([{name: getattr(stars, name) for name in STAR_COLUMNS}], shape=stars.shape),
            unit=np.zeros(len(chosen), dtype=np.int32),
            ra=stars.ra[chosen],
            dec=stars.dec[chosen],
            reference=stars.reference[chosen],
            magnitude=stars.inst_mag[chosen].astype(np.float32),
            variance=(stars.inst_mag_err[chosen] ** 2).astype(np.float32),
            weight=stars.weight[chosen].astype(np.float32),
            terms=terms.astype(np.float32),
            color=stars.color[chosen].astype(np.float32),
            ref_mag=stars.ref_mag[chosen].astype(np.float32),
            ref_variance=ref_variance[chosen].astype(np.float32),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[CampaignStars]) -> CampaignStars:
        """Concatenate the units of several parts, in their order."""
        first = np.cumsum([0, *(part.n_units for part in parts)])
        longest = max(part.lists.values.shape[1] for part in parts)
        padded = [
            np.pad(values, ((0, 0), (0, longest - values.shape[1]), (0, 0)), constant_values=np.nan)
            for values in (part.lists.values for part in parts)
        ]
        lists = StarLists(np.concatenate(padded), np.concatenate([part.lists.count for part in parts]))
        unit = np.concatenate([part.unit + start for part, start in zip(parts, first[:-1], strict=True)])
        others = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in cls.__dataclass_fields__
            if name not in ("lists", "unit")
        }
        return cls(**others, lists=lists, unit=unit.astype(np.int32))


def _choose_stars(stars: MatchedStars, known: npt.NDArray[np.bool_], max_stars: int) -> npt.NDArray[np.intp]:
    """Return the rows of the stars for the joint solution: the best ones with a reference, and all without."""
    usable = np.isfinite(stars.inst_mag) & np.isfinite(stars.inst_mag_err)
    # A star that the fit of its own unit has rejected is variable, or a wrong match.
    tied = np.flatnonzero(usable & known & (stars.weight > 0))
    best = np.sort(tied[np.argsort(stars.inst_mag_err[tied], kind="stable")][:max_stars])
    return np.concatenate([best, np.flatnonzero(usable & ~known)])
