"""Train the network ``sed``: the mean, then its covariance, then the calibration.

1. `csstdask.training.sed.mean`: principal components, and the ensemble that predicts the mean.
2. `csstdask.training.sed.mean` again: a second ensemble whose members each leave out a fifth of the cells.
3. `csstdask.training.sed.covariance`: the covariance of the errors of the second ensemble.
4. `csstdask.training.sed.calibration`: factors on sigma, and the tails of the errors.
5. `csstdask.training.sed.real_stars`: the correction for real stars, and the domain of the network.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from csstdask.datasets.template_bank import load_templates
from csstdask.flux.sed_network import SedNetwork
from csstdask.flux.spectral_grids import BANDS
from csstdask.training.base import start_training, write_model
from csstdask.training.sed.calibration import calibrate
from csstdask.training.sed.config import SedConfig
from csstdask.training.sed.covariance import train_covariance
from csstdask.training.sed.mean import train_mean
from csstdask.training.sed.real_stars import RealTraining, learn_from_real_stars
from csstdask.training.sed.uaranet import last_tenth_gain

log = logging.getLogger("csstdask")


def build(config: SedConfig) -> SedNetwork:
    """Make the network of a training, its first weights by the seed."""
    torch.manual_seed(config.seed)
    return SedNetwork(**architecture(config))


def architecture(config: SedConfig) -> dict[str, Any]:
    """Return the arguments of the network."""
    names = ("kind", "components", "sed_components", "members", "width", "blocks", "rank")
    return {name: getattr(config, name) for name in names}


def train_sed_network(config: SedConfig, to: Path, *, on_progress: Callable[[str], None] = log.info) -> Path:
    """Train ``sed`` in all its parts, or resume a training; return its card.

    Parameters
    ----------
    config : SedConfig
        With ``kind = "sed"``.
    to : Path
        Folder of the training.
    on_progress : callable
        Receives one line for each epoch.
    """
    start_training(config, to)
    folder = Path(config.data)
    bank = load_templates(folder, seed=config.split_seed)
    real = RealTraining.of(folder, config.real_test_share)
    network, scout = build(config), build(config)
    means = train_mean(network, bank, config, to, real.miles.flux, on_progress)
    train_mean(scout, bank, config, to, real.miles.flux, on_progress, leave_out=True)
    covariances = train_covariance(scout, bank, config, to, on_progress)
    network.covariance.load_state_dict(scout.covariance.state_dict())
    network.error_projection.copy_(scout.error_projection)
    network.eval().requires_grad_(requires_grad=False)
    on_progress("calibration on held-out cells")
    calibrate(network, bank, config)
    learn_from_real_stars(network, bank, real, config.seed)
    metrics = {
        "data": f"{config.validation} stars of held-out cells, SNR 8-125",
        "epochs": len(means),
        **{name: means[-1][name] for name in ("validation", *BANDS)},
        "last_tenth_gain": last_tenth_gain(means),
        "covariance_last_tenth_gain": last_tenth_gain(covariances),
    }
    trained_on = (
        f"{config.stars} stars of DESI templates + ATLAS9; corrected with {len(real.calspec)} CALSPEC "
        f"and {len(real.miles)} MILES stars"
    )
    method = "ensemble on principal components with covariance (csstdask.flux.sed)"
    return write_model(
        config,
        network,
        to,
        method=method,
        trained_on=trained_on,
        architecture=architecture(config),
        metrics=metrics,
    )
