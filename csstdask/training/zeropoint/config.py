"""Settings of trainings of zero-point networks."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from csstdask.nn.trainer import Schedule
from csstdask.training.base import TrainingConfig
from csstdask.training.zeropoint.fit import FitSettings


class ZeropointConfig(TrainingConfig):
    """All settings of a training of a zero-point network."""

    task: ClassVar[str] = "zeropoint"

    kind: Literal["zeropoint", "azprc"] = Field("zeropoint", description="our network, or the published one")
    name: str = "zeropoint"
    recipe: str = Field("zeropoint", description="name or path of the recipe of the mock surveys")
    exposures: int | None = Field(None, ge=32, description="exposures of each survey; default: all")
    batch: int = Field(256, ge=4, description="exposures per batch")
    epochs: int = Field(40, ge=1, description="number of epochs")
    learning_rate: float = Field(6e-3, gt=0, description="largest learning rate")
    least_rate: float = Field(0.02, ge=0, le=1, description="final learning rate, as a fraction of the largest")
    weight_decay: float = Field(0.1, ge=0, description="weight decay of the optimiser")
    memory: int = Field(16, ge=0, description="zeropoint: number of earlier zero points that are read")
    members: int = Field(3, ge=1, description="zeropoint: networks in the ensemble")
    width: int = Field(24, ge=4, description="zeropoint: units of hidden layers")
    latent: int = Field(10, ge=2, description="zeropoint: units of the latents")
    loss: Literal["gaussian", "student"] = Field("student", description="zeropoint: likelihood")
    degrade_memory: float = Field(
        0.0, ge=0, le=1, description="zeropoint: fraction of exposures with the noisy memory of sparse fields"
    )
    ranking: float = Field(0.1, ge=0, description="weight of the ranking loss; azprc: of the ranking indicator")
    adversarial: float = Field(0.02, ge=0, description="weight of the survey discriminator")
    examples: int = Field(2400, ge=8, description="azprc: exposures per epoch")
    crop: int = Field(96, ge=16, le=256, description="azprc: side of the random crops of the images [pixel]")
    image: bool = Field(default=True, description="azprc: include the image branch")
    stars: bool = Field(default=True, description="azprc: include the catalogue branch")
    telemetry_branch: bool = Field(default=True, description="azprc: include the telemetry branch")
    seed: int = Field(20261130, ge=0)

    @property
    def fit(self) -> FitSettings:
        """Settings of the training of our network."""
        return FitSettings(
            epochs=self.epochs, batch=self.batch, learning_rate=self.learning_rate, least_rate=self.least_rate,
            weight_decay=self.weight_decay, loss=self.loss, ranking=self.ranking, adversarial=self.adversarial,
            degrade_memory=self.degrade_memory, seed=self.seed,
        )  # fmt: skip

    @property
    def schedule(self) -> Schedule:
        """Schedule of the training of the published network."""
        return Schedule(
            epochs=self.epochs, learning_rate=self.learning_rate, warm_up=1.0, least_rate=self.least_rate,
            weight_decay=self.weight_decay, patience=self.epochs, keep="best", precision="float32", seed=self.seed,
        )  # fmt: skip
