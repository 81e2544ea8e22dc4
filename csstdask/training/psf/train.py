"""Train a PSF model of any kind: ``csstdask train psf``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from csstdask.training.psf.basis import train_principal
from csstdask.training.psf.config import PrincipalConfig, PsfNetConfig, load_psf_config
from csstdask.training.psf.psfnet import train_psfnet

log = logging.getLogger("csstdask")


def train_psf(
    config: PrincipalConfig | PsfNetConfig, to: Path, *, on_progress: Callable[[str], None] = log.info
) -> Path:
    """Train a model of PSFs, or resume a training.

    Parameters
    ----------
    config : PrincipalConfig or PsfNetConfig
    to : Path
        Output folder.
    on_progress : callable
        Called with one line per step of progress.

    Returns
    -------
    Path
        The card; the weights are in the same folder.

    Raises
    ------
    InputError
        If settings or data cannot be used, as in `train_principal` and `train_psfnet`.
    """
    if isinstance(config, PsfNetConfig):
        return train_psfnet(config, to, on_progress=on_progress)
    return train_principal(config, to, on_progress=on_progress)


__all__ = ["load_psf_config", "train_psf"]
