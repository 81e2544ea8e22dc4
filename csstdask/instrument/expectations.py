"""The cosmic-ray rates that are normal for a camera."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from csstdask.core.settings import FrozenSettings


def _check_range(limits: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= limits[0] < limits[1] < float("inf"):
        raise ValueError(f"found {limits}; wanted two numbers from 0, ascending")
    return limits


Range = Annotated[tuple[float, float], AfterValidator(_check_range)]


class Expectations(FrozenSettings):
    """Normal ranges of detected cosmic rays, with which the report compares each unit.

    The ranges include variations with orbit, solar cycle and detection threshold.
    """

    cosmic_ray_rate: Range | None = Field(
        None, description="Detected events per second and square centimetre [s-1 cm-2]."
    )
    hit_rate: Range | None = Field(None, description="Fraction of pixels hit per second [s-1].")
    source: str = Field(description="Source of the numbers, printed in the report.")

    @model_validator(mode="after")
    def _check_given(self) -> Expectations:
        if self.cosmic_ray_rate is None and self.hit_rate is None:
            raise ValueError("found neither cosmic_ray_rate nor hit_rate; wanted one of them, or no expectations")
        return self

    def hit_fraction(self, exptime: float) -> tuple[float, float] | None:
        """Return the expected range of the fraction of pixels hit in an exposure, or None without a hit rate.

        Hits are independent, so the fraction is 1 - exp(-hit_rate exptime).

        Parameters
        ----------
        exptime : float
            Exposure time [s].

        Examples
        --------
        >>> low, high = Expectations(hit_rate=(1e-5, 1e-4), source="example").hit_fraction(150.0)
        >>> round(low, 6), round(high, 6)
        (0.001499, 0.014888)
        """
        if self.hit_rate is None or not exptime > 0:
            return None
        low, high = (float(-np.expm1(-rate * exptime)) for rate in self.hit_rate)
        return low, high
