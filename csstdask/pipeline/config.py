"""The settings of a run: one schema makes configuration file, validation and fingerprint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from csstdask.core.errors import StoreError
from csstdask.core.settings import read_toml, validate_settings
from csstdask.nn.models import NO_MODEL, NO_PSF, find_card
from csstdask.store.store_metadata import open_group, read_attributes_copy, root_metadata


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BackgroundSettings(_Settings):
    """Sky and noise on a mesh."""

    box: int = Field(128, ge=8, description="size of a box [pixel]")


def _model_for(task: str, *, or_none: bool = False) -> AfterValidator:
    def check(name: str) -> str:
        if or_none and name == NO_MODEL:
            return name
        find_card(task, name)
        return str(Path(name).resolve()) if name.endswith(".json") else name  # workers have folders of their own

    return AfterValidator(check)


_MODEL_HELP = "a name that `csstdask models` lists, or the path of a model card"


class DetectSettings(_Settings):
    """Cosmic-ray detection."""

    model: Annotated[str, _model_for("cosmicray")] = Field("default", description=_MODEL_HELP)
    threshold: float | None = Field(
        None, ge=0, le=1, description="probability from which a pixel is hit; default: the model card's"
    )
    rate: Annotated[float, Field(gt=0, lt=1)] | Literal["frame"] | None = Field(
        None, description="share of pixels hit, to rescale probabilities to; frame: each frame's own"
    )
    precision: Literal["float32", "bfloat16", "int8"] = Field("float32", description="arithmetic of a network")

    @model_validator(mode="after")
    def _int8_needs_ranges(self) -> DetectSettings:
        card = find_card("cosmicray", self.model)
        if self.precision == "int8" and card.architecture and not card.ranges:
            raise ValueError(f"precision = int8, but the card of {card.name} says nothing of its layers' ranges")
        return self

    @model_validator(mode="after")
    def _rate_needs_a_density(self) -> DetectSettings:
        if self.rate is not None and "prior" not in find_card("cosmicray", self.model).calibration:
            raise ValueError(f"rate = {self.rate}, but {self.model} was calibrated without a density of cosmic rays")
        return self


class RepairSettings(_Settings):
    """Repair of hit pixels."""

    model: Annotated[str, _model_for("inpaint")] = Field("default", description=_MODEL_HELP)
    psf: bool = Field(True, description="repair stars by the PSF that the step psf has fitted, where it has one")


class SourcesSettings(_Settings):
    """Source detection and photometry."""

    threshold: float = Field(2.5, gt=0, description="least significance of a pixel [sigma of the sky]")
    least_area: int = Field(5, ge=1, description="least number of connected pixels")
    aperture_radius: float = Field(4.0, gt=0, description="radius of the aperture of `flux_aperture` [pixel]")
    deblend_contrast: float = Field(
        0.005, ge=0, le=1, description="smallest share of a blend's flux that makes a separate source"
    )


def _with_fields(name: str) -> str:
    """Refuse a model of single stars, which gives no field."""
    if name != NO_PSF and find_card("psf", name).architecture.get("kind") == "psfnet":
        raise ValueError(f"{name} sees single stars and gives no PSF field; wanted principal or empirical")
    return name


class PsfSettings(_Settings):
    """The point spread function, from a frame's stars."""

    model: Annotated[str, _model_for("psf", or_none=True), AfterValidator(_with_fields)] = Field(
        "default", description=f"{_MODEL_HELP}; {NO_PSF}: no PSF is fitted, and stars are repaired as everything else"
    )
    least_snr: float = Field(30.0, gt=0, description="least signal-to-noise ratio of a star that it is fitted to")


def _absolute(path: str) -> str:
    return str(Path(path).resolve())  # workers run in other folders


class ExtractSettings(_Settings):
    """Slitless spectra of catalogue stars."""

    catalogue: Annotated[str, AfterValidator(_absolute)] | None = Field(
        None, description="Parquet table of stars (--catalogue); default: that of the campaign, if it holds one"
    )
    spectra: Annotated[str, AfterValidator(_absolute)] | None = Field(
        None, description="Parquet table of their SEDs (--spectra); default: that of the campaign, if it holds one"
    )
    catalogue_sha256: str | None = Field(None, repr=False, description="checksum of the catalogue that was used")
    spectra_sha256: str | None = Field(None, repr=False, description="checksum of the SEDs that were used")


class FlatSettings(_Settings):
    """The 3-D flat-field cube."""

    degree: int = Field(2, ge=0, le=6, description="total degree of the polynomials over the detector")
    common_error: float = Field(
        0.01, ge=0, description="relative error that all SEDs share: of the sensitivity alone, not of the flat"
    )


