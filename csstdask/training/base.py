"""Common parts of all trainings: settings, start, initial weights and results.

A training is a folder with a log, checkpoints (`csstdask.nn.trainer`) and, at the end, a model card with its weights.
Each science has

* a subclass of `TrainingConfig` with its settings, read by `load_config`;
* a function ``train_<task>(config, to, *, on_progress)`` that calls `start_training`, `csstdask.nn.trainer.train` and
  `write_model`, and returns the path of the card.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from csstdask.core.atomic_io import write_atomic
from csstdask.core.errors import InputError
from csstdask.core.settings import read_settings
from csstdask.nn.card import WEIGHTS_SUFFIX, ModelCard, write_card
from csstdask.nn.device import choose_device
from csstdask.nn.models import find_card
from csstdask.nn.trainer import Schedule
from csstdask.nn.weights import save_weights


class TrainingConfig(BaseModel):
    """Settings of every training. Subclasses add the settings of one science.

    Examples
    --------
    >>> class Config(TrainingConfig):
    ...     former_names = {"passes": "epochs"}
    ...     name: str = "small"
    ...     seed: int = 1
    ...     epochs: int = 3
    >>> Config(passes=5).schedule.epochs
    5
    >>> Config(threads=4).identity == Config().identity
    True
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: ClassVar[str] = ""
    """Task of the trained model, as in its card: ``cosmicray``, ``inpaint``, ``psf``, ``sed``, ``zeropoint``."""
    former_names: ClassVar[Mapping[str, str]] = {}
    """Settings that were renamed: former name to present name. Both are read."""
    without_effect: ClassVar[frozenset[str]] = frozenset({"name", "version", "licence", "method", "device", "threads"})
    """Settings that do not change the trained weights."""

    name: str = Field(description="name of the model; also the name of its files")
    version: str = Field("1", description="version of the model")
    licence: str = Field("BSD-3-Clause", description="licence of the weights")
    threads: int = Field(1, ge=1, description="threads of PyTorch")
    seed: int = Field(ge=0, description="seed of all random numbers")

    @model_validator(mode="before")
    @classmethod
    def _read_former_names(cls, settings: Any) -> Any:
        if not isinstance(settings, Mapping):
            return settings
        for former, name in cls.former_names.items():
            if former in settings and name in settings:
                raise ValueError(f"{former} is the former name of {name}: give one of them")
        present = {cls.former_names.get(key, key): value for key, value in settings.items()}
        if present.get("start_from") is None:
            return present
        return cls.settings_of(find_card(cls.task, present["start_from"])) | present

    @classmethod
    def settings_of(cls, card: ModelCard) -> dict[str, Any]:  # noqa: ARG003
        """Return the settings that follow from the model to start from, unless others are given.

        Subclasses with a setting ``start_from`` return those of the architecture.
        """
        return {}

    @property
    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the weights: a training is resumed only with the same ones."""
        return self.model_dump(mode="json", exclude=set(self.without_effect))

    @property
    def schedule(self) -> Schedule:
        """Return the training schedule, made of the settings that have the names of its fields."""
        names = {one.name for one in fields(Schedule)} & set(type(self).model_fields)
        return Schedule(**{name: getattr(self, name) for name in names})


Config = TypeVar("Config", bound=TrainingConfig)


def load_config(model: type[Config], path: Path | None, what: str, changes: Mapping[str, object]) -> Config:
    """Read the settings of a training from a TOML file.

    Parameters
    ----------
    model : type
        Subclass of `TrainingConfig`.
    path : Path or None
        TOML file; None for the default settings.
    what : str
        Name of the task, for error messages: "cosmic-ray detection".
    changes : mapping
        Settings that replace those of the file, unless they are None.

    Raises
    ------
    InputError
        Naming the file and every setting that is unknown or wrong.
    """
    return read_settings(model, path, f"settings of a training of {what}", changes)


def start_training(config: TrainingConfig, folder: Path, *, device: str | None = None) -> torch.device:
    """Create the folder of a training, seed PyTorch and set its threads.

    Parameters
    ----------
    config : TrainingConfig
        Settings.
    folder : Path
        Folder of the training.
    device : str, optional
        ``cpu`` or ``cuda``; by default the CPU.

    Returns
    -------
    torch.device
        Device to train on.

    Raises
    ------
    ValueError
        If this machine does not have the device.
    """
    chosen = choose_device(device)
    torch.set_num_threads(config.threads)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    return chosen


def load_initial_weights(task: str, model: str, network: nn.Module) -> str:
    """Load the weights of a model into a network of the same architecture.

    Parameters
    ----------
    task : str
        Task of the model.
    model : str
        Name of a model, or path of its card.
    network : torch.nn.Module
        Network that receives the weights.

    Returns
    -------
    str
        SHA-256 of the weights.

    Raises
    ------
    InputError
        If the model has no weights, or weights of another architecture.
    """
    card = find_card(task, model)
    if card.weights is None:
        raise InputError("start_from", f"{card.name}, a method without weights", "a network of the same architecture")
    try:
        network.load_state_dict(load_file(card.weights))
    except (RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(card.weights, reason, "weights of the same architecture as the settings") from None
    return card.sha256


def write_model(
    config: TrainingConfig,
    weights: nn.Module | bytes,
    folder: Path,
    *,
    method: str,
    trained_on: str,
    **fields_of_card: Any,
) -> Path:
    """Write the weights and the card of a trained model.

    Parameters
    ----------
    config : TrainingConfig
        Settings, with name, version and licence of the model.
    weights : torch.nn.Module or bytes
        Trained network, or the content of a weights file.
    folder : Path
        Folder of the training.
    method, trained_on : str
        See `csstdask.nn.card.ModelCard`.
    **fields_of_card
        Further fields of the card.

    Returns
    -------
    Path
        Path of the card; the weights are in the same folder.
    """
    path = folder / f"{config.name}{WEIGHTS_SUFFIX}"
    if isinstance(weights, bytes):
        write_atomic(path, weights)
        digest = sha256(weights).hexdigest()
    else:
        digest = save_weights(weights, path)
    card = ModelCard(
        name=config.name,
        task=config.task,
        version=config.version,
        method=method,
        licence=config.licence,
        trained_on=trained_on,
        sha256=digest,
        **fields_of_card,
    )
    path = path.with_suffix(".json")
    write_card(path, card)
    return path
