"""List the units of a run: a table of the main metrics, and one of all metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr
from markupsafe import Markup

from csstdask.engine.work_units import Unit
from csstdask.evaluation.io import format_number
from csstdask.evaluation.run_requirements import OVERLAP_FRACTION
from csstdask.pipeline.status import Summary
from csstdask.report.document import Cell, Column, Row, anchor, render, table

#: Units that are listed; deviating and failed units first.
MAX_UNITS = 2000


@dataclass(frozen=True)
class _Metric:
    """Label, unit and scale of a metric."""

    label: str
    unit: str = ""
    factor: float = 1.0


#: Metrics of the first table; ``{sci}`` stands for the unit of the pixels of the campaign.
_READABLE = {
    "cr_fraction": _Metric("pixels hit", "%", 100.0),
    "cr_rate": _Metric("cosmic rays", "s⁻¹ cm⁻²"),
    "sky_level": _Metric("sky", "{sci}"),
    "sky_noise": _Metric("sky noise", "{sci}"),
    "n_sources": _Metric("sources"),
    "n_psf_stars": _Metric("PSF stars"),
    "psf_size": _Metric("PSF size", "pixel"),
}
_FURTHER = {
    "n_ignored_pixels": _Metric("ignored", "pixel"),
    "n_cr_pixels": _Metric("hit", "pixel"),
    "n_cr_events": _Metric("events"),
    "n_cr_input_pixels": _Metric("hit in the input flags", "pixel"),
    "n_cr_both_pixels": _Metric("hit in both", "pixel"),
    "noise_correlation": _Metric("correlation of neighbouring noise"),
    "star_sharpness": _Metric("sharpness of stars", "1/pixel"),
    "n_outside_training": _Metric("conditions outside the training"),
    "n_satellite_trails": _Metric("satellite trails"),
    "n_trailed_stars": _Metric("trailed stars with hits"),
    "n_unrepaired_pixels": _Metric("not repaired", "pixel"),
    "n_points": _Metric("points"),
    "n_tracks": _Metric("tracks"),
    "n_worms": _Metric("worms"),
    "cr_charge_median": _Metric("median charge of an event", "electron"),
    "n_psf_held_out": _Metric("held-out stars"),
    "psf_e1": _Metric("PSF e1"),
    "psf_e2": _Metric("PSF e2"),
    "psf_chi2": _Metric("χ² of held-out stars"),
    "psf_size_residual": _Metric("size residual of held-out stars"),
    "psf_wavefront_rms": _Metric("wavefront rms", "nm"),
    "zp": _Metric("zero point", "mag"),
    "zp_sigma": _Metric("1 σ of the zero point", "mmag", 1000.0),
    "zp_solve": _Metric("zero point from stars alone", "mag"),
    "zp_solve_sigma": _Metric("1 σ of that", "mmag", 1000.0),
    "zp_n_used": _Metric("stars of the zero point"),
    "zp_color_term": _Metric("colour term"),
    "zp_wcs_shift": _Metric("shift of the WCS", "arcsec"),
}


@dataclass(frozen=True)
class UnitStates:
    """Result of `csstdask.evaluation.run_requirements.compare_with_limits` for each unit."""

    hits: npt.NDArray[np.int8]
    rates: npt.NDArray[np.int8]


def unit_anchor(unit: Unit) -> str:
    """Return the anchor of the row of a unit."""
    return anchor("unit", unit.exposure, unit.detector)


def show_units(dataset: xr.Dataset, summary: Summary, sci_units: str, states: UnitStates | None) -> Markup:
    """Return two tables of the units: the main metrics, and all metrics.

    Parameters
    ----------
    dataset : xarray.Dataset
        The run, with ``cr_rate`` where it is known.
    summary : Summary
        State of the run; failed units have rows as well.
    sci_units : str
        Unit of the pixels of the campaign.
    states : UnitStates, optional
        How the cosmic rays of the units compare with the expectation; by default they are not compared.
    """
    names = [
        str(name)
        for name in dataset.data_vars
        if dataset[name].dims == ("exposure", "detector") and dataset[name].dtype == "f8"
    ]
    if not names:
        return Markup()
    failed = {Unit(item["exposure"], item["detector"]): str(item["step"]) for item in summary.failures}
    known, odd = _marked(dataset, names, failed, states)
    listed = np.argwhere(known)
    total = len(listed)
    if total > MAX_UNITS:
        kept = np.argsort(~odd[known], kind="stable")[:MAX_UNITS]
        listed = listed[np.sort(kept)]
    readable = [name for name in _READABLE if name in names]
    everything = [*readable, *(name for name in _FURTHER if name in names)]
    everything += [name for name in names if name not in everything]
    base = [
        Column("exposure", "exposure"),
        Column("detector", "detector"),
        Column("band", "band"),
        Column("state", "state"),
    ]
    main = table(
        [*base, *(_column(name, sci_units) for name in readable)],
        _rows(dataset, listed, readable, failed, states, all_done=summary.pending == 0, anchored=True),
        total,
        name="units-main",
        max_rows=MAX_UNITS,
    )
    full = table(
        [*base, *(_column(name, sci_units) for name in everything)],
        _rows(dataset, listed, everything, failed, states, all_done=summary.pending == 0, anchored=False),
        total,
        name="units-all",
        max_rows=MAX_UNITS,
    )
    return render("units.html.jinja", main=main, everything=full)


def _marked(
    dataset: xr.Dataset, names: list[str], failed: dict[Unit, str], states: UnitStates | None
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return which units are known (have a metric, or failed), and which of them deviate (or failed)."""
    known = np.any([np.isfinite(dataset[name].values) for name in names], axis=0)
    odd = np.zeros_like(known) if states is None else (states.hits != 0) | (states.rates != 0)
    exposures = {str(name): row for row, name in enumerate(dataset["exposure"].values)}
    detectors = {int(detector): column for column, detector in enumerate(dataset["detector"].values)}
    for unit in failed:
        if unit.exposure in exposures and unit.detector in detectors:
            odd[exposures[unit.exposure], detectors[unit.detector]] = True
    return known | odd, odd


