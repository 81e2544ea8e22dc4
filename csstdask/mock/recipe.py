"""A mock survey: the validated content of a small TOML file.

Each table of a recipe describes one part of the simulated world: sky, telescope, sensor, cosmic rays
(`csstdask.mock.recipe_tables`). With the key ``like`` a recipe inherits from others and states only the differences.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from csstdask.core.errors import InputError
from csstdask.core.settings import FrozenSettings, read_toml, validate_settings
from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.recipe_tables import (
    Artefacts,
    CosmicRays,
    Nodes,
    Optics,
    Pointing,
    Sensor,
    Sky,
    SkyField,
    Slitless,
    Split,
    Stamps,
)
from csstdask.mock.zeropoint_settings import ZeroPoints

_MIN_SIDE = 32
"""Smallest side of a frame on which read-out channels, stamps and background meshes still work [pixel]."""
_FIRST_POINTING = (60.0, -30.0)
"""Pointing of the first exposure of a recipe without fields, right ascension and declination [deg]."""
_POINTING_STEP = 1.2
"""Step in right ascension between the exposures of a recipe without fields [deg]."""


class Recipe(FrozenSettings):
    """A mock survey."""

    @model_validator(mode="before")
    @classmethod
    def _parse_json(cls, data: Any) -> Any:
        """Accept JSON text, the form in which the attributes of an opened campaign hold a recipe."""
        return json.loads(data) if isinstance(data, str) else data

    name: str = Field(description="Name of the recipe.")
    seed: int = Field(ge=0, description="Seed of the sky, the photons and the cosmic rays.")
    split: Split | None = Field(
        None, description="Permitted use of the data; also selects the part of the real event libraries."
    )
    scale: float = Field(1.0, gt=0, description="Linear scale factor of `shape`.")
    instrument: str = Field("csst", description="Name of a built-in instrument.")
    exposures: int = Field(4, ge=1, description="Number of exposures.")
    detectors: tuple[int, ...] = Field((7, 8, 9), description="Detector ids.")
    shape: tuple[int, int] = Field((1024, 1024), description="Frame shape (y, x) before scaling [pixel].")
    exptime: float = Field(150.0, gt=0, description="Exposure time [s].")
    epoch: float = Field(0.0, ge=0, description="Time of the first exposure after launch [yr].")
    span: float = Field(
        0.0, ge=0, description="Time between the first and the last exposure; 0: every 210 seconds [yr]."
    )
    fields: tuple[SkyField, ...] = Field(
        (), description="Fields over which exposures take turns; without fields each exposure has a separate pointing."
    )
    pointing: Pointing = Field(Pointing(), description="Dithers and errors of the pointing.")
    sky: Sky = Field(Sky(), description="Densities and magnitudes of stars and galaxies, sky level.")
    nodes: Nodes | None = Field(None, description="Stars on a grid instead of a sky.")
    optics: Optics = Field(Optics(), description="The telescope.")
    sensor: Sensor = Field(Sensor(), description="The detectors.")
    artefacts: Artefacts = Field(Artefacts(), description="Satellite trails and ghosts.")
    cosmic_rays: CosmicRays = Field(CosmicRays(), description="Cosmic rays.")
    stamps: Stamps | None = Field(None, description="Cut-outs to store instead of frames.")
    slitless: Slitless | None = Field(None, description="Slitless spectra.")
    zeropoint: ZeroPoints | None = Field(None, description="Throughput that follows telemetry.")

    @field_validator("detectors")
    @classmethod
    def _check_detectors(cls, detectors: tuple[int, ...]) -> tuple[int, ...]:
        if not detectors or len(set(detectors)) != len(detectors):
            raise ValueError(f"found {list(detectors)}; wanted one or more, each once")
        return detectors

    @field_validator("shape")
    @classmethod
    def _check_shape(cls, shape: tuple[int, int]) -> tuple[int, int]:
        if min(shape) < 1:
            raise ValueError(f"found {shape}; wanted two positive lengths (y, x)")
        return shape

    @property
    def frame_shape(self) -> tuple[int, int]:
        """Return (y, x) after scaling."""
        return max(_MIN_SIDE, round(self.shape[0] * self.scale)), max(_MIN_SIDE, round(self.shape[1] * self.scale))

    @property
    def exposure_ids(self) -> tuple[str, ...]:
        """Return the exposure ids: eleven digits, as in the survey."""
        return tuple(f"{10_100_000_001 + index}" for index in range(self.exposures))

    def assigned(self, purpose: Purpose, index: int, n: int) -> int:
        """Return which of n alternatives an exposure is assigned to.

        Alternatives are used equally often, in a random order that depends on the purpose. Fields, generators and
        densities are therefore not correlated with each other, nor with the age of the detectors.
        """
        order = stream(self.seed, purpose).permutation(self.exposures)
        return int(order[index]) % n

    def field_index(self, index: int) -> int:
        """Return the index of the field of an exposure."""
        return self.assigned(Purpose.POINTING, index, len(self.fields)) if self.fields else index

    def field_of(self, index: int) -> SkyField:
        """Return the field of an exposure."""
        if self.fields:
            return self.fields[self.field_index(index)]
        rows, right_ascension = divmod(_FIRST_POINTING[0] + _POINTING_STEP * index, 360)
        return SkyField(pointing=(right_ascension, _FIRST_POINTING[1] + _POINTING_STEP * rows))

    def split_of(self, index: int) -> Split | None:
        """Return the permitted use of an exposure: the split of its field, or that of the recipe."""
        return self.field_of(index).split or self.split

    def epoch_of(self, index: int) -> float:
        """Return the time of an exposure after launch [yr]."""
        return self.epoch + self.span * index / max(1, self.exposures - 1)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return nested tables merged; values of `over` take precedence."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _read(file: Path, inheriting: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the table of a recipe with the keys that it inherits by ``like``; later names take precedence."""
    if file in inheriting:
        found = f"a recipe that inherits from itself, through {inheriting[-1].name}"
        raise InputError(file, found, "a chain of `like` that ends")
    table = read_toml(file, "a recipe, such as stores/demo.toml")
    like = table.pop("like", [])
    names = [like] if isinstance(like, str) else like
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(file, f"like = {like!r}", "the file name of another recipe, or several")
    for name in reversed(names):
        table = _merge(_read(file.parent / name, (*inheriting, file)), table)
    return table


