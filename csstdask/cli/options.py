"""The program and what its commands share: options, former spellings, messages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

#: Former spellings of options, which are still accepted, without their dashes.
FORMER_OPTIONS = {"beside": "compare-with", "part": "only", "from": "start-from"}
#: Lines of a list that are printed.
MAX_LIST_LINES = 50


class TargetGroup(TyperGroup):
    """A group of commands, one for each target, whose error for an unknown target names all targets."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command of a target; a usage error if there is none."""
        if self.get_command(ctx, args[0]) is None:
            ctx.fail(f"unknown target {args[0]!r}; choose one of: {', '.join(self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="csstdask",
    help="Reprocess space-telescope surveys on chunked arrays.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"token_normalize_func": lambda name: FORMER_OPTIONS.get(name, name)},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else there.")]
Scheduler = Annotated[
    str, typer.Option(help="threads, processes, cuda, slurm, or the address of a Dask scheduler (tcp://host:8786).")
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Units processed at a time. Default: as cores and memory allow.")
]
Log = Annotated[Path | None, typer.Option("--log", help="Append events to this file, one JSON object per line.")]
CampaignOption = Annotated[Path | None, typer.Option(help="Path of the campaign, if it has moved.")]
Select = Annotated[
    str | None,
    typer.Option(help="Units to process: exposure=ID[,ID...],detector=N-M. IDs may contain * and ? as wildcards."),
]
TrainingFolder = Annotated[Path, typer.Option("--to", help="Output folder. An interrupted training in it is resumed.")]
TrainingSettings = Annotated[Path | None, typer.Option("--config", help="Settings of the training (TOML).")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Number of epochs.")]
StartFrom = Annotated[
    str | None, typer.Option("--start-from", help="Fine-tune this model: a name or the path of a model card.")
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda. Default: cpu.")]
RealData = Annotated[
    Path | None, typer.Option("--data", help="Folder of real events and frames. Default: mock data only.")
]
Model = Annotated[str, typer.Option(help="Name of a model (see `csstdask models`), or path of a model card.")]
EvaluationFolder = Annotated[Path | None, typer.Option("--to", help="Output folder for results (JSON) and figures.")]
CompareWith = Annotated[
    list[str] | None, typer.Option("--compare-with", help="Another model to evaluate. May be repeated.")
]
Only = Annotated[list[str] | None, typer.Option("--only", help="Evaluate only this part. May be repeated.")]
Scale = Annotated[
    float | None, typer.Option(min=0.01, help="Linear scale of mock frames, instead of the recipe's own.")
]


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


def print_message(text: str) -> None:
    """Print a message for people, on standard error."""
    typer.echo(text, err=True)


def print_list(label: str, lines: Sequence[str]) -> None:
    """Print a list on standard error, one item per line, at most `MAX_LIST_LINES` of them."""
    for line in lines[:MAX_LIST_LINES]:
        print_message(f"{label} {line}")
    if len(lines) > MAX_LIST_LINES:
        print_message(f"{label}: {len(lines) - MAX_LIST_LINES} more (--json lists all)")
