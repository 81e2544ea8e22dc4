"""The shell: one function a verb, no logic.

Exit codes: 0 all done; 1 finished, but some units or files failed, each named; 2 bad usage or unusable input,
in one line; 130 after Ctrl-C and 143 after SIGTERM, state saved.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from csstdask.allocator import keep_freed_memory
from csstdask.errors import CsstdaskError, InputError

if TYPE_CHECKING:
    from csstdask.engine.events import Listener
    from csstdask.pipeline.run import Summary

app = typer.Typer(
    name="csstdask",
    help="Reprocess space-telescope surveys on chunked arrays.",
    no_args_is_help=True,
    add_completion=False,
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

DataOption = Annotated[Path | None, typer.Option(help="Folder of real events and frames; none: mock data alone.")]

TRAINABLE: tuple[str, ...] = ("cosmicray", "inpaint", "psf")
EVALUABLE: tuple[str, ...] = ("cosmicray", "inpaint", "psf")
LABELLERS: tuple[str, ...] = ("darks", "repeats")


@app.command()
def mock(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as stores/demo.toml.")],
    to: Annotated[Path, typer.Option(help="The campaign to make, or with --fits a folder.")],
    fits: Annotated[bool, typer.Option("--fits", help="Write Level 1 FITS files with truth beside them.")] = False,
    data: Annotated[Path | None, typer.Option(help="Folder of real cosmic-ray events, if the recipe asks.")] = None,
    scale: Annotated[float | None, typer.Option(help="Linear, on the recipe's shape; instead of its own.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it takes; write nothing.")] = False,
    scheduler: Scheduler = "threads",
    workers: Workers = None,
) -> None:
    """Render a mock survey with known truth."""
    from csstdask.mock import load_recipe
    from csstdask.mock.cost import cost_of
    from csstdask.pipeline.mock_survey import mock as render

    wanted = load_recipe(recipe, scale=scale)
    if dry_run:
        from csstdask.engine.cluster import default_workers
        from csstdask.instrument import load_instrument
        from csstdask.mock.render import check_recipe

        check_recipe(wanted, load_instrument(wanted.instrument), data)
        _say(f"{wanted.name}: {cost_of(wanted).line(workers or default_workers())}")
        return
    summary = render(
        wanted,
        to,
        as_fits=fits,
        data=data,
        scheduler=scheduler,
        workers=workers,
        listeners=_listeners(None),
    )
    _say(f"{to}: {summary.rendered} units rendered, {summary.unchanged} already there, {summary.seconds:.1f} s")
    _end(summary.failures, summary.stopped)


@app.command()
def ingest(
    files: Annotated[list[str], typer.Argument(metavar="FITS...", help="FITS files, plain or compressed.")],
    to: Annotated[Path, typer.Option(help="The campaign; added to if it is there.")],
    instrument: Annotated[
        str | None, typer.Option(help="A built-in name or a TOML; default: told from the headers.")
    ] = None,
    supersede: Annotated[
        bool, typer.Option("--supersede", help="Let other files replace units that are present.")
    ] = False,
    scheduler: Scheduler = "threads",
    workers: Workers = None,
    as_json: Json = False,
    log: Log = None,
) -> None:
    """Copy FITS files into a campaign."""
    from csstdask.pipeline.ingest import ingest as copy

    summary = copy(
        files,
        to,
        instrument=instrument,
        supersede=supersede,
        scheduler=scheduler,
        workers=workers,
        listeners=_listeners(log, announce_failures=False),
    )
    if as_json:
        typer.echo(json.dumps(summary.to_json()))
    dead = f", {len(summary.dead)} of dead detectors" if summary.dead else ""
    _say(
        f"{to}: {summary.added} units added, {summary.unchanged} unchanged{dead}, "
        f"{len(summary.failures)} failed, {summary.seconds:.1f} s"
    )
    for item in summary.failures:
        _say(f"failed {item['reason']}")
    _end(summary.failures, summary.stopped)


@app.command()
def run(
    campaign: Annotated[Path, typer.Argument(help="The campaign to process.")],
    to: Annotated[Path, typer.Option(help="The run's store; gone on with if it is there.")],
    steps: Annotated[str | None, typer.Option(help="Comma-separated; those they read from are added.")] = None,
    select: Annotated[str | None, typer.Option(help="exposure=ID[,ID...],detector=N-M; ids may hold * and ?.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings, a TOML.")] = None,
    scheduler: Scheduler = "threads",
    workers: Workers = None,
    max_failures: Annotated[int | None, typer.Option(min=1, help="Stop after so many failed units.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say units, bytes, memory and time; write nothing.")
    ] = False,
    as_json: Json = False,
    log: Log = None,
) -> None:
    """Run the pipeline over a campaign; resumes by itself."""
    from csstdask.engine.units import parse_selection
    from csstdask.pipeline.config import load_config
    from csstdask.pipeline.run import foresee
    from csstdask.pipeline.run import run as process

    names = steps.split(",") if steps is not None else None
    selection, settings = parse_selection(select), load_config(config)
    if dry_run:
        facts = foresee(
            campaign, to, steps=names, selection=selection, config=settings, scheduler=scheduler, workers=workers
        )
        typer.echo(json.dumps(facts) if as_json else _foreseen(facts))
        return
    summary = process(
        campaign,
        to,
        steps=names,
        selection=selection,
        config=settings,
        scheduler=scheduler,
        workers=workers,
        max_failures=max_failures,
        listeners=_listeners(log),
    )
    _report_summary(summary, to, as_json=as_json)
    _end(summary.failures, summary.stopped)


def _foreseen(facts: dict[str, Any]) -> str:
    units = facts["units"]
    return "\n".join(
        (
            f"units     {units['total']} ({', '.join(facts['steps'])}), {units['skipped']} of them done before",
            f"read      {facts['bytes_read'] / 1e9:.2f} GB before compression",
            f"written   at most {facts['bytes_written_at_most'] / 1e9:.2f} GB before compression",
            f"memory    {facts['memory_bytes'] / 2**30:.2f} GiB with {facts['workers']} units at a time",
            f"time      about {facts['seconds_estimated']:.0f} s (estimated from the reference machine)",
        )
    )


@app.command()
def status(
    run: Annotated[Path, typer.Argument(help="The run's store.")],
    verify: Annotated[bool, typer.Option("--verify", help="Compare checksums of everything recorded.")] = False,
    campaign: CampaignOption = None,
    as_json: Json = False,
) -> None:
    """Say which units are done, failed and pending, and why they failed."""
    from csstdask.pipeline.run import status as look

    summary = look(run, campaign=campaign, verify=verify)
    _report_summary(summary, run, as_json=as_json)
    for item in summary.failures:
        _say(f"failed {item['exposure']}/{item['detector']} [{item['step']}]: {item['reason']}")
    _end(summary.failures)


@app.command()
def report(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="A run; or a mock campaign, or a stamp set.")],
    to: Annotated[Path, typer.Option(help="The page to write.")],
    campaign: CampaignOption = None,
    data: Annotated[Path | None, typer.Option(help="Real cosmic-ray events, to be shown beside a mock's.")] = None,
) -> None:
    """Write an HTML page about a run, or about a mock."""
    from csstdask.report import write_mock_report, write_report
    from csstdask.store.zarr_arrays import store_kind

    if store_kind(store) in ("campaign", "stamps"):
        _say(f"written {write_mock_report(store, to, data)}")
    else:
        _say(f"written {write_report(store, to, campaign)}")


@app.command()
def export(
    store: Annotated[Path, typer.Argument(help="A run or a campaign.")],
    to: Annotated[Path, typer.Option(help="The folder for FITS files.")],
    campaign: CampaignOption = None,
    workers: Workers = None,
) -> None:
    """Write units as FITS: <exposure>_<detector>.fits with SCI, WHT, FLG."""
    from csstdask.pipeline.export import export as write

    summary = write(store, to, campaign=campaign, workers=workers, listeners=_listeners(None))
    left = f", {summary.pending} not done and left out" if summary.pending else ""
    _say(f"{to}: {summary.written} files, {len(summary.failures)} failed{left}, {summary.seconds:.1f} s")
    _end(summary.failures, summary.stopped)


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
        from csstdask.cosmicray.darks import label_darks

        if to is None:
            raise InputError("label darks", "no --to", "a file for the events, .npz")
        if against_truth:
            raise InputError("label darks", "--against-truth", "it with label repeats alone")
        _say(f"{to}: {len(label_darks(campaign, to, sigma=sigma, grow=grow, announce=_say))} events")
        return
    from csstdask.cosmicray.label_score import score_labels
    from csstdask.cosmicray.repeats import label_repeats

    if to is not None:
        raise InputError("label repeats", f"--to {to}", "none: labels are written into the campaign")
    units = label_repeats(campaign, sigma=sigma, grow=grow, announce=_say)
    _say(f"{campaign}: {units} units labelled")
    if against_truth:
        for name, score in score_labels(campaign).items():
            typer.echo(f"{name}: {score.line()}")


@app.command()
def train(
    target: Annotated[str, typer.Argument(help="What to train: cosmicray, inpaint or psf.")],
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
        from csstdask.psf.train import load_psf_config, train_psf

        sets = None if campaign is None else [str(campaign.resolve())]
        psf = load_psf_config(
            config, campaigns=sets, labels=labels, start_from=start_from, epochs=epochs, device=device
        )
        _say(f"card {train_psf(psf, to, announce=_say)}")
        return
    if labels is not None or start_from is not None:
        raise InputError(f"train {target}", "--labels or --from", "neither: settings say what teaches")
    if target == "inpaint":
        if data is not None or events:
            raise InputError("train inpaint", "--data or --events", "--campaign: stamps are cut from its frames")
        from csstdask.cosmicray.train_inpaint import load_repair_config, train_inpaint

        campaigns = None if campaign is None else [str(campaign.resolve())]
        repair = load_repair_config(config, campaigns=campaigns, epochs=epochs, device=device)
        _say(f"card {train_inpaint(repair, to, announce=_say)}")
        return
    from csstdask.cosmicray.train import train_cosmicray
    from csstdask.cosmicray.training_config import load_training_config

    settings = load_training_config(
        config,
        data=None if data is None else str(data.resolve()),
        campaign=None if campaign is None else str(campaign.resolve()),
        events=[str(path.resolve()) for path in events] if events else None,
        epochs=epochs,
        device=device,
    )
    _say(f"card {train_cosmicray(settings, to, announce=_say)}")


@app.command()
def evaluate(
    target: Annotated[str, typer.Argument(help="What to evaluate: cosmicray, inpaint or psf.")],
    to: Annotated[Path | None, typer.Option(help="Folder for the figures, as JSON.")] = None,
    data: DataOption = None,
    model: Annotated[str, typer.Option(help="A name that `csstdask models` lists, or a card's path.")] = "default",
    recipes: Annotated[Path | None, typer.Option(help="Folder of test recipes, stores/; none: no mocks.")] = None,
    part: Annotated[list[str] | None, typer.Option(help="Only this part; may be given several times.")] = None,
    beside: Annotated[
        list[str] | None, typer.Option(help="A further network; may be given several times. Of psf: piff.")
    ] = None,
    scale: Annotated[float | None, typer.Option(min=0.01, help="Of mock surveys, in place of each part's own.")] = None,
    precision: Annotated[
        Literal["float32", "bfloat16", "int8"], typer.Option(help="Of networks on mock surveys.")
    ] = "bfloat16",
    run: Annotated[Path | None, typer.Option(help="Instead: a run's own cosmic rays, checked without truth.")] = None,
) -> None:
    """Evaluate a network beside other methods, or what it found in a run."""
    _check_target("evaluate", target, EVALUABLE)
    if target != "cosmicray" and (run is not None or precision != "bfloat16"):
        raise InputError(f"evaluate {target}", "--run or --precision", "neither: they are of cosmic rays' detection")
    if run is not None:
        if any((data, recipes, part, beside, scale)) or model != "default":
            raise InputError("evaluate --run", "options of an evaluation with truth beside it", "--run and --to alone")
        from csstdask.report.cosmic_rays import evaluate_run, lines

        for line in lines(evaluate_run(run, to, announce=_say)):
            typer.echo(line)
        return
    if target == "psf":
        if recipes is None:
            raise InputError("evaluate psf", "no --recipes", "a folder of test recipes")
        if data is not None or scale is not None:
            raise InputError("evaluate psf", "--data or --scale", "neither: its stars are of --recipes")
        from csstdask.psf.evaluate import PARTS as PSF_PARTS
        from csstdask.psf.evaluate import evaluate_psf
        from csstdask.psf.evaluate.tables import table as psf_table

        others = [one for one in beside or () if one != "piff"]
        found = evaluate_psf(
            model,
            to,
            recipes=recipes,
            parts=part or tuple(PSF_PARTS),
            piff="piff" in (beside or ()),
            beside=others,
            announce=_say,
        )
        for line in psf_table(found):
            typer.echo(line)
        return
    if target == "inpaint":
        from csstdask.cosmicray.evaluate_inpaint import PARTS as REPAIR_PARTS
        from csstdask.cosmicray.evaluate_inpaint import evaluate_inpaint
        from csstdask.cosmicray.evaluate_inpaint import table as repair_table

        models = [*([] if model == "default" else [model]), *(beside or ())]
        repaired = evaluate_inpaint(
            models, data, to, recipes=recipes, parts=part or REPAIR_PARTS, scale=scale, announce=_say
        )
        for line in repair_table(repaired):
            typer.echo(line)
        return
    from csstdask.cosmicray.evaluate import PARTS, evaluate_cosmicray, table

    results = evaluate_cosmicray(
        model,
        data,
        to,
        recipes=recipes,
        parts=part or PARTS,
        beside=beside or (),
        scale=scale,
        precision=precision,
        announce=_say,
    )
    for line in table(results):
        typer.echo(line)


def _check_target(verb: str, target: str, known: tuple[str, ...]) -> None:
    if target not in known:
        _say(f"csstdask {verb}: found {target!r}; wanted one of: {', '.join(known)}")
        raise typer.Exit(2)


@app.command()
def models(
    as_json: Json = False,
    from_deepcr: Annotated[
        Path | None, typer.Option(help="Weights of deepCR's format (.pth), to be converted.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="Folder for the converted model.")] = None,
) -> None:
    """List models and methods; or convert a network of deepCR's format."""
    from csstdask.nn.models import all_cards

    if from_deepcr is not None:
        from csstdask.cosmicray.deepcr import convert

        if to is None:
            raise InputError("models --from-deepcr", "no --to", "a folder for card and weights")
        _say(f"card {convert(from_deepcr, to)}")
        return
    cards = [card.summary() for card in all_cards()]
    if as_json:
        typer.echo(json.dumps({"models": cards}))
        return
    for card in cards:
        widths = (("name", 12), ("task", 10), ("version", 4), ("licence", 14))
        typer.echo(
            " ".join(f"{card[key]:<{width}}" for key, width in widths) + f" {card['sha256'][:12]} {card['trained_on']}"
        )


