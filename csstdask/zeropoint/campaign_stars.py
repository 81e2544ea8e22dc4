"""Units of a campaign side by side: what each one's own stars give, and these stars for the joint solution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.numerics.polynomials import legendre_products
from csstdask.zeropoint.features import StarLists, build_star_lists
from csstdask.zeropoint.fit_stars import FLAT_SIGMA
from csstdask.zeropoint.matched_stars import MatchedStars
from csstdask.zeropoint.photometry import fill_unknown_errors

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Text = npt.NDArray[np.object_]


@dataclass(frozen=True)
class CampaignStars:
    """Units of a campaign with the zero points of their own stars, and these stars for the joint solution."""

    exposure: Text
    """(u,) Ids."""
    detector: Int32
    """(u,)"""
    band: Text
    """(u,)"""
    days: Float
    """(u,) Begin of the exposure, since J2000; NaN where unknown."""
    nominal: Float
    """(u,) [mag]; NaN where unknown."""
    value: Float
    """(u,) Zero point of the unit's own stars [mag]; NaN without a usable star."""
    sigma: Float
    """(u,) inf without a usable star."""
    n_used: Int
    """(u,) Stars that it was fitted to."""
    scatter: Float
    """(u,) Intrinsic, of its own stars [mag]; NaN without a usable star."""
    coefficients: Float
    """(u, k) Of F(x, y), of its own stars and the prior [mag]."""
    coefficient_covariance: Float
    """(u, k, k) [mag^2]."""
    color_term: Float
    """(u,) Of its own stars, joined with what was expected of it; NaN without colours."""
    color_term_err: Float
    """(u,)"""
    correction: Float
    """(u,) Aperture correction that magnitudes include [mag]; NaN: unknown, they do not."""
    correction_err: Float
    """(u,) Error of the aperture correction, which all stars of a unit share [mag]; part of `sigma`."""
    lists: StarLists
    """(u, m, 7) What a network may know of the stars."""
    unit: Int32
    """(n,) Row of the unit of each star."""
    ra: Float
    """(n,) [deg]"""
    dec: Float
    reference: Int
    """(n,) Row in the reference catalogue; -1: not in it."""
    magnitude: Float32
    """(n,) Instrumental, without F(x, y) and colour term [mag]."""
    variance: Float32
    """(n,) [mag^2]"""
    weight: Float32
    """(n,) Robust weight in the fit of its unit."""
    terms: Float32
    """(n, k) Values of the terms of F(x, y)."""
    color: Float32
    """(n,) Of the reference [mag]; NaN where unknown."""
    ref_mag: Float32
    """(n,) NaN where unknown [mag]."""
    ref_variance: Float32
    """(n,) inf where the magnitude is unknown [mag^2]."""

    @property
    def n_units(self) -> int:
        """Return the number of units."""
        return len(self.value)

    @property
    def series(self) -> npt.NDArray[np.intp]:
        """Return labels of detector and band (u,), from 0."""
        names = [f"{one} {band}" for one, band in zip(self.detector, self.band, strict=True)]
        return np.asarray(np.unique(names, return_inverse=True)[1]).ravel()

    @classmethod
    def of(cls, stars: MatchedStars, most: int) -> CampaignStars:
        """Return one unit.

        Parameters
        ----------
        stars : MatchedStars
        most : int
            Stars with a reference that take part in the joint solution: those with the smallest errors.
        """
        known = np.isfinite(stars.ref_mag)
        usable = np.isfinite(stars.inst_mag) & np.isfinite(stars.inst_mag_err)
        # A star that the fit of its own unit has rejected is variable, or another one.
        tied = np.flatnonzero(usable & known & (stars.weight > 0))
        best = np.sort(tied[np.argsort(stars.inst_mag_err[tied], kind="stable")][:most])
        chosen = np.concatenate([best, np.flatnonzero(usable & ~known)])
        ref_error = fill_unknown_errors(stars.ref_mag_err)
        names = ("inst_mag", "inst_mag_err", "ref_mag", "ref_mag_err", "color", "x", "y")
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
            lists=build_star_lists([{name: getattr(stars, name) for name in names}], shape=stars.shape),
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
            ref_variance=np.where(known, ref_error**2, np.inf)[chosen].astype(np.float32),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[CampaignStars]) -> CampaignStars:
        """Return the units of several parts, in their order."""
        first = np.cumsum([0, *(part.n_units for part in parts)])
        longest = max(part.lists.values.shape[1] for part in parts)
        padded = [
            np.pad(one, ((0, 0), (0, longest - one.shape[1]), (0, 0)), constant_values=np.nan)
            for one in (part.lists.values for part in parts)
        ]
        lists = StarLists(np.concatenate(padded), np.concatenate([part.lists.count for part in parts]))
        unit = np.concatenate([part.unit + start for part, start in zip(parts, first[:-1], strict=True)])
        others = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in cls.__dataclass_fields__
            if name not in ("lists", "unit")
        }
        return cls(**others, lists=lists, unit=unit.astype(np.int32))
