"""Verbs of networks: what they learn from, their trainings, evaluations and cards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from csstdask.cli.options import DataOption, Json, app, say
from csstdask.core.errors import InputError

TRAINABLE: tuple[str, ...] = ("cosmicray", "inpaint", "psf", "sed", "zeropoint")
EVALUABLE: tuple[str, ...] = ("cosmicray", "inpaint", "psf", "sed", "flat", "zeropoint")
LABELLERS: tuple[str, ...] = ("darks", "repeats")


@app.command()
def label(
    target: Annotated[str, typer.Argument(help="What to learn of cosmic rays from: darks or repeats.")],
    campaign: Annotated[Path, typer.Argument(help="A campaign with dark frames, or several exposures of a field.")],
    to: Annotated[Path | None, typer.Option(help="darks: the library of events to write, .npz.")] = None,
    sigma: Annotated[float, typer.Option(help="A cosmic ray has a pixel this far above its noise.")] = 5.0,
    grow: Annotated[float, typer.Option(help="Neighbours this far above it belong to the cosmic ray.")] = 3.0,
    against_truth: Annotated[bool, typer.Option("--against-truth", help="repeats: beside a mock's truth.")] = False,
) -> None:
    """Find cosmic rays to learn from: events in darks, or what repeated exposures do not share."""
    _check_target("label", target, LABELLERS)
    if target == "darks":
        from csstdask.training.labels.darks import label_darks

        if to is None:
            raise InputError("label darks", "no --to", "a file for the events, .npz")
        if against_truth:
            raise InputError("label darks", "--against-truth", "it with label repeats alone")
        say(f"{to}: {len(label_darks(campaign, to, sigma=sigma, grow=grow, on_progress=say))} events")
        return
    from csstdask.training.labels.dithered_exposures import label_repeats
    from csstdask.training.labels.score import score_labels

    if to is not None:
        raise InputError("label repeats", f"--to {to}", "none: labels are written into the campaign")
    units = label_repeats(campaign, sigma=sigma, grow=grow, on_progress=say)
    say(f"{campaign}: {units} units labelled")
    if against_truth:
        for name, score in score_labels(campaign).items():
            typer.echo(f"{name}: {score.line()}")


@app.command()
def train(
    target: Annotated[str, typer.Argument(help="What to train: cosmicray, inpaint, psf, sed or zeropoint.")],
    to: Annotated[Path | None, typer.Option(help="Folder of the training; gone on with if it is there.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings, a TOML.")] = None,
    data: DataOption = None,
    campaign: Annotated[Path | None, typer.Option(help="To learn from, as a rule with truth or labels.")] = None,
    events: Annotated[list[Path] | None, typer.Option(help="Library of events that `csstdask label` cut.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over fresh examples.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="What teaches psfnet: truth, psfex, or the stars' own pixels (stars).")
    ] = None,
    start_from: Annotated[str | None, typer.Option("--from", help="Model of PSFs to go on from: name or card.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cpu.")] = None,
) -> None:
    """Train a network; killed, it goes on where it was."""
    _check_target("train", target, TRAINABLE)
    if to is None:
        raise InputError(f"train {target}", "no --to", "a folder for the training")
    if target == "psf":
        if data is not None or events:
            raise InputError("train psf", "--data or --events", "--campaign: stamps of stars, where a network learns")
        from csstdask.training.psf.train import load_psf_config, train_psf

        sets = None if campaign is None else [str(campaign.resolve())]
        psf = load_psf_config(
            config, campaigns=sets, labels=labels, start_from=start_from, epochs=epochs, device=device
        )
        say(f"card {train_psf(psf, to, on_progress=say)}")
        return
    if target == "sed":
        if campaign is not None or events or labels is not None or start_from is not None or device is not None:
            raise InputError("train sed", "--campaign, --events, --labels, --from or --device", "--config and --data")
        from csstdask.training.sed.train import load_sed_config, train_sed

        folder = None if data is None else str(data.resolve())
        say(f"card {train_sed(load_sed_config(config, data=folder, epochs=epochs), to, on_progress=say)}")
        return
    if target == "zeropoint":
        if any(one is not None for one in (data, campaign, labels, start_from, device)) or events:
            raise InputError(
                "train zeropoint", "--data, --campaign, --events, --labels, --from or --device", "--config and --epochs"
            )
        from csstdask.training.zeropoint.train import load_zeropoint_config, train_zeropoint

        say(f"card {train_zeropoint(load_zeropoint_config(config, epochs=epochs), to, on_progress=say)}")
        return
    if labels is not None or start_from is not None:
        raise InputError(f"train {target}", "--labels or --from", "neither: settings say what teaches")
    if target == "inpaint":
        if data is not None or events:
            raise InputError("train inpaint", "--data or --events", "--campaign: stamps are cut from its frames")
        from csstdask.training.inpaint.train import load_inpaint_config, train_inpaint

        campaigns = None if campaign is None else [str(campaign.resolve())]
        repair = load_inpaint_config(config, campaigns=campaigns, epochs=epochs, device=device)
        say(f"card {train_inpaint(repair, to, on_progress=say)}")
        return
    from csstdask.training.cosmicray.config import load_cosmicray_config
    from csstdask.training.cosmicray.train import train_cosmicray

    settings = load_cosmicray_config(
        config,
        data=None if data is None else str(data.resolve()),
        campaign=None if campaign is None else str(campaign.resolve()),
        events=[str(path.resolve()) for path in events] if events else None,
        epochs=epochs,
        device=device,
    )
    say(f"card {train_cosmicray(settings, to, on_progress=say)}")


@app.command()
def evaluate(
    target: Annotated[str, typer.Argument(help="What to evaluate: cosmicray, inpaint, psf, sed, flat or zeropoint.")],
    to: Annotated[Path | None, typer.Option(help="Folder for the figures, as JSON.")] = None,
    data: DataOption = None,
    model: Annotated[str, typer.Option(help="A name that `csstdask models` lists, or a card's path.")] = "default",
    recipes: Annotated[
        Path | None, typer.Option(help="Folder of test recipes, stores/; none: no mocks. Of flat: one recipe.")
    ] = None,
    part: Annotated[list[str] | None, typer.Option(help="Only this part; may be given several times.")] = None,
    beside: Annotated[
        list[str] | None, typer.Option(help="A further model; may be given several times. Of psf: or piff.")
    ] = None,
    scale: Annotated[float | None, typer.Option(min=0.01, help="Of mock surveys, in place of each part's own.")] = None,
    precision: Annotated[
        Literal["float32", "bfloat16", "int8"], typer.Option(help="Of networks on mock surveys.")
    ] = "bfloat16",
    run: Annotated[Path | None, typer.Option(help="Instead: a run's own cosmic rays, checked without truth.")] = None,
    table: Annotated[
        Path | None, typer.Option("--table", help="zeropoint: real exposures, one a line (.csv, .csv.gz).")
    ] = None,
) -> None:
    """Evaluate a network beside other methods, or what it found in a run."""
    _check_target("evaluate", target, EVALUABLE)
    _check_particular(target, run, precision, table)
    if run is not None:
        if any((data, recipes, part, beside, scale)) or model != "default":
            raise InputError("evaluate --run", "options of an evaluation with truth beside it", "--run and --to alone")
        from csstdask.evaluation.run_consistency import evaluate_run, summary_lines

        for line in summary_lines(evaluate_run(run, to, on_progress=say)):
            typer.echo(line)
        return
    if target == "psf":
        if recipes is None:
            raise InputError("evaluate psf", "no --recipes", "a folder of test recipes")
        if data is not None or scale is not None:
            raise InputError("evaluate psf", "--data or --scale", "neither: its stars are of --recipes")
        from csstdask.evaluation.psf.evaluate import PARTS as PSF_PARTS
        from csstdask.evaluation.psf.evaluate import evaluate_psf
        from csstdask.evaluation.psf.tables import table as psf_table

        others = [one for one in beside or () if one != "piff"]
        found = evaluate_psf(
            model,
            to,
            recipes=recipes,
            parts=part or tuple(PSF_PARTS),
            piff="piff" in (beside or ()),
            beside=others,
            on_progress=say,
        )
        for line in psf_table(found):
            typer.echo(line)
        return
    if target == "sed":
        if data is None:
            raise InputError("evaluate sed", "no --data", "a folder of spectral libraries")
        if recipes is not None or scale is not None:
            raise InputError("evaluate sed", "--recipes or --scale", "neither: its stars are of --data")
        from csstdask.evaluation.sed.evaluate import PARTS as SED_PARTS
        from csstdask.evaluation.sed.evaluate import evaluate_sed
        from csstdask.evaluation.sed.evaluate import summary_lines as sed_table

        others_of_sed = tuple(beside or ("uaranet",))
        for line in sed_table(
            evaluate_sed(data, to, model=model, compare_with=others_of_sed, parts=part or SED_PARTS, on_progress=say)
        ):
            typer.echo(line)
        return
    if target == "flat":
        if to is None:
            raise InputError("evaluate flat", "no --to", "a folder for the mock, the run, JSON and figures")
        if data is not None or part or beside or model != "default":
            raise InputError("evaluate flat", "--data, --part, --beside or --model", "--recipes FILE and --scale alone")
        from csstdask.evaluation.flat.evaluate import evaluate_flat

        say(f"written {evaluate_flat(to, recipe=recipes or 'slitless-400', scale=scale, on_progress=say)}")
        return
    if target == "zeropoint":
        _evaluate_zeropoint(to, data, model, recipes, part, beside, scale, table)
        return
    if target == "inpaint":
        from csstdask.evaluation.inpaint.evaluate import PARTS as REPAIR_PARTS
        from csstdask.evaluation.inpaint.evaluate import evaluate_inpaint
        from csstdask.evaluation.inpaint.evaluate import summary_lines as repair_table

        models = [*([] if model == "default" else [model]), *(beside or ())]
        repaired = evaluate_inpaint(
            models, data, to, recipes=recipes, parts=part or REPAIR_PARTS, scale=scale, on_progress=say
        )
        for line in repair_table(repaired):
            typer.echo(line)
        return
    from csstdask.evaluation.cosmicray.evaluate import PARTS, evaluate_cosmicray
    from csstdask.evaluation.cosmicray.evaluate import summary_lines as detection_table

    results = evaluate_cosmicray(
        model,
        data,
        to,
        recipes=recipes,
        parts=part or PARTS,
        beside=beside or (),
        scale=scale,
        precision=precision,
        on_progress=say,
    )
    for line in detection_table(results):
        typer.echo(line)


def _evaluate_zeropoint(
    to: Path | None,
    data: Path | None,
    model: str,
    recipes: Path | None,
    part: list[str] | None,
    beside: list[str] | None,
    scale: float | None,
    table: Path | None,
) -> None:
    """Evaluate zero points on mock surveys, or on a table of real exposures."""
    if data is not None or scale is not None:
        raise InputError("evaluate zeropoint", "--data or --scale", "neither: mock surveys, or --table")
    if table is not None:
        if model != "default" or recipes is not None or part or beside:
            raise InputError("evaluate zeropoint", "--model, --recipes, --part or --beside", "--table and --to alone")
        if to is None:
            raise InputError("evaluate zeropoint", "no --to", "a folder for JSON and figures")
        from csstdask.evaluation.zeropoint.table import evaluate_table

        evaluate_table(table, to, on_progress=say)
        say(f"written {to / 'zeropoint_table.json'}")
        return
    from csstdask.evaluation.zeropoint.evaluate import COMPARED_MODELS, PARTS, evaluate_zeropoint
    from csstdask.evaluation.zeropoint.evaluate import format_results as zeropoint_table

    found = evaluate_zeropoint(
        to,
        model=model,
        beside=beside or COMPARED_MODELS,
        recipe="zeropoint" if recipes is None else str(recipes),
        parts=part or PARTS,
        on_progress=say,
    )
    for line in zeropoint_table(found):
        typer.echo(line)


def _check_particular(target: str, run: Path | None, precision: str, table: Path | None) -> None:
    """Refuse options that only one target of an evaluation has."""
    if target != "cosmicray" and (run is not None or precision != "bfloat16"):
        raise InputError(f"evaluate {target}", "--run or --precision", "neither: they are of cosmic rays' detection")
    if target != "zeropoint" and table is not None:
        raise InputError(f"evaluate {target}", "--table", "it with evaluate zeropoint alone")


def _check_target(verb: str, target: str, known: tuple[str, ...]) -> None:
    if target not in known:
        say(f"csstdask {verb}: found {target!r}; wanted one of: {', '.join(known)}")
        raise typer.Exit(2)


@app.command()
def models(
    as_json: Json = False,
    from_deepcr: Annotated[
        Path | None, typer.Option(help="Weights of deepCR's format (.pth), to be converted.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="Folder for the converted model.")] = None,
) -> None:
    """List models and methods, the default of each task marked; or convert a network of deepCR's format."""
    from csstdask.nn.models import DEFAULTS, all_cards

    if from_deepcr is not None:
        from csstdask.cosmicray.deepcr import convert

        if to is None:
            raise InputError("models --from-deepcr", "no --to", "a folder for card and weights")
        say(f"card {convert(from_deepcr, to)}")
        return
    cards = [card.summary() for card in all_cards()]
    if as_json:
        typer.echo(json.dumps({"models": cards, "defaults": DEFAULTS}))
        return
    for card in cards:
        widths = (("name", 12), ("task", 10), ("version", 4), ("licence", 14))
        mark = "default" if DEFAULTS.get(card["task"]) == card["name"] else ""
        columns = " ".join(f"{card[key]:<{width}}" for key, width in widths)
        typer.echo(f"{columns} {mark:<7} {card['sha256'][:12]} {card['trained_on']}")
