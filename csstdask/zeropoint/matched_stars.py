"""The stars that one exposure and detector contributes to the zero points of a campaign."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.core.packed_arrays import get_array, pack, unpack
from csstdask.numerics.polynomials import legendre_products

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

KIND = "zero-point stars"
_ARRAYS = {
    "id": np.int64, "reference": np.int64, "x": np.float64, "y": np.float64, "ra": np.float64, "dec": np.float64,
    "inst_mag": np.float64, "inst_mag_err": np.float64, "ref_mag": np.float64, "ref_mag_err": np.float64,
    "color": np.float64, "weight": np.float64, "residual": np.float64, "coefficients": np.float64,
    "coefficient_covariance": np.float64,
}  # fmt: skip


@dataclass(frozen=True)
class MatchedStars:
    """Stars of one unit and the zero point that they alone give."""

    id: Int
    """(n,) In the unit's source table."""
    reference: Int
    """(n,) Row in the reference catalogue; -1: not in it."""
    x: Float
    """(n,) Zero-based [pixel]."""
    y: Float
    ra: Float
    """(n,) ICRS, corrected for the shift of the WCS against the reference [deg]."""
    dec: Float
    inst_mag: Float
    """(n,) -2.5 log10(electron s-1) of the total light [mag]."""
    inst_mag_err: Float
    ref_mag: Float
    """(n,) NaN where the star is not in the reference, or has no magnitude there [mag]."""
    ref_mag_err: Float
    color: Float
    """(n,) Of the reference; NaN where unknown [mag]."""
    weight: Float
    """(n,) Robust weight in the fit; 0 where not used."""
    residual: Float
    """(n,) ref_mag - inst_mag - model [mag]; NaN where not in the fit."""
    coefficients: Float
    """(term,) Of F(x, y), without the constant [mag]."""
    exposure: str
    detector: int
    band: str
    days: float
    """Begin of the exposure, days since J2000; NaN where unknown."""
    shape: tuple[int, int]
    """(y, x) of the frame."""
    nominal: float
    """Zero point that the camera's description expects [mag]; NaN where it says nothing."""
    value: float
    """Zero point of the unit's stars alone [mag]; NaN without a usable star."""
    sigma: float
    """Its error, that of the aperture correction included; inf without a usable star."""
    correction_err: float
    """Error of the aperture correction, which all stars of the unit share [mag]."""
    color_term: float
    """NaN where no colours were given."""
    color_term_err: float
    scatter: float
    """Intrinsic [mag]; NaN without a usable star."""
    n_matched: int
    n_used: int
    coefficient_covariance: Float = field(default_factory=lambda: np.zeros((0, 0)))
    """(term, term) [mag^2]; without elements where unknown."""
    correction: float = 0.0
    """Aperture correction that `inst_mag` includes [mag]; NaN: unknown, magnitudes are those of the aperture."""

    def __len__(self) -> int:
        return len(self.id)

    @property
    def degree(self) -> int:
        """Return the total degree of F."""
        return round((np.sqrt(8 * (len(self.coefficients) + 1) + 1) - 3) / 2)

    @property
    def corrected(self) -> tuple[Float, Float]:
        """Return instrumental magnitudes with F(x, y) and the colour term added, and their errors [mag].

        The reference magnitude of a star is this plus the zero point. A star of unknown colour is given the mean
        colour; its error then includes the colour term times the scatter of colours.
        """
        flat = np.zeros(len(self))
        if len(self.coefficients):
            flat = legendre_products(self.x, self.y, self.degree, self.shape)[:, 1:] @ self.coefficients
        known = np.isfinite(self.color)
        color, variance = np.zeros(len(self)), self.inst_mag_err**2
        if known.any() and np.isfinite(self.color_term):
            color = np.where(known, self.color, self.color[known].mean())
            spread = float(self.color[known].std())
            slope = np.hypot(self.color_term, self.color_term_err)
            variance = np.where(known, variance, variance + (slope * spread) ** 2)
        term = self.color_term if np.isfinite(self.color_term) else 0.0
        return self.inst_mag + flat + term * color, np.sqrt(variance)

    def to_bytes(self) -> bytes:
        """Return the content of the unit's file."""
        facts = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in _ARRAYS}
        arrays = {name: np.asarray(getattr(self, name), dtype=kind) for name, kind in _ARRAYS.items()}
        # JSON has no NaN or infinity: None and absence stand for them.
        facts = {name: _plain(value) for name, value in facts.items()}
        return pack(KIND, arrays, facts)

    @classmethod
    def from_bytes(cls, data: bytes, source: object = "zero-point stars") -> MatchedStars:
        """Return the stars of a unit's file.

        Raises
        ------
        InputError
            If it is torn, or anything else.
        """
        arrays, facts = unpack(KIND, data, source)
        values: dict[str, Any] = {name: get_array(arrays, name, source) for name in _ARRAYS} | facts
        for name in ("days", "nominal", "value", "color_term", "color_term_err", "scatter", "correction"):
            values[name] = np.nan if facts[name] is None else facts[name]
        values["sigma"] = np.inf if facts["sigma"] is None else facts["sigma"]
        values["shape"] = tuple(facts["shape"])
        return cls(**{one.name: values[one.name] for one in fields(cls)})


def _plain(value: object) -> object:
    return None if isinstance(value, float) and not np.isfinite(value) else value
