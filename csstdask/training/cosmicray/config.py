"""All settings of a training of cosmic-ray detection, and what they may be."""

from __future__ import annotations

from math import lcm
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from csstdask.core.settings import read_settings
from csstdask.cosmicray.unet import CHANNELS
from csstdask.datasets.labelled_units import Truth
from csstdask.nn.blocks import unet_grid
from csstdask.nn.device import TrainingPrecision, validate_device
from csstdask.nn.trainer import Keep, Schedule
from csstdask.training.cosmicray.examples import SHARES, Kind, PatchSettings, check_data_folder

#: Settings that do not decide the weights that are learnt: what is at the paths is told by the material.
_FREE = {
    "name", "version", "licence", "method", "data", "campaign", "others", "events", "device", "threads", "lead_over",
    "remember",
}  # fmt: skip
#: Width of the real frames with truth [pixel].
_NARROWEST = 506


class DetectionTrainingConfig(BaseModel):
    """All settings of a training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "unet"
    version: str = "1"
    licence: str = "BSD-3-Clause"
    method: str = "U-Net behind a space-to-depth stem (csstdask.cosmicray.unet)"
    data: str | None = Field(None, description="folder of real events and frames; none: generated tracks alone")
    campaign: str | None = Field(None, description="campaign with truth, such as one of stores/cr-detection.toml")
    truth: Truth = Field("truth", description="of the campaign: its simulator's, or labels of `csstdask label repeats`")
    detectors: tuple[int, ...] = Field((), description="of the campaign; none: all")
    others: tuple[str, ...] = Field((), description="other campaigns with truth, to learn from beside it")
    exposures: int | None = Field(None, ge=1, description="of the campaign's training split, the first so many")
    events: tuple[str, ...] = Field((), description="libraries of events, as `csstdask label` cuts them from darks")
    shares: dict[Kind, float] = Field(SHARES, description="how often each kind of frame is drawn")
    hit_above: float = Field(1.0, ge=0, description="charge above which a pixel counts as hit [e-]")
    inputs: tuple[str, ...] = Field(CHANNELS, description="what the network sees of a pixel")
    channels: tuple[int, ...] = Field((32, 64, 96), description="of each level, the finest first")
    stem: int = Field(2, ge=1, description="pixels folded into channels, along each axis")
    merge: Literal["concatenate", "add"] = Field("concatenate", description="how levels meet on the way up")
    down: int = Field(2, ge=1, description="convolutions of a level on the way down")
    up: int = Field(2, ge=1, description="convolutions of a level on the way up")
    fine: int = Field(0, ge=0, description="channels at full resolution beside the stem")
    close: tuple[int, ...] = Field((), description="channels of a second U-Net, without a stem; it wants `fine`")
    box: int = Field(128, ge=8, description="of the background mesh [pixel]")
    skies: int = Field(192, ge=0, description="mock skies")
    frames: int = Field(48, ge=1, description="drawn for an epoch")
    frame_size: int = Field(768, ge=128, description="[pixel]")
    patch: int = Field(256, ge=32, description="[pixel]")
    patches: int = Field(12, ge=1, description="cut from a frame")
    start_from: str | None = Field(None, description="card of such a network to go on from, perhaps one without `fine`")
    close_from: str | None = Field(None, description="card of one to begin the second U-Net with; wants `start_from`")
    remember: float = Field(0.0, ge=0, le=1, description="share of the weights it went on from in those it ends with")
    teacher: str | None = Field(None, description="card of a network whose probabilities are learnt beside the truth")
    teacher_share: float = Field(0.7, ge=0, le=1, description="of the teacher's word in what is to be learnt")
    lead_over: str | None = Field(None, description="card of a network that the threshold is ahead of, where it can be")
    on_sources: float = Field(0.5, ge=0, le=1, description="share of the patches on sources")
    source_weight: int = Field(5, ge=1, le=255, description="of a source's pixels in the loss")
    passes: int = Field(1, ge=1, description="over the patches of an epoch")
    batch: int = Field(8, ge=1)
    validation_frames: int = Field(24, ge=1)
    epochs: int = Field(26, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    freeze_norm: float = Field(1.0, ge=0, le=1, description="share of the epochs after which norms are frozen")
    patience: int = Field(20, ge=1, description="epochs without a better score after which to stop")
    keep: Keep = Field("best", description="weights of the best epoch, or of the last, with no regard to patience")
    precision: TrainingPrecision = Field("bfloat16", description="float32 or bfloat16")
    threads: int = Field(1, ge=1, description="of the network; examples are drawn on another core")
    device: Annotated[str | None, AfterValidator(validate_device)] = None
    seed: int = Field(20261121, ge=0)

    @field_validator("hit_above")
    @classmethod
    def _can_be_judged(cls, charge: float) -> float:
        if charge not in (0.0, 1.0, 5.0):
            raise ValueError(f"found {charge}; wanted 0, 1 or 5, which evaluations tell apart")
        return charge

    @field_validator("inputs")
    @classmethod
    def _known_channels(cls, inputs: tuple[str, ...]) -> tuple[str, ...]:
        if not inputs or not set(inputs) <= set(CHANNELS):
            raise ValueError(f"found {list(inputs)}; wanted some of {list(CHANNELS)}")
        return inputs

    @model_validator(mode="after")
    def _sizes_agree(self) -> DetectionTrainingConfig:
        grid = lcm(unet_grid(len(self.channels) - 1, self.stem), unet_grid(max(0, len(self.close) - 1)))
        if self.patch % grid:
            raise ValueError(f"patch = {self.patch} is no multiple of the network's grid, {grid}")
        if self.patch > min(self.frame_size, _NARROWEST):
            raise ValueError(f"patch = {self.patch} is larger than the frames, {min(self.frame_size, _NARROWEST)}")
        if self.close and not self.fine:
            raise ValueError(f"close = {list(self.close)}, but fine = 0: wanted layers that take it up")
        if self.close_from is not None and (self.start_from is None or not self.close):
            raise ValueError(f"close_from = {self.close_from}: wanted start_from and close as well")
        if self.remember and self.start_from is None:
            raise ValueError(f"remember = {self.remember}, but no start_from: wanted a network to remember")
        if self.patches == round(self.patches * self.on_sources):
            raise ValueError(f"on_sources = {self.on_sources} leaves no patch of {self.patches} to calibrate on")
        if self.batch > self.frames * self.patches:
            raise ValueError(f"batch = {self.batch} is more than the {self.frames * self.patches} patches of an epoch")
        return self

    @property
    def decisive(self) -> dict[str, Any]:
        """Return what decides the weights: a training is gone on with only under the same."""
        return self.model_dump(mode="json", exclude=_FREE)

    @property
    def architecture(self) -> dict[str, Any]:
        """Return the arguments of the network."""
        return {
            "inputs": len(self.inputs), "channels": list(self.channels), "stem": self.stem, "merge": self.merge,
            "down": self.down, "up": self.up, "fine": self.fine, "close": list(self.close),
        }  # fmt: skip

    @property
    def is_for_its_campaign(self) -> bool:
        """Tell whether the model is for the detectors of its campaign alone: a real one, or some of a mock's."""
        return self.truth == "labels" or bool(self.detectors)

    @property
    def cutting(self) -> PatchSettings:
        """Return how frames are cut into patches."""
        names = ("patch", "on_sources", "source_weight", "box", "hit_above")
        return PatchSettings(count=self.patches, **{name: getattr(self, name) for name in names})

    @property
    def schedule(self) -> Schedule:
        """Return how long and how fast to learn."""
        return Schedule(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            freeze_norm=self.freeze_norm,
            patience=self.patience,
            keep=self.keep,
            precision=self.precision,
            seed=self.seed,
        )


def load_cosmicray_config(path: Path | None, **changes: Any) -> DetectionTrainingConfig:
    """Read the settings of a training from a TOML file; `changes` that are not None win.

    Raises
    ------
    InputError
        Naming the file and every key that is unknown or wrong.
    """
    config = read_settings(DetectionTrainingConfig, path, "settings of a training", changes)
    if config.data is not None:
        check_data_folder(Path(config.data))
    return config
