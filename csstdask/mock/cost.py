"""Estimate the cost of a mock survey before it is rendered."""

from __future__ import annotations

from dataclasses import dataclass

from csstdask.mock.recipe import Recipe
from csstdask.mock.recipe_tables import Slitless

BYTES_IN_MEMORY = 75
"""Peak memory of rendering a unit, measured by `benchmarks/mock.py` [byte/pixel]."""
_BYTES_ON_DISK = 14.5
"""Compressed size of science, weight, flag and truth [byte/pixel]."""
_SECONDS_PER_UNIT = 0.03
_SECONDS_PER_MPIX = 0.4
_SECONDS_PER_SOURCE = 6e-4
_SECONDS_PER_FRAME_PSF = 0.4
"""Time to compute the interpolated PSF of a frame on one core [s]."""
_SECONDS_PER_EXACT_PSF = 0.03
_SECONDS_PER_SPECTRUM = 1e-3
"""Time per star of a slitless frame on one core, including its tables [s]."""
_BYTES_PER_SPECTRUM = 7000
"""Size of a star in the tables of a slitless mock, with its SEDs [byte]."""
_SLITLESS_MARGINS = (470, 32)
"""Total margin along x and y in which stars of a slitless frame are drawn [pixel]."""


@dataclass(frozen=True)
class Cost:
    """Cost of rendering a recipe."""

    units: int
    """Number of units."""
    pixels: int
    """Number of pixels of one unit."""
    disk: int
    """Size on disk [byte]."""
    memory: int
    """Memory of one unit [byte]."""
    seconds: float
    """Time on one core [s]."""

    def line(self, workers: int) -> str:
        """Return a one-line summary."""
        minutes = self.seconds / workers / 60
        time = f"{minutes:.0f} min" if minutes >= 2 else f"{minutes * 60:.0f} s"
        return (
            f"{self.units} units of {self.pixels / 1e6:.2g} Mpix, about {self.disk / 1e9:.2g} GB on disk, "
            f"{self.memory / 2**30:.2g} GiB of memory each, about {time} on {workers} cores"
        )


def estimate_cost(recipe: Recipe) -> Cost:
    """Estimate the cost of a recipe, accurate to a factor of two.

    Examples
    --------
    >>> from csstdask.mock import load_recipe
    >>> estimate_cost(load_recipe("demo")).units
    12
    """
    ny, nx = recipe.frame_shape
    detectors = len(recipe.detectors)
    units, pixels = recipe.exposures * detectors, ny * nx
    mpix = pixels / 1e6
    seconds = units * (_SECONDS_PER_UNIT + _SECONDS_PER_MPIX * mpix)
    if recipe.slitless is not None:
        stars = (
            units * _stars_of(recipe.slitless, mpix) * (1 + _SLITLESS_MARGINS[0] / nx) * (1 + _SLITLESS_MARGINS[1] / ny)
        )
        disk = units * pixels * _BYTES_ON_DISK + stars * _BYTES_PER_SPECTRUM
        return Cost(units, pixels, round(disk), BYTES_IN_MEMORY * pixels, seconds + _SECONDS_PER_SPECTRUM * stars)
    # Exposures of one epoch share the PSF of a frame.
    shared_psf = recipe.span == 0 and recipe.optics.jitter_scatter == 0 and not recipe.optics.drawn
    shared_psf = shared_psf and recipe.zeropoint is None
    states = len(recipe.optics.enlarge) if shared_psf else recipe.exposures
    seconds += _SECONDS_PER_FRAME_PSF * detectors * min(states, recipe.exposures)
    stamps = recipe.stamps
    if recipe.nodes is None and (stamps is None or stamps.kind != "brightness"):
        fields = [recipe.field_of(index) for index in range(recipe.exposures)]
        stars = sum(field.stars for field in fields) * recipe.sky.stars_per_mpix
        galaxies = sum(field.galaxies for field in fields) * recipe.sky.galaxies_per_mpix
        seconds += _SECONDS_PER_SOURCE * detectors * mpix * (stars + galaxies)
    disk = units * pixels * _BYTES_ON_DISK
    if stamps is not None:
        isolated = stamps.kind == "isolated"
        disk = units * stamps.per_unit * (stamps.size**2 * _BYTES_ON_DISK + isolated * 64 * 64 * 4)
        seconds += isolated * units * stamps.per_unit * _SECONDS_PER_EXACT_PSF * (2 if recipe.optics.exact else 1)
    return Cost(units, pixels, round(disk), BYTES_IN_MEMORY * pixels, seconds)


def _stars_of(slitless: Slitless, mpix: float) -> float:
    """Return the number of stars on a slitless frame."""
    return slitless.stars if slitless.stars is not None else (slitless.stars_per_mpix or 0.0) * mpix
