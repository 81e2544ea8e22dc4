"""Train a zero-point network: ``csstdask train zeropoint``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from csstdask.training.base import load_config, start_training, write_model
from csstdask.training.zeropoint.azprc import train_azprc
from csstdask.training.zeropoint.config import ZeropointConfig
from csstdask.training.zeropoint.fit import fit_prior
from csstdask.training.zeropoint.surveys import Examples, collect_examples, load_surveys
from csstdask.zeropoint.prior.network import PriorNetwork

log = logging.getLogger("csstdask")


def load_zeropoint_config(path: Path | None, **changes: object) -> ZeropointConfig:
    """Read the settings of a training from a TOML file.

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
    """
    return load_config(ZeropointConfig, path, "zero points", changes)


def train_zeropoint(config: ZeropointConfig, to: Path, *, on_progress: Callable[[str], None] = log.info) -> Path:
    """Train a zero-point network, or resume a training.

    Parameters
    ----------
    config : ZeropointConfig
        Settings; ``kind`` chooses the network.
    to : Path
        Folder of the training: ``log.csv``, checkpoints and, at the end, the card with its weights.
    on_progress : callable
        Receives one line per epoch.

    Returns
    -------
    Path
        Path of the card; the weights are in the same folder.

    Raises
    ------
    InputError
        If the recipe has no zero points, or the folder contains a training with other settings.
    """
    if config.kind == "azprc":
        return train_azprc(config, to, on_progress=on_progress)
    start_training(config, to)
    on_progress(f"exposures of recipe {config.recipe}")
    surveys = load_surveys(config.recipe, config.exposures, memory=config.memory)
    train, validation = (collect_examples(surveys, part, memory=config.memory) for part in ("train", "validation"))
    network = PriorNetwork(memory=config.memory, members=config.members, width=config.width, latent=config.latent)
    # Sigma is calibrated against the truth of the mock: solved zero points of sparse fields are too noisy for that.
    history = fit_prior(
        network, train.arrays, train.solved, target_sigma=train.sigma,
        validation=(validation.arrays, validation.truth), survey=train.survey,
        settings=config.fit, folder=to, identity=config.identity, on_progress=on_progress,
    )  # fmt: skip
    metrics = {
        "data": f"{len(validation)} exposures after those of the training; errors against true zero points",
        "epochs": len(history),
        **{name: float(np.round(history[-1][name], 6)) for name in ("rmse", "nll")},
    }
    return write_model(
        config,
        network,
        to,
        method="Gaussian process of past zero points on a network of conditions (csstdask.zeropoint.prior.network)",
        trained_on=f"{len(train)} exposures of mock surveys {', '.join(surveys)}, first 60 % of their days",
        architecture=network.architecture,
        calibration=domain_of(train, network.telemetry),
        metrics=metrics,
    )


def domain_of(train: Examples, telemetry: Sequence[str]) -> dict[str, Any]:
    """Return the domain of a network: the range of each condition, and the typical offset from nominal.

    A range is three times as wide as that of the training without the outermost 0.1 %, because cameras drift.
    """
    ranges = {}
    for name, values in zip(telemetry, train.arrays.telemetry.T, strict=True):
        low, high = np.nanquantile(values.astype(float), [0.001, 0.999])
        ranges[name] = [round(float(low - (high - low)), 6), round(float(high + (high - low)), 6)]
    return {"telemetry_range": ranges, "offset": round(float(np.nanmedian(train.truth)), 4)}
