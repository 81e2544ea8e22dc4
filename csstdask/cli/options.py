"""What the verbs of the shell share: the program, options of several, and how it speaks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="csstdask",
    help="Reprocess space-telescope surveys on chunked arrays.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else there.")]
Scheduler = Annotated[str, typer.Option(help="threads, processes, cuda, slurm, or an address such as tcp://host:8786.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Units at the same time; default: what cores and memory allow.")
]
Log = Annotated[Path | None, typer.Option("--log", help="Append one JSON object a line and event to this file.")]
CampaignOption = Annotated[Path | None, typer.Option(help="Where the campaign lies, if it has moved.")]

Select = Annotated[str | None, typer.Option(help="exposure=ID[,ID...],detector=N-M; ids may hold * and ?.")]

DataOption = Annotated[Path | None, typer.Option(help="Folder of real events and frames; none: mock data alone.")]


LINES_SHOWN = 50
"""Lines of a list that are printed."""


def _print_version(wanted: bool) -> None:
    if wanted:
        from csstdask import __version__

        typer.echo(f"csstdask {__version__}")
        raise typer.Exit


@app.callback(epilog="Complete commands with Tab: csstdask --install-completion")
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Reprocess space-telescope surveys on chunked arrays."""


def say(text: str) -> None:
    """Tell a person something, on standard error."""
    typer.echo(text, err=True)


def say_all(label: str, lines: Sequence[str]) -> None:
    """Print a list on standard error, a line each; of a long one the beginning, and how many more there are."""
    for line in lines[:LINES_SHOWN]:
        say(f"{label} {line}")
    if len(lines) > LINES_SHOWN:
        say(f"{label}: {len(lines) - LINES_SHOWN} more (--json lists all)")
