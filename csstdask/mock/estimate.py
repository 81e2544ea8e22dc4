"""What a mock survey costs, before it is made."""

from __future__ import annotations

from dataclasses import dataclass

from csstdask.mock.recipe import Recipe

#: Bytes a pixel that rendering a unit holds at its most (measured: `benchmarks/mock.py`).
BYTES_IN_MEMORY = 85
#: Bytes a pixel on disk, compressed: science, weight and flag, and the truth beside them.
_BYTES_ON_DISK = 14.5
#: Of one core: a unit, a million pixels with some 250 sources, an exact PSF [s] (measured: `benchmarks/mock.py`).
_SECONDS_A_UNIT, _SECONDS_A_MPIX, _SECONDS_A_PSF = 0.4, 0.55, 0.03


@dataclass(frozen=True)
class Estimate:
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
            f"{self.units} units of {self.pixels / 1e6:.2f} Mpix, about {self.disk / 1e9:.2g} GB on disk, "
            f"{self.memory / 2**30:.2g} GiB of memory each, about {time} on {workers} cores"
        )


def estimate(recipe: Recipe) -> Estimate:
    """Return what a recipe takes, as measured on one kind of machine: good to a factor of two."""
    ny, nx = recipe.frame_shape
    units, pixels = recipe.exposures * len(recipe.detectors), ny * nx
    seconds = units * (_SECONDS_A_UNIT + _SECONDS_A_MPIX * pixels / 1e6)
    disk = units * pixels * _BYTES_ON_DISK
    if recipe.stamps is not None:
        stamps, psf = recipe.stamps.per_unit, 0
        if recipe.stamps.kind == "isolated":
            psf = 64 * 64 * 4
            seconds += units * stamps * _SECONDS_A_PSF * (2 if recipe.optics.exact else 1)
        disk = units * stamps * (recipe.stamps.size**2 * _BYTES_ON_DISK + psf)
    return Estimate(units, pixels, round(disk), BYTES_IN_MEMORY * pixels, seconds)
