"""Settings of a run: one schema for configuration files, validation, fingerprints and the reference of settings.

Each field has a description with its unit; ``csstdask config --defaults`` prints them, and
``RunConfig.model_json_schema()`` is the machine-readable reference.

Fields that were renamed accept their first name too. Fingerprints keep that first name (``serialization_alias``), so
that runs written before stay finished: `Section.decisive` returns the values that decide a result.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from csstdask.core.errors import StoreError
from csstdask.core.settings import read_toml, validate_settings
from csstdask.nn.models import NO_MODEL, NO_PSF, find_card
from csstdask.nn.precision import PrecisionSetting
from csstdask.store.store_metadata import open_group, read_attributes_copy, root_metadata


class Section(BaseModel):
    """One section of the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def decisive(self, include: Collection[str] | None = None, *, exclude: Collection[str] = ()) -> dict[str, Any]:
        """Return values for a fingerprint, under the first names of their fields.

        Parameters
        ----------
        include : collection of str, optional
            Names of fields; default: all.
        exclude : collection of str
            Names of fields that do not decide the result.
        """
        chosen = None if include is None else set(include)
        return self.model_dump(mode="json", by_alias=True, include=chosen, exclude=set(exclude))


@dataclass(frozen=True)
class ModelName:
    """Annotation of a field that names a model: checks it, and lets `MODEL_SETTINGS` list the field."""

    task: str
    """Task of the model, as in ``csstdask models``."""
    optional: bool = False
    """Whether ``none`` is allowed."""

    def check(self, name: str) -> str:
        """Return the name of an existing model; the path of a card becomes absolute, since workers run elsewhere."""
        if self.optional and name == NO_MODEL:
            return name
        find_card(self.task, name)
        return str(Path(name).resolve()) if name.endswith(".json") else name

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))


def _absolute(path: str) -> str:
    return str(Path(path).resolve())  # workers run in other folders


TablePath = Annotated[str, AfterValidator(_absolute)]
_MODEL_HELP = "name of a model (`csstdask models` lists them), or path of a model card"


class BackgroundSettings(Section):
    """Sky level and noise on a mesh."""

    box: int = Field(128, ge=8, description="size of a box of the mesh [pixel]")


class DetectSettings(Section):
    """Detection of cosmic rays."""

    model: Annotated[str, ModelName("cosmicray")] = Field("default", description=_MODEL_HELP)
    threshold: float | None = Field(
        None, ge=0, le=1, description="probability above which a pixel counts as hit; default: that of the model card"
    )
    rate: Annotated[float, Field(gt=0, lt=1)] | Literal["frame"] | None = Field(
        None,
        description="expected fraction of hit pixels, to which probabilities are rescaled; frame: estimated for each "
        "frame; default: that of the training data",
    )
    precision: PrecisionSetting = Field(
        "auto", description="arithmetic of a network; auto: the fastest of the machine whose masks agree with float32"
    )

    @model_validator(mode="after")
    def _int8_needs_ranges(self) -> DetectSettings:
        card = find_card("cosmicray", self.model)
        if self.precision == "int8" and card.architecture and not card.ranges:
            raise ValueError(f"precision = int8, but the card of {card.name} has no ranges of its layers")
        return self

    @model_validator(mode="after")
    def _rate_needs_a_prior(self) -> DetectSettings:
        if self.rate is not None and "prior" not in find_card("cosmicray", self.model).calibration:
            raise ValueError(f"rate = {self.rate}, but {self.model} was calibrated without a density of cosmic rays")
        return self


class RepairSettings(Section):
    """Repair of hit pixels."""

    model: Annotated[str, ModelName("inpaint")] = Field("default", description=_MODEL_HELP)
    psf: bool = Field(True, description="repair stars with the PSF fitted by the step psf, where there is one")


class SourcesSettings(Section):
    """Detection and photometry of sources."""

    threshold: float = Field(2.5, gt=0, description="minimum significance of a pixel [sigma of the sky]")
    min_area: int = Field(
        5,
        ge=1,
        validation_alias=AliasChoices("min_area", "least_area"),
        serialization_alias="least_area",
        description="minimum number of connected pixels of a source [pixel]",
    )
    aperture_radius: float = Field(4.0, gt=0, description="radius of the aperture of `flux_aperture` [pixel]")
    deblend_contrast: float = Field(
        0.005, ge=0, le=1, description="minimum fraction of a blend's flux that makes a separate source"
    )


def _check_gives_field(name: str) -> str:
    """Refuse a model that reconstructs single stars and gives no PSF field."""
    if name != NO_PSF and find_card("psf", name).architecture.get("kind") == "psfnet":
        raise ValueError(f"{name} reconstructs single stars and gives no PSF field; wanted principal or empirical")
    return name


