"""Check whether a run meets its requirements: it is complete, and its cosmic rays are as expected.

The fraction of hit pixels is checked first. Where it is large, events overlap and fewer are counted, so the worst
frames have the lowest rates: these rates are shown, but not checked. The expectation comes from the recipe of a mock
survey, or from the table ``expectations`` in the TOML file of the camera. Without an expectation, values are only
shown.
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

#: Fraction of hit pixels above which rates are not checked: more than half of the events touch another.
OVERLAP_FRACTION = 0.2
#: Deviation beyond the limits that is allowed for counting statistics [sigma].
_MAX_SIGMA = 3.0
#: Of a mock, the share of pixels that is detected as hit, divided by the share with charge: faint charge is not
#: detected, and a mask may be wider than the charge.
_MOCK_FACTORS = (0.5, 1.5)
#: Units that are linked to a requirement.
_MAX_LINKED = 12


@dataclass(frozen=True)
class Expectation:
    """Limits of one quantity for each unit."""

    low: Float
    """(exposure, detector) Lower limit; NaN without expectation."""
    high: Float
    """(exposure, detector) Upper limit."""
    source: str
    """Origin of the limits, for the report."""

    @property
    def known(self) -> bool:
        """Return whether any unit has an expectation."""
        return bool(np.isfinite(self.low).any())

    def sentence(self, values: Float) -> str:
        """Return the limits of the units with a value, and their origin, as text."""
        use = np.isfinite(values) & np.isfinite(self.low)
        if not use.any():
            return self.source
        low, high = (format_number(float(limit)) for limit in (self.low[use].min(), self.high[use].max()))
        return f"{low} to {high} ({self.source})"


@dataclass(frozen=True)
class Requirement:
    """One requirement, and whether the run meets it."""

    title: str
    state: State
    found: str
    expected: str = ""
    units: tuple[Unit, ...] = ()
    """The first units that do not meet it."""
    advice: str = ""
    """A command that helps to find the cause."""
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
    """Return the expectations of a camera; older campaigns of built-in cameras get the present ones."""
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
    """Compare values with their expected limits.

    Parameters
    ----------
    values : float64 array (exposure, detector)
    counts : float64 array (exposure, detector)
        Number of events that each value is derived from; its error is ``value / sqrt(counts)``.
    expected : Expectation

    Returns
    -------
    int8 array (exposure, detector)
        -1: below the limits by more than three sigma of counting statistics; 1: above them; 0: neither, or unknown.
    """
    with np.errstate(invalid="ignore"):
        slack = _MAX_SIGMA * values / np.sqrt(np.maximum(counts, 1.0))
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
    """Check the requirements of a run.

    Parameters
    ----------
    dataset : xarray.Dataset
        The run, with ``cr_rate`` where it is known.
    summary : Summary
    alarms : sequence of Alarm
        Of `csstdask.metrics.drift.find_drift`.
    hits, rates : Expectation
        See `expected_hits` and `expected_rates`.
    run : Path
    resume : sequence of str
        Commands that resume the run.
    """
    requirements = [_completeness(summary, "; ".join(resume))]
    if "cr_fraction" in dataset:
        check = shlex.join(["csstdask", "evaluate", "cosmicray", "--run", str(run), "--to", f"{run.stem}_check"])
        requirements.append(_hits(dataset, hits, check))
        requirements.append(_rates(dataset, rates, hits, check))
        requirements.extend(_changes(alarms, checked=hits.known or rates.known, advice=check))
    return requirements


def _completeness(summary: Summary, resume: str) -> Requirement:
    found = f"{summary.done} of {summary.total} done, {summary.failed} failed, {summary.pending} pending"
    failed = tuple(Unit(item["exposure"], item["detector"]) for item in summary.failures)
    if not summary.failed and not summary.pending:
        return Requirement("Units", "pass", found, "all done")
    state: State = "fail" if summary.failed else "warn"
    return Requirement("Units", state, found, "all done", failed[:_MAX_LINKED], resume)


def _hits(dataset: xr.Dataset, expected: Expectation, check: str) -> Requirement:
    title, values = "Pixels hit [%]", 100 * dataset["cr_fraction"].values
    if not expected.known:
        return Requirement(title, "none", _span(values), "no expectation for this camera")
    side = compare_with_limits(values, dataset["n_cr_events"].values, expected)
    return _checked(title, dataset, values, side, expected, check)


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
            "events overlap and count as fewer: the rate is a lower limit and is not checked."
        )
        details = (sentence,)
    if not expected.known:
        reason = "see the pixels hit: the recipe states no rate" if hits.known else "no expectation for this camera"
        return Requirement(title, "none", _span(values), reason, details=details)
    checked = np.where(overlap, np.nan, values)
    side = compare_with_limits(checked, dataset["n_cr_events"].values, expected)
    requirement = _checked(title, dataset, checked, side, expected, check)
    return Requirement(
        requirement.title,
        requirement.state,
        _span(values),
        requirement.expected,
        requirement.units,
        requirement.advice,
        details,
    )


def _checked(
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
    return Requirement(title, "fail", found, wanted, units[:_MAX_LINKED], check)


def _changes(alarms: Sequence[Alarm], *, checked: bool, advice: str) -> list[Requirement]:
    """Return the deviations within a run, and from the card of a model made for its detectors."""
    card = tuple(alarm.finding for alarm in alarms if alarm.what in {"detector", "date"})
    changes = tuple(alarm for alarm in alarms if alarm.what not in {"detector", "date"})
    requirements = []
    if card:
        requirements.append(Requirement("Model made for these units", "fail", f"deviations: {len(card)}", details=card))
    if changes:
        found = f"deviations from the run's first exposures, or from a card made for these detectors: {len(changes)}"
        # Rates vary from orbit to orbit; their expectation is a separate requirement.
        state: State = "warn" if checked and any(alarm.what != "rate" for alarm in changes) else "none"
        details = tuple(alarm.finding for alarm in changes)
        requirements.append(Requirement("Rates and spectra within the run", state, found, "", (), advice, details))
    return requirements


def _span(values: Float) -> str:
    known = values[np.isfinite(values)]
    if not known.size:
        return "unknown"
    low, middle, high = (float(value) for value in np.percentile(known, [0, 50, 100]))
    return f"{low:.3g} to {high:.3g}, median {middle:.3g}" if known.size > 1 else f"{middle:.3g}"
