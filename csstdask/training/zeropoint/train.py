"""Training of zero-point networks: ``csstdask train zeropoint``, whichever network its settings ask for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from csstdask.core.settings import read_settings
from csstdask.nn.card import ModelCard, write_card
from csstdask.training.zeropoint.config import ZeropointConfig

if TYPE_CHECKING:  # it imports PyTorch
    from csstdask.training.zeropoint.surveys import Examples

log = logging.getLogger("csstdask")


def load_zeropoint_config(path: Path | None, **changes: object) -> ZeropointConfig:
    """Read the settings of a training from a TOML file; `changes` that are not None win.

    Raises
    ------
    InputError
        Naming the file and every key that is unknown or wrong.
    """
    return read_settings(ZeropointConfig, path, "settings of a training of zero points", changes)


def train_zeropoint(config: ZeropointConfig, to: Path, *, on_progress: Callable[[str], None] = log.info) -> Path:
    """Train a zero-point network, or resume a training.

    Parameters
    ----------
    config : ZeropointConfig
    to : Path
        Folder of the training: ``log.csv``, checkpoints, and in the end the card with its weights.
    announce : callable
        Receives a line an epoch.

    Returns
    -------
    Path
        The card; the weights are in the same folder.

    Raises
    ------
    InputError
        If the recipe has no zero points, or the folder has a training with other settings.
    """
    if config.kind == "azprc":
        from csstdask.training.zeropoint.azprc import train_azprc  # noqa: PLC0415  torch takes seconds

        return train_azprc(config, to, on_progress=on_progress)
    import torch  # noqa: PLC0415

    from csstdask.nn.weights import save_weights  # noqa: PLC0415
    from csstdask.training.zeropoint.fit import fit_prior  # noqa: PLC0415
    from csstdask.training.zeropoint.surveys import collect_examples, load_surveys  # noqa: PLC0415
    from csstdask.zeropoint.prior.network import PriorNetwork  # noqa: PLC0415

    torch.set_num_threads(config.threads)
    on_progress(f"exposures of recipe {config.recipe}")
    surveys = load_surveys(config.recipe, config.exposures, memory=config.memory)
    train, validation = (collect_examples(surveys, part, memory=config.memory) for part in ("train", "validation"))
    torch.manual_seed(config.seed)
    network = PriorNetwork(memory=config.memory, members=config.members, width=config.width, latent=config.latent)
    # Sigma is calibrated against the truth of the mock: solved zero points of sparse fields are too noisy for that.
    history = fit_prior(
        network, train.arrays, train.solved, target_sigma=train.sigma,
        validation=(validation.arrays, validation.truth), survey=train.survey,
        settings=config.fit, folder=to, identity=config.identity, on_progress=on_progress,
    )  # fmt: skip
    path = to / f"{config.name}.json"
    sha256 = save_weights(network, path.with_suffix(".safetensors"))
    metrics = {
        "data": f"{len(validation)} exposures after those of the training; errors against true zero points",
        "epochs": len(history),
        **{name: float(np.round(history[-1][name], 6)) for name in ("rmse", "nll")},
    }
    write_card(
        path,
        ModelCard(
            config.name, "zeropoint", config.version,
            "Gaussian process of past zero points on a network of conditions (csstdask.zeropoint.prior.network)",
            config.licence, f"{len(train)} exposures of mock surveys {', '.join(surveys)}, first 60 % of their days",
            sha256, architecture=network.architecture, calibration=domain_of(train, network.telemetry), metrics=metrics,
        ),
    )  # fmt: skip
    return path


def domain_of(train: Examples, telemetry: Sequence[str]) -> dict[str, Any]:
    """Return the range of each condition that the network may be used in, and the typical offset from nominal.

    A range is three times as wide as that of the training, without the outermost 0.1 %: cameras drift.
    """
    ranges = {}
    for name, values in zip(telemetry, train.arrays.telemetry.T, strict=True):
        low, high = np.nanquantile(values.astype(float), [0.001, 0.999])
        ranges[name] = [round(float(low - (high - low)), 6), round(float(high + (high - low)), 6)]
    return {"telemetry_range": ranges, "offset": round(float(np.nanmedian(train.truth)), 4)}
