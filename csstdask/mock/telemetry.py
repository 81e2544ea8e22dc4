"""Throughput that follows the conditions of an exposure, and the telemetry that reports them.

An offset (zero point minus nominal) is the sum of four parts:

* explained: a smooth function of the true conditions, `explained_offset`;
* walk: a random walk, which stands for everything slow that no sensor measures;
* jumps: steps at decontaminations, beyond what the reported thickness of ice explains, and at other times;
* white: independent from exposure to exposure.

Arrays are over the exposures of one survey, in time order. What is drawn for exposure i does not depend on how many
exposures are asked for: every kind of draw has a stream of its own, which is read in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.schedule import LAUNCH
from csstdask.mock.zeropoint_settings import Response, Survey, ZeroPoints

Float = npt.NDArray[np.float64]

CHANNELS = (
    "detector_temperature", "focus", "jitter", "earth_limb_angle", "sun_angle", "background", "days_since_launch",
    "contamination",
)  # fmt: skip
"""Names of the telemetry."""
CHANNEL_UNITS = ("K", "um", "arcsec", "deg", "deg", "electron s-1 pixel-1", "d", "nm")

YEAR = 365.25
"""[d]"""
_J2000 = np.datetime64("2000-01-01T12:00:00", "us")
_DAY = 86400.0
"""[s]"""
_LATEST = 100.0
"""No survey lasts longer [yr]."""


def days_since_2000(time: np.datetime64 | npt.NDArray[np.datetime64]) -> Float:
    """Return days since J2000 (12:00 UTC on 2000-01-01; leap seconds are ignored).

    Examples
    --------
    >>> float(days_since_2000(np.datetime64("2000-01-03T00:00:00")))
    1.5
    """
    return np.asarray((time - _J2000) / np.timedelta64(1, "s") / _DAY, dtype=np.float64)


LAUNCH_DAYS = float(days_since_2000(LAUNCH))
"""Launch in days since J2000."""


@dataclass(frozen=True)
class Throughput:
    """Parts of the zero point's offset from nominal, each (n,) [mag]."""

    explained: Float
    walk: Float
    jumps: Float
    white: Float

    @property
    def offset(self) -> Float:
        """Return the sum of the parts (n,)."""
        return self.explained + self.walk + self.jumps + self.white


