"""Settings of a training of cosmic-ray detection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import lcm
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from csstdask.cosmicray.preprocess import CONDITIONS
from csstdask.cosmicray.unet import CHANNELS
from csstdask.datasets.labelled_units import Truth
from csstdask.nn.blocks import unet_grid
from csstdask.nn.card import ModelCard
from csstdask.nn.device import TrainingPrecision, validate_device
from csstdask.nn.trainer import Keep, Schedule
from csstdask.training.base import TrainingConfig, load_config
from csstdask.training.cosmicray.examples import PatchSettings
from csstdask.training.cosmicray.material import SHARES, Kind, check_data_folder

#: Smaller side of the STIS frames with truth [pixel]: the largest patch.
STIS_WIDTH = 506
#: Charges that evaluations distinguish [e-].
HIT_THRESHOLDS = (0.0, 1.0, 5.0)
#: Former names of kinds of frames.
FORMER_KINDS = {"rehit": "reinjected", "others": "extra_campaigns"}
#: Settings of the network, and their names in a model card.
ARCHITECTURE = {
    "channels": "channels",
    "stem": "stem",
    "merge": "merge",
    "down": "down",
    "up": "up",
    "full_resolution_channels": "fine",
    "fine_unet": "close",
}


class DetectionTrainingConfig(TrainingConfig):
    """Settings of a training of cosmic-ray detection."""

    task: ClassVar[str] = "cosmicray"
    former_names: ClassVar[Mapping[str, str]] = {
        "others": "extra_campaigns",
        "hit_above": "hit_threshold",
        "fine": "full_resolution_channels",
        "close": "fine_unet",
        "on_sources": "source_patch_fraction",
        "keep": "checkpoint",
        "passes": "passes_per_epoch",
    }
    # Paths have no effect: what is at the paths is part of the material's identity.
    without_effect: ClassVar[frozenset[str]] = TrainingConfig.without_effect | {
        "data",
        "campaign",
        "extra_campaigns",
        "events",
    }

    name: str = "unet"
    method: str = Field(
        "U-Net behind a space-to-depth stem (csstdask.cosmicray.unet)", description="method, for the model card"
    )
    seed: int = Field(20261121, ge=0, description="seed of all random numbers")

    # What is learnt from
    data: str | None = Field(None, description="folder of real events and frames; none: generated tracks only")
    campaign: str | None = Field(None, description="campaign with truth, such as one of stores/cr-detection.toml")
    truth: Truth = Field("truth", description="truth of a mock campaign, or labels of `csstdask label repeats`")
    detectors: tuple[int, ...] = Field((), description="detectors of the campaign; none: all")
    exposures: int | None = Field(None, ge=1, description="number of training exposures of the campaign; none: all")
    extra_campaigns: tuple[str, ...] = Field((), description="other campaigns with truth")
    events: tuple[str, ...] = Field((), description="event libraries written by `csstdask label darks`")
    skies: int = Field(192, ge=0, description="number of mock skies of random telescopes")
    shares: dict[Kind, float] = Field(SHARES, description="relative frequency of each kind of frame")
    teacher: str | None = Field(None, description="model whose probabilities are mixed into the truth (distillation)")
    teacher_share: float = Field(0.7, ge=0, le=1, description="weight of the teacher's probabilities in the target")

    # Examples
    hit_threshold: float = Field(1.0, ge=0, description="charge above which a pixel counts as hit: 0, 1 or 5 [e-]")
    inputs: tuple[str, ...] = Field(CHANNELS, description="input channels of the network")
    conditions: tuple[str, ...] = Field((), description="conditions of the frame that the network is given")
    box: int = Field(128, ge=8, description="box of the background mesh [pixel]")
    frames: int = Field(48, ge=1, description="frames per epoch")
    frame_size: int = Field(768, ge=128, description="side of drawn frames [pixel]")
    patch: int = Field(256, ge=32, description="side of a patch [pixel]")
    patches: int = Field(12, ge=1, description="patches per frame")
    resampled_fraction: float = Field(0.0, ge=0, le=1, description="fraction of the frames that are resampled")
    source_patch_fraction: float = Field(0.5, ge=0, le=1, description="fraction of the patches placed on sources")
    source_weight: int = Field(5, ge=1, le=255, description="weight of the pixels of sources in the loss")
    validation_frames: int = Field(24, ge=1, description="frames of the validation, and of the calibration")

    # Network
    channels: tuple[int, ...] = Field((32, 64, 96), description="channels of each level, finest first")
    stem: int = Field(2, ge=1, description="pixels folded into channels along each axis; 1: none")
    merge: Literal["concatenate", "add"] = Field("concatenate", description="how skip connections are merged")
    down: int = Field(2, ge=1, description="convolutions per level on the way down")
    up: int = Field(2, ge=1, description="convolutions per level on the way up")
    full_resolution_channels: int = Field(0, ge=0, description="channels at full resolution, outside the stem; 0: none")
    fine_unet: tuple[int, ...] = Field(
        (), description="channels of a second U-Net without a stem; requires full_resolution_channels"
    )
    start_from: str | None = Field(None, description="model to fine-tune (name or card); its architecture is used")

    # Optimisation
    batch: int = Field(8, ge=1, description="patches per step")
    passes_per_epoch: int = Field(1, ge=1, description="passes over the patches of an epoch")
    epochs: int = Field(26, ge=1, description="number of epochs")
    learning_rate: float = Field(2e-3, gt=0, description="highest learning rate")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay of AdamW")
    freeze_norm: float = Field(1.0, ge=0, le=1, description="fraction of the epochs after which norms are frozen")
    patience: int = Field(20, ge=1, description="epochs without a better score after which the training stops")
    checkpoint: Keep = Field("best", description="weights to keep: of the best epoch, or of the last (no early stop)")
    precision: TrainingPrecision = Field("bfloat16", description="float32 or bfloat16")
    device: Annotated[str | None, AfterValidator(validate_device)] = Field(None, description="cpu or cuda")

    @classmethod
    def settings_of(cls, card: ModelCard) -> dict[str, Any]:
        """Return the architecture, the input channels and the mesh of a model."""
        settings = {name: card.architecture[key] for name, key in ARCHITECTURE.items() if key in card.architecture}
        if "channels" in card.normalisation:
            settings |= {"inputs": card.normalisation["channels"], "box": card.normalisation["box"]}
            settings["conditions"] = card.normalisation.get("conditions", [])
        return settings

    @field_validator("shares", mode="before")
    @classmethod
    def _read_former_kinds(cls, shares: Any) -> Any:
        if not isinstance(shares, Mapping):
            return shares
        return {FORMER_KINDS.get(kind, kind): share for kind, share in shares.items()}

    @field_validator("hit_threshold")
    @classmethod
    def _check_hit_threshold(cls, charge: float) -> float:
        if charge not in HIT_THRESHOLDS:
            raise ValueError(f"found {charge}; wanted 0, 1 or 5: evaluations have no other thresholds")
        return charge

    @field_validator("inputs")
    @classmethod
    def _check_inputs(cls, inputs: tuple[str, ...]) -> tuple[str, ...]:
        if not inputs or not set(inputs) <= set(CHANNELS):
            raise ValueError(f"found {list(inputs)}; wanted some of {list(CHANNELS)}")
        return inputs

    @field_validator("conditions")
    @classmethod
    def _check_conditions(cls, conditions: tuple[str, ...]) -> tuple[str, ...]:
        if not set(conditions) <= set(CONDITIONS):
            raise ValueError(f"found {list(conditions)}; wanted some of {list(CONDITIONS)}")
        return conditions

    @model_validator(mode="after")
    def _check_sizes(self) -> DetectionTrainingConfig:
        grid = lcm(unet_grid(len(self.channels) - 1, self.stem), unet_grid(max(0, len(self.fine_unet) - 1)))
        largest = min(self.frame_size, STIS_WIDTH)
        n_patches = self.frames * self.patches
        if self.patch % grid:
            raise ValueError(f"patch = {self.patch} is not a multiple of the network's grid, {grid}")
        if self.patch > largest:
            raise ValueError(f"patch = {self.patch} is larger than the frames, {largest}")
        if self.fine_unet and not self.full_resolution_channels:
            raise ValueError(f"fine_unet = {list(self.fine_unet)} requires full_resolution_channels")
        if self.patches == round(self.patches * self.source_patch_fraction):
            raise ValueError(
                f"source_patch_fraction = {self.source_patch_fraction} leaves none of {self.patches} patches for the "
                "calibration, which uses patches at random positions"
            )
        if self.batch > n_patches:
            raise ValueError(f"batch = {self.batch} is more than the {n_patches} patches of an epoch")
        return self

    @property
    def architecture(self) -> dict[str, Any]:
        """Return the arguments of the network."""
        values = {key: getattr(self, name) for name, key in ARCHITECTURE.items()}
        lists = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        return {"inputs": len(self.inputs), **lists, "conditions": len(self.conditions)}

    @property
    def is_campaign_specific(self) -> bool:
        """Return whether the model is for its campaign's detectors only: a real campaign, or some detectors."""
        return self.truth == "labels" or bool(self.detectors)

    @property
    def patch_settings(self) -> PatchSettings:
        """Return the settings by which frames are cut into patches."""
        names = (
            "patch",
            "source_patch_fraction",
            "source_weight",
            "box",
            "hit_threshold",
            "resampled_fraction",
            "conditions",
        )
        return PatchSettings(count=self.patches, **{name: getattr(self, name) for name in names})

    @property
    def schedule(self) -> Schedule:
        """Return the training schedule."""
        return replace(super().schedule, keep=self.checkpoint)

    @property
    def steps(self) -> int:
        """Return the number of batches per epoch."""
        return self.passes_per_epoch * (self.frames * self.patches // self.batch)


def load_cosmicray_config(path: Path | None, **changes: Any) -> DetectionTrainingConfig:
    """Read the settings of a training of cosmic-ray detection.

    Parameters
    ----------
    path : Path or None
        TOML file; None for the default settings.
    **changes
        Settings that replace those of the file, unless they are None.

    Raises
    ------
    InputError
        Naming the file and every setting that is unknown or wrong.

    Examples
    --------
    >>> config = load_cosmicray_config(None, start_from="unet-fast", epochs=5)
    >>> config.channels, config.schedule.epochs
    ((16, 32, 64), 5)
    """
    config = load_config(DetectionTrainingConfig, path, "cosmic-ray detection", changes)
    if config.data is not None:
        check_data_folder(Path(config.data))
    return config