def bundled_recipes() -> Path:
    """Return the folder of the bundled recipes: ``recipes`` of the package, or ``stores`` of a source tree."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "stores"


def find_recipe(path: str | Path) -> Path:
    """Return the file of a recipe: the given path, or the bundled recipe of that name.

    Raises
    ------
    InputError
        If there is neither. The message lists the bundled recipes.
    """
    file = Path(path)
    bundled = bundled_recipes() / f"{file.stem}.toml"
    if file.is_file() or file.parent != Path() or file.suffix not in ("", ".toml"):
        return file
    if not bundled.exists():
        names = ", ".join(sorted(recipe.stem for recipe in bundled_recipes().glob("*.toml")))
        raise InputError(file, "no such recipe", f"a TOML file, or a bundled recipe: {names}")
    return bundled


def load_recipe(path: str | Path, *, scale: float | None = None) -> Recipe:
    """Read a recipe.

    Parameters
    ----------
    path : path
        A TOML file, or the name of a bundled recipe such as ``demo``.
    scale : float, optional
        Linear scale factor that replaces that of the recipe.

    Returns
    -------
    Recipe

    Raises
    ------
    InputError
        If a key is missing, unknown or wrong. The message names the file and each such key.

    Examples
    --------
    >>> load_recipe("demo", scale=0.1).frame_shape
    (102, 102)
    """
    file = find_recipe(path)
    table = _read(file) | ({} if scale is None else {"scale": scale})
    slitless = table.get("slitless")
    if isinstance(slitless, dict) and isinstance(slitless.get("seds"), str):
        near = file.parent / slitless["seds"]
        if near.is_file():
            table["slitless"] = slitless | {"seds": str(near.absolute())}
    return validate_settings(Recipe, table, str(file), "a valid recipe")


def demo_recipe() -> Recipe:
    """Return the recipe of ``csstdask demo``, ``stores/demo.toml``."""
    return load_recipe(bundled_recipes() / "demo.toml")
