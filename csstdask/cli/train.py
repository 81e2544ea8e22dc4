"""``csstdask train TARGET``: train a model of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from csstdask.cli.options import (
    Device,
    Epochs,
    RealData,
    StartFrom,
    TargetGroup,
    TrainingFolder,
    TrainingSettings,
    app,
    print_message,
)

train = typer.Typer(cls=TargetGroup, help="Train a model. An interrupted training is resumed.", rich_markup_mode=None)
app.add_typer(train, name="train")


def _absolute(path: Path | None) -> str | None:
    """Return an absolute path as text, so that a training can be resumed from another folder."""
    return None if path is None else str(path.resolve())


@train.command()
def cosmicray(
    to: TrainingFolder,
    config: TrainingSettings = None,
    campaign: Annotated[
        Path | None, typer.Option(help="Campaign to learn from: a mock, or one with labels (see `csstdask label`).")
    ] = None,
    data: RealData = None,
    events: Annotated[
        list[Path] | None, typer.Option(help="Event library written by `csstdask label darks`. May be repeated.")
    ] = None,
    start_from: StartFrom = None,
    epochs: Epochs = None,
    device: Device = None,
) -> None:
    """Train a network that detects cosmic rays."""
    from csstdask.training.cosmicray.config import load_cosmicray_config
    from csstdask.training.cosmicray.train import train_cosmicray

    settings = load_cosmicray_config(
        config,
        campaign=_absolute(campaign),
        data=_absolute(data),
        events=[str(path.resolve()) for path in events] if events else None,
        start_from=start_from,
        epochs=epochs,
        device=device,
    )
    print_message(f"card {train_cosmicray(settings, to, on_progress=print_message)}")


@train.command()
def inpaint(
    to: TrainingFolder,
    config: TrainingSettings = None,
    campaign: Annotated[
        Path | None, typer.Option(help="Campaign from whose frames stamps of sources and cosmic rays are cut.")
    ] = None,
    start_from: StartFrom = None,
    epochs: Epochs = None,
    device: Device = None,
) -> None:
    """Train a network that repairs sources hit by cosmic rays."""
    from csstdask.training.inpaint.config import load_inpaint_config
    from csstdask.training.inpaint.train import train_inpaint

    campaigns = None if campaign is None else [str(campaign.resolve())]
    settings = load_inpaint_config(config, campaigns=campaigns, start_from=start_from, epochs=epochs, device=device)
    print_message(f"card {train_inpaint(settings, to, on_progress=print_message)}")


@train.command()
def psf(
    to: TrainingFolder,
    config: TrainingSettings = None,
    campaign: Annotated[
        Path | None, typer.Option(help="Stamps of stars (psfnet only), as `csstdask mock` writes them.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Training target of psfnet: truth, psfex or stars (the stars' own pixels).")
    ] = None,
    start_from: StartFrom = None,
    epochs: Epochs = None,
    device: Device = None,
) -> None:
    """Train a model of point spread functions."""
    from csstdask.training.psf.train import load_psf_config, train_psf

    campaigns = None if campaign is None else [str(campaign.resolve())]
    settings = load_psf_config(
        config, campaigns=campaigns, labels=labels, start_from=start_from, epochs=epochs, device=device
    )
    print_message(f"card {train_psf(settings, to, on_progress=print_message)}")


@train.command()
def sed(
    to: TrainingFolder,
    config: TrainingSettings = None,
    data: Annotated[Path | None, typer.Option(help="Folder of spectral libraries (.npz).")] = None,
    epochs: Epochs = None,
) -> None:
    """Train a network that predicts SEDs from spectra."""
    from csstdask.training.sed.train import load_sed_config, train_sed

    settings = load_sed_config(config, data=_absolute(data), epochs=epochs)
    print_message(f"card {train_sed(settings, to, on_progress=print_message)}")


@train.command()
def zeropoint(to: TrainingFolder, config: TrainingSettings = None, epochs: Epochs = None) -> None:
    """Train a network that predicts zero points."""
    from csstdask.training.zeropoint.train import load_zeropoint_config, train_zeropoint

    settings = load_zeropoint_config(config, epochs=epochs)
    print_message(f"card {train_zeropoint(settings, to, on_progress=print_message)}")
