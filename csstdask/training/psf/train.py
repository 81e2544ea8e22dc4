"""Training of PSF reconstruction: ``csstdask train psf``, whichever kind of model its settings ask for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from csstdask.core.errors import InputError
from csstdask.core.settings import read_settings, read_toml
from csstdask.training.psf.basis import PrincipalConfig, train_principal
from csstdask.training.psf.psfnet import PsfNetConfig, train_psfnet

log = logging.getLogger("csstdask")

_WANTED = "settings of a training of PSFs"


def load_psf_config(path: Path | None, **changes: object) -> PrincipalConfig | PsfNetConfig:
    """Read the settings of a training from a TOML file; `changes` that are not None win.

    ``kind`` says of which model: ``principal`` or ``psfnet``; without it, what learns from stamps is ``psfnet``.

    Raises
    ------
    InputError
        Naming the file and every key that is unknown or wrong.
    """
    told = {key: value for key, value in changes.items() if value is not None}
    of_file = {} if path is None else read_toml(path, _WANTED)
    given = of_file | told
    kind = str(given.get("kind", "psfnet" if "campaigns" in given else "principal"))
    if kind == "principal":
        return read_settings(PrincipalConfig, path, _WANTED, told)
    if kind == "psfnet":
        return read_settings(PsfNetConfig, path, _WANTED, told)
    raise InputError(path or "settings", f"kind = {kind!r}", "principal or psfnet")


def train_psf(
    config: PrincipalConfig | PsfNetConfig, to: Path, *, on_progress: Callable[[str], None] = log.info
) -> Path:
    """Train a model of PSFs, or go on with a training.

    Parameters
    ----------
    config : PrincipalConfig or PsfNetConfig
    to : Path
        Folder of the training.
    announce : callable
        Told in a line how it goes.

    Returns
    -------
    Path
        The card; the weights lie beside it.

    Raises
    ------
    InputError
        As the training of either does.
    """
    if isinstance(config, PsfNetConfig):
        return train_psfnet(config, to, on_progress=on_progress)
    return train_principal(config, to, on_progress=on_progress)
