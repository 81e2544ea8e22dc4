"""``csstdask evaluate TARGET``: measure models on mock surveys and real frames, compared with other methods."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer

from csstdask.cli.options import (
    CompareWith,
    EvaluationFolder,
    Model,
    Only,
    RealData,
    Scale,
    TargetGroup,
    app,
    print_message,
)

evaluate = typer.Typer(cls=TargetGroup, help="Evaluate models, compared with other methods.", rich_markup_mode=None)
app.add_typer(evaluate, name="evaluate")

Recipes = Annotated[Path | None, typer.Option(help="Folder of test recipes (stores/). Default: no mock surveys.")]


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)


@evaluate.command()
def cosmicray(
    to: EvaluationFolder = None,
    model: Model = "default",
    recipes: Recipes = None,
    data: RealData = None,
    compare_with: CompareWith = None,
    only: Only = None,
    scale: Scale = None,
    precision: Annotated[
        Literal["float32", "bfloat16", "int8"], typer.Option(help="Precision of networks on mock surveys.")
    ] = "bfloat16",
    run: Annotated[
        Path | None, typer.Option(help="Check the cosmic rays of this run without truth. Needs no other option.")
    ] = None,
) -> None:
    """Evaluate the detection of cosmic rays, with truth or in a run."""
    if run is not None:
        if any((recipes, data, compare_with, only, scale)) or model != "default":
            raise typer.BadParameter("cannot be combined with options other than --to", param_hint="--run")
        from csstdask.evaluation.run_consistency import evaluate_run, summary_lines

        _print_lines(summary_lines(evaluate_run(run, to, on_progress=print_message)))
        return
    from csstdask.evaluation.cosmicray.evaluate import PARTS, evaluate_cosmicray
    from csstdask.evaluation.cosmicray.evaluate import summary_lines as result_lines

    results = evaluate_cosmicray(
        model,
        data,
        to,
        recipes=recipes,
        parts=only or PARTS,
        compare_with=compare_with or (),
        scale=scale,
        precision=precision,
        on_progress=print_message,
    )
    _print_lines(result_lines(results))


@evaluate.command()
def inpaint(
    to: EvaluationFolder = None,
    model: Model = "default",
    recipes: Recipes = None,
    data: Annotated[Path | None, typer.Option(help="Folder of real images, for the part m51.")] = None,
    compare_with: CompareWith = None,
    only: Only = None,
    scale: Scale = None,
) -> None:
    """Evaluate the repair of pixels hit by cosmic rays."""
    from csstdask.evaluation.inpaint.evaluate import PARTS, evaluate_inpaint, summary_lines

    models = [*([] if model == "default" else [model]), *(compare_with or ())]
    results = evaluate_inpaint(
        models, data, to, recipes=recipes, parts=only or PARTS, scale=scale, on_progress=print_message
    )
    _print_lines(summary_lines(results))


@evaluate.command()
def psf(
    recipes: Annotated[Path, typer.Option(help="Folder of test recipes (stores/).")],
    to: EvaluationFolder = None,
    model: Model = "default",
    compare_with: Annotated[
        list[str] | None, typer.Option("--compare-with", help="Another model, or piff. May be repeated.")
    ] = None,
    only: Only = None,
) -> None:
    """Evaluate the reconstruction of point spread functions, compared with PSFEx."""
    from csstdask.evaluation.psf.evaluate import PARTS, evaluate_psf
    from csstdask.evaluation.psf.tables import table

    others = compare_with or []
    results = evaluate_psf(
        model,
        to,
        recipes=recipes,
        parts=only or tuple(PARTS),
        piff="piff" in others,
        compare_with=[name for name in others if name != "piff"],
        on_progress=print_message,
    )
    _print_lines(table(results))


@evaluate.command()
def sed(
    data: Annotated[Path, typer.Option(help="Folder of spectral libraries (.npz).")],
    to: EvaluationFolder = None,
    model: Model = "default",
    compare_with: CompareWith = None,
    only: Only = None,
) -> None:
    """Evaluate SEDs predicted from spectra."""
    from csstdask.evaluation.sed.evaluate import PARTS, evaluate_sed, summary_lines

    results = evaluate_sed(
        data,
        to,
        model=model,
        compare_with=tuple(compare_with or ("uaranet",)),
        parts=only or PARTS,
        on_progress=print_message,
    )
    _print_lines(summary_lines(results))


@evaluate.command()
def flat(
    to: Annotated[Path, typer.Option(help="Output folder for mock, run, results (JSON) and figures.")],
    recipes: Annotated[Path | None, typer.Option(help="One slitless recipe (TOML). Default: slitless-400.")] = None,
    scale: Scale = None,
) -> None:
    """Evaluate flat-field cubes from slitless spectra."""
    from csstdask.evaluation.flat.evaluate import evaluate_flat

    path = evaluate_flat(to, recipe=recipes or "slitless-400", scale=scale, on_progress=print_message)
    print_message(f"written {path}")


@evaluate.command()
def zeropoint(
    to: EvaluationFolder = None,
    model: Model = "default",
    recipes: Annotated[
        Path | None, typer.Option(help="One recipe with zero points (TOML). Default: zeropoint.")
    ] = None,
    compare_with: CompareWith = None,
    only: Only = None,
    table: Annotated[
        Path | None, typer.Option(help="Evaluate on this table of real exposures (.csv, .csv.gz). Needs --to only.")
    ] = None,
) -> None:
    """Evaluate zero points on mock surveys, or on a table of real exposures."""
    if table is not None:
        if any((recipes, compare_with, only)) or model != "default":
            raise typer.BadParameter("cannot be combined with options other than --to", param_hint="--table")
        if to is None:
            raise typer.BadParameter("needed with --table: a folder for results and figures", param_hint="--to")
        from csstdask.evaluation.zeropoint.table import evaluate_table

        evaluate_table(table, to, on_progress=print_message)
        print_message(f"written {to / 'zeropoint_table.json'}")
        return
    from csstdask.evaluation.zeropoint.evaluate import COMPARED_MODELS, PARTS, evaluate_zeropoint, format_results

    results = evaluate_zeropoint(
        to,
        model=model,
        compare_with=compare_with or COMPARED_MODELS,
        recipe="zeropoint" if recipes is None else str(recipes),
        parts=only or PARTS,
        on_progress=print_message,
    )
    _print_lines(format_results(results))
