"""Reference statistics of a model: rate and spectra of its detections, which `csstdask.metrics.drift` compares with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from csstdask.cosmicray.detect import detect
from csstdask.cosmicray.events import measure_events
from csstdask.datasets.labelled_units import LabelledUnits
from csstdask.metrics.drift import UnitEvents, count_events, derive_expectations, pixel_area_cm2, sum_by_exposure

#: Number of units that are measured, evenly spread.
N_UNITS = 12


def measure_reference_statistics(card: Path, units: LabelledUnits) -> dict[str, Any]:
    """Measure the rate and the spectra of a model's detections in labelled units.

    Parameters
    ----------
    card : Path
        Path of the model card.
    units : LabelledUnits
        Units that the model did not learn from.

    Returns
    -------
    dict
        ``expects`` of a model card.
    """
    return derive_expectations(list(sum_by_exposure(_detect_events(card, units)).values()))


def validity_of(units: LabelledUnits) -> dict[str, Any]:
    """Return ``valid`` of a model card: the detectors of some units and, of real ones, their first day."""
    metadata = [units.metadata(index) for index in range(len(units))]
    valid: dict[str, Any] = {"detectors": sorted({one.detector for one in metadata})}
    days = [str(np.datetime_as_string(one.when, unit="D")) for one in metadata if one.when is not None]
    return valid | ({"from": min(days)} if days and units.truth == "labels" else {})


def _detect_events(card: Path, units: LabelledUnits) -> Iterator[UnitEvents]:
    """Yield the events that a model detects in `N_UNITS` units."""
    for index in np.unique(np.linspace(0, len(units) - 1, N_UNITS).astype(int)):
        metadata, frame = units.metadata(index), units.read(index)
        hit = np.asarray(detect(frame.data, frame.error, frame.ignore, model=str(card)).mask)
        events = measure_events(hit, frame.data - frame.clean, frame.error**2)
        cm2 = float((~frame.ignore).sum()) * pixel_area_cm2(units.instrument)
        cm2_s = cm2 * metadata.exptime if metadata.exptime > 0 else float("nan")
        counts = count_events(events["charge"], events["length"], cm2_s)
        yield UnitEvents(metadata.exposure, metadata.detector, metadata.when, counts)
