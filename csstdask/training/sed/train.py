"""Train SED networks, for ``csstdask train sed``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from csstdask.training.base import load_config
from csstdask.training.sed.config import SedConfig
from csstdask.training.sed.network import train_sed_network
from csstdask.training.sed.uaranet import train_uaranet

log = logging.getLogger("csstdask")


def load_sed_config(path: Path | None, **changes: object) -> SedConfig:
    """Read the settings of a training from a TOML file; `changes` that are not None override it.

    Raises
    ------
    InputError
        Naming the file and every key that is unknown or wrong.
    """
    return load_config(SedConfig, path, "SEDs (data: folder of spectra)", changes)


def train_sed(config: SedConfig, to: Path, *, on_progress: Callable[[str], None] = log.info) -> Path:
    """Train an SED network, or resume a training.

    Parameters
    ----------
    config : SedConfig
        Settings.
    to : Path
        Folder of the training, with ``log.csv``, checkpoints, and finally the card and its weights.
    on_progress : callable
        Receives one line for each epoch.

    Returns
    -------
    Path
        Path of the card; the weights are in the same folder.

    Raises
    ------
    InputError
        If the data are missing, or the folder contains a training with other settings.
    """
    if config.kind == "uaranet":
        return train_uaranet(config, to, on_progress=on_progress)
    return train_sed_network(config, to, on_progress=on_progress)
