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
    """Stars of one unit, and the zero point that is fitted to them alone."""

    id: Int
    """(n,) Id in the unit's source table."""
    reference: Int
    """(n,) Row in the reference catalogue; -1: not in it."""
    x: Float
    """(n,) Zero-based position [pixel]."""
    y: Float
    """(n,) Zero-based position [pixel]."""
    ra: Float
    """(n,) Right ascension (ICRS), corrected for the offset of the WCS [deg]."""
    dec: Float
    """(n,) Declination (ICRS), corrected for the offset of the WCS [deg]."""
    inst_mag: Float
    """(n,) -2.5 log10(electron s-1) of the total light [mag]."""
    inst_mag_err: Float
    """(n,) 1-sigma error [mag]."""
    ref_mag: Float
    """(n,) Reference magnitude (AB) [mag]; NaN if the star is not in the reference or has no magnitude there."""
    ref_mag_err: Float
    """(n,) 1-sigma error [mag]."""
    color: Float
    """(n,) Colour in the reference [mag]; NaN where unknown."""
    weight: Float
    """(n,) Robust weight in the fit; 0 where not used."""
    residual: Float
    """(n,) ref_mag - inst_mag - model [mag]; NaN where not in the fit."""
    coefficients: Float
    """(term,) Coefficients of F(x, y), without the constant [mag]."""
    exposure: str
    """Id of the exposure."""
    detector: int
    """Id of the detector."""
    band: str
    """Name of the band."""
    days: float
    """Start of the exposure, days since J2000; NaN where unknown."""
    shape: tuple[int, int]
    """(y, x) of the frame [pixel]."""
    nominal: float
    """Nominal zero point in the camera's description [mag]; NaN where it has none."""
    value: float
    """Zero point of the unit's stars alone [mag]; NaN without a usable star."""
    sigma: float
    """Its error, including that of the aperture correction [mag]; inf without a usable star."""
    correction_err: float
    """Error of the aperture correction, common to all stars of the unit [mag]."""
    color_term: float
    """Colour term [mag / mag]; NaN where no colours were given."""
    color_term_err: float
    """Its 1-sigma error."""
    scatter: float
    """Intrinsic scatter [mag]; NaN without a usable star."""
    n_matched: int
    """Number of stars in the reference."""
    n_used: int
    """Number of stars with a positive weight in the fit."""
    coefficient_covariance: Float = field(default_factory=lambda: np.zeros((0, 0)))
    """(term, term) Covariance of `coefficients` [mag^2]; empty where unknown."""
    correction: float = 0.0
    """Aperture correction that `inst_mag` includes [mag]; NaN if unknown: magnitudes are those of the aperture."""

    def __len__(self) -> int:
        return len(self.id)

    @property
    def degree(self) -> int:
        """Total degree of F."""
        return round((np.sqrt(8 * (len(self.coefficients) + 1) + 1) - 3) / 2)

    @property
    def corrected(self) -> tuple[Float, Float]:
        """Instrumental magnitudes with F(x, y) and the colour term added, and their errors, arrays (n,) [mag].

        The reference magnitude of a star is this plus the zero point. A star of unknown colour gets the mean colour;
        its error then includes the colour term times the scatter of colours.
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
        """Serialise the stars to the content of the unit's file."""
        scalars = {field_.name: getattr(self, field_.name) for field_ in fields(self) if field_.name not in _ARRAYS}
        arrays = {name: np.asarray(getattr(self, name), dtype=dtype) for name, dtype in _ARRAYS.items()}
        # JSON has no NaN or infinity: None and absence stand for them.
        scalars = {name: _to_json(value) for name, value in scalars.items()}
        return pack(KIND, arrays, scalars)

    @classmethod
    def from_bytes(cls, data: bytes, source: object = "zero-point stars") -> MatchedStars:
        """Read the stars from the content of a unit's file.

        Raises
        ------
        InputError
            If the content is truncated, or not that of such a file.
        """
        arrays, scalars = unpack(KIND, data, source)
        values: dict[str, Any] = {name: get_array(arrays, name, source) for name in _ARRAYS} | scalars
        for name in ("days", "nominal", "value", "color_term", "color_term_err", "scatter", "correction"):
            values[name] = np.nan if scalars[name] is None else scalars[name]
        values["sigma"] = np.inf if scalars["sigma"] is None else scalars["sigma"]
        values["shape"] = tuple(scalars["shape"])
        return cls(**{field_.name: values[field_.name] for field_ in fields(cls)})


def _to_json(value: object) -> object:
    """Return None for NaN and infinity, other values unchanged."""
    return None if isinstance(value, float) and not np.isfinite(value) else value
