"""The requirements of a run as lights: is it done, and are its cosmic rays those that are expected.

The share of the pixels that is hit is judged first. Where it is large, events overlap and count as fewer, so that the
worst frames have the lowest rates of events: those rates are shown and not judged. What is expected is said by the
recipe of a mock survey or by the table ``expectations`` of a camera's TOML; where neither says anything, values have
no light.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import xarray as xr
from pydantic import ValidationError

from csstdask.engine.work_units import Unit
from csstdask.evaluation.io import format_number
from csstdask.instrument import Expectations, Instrument, builtin_names, load_instrument
from csstdask.metrics.drift import Alarm, pixel_area_cm2
from csstdask.mock.cosmic_rays import pixel_fraction
from csstdask.mock.recipe import Recipe
from csstdask.pipeline.status import Summary

Float = npt.NDArray[np.float64]
State = Literal["pass", "warn", "fail", "none"]

#: Share of pixels hit from which the rate of events is not judged: more than half of the events touch another.
OVERLAP_FRACTION = 0.2
#: Counting statistics that a unit may deviate by beyond the limits [sigma].
_SIGMA = 3.0
#: Of a mock, the share of pixels that is detected as hit, divided by the share with charge: faint charge is not
#: detected, and a mask may be wider than the charge.
_MOCK_FACTORS = (0.5, 1.5)
#: Units that a light links to.
_LINKED = 12


@dataclass(frozen=True)
class Expectation:
    """Limits of one quantity for each unit."""

    low: Float
    """(exposure, detector); NaN where nothing is expected."""
    high: Float
    source: str
    """Where the limits come from, for people."""

    @property
    def known(self) -> bool:
        """Tell whether anything is expected of any unit."""
        return bool(np.isfinite(self.low).any())

    def sentence(self, values: Float) -> str:
        """Return the limits of the units with a value, and their source, for people."""
        use = np.isfinite(values) & np.isfinite(self.low)
        if not use.any():
            return self.source
        low, high = (format_number(float(limit)) for limit in (self.low[use].min(), self.high[use].max()))
        return f"{low} to {high} ({self.source})"


@dataclass(frozen=True)
class Requirement:
    """One requirement, and whether a run meets it."""

    title: str
    state: State
    found: str
    expected: str = ""
    units: tuple[Unit, ...] = ()
    """Units that do not meet it, the first few of them."""
    advice: str = ""
    """A command."""
    details: tuple[str, ...] = field(default=())


def recipe_of(attributes: Mapping[str, object]) -> Recipe | None:
    """Return the recipe of a mock campaign from its attributes; None for others, and for recipes of other versions."""
    if "recipe" not in attributes:
        return None
    try:
        return Recipe.model_validate(attributes["recipe"])
    except ValidationError:
        return None


def expectations_of(instrument: Instrument) -> Expectations | None:
    """Return what is expected of a camera; for campaigns older than a built-in camera's expectations, those."""
    if instrument.expectations is None and instrument.name in builtin_names():
        return load_instrument(instrument.name).expectations
    return instrument.expectations


def add_event_rates(dataset: xr.Dataset, instrument: Instrument) -> xr.Dataset:
    """Add ``cr_rate`` [s-1 cm-2], the rate of cosmic-ray events, where exposure time and pixel size are known."""
    if "n_cr_events" not in dataset or instrument.pixel_size is None:
        return dataset
    pixels = dataset.sizes["y"] * dataset.sizes["x"] - dataset["n_ignored_pixels"]
    area = pixels.where(pixels > 0) * pixel_area_cm2(instrument)
    exptime = dataset["exptime"].where(dataset["exptime"] > 0)
    return dataset.assign(cr_rate=dataset["n_cr_events"] / (exptime * area))


def expected_hits(dataset: xr.Dataset, camera: Expectations | None, recipe: Recipe | None) -> Expectation:
    """Return the expected share of pixels hit [%] of each unit."""
    low = np.full((dataset.sizes["exposure"], dataset.sizes["detector"]), np.nan)
    high = low.copy()
    if recipe is not None:
        order = {name: index for index, name in enumerate(recipe.exposure_ids)}
        for row, name in enumerate(dataset["exposure"].values):
            if str(name) in order:
                share = 100 * pixel_fraction(recipe, order[str(name)])
                low[row], high[row] = (factor * share for factor in _MOCK_FACTORS)
        return Expectation(low, high, f"by exposure, 0.5 to 1.5 times the pixels with charge in recipe {recipe.name}")
    if camera is None:
        return Expectation(low, high, "")
    for row, exptime in enumerate(np.atleast_1d(dataset["exptime"].values)):
        if (limits := camera.hit_fraction(float(exptime))) is not None:
            low[row], high[row] = (100 * limit for limit in limits)
    return Expectation(low, high, camera.source)


def expected_rates(dataset: xr.Dataset, camera: Expectations | None, recipe: Recipe | None) -> Expectation:
    """Return the expected rate of events [s-1 cm-2] of each unit; a recipe states none."""
    shape = dataset.sizes["exposure"], dataset.sizes["detector"]
    if recipe is not None or camera is None or camera.cosmic_ray_rate is None:
        return Expectation(np.full(shape, np.nan), np.full(shape, np.nan), "")
    low, high = camera.cosmic_ray_rate
    return Expectation(np.full(shape, low), np.full(shape, high), camera.source)


