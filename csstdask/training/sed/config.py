"""Settings for training SED networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from csstdask.nn.trainer import Schedule
from csstdask.training.base import TrainingConfig

#: Settings that determine the examples and the network, in addition to the schedule.
_IDENTITY_FIELDS = {
    "kind", "stars", "validation", "batch", "members", "width", "blocks", "components", "sed_components", "split_seed",
    "real_test_share", "seed",
}  # fmt: skip


class SedConfig(TrainingConfig):
    """Settings for training an SED network."""

    task: ClassVar[str] = "sed"

    kind: Literal["sed", "uaranet"] = Field("sed", description="network: `sed` of csstdask, or `uaranet` as published")
    name: str = "sed"
    data: str = Field(description="folder with spectral libraries (.npz)")
    stars: int = Field(41_219, ge=64, description="number of training stars")
    validation: int = Field(4096, ge=64, description="number of stars of validation cells")
    calibration: int = Field(16_384, ge=64, description="number of stars for the calibration of sigma")
    batch: int = Field(512, ge=8)
    epochs: int = Field(100, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    least_rate: float = Field(0.01, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    warm_up: float = Field(1.0, gt=0)
    freeze_norm: float = Field(1.0, ge=0, le=1, description="share of the epochs before batch norms are frozen")
    members: int = Field(5, ge=1, description="number of networks in the ensemble")
    width: int = Field(256, ge=8, description="width of their hidden layers")
    blocks: int = Field(2, ge=1, description="residual blocks of each network")
    components: int = Field(96, ge=4, description="principal components of spectra; a quarter comes from real stars")
    sed_components: int = Field(32, ge=2, description="principal components of log SEDs")
    rank: int = Field(12, ge=1, description="rank of the covariance")
    scout_epochs: int = Field(70, ge=1, description="epochs of the ensemble for out-of-fold errors")
    scout_weight_decay: float = Field(0.05, ge=0)
    covariance_epochs: int = Field(16, ge=1)
    real_test_share: float = Field(0.4, gt=0, lt=1, description="share of the real stars that are reserved for tests")
    split_seed: int = Field(20261130, ge=0, description="seed of the split into cells")
    seed: int = Field(20261130, ge=0)

    @property
    def schedule(self) -> Schedule:
        """Return the schedule of the ensemble."""
        return Schedule(
            epochs=self.epochs, learning_rate=self.learning_rate, warm_up=self.warm_up, least_rate=self.least_rate,
            weight_decay=self.weight_decay, freeze_norm=self.freeze_norm, patience=self.epochs, keep="last",
            precision="float32", seed=self.seed,
        )  # fmt: skip

    @property
    def scout_schedule(self) -> Schedule:
        """Return the schedule of the ensemble for out-of-fold errors."""
        return replace(
            self.schedule, epochs=self.scout_epochs, patience=self.scout_epochs, weight_decay=self.scout_weight_decay
        )

    @property
    def identity(self) -> dict[str, Any]:
        """Return the settings that determine the examples and the network."""
        return self.model_dump(mode="json", include=_IDENTITY_FIELDS)