@app.command()
def demo(
    to: Annotated[Path, typer.Option(help="Folder for the campaign, the run and the page.")] = Path("demo"),
) -> None:
    """Render a small mock night, reprocess it and write a page: a few minutes on two cores."""
    from csstdask.mock.recipe import demo_recipe
    from csstdask.pipeline.mock_survey import mock as render
    from csstdask.pipeline.run import run as process
    from csstdask.pipeline.truth import score_run
    from csstdask.report import write_report

    campaign, product = to / "campaign.zarr", to / "run.zarr"
    rendered = render(demo_recipe(), campaign, listeners=_listeners(None))
    summary = process(campaign, product, listeners=_listeners(None))
    page = write_report(product, to / "report.html")
    _report_summary(summary, product, as_json=False)
    for line in score_run(product).lines():
        _say(line)
    _say(f"look at {page}")
    _end([*rendered.failures, *summary.failures], rendered.stopped or summary.stopped)


def _listeners(log: Path | None, *, announce_failures: bool = True) -> list[Listener]:
    from csstdask.engine.progress import JsonLog, progress_listener

    return [progress_listener(announce_failures=announce_failures), *([JsonLog(log)] if log is not None else [])]


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _report_summary(summary: Summary, store: Path, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(summary.to_json()))
    took = f", {summary.seconds:.1f} s" if summary.seconds else ""
    _say(
        f"{store}: {summary.total} units, {summary.done} done, {summary.skipped} skipped, "
        f"{summary.failed} failed, {summary.pending} pending{took}"
    )


