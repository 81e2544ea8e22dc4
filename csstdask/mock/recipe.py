"""What a mock survey is: a small TOML, validated.

Each table of it is one part of the world: the sky, the telescope, the sensor, the cosmic rays. A recipe may be
`like` another: it then says only what differs, and its foreign twin stays a twin.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from csstdask.core.errors import InputError
from csstdask.core.settings import read_toml, validate_settings
from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.zeropoint_settings import ZeroPoints

Split = Literal["training", "validation", "test"]
Generator = Literal["tracks", "slab", "stis", "itl"]
#: The smallest frame that the camera's parts (channels, stamps, meshes) still make sense on.
_SMALLEST = 32
#: Where a survey without fields begins, and by how much each exposure goes on in RA [deg].
_FIRST_POINTING, _STEP = (60.0, -30.0), 1.2


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Sky(_Part):
    """Stars and galaxies of a field of ordinary density. Magnitudes are AB, in r."""

    stars_per_mpix: float = Field(300.0, ge=0, description="stars between the limits, a million pixels")
    galaxies_per_mpix: float = Field(500.0, ge=0)
    large_galaxies_per_mpix: float = Field(0.02, ge=0, description="resolved, many half-light radii across")
    brightest: float = Field(16.0, description="[mag]")
    faintest: float = Field(26.0, description="[mag]")
    star_slope: float = Field(0.15, gt=0, description="d log10 N / d mag of stars")
    galaxy_slope: float = Field(0.35, gt=0, description="d log10 N / d mag of galaxies")
    morphology: Literal["smooth", "clumpy"] = Field("smooth", description="clumpy: arms of star-forming knots")
    level: float = Field(1.0, ge=0, description="factor on the instrument's sky")
    gradient: float = Field(0.02, ge=0, le=0.5, description="of the sky over a detector, peak to peak / mean")

    @model_validator(mode="after")
    def _limits_ascend(self) -> Sky:
        if self.brightest >= self.faintest:
            raise ValueError(f"brightest {self.brightest} and faintest {self.faintest}: wanted magnitudes, ascending")
        return self


class Cluster(_Part):
    """A globular cluster: an old population with a King profile."""

    centre: tuple[float, float] = Field(description="RA, Dec [deg]")
    core_radius: float = Field(gt=0, description="[arcsec]")
    tidal_radius: float = Field(gt=0, description="[arcsec]")
    stars: int = Field(gt=0, description="brighter than the sky's faintest")
    turn_off: float = Field(description="magnitude in r of the main sequence's turn-off")


class SkyField(_Part):
    """A place on the sky; a recipe has one or several."""

    name: str = ""
    pointing: tuple[float, float] = Field(description="RA, Dec of the focal plane's centre [deg]")
    stars: float = Field(1.0, ge=0, description="factor on the sky's density of stars")
    galaxies: float = Field(1.0, ge=0, description="factor on the sky's density of galaxies")
    split: Split | None = Field(None, description="of this field, where a recipe's fields serve different ends")
    cluster: Cluster | None = None


class Pointing(_Part):
    """How exposures of one field differ."""

    dither: float = Field(0.0, ge=0, le=400, description="offsets are drawn up to this in x and y [pixel]")
    wcs_error: float = Field(0.0, ge=0, description="of the header's position, one sigma an axis [arcsec]")


class Nodes(_Part):
    """Stars on a grid of the detector instead of a sky: one star a node, of one signal to noise ratio."""

    per_axis: int = Field(30, ge=2, description="nodes along x and along y")
    snr: tuple[float, float] = Field((300.0, 300.0), description="drawn between, uniform in log")


class Optics(_Part):
    """The telescope as built, and how it ages. Recipes with one seed share one telescope."""

    seed: int = Field(2298, ge=0, description="of the as-built wavefront")
    wavefront: float = Field(70.0, ge=0, description="typical root mean square over the field [nm]")
    orders: tuple[int, int] = Field((4, 11), description="first and last Noll index")
    field_degree: int = Field(3, ge=0, le=6, description="of the polynomials over the focal plane")
    detector_step: float = Field(0.35, ge=0, description="share of the wavefront that jumps between detectors")
    band_step: float = Field(0.2, ge=0, description="share of the wavefront that belongs to the filter")
    mid_frequency: float = Field(0.0, ge=0, description="of polishing errors, root mean square [nm]")
    drift: float = Field(8.0, ge=0, description="of defocus and astigmatism with time, root mean square [nm]")
    jitter: float = Field(0.033, ge=0, description="of the line of sight, one sigma an axis [arcsec]")
    jitter_scatter: float = Field(0.0, ge=0, le=1, description="between exposures, one sigma of its natural log")
    jitter_shape: Literal["gaussian", "line"] = "gaussian"
    diffusion: float = Field(0.25, ge=0, description="of charge, one sigma [pixel]")
    enlarge: tuple[float, ...] = Field((0.0,), min_length=1, description="growth of R by a Gaussian; in turns")
    exact: bool = Field(False, description="each star has the PSF computed at its place, none is interpolated")
    drawn: bool = Field(False, description="each exposure sees through a telescope of its own, drawn by the seed")

    @model_validator(mode="after")
    def _drawn_or_said(self) -> Optics:
        fields = type(self).model_fields.items()
        said = {name for name, one in fields if getattr(self, name) != one.default} - {"seed", "drawn", "exact"}
        if self.drawn and said:
            raise ValueError(f"drawn, and {', '.join(sorted(said))}: wanted one or the other")
        return self

    @model_validator(mode="after")
    def _orders_ascend(self) -> Optics:
        if not 4 <= self.orders[0] <= self.orders[1] <= 66:
            raise ValueError(f"orders: found {self.orders}; wanted two Noll indices from 4 to 66, ascending")
        return self


class Sensor(_Part):
    """The CCDs: defects, how they grow, and effects that can each be switched off (0, or false)."""

    seed: int = Field(290, ge=0, description="of the defects: recipes with one seed share one camera")
    dark: float = Field(0.02, ge=0, description="at launch [e-/s/pixel]")
    dark_growth: float = Field(0.1, ge=0, description="a year, share of the dark at launch")
    hot_fraction: float = Field(1e-4, ge=0, le=0.1, description="pixels hot at launch")
    hot_growth: float = Field(1e-4, ge=0, le=0.1, description="a year, pixels that turn hot")
    warm_fraction: float = Field(5e-4, ge=0, le=0.1, description="pixels warm at launch; they grow as hot ones do")
    flagged_share: float = Field(0.9, ge=0, le=1, description="share of hot, warm and bad pixels that the flags know")
    bad_fraction: float = Field(2e-5, ge=0, le=0.1, description="dead pixels, in small clusters")
    bad_columns: int = Field(2, ge=0)
    cti: float = Field(0.004, ge=0, description="charge lost a year by 1000 e-, read through all rows")
    brighter_fatter: float = Field(1.5e-7, ge=0, le=1e-6, description="shift of a pixel's edge [pixel/e-]")
    non_linearity: float = Field(0.01, ge=0, le=0.1, description="of the electronics at full well")
    prnu: float = Field(0.008, ge=0, le=0.1, description="pixel response non-uniformity, one sigma")
    vignetting: float = Field(0.03, ge=0, le=0.5, description="smooth part of the flat, peak to peak")
    channels: bool = Field(True, description="16 channels with gain and bias of their own")
    bias_structure: float = Field(1.5, ge=0, description="of columns, one sigma [adu]")
    fringing: float = Field(0.02, ge=0, le=0.2, description="of the sky in z, half of it in i, twice in y")
    noise: Literal["gaussian", "correlated"] = Field(
        "gaussian", description="correlated: rows that jump, slow waves along them, tails"
    )
    calibration_frames: int = Field(16, ge=1, description="bias, dark and flat frames that Level 1 was made with")
    gain_error: float = Field(1e-3, ge=0, le=0.1, description="of the gains that Level 1 was made with, relative")


class CosmicRays(_Part):
    """Cosmic rays in whole electrons.

    Generators: `tracks`, the rejection paper's (impact fraction, lengths, log-Gaussian charge); `slab`, particles
    from all directions through a slab of silicon; `stis` and `itl`, real events of those libraries.
    """

    generators: tuple[Generator, ...] = Field(("tracks",), min_length=1, description="exposures take turns")
    pixel_fraction: tuple[float, ...] = Field((0.025,), description="share of pixels with charge; exposures take turns")
    point_share: float = Field(0.4, ge=0, le=1, description="tracks: share of events without length")
    mean_length: float = Field(12.0, gt=0, description="tracks: of the others, exponential up to 100 [pixel]")
    worm_share: float = Field(0.2, ge=0, le=1, description="share of tracks that wander")
    log_charge: float = Field(3.3, description="tracks: mean log10 of an event's charge [e-]")
    log_charge_fwhm: float = Field(0.6, gt=0)
    diffusion: float = Field(0.2, gt=0, le=2, description="[pixel]; of the slab at its far side")
    thickness: float = Field(1.6, gt=0, description="slab: of the silicon [pixel]")
    rate_scatter: float = Field(0.0, ge=0, le=2, description="of an exposure's rate, one sigma of its natural log")
    anomaly_share: float = Field(0.0, ge=0, le=1, description="share of exposures in the South Atlantic anomaly")
    anomaly_factor: float = Field(4.0, ge=1, description="on the rate there")
    solar_cycle: float = Field(0.0, ge=0, lt=1, description="amplitude of the rate over eleven years")
    events_from: Split | None = Field(None, description="stis, itl: which part of the library; default: the split")

    @model_validator(mode="after")
    def _fractions(self) -> CosmicRays:
        if not self.pixel_fraction or not all(0 <= value <= 0.3 for value in self.pixel_fraction):
            raise ValueError(f"pixel_fraction: found {self.pixel_fraction}; wanted one or more, each from 0 to 0.3")
        return self


class Artefacts(_Part):
    """Light that is neither a source nor a cosmic ray."""

    satellites: float = Field(0.1, ge=0, description="trails a detector and exposure, on average")
    ghosts_above: float = Field(15.5, description="stars brighter than this have a ghost [mag]")
    ghost_share: float = Field(2e-4, ge=0, le=0.1, description="of the star's light in its ghost")


class Stamps(_Part):
    """Cut-outs round sources; where a recipe has this table, they are kept and the frames are not."""

    kind: Literal["isolated", "brightness", "injected"] = Field(
        description="isolated: every isolated star; injected: sources with a cosmic ray moved onto them; brightness: "
        "the same, sources of given magnitudes, many cosmic rays each"
    )
    size: int = Field(64, ge=16, le=256, description="[pixel]")
    per_unit: int = Field(150, ge=1, description="at most; a unit has room for so many")
    snr: float = Field(20.0, ge=0, description="least, of the source's whole light")
    separation: float = Field(12.0, ge=0, description="isolated: from any star or galaxy of 1 % of its light [pixel]")
    extent: int = Field(10, ge=1, description="injected: least number of pixels above the noise")
    magnitudes: tuple[float, ...] = Field((17.0, 19.0, 21.0, 23.0), description="brightness: wanted, in the band")
    cosmic_rays_each: int = Field(100, ge=1, description="brightness: cosmic rays on each source")
    offset: tuple[float, float] = Field((0.0, 10.0), description="of the cosmic ray from the source [pixel]")


class Slitless(_Part):
    """Slitless spectra of stars: a recipe with this table has frames of slitless detectors."""

    seed: int = Field(574, ge=0, description="of flat and sensitivity: recipes with one seed share one camera")
    stars: int | None = Field(None, ge=0, description="on a frame; as many for the same area around it are added")
    stars_per_mpix: float | None = Field(None, ge=0, description="instead of `stars`")
    separation: float = Field(
        0.0, ge=0, description="least distance across of stars whose spectra overlap along x; 0: any [pixel]"
    )
    flux_5556: tuple[float, float] = Field(
        (1e-15, 1e-14), description="mean flux in 5526-5586 A, uniform in log [erg s-1 cm-2 A-1]"
    )
    proper_motion: float = Field(10.0, ge=0, description="one sigma an axis [mas/yr]")
    seds: str = Field("desi-atlas9.npz", description="library of SEDs: shipped, next to the recipe, or in --data DIR")
    flat_amplitude: float = Field(0.02, ge=0, le=0.1, description="of each term of the flat, one sigma")
    flat_degree: int = Field(2, ge=0, le=6, description="of the flat, total in x and y")
    sensitivity_error: float = Field(0.03, ge=0, le=0.2, description="of the nominal sensitivity, smooth, one sigma")
    dispersion_shift: float = Field(0.0, ge=0, description="of an exposure's first orders along x, one sigma [pixel]")
    sed_sigma: float = Field(0.0, ge=0, le=0.5, description="relative error of the SEDs given, at 3400 A, one sigma")
    flux_error: float = Field(0.0, ge=0, le=0.5, description="relative error of the catalogue's flux_5556, one sigma")
    bad_share: float = Field(0.0, ge=0, le=1, description="of stars that are variable or misidentified")

    @model_validator(mode="after")
    def _drawable(self) -> Slitless:
        if (self.stars is None) == (self.stars_per_mpix is None):
            raise ValueError("found both or none of stars and stars_per_mpix; wanted one of them")
        if not 0 < self.flux_5556[0] <= self.flux_5556[1]:
            raise ValueError(f"flux_5556: found {self.flux_5556}; wanted two positive fluxes, ascending")
        return self


class Recipe(_Part):
    """A mock survey. `scale` is linear, on `shape`."""

    @model_validator(mode="before")
    @classmethod
    def _of_json(cls, data: Any) -> Any:
        """Accept JSON text, as the attributes of an opened campaign hold it."""
        return json.loads(data) if isinstance(data, str) else data

    name: str
    seed: int = Field(ge=0)
    split: Split | None = Field(None, description="what its data may be used for; decides which real events it sees")
    scale: float = Field(1.0, gt=0)
    instrument: str = "csst"
    exposures: int = Field(4, ge=1)
    detectors: tuple[int, ...] = (7, 8, 9)
    shape: tuple[int, int] = (1024, 1024)
    exptime: float = Field(150.0, gt=0, description="[s]")
    epoch: float = Field(0.0, ge=0, description="of the first exposure, years after launch")
    span: float = Field(0.0, ge=0, description="years between the first and the last exposure; 0: one after another")
    fields: tuple[SkyField, ...] = Field((), description="none: each exposure sees one of its own")
    pointing: Pointing = Pointing()
    sky: Sky = Sky()
    nodes: Nodes | None = None
    optics: Optics = Optics()
    sensor: Sensor = Sensor()
    artefacts: Artefacts = Artefacts()
    cosmic_rays: CosmicRays = CosmicRays()
    stamps: Stamps | None = None
    slitless: Slitless | None = None
    zeropoint: ZeroPoints | None = None

    @field_validator("detectors")
    @classmethod
    def _some_and_once(cls, detectors: tuple[int, ...]) -> tuple[int, ...]:
        if not detectors or len(set(detectors)) != len(detectors):
            raise ValueError(f"found {list(detectors)}; wanted one or more, each once")
        return detectors

    @field_validator("shape")
    @classmethod
    def _positive(cls, shape: tuple[int, int]) -> tuple[int, int]:
        if min(shape) < 1:
            raise ValueError(f"found {shape}; wanted two positive lengths (y, x)")
        return shape

    @property
    def frame_shape(self) -> tuple[int, int]:
        """Return (y, x) after scaling."""
        return max(_SMALLEST, round(self.shape[0] * self.scale)), max(_SMALLEST, round(self.shape[1] * self.scale))

    @property
    def exposure_ids(self) -> tuple[str, ...]:
        """Return the exposures' ids, eleven digits as the survey has them."""
        return tuple(f"{10_100_000_001 + index}" for index in range(self.exposures))

    def turn(self, purpose: Purpose, index: int, n: int) -> int:
        """Return which of n things has its turn in an exposure.

        All have it equally often, in an order of their own: so that fields, generators and densities that take turns
        are not tied to each other, nor to the detectors' age.
        """
        order = stream(self.seed, purpose).permutation(self.exposures)
        return int(order[index]) % n

    def field_index(self, index: int) -> int:
        """Return which field an exposure sees."""
        return self.turn(Purpose.POINTING, index, len(self.fields)) if self.fields else index

    def field_of(self, index: int) -> SkyField:
        """Return the field that an exposure sees."""
        if self.fields:
            return self.fields[self.field_index(index)]
        turns, way = divmod(_FIRST_POINTING[0] + _STEP * index, 360)
        return SkyField(pointing=(way, _FIRST_POINTING[1] + _STEP * turns))

    def split_of(self, index: int) -> Split | None:
        """Return what an exposure may be used for: its field's split, or the recipe's."""
        return self.field_of(index).split or self.split

    def epoch_of(self, index: int) -> float:
        """Return when an exposure is made [years after launch]."""
        return self.epoch + self.span * index / max(1, self.exposures - 1)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _read(file: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if file in seen:
        raise InputError(file, f"a recipe like itself, by way of {seen[-1].name}", "one that ends at a whole recipe")
    table = read_toml(file, "a recipe, such as stores/demo.toml")
    like = table.pop("like", [])
    names = [like] if isinstance(like, str) else like
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(file, f"like = {like!r}", "the file name of another recipe, or several")
    for name in reversed(names):  # of several, the last has the last word
        table = _merge(_read(file.parent / name, (*seen, file)), table)
    return table


def bundled_recipes() -> Path:
    """Return the folder of the recipes that come with csstdask: in the package, or ``stores`` of its source."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "stores"


def find_recipe(path: str | Path) -> Path:
    """Return a recipe's file: the given one, or the bundled recipe of that name.

    Raises
    ------
    InputError
        If there is neither; it lists the bundled names.
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
        A file, or the name of a recipe that comes with csstdask, such as ``demo``.
    scale : float, optional
        In place of the recipe's own.

    Raises
    ------
    InputError
        Naming the file and every key that is missing, unknown or wrong.

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
