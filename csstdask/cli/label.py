"""``csstdask label TARGET``: label cosmic rays in real frames."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from csstdask.cli.options import TargetGroup, app, print_message

label = typer.Typer(cls=TargetGroup, help="Label cosmic rays in real frames, for training.", rich_markup_mode=None)
app.add_typer(label, name="label")

Sigma = Annotated[float, typer.Option(help="A cosmic ray has at least one pixel above this many sigma of its noise.")]
Grow = Annotated[float, typer.Option(help="Pixels connected to it above this many sigma belong to the cosmic ray.")]


@label.command()
def darks(
    campaign: Annotated[Path, typer.Argument(help="Campaign with three or more dark frames of each detector.")],
    to: Annotated[Path, typer.Option(help="Event library to write (.npz).")],
    sigma: Sigma = 5.0,
    grow: Grow = 3.0,
) -> None:
    """Write a library of the cosmic-ray events in dark frames."""
    from csstdask.training.labels.darks import label_darks

    library = label_darks(campaign, to, sigma=sigma, grow=grow, on_progress=print_message)
    print_message(f"{to}: {len(library)} events")


@label.command()
def repeats(
    campaign: Annotated[Path, typer.Argument(help="Campaign with three or more exposures of one field.")],
    sigma: Sigma = 5.0,
    grow: Grow = 3.0,
    against_truth: Annotated[
        bool, typer.Option("--against-truth", help="Compare the labels with the truth of a mock campaign.")
    ] = False,
) -> None:
    """Label what repeated exposures of a field do not share. Labels are written into the campaign."""
    from csstdask.training.labels.repeats import label_repeats
    from csstdask.training.labels.score import score_labels

    units = label_repeats(campaign, sigma=sigma, grow=grow, on_progress=print_message)
    print_message(f"{campaign}: {units} units labelled")
    if against_truth:
        for name, score in score_labels(campaign).items():
            typer.echo(f"{name}: {score.line()}")
