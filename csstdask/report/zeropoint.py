"""Show the zero points of a run: their history, residuals of stars, and units with alarms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from markupsafe import Markup

from csstdask.engine.work_units import Unit
from csstdask.evaluation.io import format_number
from csstdask.pipeline.calibrations import current_zero_points
from csstdask.pipeline.reductions.zeropoints import METHOD_ARRAY, ZEROPOINTS
from csstdask.pipeline.status import Summary, load_plan
from csstdask.pipeline.steps.zeropoint import ZEROPOINT_STARS
from csstdask.report.document import Cell, join, paragraphs, table
from csstdask.report.figures import plot
from csstdask.report.units import unit_anchor
from csstdask.store.tables import unit_file_path
from csstdask.zeropoint.alarms import Alarm, find_alarms
from csstdask.zeropoint.matched_stars import MatchedStars

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Float = npt.NDArray[np.float64]

METHODS = {
    "solve": "#3b82d6", "joined": "#2a9d5c", "prior": "#b565c9", "borrowed": "#d9622b", "nominal": "#888888",
}  # fmt: skip
"""Methods, and the colours of their points."""
_MAX_HISTORIES = 6
"""Detectors whose history is drawn: those with the most alarms, then the first ones."""
_MAX_UNITS = 200
"""Units whose stars are read; of a larger run, those of every n-th exposure."""
_MAX_STARS = 20_000
"""Number of stars that are drawn."""
_BINS = 12
"""Number of bins of the medians of residuals."""


@dataclass(frozen=True)
class _ZeroPoints:
    """The zero points of a run, and the metrics they are derived from; all arrays are (exposure, detector)."""

    dataset: xr.Dataset
    arrays: dict[str, npt.NDArray[Any]]

    @property
    def timed(self) -> bool:
        """Return whether all exposures have different, known times."""
        time = self.dataset["time"].values
        return not np.isnat(time).any() and len(np.unique(time)) == len(time)

    @property
    def days(self) -> Float:
        """Return the start of each exposure (exposure,) since the first [day]; its index if times are unknown."""
        time = self.dataset["time"].values
        if not self.timed:
            return np.arange(len(time), dtype=np.float64)
        return np.asarray((time - time.min()) / np.timedelta64(1, "D"), dtype=np.float64)

    def metric(self, name: str) -> Float:
        """Return a metric (exposure, detector)."""
        return np.asarray(self.dataset[name].values, dtype=np.float64)


def draw_zero_points(dataset: xr.Dataset, run: str | Path, summary: Summary) -> Markup:
    """Return history, alarms and residuals of the zero points; the state of the reduction if there are none."""
    root = Path(run)
    state = next((one for one in summary.reductions if one.name == ZEROPOINTS.name), None)
    if state is None or "zp_solve" not in dataset:
        return Markup()
    done = state.state == "done"
    arrays = current_zero_points(root, load_plan(root, dataset.attrs["campaign_path"])) if done else None
    if arrays is None or arrays["zp"].shape != dataset["zp_solve"].shape:
        return paragraphs(state.line())
    found = _ZeroPoints(dataset, arrays)
    alarms = alarms_of(found)
    parts = [paragraphs(state.line()), _methods(found), *_histories(found, alarms), _alarms(alarms)]
    stars = list(_stars(found, root))
    return join([*parts, *_residuals(stars)])


def alarms_of(found: _ZeroPoints) -> list[tuple[Unit, Alarm]]:
    """Return the alarms of all detectors with their units."""
    alarms = []
    for column, detector in enumerate(found.dataset["detector"].values.tolist()):
        series = (found.metric("zp_solve"), found.metric("zp_solve_sigma"))
        prior = found.arrays["zp_prior"], found.arrays["zp_prior_sigma"]
        for row, alarm in find_alarms(found.days, *(one[:, column] for one in (*series, *prior))):
            alarms.append((Unit(str(found.dataset["exposure"].values[row]), int(detector)), alarm))
    return alarms


def _methods(found: _ZeroPoints) -> Markup:
    """Return a table of the number of units and their errors by method."""
    rows = []
    for name in METHODS:
        chosen = found.arrays[METHOD_ARRAY] == name
        sigma = found.arrays["zp_sigma"][chosen]
        if chosen.any():
            rows.append(
                [
                    name,
                    int(chosen.sum()),
                    format_number(1000 * float(np.median(sigma))),
                    format_number(1000 * float(sigma.max())),
                ]
            )
    note = (
        "solve: stars only; joined: stars and prior; prior: network without stars; borrowed: earlier zero "
        "points; nominal: the camera's description."
    )
    return table(("method", "units", "median 1 σ [mmag]", "largest 1 σ [mmag]"), rows) + paragraphs(note)


def _histories(found: _ZeroPoints, alarms: list[tuple[Unit, Alarm]]) -> Iterator[Markup]:
    """Yield the zero points of some detectors over time."""
    detectors = found.dataset["detector"].values.tolist()
    known = [column for column in range(len(detectors)) if np.isfinite(found.arrays["zp"][:, column]).any()]
    count = {detector: sum(unit.detector == detector for unit, _ in alarms) for detector in detectors}
    chosen = sorted(sorted(known, key=lambda column: (-count[detectors[column]], column))[:_MAX_HISTORIES])
    for column in chosen:
        yield plot(
            lambda axes, column=column: _history(axes, found, column),  # type: ignore[misc]
            f"zero point of detector {detectors[column]} with 1 σ; line: what was expected without the unit's stars",
            f"zero-points-{detectors[column]}",
        )


def _history(axes: Axes, found: _ZeroPoints, column: int) -> None:
    value, sigma, prior, prior_sigma = (
        found.arrays[name][:, column] for name in ("zp", "zp_sigma", "zp_prior", "zp_prior_sigma")
    )
    method, days = found.arrays[METHOD_ARRAY][:, column], found.days
    order = np.argsort(days, kind="stable")
    known = order[np.isfinite(prior[order]) & np.isfinite(prior_sigma[order])]
    if len(known):
        axes.plot(days[known], prior[known], "-", lw=0.8, color="0.6")
        axes.fill_between(
            days[known], (prior - prior_sigma)[known], (prior + prior_sigma)[known], color="0.6", alpha=0.25, lw=0
        )
    for name, color in METHODS.items():
        shown = (method == name) & np.isfinite(value) & np.isfinite(sigma)
        if shown.any():
            axes.errorbar(days[shown], value[shown], sigma[shown], fmt="o", ms=3, lw=0.8, color=color, label=name)
    label = "time since the first exposure [day]" if found.timed else "exposure, as numbered in the campaign"
    axes.set(xlabel=label, ylabel="zero point [mag]")
    axes.legend(fontsize=7, ncols=len(METHODS), frameon=False)


def _alarms(alarms: list[tuple[Unit, Alarm]]) -> Markup:
    """Return a table of the alarms, the most significant first."""
    if not alarms:
        return paragraphs("No alarms: stars agree with the expectation, and no detector drifts or jumps.")
    ordered = sorted(alarms, key=lambda item: -abs(item[1].sigma))
    rows = [
        [
            Cell(unit, link=unit_anchor(unit)),
            alarm.kind,
            format_number(1000 * alarm.size),
            format_number(alarm.sigma),
            alarm.meaning,
        ]
        for unit, alarm in ordered
    ]
    return table(("unit", "alarm", "size [mmag]", "in its error", "what it means"), rows, len(rows))


def _stars(found: _ZeroPoints, root: Path) -> Iterator[MatchedStars]:
    """Yield the stars of the units; of a larger run, those of every n-th exposure."""
    known = found.metric("zp_n_used") > 0
    every = max(1, -(-int(known.sum()) // _MAX_UNITS))
    for row, column in np.argwhere(known):
        if row % every == 0:
            unit = str(found.dataset["exposure"].values[row]), int(found.dataset["detector"].values[column])
            path = unit_file_path(root, ZEROPOINT_STARS, *unit)
            if path.is_file():
                yield MatchedStars.from_bytes(path.read_bytes(), path)


def _residuals(units: list[MatchedStars]) -> Iterator[Markup]:
    """Yield plots of the residuals of used stars over distance from the centre, colour and magnitude."""
    if not units:
        return
    columns: dict[str, list[Float]] = {"radius": [], "color": [], "magnitude": [], "residual": []}
    for stars in units:
        used = (stars.weight > 0) & np.isfinite(stars.residual)
        middle = [(length - 1) / 2 for length in stars.shape]
        columns["radius"].append(np.hypot(stars.y - middle[0], stars.x - middle[1])[used])
        columns["color"].append(stars.color[used])
        columns["magnitude"].append(stars.ref_mag[used])
        columns["residual"].append(stars.residual[used])
    values = {name: np.concatenate(parts) for name, parts in columns.items()}
    every = max(1, -(-len(values["residual"]) // _MAX_STARS))
    labels = {
        "radius": "distance from the centre [pixel]",
        "color": "colour of the reference [mag]",
        "magnitude": "magnitude of the reference [mag]",
    }
    for name, label in labels.items():
        if np.isfinite(values[name]).sum() > 1:
            yield plot(
                lambda axes, name=name, label=label: _scatter(axes, values[name], values["residual"], label, every),  # type: ignore[misc]
                f"residuals of stars against the {label.partition(' [')[0]}, with medians",
                f"zero-point-{name}",
            )


def _scatter(axes: Axes, x: Float, residual: Float, label: str, every: int) -> None:
    known = np.isfinite(x)
    x, millimag = x[known], 1000 * residual[known]
    axes.plot(x[::every], millimag[::every], ".", ms=1.5, alpha=0.4)
    edges = np.unique(np.quantile(x, np.linspace(0, 1, _BINS + 1)))
    if len(edges) > 1:
        bins = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, len(edges) - 2)
        filled = [one for one in range(len(edges) - 1) if (bins == one).any()]
        middle = [float(np.median(millimag[bins == one])) for one in filled]
        axes.plot([(edges[one] + edges[one + 1]) / 2 for one in filled], middle, "o-", ms=3.5, lw=0.8)
    axes.axhline(0, color="0.5", lw=0.5)
    axes.set(xlabel=label, ylabel="residual [mmag]")
