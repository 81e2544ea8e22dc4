"""``csstdask models``: list models, or convert weights of deepCR's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from csstdask.cli.options import Json, app, print_message

#: Columns of the table and their widths [characters].
_COLUMNS = {"name": 12, "task": 10, "version": 4, "licence": 14}


@app.command()
def models(
    as_json: Json = False,
    from_deepcr: Annotated[Path | None, typer.Option(help="Convert these weights of deepCR's format (.pth).")] = None,
    to: Annotated[Path | None, typer.Option(help="Output folder of the converted model.")] = None,
) -> None:
    """List models and methods; the default of each task is marked."""
    from csstdask.nn.models import DEFAULTS, all_cards

    if from_deepcr is not None:
        from csstdask.cosmicray.deepcr import convert

        if to is None:
            raise typer.BadParameter("needed with --from-deepcr: a folder for card and weights", param_hint="--to")
        print_message(f"card {convert(from_deepcr, to)}")
        return
    summaries = [card.summary() for card in all_cards()]
    if as_json:
        typer.echo(json.dumps({"models": summaries, "defaults": DEFAULTS}))
        return
    for summary in summaries:
        typer.echo(_table_row(summary, is_default=DEFAULTS.get(summary["task"]) == summary["name"]))


def _table_row(summary: dict[str, Any], *, is_default: bool) -> str:
    columns = " ".join(f"{summary[name]:<{width}}" for name, width in _COLUMNS.items())
    return f"{columns} {'default' if is_default else '':<7} {summary['sha256'][:12]} {summary['trained_on']}"