class PsfSettings(Section):
    """Point spread function, fitted to the stars of a frame."""

    model: Annotated[str, ModelName("psf", optional=True), AfterValidator(_check_gives_field)] = Field(
        "default",
        description=f"{_MODEL_HELP}; {NO_PSF}: no PSF is fitted, and stars are repaired like everything else",
    )
    min_snr: float = Field(
        30.0,
        gt=0,
        validation_alias=AliasChoices("min_snr", "least_snr"),
        serialization_alias="least_snr",
        description="minimum signal-to-noise ratio of a star that the PSF is fitted to",
    )


class ExtractSettings(Section):
    """Slitless spectra of catalogue stars."""

    catalogue: TablePath | None = Field(
        None, description="Parquet table of stars (--catalogue); default: that of the campaign, if it has one"
    )
    spectra: TablePath | None = Field(
        None, description="Parquet table of the SEDs of these stars (--spectra); default: that of the campaign"
    )
    catalogue_sha256: str | None = Field(None, repr=False, description="SHA-256 of the catalogue, set by the run")
    spectra_sha256: str | None = Field(None, repr=False, description="SHA-256 of the SEDs, set by the run")


class FlatSettings(Section):
    """3-D flat-field cube of slitless detectors."""

    degree: int = Field(2, ge=0, le=6, description="total degree of the polynomials over the detector")
    common_error: float = Field(
        0.01, ge=0, description="relative error common to all SEDs; affects the sensitivity, not the flat"
    )


class ZeropointSettings(Section):
    """Photometric zero points."""

    reference: TablePath | None = Field(
        None, description="Parquet table of reference stars (--reference); default: that of the campaign, if it has one"
    )
    telemetry: TablePath | None = Field(
        None, description="Parquet table of telemetry (--telemetry); default: that of the campaign, if it has one"
    )
    match_radius: float = Field(1.0, gt=0, description="maximum distance of a match [arcsec]")
    color: tuple[str, str] | None = Field(
        None, description="two bands of the reference whose difference is the colour; default: the first known pair"
    )
    color_term: float = Field(0.0, description="expected colour term [mag / mag]")
    color_term_sigma: float = Field(0.1, gt=0, description="1 sigma of the expected colour term [mag / mag]")
    degree: int = Field(1, ge=0, le=4, description="total degree of the polynomials over the detector")
    min_snr: float = Field(
        20.0,
        gt=0,
        validation_alias=AliasChoices("min_snr", "least_snr"),
        serialization_alias="least_snr",
        description="minimum signal-to-noise ratio of a star",
    )
    overlap_stars: int = Field(
        200,
        ge=0,
        description="maximum number of bright isolated stars without a reference per unit, for the joint solution",
    )
    joint_stars: int = Field(
        500, ge=1, description="maximum number of stars with a reference per unit, for the joint solution"
    )
    epoch_days: float = Field(30.0, gt=0, description="time over which the grey term of a detector is constant [day]")
    grey_sigma: float = Field(
        0.02, gt=0, description="1 sigma of the grey term of a detector in an epoch, in the joint solution [mag]"
    )
    small_sigma: float = Field(
        0.002, gt=0, description="1 sigma of the term of a unit in addition to those of exposure and detector [mag]"
    )
    model: Annotated[str, ModelName("zeropoint", optional=True)] = Field(
        "default", description=f"{_MODEL_HELP}; {NO_MODEL}: only stars and recent zero points are used"
    )
    reference_sha256: str | None = Field(None, repr=False, description="SHA-256 of the reference, set by the run")
    telemetry_sha256: str | None = Field(None, repr=False, description="SHA-256 of the telemetry, set by the run")


class EngineSettings(Section):
    """Execution of a unit; threads and device decide rounding, and are part of fingerprints."""

    threads_per_unit: int = Field(1, ge=1, description="number of intra-op threads of one unit")
    device: str | None = Field(
        None,
        pattern=r"^(cpu|cuda(:\d+)?)$",
        description="device that networks run on: cpu, cuda or cuda:N; default: cuda with --scheduler cuda, else cpu",
    )


class RunConfig(Section):
    """All settings of a run."""

    background: BackgroundSettings = BackgroundSettings()
    detect: DetectSettings = DetectSettings()
    repair: RepairSettings = RepairSettings()
    sources: SourcesSettings = SourcesSettings()
    psf: PsfSettings = PsfSettings()
    extract: ExtractSettings = ExtractSettings()
    flat: FlatSettings = FlatSettings()
    zeropoint: ZeropointSettings = ZeropointSettings()
    engine: EngineSettings = EngineSettings()


