"""Settings of a training of networks that repair sources."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from csstdask.cosmicray.inpaint_network import Scaling
from csstdask.datasets.labelled_units import RepairTruth
from csstdask.nn.card import ModelCard
from csstdask.nn.device import TrainingPrecision, validate_device
from csstdask.training.base import TrainingConfig, load_config


class InpaintTrainingConfig(TrainingConfig):
    """Settings of a training of networks that repair sources."""

    task: ClassVar[str] = "inpaint"
    former_names: ClassVar[Mapping[str, str]] = {"each": "sources_per_unit", "steps": "batches_per_epoch"}

    name: str = "unet"
    method: str = Field(
        "U-Net on 64 x 64 stamps, Gaussian likelihood (csstdask.cosmicray.inpaint_network)",
        description="method, for the model card",
    )
    seed: int = Field(20261122, ge=0, description="seed of all random numbers")

    campaigns: tuple[str, ...] = Field(min_length=1, description="campaigns, of one instrument or several")
    truth: RepairTruth = Field("truth", description="truth of a mock, labels, or the detections in the frames")
    kind: Literal["unet", "unetpp"] = Field("unet", description="network: U-Net or UNet++")
    scaling: Scaling = Field("noise", description="scaling of stamps: by noise, or to [0, 1] as published (min-max)")
    channels: tuple[int, ...] = Field((32, 64, 96), description="channels of each level, finest first")
    start_from: str | None = Field(None, description="model to fine-tune (name or card); its architecture is used")
    sources_per_unit: int = Field(120, ge=1, description="stamps of sources per unit, at most")
    alpha: float = Field(4.0, ge=0, description="published loss: hit pixels weigh alpha + 1, others 1")
    source_weight: float = Field(4.0, ge=1, description="likelihood: weight of the pixels of sources")
    batch: int = Field(32, ge=1, description="stamps per step")
    batches_per_epoch: int = Field(100, ge=1, description="steps per epoch")
    validation_batches: int = Field(24, ge=1, description="batches of the validation")
    epochs: int = Field(40, ge=1, description="number of epochs")
    learning_rate: float = Field(2e-3, gt=0, description="highest learning rate")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay of AdamW")
    patience: int = Field(20, ge=1, description="epochs without a better score after which the training stops")
    precision: TrainingPrecision = Field("float32", description="float32 or bfloat16")
    device: Annotated[str | None, AfterValidator(validate_device)] = Field(None, description="cpu or cuda")

    @classmethod
    def settings_of(cls, card: ModelCard) -> dict[str, Any]:
        """Return the architecture of a model."""
        return {name: card.architecture[name] for name in ("kind", "scaling", "channels") if name in card.architecture}

    @property
    def architecture(self) -> dict[str, Any]:
        """Return the arguments of the network."""
        return {"kind": self.kind, "scaling": self.scaling, "channels": list(self.channels)}


def load_inpaint_config(path: Path | None, **changes: Any) -> InpaintTrainingConfig:
    """Read the settings of a training of repair.

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
    >>> load_inpaint_config(None, campaigns=["cr.zarr"], start_from="unetpp").architecture["channels"]
    [16, 32, 64, 128]
    """
    return load_config(InpaintTrainingConfig, path, "repair", changes)
