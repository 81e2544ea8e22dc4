"""One self-contained HTML page about a run: the night at a glance, what failed, what it cost, what was found.

From the top: does it meet its requirements, what failed, does any detector stand out, how it scores against truth
where there is one, what it looks like, what it cost, each unit, and where it comes from. Styles, scripts and pictures
are inside the page: it can be mailed.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr

from csstdask.core.warnings import suppress_warnings
from csstdask.engine.work_units import Unit
from csstdask.instrument import Instrument, validate_instrument
from csstdask.pipeline.score import has_truth, score_run
from csstdask.pipeline.status import Summary, load_plan, status
from csstdask.pipeline.usage_report import total_usage
from csstdask.pipeline.views import open_run
from csstdask.report.commands import run_commands
from csstdask.report.cosmic_rays import CosmicRayReview, draw_spectra, review_run
from csstdask.report.cutouts import draw_cutouts
from csstdask.report.document import Cell, format_number, render, table, write_document
from csstdask.report.focal_plane import colour, draw_focal_plane, ink, limits
from csstdask.report.plots import plot_rates
from csstdask.report.provenance import show_provenance
from csstdask.report.psf import draw_psfs
from csstdask.report.requirements import (
    OVERLAP_FRACTION,
    Expectation,
    Requirement,
    compare_with_limits,
    expectations_of,
    expected_hits,
    expected_rates,
    recipe_of,
    requirements,
)
from csstdask.report.slitless import draw_slitless
from csstdask.report.units import UnitStates, show_units, unit_anchor
from csstdask.report.zeropoint import draw_zero_points
from csstdask.store.store_metadata import open_group

#: Metrics of the glance, with their units; the first of them is looked at unit by unit.
_GLANCE = {
    "cr_fraction": "pixels hit [%]",
    "cr_rate": "cosmic-ray events [s⁻¹ cm⁻²]",
    "sky_level": "sky",
    "n_sources": "sources",
}

#: What a light says in words.
_WORDS = {"pass": "as expected", "warn": "look at it", "fail": "not as expected", "none": ""}


def write_report(run: str | Path, to: str | Path, campaign: str | Path | None = None) -> Path:
    """Write the page.

    Parameters
    ----------
    run : path
        The run's store.
    to : path
        The page.
    campaign : path, optional
        Where the campaign lies, if it has moved.

    Raises
    ------
    StoreError
        If there is no run, or no campaign.
    """
    root, summary = Path(run), status(run, campaign=campaign)
    dataset, plan = open_run(run, campaign), load_plan(root, campaign)
    instrument = validate_instrument(dataset.attrs["instrument"], str(run))
    dataset = _with_rates(_with_metrics_read(dataset), instrument)
    watched = review_run(run, campaign)
    recipe = recipe_of(dict(open_group(plan.campaign.path, "campaign").attrs))
    camera = expectations_of(instrument)
    hits, rates = expected_hits(dataset, camera, recipe), expected_rates(dataset, camera, recipe)
    attributes = dict(open_group(root, "run").attrs)
    planes = map(str, dataset["planes"].values.ravel()) if "planes" in dataset else ()
    lights = requirements(dataset, summary, watched.alarms, hits, rates, root, run_commands(root, plan, attributes))
    sections = (
        ("", _title(run, dataset, summary, instrument)),
        ("Requirements", show_lights(lights)),
        ("Failures", _failures(summary)),
        ("The night at a glance", _glance(dataset, instrument)),
        ("Against truth", _truth(run, campaign) if summary.done else ""),
        ("Cosmic rays", _cosmic_rays(dataset, watched, rates)),
        ("Before, mask, after", draw_cutouts(dataset, instrument.flags.ignore_mask)),
        ("Point spread functions", draw_psfs(dataset, instrument, run)),
        ("Zero points", draw_zero_points(dataset, run, summary)),
        ("Slitless spectra and flat fields", draw_slitless(dataset, run, summary)),
        ("Cost", _cost(dataset, summary)),
        ("Units", show_units(dataset, summary, plan.campaign.units, _unit_lights(dataset, hits, rates))),
        ("Provenance", show_provenance(root, attributes, planes, plan, instrument)),
    )
    return write_document(Path(to), f"{root.name}: csstdask report", sections)


def show_lights(lights: Sequence[Requirement]) -> str:
    """Return requirements with their lights, the units that do not meet them, and what to do."""
    shown = [
        {
            "title": light.title,
            "state": light.state,
            "found": light.found,
            "expected": light.expected,
            "units": [(str(unit), unit_anchor(unit)) for unit in light.units],
            "details": light.details,
            "advice": light.advice,
        }
        for light in lights
    ]
    return render("requirements.html.jinja", lights=shown, words=_WORDS)


def _with_metrics_read(dataset: xr.Dataset) -> xr.Dataset:
    """Read the metrics of units once: several sections show them."""
    metrics = [name for name in dataset.data_vars if dataset[name].dims == ("exposure", "detector")]
    return dataset.assign({name: dataset[name].load() for name in metrics if dataset[name].dtype == "f8"})


def _with_rates(dataset: xr.Dataset, instrument: Instrument) -> xr.Dataset:
    """Add ``cr_rate``, events a second and square centimetre, where time and pixel size are known."""
    if "n_cr_events" not in dataset or instrument.pixel_size is None:
        return dataset
    pixels = dataset.sizes["y"] * dataset.sizes["x"] - dataset["n_ignored_pixels"]
    area = pixels.where(pixels > 0) * np.prod(instrument.pixel_size) * 1e-8
    exptime = dataset["exptime"].where(dataset["exptime"] > 0)
    return dataset.assign(cr_rate=dataset["n_cr_events"] / (exptime * area))


def _unit_lights(dataset: xr.Dataset, hits: Expectation, rates: Expectation) -> UnitStates | None:
    if "cr_fraction" not in dataset:
        return None
    counts, fraction = dataset["n_cr_events"].values, dataset["cr_fraction"].values
    judged = (
        np.where(fraction > OVERLAP_FRACTION, np.nan, dataset["cr_rate"].values)
        if "cr_rate" in dataset
        else fraction * np.nan
    )
    return UnitStates(compare_with_limits(100 * fraction, counts, hits), compare_with_limits(judged, counts, rates))


def _title(run: str | Path, dataset: xr.Dataset, summary: Summary, instrument: Instrument) -> str:
    ny, nx = dataset.sizes["y"], dataset.sizes["x"]
    mark = ' class="failed"' if summary.failed else ""
    return (
        f"<h1>{html.escape(Path(run).name)}</h1><p>{html.escape(instrument.name)}, {summary.total} units of "
        f"{ny} x {nx} pixels: <b>{summary.done} done</b>, <span{mark}>{summary.failed} failed</span>, "
        f"{summary.pending} pending.</p>"
    )


def _failures(summary: Summary) -> str:
    if not summary.failures:
        return ""
    rows = []
    for item in summary.failures:
        unit = Unit(str(item["exposure"]), int(item["detector"]))
        link = f'<td><a href="#{unit_anchor(unit)}">{html.escape(str(unit))}</a></td>'
        command = html.escape(str(item["reproduce"]))
        rows.append([Cell(link), item["step"], item["reason"], Cell(f"<td><code>{command}</code></td>")])
    head = ("unit", "step", "reason", "command that repeats it")
    return f'<div class="text">{table(head, rows, len(rows))}</div>'


def _glance(dataset: xr.Dataset, instrument: Instrument) -> str:
    """Draw each metric's median over the exposures on the focal plane, and the first metric unit by unit."""
    detectors = [int(detector) for detector in dataset["detector"].values]
    drawings, grid = [], ""
    for name, title in _GLANCE.items():
        if name not in dataset or not np.isfinite(dataset[name].values).any():
            continue
        unit = f" [{dataset['background'].attrs.get('units', '')}]" if name == "sky_level" else ""
        values = 100 * dataset[name] if name == "cr_fraction" else dataset[name]
        with suppress_warnings():  # a detector may have no unit
            middle = values.median("exposure", skipna=True).values
        found = dict(zip(detectors, middle.tolist(), strict=True))
        drawings.append(draw_focal_plane(instrument, found, f"{title}{unit}, median", "#Units"))
        grid = grid or _grid(values.values, dataset["exposure"].values.tolist(), detectors, title)
    return "".join(drawings) + grid


