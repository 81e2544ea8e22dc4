"""Show the cosmic rays of a run: rates, spectra, and the comparison with the flags of the input files."""

from __future__ import annotations

import numpy as np
import xarray as xr
from markupsafe import Markup

from csstdask.core.warnings import suppress_warnings
from csstdask.evaluation.io import format_number
from csstdask.evaluation.run_consistency import CosmicRayReview
from csstdask.evaluation.run_requirements import Expectation
from csstdask.metrics.drift import EDGES, spectra, sum_by_exposure
from csstdask.report.document import join, paragraphs, table
from csstdask.report.plots import plot_rates, plot_spectrum

_SPECTRUM_LABELS = {"charge": "charge of an event [electron]", "length": "length of an event [pixel]"}
_COLUMNS = (
    "detector", "events [s⁻¹ cm⁻²]", "pixels hit [%]", "hit [pixel]", "hit in the input flags [pixel]",
    "hit in both [pixel]", "share of the input flags [%]",
)  # fmt: skip
_NOTE = "An event is a set of hit pixels that touch. Cosmic-ray flags of the input files are compared and never used."


def show_cosmic_rays(dataset: xr.Dataset, review: CosmicRayReview, expected: Expectation) -> Markup:
    """Return spectra, rates over time, and a table by detector; empty without detected cosmic rays.

    Parameters
    ----------
    dataset : xarray.Dataset
        The run, with ``cr_rate`` where it is known.
    review : CosmicRayReview
    expected : Expectation
        Expected rates of events.
    """
    if "n_cr_pixels" not in dataset or not np.isfinite(dataset["n_cr_pixels"].values).any():
        return Markup()
    parts = []
    if review.every > 1:
        parts.append(paragraphs(f"Spectra of every {review.every}th exposure."))
    if review.units:
        parts.append(draw_spectra(review))
    if "cr_rate" in dataset and "time" in dataset.coords:
        limits = (float(expected.low.min()), float(expected.high.max())) if expected.known else None
        detectors = [int(detector) for detector in dataset["detector"].values]
        parts.append(plot_rates(dataset["time"].values, dataset["cr_rate"].values, detectors, limits))
    return join([*parts, _by_detector(dataset), _outside_training(dataset), paragraphs(_NOTE)])


def _outside_training(dataset: xr.Dataset) -> Markup:
    """Return how many units lie outside the range of the training of the detection model, if any does."""
    if "n_outside_training" not in dataset or not (count := int((dataset["n_outside_training"] > 0).sum())):
        return Markup("")
    return paragraphs(
        f"{count} units lie outside the range of the training of the detection model, in the correlation of their "
        "noise or the sharpness of their stars (see the table of units): look at their masks before you use them."
    )


def draw_spectra(review: CosmicRayReview) -> Markup:
    """Return the spectra of charge and length, the first deviating exposure drawn separately."""
    exposures, total = sum_by_exposure(review.units), spectra(review.units)
    drawings = []
    for name, label in _SPECTRUM_LABELS.items():
        curves = {"all": total[name]}
        deviating = next((alarm.exposure for alarm in review.alarms if alarm.what == name), None)
        if deviating is not None:
            curves[deviating] = getattr(exposures[deviating], name)
        drawings.append(plot_spectrum(name, EDGES[name], curves, label))
    return join(drawings)


def _by_detector(dataset: xr.Dataset) -> Markup:
    """Return rates and counts of hit pixels by detector, and how they compare with the flags of the input files."""
    summed = {
        name: dataset[name].sum("exposure", skipna=True).values
        for name in ("n_cr_pixels", "n_cr_input_pixels", "n_cr_both_pixels")
    }
    with suppress_warnings():  # the mean of a detector without units is NaN
        fraction = 100 * dataset["cr_fraction"].mean("exposure", skipna=True).values
        rate = np.full_like(fraction, np.nan)
        if "cr_rate" in dataset:
            rate = dataset["cr_rate"].mean("exposure", skipna=True).values
    rows = []
    for column, detector in enumerate(dataset["detector"].values):
        if not np.isfinite(fraction[column]):
            continue
        detected, flagged, both = (float(values[column]) for values in summed.values())
        confirmed = 100 * both / flagged if flagged else np.nan
        values = (rate[column], fraction[column], detected, flagged, both, confirmed)
        rows.append([str(detector), *map(format_number, values)])
    return table(_COLUMNS, rows)
