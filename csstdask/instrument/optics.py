"""Focal plane, telescope, filters and gratings of a camera."""

from __future__ import annotations

from itertools import pairwise

from pydantic import Field, model_validator

from csstdask.core.settings import FrozenSettings


class Geometry(FrozenSettings):
    """The focal plane: positions of the detectors in pixels from its centre."""

    pixel_scale: float = Field(gt=0, description="Pixel scale [arcsec/pixel].")
    centres: dict[int, tuple[float, float]] = Field(
        description="Detector id to the position (x, y) of its centre [pixel]."
    )
    orientation: tuple[tuple[float, float], tuple[float, float]] = Field(
        ((-1.0, 0.0), (0.0, 1.0)), description="CD matrix divided by the pixel scale."
    )


class Band(FrozenSettings):
    """A filter."""

    wavelength: tuple[float, float] = Field(description="Range of the passband [nm].")
    zero_point: float = Field(description="AB magnitude of 1 e-/s [mag].")
    sky: float = Field(ge=0, description="Typical sky [e-/s/pixel].")

    @model_validator(mode="after")
    def _check_wavelengths(self) -> Band:
        if not 0 < self.wavelength[0] < self.wavelength[1]:
            raise ValueError(f"wavelength: found {self.wavelength}; wanted two, ascending [nm]")
        return self


FieldPolynomial = tuple[float, float, float, float, float, float]


class SlitlessOrder(FrozenSettings):
    """A diffraction order: trace, wavelength solution, throughput (see `csstdask.instrument.dispersion`)."""

    order: int = Field(description="Diffraction order; 0: undispersed image.")
    wavelength: tuple[float, float] = Field(description="First and last wavelength in vacuum [Angstrom].")
    dx: tuple[FieldPolynomial, ...] = Field(
        min_length=1,
        description="Offset along x [pixel]: a row for each power of t, with coefficients of 1, u, v, u^2, u v, v^2.",
    )
    dy: tuple[FieldPolynomial, ...] = Field(min_length=1, description="Offset along y [pixel], as dx.")
    throughput: tuple[tuple[float, float], ...] = Field(
        min_length=2,
        description="Pairs of wavelength [Angstrom] and throughput, ascending; interpolated monotonically.",
    )

    @model_validator(mode="after")
    def _check_order(self) -> SlitlessOrder:
        if not 0 < self.wavelength[0] < self.wavelength[1]:
            raise ValueError(f"wavelength: found {self.wavelength}; wanted two, ascending [Angstrom]")
        waves = [wavelength for wavelength, _ in self.throughput]
        if any(second <= first for first, second in pairwise(waves)):
            raise ValueError("throughput: found wavelengths that do not ascend; wanted ascending ones [Angstrom]")
        if self.order != 0 and (len(self.dx) < 2 or self.dx[1][0] == 0):
            raise ValueError(f"order {self.order}: found no dispersion (dx[1]); wanted one, except in order 0")
        return self


class SlitlessBand(FrozenSettings):
    """A grating."""

    resolution: float = Field(gt=0, description="R = wavelength / FWHM of a point source, pixel included.")
    sky: float = Field(ge=0, description="Typical sky in all orders [e-/s/pixel].")
    orders: tuple[SlitlessOrder, ...] = Field(min_length=1, description="Diffraction orders.")


class Telescope(FrozenSettings):
    """The telescope."""

    diameter: float = Field(gt=0, description="Diameter of the pupil [m].")
    obscuration: float = Field(
        0.0, ge=0, lt=1, description="Diameter of the central obscuration relative to the pupil."
    )