def _sections() -> dict[str, type[Section]]:
    return {name: type(field.default) for name, field in RunConfig.model_fields.items()}


MODEL_SETTINGS: dict[tuple[str, str], str] = {
    (section, name): marker.task
    for section, settings in _sections().items()
    for name, field in settings.model_fields.items()
    for marker in field.metadata
    if isinstance(marker, ModelName)
}
"""Task of each setting that names a model, by (section, field)."""

INPUT_TABLES: dict[str, str] = {
    name: section
    for section, settings in _sections().items()
    for name in settings.model_fields
    if f"{name}_sha256" in settings.model_fields
}
"""Section of each input table, by its field: the settings keep its path and, as ``<name>_sha256``, its checksum."""


def with_input_tables(
    config: RunConfig,
    catalogue: Path | None = None,
    spectra: Path | None = None,
    reference: Path | None = None,
    telemetry: Path | None = None,
) -> RunConfig:
    """Return settings with other input tables (`INPUT_TABLES`), where these are given."""
    given = {"catalogue": catalogue, "spectra": spectra, "reference": reference, "telemetry": telemetry}
    for name, path in given.items():
        if path is not None:
            part = getattr(config, INPUT_TABLES[name]).model_copy(update={name: str(path.resolve())})
            config = config.model_copy(update={INPUT_TABLES[name]: part})
    return config


def load_config(path: Path | None) -> RunConfig:
    """Read settings from a TOML file, or from the store of a run; omitted settings have their defaults.

    Raises
    ------
    InputError, StoreError
        Naming the file and every key that is unknown or wrong.
    """
    if path is None:
        return RunConfig()
    if path.is_dir():
        return load_run_settings(path)
    return validate_settings(RunConfig, read_toml(path, "a configuration file"), str(path), "valid settings")


def to_toml(config: RunConfig) -> str:
    """Return settings as the text of a TOML file that `load_config` reads back, with a comment for each key.

    Examples
    --------
    >>> to_toml(RunConfig()).splitlines()[2:5]
    ['[background]  # Sky level and noise on a mesh', '# size of a box of the mesh [pixel]', 'box = 128']
    """
    lines = ["# Settings of csstdask run, for --config FILE.toml. Settings that are omitted keep their defaults."]
    for part in RunConfig.model_fields:
        settings = getattr(config, part)
        about = (type(settings).__doc__ or "").strip().splitlines()[0].rstrip(".")
        lines += ["", f"[{part}]  # {about}"]
        for name, field in type(settings).model_fields.items():
            if not field.repr:  # set by a run
                continue
            value = getattr(settings, name)
            choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
            one_of = f"; one of {', '.join(choices)}" if choices else ""
            lines.append(f"# {field.description or name.replace('_', ' ')}{one_of}")
            lines.append(f"# {name} is not set" if value is None else f"{name} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def load_run_settings(root: Path) -> RunConfig:
    """Return the settings of the last command of a run."""
    copy = read_attributes_copy(root)
    damaged = "config" in copy and ((root / "zarr.json").exists() is False or root_metadata(root) is None)
    return parse_run_settings(root, copy if damaged else dict(open_group(root, "run").attrs))


def parse_run_settings(root: Path, attributes: Mapping[str, Any]) -> RunConfig:
    """Return the settings among the attributes of a run's store.

    Raises
    ------
    StoreError
        If there are none, or they are those of an incompatible version.
    """
    if "config" not in attributes:
        raise StoreError(f"{root}: found a run that was stopped before it began; wanted one to look at (run it again)")
    try:
        return RunConfig.model_validate(relative_model_paths(root, dict(attributes["config"]), back=True))
    except (ValidationError, KeyError) as error:
        unknown = error.error_count() if isinstance(error, ValidationError) else 1
        raise StoreError(f"{root}: found settings of another version ({unknown} unknown); wanted ours") from None


def relative_model_paths(root: Path, config: dict[str, Any], *, back: bool = False) -> dict[str, Any]:
    """Make the paths of models that lie in a run relative to it; with `back`, make them absolute again.

    Sections and models that are missing, as in runs of an earlier version, get their defaults.
    """
    folder = f"{root.resolve()}/"
    for section, key in MODEL_SETTINGS:
        values = dict(config.get(section, {}))
        model = values.get(key, getattr(RunConfig.model_fields[section].default, key))
        if back and model.startswith("models/"):
            model = folder + model
        config[section] = values | {key: model if back else model.removeprefix(folder)}
    return config
