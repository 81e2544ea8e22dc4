"""Reference statistics of a model: rate and spectra of its detections, which `csstdask.metrics.drift` compares with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.cosmicray.detect import detect
from csstdask.cosmicray.events import measure_events
from csstdask.datasets.labelled_units import LabelledFrame, LabelledUnits
from csstdask.metrics.drift import UnitEvents, count_events, derive_expectations, pixel_area_cm2, sum_by_exposure
from csstdask.nn.card import read_card
from csstdask.nn.precision import Precision

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


def measure_disagreement(card: Path, units: LabelledUnits) -> dict[str, float]:
    """Measure the part of a model's detections that shorter arithmetic changes.

    Parameters
    ----------
    card : Path
        Path of the model card.
    units : LabelledUnits
        Units that the model did not learn from.

    Returns
    -------
    dict
        ``disagreement`` of a model card: pixels that are hit in one of both masks only, as a fraction of the pixels
        that are hit in float32.
    """
    names: tuple[Precision, ...] = ("bfloat16", "int8") if read_card(card).ranges else ("bfloat16",)
    changed, total = dict.fromkeys(names, 0), 0

    def hits(frame: LabelledFrame, precision: Precision) -> npt.NDArray[np.bool_]:
        found = detect(
            frame.data, frame.error, frame.ignore, model=str(card), precision=precision, release_straight=False
        )
        return np.asarray(found.mask)

    for index in _sample(units):
        frame = units.read(index)
        exact = hits(frame, "float32")
        total += int(exact.sum())
        for name in names:
            changed[name] += int((hits(frame, name) ^ exact).sum())
    return {name: round(count / max(1, total), 5) for name, count in changed.items()}


def validity_of(units: LabelledUnits) -> dict[str, Any]:
    """Return ``valid`` of a model card: the detectors of some units and, of real ones, their first day."""
    metadata = [units.metadata(index) for index in range(len(units))]
    valid: dict[str, Any] = {"detectors": sorted({one.detector for one in metadata})}
    days = [str(np.datetime_as_string(one.when, unit="D")) for one in metadata if one.when is not None]
    return valid | ({"from": min(days)} if days and units.truth == "labels" else {})


def _sample(units: LabelledUnits) -> list[int]:
    """Return the indices of at most `N_UNITS` units, evenly spread."""
    return [int(index) for index in np.unique(np.linspace(0, len(units) - 1, N_UNITS).astype(int))]


def _detect_events(card: Path, units: LabelledUnits) -> Iterator[UnitEvents]:
    """Yield the events that a model detects in `N_UNITS` units."""
    for index in _sample(units):
        metadata, frame = units.metadata(index), units.read(index)
        found = detect(frame.data, frame.error, frame.ignore, model=str(card), precision="float32")
        hit = np.asarray(found.mask)
        events = measure_events(hit, frame.data - frame.clean, frame.error**2)
        cm2 = float((~frame.ignore).sum()) * pixel_area_cm2(units.instrument)
        cm2_s = cm2 * metadata.exptime if metadata.exptime > 0 else float("nan")
        counts = count_events(events["charge"], events["length"], cm2_s)
        yield UnitEvents(metadata.exposure, metadata.detector, metadata.when, counts)
