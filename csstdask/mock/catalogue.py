"""The table of true sources of a unit."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]


APERTURE_PIXELS = 49
"""Number of pixels of the aperture in which the signal-to-noise ratio of a source is defined."""


@dataclass(frozen=True)
class Catalogue:
    """True sources; all arrays (n,)."""

    x: Float
    """Zero-based position along x [pixel]."""
    y: Float
    """Zero-based position along y [pixel]."""
    mag: Float
    """AB magnitude in the band [mag]."""
    flux: Float
    """Flux [e-/s]."""
    is_star: npt.NDArray[np.bool_]
    temperature: Float
    """Temperature of the black body that defines the colour [K]."""
    half_light_radius: Float
    """Half-light radius of the disk along the major axis [pixel]; 0 for stars."""
    axis_ratio: Float
    """Minor over major axis."""
    angle: Float
    """Angle of the major axis from x to y [rad]."""
    bulge_share: Float
    """Fraction of the light in a de Vaucouleurs bulge."""
    bulge_radius: Float
    """Half-light radius of the bulge along the major axis [pixel]."""
    knot_share: Float
    """Fraction of the disk light in knots."""

    def __len__(self) -> int:
        return len(self.x)

    def select(self, keep: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> Catalogue:
        """Return the sources of a mask or of indices."""
        return Catalogue(**{field.name: getattr(self, field.name)[keep] for field in fields(self)})

    def shifted(self, dx: float, dy: float) -> Catalogue:
        """Return the sources with shifted positions."""
        return replace(self, x=self.x + dx, y=self.y + dy)


def empty_catalogue() -> Catalogue:
    """Return a catalogue without sources."""
    columns = {field.name: np.empty(0) for field in fields(Catalogue)}
    return Catalogue(**{**columns, "is_star": np.empty(0, dtype=bool)})


def concatenate(parts: list[Catalogue]) -> Catalogue:
    """Return several catalogues as one."""
    return Catalogue(
        **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Catalogue)}
    )
