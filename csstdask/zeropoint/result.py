"""The zero point of one exposure and detector, and its origin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from csstdask.zeropoint.fit_stars import StarFit

Float = npt.NDArray[np.float64]
Method = Literal["solve", "joined", "prior", "borrowed", "nominal"]

ALARM_SIGMA = 4.0
"""Difference of two estimates, in units of its error, that raises an alarm."""


@dataclass(frozen=True)
class Stars:
    """Columns of the star table, as arrays (n,); magnitudes in mag, positions in pixels."""

    inst_mag: Float
    """Instrumental magnitude -2.5 log10(electron s-1)."""
    inst_mag_err: Float
    """Its 1-sigma error."""
    ref_mag: Float
    """Reference magnitude (AB)."""
    ref_mag_err: Float
    """Its 1-sigma error."""
    color: Float | None
    """Colour in the reference."""
    x: Float | None
    """Zero-based position."""
    y: Float | None
    """Zero-based position."""


@dataclass(frozen=True)
class ZeroPoint:
    """A zero point: magnitude = value + F(x, y) + color_term * color + instrumental magnitude.

    F has mean 0 over the frame; without F and colour term, ``value + inst_mag`` is the magnitude in the system of the
    instrument, tied to the reference at colour 0.
    """

    value: float
    """Zero point [mag]; NaN if nothing is known."""
    sigma: float
    """1 sigma [mag]; inf if nothing is known."""
    method: Method
    """solve: stars alone; joined: stars and prior; prior: network; borrowed: recent zero points; nominal: camera."""
    fit: StarFit
    """Fit of the stars, with the prior if the method is ``joined``."""
    solved: StarFit
    """Fit of the stars alone."""
    prior: tuple[float, float] | None
    """Value and 1 sigma predicted without the stars [mag]."""
    stars: Stars
    """Stars that were fitted."""

    @property
    def n_matched(self) -> int:
        """Number of different stars with both magnitudes."""
        return self.fit.n_matched

    @property
    def n_used(self) -> int:
        """Number of stars with a positive robust weight."""
        return self.fit.n_used

    @property
    def chi2(self) -> float:
        """Sum of squared residuals of used stars over their variances, intrinsic scatter included."""
        return self.fit.chi2

    @property
    def dof(self) -> int:
        """Degrees of freedom of `chi2`."""
        return self.fit.dof

    @property
    def color_term(self) -> float:
        """Slope with colour [mag / mag]; NaN without colours."""
        return self.fit.color_term

    @property
    def color_term_err(self) -> float:
        """1-sigma error of the colour term."""
        return self.fit.color_term_err

    @property
    def scatter(self) -> float:
        """Intrinsic scatter of the stars [mag]; NaN without a usable star."""
        return self.fit.scatter

    @property
    def tension(self) -> float:
        """Difference of stars alone and prior, in units of its error; NaN without both."""
        if self.prior is None or not self.solved.solved:
            return np.nan
        return (self.solved.value - self.prior[0]) / float(np.hypot(self.solved.sigma, self.prior[1]))

    @property
    def alarm(self) -> bool:
        """Whether stars and prior disagree by more than `ALARM_SIGMA`."""
        return bool(abs(self.tension) > ALARM_SIGMA)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers for a JSON file, None for NaN and inf; `zp` and `zp_sigma` are the names in a run."""
        numbers: dict[str, Any] = {
            "value": self.value, "sigma": self.sigma, "zp": self.value, "zp_sigma": self.sigma, "method": self.method,
            "n_matched": self.n_matched, "n_used": self.n_used, "chi2": self.chi2, "dof": self.dof,
            "color_term": self.color_term, "color_term_err": self.color_term_err, "scatter": self.scatter,
            "flat_terms": self.fit.coefficients.tolist(), "shape": self.fit.shape,
            "prior": None if self.prior is None else list(self.prior), "tension": self.tension, "alarm": self.alarm,
        }  # fmt: skip
        return {
            key: None if isinstance(value, float) and not np.isfinite(value) else value
            for key, value in numbers.items()
        }

    def __str__(self) -> str:
        return (
            f"zero point {self.value:.4f} +- {self.sigma:.4f} mag ({self.method}; {self.n_used} of {self.n_matched} "
            f"stars, scatter {self.scatter:.4f} mag, colour term {self.color_term:.4f} +- {self.color_term_err:.4f})"
        )

    def plot(self) -> Any:
        """Plot residuals against magnitude, colour and distance from the centre; return the matplotlib figure."""
        from csstdask.zeropoint.figures import plot_zero_point  # noqa: PLC0415  matplotlib is optional

        return plot_zero_point(self)
