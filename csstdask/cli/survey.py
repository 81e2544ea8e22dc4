"""Commands that make, reprocess, inspect and export surveys."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from csstdask.cli.options import (
    CampaignOption,
    Json,
    Log,
    Scheduler,
    Select,
    Workers,
    app,
    print_list,
    print_message,
)

if TYPE_CHECKING:
    from csstdask.engine.events import Listener
    from csstdask.pipeline.status import Summary

#: Failures whose commands are printed at the end of a run; `status` prints all.
MAX_REPRODUCED = 20


@app.command()
def mock(
    recipe: Annotated[Path, typer.Argument(help="Recipe: a TOML file, or the name of a built-in recipe such as demo.")],
    to: Annotated[Path, typer.Option(help="Campaign to write; with --fits, a folder.")],
    fits: Annotated[bool, typer.Option("--fits", help="Write Level 1 FITS files and their truth.")] = False,
    data: Annotated[Path | None, typer.Option(help="Folder of real events or SEDs, if the recipe needs one.")] = None,
    scale: Annotated[float | None, typer.Option(help="Linear scale of frames, instead of the recipe's own.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the cost; write nothing.")] = False,
    scheduler: Scheduler = "threads",
    workers: Workers = None,
) -> None:
    """Render a mock survey with known truth."""
    from csstdask.mock import load_recipe
    from csstdask.mock.cost import estimate_cost
    from csstdask.pipeline.mock_survey import mock as render

    wanted = load_recipe(recipe, scale=scale)
    if dry_run:
        from csstdask.engine.schedulers import default_workers
        from csstdask.instrument import load_instrument
        from csstdask.mock.recipe_checks import check_recipe

        check_recipe(wanted, load_instrument(wanted.instrument), data)
        print_message(f"{wanted.name}: {estimate_cost(wanted).line(workers or default_workers())}")
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
    counts = f"{summary.rendered} units rendered, {summary.unchanged} already there"
    print_message(f"{to}: {counts}, {summary.seconds:.1f} s")
    _exit(summary.failures, summary.stopped)


@app.command()
def ingest(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FITS...", help="FITS files, folders, @LIST (a file with one path per line)."),
    ],
    to: Annotated[Path, typer.Option(help="Campaign. Units are added to an existing one.")],
    instrument: Annotated[
        str | None, typer.Option(help="Camera: a built-in name or a TOML file. Default: recognised from the headers.")
    ] = None,
    supersede: Annotated[bool, typer.Option("--supersede", help="Replace units that are present and differ.")] = False,
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
        listeners=_listeners(log, show_failures=False),
    )
    if as_json:
        typer.echo(json.dumps(summary.to_json()))
    dead = f", {len(summary.dead)} of dead detectors" if summary.dead else ""
    print_message(
        f"{to}: {summary.added} units added, {summary.unchanged} unchanged{dead}, "
        f"{len(summary.failures)} failed, {summary.seconds:.1f} s"
    )
    print_list("note", summary.notes)
    print_list("left out", summary.ignored)
    print_list("failed", [item["reason"] for item in summary.failures])
    _exit(summary.failures, summary.stopped)


@app.command()
def run(
    campaign: Annotated[Path, typer.Argument(help="Campaign to process.")],
    to: Annotated[Path, typer.Option(help="Output store. An existing run is resumed.")],
    steps: Annotated[
        str | None, typer.Option(help="Comma-separated steps and reductions. Steps that they depend on are added.")
    ] = None,
    select: Select = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Settings: a TOML file (see `csstdask config`), or another run."),
    ] = None,
    catalogue: Annotated[
        Path | None, typer.Option(help="Stars of slitless frames: Parquet with id, ra, dec, pmra, pmdec and a flux.")
    ] = None,
    spectra: Annotated[Path | None, typer.Option(help="SEDs of these stars, as `csstdask sed` writes them.")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Stars for zero points: Parquet with ra, dec and AB magnitudes mag_BAND.")
    ] = None,
    telemetry: Annotated[
        Path | None, typer.Option(help="Telemetry for zero points: Parquet with exposure, time and sensors.")
    ] = None,
    scheduler: Scheduler = "threads",
    workers: Workers = None,
    max_failures: Annotated[int | None, typer.Option(min=1, help="Stop after this number of failed units.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print units, bytes, memory and time; write nothing.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check finished units against their checksums; redo those that differ.")
    ] = False,
    redo: Annotated[bool, typer.Option("--redo", help="Process selected units again, even if done.")] = False,
    as_json: Json = False,
    log: Log = None,
) -> None:
    """Run the pipeline on a campaign. An interrupted run is resumed."""
    from csstdask.engine.work_units import parse_selection
    from csstdask.pipeline.config import load_config, with_input_tables
    from csstdask.pipeline.prepare import estimate

    names = steps.split(",") if steps is not None else None
    selection = parse_selection(select)
    settings = with_input_tables(load_config(config), catalogue, spectra, reference, telemetry)
    if dry_run:
        projection = estimate(
            campaign,
            to,
            steps=names,
            selection=selection,
            config=settings,
            scheduler=scheduler,
            workers=workers,
            verify=verify,
            redo=redo,
        )
        typer.echo(json.dumps(projection) if as_json else _projection_text(projection))
        return
    from csstdask.pipeline.run import run as process

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
        verify=verify,
        redo=redo,
    )
    _print_summary(summary, to, as_json=as_json)
    _print_usage(summary)
    _print_commands(summary, to)
    _print_reductions(summary)
    _exit([*summary.failures, *summary.failed_reductions], summary.stopped)


def _print_commands(summary: Summary, run: Path) -> None:
    """Print the commands that reproduce the first failures."""
    for item in summary.failures[:MAX_REPRODUCED]:
        print_message(f"reproduce {item['exposure']}/{item['detector']}: {item['reproduce']}")
    if len(summary.failures) > MAX_REPRODUCED:
        more = len(summary.failures) - MAX_REPRODUCED
        print_message(f"and {more} more failures: csstdask status {shlex.quote(str(run))}")


def _print_reductions(summary: Summary) -> None:
    for reduction in summary.reductions:
        print_message(reduction.line())
        for line in reduction.failure_lines():
            print_message(line)


def _projection_text(projection: dict[str, Any]) -> str:
    """Return the projected cost of a run as text."""
    from dask.utils import format_bytes

    units, finished = projection["units"], projection["calibrated_on"]
    basis = f"from {finished} finished units" if finished else "of the reference machine; finished units calibrate it"
    reductions = [
        f"reduction {one['name']}: {one['state']}, {one['n_inputs']} partials recorded before"
        for one in projection["reductions"]
    ]
    lines = [
        f"units     {units['total']} ({', '.join(projection['steps'])}), {units['skipped']} of them done before",
        *reductions,
        f"read      {format_bytes(projection['bytes_read'])} before compression",
        f"written   at most {format_bytes(projection['bytes_written_at_most'])} before compression",
        f"memory    {format_bytes(projection['memory_bytes'])} with {projection['workers']} units at a time",
        f"time      about {projection['seconds_estimated']:.0f} s ({basis})",
    ]
    return "\n".join(lines)


@app.command()
def status(
    run: Annotated[Path, typer.Argument(help="Run.")],
    verify: Annotated[bool, typer.Option("--verify", help="Check all recorded files against their checksums.")] = False,
    campaign: CampaignOption = None,
    as_json: Json = False,
) -> None:
    """Show which units are done, failed or pending, and why units failed."""
    from csstdask.pipeline.status import status as read_status

    summary = read_status(run, campaign=campaign, verify=verify)
    _print_summary(summary, run, as_json=as_json)
    _print_usage(summary)
    for item in summary.failures:
        print_message(f"failed {item['exposure']}/{item['detector']} [{item['step']}]: {item['reason']}")
        print_message(f"reproduce {item['exposure']}/{item['detector']}: {item['reproduce']}")
    for line in summary.damaged:
        print_message(f"pending {line}")
    _print_reductions(summary)
    _exit([*summary.failures, *summary.failed_reductions])


@app.command()
def report(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Run, mock campaign or set of star stamps.")],
    to: Annotated[Path, typer.Option(help="HTML page to write.")],
    campaign: CampaignOption = None,
    data: Annotated[Path | None, typer.Option(help="Folder of real events, to compare with a mock's.")] = None,
) -> None:
    """Write an HTML report on a run or a mock campaign."""
    from csstdask.report import write_mock_report, write_report
    from csstdask.store.store_metadata import store_kind

    if store_kind(store) in ("campaign", "stamps"):
        print_message(f"written {write_mock_report(store, to, data)}")
    else:
        print_message(f"written {write_report(store, to, campaign)}")


@app.command()
def export(
    store: Annotated[Path, typer.Argument(help="Run or campaign.")],
    to: Annotated[Path, typer.Option(help="Output folder.")],
    campaign: CampaignOption = None,
    select: Select = None,
    scheduler: Scheduler = "threads",
    workers: Workers = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    cubes: Annotated[
        bool, typer.Option("--cubes", help="Also write flat-field cubes of slitless detectors in aXe's format (large).")
    ] = False,
) -> None:
    """Write units as FITS files <exposure>_<detector>.fits (SCI, WHT, FLG), and spectra of slitless units."""
    from csstdask.engine.work_units import parse_selection
    from csstdask.pipeline.export import export as write

    summary = write(
        store,
        to,
        campaign=campaign,
        selection=parse_selection(select),
        scheduler=scheduler,
        workers=workers,
        overwrite=overwrite,
        cubes=cubes,
        listeners=_listeners(None),
    )
    kept = f", {summary.unchanged} already there" if summary.unchanged else ""
    left = f", {summary.pending} not done and left out" if summary.pending else ""
    spectra = f", spectra of {summary.spectra} units" if summary.spectra else ""
    calibrations = f", sensitivities of {summary.calibrations} detectors" if summary.calibrations else ""
    print_message(
        f"{to}: {summary.written} files{kept}{spectra}{calibrations}, {len(summary.failures)} failed{left}, "
        f"{summary.seconds:.1f} s"
    )
    _exit(summary.failures, summary.stopped)


@app.command()
def config(
    settings: Annotated[
        Path | None, typer.Argument(metavar="[SETTINGS]", help="TOML file or run whose settings are printed.")
    ] = None,
    defaults: Annotated[bool, typer.Option("--defaults", help="Print the default settings.")] = False,
) -> None:
    """Print all settings of `csstdask run` as commented TOML, for --config."""
    from csstdask.pipeline.config import load_config, to_toml

    if defaults == (settings is not None):
        raise typer.BadParameter("give a TOML file, a run or --defaults", param_hint="SETTINGS")
    typer.echo(to_toml(load_config(settings)), nl=False)


@app.command()
def demo(
    to: Annotated[Path, typer.Option(help="Output folder for campaign, run and report.")] = Path("demo"),
) -> None:
    """Render a small mock night, reprocess it and write a report (a few minutes on two cores)."""
    from csstdask.mock.recipe import demo_recipe
    from csstdask.pipeline.mock_survey import mock as render
    from csstdask.pipeline.run import run as process
    from csstdask.pipeline.score import score_run
    from csstdask.report import write_report

    campaign, product = to / "campaign.zarr", to / "run.zarr"
    rendered = render(demo_recipe(), campaign, listeners=_listeners(None))
    summary = process(campaign, product, listeners=_listeners(None))
    page = write_report(product, to / "report.html")
    _print_summary(summary, product, as_json=False)
    for line in score_run(product).lines():
        print_message(line)
    print_message(f"report {page}")
    _exit([*rendered.failures, *summary.failures], rendered.stopped or summary.stopped)


def _listeners(log: Path | None, *, show_failures: bool = True) -> list[Listener]:
    from csstdask.engine.progress import JsonLog, progress_listener

    return [progress_listener(show_failures=show_failures), *([JsonLog(log)] if log is not None else [])]


def _print_summary(summary: Summary, store: Path, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(summary.to_json()))
    took = f", {summary.seconds:.1f} s" if summary.seconds else ""
    print_message(
        f"{store}: {summary.total} units, {summary.done} done, {summary.skipped} skipped, "
        f"{summary.failed} failed, {summary.pending} pending{took}"
    )


def _print_usage(summary: Summary) -> None:
    from csstdask.pipeline.usage_report import usage_lines

    for line in usage_lines(summary.usage):
        print_message(line)


def _exit(failures: list[Any], stopped: str | None = None) -> NoReturn:
    if stopped:
        print_message(f"stopped: {stopped}")
    raise typer.Exit(1 if failures or stopped else 0)
