"""What a mock survey is: a small TOML, validated."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from csstdask.toml_file import parse_toml, read_toml, validated


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Sky(_Part):
    """Sources."""

    stars_per_mpix: float = Field(300.0, ge=0, description="stars brighter than the faintest, a million pixels")
    galaxies_per_mpix: float = Field(500.0, ge=0)
    brightest: float = Field(16.0, description="[mag]")
    faintest: float = Field(26.0, description="[mag]")
    star_slope: float = Field(0.15, gt=0, description="d log10 N / d mag of stars")
    galaxy_slope: float = Field(0.35, gt=0, description="d log10 N / d mag of galaxies")


class CosmicRays(_Part):
    """Cosmic rays after the CSST papers' generator, in whole electrons."""

    pixel_fraction: float = Field(0.025, ge=0, le=0.3, description="share of pixels that hold charge")
    point_share: float = Field(0.4, ge=0, le=1, description="share of events without length")
    mean_length: float = Field(12.0, gt=0, description="of the others, exponential up to 100 [pixel]")
    worm_share: float = Field(0.2, ge=0, le=1, description="share of tracks that bend")
    log_charge: float = Field(3.3, description="mean log10 of an event's charge [e-]")
    log_charge_fwhm: float = Field(0.6, gt=0)
    diffusion: float = Field(0.2, gt=0, description="[pixel]")


class Ccd(_Part):
    """Detector defects."""

    dark: float = Field(0.02, ge=0, description="[e-/s/pixel]")
    hot_fraction: float = Field(2e-4, ge=0, le=0.1)
    flagged_share: float = Field(0.9, ge=0, le=1, description="share of hot pixels that the flags know")
    bad_columns: int = Field(2, ge=0)


class Recipe(_Part):
    """A mock survey. `scale` is linear, on `shape`."""

    name: str
    seed: int = Field(ge=0)
    scale: float = Field(1.0, gt=0)
    instrument: str = "csst"
    exposures: int = Field(4, ge=1)
    detectors: tuple[int, ...] = (7, 8, 9)
    shape: tuple[int, int] = (1024, 1024)
    exptime: float = Field(150.0, gt=0, description="[s]")
    pointing: tuple[float, float] = Field((60.0, -30.0), description="RA, Dec of the first exposure [deg]")
    sky: Sky = Sky()
    cosmic_rays: CosmicRays = CosmicRays()
    ccd: Ccd = Ccd()

    @property
    def frame_shape(self) -> tuple[int, int]:
        """Return (y, x) after scaling."""
        return max(32, round(self.shape[0] * self.scale)), max(32, round(self.shape[1] * self.scale))

    @property
    def exposure_ids(self) -> tuple[str, ...]:
        """Return the exposures' ids, eleven digits as the survey has them."""
        return tuple(f"{10_100_000_001 + index}" for index in range(self.exposures))


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe.

    Raises
    ------
    InputError
        Naming the file and every key that is missing, unknown or wrong.
    """
    file = Path(path)
    wanted = "a recipe, such as stores/demo.toml"
    return validated(Recipe, read_toml(file, wanted), str(file), "a valid recipe")


def demo_recipe() -> Recipe:
    """Return the recipe of ``csstdask demo``; ``stores/demo.toml`` is the same text, for people to copy."""
    text = resources.files("csstdask.mock").joinpath("demo.toml").read_text(encoding="utf-8")
    return validated(Recipe, parse_toml(text, "demo.toml", "a recipe"), "demo.toml", "a valid recipe")
