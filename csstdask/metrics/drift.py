"""In orbit: whether a run's cosmic rays are still those that its model was made for.

Rates and spectra of what was detected are compared, exposure by exposure, with what the model's card expects or, where
the card says nothing, with the run's own beginning. What has drifted may be the sky's particles, the detectors or the
model; an alarm says where to look, and what to do.

Spectra are histograms in narrow logarithmic bins: a survey's worth is a few numbers an exposure, and a distance
between distributions that is taken at the bins' edges is short of the true one by less than a bin's content.
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

#: Of log10(charge [e-]) and log10(length [pixel]); what lies beyond counts in the outermost bins, as points do.
EDGES = {"charge": np.linspace(1.0, 6.5, 111), "length": np.linspace(-0.5, 3.0, 71)}
_UNITS = {"charge": "e-", "length": "pixel"}
#: What is significant: by how many sigma a rate is outside; of a distance the probability by chance, and the distance.
_RATE_SIGMA, _LEAST_P, _LEAST_DISTANCE = 3.0, 1e-3, 0.1
#: Rates may differ from those of a reference by this factor: orbits have quiet and busy parts.
_RATE_FACTOR = 1.5
#: The share of a run's exposures that is its own reference, where a card says nothing.
_REFERENCE_SHARE = 0.25
#: Quantiles that a card keeps of a spectrum, and how finely they are read.
_QUANTILES, _FINE = 51, 5001


@dataclass(frozen=True)
class Events:
    """Cosmic rays of a unit, or of several together."""

    n: int
    cm2_s: float
    """Area times time that they were gathered in; NaN: not known."""
    charge: Counts
    """Histogram over ``EDGES``, of the events whose charge is known."""
    length: Counts

    def __add__(self, other: Events) -> Events:
        return Events(
            self.n + other.n, self.cm2_s + other.cm2_s, self.charge + other.charge, self.length + other.length
        )

    @property
    def rate(self) -> float:
        """Return events/cm^2/s; NaN where area or time are not known."""
        return self.n / self.cm2_s if self.cm2_s > 0 else float("nan")

    @property
    def rate_err(self) -> float:
        """Return the rate's Poisson error; that of one event where there is none."""
        return float(np.sqrt(max(1, self.n))) / self.cm2_s if self.cm2_s > 0 else float("nan")


@dataclass(frozen=True)
class UnitEvents:
    """Cosmic rays of one unit."""

    exposure: str
    detector: int
    time: np.datetime64 | None
    events: Events


@dataclass(frozen=True)
class Alarm:
    """One thing that is not as expected."""

    exposure: str
    """The first that it is about."""
    what: str
    """``detector``, ``date``, ``rate``, ``charge`` or ``length``."""
    finding: str
    """What was found and what was expected."""
    sentence: str
    """The same with what to do."""


def pixel_area_cm2(instrument: Instrument) -> float:
    """Return the area of a pixel [cm^2]; NaN where the instrument does not say."""
    return float(np.prod(instrument.pixel_size)) * 1e-8 if instrument.pixel_size is not None else float("nan")


def count_events(charge: npt.NDArray[Any], length: npt.NDArray[Any], cm2_s: float) -> Events:
    """Count a table's events.

    Parameters
    ----------
    charge, length : float arrays (n,)
        [e-], [pixel]; NaN: not known.
    cm2_s : float
        Usable area times exposure time.
    """
    return Events(len(charge), cm2_s, _histogram(charge, EDGES["charge"]), _histogram(length, EDGES["length"]))


def _histogram(values: npt.NDArray[Any], edges: Float) -> Counts:
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    logarithm = np.log10(np.maximum(known, 10.0 ** edges[0]))
    return np.histogram(np.clip(logarithm, edges[0], edges[-1]), edges)[0].astype(np.int64)


def sum_by_exposure(units: Iterable[UnitEvents]) -> dict[str, Events]:
    """Return the cosmic rays of each exposure, all detectors together, in order of time."""
    together: dict[str, Events] = {}
    for unit in sorted(units, key=_when):
        before = together.get(unit.exposure)
        together[unit.exposure] = unit.events if before is None else before + unit.events
    return together


def _when(unit: UnitEvents) -> tuple[bool, Any, str]:
    return unit.time is None, 0 if unit.time is None else unit.time, unit.exposure


def rates(units: Iterable[UnitEvents]) -> dict[str, list[Any]]:
    """Return a table of the exposures, in order of time: ``n_events``, ``rate``, ``rate_err`` [events/cm^2/s]."""
    exposures = sum_by_exposure(units)
    return {
        "exposure": list(exposures),
        "n_events": [events.n for events in exposures.values()],
        "rate": [events.rate for events in exposures.values()],
        "rate_err": [events.rate_err for events in exposures.values()],
    }