def _grid(values: npt.NDArray[np.float64], exposures: Sequence[str], detectors: Sequence[int], title: str) -> str:
    low, high = limits(values)
    rows: Iterable[list[str]] = (
        [
            str(exposure),
            *(
                _grid_cell(value, low, high, Unit(str(exposure), detector))
                for value, detector in zip(line, detectors, strict=True)
            ),
        ]
        for exposure, line in zip(exposures, values, strict=True)
    )
    return f"<p>{title}, by exposure and detector</p>" + table(["exposure", *map(str, detectors)], rows, len(exposures))


def _grid_cell(value: float, low: float, high: float, unit: Unit) -> Cell:
    fill, shown = colour(value, low, high), format_number(value)
    text = f'<a href="#{unit_anchor(unit)}">{shown}</a>' if np.isfinite(value) else shown
    return Cell(f'<td class="cell" style="background:{fill};color:{ink(fill)}">{text}</td>')


def _truth(run: str | Path, campaign: str | Path | None) -> str:
    if not has_truth(run, campaign):
        return ""
    return "".join(f"<p>{html.escape(line)}</p>" for line in score_run(run, campaign).lines())


def _cosmic_rays(dataset: xr.Dataset, watched: CosmicRayReview, expected: Expectation) -> str:
    """Return rates over time and by detector, spectra, and how the flags of the input files compare."""
    if "n_cr_pixels" not in dataset or not np.isfinite(dataset["n_cr_pixels"].values).any():
        return ""
    shown = draw_spectra(watched) if watched.units else ""
    if watched.every > 1:
        shown = f"<p>Spectra of every {watched.every}th exposure.</p>{shown}"
    if "cr_rate" in dataset and "time" in dataset.coords:
        limits = (float(expected.low.min()), float(expected.high.max())) if expected.known else None
        detectors = [int(detector) for detector in dataset["detector"].values]
        shown += plot_rates(dataset["time"].values, dataset["cr_rate"].values, detectors, limits)
    summed = {
        name: dataset[name].sum("exposure", skipna=True).values
        for name in ("n_cr_pixels", "n_cr_input_pixels", "n_cr_both_pixels")
    }
    with suppress_warnings():  # a detector may have no unit
        share = 100 * dataset["cr_fraction"].mean("exposure", skipna=True).values
    rate = (
        dataset["cr_rate"].mean("exposure", skipna=True).values if "cr_rate" in dataset else np.full_like(share, np.nan)
    )
    rows = []
    for column, detector in enumerate(dataset["detector"].values):
        ours, theirs, both = (float(values[column]) for values in summed.values())
        if not np.isfinite(share[column]):
            continue
        confirmed = both / theirs if theirs else np.nan
        rows.append(
            [str(detector), *map(format_number, (rate[column], share[column], ours, theirs, both, 100 * confirmed))]
        )
    head = (
        "detector", "events [s⁻¹ cm⁻²]", "pixels hit [%]", "hit [pixel]", "hit in the input flags [pixel]",
        "hit in both [pixel]", "share of the input flags [%]",
    )  # fmt: skip
    note = (
        "<p>An event is a set of hit pixels that touch. Cosmic-ray flags of the input files are compared and never "
        "used.</p>"
    )
    return shown + table(head, rows) + note


def _cost(dataset: xr.Dataset, summary: Summary) -> str:
    """Return the predicted and actual usage of each step."""
    steps, pixels = summary.usage, dataset.sizes["y"] * dataset.sizes["x"]
    if not steps:
        return ""
    rows = [
        [
            row.step, format_number(row.predicted_seconds), format_number(row.actual.seconds),
            format_number(row.actual.cpu_seconds),
            format_number(pixels / 1e6 / max(row.actual.seconds, 1e-9)), format_number(row.predicted_bytes / 2**30),
            format_number(row.actual.peak_bytes / 2**30), format_number(row.actual.bytes_read / 1e6),
            format_number(row.actual.bytes_written / 1e6),
        ]
        for row in (*steps, total_usage(steps))
    ]  # fmt: skip
    head = (
        "step", "s predicted", "s actual", "CPU s", "Mpix/s on one slot", "GiB predicted", "GiB peak", "MB read",
        "MB written",
    )  # fmt: skip
    note = (
        f"<p>Means per unit, from {steps[0].units} units. Predictions are for one core of the reference machine and a "
        "process with one unit. Peaks of steps are the smallest over units, the last one is the largest.</p>"
    )
    return table(head, rows) + note
