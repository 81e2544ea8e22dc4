"""Verbs that make, reprocess and look at surveys."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from csstdask.cli.options import CampaignOption, Json, Log, Scheduler, Select, Workers, app, say, say_all
from csstdask.core.errors import InputError
from csstdask.core.settings import validate_settings

if TYPE_CHECKING:
    from csstdask.engine.events import Listener
    from csstdask.pipeline.config import RunConfig
    from csstdask.pipeline.status import Summary

#: Number of failures whose commands are printed at the end of a run; `status` prints all.
_REPRODUCED = 20


@app.command()
def mock(
    recipe: Annotated[Path, typer.Argument(help="A recipe (TOML), or a name that comes with csstdask, such as demo.")],
    to: Annotated[Path, typer.Option(help="The campaign to make, or with --fits a folder.")],
    fits: Annotated[bool, typer.Option("--fits", help="Write Level 1 FITS files with truth beside them.")] = False,
    data: Annotated[Path | None, typer.Option(help="Folder of real events or of SEDs, if the recipe asks.")] = None,
    scale: Annotated[float | None, typer.Option(help="Linear, on the recipe's shape; instead of its own.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it takes; write nothing.")] = False,
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
        say(f"{wanted.name}: {estimate_cost(wanted).line(workers or default_workers())}")
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
    say(f"{to}: {summary.rendered} units rendered, {summary.unchanged} already there, {summary.seconds:.1f} s")
    _end(summary.failures, summary.stopped)


@app.command()
def ingest(
    files: Annotated[
        list[str], typer.Argument(metavar="FITS...", help="FITS files, directories, or @LIST: one path a line.")
    ],
    to: Annotated[Path, typer.Option(help="The campaign; added to if it is there.")],
    instrument: Annotated[
        str | None, typer.Option(help="A built-in name or a TOML; default: recognised from the headers.")
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
        listeners=_listeners(log, show_failures=False),
    )
    if as_json:
        typer.echo(json.dumps(summary.to_json()))
    dead = f", {len(summary.dead)} of dead detectors" if summary.dead else ""
    say(
        f"{to}: {summary.added} units added, {summary.unchanged} unchanged{dead}, "
        f"{len(summary.failures)} failed, {summary.seconds:.1f} s"
    )
    say_all("note", summary.notes)
    say_all("left out", summary.ignored)
    say_all("failed", [item["reason"] for item in summary.failures])
    _end(summary.failures, summary.stopped)


@app.command()
def clean(
    source: Annotated[Path, typer.Argument(metavar="IN.fits", help="A FITS file, plain or compressed.")],
    to: Annotated[Path, typer.Option("-o", "--to", metavar="OUT.fits", help="The file to write.")],
    model: Annotated[str | None, typer.Option(help="Of detection: a name that `csstdask models` lists.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings of a run (TOML).")] = None,
    instrument: Annotated[
        str | None, typer.Option(help="A built-in name or a TOML; default: what the headers tell.")
    ] = None,
    gain: Annotated[
        float | None, typer.Option(help="[e-/adu] Clean the images of a camera that is not known; 1 for electrons.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file to write.")] = False,
) -> None:
    """Find and repair the cosmic rays of one FITS file."""
    from csstdask.pipeline.clean_file import clean_file
    from csstdask.pipeline.config import RunConfig, load_config

    settings = load_config(config)
    if model is not None:
        settings = validate_settings(RunConfig, _with_model(settings, model), "--model", "a model of detection")
    summary = clean_file(
        source,
        to,
        config=settings,
        instrument=instrument,
        gain=gain,
        overwrite=overwrite,
        on_chip=lambda chip: say(str(chip)),
    )
    say_all("left as it was", summary.untouched)
    say_all("failed", summary.problems)
    if summary.problems:
        raise typer.Exit(1)


def _with_model(settings: RunConfig, model: str) -> dict[str, Any]:
    values = settings.model_dump(mode="json")
    return values | {"detect": values["detect"] | {"model": model}}


@app.command()
def run(
    campaign: Annotated[Path, typer.Argument(help="The campaign to process.")],
    to: Annotated[Path, typer.Option(help="The run's store; an existing run is resumed.")],
    steps: Annotated[
        str | None, typer.Option(help="Comma-separated steps and reductions; steps they read from are added.")
    ] = None,
    select: Select = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings: a TOML (see `csstdask config`), or a run, whose settings are used.")
    ] = None,
    catalogue: Annotated[
        Path | None, typer.Option(help="Stars of slitless frames: Parquet with id, ra, dec, pmra, pmdec and a flux.")
    ] = None,
    spectra: Annotated[Path | None, typer.Option(help="Their SEDs: a table that `csstdask sed` wrote.")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Stars for zero points: Parquet with ra, dec and AB magnitudes mag_BAND.")
    ] = None,
    telemetry: Annotated[
        Path | None, typer.Option(help="Telemetry for zero points: Parquet with exposure, time and sensors.")
    ] = None,
    scheduler: Scheduler = "threads",
    workers: Workers = None,
    max_failures: Annotated[int | None, typer.Option(min=1, help="Stop after so many failed units.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say units, bytes, memory and time; write nothing.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare units that are done with their checksums; redo what differs.")
    ] = False,
    redo: Annotated[bool, typer.Option("--redo", help="Run the selected units again, even if they are done.")] = False,
    as_json: Json = False,
    log: Log = None,
) -> None:
    """Run the pipeline over a campaign; an interrupted run resumes."""
    from csstdask.engine.work_units import parse_selection
    from csstdask.pipeline.config import load_config, with_input_tables
    from csstdask.pipeline.prepare import estimate

    names = steps.split(",") if steps is not None else None
    selection = parse_selection(select)
    settings = with_input_tables(load_config(config), catalogue, spectra, reference, telemetry)
    if dry_run:
        facts = estimate(
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
        typer.echo(json.dumps(facts) if as_json else _foreseen(facts))
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
    _report_summary(summary, to, as_json=as_json)
    _say_usage(summary)
    for item in summary.failures[:_REPRODUCED]:
        say(f"reproduce {item['exposure']}/{item['detector']}: {item['reproduce']}")
    if len(summary.failures) > _REPRODUCED:
        say(f"and {len(summary.failures) - _REPRODUCED} more failures: csstdask status {shlex.quote(str(to))}")
    _say_reductions(summary)
    _end([*summary.failures, *summary.failed_reductions], summary.stopped)


def _say_reductions(summary: Summary) -> None:
    for reduction in summary.reductions:
        say(reduction.line())
        for line in reduction.failure_lines():
            say(line)


def _foreseen(facts: dict[str, Any]) -> str:
    units, finished = facts["units"], facts["calibrated_on"]
    basis = f"from {finished} finished units" if finished else "of the reference machine; finished units calibrate it"
    return "\n".join(
        (
            f"units     {units['total']} ({', '.join(facts['steps'])}), {units['skipped']} of them done before",
            *(
                f"reduction {one['name']}: {one['state']}, {one['n_inputs']} partials recorded before"
                for one in facts["reductions"]
            ),
            f"read      {facts['bytes_read'] / 1e9:.2f} GB before compression",
            f"written   at most {facts['bytes_written_at_most'] / 1e9:.2f} GB before compression",
            f"memory    {facts['memory_bytes'] / 2**30:.2f} GiB with {facts['workers']} units at a time",
            f"time      about {facts['seconds_estimated']:.0f} s ({basis})",
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
    from csstdask.pipeline.status import status as look

    summary = look(run, campaign=campaign, verify=verify)
    _report_summary(summary, run, as_json=as_json)
    _say_usage(summary)
    for item in summary.failures:
        say(f"failed {item['exposure']}/{item['detector']} [{item['step']}]: {item['reason']}")
        say(f"reproduce {item['exposure']}/{item['detector']}: {item['reproduce']}")
    for line in summary.damaged:
        say(f"pending {line}")
    _say_reductions(summary)
    _end([*summary.failures, *summary.failed_reductions])


@app.command()
def report(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="A run; or a mock campaign, or a stamp set.")],
    to: Annotated[Path, typer.Option(help="The page to write.")],
    campaign: CampaignOption = None,
    data: Annotated[Path | None, typer.Option(help="Real cosmic-ray events, to be shown beside a mock's.")] = None,
) -> None:
    """Write an HTML page about a run, or about a mock."""
    from csstdask.report import write_mock_report, write_report
    from csstdask.store.store_metadata import store_kind

    if store_kind(store) in ("campaign", "stamps"):
        say(f"written {write_mock_report(store, to, data)}")
    else:
        say(f"written {write_report(store, to, campaign)}")


@app.command()
def export(
    store: Annotated[Path, typer.Argument(help="A run or a campaign.")],
    to: Annotated[Path, typer.Option(help="The folder for FITS files.")],
    campaign: CampaignOption = None,
    select: Select = None,
    scheduler: Scheduler = "threads",
    workers: Workers = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    cubes: Annotated[
        bool, typer.Option("--cubes", help="Flat-field cubes of slitless detectors too, as aXe reads them (large).")
    ] = False,
) -> None:
    """Write units as FITS: <exposure>_<detector>.fits with SCI, WHT, FLG; of slitless units also spectra."""
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
    say(
        f"{to}: {summary.written} files{kept}{spectra}{calibrations}, {len(summary.failures)} failed{left}, "
        f"{summary.seconds:.1f} s"
    )
    _end(summary.failures, summary.stopped)


@app.command()
def config(
    settings: Annotated[
        Path | None, typer.Argument(metavar="[SETTINGS]", help="A TOML file, or a run, whose settings are printed.")
    ] = None,
    defaults: Annotated[bool, typer.Option("--defaults", help="Print the default settings.")] = False,
) -> None:
    """Print all settings of `csstdask run` as TOML, with a comment for each: a file for --config."""
    from csstdask.pipeline.config import load_config, to_toml

    if defaults == (settings is not None):
        raise InputError("config", "both or neither", "--defaults, or the path of a TOML file or a run")
    typer.echo(to_toml(load_config(settings)), nl=False)


@app.command()
def demo(
    to: Annotated[Path, typer.Option(help="Folder for the campaign, the run and the page.")] = Path("demo"),
) -> None:
    """Render a small mock night, reprocess it and write a page: a few minutes on two cores."""
    from csstdask.mock.recipe import demo_recipe
    from csstdask.pipeline.mock_survey import mock as render
    from csstdask.pipeline.run import run as process
    from csstdask.pipeline.score import score_run
    from csstdask.report import write_report

    campaign, product = to / "campaign.zarr", to / "run.zarr"
    rendered = render(demo_recipe(), campaign, listeners=_listeners(None))
    summary = process(campaign, product, listeners=_listeners(None))
    page = write_report(product, to / "report.html")
    _report_summary(summary, product, as_json=False)
    for line in score_run(product).lines():
        say(line)
    say(f"look at {page}")
    _end([*rendered.failures, *summary.failures], rendered.stopped or summary.stopped)


def _listeners(log: Path | None, *, show_failures: bool = True) -> list[Listener]:
    from csstdask.engine.progress import JsonLog, progress_listener

    return [progress_listener(show_failures=show_failures), *([JsonLog(log)] if log is not None else [])]


def _report_summary(summary: Summary, store: Path, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(summary.to_json()))
    took = f", {summary.seconds:.1f} s" if summary.seconds else ""
    say(
        f"{store}: {summary.total} units, {summary.done} done, {summary.skipped} skipped, "
        f"{summary.failed} failed, {summary.pending} pending{took}"
    )


def _say_usage(summary: Summary) -> None:
    from csstdask.pipeline.usage_report import usage_lines

    for line in usage_lines(summary.usage):
        say(line)


def _end(failures: list[Any], stopped: str | None = None) -> NoReturn:
    if stopped:
        say(f"stopped: {stopped}")
    raise typer.Exit(1 if failures or stopped else 0)
