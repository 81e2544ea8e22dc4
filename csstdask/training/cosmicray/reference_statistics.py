"""What a model was made for, and what it finds there: the part of its card that `monitor` compares runs with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from csstdask.cosmicray.detect import detect
from csstdask.cosmicray.events import measure_events
from csstdask.datasets.labelled_units import LabelledUnits
from csstdask.metrics.drift import UnitEvents, count_events, derive_expectations, pixel_area_cm2, sum_by_exposure

#: How many units are looked at, evenly spread.
_UNITS = 12


def measure_reference_statistics(card: Path, units: LabelledUnits) -> dict[str, Any]:
    """Return the rate and the spectra of what a model finds in units whose cosmic rays are known: `expects` of a card.

    Parameters
    ----------
    card : Path
        Of the model.
    units : KnownUnits
        None that it learnt from.
    """
    return derive_expectations(list(sum_by_exposure(_found(card, units)).values()))


def validity_of(units: LabelledUnits) -> dict[str, Any]:
    """Return `valid` of a card: detectors of the units that a model was made from, and of real ones the first day."""
    metadata = [units.metadata(index) for index in range(len(units))]
    valid: dict[str, Any] = {"detectors": sorted({one.detector for one in metadata})}
    days = [str(np.datetime_as_string(one.when, unit="D")) for one in metadata if one.when is not None]
    return valid | ({"from": min(days)} if days and units.truth == "labels" else {})


def _found(card: Path, units: LabelledUnits) -> Iterator[UnitEvents]:
    for index in np.unique(np.linspace(0, len(units) - 1, _UNITS).astype(int)):
        metadata, frame = units.metadata(index), units.read(index)
        hit = np.asarray(detect(frame.data, frame.error, frame.ignore, model=str(card)).mask)
        events = measure_events(hit, frame.data - frame.clean, frame.error**2)
        cm2 = float((~frame.ignore).sum()) * pixel_area_cm2(units.instrument)
        cm2_s = cm2 * metadata.exptime if metadata.exptime > 0 else float("nan")
        yield UnitEvents(
            metadata.exposure, metadata.detector, metadata.when, count_events(events["charge"], events["length"], cm2_s)
        )
