"""Settings of the trainings of PSF models: a basis (``principal``) or CSST-PSFNet (``psfnet``)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from csstdask.core.errors import InputError
from csstdask.core.settings import read_toml
from csstdask.nn.device import TrainingPrecision, validate_device
from csstdask.nn.trainer import Schedule
from csstdask.psf.basis import COLOUR_TERMS
from csstdask.psf.network import GROUPS
from csstdask.training.base import TrainingConfig, load_config

Labels = Literal["truth", "psfex", "stars"]

#: What is trained, for error messages.
_WHAT = "PSFs"


class PrincipalConfig(TrainingConfig):
    """Settings of the training of a PSF basis."""

    task: ClassVar[str] = "psf"

    kind: Literal["principal"] = "principal"
    name: str = "principal"
    method: str = (
        "principal PSFs over a detector (csstdask.psf.fit_field), with what is expected of their amounts by telescopes"
        " in the mean and by the wavefront that the stars show (csstdask.psf.phase_retrieval)"
    )
    instrument: str = "csst"
    bands: tuple[str, ...] = Field((), description="bands to train; by default all imaging bands of the instrument")
    telescopes: int = Field(96, ge=4, description="number of random telescopes per band")
    held_out: int = Field(12, ge=2, description="number of them that only test the result")
    nodes: int = Field(4, ge=2, description="positions on a detector along each axis")
    degree: int = Field(3, ge=0, description="degree of the polynomials over a detector; at most nodes - 1")
    images: int = Field(48, ge=1, description="number of principal images")
    workers: int = Field(1, ge=1, description="number of processes")
    seed: int = Field(20261125, ge=0, description="seed of the random telescopes")

    @model_validator(mode="after")
    def _check_sizes(self) -> PrincipalConfig:
        known = self.telescopes - self.held_out
        if known < 2:
            raise ValueError(
                f"held_out = {self.held_out} of {self.telescopes} telescopes: wanted at least two for training"
            )
        terms = (self.degree + 1) * (self.degree + 2) // 2
        if self.nodes**2 <= terms + COLOUR_TERMS:
            found = f"nodes = {self.nodes} with degree = {self.degree}"
            raise ValueError(f"{found}: wanted more positions than the {terms + COLOUR_TERMS} terms that are fitted")
        if self.images >= known * self.nodes**2:
            raise ValueError(
                f"images = {self.images}: wanted fewer than the {known * self.nodes**2} PSFs that are drawn"
            )
        return self


class PsfNetConfig(TrainingConfig):
    """Settings of a training of CSST-PSFNet."""

    task: ClassVar[str] = "psf"
    without_effect: ClassVar[frozenset[str]] = TrainingConfig.without_effect | {"campaigns", "start_from"}
    """Settings that do not change the trained weights; stamp sets and weights are identified by their content."""

    kind: Literal["psfnet"] = "psfnet"
    name: str = "psfnet"
    method: str = "CSST-PSFNet (csstdask.psf.network)"
    campaigns: tuple[str, ...] = Field(min_length=1, description="stamp sets of isolated stars, of one instrument")
    labels: Labels = Field("truth", description="PSFs of the simulator or of PSFEx, or the pixels of stars")
    start_from: str | None = Field(None, description="name or card of a network to start from")
    stars: int | None = Field(None, ge=8, description="largest number of stars per unit; by default all")
    validation: float = Field(0.21, gt=0, lt=1, description="share of each unit's stars; 3,728 of 17,968 in the paper")
    channels: tuple[int, int, int] = (8, 16, 32)
    width: int = Field(64, ge=8)
    heads: int = Field(4, ge=1)
    layers: int = Field(2, ge=1)
    latent: int = Field(64, ge=1)
    upward: tuple[int, int, int] = (32, 16, 8)
    divergence: float = Field(1e-6, ge=0, description="final weight of the divergence of the latent code")
    rise: float = Field(5.0, ge=0, description="number of epochs over which that weight rises linearly")
    batch: int = Field(16, ge=1)
    epochs: int = Field(200, ge=1)
    warm_up: float = Field(5.0, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    patience: int = Field(20, ge=1)
    precision: TrainingPrecision = Field("float32", description="float32 or bfloat16")
    device: Annotated[str | None, AfterValidator(validate_device)] = None
    seed: int = Field(20261127, ge=0)

    @model_validator(mode="after")
    def _sizes_fit(self) -> PsfNetConfig:
        if odd := [one for one in self.channels if one % GROUPS]:
            raise ValueError(f"channels: found {odd[0]}; wanted multiples of {GROUPS}")
        if self.width % self.heads:
            raise ValueError(f"width = {self.width} with {self.heads} heads: wanted a multiple of them")
        if self.labels == "stars" and self.start_from is None:
            raise ValueError("labels = stars: wanted a network to start from, whose calibration of sigmas is kept")
        return self

    @property
    def sizes(self) -> dict[str, Any]:
        """Return the sizes of the network, as `csstdask.psf.network.PsfNet` takes them."""
        found = {name: getattr(self, name) for name in ("channels", "width", "heads", "layers", "latent", "upward")}
        return {name: list(one) if isinstance(one, tuple) else one for name, one in found.items()}

    @property
    def schedule(self) -> Schedule:
        """Return the schedule of the training (section III.2)."""
        return replace(super().schedule, clip_norm=0.5, least_rate=0.01)


def load_psf_config(path: Path | None, **changes: object) -> PrincipalConfig | PsfNetConfig:
    """Read the settings of a training from a TOML file; `changes` that are not None take precedence.

    ``kind`` is the kind of model, ``principal`` or ``psfnet``; by default ``psfnet`` if there are ``campaigns``.

    Raises
    ------
    InputError
        If a key is unknown or wrong: the error names the file and the keys.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    of_file = {} if path is None else read_toml(path, f"settings of a training of {_WHAT}")
    merged = of_file | given
    kind = str(merged.get("kind", "psfnet" if "campaigns" in merged else "principal"))
    if kind == "principal":
        return load_config(PrincipalConfig, path, _WHAT, given)
    if kind == "psfnet":
        return load_config(PsfNetConfig, path, _WHAT, given)
    raise InputError(path or "settings", f"kind = {kind!r}", "principal or psfnet")