def survey_days(settings: ZeroPoints, name: str, seed: int, n: int) -> Float:
    """Return when the first n exposures of a survey begin [days since J2000].

    A visit is `visit` exposures of one field, `cadence` apart. The time from visit to visit scatters by half of its
    mean, as slews, the South Atlantic anomaly and occultations have it; the mean fills the survey's years.
    """
    survey = settings.survey(name)
    visit, within = np.divmod(np.arange(n), survey.visit)
    mean = survey.years * YEAR * survey.visit / survey.exposures
    rng = stream(seed, Purpose.ZEROPOINT_SCHEDULE, settings.number(name))
    gaps = mean * rng.uniform(0.5, 1.5, -(-n // survey.visit))
    start = LAUNCH_DAYS + survey.start * YEAR + np.cumsum(gaps)
    return np.asarray(start[visit] + within * survey.cadence / _DAY)


def decontaminations(settings: ZeroPoints, name: str, seed: int) -> Float:
    """Return when a survey's camera is decontaminated [days since J2000], for longer than any survey lasts."""
    low, high = settings.conditions.decontamination
    rng = stream(seed, Purpose.DECONTAMINATION, settings.number(name))
    gaps = rng.uniform(low, high, int(_LATEST * YEAR / low) + 1)
    # The first may follow launch at once: the phase of a cycle in which a survey begins is random.
    gaps[0] *= rng.random()
    return np.asarray(LAUNCH_DAYS + np.cumsum(gaps))


def true_conditions(settings: ZeroPoints, name: str, seed: int, days: Float, *, lag: float = 0.0) -> dict[str, Float]:
    """Return the true conditions of a survey's first exposures.

    Parameters
    ----------
    settings : ZeroPoints
    name : str
        Of the survey.
    seed : int
    days : array (n,)
        When the exposures begin, ascending [days since J2000].
    lag : float
        What varies with time is that of `lag` earlier [min]; what varies from exposure to exposure stays.

    Returns
    -------
    mapping of the names of `CHANNELS` to arrays (n,)
    """
    now, survey, number = settings.conditions, settings.survey(name), settings.number(name)
    n = len(days)
    time = np.asarray(days, dtype=np.float64) - lag / 1440.0
    years = (time - LAUNCH_DAYS) / YEAR
    orbit = 2 * np.pi * np.mod(time * 1440.0 / now.orbit, 1.0)
    late = np.clip(((years - survey.start) / survey.years - now.late_from) / (1 - now.late_from + 1e-9), 0, None)
    phases = stream(seed, Purpose.CONDITIONS, number, 0).uniform(0, 2 * np.pi, 5)
    limb_middle, limb_swing, limb_phase, sun_offset, sky = _field_conditions(survey, number, seed, n)
    scatter = stream(seed, Purpose.CONDITIONS, number, 1).normal(size=(n, 2))

    # From 15 deg, where exposures are not allowed to be, to 110 deg: the range of a low orbit.
    limb = np.clip(limb_middle + limb_swing * np.sin(orbit + limb_phase), 15.0, None)
    sun = np.clip(95 + 30 * np.sin(2 * np.pi * years + phases[0]) + sun_offset, 50.0, 175.0)
    temperature = now.temperature + now.temperature_orbit * np.sin(orbit + phases[1])
    temperature += now.temperature_year * np.sin(2 * np.pi * years + phases[2])
    temperature += now.temperature_slow * np.sin(2 * np.pi * years * YEAR / 210 + phases[3])
    temperature += now.late_temperature * late
    focus = now.focus_slope * (temperature - now.temperature)
    focus += now.focus_slow * np.sin(2 * np.pi * years * YEAR / 160 + phases[4]) + now.focus_scatter * scatter[:, 0]
    # Zodiacal light falls with the distance from the Sun, scattered light with that from the Earth's limb.
    background = now.background * (0.75 + 0.6 * np.exp((50 - sun) / 40) + 1.2 * np.exp((15 - limb) / 15))
    background *= np.exp(sky) * (1 + now.late_background * late)
    return {
        "detector_temperature": temperature,
        "focus": focus,
        "jitter": now.jitter * np.exp(now.jitter_scatter * scatter[:, 1]),
        "earth_limb_angle": limb,
        "sun_angle": sun,
        "background": background,
        "days_since_launch": time - LAUNCH_DAYS,
        "contamination": _contamination(settings, name, seed, time),
    }


def _field_conditions(survey: Survey, number: int, seed: int, n: int) -> Float:
    """Return what the pointing decides, the same for a visit (5, n).

    The middle, swing and phase of the Earth-limb angle over an orbit, an offset of the Sun angle, and the natural log
    of a factor on the background.
    """
    visit = np.arange(n) // survey.visit
    rng = stream(seed, Purpose.ZEROPOINT_FIELD, number)
    uniform = rng.random((-(-n // survey.visit), 5))[visit].T
    return np.stack(
        [
            40 + 35 * uniform[0],
            10 + 20 * uniform[1],
            2 * np.pi * uniform[2],
            50 * (uniform[3] - 0.5),
            0.2 * (uniform[4] - 0.5),
        ]
    )


def _contamination(settings: ZeroPoints, name: str, seed: int, time: Float) -> Float:
    """Return the thickness of ice: saturating growth from what the last decontamination left [nm]."""
    now = settings.conditions
    cycle, since = _cycle(decontaminations(settings, name, seed), time)
    rng = stream(seed, Purpose.DECONTAMINATION, settings.number(name), 1)
    rest, strength = rng.random((cycle.max(initial=0) + 1, 2))[cycle].T
    # Outgassing slows down over the mission and differs from cycle to cycle by up to 15 %.
    limit = now.contamination * (0.85 + 0.3 * strength)
    rest = 0.1 * limit * rest
    return np.asarray(rest + (limit - rest) * -np.expm1(-since / now.contamination_days))


def _cycle(events: Float, time: Float) -> tuple[npt.NDArray[np.int64], Float]:
    """Return how many events came before each time, and the time since the last one (or since launch) [d]."""
    cycle = np.searchsorted(events, time, side="right")
    last = np.concatenate([[LAUNCH_DAYS], events])[cycle]
    return cycle.astype(np.int64), np.maximum(time - last, 0.0)


def explained_offset(settings: ZeroPoints, response: Response, conditions: Mapping[str, Float]) -> Float:
    """Return the part of the offset that the true conditions decide (n,) [mag].

    With t = T - nominal [K], f = focus / 10 um, j = ln(jitter / nominal), b = ln(background / nominal), e the
    Earth-limb and s the Sun angle, c the thickness of ice and a the age in years:

        - contamination c (1 + contamination_cold t) + temperature t + temperature_square t^2
        - (focus + focus_jitter j) f^2 - jitter j - limb exp((15 deg - e) / limb_scale) (1 + t / 4)
        + sun cos(s) + background b - ageing a

    The sizes give each term a scatter of 2 to 20 mmag and the sum one of 20 to 40 mmag: what a space telescope
    without an atmosphere loses and regains between decontaminations. The products (ice and temperature, focus and
    jitter, limb and temperature) are there so that a linear model is not enough: it leaves 3 to 6 mmag. They are
    invented.
    """
    nominal = settings.conditions
    t = conditions["detector_temperature"] - nominal.temperature
    f = conditions["focus"] / 10
    j = np.log(conditions["jitter"] / nominal.jitter)
    b = np.log(conditions["background"] / nominal.background)
    age = conditions["days_since_launch"] / YEAR
    near = np.exp((15.0 - conditions["earth_limb_angle"]) / response.limb_scale)
    offset = -response.contamination * conditions["contamination"] * (1 + response.contamination_cold * t)
    offset += response.temperature * t + response.temperature_square * t**2
    offset -= (response.focus + response.focus_jitter * j) * f**2 + response.jitter * j
    offset -= response.limb * near * (1 + t / 4)
    offset += response.sun * np.cos(np.radians(conditions["sun_angle"])) + response.background * b
    return np.asarray(offset - response.ageing * age)


def throughput(
    settings: ZeroPoints, name: str, seed: int, days: Float, conditions: Mapping[str, Float] | None = None
) -> Throughput:
    """Return the parts of the offset of a survey's first exposures.

    Parameters
    ----------
    settings : ZeroPoints
    name : str
        Of the survey.
    seed : int
    days : array (n,)
        When the exposures begin, ascending [days since J2000].
    conditions : mapping, optional
        `true_conditions` of the same exposures, if they are at hand.
    """
    survey, number = settings.survey(name), settings.number(name)
    days = np.asarray(days, dtype=np.float64)
    known = true_conditions(settings, name, seed, days) if conditions is None else conditions
    normal = stream(seed, Purpose.THROUGHPUT, number, 0).normal(size=(len(days), 2))
    # The walk begins at 0 with the first exposure. 2 mmag / sqrt(day) is 1 mmag from visit to visit and 40 mmag a year,
    # of the size of what telemetry explains.
    steps = survey.walk * np.sqrt(np.diff(days, prepend=days[:1])) * normal[:, 0]
    return Throughput(
        explained=explained_offset(settings, survey.response, known),
        walk=np.cumsum(steps),
        jumps=_jumps(settings, name, seed, days),
        white=survey.white * normal[:, 1],
    )


def _jumps(settings: ZeroPoints, name: str, seed: int, days: Float) -> Float:
    """Return the sum of all jumps since the first exposure (n,) [mag].

    Decontaminations jump upward; other steps, as often, downward: their sum wanders without a trend.
    """
    if len(days) == 0:
        return np.zeros(0)
    now, number = settings.conditions, settings.number(name)
    events = decontaminations(settings, name, seed)
    up = stream(seed, Purpose.DECONTAMINATION, number, 2).uniform(*now.decontamination_jump, len(events))
    several = int(4 * _LATEST * YEAR / now.step_days) + 10
    gaps = stream(seed, Purpose.DECONTAMINATION, number, 3).exponential(now.step_days, several)
    other = LAUNCH_DAYS + np.cumsum(gaps)
    down = stream(seed, Purpose.DECONTAMINATION, number, 4).uniform(*now.step, len(other))
    total = np.zeros(len(days))
    for when, size in ((events, up), (other, down)):
        sums = np.concatenate([[0.0], np.cumsum(size)])
        count = np.searchsorted(when, days, side="right")
        total += sums[count] - sums[count[0]]
    return total


def reported_telemetry(settings: ZeroPoints, name: str, seed: int, days: Float) -> dict[str, Float]:
    """Return the telemetry of a survey's first exposures: noisy, late, NaN in gaps.

    Noise is of the size of housekeeping sensors, so that all of it together moves a prediction by less than the 3 mmag
    that nothing explains. The thickness of ice is a model's: reset at decontaminations, updated daily,
    in steps, with an error of scale that stays the same for a cycle. Only single values of it are missing.

    Parameters
    ----------
    settings : ZeroPoints
    name : str
        Of the survey.
    seed : int
    days : array (n,)
        When the exposures begin, ascending [days since J2000].

    Returns
    -------
    mapping of the names of `CHANNELS` to arrays (n,)
    """
    how, number = settings.reported, settings.number(name)
    days = np.asarray(days, dtype=np.float64)
    n = len(days)
    values = true_conditions(settings, name, seed, days, lag=how.lag)
    normal = stream(seed, Purpose.TELEMETRY, number, 0).normal(size=(n, len(CHANNELS)))
    noise = dict(zip(CHANNELS, normal.T, strict=True))
    for channel in ("detector_temperature", "focus", "earth_limb_angle", "sun_angle"):
        values[channel] = values[channel] + getattr(how, channel) * noise[channel]
    for channel in ("jitter", "background"):
        values[channel] = values[channel] * np.exp(getattr(how, channel) * noise[channel])
    values["days_since_launch"] = days - LAUNCH_DAYS  # a clock, not a sensor
    values["contamination"] = _reported_contamination(settings, name, seed, days)
    lost = stream(seed, Purpose.TELEMETRY, number, 1).random((n, len(CHANNELS))) < how.gap_share
    for position, channel in enumerate(CHANNELS):
        gap = lost[:, position]
        if channel != "contamination":  # no sensor, so no stretch without values
            gap = gap | _outages(settings, number, seed, position, days)
        if channel != "days_since_launch":
            values[channel] = np.where(gap, np.nan, values[channel])
    return values


def _reported_contamination(settings: ZeroPoints, name: str, seed: int, days: Float) -> Float:
    how = settings.reported
    cycle, since = _cycle(decontaminations(settings, name, seed), days)
    updated = np.floor(since / how.contamination_days) * how.contamination_days
    thickness = _contamination(settings, name, seed, days - since + updated)
    rng = stream(seed, Purpose.TELEMETRY, settings.number(name), 2)
    scale = np.exp(how.contamination * rng.normal(size=cycle.max(initial=0) + 1))[cycle]
    return np.asarray(np.rint(thickness * scale / how.contamination_step) * how.contamination_step)


def _outages(settings: ZeroPoints, number: int, seed: int, channel: int, days: Float) -> npt.NDArray[np.bool_]:
    """Return which exposures fall into a stretch without values of a channel (n,)."""
    how = settings.reported
    rng = stream(seed, Purpose.OUTAGE, number, channel)
    several = int(4 * _LATEST * YEAR / how.outage_days) + 10
    between, length = rng.exponential(1.0, (several, 2)).T * np.array([[how.outage_days], [how.outage_length]])
    begin = LAUNCH_DAYS + np.cumsum(between) + np.concatenate([[0.0], np.cumsum(length)[:-1]])
    last = np.searchsorted(begin, days, side="right") - 1
    return np.asarray((last >= 0) & (days < (begin + length)[np.maximum(last, 0)]))
