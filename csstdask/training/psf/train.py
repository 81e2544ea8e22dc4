"""Train a PSF model of any kind: ``csstdask train psf``."""

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
    """Read the settings of a training from a TOML file; `changes` that are not None take precedence.

    ``kind`` is the kind of model, ``principal`` or ``psfnet``; by default ``psfnet`` if there are ``campaigns``.

    Raises
    ------
    InputError
        If a key is unknown or wrong: the error names the file and the keys.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    of_file = {} if path is None else read_toml(path, _WANTED)
    merged = of_file | given
    kind = str(merged.get("kind", "psfnet" if "campaigns" in merged else "principal"))
    if kind == "principal":
        return read_settings(PrincipalConfig, path, _WANTED, given)
    if kind == "psfnet":
        return read_settings(PsfNetConfig, path, _WANTED, given)
    raise InputError(path or "settings", f"kind = {kind!r}", "principal or psfnet")


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