def _end(failures: list[Any], stopped: str | None = None) -> NoReturn:
    if stopped:
        _say(f"stopped: {stopped}")
    raise typer.Exit(1 if failures or stopped else 0)


class _TerminatedError(BaseException):
    """SIGTERM arrived."""


def _terminate(_signal: int, _frame: object) -> NoReturn:
    raise _TerminatedError


def main() -> None:
    """Run the command line, and turn errors into one line and an exit code."""
    keep_freed_memory()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("csstdask").setLevel(logging.INFO if not sys.stderr.isatty() else logging.ERROR)
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # its workers complain while they are being closed
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = app(standalone_mode=False) or 0
    except CsstdaskError as error:
        _say(f"csstdask: {' '.join(str(error).split())}")
        code = 2
    except (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        _say(f"csstdask: {error.filename}: {error.strerror}")
        code = 2
    except OSError as error:
        _say(f"csstdask: {error.filename or 'input or output'}: {error.strerror or error}")
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except _TerminatedError:
        _say("csstdask: terminated; what is recorded is kept, run again to go on")
        code = 143
    except Exception as error:
        # Bad usage, in the words of whichever library parsed it: typer carries its own copy of click.
        if not hasattr(error, "format_message"):
            raise
        _say(f"csstdask: {error.format_message()}")
        code = 2
    if code == 130:  # from here or, turned into a code, from typer
        _say("csstdask: interrupted; what is recorded is kept, run again to go on")
    sys.stdout.flush()
    sys.stderr.flush()
    if code in {130, 143}:
        os._exit(code)  # units in work on this process's threads cannot be stopped, and no longer own anything
    raise SystemExit(code)


if __name__ == "__main__":
    main()
