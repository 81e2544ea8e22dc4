"""Star-forming knots along the arms of clumpy galaxies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.mock.catalogue import Catalogue

Float = npt.NDArray[np.float64]

_KNOT_COUNT = (6, 18)
"""Range of the number of knots of a clumpy galaxy."""


@dataclass(frozen=True)
class Knots:
    """Star-forming knots of one galaxy; all arrays (knot,)."""

    dx: Float
    """Offset from the centre along x [pixel]."""
    dy: Float
    """Offset from the centre along y [pixel]."""
    share: Float
    """Fraction of the light of the galaxy."""
    radius: Float
    """Half-light radius of the Gaussian profile [pixel]."""


def galaxy_knots(catalogue: Catalogue, i: int) -> Knots:
    """Return the knots of galaxy `i`, along two spiral arms of its disk."""
    # A separate stream, so that the knots do not depend on which other galaxies are drawn.
    key = [int(value) for value in np.array([catalogue.flux[i], catalogue.angle[i]]).view(np.uint32)]
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
    n = int(rng.integers(*_KNOT_COUNT))
    distance = catalogue.half_light_radius[i] * rng.uniform(0.25, 1.8, n)
    azimuth = 2.2 * np.log(distance / catalogue.half_light_radius[i] + 0.2) + np.pi * rng.integers(0, 2, n)
    azimuth += rng.normal(0, 0.25, n)
    along, across = distance * np.cos(azimuth), distance * np.sin(azimuth) * catalogue.axis_ratio[i]
    cos, sin = np.cos(catalogue.angle[i]), np.sin(catalogue.angle[i])
    light = rng.exponential(1.0, n)
    share = catalogue.knot_share[i] * (1 - catalogue.bulge_share[i]) * light / light.sum()
    radius = np.maximum(0.06 * catalogue.half_light_radius[i], 0.2) * np.ones(n)
    return Knots(along * cos - across * sin, along * sin + across * cos, share, radius)