def compare_with_limits(values: Float, counts: Float, expected: Expectation) -> npt.NDArray[np.int8]:
    """Compare values that were counted with what is expected.

    Parameters
    ----------
    values : float64 array (exposure, detector)
    counts : float64 array (exposure, detector)
        Events that each value was made from: its error is ``value / sqrt(counts)``.
    expected : Expectation

    Returns
    -------
    int8 array (exposure, detector)
        -1 below the limits, 1 above, 0 within them or unknown; three sigma of counting statistics are allowed.
    """
    with np.errstate(invalid="ignore"):
        slack = _SIGMA * values / np.sqrt(np.maximum(counts, 1.0))
        above, below = values - slack > expected.high, values + slack < expected.low
    return above.astype(np.int8) - below.astype(np.int8)


def check_requirements(
    dataset: xr.Dataset,
    summary: Summary,
    alarms: Sequence[Alarm],
    hits: Expectation,
    rates: Expectation,
    run: Path,
    resume: Sequence[str],
) -> list[Requirement]:
    """Return the lights of a run.

    Parameters
    ----------
    dataset : xarray.Dataset
        The run, with ``cr_rate`` where that is known.
    summary : Summary
    alarms : sequence of Alarm
        Of `csstdask.metrics.drift.find_drift`.
    hits, rates : Expectation
        See `expected_hits` and `expected_rates`.
    run : Path
    resume : sequence of str
        The commands that resume it.
    """
    lights = [_completeness(summary, "; ".join(resume))]
    if "cr_fraction" in dataset:
        check = shlex.join(["csstdask", "evaluate", "cosmicray", "--run", str(run), "--to", f"{run.stem}_check"])
        lights.append(_hits(dataset, hits, check))
        lights.append(_rates(dataset, rates, hits, check))
        lights.extend(_changes(alarms, judged=hits.known or rates.known, advice=check))
    return lights


def _completeness(summary: Summary, resume: str) -> Requirement:
    found = f"{summary.done} of {summary.total} done, {summary.failed} failed, {summary.pending} pending"
    failed = tuple(Unit(item["exposure"], item["detector"]) for item in summary.failures)
    if not summary.failed and not summary.pending:
        return Requirement("Units", "pass", found, "all done")
    state: State = "fail" if summary.failed else "warn"
    return Requirement("Units", state, found, "all done", failed[:_LINKED], resume)


def _hits(dataset: xr.Dataset, expected: Expectation, check: str) -> Requirement:
    title, values = "Pixels hit [%]", 100 * dataset["cr_fraction"].values
    if not expected.known:
        return Requirement(title, "none", _span(values), "no expectation for this camera")
    side = compare_with_limits(values, dataset["n_cr_events"].values, expected)
    return _judged(title, dataset, values, side, expected, check)


def _rates(dataset: xr.Dataset, expected: Expectation, hits: Expectation, check: str) -> Requirement:
    title = "Cosmic-ray events [s⁻¹ cm⁻²]"
    if "cr_rate" not in dataset:
        return Requirement(title, "none", "unknown: the camera's TOML gives no pixel size")
    values = dataset["cr_rate"].values
    overlap = dataset["cr_fraction"].values > OVERLAP_FRACTION
    details: tuple[str, ...] = ()
    if overlap.any():
        sentence = (
            f"Units with more than {100 * OVERLAP_FRACTION:.0f} % of their pixels hit: {int(overlap.sum())}. Their "
            "events overlap and count as fewer: the rate is a lower limit and is not judged."
        )
        details = (sentence,)
    if not expected.known:
        reason = (
            "judged by the pixels hit: the recipe states no rate" if hits.known else "no expectation for this camera"
        )
        return Requirement(title, "none", _span(values), reason, details=details)
    judged = np.where(overlap, np.nan, values)
    side = compare_with_limits(judged, dataset["n_cr_events"].values, expected)
    light = _judged(title, dataset, judged, side, expected, check)
    return Requirement(light.title, light.state, _span(values), light.expected, light.units, light.advice, details)


def _judged(
    title: str, dataset: xr.Dataset, values: Float, side: npt.NDArray[np.int8], expected: Expectation, check: str
) -> Requirement:
    wanted = expected.sentence(values)
    if not (np.isfinite(values) & np.isfinite(expected.low)).any():
        return Requirement(title, "none", _span(values), wanted)
    if not side.any():
        return Requirement(title, "pass", _span(values), wanted)
    exposures, detectors = dataset["exposure"].values, dataset["detector"].values
    units = tuple(Unit(str(exposures[row]), int(detectors[column])) for row, column in np.argwhere(side))
    found = f"{_span(values)}; units above: {int((side > 0).sum())}, below: {int((side < 0).sum())}"
    return Requirement(title, "fail", found, wanted, units[:_LINKED], check)


def _changes(alarms: Sequence[Alarm], *, judged: bool, advice: str) -> list[Requirement]:
    """Return what differs within a run, or from the card of a model that was made for its detectors."""
    card = tuple(alarm.finding for alarm in alarms if alarm.what in {"detector", "date"})
    changes = tuple(alarm for alarm in alarms if alarm.what not in {"detector", "date"})
    lights = []
    if card:
        lights.append(Requirement("Model made for these units", "fail", f"deviations: {len(card)}", details=card))
    if changes:
        found = f"deviations from the run's first exposures, or from a card made for these detectors: {len(changes)}"
        # Rates differ from orbit to orbit: what a camera or a recipe expects of them has its own light.
        state: State = "warn" if judged and any(alarm.what != "rate" for alarm in changes) else "none"
        details = tuple(alarm.finding for alarm in changes)
        lights.append(Requirement("Rates and spectra within the run", state, found, "", (), advice, details))
    return lights


def _span(values: Float) -> str:
    known = values[np.isfinite(values)]
    if not known.size:
        return "unknown"
    low, middle, high = (float(value) for value in np.percentile(known, [0, 50, 100]))
    return f"{low:.3g} to {high:.3g}, median {middle:.3g}" if known.size > 1 else f"{middle:.3g}"
