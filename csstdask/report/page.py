"""One self-contained HTML page about a run: the night at a glance, what failed, what it cost, what was found.

From the top: is it done, does any detector stand out, what failed, how fast it went, how the cosmic rays compare
with expectation and with the files' own pipeline, how it scores against truth where there is one, and what
it looks like. No scripts, no other files, no plotting library: it can be mailed.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr

from csstdask.instrument import Instrument, validate_instrument
from csstdask.pipeline.accounting import whole_unit
from csstdask.pipeline.status import Summary, status
from csstdask.pipeline.truth import has_truth, score_run
from csstdask.pipeline.views import open_run
from csstdask.quiet import no_warnings
from csstdask.report.cosmic_rays import alarms_and_spectra
from csstdask.report.cutouts import draw_cutouts
from csstdask.report.document import Cell, number, table, write_document
from csstdask.report.focal_plane import colour, draw_focal_plane, limits
from csstdask.report.psf import draw_psfs

#: Metrics of the glance, with their units; the first of them is looked at unit by unit.
_GLANCE = {"cr_rate": "cosmic-ray events [s⁻¹ cm⁻²]", "sky_level": "sky", "n_sources": "sources"}


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
    summary = status(run, campaign=campaign)
    dataset = open_run(run, campaign)
    instrument = validate_instrument(dataset.attrs["instrument"], str(run))
    dataset = _with_rates(dataset, instrument)
    sections = (
        ("", _title(run, dataset, summary)),
        ("Failures", _failures(summary)),
        ("The night at a glance", _glance(dataset, instrument)),
        ("Against truth", _truth(run, campaign)),
        ("Cosmic rays", alarms_and_spectra(run, campaign) + _cosmic_rays(dataset)),
        ("Before, mask, after", draw_cutouts(dataset)),
        ("Point spread functions", draw_psfs(dataset, instrument, run)),
        ("What it cost", _cost(dataset, summary)),
        ("Units", _units(dataset)),
        ("Settings", _settings(dataset)),
    )
    return write_document(Path(to), Path(run).name, sections)


def _with_rates(dataset: xr.Dataset, instrument: Instrument) -> xr.Dataset:
    """Add ``cr_rate``, events a second and square centimetre, where time and pixel size are known."""
    if "n_cr_events" not in dataset or instrument.pixel_size is None:
        return dataset
    pixels = dataset.sizes["y"] * dataset.sizes["x"] - dataset["n_ignored_pixels"]
    area = pixels.where(pixels > 0) * np.prod(instrument.pixel_size) * 1e-8
    exptime = dataset["exptime"].where(dataset["exptime"] > 0)
    return dataset.assign(cr_rate=dataset["n_cr_events"] / (exptime * area))


def _title(run: str | Path, dataset: xr.Dataset, summary: Summary) -> str:
    ny, nx = dataset.sizes["y"], dataset.sizes["x"]
    mark = ' class="failed"' if summary.failed else ""
    return (
        f"<h1>{html.escape(Path(run).name)}</h1><p>{summary.total} units of {ny} x {nx} pixels: "
        f"<b>{summary.done} done</b>, <span{mark}>{summary.failed} failed</span>, {summary.pending} pending.</p>"
    )


def _failures(summary: Summary) -> str:
    if not summary.failures:
        return ""
    keys = ("exposure", "detector", "step", "reason")
    return table(keys, ([item[key] for key in keys] for item in summary.failures), len(summary.failures))


def _glance(dataset: xr.Dataset, instrument: Instrument) -> str:
    """Draw each metric's median over the exposures on the focal plane, and the first metric unit by unit."""
    detectors = [int(detector) for detector in dataset["detector"].values]
    drawings, grid = [], ""
    for name, title in _GLANCE.items():
        if name not in dataset or not np.isfinite(dataset[name].values).any():
            continue
        unit = f" [{dataset['background'].attrs.get('units', '')}]" if name == "sky_level" else ""
        with no_warnings():  # a detector may have no unit
            middle = dataset[name].median("exposure", skipna=True).values
        drawings.append(
            draw_focal_plane(instrument, dict(zip(detectors, middle.tolist(), strict=True)), f"{title}{unit}, median")
        )
        grid = grid or _grid(dataset[name].values, dataset["exposure"].values.tolist(), detectors, title)
    return "".join(drawings) + grid