class ZeropointSettings(_Settings):
    """Photometric zero points."""

    reference: Annotated[str, AfterValidator(_absolute)] | None = Field(
        None, description="Parquet table of reference stars (--reference); default: that of the campaign, if it has one"
    )
    telemetry: Annotated[str, AfterValidator(_absolute)] | None = Field(
        None, description="Parquet table of telemetry (--telemetry); default: that of the campaign, if it has one"
    )
    match_radius: float = Field(1.0, gt=0, description="largest distance of a match [arcsec]")
    color: tuple[str, str] | None = Field(
        None, description="two bands of the reference whose difference is the colour; default: the first known pair"
    )
    color_term: float = Field(0.0, description="expected colour term [mag / mag]")
    color_term_sigma: float = Field(0.1, gt=0, description="1 sigma of the expected colour term [mag / mag]")
    degree: int = Field(1, ge=0, le=4, description="total degree of the polynomials over the detector")
    least_snr: float = Field(20.0, gt=0, description="least signal-to-noise ratio of a star")
    overlap_stars: int = Field(
        200, ge=0, description="brightest isolated stars without a reference that a unit adds to the joint solution"
    )
    joint_stars: int = Field(
        500, ge=1, description="best stars with a reference that a unit adds to the joint solution"
    )
    epoch_days: float = Field(30.0, gt=0, description="time over which the grey term of a detector is constant [day]")
    grey_sigma: float = Field(
        0.02, gt=0, description="1 sigma of the term of a detector in an epoch, in the joint solution [mag]"
    )
    small_sigma: float = Field(
        0.002, gt=0, description="1 sigma of the term of a unit beyond exposure and detector [mag]"
    )
    model: Annotated[str, _model_for("zeropoint", or_none=True)] = Field(
        "default", description=f"{_MODEL_HELP}; {NO_MODEL}: stars and recent zero points alone"
    )
    reference_sha256: str | None = Field(None, repr=False, description="checksum of the reference that was used")
    telemetry_sha256: str | None = Field(None, repr=False, description="checksum of the telemetry that was used")


class EngineSettings(_Settings):
    """What the engine does; threads and device decide rounding and are fingerprinted."""

    threads_per_unit: int = Field(1, ge=1, description="intra-op threads of one unit")
    device: str | None = Field(
        None,
        pattern=r"^(cpu|cuda(:\d+)?)$",
        description="where networks run; default: cuda with --scheduler cuda, else the host",
    )


#: Settings that name a model (part, key), and its task.
MODEL_SETTINGS = {
    ("detect", "model"): "cosmicray", ("repair", "model"): "inpaint", ("psf", "model"): "psf",
    ("zeropoint", "model"): "zeropoint",
}  # fmt: skip


class RunConfig(_Settings):
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


INPUT_TABLES = {
    "catalogue": "extract", "spectra": "extract", "reference": "zeropoint", "telemetry": "zeropoint",
}  # fmt: skip
"""Options that name a table, and the part of the settings that keeps it."""


def with_input_tables(
    config: RunConfig,
    catalogue: Path | None = None,
    spectra: Path | None = None,
    reference: Path | None = None,
    telemetry: Path | None = None,
) -> RunConfig:
    """Return settings with other tables of stars, SEDs, reference stars and telemetry, where these are given."""
    given = {"catalogue": catalogue, "spectra": spectra, "reference": reference, "telemetry": telemetry}
    for name, path in given.items():
        if path is not None:
            part = getattr(config, INPUT_TABLES[name]).model_copy(update={name: str(path.resolve())})
            config = config.model_copy(update={INPUT_TABLES[name]: part})
    return config


def load_config(path: Path | None) -> RunConfig:
    """Read settings from a TOML file, defaults where it says nothing; or return those of a run, given its store.

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
    >>> as_toml(RunConfig()).splitlines()[2:5]
    ['[background]  # Sky and noise on a mesh', '# size of a box [pixel]', 'box = 128']
    """
    lines = ["# Settings of csstdask run, for --config FILE.toml. Settings that are omitted keep their defaults."]
    for part in RunConfig.model_fields:
        settings = getattr(config, part)
        about = (type(settings).__doc__ or "").strip().splitlines()[0].rstrip(".")
        lines += ["", f"[{part}]  # {about}"]
        for name, field in type(settings).model_fields.items():
            if not field.repr:  # filled in by a run
                continue
            value = getattr(settings, name)
            choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
            one_of = f"; one of {', '.join(choices)}" if choices else ""
            lines.append(f"# {field.description or name.replace('_', ' ')}{one_of}")
            lines.append(f"# {name} is not set" if value is None else f"{name} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def load_run_settings(root: Path) -> RunConfig:
    """Return the settings that a run was last made with."""
    kept = read_attributes_copy(root)
    damaged = "config" in kept and ((root / "zarr.json").exists() is False or root_metadata(root) is None)
    return parse_run_settings(root, kept if damaged else dict(open_group(root, "run").attrs))


def parse_run_settings(root: Path, attributes: Mapping[str, Any]) -> RunConfig:
    """Return the settings among the attributes of a run's store; StoreError if they are another version's."""
    if "config" not in attributes:
        raise StoreError(f"{root}: found a run that was stopped before it began; wanted one to look at (run it again)")
    try:
        return RunConfig.model_validate(relative_model_paths(root, dict(attributes["config"]), back=True))
    except (ValidationError, KeyError) as error:
        unknown = error.error_count() if isinstance(error, ValidationError) else 1
        raise StoreError(f"{root}: found settings of another version ({unknown} unknown); wanted ours") from None


def relative_model_paths(root: Path, config: dict[str, Any], *, back: bool = False) -> dict[str, Any]:
    """Name the models that lie in a run relative to it, or, `back`, by their full path again."""
    folder = f"{root.resolve()}/"
    for part, key in MODEL_SETTINGS:
        known = RunConfig.model_fields[part].default.model_dump() | config.get(part, {})  # of before it had that key
        model = known[key]
        if back and model.startswith("models/"):
            model = folder + model
        config[part] = known | {key: model if back else model.removeprefix(folder)}
    return config