def derive_expectations(exposures: Sequence[Events]) -> dict[str, Any]:
    """Return what some exposures lead to expect of others: a model card's `expects`."""
    expects: dict[str, Any] = {}
    known = [events.rate for events in exposures if np.isfinite(events.rate)]
    if known:
        expects["rate"] = [round(min(known) / _RATE_FACTOR, 4), round(max(known) * _RATE_FACTOR, 4)]
    for name, edges in EDGES.items():
        counts = np.sum([getattr(events, name) for events in exposures], axis=0)
        if counts.sum():
            reached = np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])
            # Where several edges have been reached by the same share, the last is where the next event lies.
            share, last = np.unique(reached[::-1], return_index=True)
            place = edges[::-1][last]
            place[-1] = edges[np.searchsorted(reached, 1.0)]
            quantiles = np.interp(np.linspace(0, 1, _QUANTILES), share, place)
            expects[f"log_{name}"] = np.round(quantiles, 3).tolist()
    return expects


def drift(
    units: Sequence[UnitEvents], card: ModelCard | None = None, *, advice: str = "look at its frames"
) -> tuple[Alarm, ...]:
    """Return what is not as a model's card, or a run's own beginning, leads to expect.

    Parameters
    ----------
    units : sequence of UnitEvents
    card : ModelCard, optional
        Of the model that found them. Where its `valid` or `expects` lack something, so do the alarms; for rate and
        spectra the first quarter of the exposures stands in.
    advice : str
        What to do, with a command; it ends each sentence.

    Notes
    -----
    A rate is outside by 3 sigma beyond the card's limits, or beyond 1.5 times those of the run's beginning. A
    spectrum differs by a Kolmogorov-Smirnov distance above 0.1 with a probability by chance below 0.001. Events
    that cross count as one, so that a higher rate alone makes spectra a little harder.
    """
    alarms = [*_validity(units, card, advice)] if card is not None else []
    exposures = sum_by_exposure(units)
    names = list(exposures)
    expects = card.expects if card is not None else {}
    first = names[: max(1, int(_REFERENCE_SHARE * len(names)))]
    own = derive_expectations([exposures[name] for name in first])
    beginning = f"from the run's first {f'{len(first)} exposures' if len(first) > 1 else 'exposure'}"
    title = "" if card is None else f"by the card of {card.name} {card.version}"
    for name, events in exposures.items():
        for key in ("rate", "log_charge", "log_length"):
            of_card = key in expects
            if not of_card and (key not in own or name in first):
                continue
            wanted = expects[key] if of_card else own[key]
            source = title if of_card else beginning
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
    """Yield an alarm for each detector that a card is not for, and one for dates."""
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
    """Return what is found and expected, or nothing where a rate is within its limits."""
    low, high = limits
    reach = _RATE_SIGMA * events.rate_err
    if not (events.rate - reach > high or events.rate + reach < low):
        return ""
    return f"found {events.rate:.3g} +- {events.rate_err:.2g} events/cm^2/s, expected {low:.3g} to {high:.3g}"


def _spectrum_differs(events: Events, name: str, quantiles: Sequence[float], reference: int | None) -> str:
    """Return what is found and expected, or nothing; `reference` is how many events the quantiles are of."""
    counts = _counts(events, name)
    distance, chance = spectrum_distance(counts, EDGES[name], quantiles, reference)
    if not (distance > _LEAST_DISTANCE and chance < _LEAST_P):
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
    """Return the Kolmogorov-Smirnov distance of a histogram from a distribution, and its probability by chance.

    Parameters
    ----------
    counts : int array (n,)
    edges : float array (n + 1,)
    quantiles : sequence of float
        Of the distribution, at evenly spaced shares from 0 to 1.
    reference : int, optional
        How many events the quantiles are of; by default they are known without error.
    """
    n = int(counts.sum())
    if n == 0 or reference == 0:
        return 0.0, 1.0
    fine = np.interp(np.linspace(0, 1, _FINE), np.linspace(0, 1, len(quantiles)), np.sort(quantiles))
    fine = np.clip(fine, edges[0], edges[-1])
    expected = np.histogram(fine, edges)[0].cumsum() / _FINE
    distance = float(np.abs(np.cumsum(counts) / n - expected).max())
    effective = n if reference is None else n * reference / (n + reference)
    return distance, float(kstwobign.sf(np.sqrt(effective) * distance))


def spectra(units: Iterable[UnitEvents]) -> Mapping[str, Counts]:
    """Return the histograms of charge and length of all units together, over ``EDGES``."""
    total: dict[str, Counts] = {name: np.zeros(len(edges) - 1, np.int64) for name, edges in EDGES.items()}
    for unit in units:
        for name, counts in total.items():
            total[name] = counts + getattr(unit.events, name)
    return total