def _state(dataset: xr.Dataset, position: tuple[int, int], *, all_done: bool) -> str:
    """Return the state of a unit that did not fail; a dash for runs that do not record it."""
    if "done" in dataset.coords:
        return "done" if bool(dataset["done"].values[position]) else "pending"
    return "done" if all_done else "–"


def _metric(name: str) -> _Metric:
    return _READABLE.get(name) or _FURTHER.get(name) or _Metric(name)


def _column(name: str, sci_units: str) -> Column:
    metric = _metric(name)
    return Column(name, metric.label, metric.unit.format(sci=sci_units))


def _rows(
    dataset: xr.Dataset,
    listed: npt.NDArray[np.int64],
    names: list[str],
    failed: dict[Unit, str],
    states: UnitStates | None,
    *,
    all_done: bool,
    anchored: bool,
) -> Iterator[Row]:
    values = {name: _metric(name).factor * dataset[name].values for name in names}
    exposures, detectors, bands = (dataset[name].values for name in ("exposure", "detector", "band"))
    fraction = dataset["cr_fraction"].values if "cr_fraction" in dataset else None
    for row, column in listed.tolist():
        unit = Unit(str(exposures[row]), int(detectors[column]))
        position = row, column
        state = Cell("failed", css="fail") if unit in failed else _state(dataset, position, all_done=all_done)
        cells: list[object] = [unit.exposure, unit.detector, bands[position], state]
        overlap = fraction is not None and bool(fraction[position] > OVERLAP_FRACTION)
        for name in names:
            value = float(values[name][position])
            side = 0
            if states is not None and name == "cr_fraction":
                side = int(states.hits[position])
            elif states is not None and name == "cr_rate":
                side = int(states.rates[position])
            cells.append(_cell(value, side, overlap=name == "cr_rate" and overlap))
        yield Row(cells, unit_anchor(unit) if anchored else "")


def _cell(value: float, side: int, *, overlap: bool) -> Cell:
    """Return the cell of a metric: marked if it deviates, or if it is a lower limit."""
    text = format_number(value)
    if side:
        return Cell(text, css="fail", tooltip=f"{'above' if side > 0 else 'below'} the expected range")
    if overlap:
        return Cell(text, css="note", tooltip="a lower limit: events overlap")
    return Cell(text)
