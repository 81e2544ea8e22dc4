"""Write one self-contained HTML page about a run.

From top to bottom: whether the run meets its requirements, what failed, whether a detector stands out, how the run
scores against truth where there is one, what it looks like, what it cost, each unit, and where it comes from. Styles,
scripts and pictures are inside the page, so it can be sent by mail.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr
from markupsafe import Markup

from csstdask.core.warnings import suppress_warnings
from csstdask.engine.work_units import Unit
from csstdask.evaluation.io import format_number
from csstdask.evaluation.run_consistency import review_run
from csstdask.evaluation.run_requirements import (
    OVERLAP_FRACTION,
    Expectation,
    Requirement,
    add_event_rates,
    check_requirements,
    compare_with_limits,
    expectations_of,
    expected_hits,
    expected_rates,
    recipe_of,
)
from csstdask.instrument import Instrument, validate_instrument
from csstdask.pipeline.score import has_truth, score_run
from csstdask.pipeline.status import Summary, load_plan, status
from csstdask.pipeline.usage_report import total_usage
from csstdask.pipeline.views import open_run
from csstdask.report.colours import colour, colour_limits, text_colour
from csstdask.report.commands import run_commands
from csstdask.report.document import Cell, join, paragraphs, render, table, write_document
from csstdask.report.focal_plane import draw_focal_plane
from csstdask.report.panels import ReportedRun, draw_panels
from csstdask.report.provenance import show_provenance
from csstdask.report.units import UnitStates, show_units, unit_anchor
from csstdask.store.store_metadata import open_group

#: Metrics of the overview with their labels; the first that is known is also listed unit by unit.
_OVERVIEW = {
    "cr_fraction": "pixels hit [%]",
    "cr_rate": "cosmic-ray events [s⁻¹ cm⁻²]",
    "sky_level": "sky",
    "n_sources": "sources",
}

#: Words for the state of a requirement.
_STATE_WORDS = {"pass": "as expected", "warn": "look at it", "fail": "not as expected", "none": ""}


def write_report(run: str | Path, to: str | Path, campaign: str | Path | None = None) -> Path:
    """Write the page about a run.

    Parameters
    ----------
    run : path
        Store of the run.
    to : path
        File of the page.
    campaign : path, optional
        Store of the campaign, if it has moved.

    Returns
    -------
    Path
        File of the page.

    Raises
    ------
    StoreError
        If the run or its campaign does not exist.
    """
    root, summary = Path(run), status(run, campaign=campaign)
    dataset, plan = open_run(run, campaign), load_plan(root, campaign)
    instrument = validate_instrument(dataset.attrs["instrument"], str(run))
    dataset = add_event_rates(_load_metrics(dataset), instrument)
    review = review_run(run, campaign)
    recipe = recipe_of(dict(open_group(plan.campaign.path, "campaign").attrs))
    camera = expectations_of(instrument)
    hits, rates = expected_hits(dataset, camera, recipe), expected_rates(dataset, camera, recipe)
    attributes = dict(open_group(root, "run").attrs)
    planes = map(str, dataset["planes"].values.ravel()) if "planes" in dataset else ()
    commands = run_commands(root, plan, attributes)
    requirements = check_requirements(dataset, summary, review.alarms, hits, rates, root, commands)
    sections = (
        ("", _title(root.name, dataset, summary, instrument)),
        ("Requirements", show_requirements(requirements)),
        ("Failures", _failures(summary)),
        ("The night at a glance", _overview(dataset, instrument)),
        ("Against truth", _truth(run, campaign) if summary.done else ""),
        *draw_panels(ReportedRun(root, dataset, instrument, summary, review, rates)),
        ("Cost", _cost(dataset, summary)),
        ("Units", show_units(dataset, summary, plan.campaign.units, _unit_states(dataset, hits, rates))),
        ("Provenance", show_provenance(root, attributes, planes, plan, instrument)),
    )
    return write_document(Path(to), f"{root.name}: csstdask report", sections)


def show_requirements(requirements: Sequence[Requirement]) -> Markup:
    """Return the requirements with their states, the units that do not meet them, and what to do."""
    items = [(one, [(str(unit), unit_anchor(unit)) for unit in one.units]) for one in requirements]
    return render("requirements.html.jinja", requirements=items, words=_STATE_WORDS)


def _load_metrics(dataset: xr.Dataset) -> xr.Dataset:
    """Read the metrics of the units once: several sections show them."""
    metrics = [name for name in dataset.data_vars if dataset[name].dims == ("exposure", "detector")]
    return dataset.assign({name: dataset[name].load() for name in metrics if dataset[name].dtype == "f8"})


def _unit_states(dataset: xr.Dataset, hits: Expectation, rates: Expectation) -> UnitStates | None:
    if "cr_fraction" not in dataset:
        return None
    counts, fraction = dataset["n_cr_events"].values, dataset["cr_fraction"].values
    rate = dataset["cr_rate"].values if "cr_rate" in dataset else np.full_like(fraction, np.nan)
    rate = np.where(fraction > OVERLAP_FRACTION, np.nan, rate)
    return UnitStates(compare_with_limits(100 * fraction, counts, hits), compare_with_limits(rate, counts, rates))


def _title(name: str, dataset: xr.Dataset, summary: Summary, instrument: Instrument) -> Markup:
    ny, nx = dataset.sizes["y"], dataset.sizes["x"]
    return render("title.html.jinja", name=name, camera=instrument.name, summary=summary, ny=ny, nx=nx)


def _failures(summary: Summary) -> Markup:
    if not summary.failures:
        return Markup()
    rows = []
    for item in summary.failures:
        unit = Unit(str(item["exposure"]), int(item["detector"]))
        command = Cell(item["reproduce"], is_code=True)
        rows.append([Cell(unit, link=unit_anchor(unit)), item["step"], item["reason"], command])
    columns = ("unit", "step", "reason", "command that repeats it")
    return render("failures.html.jinja", table=table(columns, rows, len(rows)))


def _overview(dataset: xr.Dataset, instrument: Instrument) -> Markup:
    """Draw the median of each metric over the exposures on the focal plane; list the first metric unit by unit."""
    detectors = [int(detector) for detector in dataset["detector"].values]
    drawings, grid = [], Markup()
    for name, title in _OVERVIEW.items():
        if name not in dataset or not np.isfinite(dataset[name].values).any():
            continue
        unit = f" [{dataset['background'].attrs.get('units', '')}]" if name == "sky_level" else ""
        values = 100 * dataset[name] if name == "cr_fraction" else dataset[name]
        with suppress_warnings():  # the median of a detector without units is NaN
            median = values.median("exposure", skipna=True).values
        by_detector = dict(zip(detectors, median.tolist(), strict=True))
        drawings.append(draw_focal_plane(instrument, by_detector, f"{title}{unit}, median", "Units"))
        grid = grid or _grid(values.values, dataset["exposure"].values.tolist(), detectors, title)
    return join([*drawings, grid])


def _grid(values: npt.NDArray[np.float64], exposures: Sequence[str], detectors: Sequence[int], title: str) -> Markup:
    """Return a table of a metric: a row per exposure, a column per detector."""
    low, high = colour_limits(values)
    rows = (
        [
            str(exposure),
            *(
                _grid_cell(value, low, high, Unit(str(exposure), detector))
                for value, detector in zip(line, detectors, strict=True)
            ),
        ]
        for exposure, line in zip(exposures, values, strict=True)
    )
    heading = paragraphs(f"{title}, by exposure and detector")
    return heading + table(["exposure", *map(str, detectors)], rows, len(exposures))


def _grid_cell(value: float, low: float, high: float, unit: Unit) -> Cell:
    fill = colour(value, low, high)
    link = unit_anchor(unit) if np.isfinite(value) else ""
    return Cell(format_number(value), link, "cell", style=f"background:{fill};color:{text_colour(fill)}")


def _truth(run: str | Path, campaign: str | Path | None) -> Markup:
    if not has_truth(run, campaign):
        return Markup()
    return paragraphs(*score_run(run, campaign).lines())


def _cost(dataset: xr.Dataset, summary: Summary) -> Markup:
    """Return the predicted and the actual resources of each step."""
    steps, pixels = summary.usage, dataset.sizes["y"] * dataset.sizes["x"]
    if not steps:
        return Markup()
    rows = [
        [
            row.step,
            *map(
                format_number,
                (
                    row.predicted_seconds,
                    row.actual.seconds,
                    row.actual.cpu_seconds,
                    pixels / 1e6 / max(row.actual.seconds, 1e-9),
                    row.predicted_bytes / 2**30,
                    row.actual.peak_bytes / 2**30,
                    row.actual.bytes_read / 1e6,
                    row.actual.bytes_written / 1e6,
                ),
            ),
        ]
        for row in (*steps, total_usage(steps))
    ]
    columns = (
        "step", "s predicted", "s actual", "CPU s", "Mpix/s on one slot", "GiB predicted", "GiB peak", "MB read",
        "MB written",
    )  # fmt: skip
    note = (
        f"Means per unit, from {steps[0].units} units. Predictions are for one core of the reference machine and a "
        "process with one unit. Peaks of steps are the smallest over units, the last one is the largest."
    )
    return table(columns, rows) + paragraphs(note)