def _grid(values: npt.NDArray[np.float64], exposures: Sequence[str], detectors: Sequence[int], title: str) -> str:
    low, high = limits(values)
    rows: Iterable[list[str]] = (
        [str(exposure)]
        + [
            Cell(f'<td class="cell" style="background:{colour(value, low, high)}">{number(value)}</td>')
            for value in line
        ]
        for exposure, line in zip(exposures, values, strict=True)
    )
    return f"<p>{title}, by exposure and detector</p>" + table(["exposure", *map(str, detectors)], rows, len(exposures))


def _truth(run: str | Path, campaign: str | Path | None) -> str:
    if not has_truth(run, campaign):
        return ""
    return "".join(f"<p>{html.escape(line)}</p>" for line in score_run(run, campaign).lines())


def _cosmic_rays(dataset: xr.Dataset) -> str:
    """Tell rates by detector, and how the files' own flags compare with ours."""
    if "n_cr_pixels" not in dataset:
        return ""
    summed = {
        name: dataset[name].sum("exposure", skipna=True).values
        for name in ("n_cr_pixels", "n_cr_input_pixels", "n_cr_both_pixels")
    }
    with no_warnings():  # a detector may have no unit
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
        rows.append([str(detector), *map(number, (rate[column], share[column], ours, theirs, both, 100 * confirmed))])
    head = (
        "detector", "events [s⁻¹ cm⁻²]", "pixels hit [%]", "ours [pixel]", "the files' own [pixel]", "both [pixel]",
        "of theirs [%]",
    )  # fmt: skip
    note = (
        "<p>The files' own cosmic-ray flags are compared with ours and never used. An event is a set of hit pixels "
        "that touch; in low orbit about one a second and square centimetre is usual.</p>"
    )
    return table(head, rows) + note


def _cost(dataset: xr.Dataset, summary: Summary) -> str:
    """Return the predicted and actual usage of each step."""
    steps, pixels = summary.usage, dataset.sizes["y"] * dataset.sizes["x"]
    if not steps:
        return ""
    rows = [
        [
            row.step, number(row.predicted_seconds), number(row.actual.seconds), number(row.actual.cpu_seconds),
            number(pixels / 1e6 / max(row.actual.seconds, 1e-9)), number(row.predicted_bytes / 2**30),
            number(row.actual.peak_bytes / 2**30), number(row.actual.bytes_read / 1e6),
            number(row.actual.bytes_written / 1e6),
        ]
        for row in (*steps, whole_unit(steps))
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


def _units(dataset: xr.Dataset) -> str:
    names = [
        name
        for name in dataset.data_vars
        if dataset[name].dims == ("exposure", "detector") and dataset[name].dtype == "f8"
    ]
    if not names:
        return ""
    values = np.stack([dataset[name].values for name in names])
    exposures, detectors, bands = (dataset[name].values for name in ("exposure", "detector", "band"))
    known = np.argwhere(np.isfinite(values).any(axis=0))
    rows = (
        [exposures[row], detectors[column], bands[row, column], *map(number, values[:, row, column])]
        for row, column in known
    )
    return table(("exposure", "detector", "band", *map(str, names)), rows, len(known))


def _settings(dataset: xr.Dataset) -> str:
    kept = {key: dataset.attrs[key] for key in ("steps", "config", "fingerprint", "software") if key in dataset.attrs}
    return f"<pre>{html.escape(json.dumps(kept, indent=1))}</pre>"
