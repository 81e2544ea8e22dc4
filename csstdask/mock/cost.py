"""What a mock survey costs, before it is made."""

from __future__ import annotations

from dataclasses import dataclass

from csstdask.mock.recipe import Recipe
from csstdask.mock.recipe_tables import Slitless

#: Bytes a pixel that rendering a unit holds at its most (measured: `benchmarks/mock.py`).
BYTES_IN_MEMORY = 75
#: Bytes a pixel on disk, compressed: science, weight and flag, and the truth beside them.
_BYTES_ON_DISK = 14.5
#: Of one core [s]: a unit, a million pixels, a source, the PSFs of a frame, one exact PSF.
_A_UNIT, _A_MPIX, _A_SOURCE, _A_FRAME_PSF, _A_PSF = 0.03, 0.4, 6e-4, 0.4, 0.03


_A_SPECTRUM = 1e-3
"""A star of a slitless frame, its share of the tables included [s]."""
_BYTES_A_SPECTRUM = 7000
"""Of a star in the tables, with its SEDs."""
_AROUND = (470, 32)
"""Stars are drawn so far beyond a slitless frame, along x and y, both sides together [pixel]."""


@dataclass(frozen=True)
class Cost:
    """What rendering a recipe takes."""

    units: int
    pixels: int
    """Of one unit."""
    disk: int
    """[byte]"""
    memory: int
    """Of one unit [byte]."""
    seconds: float
    """Of one core."""

    def line(self, workers: int) -> str:
        """Return it for people."""
        minutes = self.seconds / workers / 60
        time = f"{minutes:.0f} min" if minutes >= 2 else f"{minutes * 60:.0f} s"
        return (
            f"{self.units} units of {self.pixels / 1e6:.2g} Mpix, about {self.disk / 1e9:.2g} GB on disk, "
            f"{self.memory / 2**30:.2g} GiB of memory each, about {time} on {workers} cores"
        )


def estimate_cost(recipe: Recipe) -> Cost:
    """Return what a recipe takes, as measured on one kind of machine: good to a factor of two."""
    ny, nx = recipe.frame_shape
    detectors = len(recipe.detectors)
    units, pixels = recipe.exposures * detectors, ny * nx
    mpix = pixels / 1e6
    seconds = units * (_A_UNIT + _A_MPIX * mpix)
    if recipe.slitless is not None:
        stars = units * _stars_of(recipe.slitless, mpix) * (1 + _AROUND[0] / nx) * (1 + _AROUND[1] / ny)
        disk = units * pixels * _BYTES_ON_DISK + stars * _BYTES_A_SPECTRUM
        return Cost(units, pixels, round(disk), BYTES_IN_MEMORY * pixels, seconds + _A_SPECTRUM * stars)
    # Exposures of one epoch share their PSFs.
    alike = recipe.span == 0 and recipe.optics.jitter_scatter == 0 and not recipe.optics.drawn
    alike = alike and recipe.zeropoint is None
    states = len(recipe.optics.enlarge) if alike else recipe.exposures
    seconds += _A_FRAME_PSF * detectors * min(states, recipe.exposures)
    stamps = recipe.stamps
    if recipe.nodes is None and (stamps is None or stamps.kind != "brightness"):
        fields = [recipe.field_of(index) for index in range(recipe.exposures)]
        stars = sum(field.stars for field in fields) * recipe.sky.stars_per_mpix
        galaxies = sum(field.galaxies for field in fields) * recipe.sky.galaxies_per_mpix
        seconds += _A_SOURCE * detectors * mpix * (stars + galaxies)
    disk = units * pixels * _BYTES_ON_DISK
    if stamps is not None:
        isolated = stamps.kind == "isolated"
        disk = units * stamps.per_unit * (stamps.size**2 * _BYTES_ON_DISK + isolated * 64 * 64 * 4)
        seconds += isolated * units * stamps.per_unit * _A_PSF * (2 if recipe.optics.exact else 1)
    return Cost(units, pixels, round(disk), BYTES_IN_MEMORY * pixels, seconds)


def _stars_of(slitless: Slitless, mpix: float) -> float:
    """Return the number of stars on a frame."""
    return slitless.stars if slitless.stars is not None else (slitless.stars_per_mpix or 0.0) * mpix
