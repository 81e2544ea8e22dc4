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
    recipe: str = Field("zeropoint", description="mock surveys: a recipe's name or path")
    exposures: int | None = Field(None, ge=32, description="of each survey; default: all")
    batch: int = Field(256, ge=4)
    epochs: int = Field(40, ge=1)
    learning_rate: float = Field(6e-3, gt=0)
    least_rate: float = Field(0.02, ge=0, le=1, description="share of the learning rate at the end")
    weight_decay: float = Field(0.1, ge=0)
    memory: int = Field(16, ge=0, description="zero-point: solved zero points that it looks back at")
    members: int = Field(3, ge=1, description="zero-point: networks of the ensemble")
    width: int = Field(24, ge=4, description="zero-point: units of hidden layers")
    latent: int = Field(10, ge=2, description="zero-point: units of the latents")
    loss: Literal["gaussian", "student"] = "student"
    degrade_memory: float = Field(
        0.0, ge=0, le=1, description="zero-point: share of examples with a memory as of sparse fields"
    )
    ranking: float = Field(0.1, ge=0, description="weight of the ranking surrogate; of azprc: of the indicator")
    adversarial: float = Field(0.02, ge=0, description="weight of the survey discriminator")
    examples: int = Field(2400, ge=8, description="azprc: exposures of an epoch")
    crop: int = Field(96, ge=16, le=256, description="azprc: side of the random crops it learns from [pixel]")
    image: bool = Field(default=True, description="azprc: with its image branch")
    stars: bool = Field(default=True, description="azprc: with its catalogue branch")
    telemetry_branch: bool = Field(default=True, description="azprc: with its telemetry branch")
    seed: int = Field(20261130, ge=0)

    @property
    def fit(self) -> FitSettings:
        """Return how our network is trained."""
        return FitSettings(
            epochs=self.epochs, batch=self.batch, learning_rate=self.learning_rate, least_rate=self.least_rate,
            weight_decay=self.weight_decay, loss=self.loss, ranking=self.ranking, adversarial=self.adversarial,
            degrade_memory=self.degrade_memory, seed=self.seed,
        )  # fmt: skip

    @property
    def schedule(self) -> Schedule:
        """Return how the published network is trained."""
        return Schedule(
            epochs=self.epochs, learning_rate=self.learning_rate, warm_up=1.0, least_rate=self.least_rate,
            weight_decay=self.weight_decay, patience=self.epochs, keep="best", precision="float32", seed=self.seed,
        )  # fmt: skip
