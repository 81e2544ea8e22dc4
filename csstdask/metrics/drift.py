"""Detect whether the cosmic rays of a run differ from those that its model was trained for.

The rates and spectra of the detected events are compared, exposure by exposure, with the expectation on the model card.
Where the card has none, they are compared with the first exposures of the run. The cause of a drift may be the particle
environment, the detectors or the model; an alarm names the exposure and what to do.

Spectra are histograms in narrow logarithmic bins, so an exposure is described by few numbers. A Kolmogorov-Smirnov
distance that is evaluated at the bin edges is smaller than the exact one by less than the content of one bin.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import kstwobign

from csstdask.instrument import Instrument
from csstdask.nn.card import ModelCard

Counts = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]

#: Bin edges of log10(charge [e-]) and log10(length [pixel]); the outermost bins include all values beyond them.
EDGES = {"charge": np.linspace(1.0, 6.5, 111), "length": np.linspace(-0.5, 3.0, 71)}
_UNITS = {"charge": "e-", "length": "pixel"}
#: Significance at which a rate is outside its limits [sigma].
_RATE_SIGMA = 3.0
#: Largest chance probability, and smallest Kolmogorov-Smirnov distance, of a deviating spectrum.
_MAX_P_VALUE, _MIN_DISTANCE = 1e-3, 0.1
#: Factor by which rates may differ from the reference: the particle flux varies along the orbit.
_RATE_FACTOR = 1.5
#: Fraction of the exposures of a run that serve as reference where a card has no expectation.
_REFERENCE_FRACTION = 0.25
#: Number of quantiles of a spectrum on a card, and number of points at which they are interpolated.
_QUANTILES, _INTERPOLATED = 51, 5001


@dataclass(frozen=True)
class Events:
    """Number and spectra of the cosmic-ray events of one or several units."""

    n: int
    cm2_s: float
    """Usable area times exposure time [cm2 s]; NaN where unknown."""
    charge: Counts
    """Histogram of the charge in the bins ``EDGES["charge"]``; events of unknown charge are not counted."""
    length: Counts
    """Histogram of the length in the bins ``EDGES["length"]``."""

    def __add__(self, other: Events) -> Events:
        return Events(
            self.n + other.n, self.cm2_s + other.cm2_s, self.charge + other.charge, self.length + other.length
        )

    @property
    def rate(self) -> float:
        """Return the rate [events/cm^2/s]; NaN where area or time are unknown."""
        return self.n / self.cm2_s if self.cm2_s > 0 else float("nan")

    @property
    def rate_err(self) -> float:
        """Return the Poisson error of the rate; without events, that of one event."""
        return float(np.sqrt(max(1, self.n))) / self.cm2_s if self.cm2_s > 0 else float("nan")


@dataclass(frozen=True)
class UnitEvents:
    """Cosmic-ray events of one unit."""

    exposure: str
    detector: int
    time: np.datetime64 | None
    events: Events


@dataclass(frozen=True)
class Alarm:
    """One deviation from the expectation."""

    exposure: str
    """First exposure that deviates."""
    what: str
    """Quantity that deviates: ``detector``, ``date``, ``rate``, ``charge`` or ``length``."""
    finding: str
    """Sentence with the measured and the expected value."""
    sentence: str
    """The finding, followed by what to do."""


def pixel_area_cm2(instrument: Instrument) -> float:
    """Return the area of a pixel [cm^2]; NaN if the instrument has no pixel size."""
    return float(np.prod(instrument.pixel_size)) * 1e-8 if instrument.pixel_size is not None else float("nan")


def count_events(charge: npt.NDArray[Any], length: npt.NDArray[Any], cm2_s: float) -> Events:
    """Count the events of a table.

    Parameters
    ----------
    charge, length : float arrays (n,)
        Charge [e-] and length [pixel] of the events; NaN where unknown.
    cm2_s : float
        Usable area times exposure time [cm2 s].
    """
    return Events(len(charge), cm2_s, _histogram(charge, EDGES["charge"]), _histogram(length, EDGES["length"]))


def _histogram(values: npt.NDArray[Any], edges: Float) -> Counts:
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    logarithm = np.log10(np.maximum(known, 10.0 ** edges[0]))
    return np.histogram(np.clip(logarithm, edges[0], edges[-1]), edges)[0].astype(np.int64)


def sum_by_exposure(units: Iterable[UnitEvents]) -> dict[str, Events]:
    """Return the events of each exposure, summed over its detectors, in order of time."""
    together: dict[str, Events] = {}
    for unit in sorted(units, key=_when):
        before = together.get(unit.exposure)
        together[unit.exposure] = unit.events if before is None else before + unit.events
    return together


def _when(unit: UnitEvents) -> tuple[bool, Any, str]:
    return unit.time is None, 0 if unit.time is None else unit.time, unit.exposure


def rates(units: Iterable[UnitEvents]) -> dict[str, list[Any]]:
    """Return columns ``exposure``, ``n_events``, ``rate`` and ``rate_err`` [events/cm^2/s], in order of time."""
    exposures = sum_by_exposure(units)
    return {
        "exposure": list(exposures),
        "n_events": [events.n for events in exposures.values()],
        "rate": [events.rate for events in exposures.values()],
        "rate_err": [events.rate_err for events in exposures.values()],
    }


def derive_expectations(exposures: Sequence[Events]) -> dict[str, Any]:
    """Derive the expectation for a model card from reference exposures.

    Parameters
    ----------
    exposures : sequence of Events
        Events of each reference exposure.

    Returns
    -------
    dict
        ``rate``, lower and upper limit [events/cm^2/s]; ``log_charge`` and ``log_length``, quantiles of the spectra at
        51 equidistant probabilities. Quantities that are unknown are absent.
    """
    expects: dict[str, Any] = {}
    known = [events.rate for events in exposures if np.isfinite(events.rate)]
    if known:
        expects["rate"] = [round(min(known) / _RATE_FACTOR, 4), round(max(known) * _RATE_FACTOR, 4)]
    for name, edges in EDGES.items():
        counts = np.sum([getattr(events, name) for events in exposures], axis=0)
        if counts.sum():
            reached = np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])
            # Of several edges with the same cumulative fraction, the last is the lower edge of the next event's bin.
            share, last = np.unique(reached[::-1], return_index=True)
            place = edges[::-1][last]
            place[-1] = edges[np.searchsorted(reached, 1.0)]
            quantiles = np.interp(np.linspace(0, 1, _QUANTILES), share, place)
            expects[f"log_{name}"] = np.round(quantiles, 3).tolist()
    return expects


def find_drift(
    units: Sequence[UnitEvents], card: ModelCard | None = None, *, advice: str = "look at its frames"
) -> tuple[Alarm, ...]:
    """Return deviations from a model card, or from the first exposures of the run.

    Parameters
    ----------
    units : sequence of UnitEvents
    card : ModelCard, optional
        Card of the model that detected the events. Detectors and dates are checked if its `valid` has them. Rates and
        spectra that are not in its `expects` are compared with the first quarter of the exposures.
    advice : str
        Advice with a command; appended to each finding.

    Notes
    -----
    A rate deviates if it is 3 sigma outside the limits of the card, or outside those of the reference exposures
    extended by a factor of 1.5. A spectrum deviates if its Kolmogorov-Smirnov distance is above 0.1 and the chance
    probability of that distance below 0.001. Events that overlap count as one, so a higher rate alone makes spectra
    slightly harder.
    """
    alarms = [*_validity(units, card, advice)] if card is not None else []
    exposures = sum_by_exposure(units)
    names = list(exposures)
    expects = card.expects if card is not None else {}
    first = names[: max(1, int(_REFERENCE_FRACTION * len(names)))]
    own = derive_expectations([exposures[name] for name in first])
    source_of_run = f"from the run's first {f'{len(first)} exposures' if len(first) > 1 else 'exposure'}"
    title = "" if card is None else f"by the card of {card.name} {card.version}"
    for name, events in exposures.items():
        for key in ("rate", "log_charge", "log_length"):
            of_card = key in expects
            if not of_card and (key not in own or name in first):
                continue
            wanted = expects[key] if of_card else own[key]
            source = title if of_card else source_of_run
            if key == "rate":
                sentence = _rate_outside(events, wanted)
            else:
                reference = None if of_card else sum(int(_counts(exposures[one], key).sum()) for one in first)
                sentence = _spectrum_differs(events, key.removeprefix("log_"), wanted, reference)
            if sentence:
                finding = f"exposure {name}: {sentence} {source}"
                alarms.append(Alarm(name, key.removeprefix("log_"), finding, f"{finding}: {advice}"))
    return tuple(alarms)


def _counts(events: Events, key: str) -> Counts:
    return np.asarray(getattr(events, key.removeprefix("log_")))


def _validity(units: Sequence[UnitEvents], card: ModelCard, advice: str) -> Iterable[Alarm]:
    """Yield an alarm for each detector that a card does not list, and one for dates outside its range."""
    ordered = sorted(units, key=_when)
    known = card.valid.get("detectors")
    if known is not None:
        for detector in sorted({unit.detector for unit in units} - set(known)):
            name, more = _first_and_more(unit.exposure for unit in ordered if unit.detector == detector)
            expected = f"expected one of {', '.join(map(str, known))} by the card of {card.name} {card.version}"
            finding = f"exposure {name}{more}: found detector {detector}, {expected}"
            yield Alarm(name, "detector", finding, f"{finding}: {advice}")
    for key, word in (("from", "not before"), ("until", "before")):
        if key not in card.valid:
            continue
        limit = np.datetime64(card.valid[key])
        late = [
            unit
            for unit in ordered
            if unit.time is not None and ((unit.time < limit) if key == "from" else (unit.time >= limit))
        ]
        if late:
            name, more = _first_and_more(unit.exposure for unit in late)
            day = np.datetime_as_string(late[0].time, "D")  # type: ignore[call-overload]
            expected = f"expected a date {word} {limit} by the card of {card.name} {card.version}"
            finding = f"exposure {name}{more}: found the date {day}, {expected}"
            yield Alarm(name, "date", finding, f"{finding}: {advice}")


def _first_and_more(exposures: Iterable[str]) -> tuple[str, str]:
    names = list(dict.fromkeys(exposures))
    return names[0], f" and {len(names) - 1} more" if len(names) > 1 else ""


def _rate_outside(events: Events, limits: Sequence[float]) -> str:
    """Return a sentence about a rate outside its limits; empty if it is within them."""
    low, high = limits
    reach = _RATE_SIGMA * events.rate_err
    if not (events.rate - reach > high or events.rate + reach < low):
        return ""
    return f"found {events.rate:.3g} +- {events.rate_err:.2g} events/cm^2/s, expected {low:.3g} to {high:.3g}"


def _spectrum_differs(events: Events, name: str, quantiles: Sequence[float], reference: int | None) -> str:
    """Return a sentence about a deviating spectrum, else an empty one; `reference`: see `spectrum_distance`."""
    counts = _counts(events, name)
    distance, chance = spectrum_distance(counts, EDGES[name], quantiles, reference)
    if not (distance > _MIN_DISTANCE and chance < _MAX_P_VALUE):
        return ""
    median = 10 ** float(np.interp(0.5, np.cumsum(counts) / counts.sum(), EDGES[name][1:]))
    wanted = 10 ** float(np.interp(0.5, np.linspace(0, 1, len(quantiles)), quantiles))
    unit = _UNITS[name]
    return (
        f"found {name}s about {median:.3g} {unit} (Kolmogorov-Smirnov distance {distance:.2f}, p = {chance:.1g}), "
        f"expected about {wanted:.3g} {unit}"
    )


def spectrum_distance(
    counts: Counts, edges: Float, quantiles: Sequence[float], reference: int | None = None
) -> tuple[float, float]:
    """Return the Kolmogorov-Smirnov distance of a histogram from a distribution, and its p-value.

    Parameters
    ----------
    counts : int array (n,)
        Histogram.
    edges : float array (n + 1,)
        Bin edges of the histogram.
    quantiles : sequence of float
        Quantiles of the distribution at equidistant probabilities from 0 to 1.
    reference : int, optional
        Number of events that the quantiles were derived from; by default they are exact.
    """
    n = int(counts.sum())
    if n == 0 or reference == 0:
        return 0.0, 1.0
    fine = np.interp(np.linspace(0, 1, _INTERPOLATED), np.linspace(0, 1, len(quantiles)), np.sort(quantiles))
    fine = np.clip(fine, edges[0], edges[-1])
    expected = np.histogram(fine, edges)[0].cumsum() / _INTERPOLATED
    distance = float(np.abs(np.cumsum(counts) / n - expected).max())
    effective = n if reference is None else n * reference / (n + reference)
    return distance, float(kstwobign.sf(np.sqrt(effective) * distance))


def spectra(units: Iterable[UnitEvents]) -> Mapping[str, Counts]:
    """Return the histograms of charge and length, summed over all units, in the bins ``EDGES``."""
    total: dict[str, Counts] = {name: np.zeros(len(edges) - 1, np.int64) for name, edges in EDGES.items()}
    for unit in units:
        for name, counts in total.items():
            total[name] = counts + getattr(unit.events, name)
    return total
