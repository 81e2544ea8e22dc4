"""Settings of trainings of SED networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from csstdask.nn.trainer import Schedule
from csstdask.training.base import TrainingConfig

#: Settings that decide the examples and the network, in addition to the schedule.
_DECISIVE = {
    "kind", "stars", "validation", "batch", "members", "width", "blocks", "components", "sed_components", "split_seed",
    "real_test_share", "seed",
}  # fmt: skip


class SedConfig(TrainingConfig):
    """All settings of a training of an SED network."""

    task: ClassVar[str] = "sed"

    kind: Literal["sed", "uaranet"] = Field("sed", description="our network, or the published one")
    name: str = "sed"
    data: str = Field(description="folder of spectral libraries (.npz)")
    stars: int = Field(41_219, ge=64, description="training stars; of `sed`, drawn anew every epoch")
    validation: int = Field(4096, ge=64, description="stars of validation cells")
    calibration: int = Field(16_384, ge=64, description="stars of calibration cells, for the recalibration of sigma")
    batch: int = Field(512, ge=8)
    epochs: int = Field(100, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    least_rate: float = Field(0.01, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    warm_up: float = Field(1.0, gt=0)
    freeze_norm: float = Field(1.0, ge=0, le=1, description="share of the epochs after which norms are frozen")
    members: int = Field(5, ge=1, description="networks of the ensemble")
    width: int = Field(256, ge=8, description="of their hidden layers")
    blocks: int = Field(2, ge=1, description="residual blocks of each")
    components: int = Field(96, ge=4, description="principal components of spectra; a quarter is that of real stars")
    sed_components: int = Field(32, ge=2, description="principal components of log SEDs")
    rank: int = Field(12, ge=1, description="of the covariance")
    scout_epochs: int = Field(70, ge=1, description="of the ensemble whose errors the covariance is learnt from")
    scout_weight_decay: float = Field(0.05, ge=0)
    covariance_epochs: int = Field(16, ge=1)
    real_test_share: float = Field(0.4, gt=0, lt=1, description="share of the real stars that are never learnt from")
    split_seed: int = Field(20261130, ge=0, description="of the split into cells")
    seed: int = Field(20261130, ge=0)

    @property
    def schedule(self) -> Schedule:
        """Return how long and how fast to learn."""
        return Schedule(
            epochs=self.epochs, learning_rate=self.learning_rate, warm_up=self.warm_up, least_rate=self.least_rate,
            weight_decay=self.weight_decay, freeze_norm=self.freeze_norm, patience=self.epochs, keep="last",
            precision="float32", seed=self.seed,
        )  # fmt: skip

    @property
    def scout_schedule(self) -> Schedule:
        """Return how long and how fast the scout learns."""
        return replace(
            self.schedule, epochs=self.scout_epochs, patience=self.scout_epochs, weight_decay=self.scout_weight_decay
        )

    @property
    def identity(self) -> dict[str, Any]:
        """Return what decides the examples."""
        return self.model_dump(mode="json", include=_DECISIVE)
